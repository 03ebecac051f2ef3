// The ends of the vocabulary of each class: the tensors with a row or an element for each token,
// and which of them are one parameter. The table is made from transformers by tools/ends.py.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/store.hpp"
#include "plan/roles.hpp"

namespace ingot::plan {

// When a class takes its ends for one parameter.
enum class Tying {
  unknown,        // a class that is not in the table
  if_said,        // where its config.json says tie_word_embeddings: true
  unless_denied,  // unless its config.json says false
  scaling,        // as unless_denied; a tied model also scales the input of its head
  always,         // whatever its config.json says
};

// Names are as checkpoints spell them.
struct Ties {
  Tying tying = Tying::unknown;
  std::string embedding;          // the parameter's own name; empty: found by its role
  std::string head;               // its use as output; empty: the class has none
  std::vector<std::string> uses;  // its other uses, as inputs of encoder and decoder
  std::string input;  // the one of them that is the class's input embedding; empty: the parameter
  // Biases of the head that a tied checkpoint has once: the other name, and the one it is stored
  // under.
  std::vector<std::pair<std::string, std::string>> biases;
  std::vector<std::string> vectors;  // biases with an element for each token

  // True for the other uses of the embedding.
  [[nodiscard]] bool copies(std::string_view name) const;
  // True for the names of `vectors` and `biases`.
  [[nodiscard]] bool bias(std::string_view name) const;
};

// Whether a checkpoint has a tensor of this name.
using Has = std::function<bool(const std::string& name)>;

// The ends of a class; where the table does not have it, those of its family (null: none), else of
// a class whose embedding the checkpoint has, both with Tying::unknown.
[[nodiscard]] Ties ties(std::string_view architecture, const Has& has, const Family* family);

// Whether ends are one parameter: `said` is what config.json says, `headed` whether the checkpoint
// has a head.
[[nodiscard]] bool tied(const Ties& ties, std::string_view architecture, std::optional<bool> said,
                        bool headed);

// True for classes that take more from tie_word_embeddings than whether ends are one parameter: the
// flag stays as it was trained with. transformers 5 loads ends that differ all the same.
[[nodiscard]] bool means_more(Tying tying);

// Whether two tensors have one shape and the same values, as far as headers tell; nothing: only the
// values do.
[[nodiscard]] std::optional<bool> told_same(const Checkpoint& a, const Entry& x,
                                            const Checkpoint& b, const Entry& y);

// True where two tensors have one shape and the same values: the same bytes, or equal numbers in
// two of the types f32, bf16 and f16. Reads them where told_same() does not know.
[[nodiscard]] bool same_values(const Checkpoint& a, const Entry& x, const Checkpoint& b,
                               const Entry& y);

// True for classes with a head over the vocabulary, which may be the embedding again.
[[nodiscard]] bool speaks(std::string_view architecture);

}  // namespace ingot::plan
