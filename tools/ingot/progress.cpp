#include "progress.hpp"

#include <algorithm>
#include <cmath>
#include <system_error>

#include <fmt/format.h>

#include "json.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

using namespace std::chrono_literals;

constexpr auto kTick = 100ms;
// A run that is over before is not worth a bar, or a line that stays.
constexpr double kFirst = 0.4;
constexpr double kFirstLine = 2;
// Each phase that lasts so long is told of in a pipe.
constexpr double kPhase = 1;
constexpr double kLine = 5;     // between lines in a pipe
constexpr double kEvent = 0.5;  // between JSON lines
// Seconds after which a rate counts a third as much, and for which what was expected counts.
constexpr double kFade = 8;
constexpr double kTrust = 2;
// Nothing is said of the time left before something was seen for so long.
constexpr double kSeen = 0.5;

constexpr std::size_t kBar = 20;  // cells

// "0:07", "12:30", "1:02:03".
std::string clock(double seconds) {
  const auto all = static_cast<std::uint64_t>(std::max(0.0, seconds));
  return all < 3600 ? fmt::format("{}:{:02}", all / 60, all % 60)
                    : fmt::format("{}:{:02}:{:02}", all / 3600, all / 60 % 60, all % 60);
}

}  // namespace

double percent(std::uint64_t done, std::uint64_t total) {
  if (done >= total) return 100;
  return 100 * static_cast<double>(done) / static_cast<double>(total);
}

Pace::Pace(std::uint64_t done, double expected)
    : done_(done),
      bytes_(expected > 0 ? expected * kTrust : 0),
      seconds_(expected > 0 ? kTrust : 0) {}

void Pace::note(double seconds, std::uint64_t done) {
  const double passed = seconds - last_;
  if (passed <= 0) return;
  const double faded = std::exp(-passed / kFade);
  bytes_ = bytes_ * faded + static_cast<double>(done - std::min(done, done_));
  seconds_ = seconds_ * faded + passed;
  last_ = seconds;
  done_ = std::max(done, done_);
}

double Pace::speed() const { return seconds_ >= kSeen ? bytes_ / seconds_ : 0; }

double Pace::rate() const { return last_ >= kSeen ? speed() : 0; }

std::optional<double> Pace::left(std::uint64_t total) const {
  if (total <= done_) return 0;
  if (!(speed() > 0)) return std::nullopt;
  return static_cast<double>(total - done_) / speed();
}

Meter::Meter(const Console& console, Style style, Phase first)
    : console_(console), style_(style), start_(Clock::now()), phase_start_(start_), last_(start_) {
  if (style_ == Style::none) return;
  enter({first, 0, 0, {}}, start_);
  try {
    thread_ = std::thread([this] {
      std::unique_lock lock(mutex_);
      while (!ended_.wait_for(lock, kTick, [this] { return over_; })) draw(Clock::now());
    });
  } catch (const std::system_error&) {  // then it is shown when the work calls
    alone_ = true;
  }
}

Meter::~Meter() { finish(false); }

void Meter::finish(bool complete) {
  {
    const std::lock_guard lock(mutex_);
    if (over_) return;
    over_ = true;
    if (style_ == Style::bar) console_.clear();
    if (style_ == Style::json && complete) print_event("done", Clock::now());
  }
  ended_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Meter::expect(double seconds) {
  const std::lock_guard lock(mutex_);
  expected_ = seconds;
}

void Meter::show(const Progress& progress) {
  if (style_ == Style::none) return;
  const std::lock_guard lock(mutex_);
  if (over_) return;
  const Clock::time_point now = Clock::now();
  if (progress.phase != now_.phase) enter(progress, now);
  if (now_.bytes_total == 0 && progress.bytes_total > 0) pace_ = Pace(progress.bytes_done);
  now_ = progress;
  pace_.note(since(phase_start_, now), progress.bytes_done);
  if (alone_) draw(now);
}

double Meter::since(Clock::time_point begin, Clock::time_point now) const {
  return std::chrono::duration<double>(now - begin).count();
}

void Meter::enter(const Progress& progress, Clock::time_point now) {
  now_ = progress;
  phase_start_ = now;
  phase_told_ = false;
  const bool known = (progress.phase == Phase::merge || progress.phase == Phase::decompose) &&
                     expected_ > 0 && progress.bytes_total > 0;
  pace_ =
      Pace(progress.bytes_done, known ? static_cast<double>(progress.bytes_total) / expected_ : 0);
  if (style_ == Style::json) print_event("phase", now);
}

void Meter::draw(Clock::time_point now) {
  const double seconds = since(start_, now), phase = since(phase_start_, now);
  const double last = since(last_, now);
  switch (style_) {
    case Style::none:
      return;
    case Style::bar:
      if (seconds < kFirst) return;
      console_.redraw(bar(seconds), now_.tensor);
      break;
    case Style::lines:
      if (!(told_ ? (phase_told_ ? last >= kLine : phase >= kPhase) : seconds >= kFirstLine))
        return;
      console_.status(line(seconds));
      break;
    case Style::json:
      if (last < kEvent) return;
      print_event("progress", now);
      break;
  }
  last_ = now;
  told_ = phase_told_ = true;
}

std::string Meter::bar(double seconds) const {
  std::string text(word(now_.phase));
  if (now_.bytes_total > 0) {
    const double share = percent(now_.bytes_done, now_.bytes_total);
    const auto full = static_cast<std::size_t>(share / 100 * static_cast<double>(kBar));
    // Rounded down: 100 % is all of it.
    text += fmt::format(" [{}{}] {:3.0f} %  {} of {}", std::string(full, '#'),
                        std::string(kBar - full, '.'), std::floor(share),
                        show_bytes(std::min(now_.bytes_done, now_.bytes_total)),
                        show_bytes(now_.bytes_total));
  } else if (now_.bytes_done > 0) {
    text += "  " + show_bytes(now_.bytes_done);
  }
  text += "  " + clock(seconds);
  const bool more = now_.bytes_done < now_.bytes_total;
  if (const auto left = pace_.left(now_.bytes_total); left && more) {
    text += fmt::format(", {} left", clock(*left));
  }
  return text;
}

std::string Meter::line(double seconds) const {
  std::string text = fmt::format("ingot: {}", word(now_.phase));
  if (now_.bytes_total > 0) {
    text += fmt::format(
        ": {:.0f} %, {} of {}", std::floor(percent(now_.bytes_done, now_.bytes_total)),
        show_bytes(std::min(now_.bytes_done, now_.bytes_total)), show_bytes(now_.bytes_total));
  } else if (now_.bytes_done > 0) {
    text += ": " + show_bytes(now_.bytes_done);
  }
  text += fmt::format(", {} so far", show_time(seconds));
  const bool more = now_.bytes_done < now_.bytes_total;
  if (const auto left = pace_.left(now_.bytes_total); left && more) {
    text += fmt::format(", about {} left", show_time(*left));
  }
  return text;
}

void Meter::print_event(const char* event, Clock::time_point now) const {
  Json json{{"event", event},
            {"phase", word(now_.phase)},
            {"seconds", since(start_, now)},
            {"phase_seconds", since(phase_start_, now)},
            {"bytes_done", now_.bytes_done},
            {"bytes_total", nullptr},
            {"rate", nullptr},
            {"left", nullptr},
            {"tensor", nullptr}};
  if (now_.bytes_total > 0) {
    json["bytes_done"] = std::min(now_.bytes_done, now_.bytes_total);
    json["bytes_total"] = now_.bytes_total;
    if (pace_.rate() > 0) json["rate"] = pace_.rate();
    if (const auto left = pace_.left(now_.bytes_total)) json["left"] = *left;
  }
  if (!now_.tensor.empty()) json["tensor"] = now_.tensor;
  console_.event(json.dump(-1, ' ', true, Json::error_handler_t::replace));
}

ProgressOption::ProgressOption(CLI::App& command) {
  command.add_option("--progress", word_, "How to show how far it is, on standard error")
      ->type_name("auto|bar|lines|json|none")
      ->check(CLI::IsMember({"auto", "bar", "lines", "json", "none"}))
      ->capture_default_str();
}

Meter::Style ProgressOption::style(const Console& console) const {
  using Style = Meter::Style;
  return word_ == "bar"                       ? Style::bar
         : word_ == "lines"                   ? Style::lines
         : word_ == "json"                    ? Style::json
         : word_ == "none" || console.quiet() ? Style::none
         : console.terminal()                 ? Style::bar
                                              : Style::lines;
}

}  // namespace ingot::tool
