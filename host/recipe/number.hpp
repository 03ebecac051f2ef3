// Numbers as recipes write them.
#pragma once

#include <optional>
#include <string_view>

namespace ingot {

// The double nearest to a decimal number: sign, digits, fraction, exponent, or `inf` and `nan` with
// or without a dot; white space around it is skipped. Nothing else counts: no underscores, no other
// base, and no leading zeros ("010" is 8 in YAML 1.1 and 10 in YAML 1.2). A number beyond the range
// of double is none. A whole number has no negative zero.
[[nodiscard]] std::optional<double> number(std::string_view text);

}  // namespace ingot
