// The run's worker threads: work in order of priority, the first error kept.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "base/threads.hpp"

namespace ingot {

// Threads of our own and not a TBB arena: TBB counts the thread that submits as one of its workers,
// and here that thread is the reader, which sleeps on the disk (two cores: one worker, half the
// rate).
//
// Every method may be called from any thread.
class Crew {
 public:
  using Work = std::function<void(int worker)>;

  // With as many threads as the system lets it have; Error{io} where that is none.
  explicit Crew(int threads);
  ~Crew();  // waits for running work; what is still queued is dropped
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  [[nodiscard]] int threads() const noexcept { return threads_.size(); }

  // Queues work; lower priorities run first, equal ones in order. An exception it throws fails the
  // crew.
  void post(std::uint64_t priority, Work work);

  // Records the first error, drops all queued work and calls the listener once.
  void fail(std::exception_ptr error) noexcept;
  // Called by the first fail(), from its thread. Set before any work is posted.
  void on_failure(std::function<void()> listener) { listener_ = std::move(listener); }
  [[nodiscard]] bool failed() const noexcept { return failed_.load(std::memory_order_acquire); }
  // CPU seconds that finished work took, over all threads.
  [[nodiscard]] double seconds() const noexcept {
    return static_cast<double>(nanoseconds_.load(std::memory_order_relaxed)) * 1e-9;
  }
  // Rethrows the first error, if any.
  void check();

 private:
  struct Entry {
    std::uint64_t priority, order;
    Work work;
    bool operator<(
        const Entry& other) const noexcept {  // std::push_heap keeps the largest in front
      return priority != other.priority ? priority > other.priority : order > other.order;
    }
  };
  void loop(int worker);
  void close();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<Entry> queue_;  // a heap
  std::uint64_t order_ = 0;
  bool closing_ = false;
  std::atomic<bool> failed_ = false;
  std::atomic<std::uint64_t> nanoseconds_ = 0;
  std::exception_ptr error_;
  std::function<void()> listener_;
  Threads threads_;
};

}  // namespace ingot
