#include <algorithm>
#include <string_view>

#include "ingot/store.hpp"

namespace ingot {
namespace {

bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

// Takes the run of digits in front and returns it without leading zeros.
std::string_view take_number(std::string_view& text) noexcept {
  const auto stop =
      static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), is_digit) - text.begin());
  std::string_view digits = text.substr(0, stop);
  text.remove_prefix(stop);
  digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size()));
  return digits;
}

}  // namespace

bool natural_less(std::string_view a, std::string_view b) noexcept {
  std::string_view x = a;
  std::string_view y = b;
  while (!x.empty() && !y.empty()) {
    if (is_digit(x.front()) && is_digit(y.front())) {
      const std::string_view m = take_number(x);
      const std::string_view n = take_number(y);
      if (m.size() != n.size()) return m.size() < n.size();
      if (m != n) return m < n;
    } else {
      const auto c = static_cast<unsigned char>(x.front());
      const auto d = static_cast<unsigned char>(y.front());
      if (c != d) return c < d;
      x.remove_prefix(1);
      y.remove_prefix(1);
    }
  }
  if (x.empty() != y.empty()) return x.empty();
  return a < b;  // equal but for leading zeros
}

}  // namespace ingot
