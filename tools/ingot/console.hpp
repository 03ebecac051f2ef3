// The one way to standard output and standard error. Messages to people go to stderr; stdout
// belongs to data. Nothing that a file, a recipe or an argument holds can drive a terminal through
// it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ingot/error.hpp"
#include "ingot/text.hpp"

namespace ingot::tool {

struct Failure {
  Code code = Code::internal;
  std::string message;
};

class Console {
 public:
  // A quiet console shows warnings and errors only.
  explicit Console(bool quiet = false);

  void note(std::string_view text) const;
  void warning(std::string_view text) const;
  // Shows an error, and keeps it for failures().
  void error(std::string_view text, Code code) const;
  // Shows an error that is none of its own, such as how many more there are.
  void remark(std::string_view text) const;
  // Lines as they are, without a label.
  void plain(std::string_view text) const;
  // How far a run is: a line that the next call replaces, whatever stderr is, and one that stays.
  // The name behind the text loses its beginning where the line has no room for it.
  void redraw(std::string_view text, std::string_view name = {}) const;
  void status(std::string_view text) const;
  // Clears a line that redraw() drew, so that what follows starts on an empty one. Messages and
  // what is printed do so by themselves.
  void clear() const;
  // A line for programs, as it is.
  void event(std::string_view json) const;

  [[nodiscard]] bool quiet() const noexcept { return quiet_; }
  // True if stderr is a terminal that can redraw a line.
  [[nodiscard]] bool terminal() const noexcept { return terminal_; }

 private:
  void say(std::string_view label, std::string_view style, std::string_view text) const;

  bool quiet_;
  bool terminal_;
  bool colour_;  // a terminal, and NO_COLOR is not set (no-color.org)
};

// Prints lines to stdout. A failure, such as a full disk, is Error{io}; a reader that has left, as
// `head` does, is none.
void print(std::string_view text);

// Keeps an error for failures() without showing it.
void keep_failure(std::string_view text, Code code);
// The errors so far, at most kMostFailures; and whether print() was called.
[[nodiscard]] std::vector<Failure> failures();
[[nodiscard]] bool has_printed();

inline constexpr std::size_t kMostFailures = 10'000;

// Says on stderr that OUT is there although its report is not, and takes no memory for it.
void say_complete() noexcept;
// Says on stderr that memory has run out, and takes none for it.
void starve() noexcept;

}  // namespace ingot::tool
