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
  try {
    threads_.start(threads, [this](int worker) { loop(worker); });
  } catch (...) {
    close();
    throw;
  }
}

Crew::~Crew() { close(); }

void Crew::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    queue_.clear();
  }
  ready_.notify_all();
  threads_.join();
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
