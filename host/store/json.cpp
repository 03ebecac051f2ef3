#include "store/json.hpp"

#include <iterator>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/store.hpp"

namespace ingot {
namespace {

using Json = nlohmann::ordered_json;

// Counts the values and levels of a tree without making it.
class Gauge {
 public:
  Gauge(const std::string& where, const JsonBounds& bounds) : where_(where), bounds_(bounds) {}

  bool null() { return count(); }
  bool boolean(bool) { return count(); }
  bool number_integer(std::int64_t) { return count(); }
  bool number_unsigned(std::uint64_t) { return count(); }
  bool number_float(double, const std::string&) { return count(); }
  bool string(std::string&) { return count(); }
  bool binary(nlohmann::json::binary_t&) { return count(); }
  bool key(std::string&) { return true; }
  bool start_object(std::size_t) { return enter(); }
  bool start_array(std::size_t) { return enter(); }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    fail(Code::format, fmt::format("{} is not valid JSON at byte {}", where_, position));
  }

 protected:
  bool count() {
    if (++count_ > bounds_.values) {
      fail(Code::format, fmt::format("{} has more than {} values", where_, bounds_.values));
    }
    return true;
  }
  bool enter() {
    if (++depth_ > bounds_.depth) {
      fail(Code::format, fmt::format("{} is more than {} levels deep", where_, bounds_.depth));
    }
    return count();
  }
  bool leave() {
    --depth_;
    return true;
  }

 private:
  const std::string& where_;
  const JsonBounds& bounds_;
  std::size_t depth_ = 0, count_ = 0;
};

// Makes the tree. ordered_json's own parser searches an object's keys for every new one.
class Builder : public Gauge {
 public:
  using Gauge::Gauge;

  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool key(std::string& text) {
    levels_.back().key = std::move(text);
    return true;
  }
  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

 private:
  struct Level {
    Json* value = nullptr;  // stays where it is: an open level's parent gets no other child
    std::string key;
    std::unordered_map<std::string, std::size_t> places;  // of an object's keys
  };

  Json& place(Json value) {
    if (levels_.empty()) return root_ = std::move(value);
    Level& level = levels_.back();
    if (level.value->is_array()) {
      level.value->push_back(std::move(value));
      return level.value->back();
    }
    auto& members = level.value->get_ref<Json::object_t&>();
    const auto [at, fresh] = level.places.try_emplace(level.key, members.size());
    if (!fresh) {
      return std::next(members.begin(), static_cast<std::ptrdiff_t>(at->second))->second =
                 std::move(value);
    }
    members.emplace_back(std::move(level.key), std::move(value));
    return members.back().second;
  }
  bool add(Json value) {
    count();
    place(std::move(value));
    return true;
  }
  bool open(Json value) {
    enter();
    levels_.push_back({&place(std::move(value)), {}, {}});
    return true;
  }
  bool close() {
    levels_.pop_back();
    return leave();
  }

  Json root_;
  std::vector<Level> levels_;
};

}  // namespace

Json json_of(std::string_view text, const std::string& where, const JsonBounds& bounds) {
  Builder builder(where, bounds);
  parse_json(text, builder);
  return builder.take();
}

void check_json(std::string_view text, const std::string& where, std::size_t values) {
  const JsonBounds bounds{JsonBounds{}.depth, values};
  Gauge gauge(where, bounds);
  parse_json(text, gauge);
}

}  // namespace ingot
