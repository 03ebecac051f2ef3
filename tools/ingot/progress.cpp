#include "progress.hpp"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "size.hpp"

namespace ingot::tool {
namespace {

using namespace std::chrono_literals;

constexpr auto kRedraw = 100ms;  // on a terminal
constexpr auto kLine = 5s;       // in a pipe
constexpr auto kWindow = 2s;     // over which the rate is taken

std::size_t width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace

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
  std::string line = describe(progress, now);
  if (console_.terminal()) {
    const std::size_t limit = width() - 1;
    if (line.size() > limit) line.resize(limit);
    line = "\r\x1b[K" + line;
    shown_ = true;
  } else {
    line += '\n';
  }
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void Meter::clear() {
  const std::lock_guard lock(mutex_);
  if (shown_) std::fputs("\r\x1b[K", stderr);
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
  std::string line = progress.bytes_total > 0 ? fmt::format("{:3.0f} %", 100 * done / total)
                                              : show_bytes(progress.bytes_done);
  line += "  " + show_rate(rate_);
  if (storage_rate_ > 0) line += fmt::format(" ({:.0f} % of storage)", 100 * rate_ / storage_rate_);
  if (rate_ > 0 && total > done)
    line += fmt::format("  {} left", show_time((total - done) / rate_));
  return line + "  " + printable(progress.tensor);
}

}  // namespace ingot::tool
