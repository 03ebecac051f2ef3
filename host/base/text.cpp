#include "ingot/text.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include <fmt/format.h>

namespace ingot {
namespace {

struct Range {
  std::uint32_t first, last;
};

// Beyond ASCII, what acts on the text around it or is not seen, and so can make one text look like
// another.
constexpr std::array kUnseen{
    Range{0x80, 0x9F},        // C1 controls
    Range{0xAD, 0xAD},        // soft hyphen
    Range{0x61C, 0x61C},      // Arabic letter mark
    Range{0x180E, 0x180E},    // Mongolian vowel separator
    Range{0x200B, 0x200F},    // no width; marks of direction
    Range{0x2028, 0x202E},    // line and paragraph separators; embeddings and overrides
    Range{0x2060, 0x206F},    // no width; isolates
    Range{0xFEFF, 0xFEFF},    // byte order mark
    Range{0xFFF9, 0xFFFB},    // interlinear annotation
    Range{0xE0000, 0xE007F},  // tags
};

bool unseen(std::uint32_t character) {
  return std::any_of(kUnseen.begin(), kUnseen.end(), [&](const Range& range) {
    return character >= range.first && character <= range.last;
  });
}

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

// The character at the head of `text` and its bytes; 0 bytes where it is not UTF-8.
std::pair<std::uint32_t, std::size_t> decode(std::string_view text) {
  const auto head = static_cast<unsigned char>(text.front());
  if (head < 0x80) return {head, 1};
  const std::size_t size = head >= 0xF0 ? 4 : head >= 0xE0 ? 3 : 2;
  if (head < 0xC2 || head > 0xF4 || text.size() < size) return {0, 0};
  std::uint32_t character = head & (0x7FU >> size);
  for (std::size_t i = 1; i < size; ++i) {
    if (!continues(text[i])) return {0, 0};
    character = character << 6 | (static_cast<unsigned char>(text[i]) & 0x3FU);
  }
  constexpr std::array<std::uint32_t, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = character >= 0xD800 && character <= 0xDFFF;
  if (character < kLeast[size] || character > 0x10FFFF || surrogate) return {0, 0};
  return {character, size};
}

}  // namespace

std::string printable(std::string_view text, Breaks breaks) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const auto [character, size] = decode(text);
    if (size == 0) {
      result += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    } else if (breaks == Breaks::kept && (character == '\n' || character == '\t')) {
      result += text.front();
    } else if (breaks == Breaks::kept && text.starts_with("\r\n")) {
    } else if (character < 0x20 || character == 0x7F) {
      result += fmt::format("\\x{:02x}", character);
    } else if (character < 0x80 || !unseen(character)) {
      result += text.substr(0, size);
    } else {
      result += fmt::format("\\u{:04x}", character);
    }
    text.remove_prefix(std::max<std::size_t>(size, 1));
  }
  return result;
}

std::string shorten(std::string_view text, std::size_t most) {
  if (text.size() <= most) return std::string(text);
  std::size_t head = most - most / 4, tail = text.size() - most / 4;
  while (head > 0 && continues(text[head])) --head;
  while (tail < text.size() && continues(text[tail])) ++tail;
  return fmt::format("{}… ({} bytes in all) …{}", text.substr(0, head), text.size(),
                     text.substr(tail));
}

}  // namespace ingot
