// The changes of adapters to one tensor of the base model: the formulas of their families, element
// by element, in the order given.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ingot/adapter.hpp"
#include "ingot/derived.hpp"
#include "ingot/tensor.hpp"

namespace ingot {

// A tensor of a plan's models by place, with the entry of its header.
struct Located {
  Ingredient place;
  TensorInfo info;
};

// How the base keeps the weight of a module whose factors speak of outputs and inputs.
enum class Layout : std::uint8_t {
  linear,      // (out, in), or (out, in, kernel...)
  transposed,  // (in, out): GPT-2's Conv1D, parameters of experts with `is_transposed`
  embedding,   // (vocabulary, dim), in = vocabulary
};

// Which part of a module's change lands on which part of the base tensor. The default is all on
// all. Only for low-rank families (LoRA without a magnitude).
//
// With three dimensions the base holds experts: block e of its first dimension is a matrix of its
// own, in `layout`.
struct Cut {
  // Factors of E > 1 experts, interleaved: row e * r + k of A, column k * E + e of B.
  std::uint32_t experts = 1;
  // The expert whose change this is; nothing: block e of the base gets expert e.
  std::optional<std::uint32_t> expert;
  // The one block of a base of three dimensions that changes; nothing: all of them.
  std::optional<std::uint32_t> block;
  // The change's outputs from, from + step, ... land on the base's outputs at, at + pace, ...
  std::uint64_t from = 0, step = 1;
  std::uint64_t at = 0, pace = 1;
  std::uint64_t count = 0;  // how many outputs; 0: all that the factors have from `from` on
};

// One adapter's effect on one base tensor. With W the tensor before and W' after the family's own
// formula, the result is W + weight * (W' - W).
//
// The parts each family takes, by Piece; shapes are those of PEFT's files:
//   lora     a, b; with magnitude: DoRA. On a base tensor of one dimension: bias (of lora_B)
//   adalora  a, b, e
//   vera     shared_a, shared_b, lambda_b, lambda_d
//   ia3      l; on a weight or on a bias
//   loha     w1_a, w1_b, w2_a, w2_b and t1, t2
//   lokr     w1 or w1_a, w1_b; w2 or w2_a, w2_b and t2
//   oft      r
//   boft     r, s
//   hra      u
//   miss     block
//   none     block: rows that replace the base's rows `rows` (trained tokens)
struct Effect {
  struct Part {
    Piece piece = Piece::a;
    Located tensor;
  };

  std::string adapter;  // its name in messages and in the receipt
  Family family = Family::lora;
  double weight = 1;   // the user's
  double scaling = 1;  // alpha / r or what the family has in its place (Adapted::scaling)
  double times = 1;    // how often the change is added: 2 for out_proj of a MultiheadAttention
  Layout layout = Layout::linear;
  Cut cut;
  std::vector<Part> parts;
  std::vector<std::uint64_t> rows;  // trained tokens: by position in `block`

  // IA3: the vector scales inputs. Shapes tell only for matrices whose sides differ.
  bool feedforward = false;

  // As in AdapterConfig.
  bool cayley_neumann = true;
  std::uint32_t terms = 5;
  bool constrained = false;
  double eps = 6e-5;
  bool block_share = false;
  bool orthonormal = false;
  AdapterConfig::Tiling tiling = AdapterConfig::Tiling::rows;
  // LoRA on what PiSSA or OLoRA left of the base: taken away before all effects, for one adapter of
  // the list at most, and not beside DoRA. Embeddings have none. Bounded class: a decomposition.
  AdapterConfig::Residual residual = AdapterConfig::Residual::none;

  [[nodiscard]] const Located* find(Piece piece) const noexcept;
};

// A base tensor under its adapters: W1 = effects[0](W), W2 = effects[1](W1), ...; in f32 with one
// rounding per effect or fewer (docs/numbers.md, "Adapters"). Consecutive OFT effects act in the
// reverse order, as the forward pass of a model with several does; on embeddings in the order
// given, for the same reason.
//
// `base` is the operand's own tensor: the engine hands over its elements, and what needs whole rows
// or columns of it reads more of them from its file. It must not be rearranged (Operand::rows).
// `output`: the type the result is stored in, to measure how much of the change is kept after its
// rounding; nothing where the result feeds a method.
//
// Throws Error{shape} where a part does not fit the base or the other parts, Error{usage} for what
// a family cannot do, Error{dtype} for parts that are not floats. What begin() finds out of values:
// Error{format} for NaN or infinity in a part.
[[nodiscard]] std::shared_ptr<const Derived> change(const Located& base,
                                                    std::vector<Effect> effects,
                                                    std::optional<Dtype> output);

}  // namespace ingot
