#include "fits.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "model.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

double relative(double error, double norm) { return norm > 0 ? error / norm : 0; }

struct Kind {
  std::size_t modules = 0;
  double sum = 0;  // of relative errors
  double worst = -1;
  std::string module;  // the worst one

  [[nodiscard]] double mean() const { return sum / static_cast<double>(modules); }
};

std::map<std::string, Kind> kinds_of(const std::vector<Fit>& fits) {
  std::map<std::string, Kind> kinds;
  for (const Fit& fit : fits) {
    Kind& kind = kinds[pattern(fit.module)];
    const double error = relative(fit.error, fit.norm);
    ++kind.modules;
    kind.sum += error;
    if (error <= kind.worst) continue;
    kind.worst = error;
    kind.module = fit.module;
  }
  return kinds;
}

Fit total(const std::vector<Fit>& fits) {
  Fit all;
  for (const Fit& fit : fits) {
    all.norm += fit.norm * fit.norm;
    all.error += fit.error * fit.error;
  }
  all.norm = std::sqrt(all.norm);
  all.error = std::sqrt(all.error);
  return all;
}

}  // namespace

std::vector<Fit> fits_of(const std::vector<std::string>& entries) {
  std::vector<Fit> fits;
  for (const std::string& entry : entries) {
    const nlohmann::json tensor = nlohmann::json::parse(entry);
    for (const nlohmann::json& source : tensor.at("sources")) {
      // Both factors of a module tell the same.
      if (!source.contains("found") || !source["found"].contains("relative_error")) continue;
      if (source.at("derived").value("factor", "") != "A") continue;
      const nlohmann::json& found = source["found"];
      fits.push_back({found.at("module").get<std::string>(), found.at("norm").get<double>(),
                      found.at("error").get<double>(), tensor.at("dtype").get<std::string>()});
    }
  }
  return fits;
}

std::string narrate(const std::vector<Fit>& fits) {
  if (fits.empty()) return {};
  const std::map<std::string, Kind> kinds = kinds_of(fits);
  std::size_t width = 4;
  for (const auto& [name, kind] : kinds) width = std::max(width, printable(name).size());
  const Fit all = total(fits);
  // All have one type.
  const std::string& stored = fits.front().stored;
  std::string text = fmt::format(
      "{} decomposed; the factors{} leave {:.3f} % of the whole\n"
      "  {:<{}}  {:>7}  {:>9}  {:>9}  in\n",
      show_count(fits.size(), "module"),
      stored == "F32" ? "" : fmt::format(", before their rounding to {},", stored),
      100 * relative(all.error, all.norm), "kind", width, "modules", "mean", "worst");
  for (const auto& [name, kind] : kinds) {
    text += fmt::format("  {:<{}}  {:>7}  {:>7.3f} %  {:>7.3f} %  {}\n", printable(name), width,
                        kind.modules, 100 * kind.mean(), 100 * kind.worst, printable(kind.module));
  }
  return text;
}

Json describe(const std::vector<Fit>& fits) {
  const Fit all = total(fits);
  Json json{{"norm", all.norm},
            {"error", all.error},
            {"relative_error", relative(all.error, all.norm)},
            {"stored", fits.empty() ? Json() : Json(fits.front().stored)},
            {"kinds", Json::array()},
            {"modules", Json::array()}};
  for (const auto& [name, kind] : kinds_of(fits)) {
    json["kinds"].push_back({{"kind", name},
                             {"modules", kind.modules},
                             {"mean", kind.mean()},
                             {"worst", kind.worst},
                             {"worst_module", kind.module}});
  }
  for (const Fit& fit : fits) {
    json["modules"].push_back({{"module", fit.module},
                               {"norm", fit.norm},
                               {"error", fit.error},
                               {"relative_error", relative(fit.error, fit.norm)}});
  }
  return json;
}

}  // namespace ingot::tool
