// What the emulator tells ThreadSanitizer; nothing in other builds.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emu {

#if defined(__SANITIZE_THREAD__)

inline constexpr bool kThreadSanitizer = true;

// What happened before release(token) happens before what follows acquire(token).
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }

// While it lives, accesses are the emulator's own and not looked at.
class Backstage {
 public:
  Backstage() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Backstage() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Backstage(const Backstage&) = delete;
  Backstage& operator=(const Backstage&) = delete;
};

#else

inline constexpr bool kThreadSanitizer = false;
inline void release(void*) {}
inline void acquire(void*) {}

class Backstage {
 public:
  Backstage() {}
  ~Backstage() {}
  Backstage(const Backstage&) = delete;
  Backstage& operator=(const Backstage&) = delete;
};

#endif

}  // namespace emu
