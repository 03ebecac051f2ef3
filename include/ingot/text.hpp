// Text from files, recipes and arguments as people may see it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ingot {

// What printable() does with ends of lines (written as \n) and with tabs.
enum class Breaks { escaped, kept };

// The text without anything that drives a terminal or hides from a reader: control characters (C0,
// DEL, C1) and bytes that are not UTF-8 become \xNN; line separators, marks and overrides of
// writing direction and characters of no width become \uNNNN. Everything else stays.
[[nodiscard]] std::string printable(std::string_view text, Breaks breaks = Breaks::escaped);

// The text, or of one longer than `most` bytes its beginning, its length and its end: messages say
// what is wrong first and what to do last. Never a part of a UTF-8 sequence.
[[nodiscard]] std::string shorten(std::string_view text, std::size_t most);

// The longest message that is shown in full, in bytes. Names and values in it are cut before.
inline constexpr std::size_t kLongestMessage = 4000;

}  // namespace ingot
