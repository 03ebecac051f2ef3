// Output tensors: which input tensors meet in each, by which rule; and every input's fate.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/draft.hpp"
#include "plan/rules.hpp"
#include "plan/sections.hpp"

namespace ingot::plan {

// What config.json must say of the tensors written.
struct Written {
  bool head = false;                  // a head with rows of its own
  bool donor_head = false;            // the donor has one
  std::optional<std::uint64_t> rows;  // of the input embedding
  std::optional<std::uint64_t> donor_rows;
  std::vector<Restacked> stacks;  // from slices
  Ahead ahead;
};

// Fills Plan::jobs (not yet laid out), Plan::unused and Plan::bytes_in. `wanted` is the type that
// wanted_dtype gave.
[[nodiscard]] Written write_tensors(Disk& disk, Draft& draft, Rules& rules,
                                    std::optional<Dtype> wanted, const std::vector<Part>& parts);

}  // namespace ingot::plan
