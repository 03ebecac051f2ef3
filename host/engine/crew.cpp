#include "engine/crew.hpp"

#include <time.h>

#include <algorithm>
#include <utility>

namespace ingot {

namespace {

// Nanoseconds that the calling thread has been on a core.
std::uint64_t spent() {
  timespec time{};
  (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

}  // namespace

Crew::Crew(int threads) {
  threads_.reserve(static_cast<std::size_t>(threads));
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this, i] { loop(i); });
}

Crew::~Crew() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    queue_.clear();
  }
  ready_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Crew::post(std::uint64_t priority, Work work) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_ || failed()) return;
    queue_.push_back({priority, order_++, std::move(work)});
    std::push_heap(queue_.begin(), queue_.end());
  }
  ready_.notify_one();
}

void Crew::fail(std::exception_ptr error) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (failed()) return;
    error_ = std::move(error);
    queue_.clear();
    failed_.store(true, std::memory_order_release);
  }
  if (listener_) listener_();
}

void Crew::check() {
  if (!failed()) return;
  const std::lock_guard lock(mutex_);
  std::rethrow_exception(error_);
}

void Crew::loop(int worker) {
  for (;;) {
    Work work;
    {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return closing_ || !queue_.empty(); });
      if (closing_) return;
      std::pop_heap(queue_.begin(), queue_.end());
      work = std::move(queue_.back().work);
      queue_.pop_back();
    }
    const std::uint64_t begin = spent();
    try {
      work(worker);
    } catch (...) {
      fail(std::current_exception());
    }
    nanoseconds_.fetch_add(spent() - begin, std::memory_order_relaxed);
  }
}

}  // namespace ingot
