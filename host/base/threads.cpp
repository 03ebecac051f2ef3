#include "base/threads.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "ingot/error.hpp"

namespace ingot {

int thread_count(int wanted) noexcept {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Threads::~Threads() { join(); }

void Threads::join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::error_code Threads::start(std::function<void()> work) {
  threads_.reserve(threads_.size() + 1);  // a thread that runs has a place
  try {
    threads_.emplace_back(std::move(work));
  } catch (const std::system_error& error) {
    return error.code();
  }
  return {};
}

void Threads::start(int count, const std::function<void(int)>& work) {
  for (int i = 0; i < count; ++i) {
    const std::error_code error = start([work, i] { work(i); });
    if (!error) continue;
    if (i > 0) return;
    fail(Code::io, fmt::format("cannot start a thread: {}; the limit on processes (ulimit -u, or "
                               "pids.max of a container) is reached, or memory",
                               error.message()));
  }
}

}  // namespace ingot
