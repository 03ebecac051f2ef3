// Work that is done once, by the first of several threads that need it.
#pragma once

#include <atomic>
#include <mutex>

namespace ingot {

// In place of std::call_once where the work can throw: glibc loads its unwinder when an exception
// passes through there, and aborts if memory has just run out. Work that threw is tried again by
// the next caller.
class Once {
 public:
  template <class Work>
  void call(const Work& work) {
    if (done_.load(std::memory_order_acquire)) return;
    const std::lock_guard lock(mutex_);
    if (done_.load(std::memory_order_relaxed)) return;
    work();
    done_.store(true, std::memory_order_release);
  }

 private:
  std::atomic<bool> done_ = false;
  std::mutex mutex_;
};

}  // namespace ingot
