#include "progress.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "size.hpp"

namespace ingot::tool {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedraw = 100ms;  // on a terminal
constexpr auto kLine = 5s;       // in a pipe
constexpr auto kWindow = 2s;     // over which the rate is taken

}  // namespace

double percent(std::uint64_t done, std::uint64_t total) {
  if (done >= total) return 100;
  return 100 * static_cast<double>(done) / static_cast<double>(total);
}

Meter::Meter(const Console& console, double storage_rate)
    : console_(console), storage_rate_(storage_rate), last_(Clock::now()), mark_time_(last_) {}

Meter::~Meter() { clear(); }

void Meter::show(const Progress& progress) {
  if (console_.quiet()) return;
  const std::lock_guard lock(mutex_);
  const Clock::time_point now = Clock::now();
  if (now - last_ < (console_.terminal() ? Clock::duration(kRedraw) : Clock::duration(kLine))) {
    return;
  }
  last_ = now;
  console_.status(describe(progress, now));
  shown_ = console_.terminal();
}

void Meter::clear() {
  const std::lock_guard lock(mutex_);
  if (shown_) console_.clear();
  shown_ = false;
}

std::string Meter::describe(const Progress& progress, Clock::time_point now) {
  const double elapsed = std::chrono::duration<double>(now - mark_time_).count();
  const std::uint64_t moved = progress.bytes_done - std::min(progress.bytes_done, mark_bytes_);
  if (now - mark_time_ >= kWindow || rate_ == 0) {
    rate_ = elapsed > 0 ? static_cast<double>(moved) / elapsed : 0;
  }
  if (now - mark_time_ >= kWindow) {
    mark_time_ = now;
    mark_bytes_ = progress.bytes_done;
  }
  const auto total = static_cast<double>(progress.bytes_total);
  const auto done = static_cast<double>(progress.bytes_done);
  std::string line =
      progress.bytes_total > 0
          ? fmt::format("{:3.0f} %", percent(progress.bytes_done, progress.bytes_total))
          : show_bytes(progress.bytes_done);
  line += "  " + show_rate(rate_);
  if (storage_rate_ > 0) {  // the page cache gives more than the storage
    line += fmt::format(" ({:.0f} % of storage)", std::min(100.0, 100 * rate_ / storage_rate_));
  }
  if (rate_ > 0 && total > done)
    line += fmt::format("  {} left", show_time((total - done) / rate_));
  return line + "  " + progress.tensor;
}

}  // namespace ingot::tool
