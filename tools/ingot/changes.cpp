#include "changes.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "model.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

constexpr double kLost = 0.99;

double mean(const Changes& kind) {
  return kind.weight > 0 ? std::sqrt(kind.change / kind.weight) : 0;
}

double left(const Changes& kind) { return kind.change > 0 ? kind.survived / kind.change : 1; }

}  // namespace

std::vector<Changes> changes_of(const std::vector<std::string>& entries) {
  std::map<std::string, Changes> kinds;
  for (const std::string& entry : entries) {
    const nlohmann::json tensor = nlohmann::json::parse(entry);
    for (const nlohmann::json& source : tensor.at("sources")) {
      if (!source.contains("found") || !source["found"].contains("change")) continue;
      const nlohmann::json& found = source["found"];
      // At weight 0, say.
      if (found.at("change").get<double>() == 0 && found.value("skipped", 0) == 0) continue;
      const std::string name = pattern(tensor.at("name").get<std::string>());
      Changes& kind = kinds[name];
      kind.kind = name;
      ++kind.tensors;
      const double change = found.at("change").get<double>();
      const double weight = found.at("weight").get<double>();
      kind.change += change * change;
      kind.weight += weight * weight;
      kind.survived += change * change * found.at("survived").get<double>();
      if (weight > 0) kind.largest = std::max(kind.largest, change / weight);
      kind.skipped += found.value("skipped", std::uint64_t{0});
    }
  }
  std::vector<Changes> out;
  for (auto& [name, kind] : kinds) out.push_back(std::move(kind));
  return out;
}

void warn_lost(const Console& console, const std::vector<Changes>& changes) {
  Changes all;
  for (const Changes& kind : changes) {
    all.change += kind.change;
    all.survived += kind.survived;
    if (kind.skipped > 0) {
      console.warning(
          fmt::format("{}: {} rows or columns of zeros cannot be scaled and were not changed",
                      printable(kind.kind), kind.skipped));
    }
  }
  if (left(all) >= kLost) return;
  console.warning(
      fmt::format("only {:.2f} % of the change is kept after the rounding to the output's type; "
                  "--dtype float32 keeps all of it",
                  100 * left(all)));
}

std::string narrate(const std::vector<Changes>& changes) {
  if (changes.empty()) return {};
  std::size_t width = 0;
  std::uint64_t tensors = 0;
  for (const Changes& kind : changes) {
    width = std::max(width, printable(kind.kind).size());
    tensors += kind.tensors;
  }
  std::string text = fmt::format("{} changed by adapters\n  {:<{}}  {:>7}  {:>8}  {:>8}  {:>8}\n",
                                 show_count(tensors, "tensor"), "kind", width, "tensors", "mean",
                                 "largest", "kept");
  for (const Changes& kind : changes) {
    text +=
        fmt::format("  {:<{}}  {:>7}  {:>6.3f} %  {:>6.3f} %  {:>6.2f} %\n", printable(kind.kind),
                    width, kind.tensors, 100 * mean(kind), 100 * kind.largest, 100 * left(kind));
  }
  return text;
}

Json describe(const std::vector<Changes>& changes) {
  Json list = Json::array();
  for (const Changes& kind : changes) {
    list.push_back({{"kind", kind.kind},
                    {"tensors", kind.tensors},
                    {"mean", mean(kind)},
                    {"largest", kind.largest},
                    {"survived", left(kind)},
                    {"skipped", kind.skipped}});
  }
  return list;
}

}  // namespace ingot::tool
