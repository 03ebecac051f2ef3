// The part of each matrix that the factors of its decomposition miss, as entries of the receipt
// (Report::derived) tell, and what else is to be said of an adapter that was made.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ingot/plan.hpp"
#include "json.hpp"

namespace ingot::tool {

// One module of an adapter that was written.
struct Fit {
  std::string module;
  double norm = 0;   // of the matrix
  double error = 0;  // norm of what B A misses of it, before they are rounded to `stored`
  std::string stored;
};

// In the receipt's order; empty where nothing was decomposed.
[[nodiscard]] std::vector<Fit> fits_of(const std::vector<std::string>& entries);

// A warning if 1 % or more of the change's energy, its squared norm, is left out.
[[nodiscard]] std::optional<std::string> left_out(const std::vector<Fit>& fits, const Plan& plan);
// By kind of module ("model.layers.*.mlp.up_proj"), then what the plan left out and its notes.
[[nodiscard]] std::string narrate(const std::vector<Fit>& fits, const Plan& plan);
// Every module, the kinds, and all together.
[[nodiscard]] Json describe(const std::vector<Fit>& fits, const Plan& plan);

}  // namespace ingot::tool
