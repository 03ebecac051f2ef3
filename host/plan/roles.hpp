// Facts about architectures by name: a small table of families, and roles of tensors.
//
// Nothing here is needed to merge: layers come from tensor names (match.hpp). The table tells which
// tensors belong to the vocabulary, how the base module is called, and what the user should hear.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "ingot/shape.hpp"

namespace ingot::plan {

// One family of architectures that share their tensor names. Empty: found by name.
struct Family {
  std::string_view stems;      // class names without their head ("Llama" of "LlamaForCausalLM")
  std::string_view prefix;     // of the base module, with its dot: "model."
  std::string_view stack;      // before the layer number: "model.layers"
  std::string_view layers;     // config key of the layer count
  std::string_view embedding;  // input embedding
  std::string_view head;       // output head with rows of its own
};

// The family of a class in config.json's `architectures`, or null.
[[nodiscard]] const Family* family(std::string_view architecture);

enum class Role {
  other,
  embedding,  // rows are tokens
  head,       // rows are tokens; may be tied to the embedding
  head_bias,  // elements are tokens
  bias,       // may be missing from some models
  buffer,     // computed from the configuration when a model is loaded
};

struct Ties;

// The role of a tensor, by its name; `ties` are the ends of the model's class, null where they are
// not known. Tensors of a numbered module are never an end of the model.
[[nodiscard]] Role role(std::string_view name, const Shape& shape, const Family* family,
                        const Ties* ties = nullptr);

// The role of a tensor of a layer: bias, buffer or other.
[[nodiscard]] Role layer_role(std::string_view name, const Shape& shape);

[[nodiscard]] constexpr bool vocabulary(Role role) noexcept {
  return role == Role::embedding || role == Role::head || role == Role::head_bias;
}

// True for tensors that follow the layers (final norm, head), false for those that precede them. In
// a recipe of slices the first group comes from the last slice, the second from the first.
[[nodiscard]] bool trailing(std::string_view name, Role role);

// The module for multi-token prediction that a tensor is in: "model.mtp_layers" of
// "model.mtp_layers.0.norm.weight"; empty: in none.
[[nodiscard]] std::string_view ahead(std::string_view name);

// True if a component of this name, followed by a number, counts layers: "layers", "h", "block".
[[nodiscard]] bool counts_layers(std::string_view component);

// The module of a tensor as recipes name it: text_decoder, vision_tower, multi_modal_projector,
// audio_tower, or, where a checkpoint has both (`paired`), encoder, decoder, shared.
[[nodiscard]] std::string_view module(std::string_view name, bool paired);

// For "a.b.c" these give "a", "c" and "a.b". A name without a dot is its own first and last
// component.
[[nodiscard]] std::string_view first_component(std::string_view name);
[[nodiscard]] std::string_view last_component(std::string_view name);
[[nodiscard]] std::string_view parent(std::string_view name);

// True for digits alone.
[[nodiscard]] bool is_number(std::string_view word);

// True if `word` is one of the words of a table's list, which have blanks between them.
[[nodiscard]] bool has_word(std::string_view list, std::string_view word);

// "layers.3.mlp.experts.7.w1" has "layers.3.mlp.experts", 7 and "w1".
struct ExpertLayer {
  std::string_view owner;
  std::uint32_t number = 0;
  std::string_view leaf;
};

// nullopt unless the path names a layer of one expert. The views are parts of `path`.
[[nodiscard]] std::optional<ExpertLayer> expert_layer(std::string_view path);

}  // namespace ingot::plan
