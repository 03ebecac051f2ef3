// How far a run is: one line that redraws itself on a terminal, a plain line now and then in a
// pipe.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "console.hpp"
#include "ingot/merge.hpp"

namespace ingot::tool {

// How much of `total` is done, of 100, never more: what is read twice is counted twice.
[[nodiscard]] double percent(std::uint64_t done, std::uint64_t total);

// Thread-safe. Bytes count as the run counts them: read and written together.
class Meter {
 public:
  // `storage_rate` in bytes per second, 0 if not known: then no share of it is shown.
  Meter(const Console& console, double storage_rate);
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  void show(const Progress& progress);
  // Clears the line, so that what follows starts on an empty one.
  void clear();

 private:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] std::string describe(const Progress& progress, Clock::time_point now);

  const Console& console_;
  const double storage_rate_;
  std::mutex mutex_;
  bool shown_ = false;
  Clock::time_point last_;
  // Where the rate is measured from: moved on every few seconds, so that it follows changes.
  Clock::time_point mark_time_;
  std::uint64_t mark_bytes_ = 0;
  double rate_ = 0;
};

}  // namespace ingot::tool
