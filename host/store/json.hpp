// JSON from untrusted files: by events, or as a tree within bounds. Nothing else parses it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace ingot {

// Hands the text's events to `sax`. Events and not a document, because a document keeps only the
// last of two equal keys, turns 16.0 into 16, and is as large as the text pleases. A syntax error,
// and anything but white space after the value, arrives as sax.parse_error(position, ...), bytes
// counted from 1. Takes no memory for nesting, but for a bit a level.
template <class Sax>
void parse_json(std::string_view text, Sax& sax) {
  // The parser takes a zero byte for the end of its input; nothing may hide behind one.
  const std::size_t zero = text.find('\0');
  if (zero != text.npos) {
    sax.parse_error(zero + 1, "", nlohmann::json::other_error::create(0, "zero byte", nullptr));
    return;
  }
  nlohmann::json::sax_parse(text.begin(), text.end(), &sax);
}

// Limits of a tree. Trees are walked and freed by recursion, and one takes up to fifty times the
// memory of its text.
struct JsonBounds {
  std::size_t depth = 128;
  std::size_t values = 5'000'000;
};

// The text as a tree, keys in its order; of equal keys the last one's value. Time in proportion to
// the text. `where` names it in messages. Throws Error{format} if the text is not JSON (zero bytes
// and numbers that no double holds included) and beyond the bounds.
[[nodiscard]] nlohmann::ordered_json json_of(std::string_view text, const std::string& where,
                                             const JsonBounds& bounds = {});

}  // namespace ingot
