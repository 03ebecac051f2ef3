// Tensor names of all models as one set of templates: which tensors play the same part, which are
// layers, which stand before or after them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "ingot/plan.hpp"
#include "plan/config.hpp"
#include "plan/roles.hpp"
#include "plan/ties.hpp"
#include "plan/view.hpp"

namespace ingot::plan {

inline constexpr std::int32_t kNoStack = -1;

// A tensor name with its layer number taken out: "model.layers" + number + "mlp.up_proj.weight".
struct Template {
  std::string before;  // the whole name where there is no layer number
  std::string after;
  std::int32_t stack = kNoStack;  // index into Catalogue::stacks
  std::uint32_t module = 0;       // index into Catalogue::modules
  Role role = Role::other;
  bool trailing = false;  // follows the layers
  bool ahead = false;     // of a module for multi-token prediction, which follows them as a whole

  [[nodiscard]] std::string name(std::uint64_t layer) const;
};

// Layers under one name: "model.layers".
struct Stack {
  std::string prefix;
  std::uint32_t module = 0;
};

// One tensor of a model. Sorted by stack, layer, part.
struct Spot {
  std::int32_t stack = kNoStack;
  std::uint32_t layer = 0;  // 0 where there is no stack
  std::uint32_t part = 0;   // index into Catalogue::templates
  std::uint32_t entry = 0;  // index into View::items

  friend auto operator<=>(const Spot&, const Spot&) = default;
};

// One model's tensors.
struct Listing {
  std::vector<Spot> spots;
  std::vector<std::uint64_t> counts;  // layers of each stack, as config.json or the weights say

  // The tensors of layers [first, last) of a stack; all outside layers for kNoStack.
  [[nodiscard]] std::span<const Spot> range(std::int32_t stack, std::uint64_t first = 0,
                                            std::uint64_t last = 1) const;
  // The tensor outside layers that plays this part, or null.
  [[nodiscard]] const Spot* find(std::uint32_t part) const;
};

// A whole module that some models have and others lack: a tower for images or sound, a head for
// multi-token prediction.
struct Gap {
  std::string root;           // "mtp", "model.visual", "model.layers.61"
  std::uint64_t tensors = 0;  // that the first model with it has
};

// All models' tensors under the names that the output uses.
struct Catalogue {
  const Family* family = nullptr;
  Ties ties;  // of the donor's class
  std::vector<Template> templates;
  std::vector<Stack> stacks;
  std::vector<std::string> modules;               // "default" if there is but one
  std::vector<Listing> listings;                  // by model
  std::vector<std::optional<LayerCount>> counts;  // by stack: the donor's config key

  std::vector<Gap> gaps;
  // By model and part: index into gaps, or -1. Empty where all models have all parts.
  std::vector<std::vector<std::int32_t>> lacking;
  std::map<std::pair<std::int32_t, std::uint64_t>, std::int32_t> beyond;  // by stack and layer

  // The whole module that `model` lacks and that the tensor is in; null where it lacks less than a
  // module, which makes no model. A module is all that stands below one name, outside the layers
  // that the models share: of vision, sound or a projector, or at least two tensors and a matrix
  // among them; or a layer beyond those that config.json counts. No module holds the text's layers
  // or its embedding. A model that has other parts of a vision or sound tower lacks no tower.
  [[nodiscard]] const Gap* gap(std::uint32_t model, std::uint32_t part, std::uint64_t layer) const;
  // True for a layer of multi-token prediction behind those that config.json counts.
  [[nodiscard]] bool behind(std::uint32_t part, std::uint64_t layer) const;
  // The same as `gap` of all layers of a stack.
  [[nodiscard]] const Gap* gap(std::uint32_t model, std::int32_t stack) const;
};

// Prefixes of a checkpoint's names and what others call them. The first that fits counts.
using Renames = std::vector<std::pair<std::string, std::string>>;

// A name under the renames of its checkpoint.
[[nodiscard]] std::string rename(std::string_view name, const Renames& renames);

// The renames under which most of `names` are among those `known`, the plain names where that is
// not fewer.
[[nodiscard]] Renames match_names(std::span<const std::string> names,
                                  const std::unordered_set<std::string>& known);

// Joins the names of the models. The donor's names are the output's, except that the prefix of the
// base module is added where its checkpoint lacks it, unless its class is the base module; other
// models' names are translated to them.
[[nodiscard]] Catalogue catalogue(std::span<const View> models, std::span<const Config> configs,
                                  std::uint32_t donor, const Family* family, Problems& problems);

}  // namespace ingot::plan
