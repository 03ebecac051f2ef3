// A model as the recipe sees it: a checkpoint, or a checkpoint under its adapters.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "adapter/change.hpp"
#include "ingot/plan.hpp"

namespace ingot::plan {

// A tensor of a view, and where it comes from.
struct Item {
  TensorInfo info;          // under the view's name; shape and type as stored in `entry`
  std::uint32_t model = 0;  // index into Plan::models
  std::uint32_t entry = 0;  // index into that checkpoint's entries()
  Dtype type = Dtype::f32;  // that the base model has in its place
  // The adapters' changes to it, in order; null: none. Shared by the copies of a replicated layer.
  std::shared_ptr<const std::vector<Effect>> effects;
  // Elements in another order or number than in `entry`; null: as stored.
  std::shared_ptr<const RowMap> rows;
};

struct View {
  std::string text;         // as the recipe names it
  std::uint32_t model = 0;  // the base: index into Plan::models
  std::string tokenizer;    // folder of the tokenizer that belongs to the rows
  std::vector<Item> items;  // sorted by name
  // For an adapted model: whether the uses of the tied vocabulary that it changes are now separate
  // tensors.
  std::optional<bool> untied;
  std::optional<std::uint64_t> rows;  // of the base's input embedding, where it was replaced
};

}  // namespace ingot::plan
