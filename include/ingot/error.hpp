// The one exception type of ingot, its codes and the exit code each maps to.
#pragma once

#include <exception>
#include <string>
#include <vector>

namespace ingot {

// What kind of thing went wrong. Callers branch on the code, never on the text.
// `range`: inputs are sound, yet a result is not finite.
enum class Code { usage, format, shape, dtype, range, missing, io, memory, device, internal };

// An error with a message for the user and the context in which it arose, innermost first.
//
// A message names the file, the tensor, what was expected, what was found and what to do.
class Error : public std::exception {
 public:
  Error(Code code, std::string message);

  [[nodiscard]] Code code() const noexcept { return code_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }
  [[nodiscard]] const std::vector<std::string>& context() const noexcept { return context_; }

  // Appends what was being done when the error passed by; returns *this for `throw e.add(...)`.
  Error& add(std::string context);

  // "message (while context; while context)", at most about kLongestMessage bytes of it, zero bytes
  // as \x00.
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }

 private:
  void compose();

  Code code_;
  std::string message_;
  std::vector<std::string> context_;
  std::string text_;
};

[[noreturn]] void fail(Code code, std::string message);

// The process exit code of an error: 2 usage, 3 bad input, 4 io, 5 device, 6 internal.
[[nodiscard]] int exit_code(Code code) noexcept;

}  // namespace ingot
