#include "base/threads.hpp"

#include <algorithm>
#include <thread>

namespace ingot {

int thread_count(int wanted) noexcept {
  return wanted > 0 ? wanted : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace ingot
