#include "ingot/error.hpp"

#include <utility>

#include "ingot/text.hpp"

namespace ingot {

Error::Error(Code code, std::string message) : code_(code), message_(std::move(message)) {
  compose();
}

Error& Error::add(std::string context) {
  context_.push_back(std::move(context));
  compose();
  return *this;
}

void Error::compose() {
  text_ = message_;
  const char* lead = " (";
  for (const std::string& step : context_) {
    text_.append(lead).append("while ").append(step);
    lead = "; ";
  }
  if (!context_.empty()) text_.push_back(')');
  // what() ends at the first zero byte, which a name from a file may have anywhere.
  for (std::size_t at = 0; (at = text_.find('\0', at)) != std::string::npos;) {
    text_.replace(at, 1, "\\x00");
  }
  if (text_.size() > kLongestMessage) text_ = shorten(text_, kLongestMessage);
}

void fail(Code code, std::string message) { throw Error(code, std::move(message)); }

int exit_code(Code code) noexcept {
  switch (code) {
    case Code::usage:
      return 2;
    case Code::format:
    case Code::shape:
    case Code::dtype:
    case Code::range:
    case Code::missing:
      return 3;
    case Code::io:
    case Code::memory:
      return 4;  // the machine fell short, not the input
    case Code::device:
      return 5;
    case Code::internal:
      return 6;
  }
  return 6;
}

}  // namespace ingot
