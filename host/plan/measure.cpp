#include "plan/measure.hpp"

namespace ingot::plan {

void Measuring::expect(std::uint64_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard lock(mutex_);
  progress_.bytes_total += bytes;
  if (watcher) watcher(progress_);
}

void Measuring::done(std::uint64_t bytes, const std::string& tensor) {
  const std::lock_guard lock(mutex_);
  progress_.bytes_done += bytes;
  progress_.tensor = tensor;
  if (watcher) watcher(progress_);
}

}  // namespace ingot::plan
