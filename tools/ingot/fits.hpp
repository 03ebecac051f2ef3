// What the factors of decompositions leave of the matrices they stand for, as entries of the
// receipt (Report::derived) tell.
#pragma once

#include <string>
#include <vector>

#include "json.hpp"

namespace ingot::tool {

// One module of an adapter that was written.
struct Fit {
  std::string module;
  double norm = 0;   // of the matrix
  double error = 0;  // norm of what B A leaves of it, before they are rounded to `stored`
  std::string stored;
};

// In the receipt's order; empty where nothing was decomposed.
[[nodiscard]] std::vector<Fit> fits_of(const std::vector<std::string>& entries);

// By kind of module ("model.layers.*.mlp.up_proj").
[[nodiscard]] std::string narrate(const std::vector<Fit>& fits);
// Every module, the kinds, and all together.
[[nodiscard]] Json describe(const std::vector<Fit>& fits);

}  // namespace ingot::tool
