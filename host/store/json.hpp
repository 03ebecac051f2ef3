// JSON from untrusted files, by events.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace ingot {

// Hands the text's events to `sax`. Events and not a document, because a document keeps only the
// last of two equal keys, turns 16.0 into 16, and is as large as the text pleases. A syntax error,
// and anything but white space after the value, arrives as sax.parse_error(position, ...), bytes
// counted from 1.
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

}  // namespace ingot
