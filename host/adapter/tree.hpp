// JSON objects of adapter configurations, with the order of their keys.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ingot::adapter {

struct Member;

struct Value {
  enum class Kind : std::uint8_t { null, boolean, number, text, list, object };
  Kind kind = Kind::null;
  bool truth = false;
  bool whole = false;  // a number written without point or exponent
  double number = 0;
  std::string text;
  std::vector<Value> items;
  std::vector<Member> members;  // in the file's order, keys distinct

  [[nodiscard]] const Value* find(std::string_view key) const noexcept;
  // null, false, 0, "", [] and {}: the values of a feature that is off.
  [[nodiscard]] bool off() const noexcept;
  // "a list", "the number 4", for messages.
  [[nodiscard]] std::string describe() const;
};

struct Member {
  std::string key;
  Value value;
};

// One JSON object. `where` is the file in messages. Throws Error{format} for anything else, for
// equal keys in one object, and for what is larger or deeper than any configuration.
[[nodiscard]] Value parse_tree(std::string_view text, const std::string& where);

}  // namespace ingot::adapter
