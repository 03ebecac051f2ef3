#include "fits.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "model.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

constexpr double kLeft = 0.01;

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

// The norm of all that tuning changed: in factors, in full and left out.
double change(const std::vector<Fit>& fits, const Plan& plan) {
  const double factors = total(fits).norm;
  double squares = factors * factors + plan.whole_change * plan.whole_change;
  for (const Omission& omission : plan.omissions) squares += omission.norm * omission.norm;
  return std::sqrt(squares);
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

std::optional<std::string> left_out(const std::vector<Fit>& fits, const Plan& plan) {
  const double whole = change(fits, plan);
  double squares = 0;
  std::string kinds;
  for (const Omission& omission : plan.omissions) {
    squares += omission.norm * omission.norm;
    kinds += fmt::format("{}{}", kinds.empty() ? "" : ", ", omission.what);
  }
  const double share = whole > 0 ? squares / (whole * whole) : 0;
  if (share < kLeft) return std::nullopt;
  const std::string& reader = plan.recipe.adaptation.reader;
  const bool whole_reader = reader.empty() || reader == "peft";
  return fmt::format(
      "the adapter leaves out {:.1f} % of the energy (squared norm) of the change, "
      "which is in {}{}",
      100 * share, kinds,
      !whole_reader ? ": " + reader + " loads no adapter with them, --for peft keeps them"
      : plan.recipe.adaptation.whole_tensors == "skip" ? ": --whole-tensors save keeps them"
                                                       : "");
}

std::string narrate(const std::vector<Fit>& fits, const Plan& plan) {
  std::string text;
  const Fit all = total(fits);
  if (!fits.empty()) {
    const std::map<std::string, Kind> kinds = kinds_of(fits);
    std::size_t width = 4;
    for (const auto& [name, kind] : kinds) width = std::max(width, printable(name).size());
    // All have one type.
    const std::string& stored = fits.front().stored;
    text = fmt::format(
        "{} decomposed; the factors{} miss {:.3f} % of the change in {}\n"
        "  {:<{}}  {:>7}  {:>9}  {:>9}  in\n",
        show_count(fits.size(), "module"),
        stored == "F32" ? "" : fmt::format(", before their rounding to {},", stored),
        100 * relative(all.error, all.norm), fits.size() == 1 ? "it" : "them", "kind", width,
        "modules", "mean", "worst");
    for (const auto& [name, kind] : kinds) {
      text +=
          fmt::format("  {:<{}}  {:>7}  {:>7.3f} %  {:>7.3f} %  {}\n", printable(name), width,
                      kind.modules, 100 * kind.mean(), 100 * kind.worst, printable(kind.module));
    }
  }
  if (!plan.omissions.empty()) {
    const double whole = change(fits, plan);
    text += "left out:";
    const char* comma = " ";
    for (const Omission& omission : plan.omissions) {
      text +=
          fmt::format("{}{} ({}, {:.3g} % of the change)", comma, omission.what,
                      show_count(omission.tensors, "tensor"), 100 * relative(omission.norm, whole));
      comma = ", ";
    }
    text += "\n";
  }
  for (const std::string& note : plan.notes) text += printable(note) + "\n";
  return text;
}

Json describe(const std::vector<Fit>& fits, const Plan& plan) {
  const Fit all = total(fits);
  Json json{{"norm", all.norm},
            {"error", all.error},
            {"relative_error", relative(all.error, all.norm)},
            {"stored", fits.empty() ? Json() : Json(fits.front().stored)},
            {"change", change(fits, plan)},
            {"whole_change", plan.whole_change},
            {"left_out", Json::array()},
            {"notes", plan.notes},
            {"kinds", Json::array()},
            {"modules", Json::array()}};
  for (const Omission& omission : plan.omissions) {
    json["left_out"].push_back(
        {{"what", omission.what}, {"tensors", omission.tensors}, {"norm", omission.norm}});
  }
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
