// The changes of adapters to a model, by kind of module, as the entries of its receipt
// (Report::derived) tell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "console.hpp"
#include "json.hpp"

namespace ingot::tool {

// One kind of tensor: "model.layers.*.mlp.up_proj.weight".
struct Changes {
  std::string kind;
  std::uint64_t tensors = 0;
  double change = 0;   // ||after - before||^2, all tensors
  double weight = 0;   // ||before||^2
  double largest = 0;  // of one tensor: ||after - before|| / ||before||
  double survived =
      0;  // change that is left after rounding to the output's type, weighted by change
  std::uint64_t skipped = 0;  // rows or columns without a value, kept as they were
};

// Empty where nothing was changed.
[[nodiscard]] std::vector<Changes> changes_of(const std::vector<std::string>& entries);

// A warning if less than 99 % of the change is kept: the most common way to lose an adapter.
void warn_lost(const Console& console, const std::vector<Changes>& changes);

[[nodiscard]] std::string narrate(const std::vector<Changes>& changes);
[[nodiscard]] Json describe(const std::vector<Changes>& changes);

}  // namespace ingot::tool
