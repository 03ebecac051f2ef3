// The parameters with which a plan's tensors are merged: the parameters that gradients, filters and
// patterns come to, in full and as a small table over layers.
#pragma once

#include <string>

#include "ingot/plan.hpp"
#include "json.hpp"

namespace ingot::tool {

// The parameters of a job by name: globals as numbers, those of the sources as lists.
[[nodiscard]] Json parameters(const Job& job);
// " weight 0.5 0.3, normalize 1"; empty where there are none.
[[nodiscard]] std::string shown(const Json& parameters);

// Runs of tensors with the same parameters: [{"layers", "tensors", "kinds", "models",
// "parameters"}], in the order of the output. "layers" is "0-3", or null of what is in no layer.
[[nodiscard]] Json weights_of(const Plan& plan);
// The same as a table: rows are layers, columns models and their parameters. Empty where nothing
// has any.
[[nodiscard]] std::string table_of(const Json& weights);

}  // namespace ingot::tool
