#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "recipe/number.hpp"
#include "recipe/tree.hpp"

namespace ingot {
namespace {

std::string show(const Scalar& scalar) {
  if (const bool* flag = std::get_if<bool>(&scalar)) return *flag ? "true" : "false";
  if (const double* value = std::get_if<double>(&scalar)) return fmt::format("{}", *value);
  return fmt::format("'{}'", clip(std::get<std::string>(scalar)));
}

std::optional<bool> truth(std::string_view text) {
  std::string word(text.substr(0, 8));
  for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const char* yes : {"true", "t", "yes", "y", "on", "1"}) {
    if (word == yes) return true;
  }
  for (const char* no : {"false", "f", "no", "n", "off", "0"}) {
    if (word == no) return false;
  }
  return std::nullopt;
}

// A point as a number of the parameter's kind, or nothing.
std::optional<double> read(const Scalar& point, Kind kind) {
  std::optional<double> value;
  if (const bool* flag = std::get_if<bool>(&point)) {
    value = *flag ? 1.0 : 0.0;
  } else if (const double* plain = std::get_if<double>(&point)) {
    value = *plain;
  } else if (kind == Kind::boolean) {
    if (const auto word = truth(std::get<std::string>(point))) value = *word ? 1.0 : 0.0;
  } else {
    value = number(std::get<std::string>(point));
  }
  if (!value) return std::nullopt;
  if (kind == Kind::boolean && *value != 0.0 && *value != 1.0) return std::nullopt;
  if (kind == Kind::integer && !(std::isfinite(*value) && std::trunc(*value) == *value)) {
    return std::nullopt;
  }
  return kind == Kind::real ? *value : *value + 0.0;  // only a real number has a negative zero
}

const char* wanted(Kind kind) {
  switch (kind) {
    case Kind::real:
      return "a number";
    case Kind::integer:
      return "a whole number";
    case Kind::boolean:
      return "true or false";
  }
  return "";
}

bool matches(const Condition& condition, std::string_view tensor) {
  return !condition.filter || *condition.filter == "*" ||
         tensor.find(*condition.filter) != std::string_view::npos;
}

}  // namespace

std::vector<double> points_of(const Value& value, std::string_view parameter, Kind kind,
                              const std::string& file) {
  std::vector<double> points;
  for (const Scalar& point : value.points) {
    const auto read_point = read(point, kind);
    if (!read_point) {
      fault(file, value.mark,
            fmt::format("parameter '{}' takes {}, not {}", parameter, wanted(kind), show(point)));
    }
    points.push_back(*read_point);
  }
  return points;
}

std::optional<double> evaluate(const Setting& setting, std::string_view parameter,
                               std::string_view tensor, double t, Kind kind,
                               const std::string& file) {
  for (const Condition& condition : setting.conditions) {
    if (!matches(condition, tensor)) continue;
    const Value& value = condition.value;
    const std::vector<double> points = points_of(value, parameter, kind, file);
    if (!value.gradient) return points.front();
    // Element i of m holds at t = i / (m - 1); linear in between, in double (mergekit 1.4).
    const double s = t * static_cast<double>(points.size() - 1);
    const auto i0 = static_cast<std::size_t>(s);
    if (kind == Kind::boolean) return points[i0];
    const std::size_t i1 = std::min(points.size() - 1, i0 + 1);
    const double f = s - static_cast<double>(i0);
    const double result = (1 - f) * points[i0] + f * points[i1];
    if (kind == Kind::integer && std::trunc(result) != result) {
      fault(file, value.mark,
            fmt::format("parameter '{}' takes a whole number, and this gradient gives "
                        "{} for {}",
                        parameter, result, tensor));
    }
    return result;
  }
  return std::nullopt;
}

}  // namespace ingot
