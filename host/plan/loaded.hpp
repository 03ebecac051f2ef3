// Names of tensors in a loaded model. Files keep the names of the release that wrote them;
// transformers 5 renames many as it loads, and PEFT adapts modules under the new names. What it
// does to each class stands in plan/renames.inc, which tools/renamed.py writes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ingot::plan {

enum class Renaming {
  all,
  outer,  // the start of names alone: servers know modules by the names of files
};
// The name that a tensor of a file has in the loaded model of this class; the same name where
// nothing is renamed. A name of a loaded model stays as it is.
[[nodiscard]] std::string loaded_name(std::string_view architecture, std::string_view name,
                                      Renaming renaming = Renaming::all);

// The layers of the loaded model among which the rows of this layer of files are shared out evenly,
// in this order; none for all other layers. `path` is as loaded_name() gives it.
[[nodiscard]] std::vector<std::string> divided(std::string_view architecture,
                                               std::string_view path);
// The other way round: which layer of files, and which of how many shares of its rows, a layer of
// the loaded model is. The start of the path stays as it is.
struct Portion {
  std::string path;
  std::uint64_t index = 0, count = 1;
};
[[nodiscard]] std::optional<Portion> portion(std::string_view architecture, std::string_view path);
// True for a tensor of files whose elements have other places in the loaded model: it is a part of
// a larger one, is shared out unevenly, or is transposed or reordered.
[[nodiscard]] bool remade(std::string_view architecture, std::string_view name);

// True for a layer whose class hands its weight to a kernel instead of calling it, so that an
// adapter around the layer would do nothing: PEFT refuses it.
[[nodiscard]] bool reads_weight(std::string_view architecture, std::string_view path);

// True if the class keeps all experts of a layer in one parameter when it is loaded, though files
// have a tensor for each.
[[nodiscard]] bool fuses_experts(std::string_view architecture);

// Where the weight of a single expert stands in the loaded parameter of all of them.
struct FusedPart {
  std::string parameter;     // "model.layers.0.mlp.experts.gate_up_proj"
  std::uint64_t expert = 0;  // which matrix
  bool second = false;       // the lower half of its rows: the up projection of a gated expert
};
// `name` is that of a loaded model, as loaded_name() gives it. `gated` tells that its layer has
// gate projections too. nullopt if the path is not the weight of a single expert.
[[nodiscard]] std::optional<FusedPart> fused_part(std::string_view name, bool gated);

}  // namespace ingot::plan
