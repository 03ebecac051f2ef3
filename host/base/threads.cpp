#include "base/threads.hpp"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <memory>
#include <thread>
#include <utility>

#include <sched.h>

#include <fmt/format.h>

#include "ingot/error.hpp"

namespace ingot {

namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

// v2: "50000 100000" or "max 100000". v1: two files, -1 for no quota.
double quota_of(const std::string& folder, bool unified) {
  double quota = 0, period = 0;
  if (unified) {
    std::ifstream(folder + "/cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kUnlimited;
}

// The processors this process may run on.
int affinity() noexcept {
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the kernel's mask may be wider than ours
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(most));
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    const int count = ::sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    const bool narrow = count == 0 && errno == EINVAL;
    CPU_FREE(set);
    if (count > 0) return count;
    if (!narrow) break;
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Bytes of address space; pages that are not touched cost nothing. Decomposition libraries need the
// most.
constexpr std::size_t kStack = std::size_t{8} << 20;

extern "C" void* run(void* given) noexcept {
  const std::unique_ptr<std::function<void()>> work(static_cast<std::function<void()>*>(given));
  (*work)();
  return nullptr;
}

}  // namespace

double cpu_quota(const std::string& root) {
  double least = kUnlimited;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/a/b", "0::/a/b"
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    // The colons around them become commas, so that every controller is between two.
    std::string controllers = line.substr(first, second - first + 1);
    std::replace(controllers.begin(), controllers.end(), ':', ',');
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == controllers.npos) continue;
    // In a container the path may be the host's while its group is mounted as the root: groups
    // that are not there are passed over.
    for (std::string path = line.substr(second + 1);;) {
      for (const char* mount : {"", "/unified", "/cpu", "/cpu,cpuacct"}) {
        least = std::min(least, quota_of(root + "/sys/fs/cgroup" + mount + path, unified));
      }
      const std::size_t slash = path.rfind('/');
      if (path.empty() || slash == path.npos) break;
      path.resize(slash);
    }
  }
  return least;
}

int thread_count(int wanted) noexcept {
  if (wanted > 0) return wanted;
  const int processors = affinity();
  double quota = kUnlimited;
  try {
    quota = cpu_quota();
  } catch (...) {  // no memory for a file name: there is no quota to see
  }
  if (quota >= processors) return processors;
  return std::max(1, static_cast<int>(std::ceil(quota)));
}

Threads::~Threads() { join(); }

void Threads::join() {
  for (const pthread_t thread : threads_) ::pthread_join(thread, nullptr);
  threads_.clear();
}

std::error_code Threads::start(std::function<void()> work) {
  threads_.reserve(threads_.size() + 1);  // a thread that runs has a place
  auto kept = std::make_unique<std::function<void()>>(std::move(work));
  pthread_attr_t settings;
  int error = ::pthread_attr_init(&settings);
  if (error == 0) {
    error = ::pthread_attr_setstacksize(&settings, kStack);
    pthread_t thread{};
    if (error == 0) error = ::pthread_create(&thread, &settings, run, kept.get());
    ::pthread_attr_destroy(&settings);
    if (error == 0) {
      (void)kept.release();  // the thread's
      threads_.push_back(thread);
    }
  }
  return {error, std::generic_category()};
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
