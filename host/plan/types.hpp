// Element types: the recipe's, the common type of inputs, and types that cannot be merged as
// numbers.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// The type of the output's floating-point tensors as options or recipe ask for it:
// PlanOptions::dtype, else out_dtype, else dtype; nothing where none is given. Names that cannot be
// are problems.
[[nodiscard]] std::optional<Dtype> wanted_dtype(const Recipe& recipe, const PlanOptions& options,
                                                Problems& problems);

// The type that the options of a plan ask for; empty where the recipe asks for it already, or where
// it is the one that factors have anyway.
[[nodiscard]] std::string wanted_by_option(const Plan& plan);

// How the inputs of one output tensor meet.
struct Meeting {
  Action action = Action::merge;
  Dtype output = Dtype::f32;
  std::vector<Dtype> inputs;  // as Work::inputs
  std::string reason;         // of a copy
  std::string refusal;        // why they cannot meet; empty: they can
};

// Without a wanted type the output has the one its inputs promote to: the common one, else f32.
// Integers, booleans and, where no type is wanted, f64 are copied; else f64 enters as f32.
[[nodiscard]] Meeting meet(std::span<const Dtype> stored, std::optional<Dtype> wanted);

// A tensor that tells that others are stored as codes with scales, or null.
[[nodiscard]] const Entry* scale_of(const Checkpoint& checkpoint);

}  // namespace ingot::plan
