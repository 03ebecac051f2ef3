#include "console.hpp"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "ingot/error.hpp"

namespace ingot::tool {
namespace {

bool set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

std::size_t width() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

// At most `most` bytes, never a part of a UTF-8 sequence.
std::string_view cut(std::string_view text, std::size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xC0U) == 0x80U) --most;
  return text.substr(0, most);
}

// For the JSON of a failure.
std::mutex told;            // guards kept
std::vector<Failure> kept;  // errors, as they came
std::atomic<bool> data;     // is on stdout

std::atomic<bool> drawn;  // a line that the next one replaces
constexpr const char* kClear = "\r\x1b[K";

// One call for a whole line, so that those of several threads do not mix. A stderr that takes
// nothing is not a reason to stop.
void write_error(const std::string& line) { std::fwrite(line.data(), 1, line.size(), stderr); }

}  // namespace

Console::Console(bool quiet)
    : quiet_(quiet),
      terminal_(::isatty(STDERR_FILENO) == 1),
      colour_(terminal_ && !set("NO_COLOR")) {
  const char* kind = std::getenv("TERM");
  if (kind != nullptr && std::strcmp(kind, "dumb") == 0) terminal_ = colour_ = false;
}

void Console::note(std::string_view text) const {
  if (!quiet_) say("note", "\x1b[36m", text);
}
void Console::warning(std::string_view text) const { say("warning", "\x1b[33m", text); }
void Console::error(std::string_view text, Code code) const {
  keep_failure(text, code);
  remark(text);
}
void Console::remark(std::string_view text) const { say("error", "\x1b[31m", text); }

void Console::plain(std::string_view text) const { write_error(printable(text, Breaks::kept)); }

void Console::say(std::string_view label, std::string_view style, std::string_view text) const {
  std::string line = drawn.exchange(false) ? kClear : "";
  line += colour_ ? fmt::format("ingot: {}{}:\x1b[0m ", style, label)
                  : fmt::format("ingot: {}: ", label);
  line += printable(shorten(text, kLongestMessage));
  line += '\n';
  write_error(line);
}

void Console::redraw(std::string_view text, std::string_view name) const {
  constexpr std::string_view kGap = "  ", kCut = "...";
  constexpr std::size_t kLeast = 12;  // of a name that is worth showing
  std::string line(cut(printable(text), width() - 1));
  std::string shown = printable(name);
  const std::size_t room = width() - 1 - std::min(width() - 1, line.size() + kGap.size());
  if (shown.size() > room && room >= kLeast) {
    std::size_t begin = shown.size() - (room - kCut.size());
    while (begin < shown.size() && (static_cast<unsigned char>(shown[begin]) & 0xC0U) == 0x80U) {
      ++begin;
    }
    shown = std::string(kCut) + shown.substr(begin);
  }
  if (!shown.empty() && shown.size() <= room) line += std::string(kGap) + shown;
  drawn = true;
  write_error(fmt::format("{}{}", kClear, line));
}

void Console::status(std::string_view text) const { write_error(printable(text) + '\n'); }

void Console::clear() const {
  if (drawn.exchange(false)) write_error(kClear);
}

void Console::event(std::string_view json) const { write_error(fmt::format("{}\n", json)); }

void print(std::string_view text) {
  data = true;
  if (drawn.exchange(false)) write_error(kClear);
  const std::string shown = printable(text, Breaks::kept);
  if (std::fwrite(shown.data(), 1, shown.size(), stdout) == shown.size() &&
      std::fflush(stdout) == 0) {
    return;
  }
  if (errno == EPIPE) return;
  fail(Code::io, fmt::format("cannot write to standard output: {}", std::strerror(errno)));
}

void keep_failure(std::string_view text, Code code) {
  const std::lock_guard lock(told);
  if (kept.size() < kMostFailures) kept.push_back({code, shorten(text, kLongestMessage)});
}

std::vector<Failure> failures() {
  const std::lock_guard lock(told);
  return kept;
}

bool has_printed() { return data; }

void say_complete() noexcept {
  constexpr std::string_view kText =
      "ingot: note: the output is complete; only the report of it is missing\n";
  (void)!::write(STDERR_FILENO, kText.data(), kText.size());
}

void starve() noexcept {
  constexpr std::string_view kText =
      "ingot: error: out of memory; a smaller --memory or fewer --threads may help\n";
  (void)!::write(STDERR_FILENO, kText.data(), kText.size());
}

}  // namespace ingot::tool
