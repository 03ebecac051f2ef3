#include "console.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include <fmt/format.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

bool set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

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
void Console::error(std::string_view text) const { say("error", "\x1b[31m", text); }

void Console::say(std::string_view label, std::string_view style, std::string_view text) const {
  // One write, so that lines of several threads do not mix.
  std::string line = colour_ ? fmt::format("ingot: {}{}:\x1b[0m ", style, label)
                             : fmt::format("ingot: {}: ", label);
  line += printable(text);
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) {
    return;
  }
  fail(Code::io, fmt::format("cannot write to standard output: {}", std::strerror(errno)));
}

}  // namespace ingot::tool
