// Messages to people, on stderr; stdout belongs to data.
#pragma once

#include <string_view>

namespace ingot::tool {

class Console {
 public:
  // A quiet console shows warnings and errors only.
  explicit Console(bool quiet = false);

  void note(std::string_view text) const;
  void warning(std::string_view text) const;
  void error(std::string_view text) const;

  [[nodiscard]] bool quiet() const noexcept { return quiet_; }
  // True if stderr is a terminal that can redraw a line.
  [[nodiscard]] bool terminal() const noexcept { return terminal_; }

 private:
  void say(std::string_view label, std::string_view style, std::string_view text) const;

  bool quiet_;
  bool terminal_;
  bool colour_;  // a terminal, and NO_COLOR is not set (no-color.org)
};

// Prints to stdout; a failure, such as a full disk, is Error{io}.
void print(std::string_view text);

}  // namespace ingot::tool
