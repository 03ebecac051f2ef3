// The thread that puts finished chunks on disk past the page cache.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "base/threads.hpp"
#include "ingot/store.hpp"
#include "store/ring.hpp"

namespace ingot {

// Bytes to be written and what to do once they are.
struct Write {
  File* file = nullptr;
  std::uint64_t offset = 0;
  std::span<const std::byte> data;  // data.data() and offset agree modulo 4096
  std::function<void()> done;       // called on the writer's thread
};

// Writes whole pages directly and the odd ends through the page cache. push() may be called from
// any thread; the first failure is passed to the listener and everything after it is dropped.
class Writer {
 public:
  Writer(bool allow_uring, std::function<void(std::exception_ptr)> failed);
  ~Writer();  // drops what is still queued
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  void push(Write write);

 private:
  void loop();

  std::function<void(std::exception_ptr)> failed_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Write> queue_;
  bool closing_ = false;
  // Writes under way, and what to do once they are done: outlives the ring, which waits for them.
  std::map<std::uint64_t, std::function<void()>> flying_;
  std::unique_ptr<Ring> ring_;
  Threads thread_;
};

}  // namespace ingot
