// How many threads do a piece of work, and how they are started.
#pragma once

#include <functional>
#include <string>
#include <system_error>
#include <vector>

#include <pthread.h>

namespace ingot {

// `wanted` threads; where that is 0, as many as this process may use at the same time: the
// processors of its affinity, or fewer where a cgroup's quota is less.
[[nodiscard]] int thread_count(int wanted) noexcept;

// Processors' worth of time that the cgroups of this process may take: the least quota of its group
// and those around it (v2's cpu.max, v1's cpu.cfs_quota_us), infinity without one. `root` is where
// /proc and /sys are; what cannot be read there limits nothing.
[[nodiscard]] double cpu_quota(const std::string& root = "");

// Threads that are joined in the end, however many of them there came to be: the system may refuse
// to start one (RLIMIT_NPROC, pids of a cgroup, memory for its stack). The stack has one size,
// whatever the limit on stacks (ulimit -s) gives others.
class Threads {
 public:
  Threads() = default;
  ~Threads();  // joins; the owner has told them to end
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  // One more thread, or the reason why there is none.
  [[nodiscard]] std::error_code start(std::function<void()> work);
  // Up to `count` that run work(number), numbers from 0. With fewer the work takes longer;
  // Error{io} where the system refuses the first.
  void start(int count, const std::function<void(int)>& work);

  [[nodiscard]] int size() const noexcept { return static_cast<int>(threads_.size()); }
  void join();

 private:
  std::vector<pthread_t> threads_;
};

}  // namespace ingot
