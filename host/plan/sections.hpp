// The recipe's models, slices and modules as sections of the output.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/draft.hpp"
#include "plan/rules.hpp"

namespace ingot::plan {

inline constexpr std::uint32_t kAllModules = ~std::uint32_t{0};

// One model's place in a section.
struct Input {
  std::uint32_t model = 0;
  std::uint64_t first = 0;          // the layer that becomes the section's first
  const Parameters* own = nullptr;  // null for a base that the recipe does not list
};

// Output tensors that come from the same models: a slice, or whole models.
struct Section {
  std::string where;                // "slices[1] (line 7)", for messages
  std::vector<Input> inputs;        // in file order
  std::optional<std::size_t> base;  // index into inputs, where the method knows a base
  bool whole = true;                // all layers of all stacks; else `count` layers of `stack`
  bool alone = false;  // its one input is passed through: the method would need another
  std::int32_t stack = kNoStack;
  std::uint64_t count = 0;
  std::uint64_t offset = 0;  // number of its first output layer
  Binding binding;
};

// A module of the output, from one section of whole models or from slices.
struct Part {
  std::uint32_t module = kAllModules;
  std::vector<Section> sections;
};

// The parts of the output; it is a problem if the models do not have what the recipe asks for.
[[nodiscard]] std::vector<Part> make_parts(Draft& draft, const Rules& rules);

}  // namespace ingot::plan
