#include "adapter/tree.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include <fmt/format.h>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "store/json.hpp"

namespace ingot::adapter {
namespace {

// Real ones have 2 KB; lists of trained tokens and ranks of single modules make some of them
// larger.
constexpr std::size_t kBytes = std::size_t{16} << 20;
constexpr std::size_t kValues = 2'000'000;
constexpr std::size_t kDepth = 16;

class Builder {
 public:
  explicit Builder(const std::string& where) : where_(where) {}

  Value take() { return std::move(root_); }

  bool null() { return add({}); }
  bool boolean(bool truth) {
    Value value;
    value.kind = Value::Kind::boolean;
    value.truth = truth;
    return add(std::move(value));
  }
  bool number_integer(std::int64_t n) { return number(static_cast<double>(n), true); }
  bool number_unsigned(std::uint64_t n) { return number(static_cast<double>(n), true); }
  bool number_float(double n, const std::string&) { return number(n, false); }
  bool string(std::string& text) {
    Value value;
    value.kind = Value::Kind::text;
    value.text = std::move(text);
    return add(std::move(value));
  }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(Value::Kind::object); }
  bool end_object() { return close(); }
  bool start_array(std::size_t) { return open(Value::Kind::list); }
  bool end_array() { return close(); }
  bool key(std::string& text) {
    Level& level = levels_.back();
    if (!level.seen.insert(text).second) {
      fail(Code::format, fmt::format("{} has the key '{}' twice", where_, clip(text)));
    }
    level.key = std::move(text);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    fail(Code::format, fmt::format("{} is not valid JSON at byte {}", where_, position));
  }

 private:
  struct Level {
    Value* value = nullptr;  // stays where it is: an open level's parent gets no other child
    std::string key;
    std::unordered_set<std::string> seen;
  };

  bool number(double n, bool whole) {
    Value value;
    value.kind = Value::Kind::number;
    value.number = n;
    value.whole = whole;
    return add(std::move(value));
  }

  Value& place(Value value) {
    if (++count_ > kValues) {
      fail(Code::format, fmt::format("{} has more than {} values", where_, kValues));
    }
    if (levels_.empty()) return root_ = std::move(value);
    Level& level = levels_.back();
    if (level.value->kind == Value::Kind::list) {
      return level.value->items.emplace_back(std::move(value));
    }
    return level.value->members.emplace_back(Member{std::move(level.key), std::move(value)}).value;
  }

  bool add(Value value) {
    if (levels_.empty()) {
      fail(Code::format, fmt::format("{} is {}, not an object", where_, value.describe()));
    }
    place(std::move(value));
    return true;
  }

  bool open(Value::Kind kind) {
    if (levels_.empty() && kind != Value::Kind::object) {
      fail(Code::format, fmt::format("{} is a list, not an object", where_));
    }
    if (levels_.size() == kDepth) {
      fail(Code::format, fmt::format("{} is more than {} levels deep", where_, kDepth));
    }
    Value value;
    value.kind = kind;
    Value& placed = place(std::move(value));
    levels_.push_back({&placed, {}, {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  const std::string& where_;
  Value root_;
  std::vector<Level> levels_;
  std::size_t count_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view key) const noexcept {
  const auto found = std::find_if(members.begin(), members.end(),
                                  [&](const Member& member) { return member.key == key; });
  return found == members.end() ? nullptr : &found->value;
}

bool Value::off() const noexcept {
  switch (kind) {
    case Kind::null:
      return true;
    case Kind::boolean:
      return !truth;
    case Kind::number:
      return number == 0;
    case Kind::text:
      return text.empty();
    case Kind::list:
      return items.empty();
    case Kind::object:
      return members.empty();
  }
  return false;
}

std::string Value::describe() const {
  switch (kind) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return truth ? "true" : "false";
    case Kind::number:
      return fmt::format("the number {}", number);
    case Kind::text:
      return fmt::format("'{}'", clip(text));
    case Kind::list:
      return "a list";
    case Kind::object:
      return "an object";
  }
  return "";
}

Value parse_tree(std::string_view text, const std::string& where) {
  if (text.size() > kBytes) {
    fail(Code::format,
         fmt::format("{} has {} bytes; at most {} are read", where, text.size(), kBytes));
  }
  Builder builder(where);
  parse_json(text, builder);
  return builder.take();
}

}  // namespace ingot::adapter
