// Embedding and head matrices brought to one vocabulary: which row comes from where.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ingot/plan.hpp"
#include "token/vocab.hpp"

namespace ingot {

// One model's vocabulary matrix.
struct ModelRows {
  const Vocab* vocab = nullptr;  // its own tokenizer's
  std::uint32_t model = 0;       // index into Plan::models
  std::uint32_t entry = 0;       // index into that checkpoint's entries()
  std::uint64_t height = 0;      // rows of the matrix
};

// The rows of every model's matrix under the vocabulary `output`, padded to a multiple of `pad_to`
// (0 or 1: not). `models` are those that have the weight, in file order; `base` is an index into
// them, nothing if the base is not among them. Element i belongs to models[i] and is nothing where
// that matrix is already laid out so and can be read as it is.
//
// A model owns a token if its tokenizer has it with an id below the matrix's height. Row by row: a
// model's own row; else the only owner's; else the base's; else the mean over the owners; zeros if
// nobody owns the token (mergekit.md 4.3).
[[nodiscard]] std::vector<std::optional<RowMap>> map_rows(const Vocab& output,
                                                          std::span<const ModelRows> models,
                                                          std::optional<std::size_t> base,
                                                          std::uint64_t pad_to,
                                                          std::uint64_t width);

// Rows of the output: the largest id plus one, padded.
[[nodiscard]] std::uint64_t padded_rows(const Vocab& output, std::uint64_t pad_to);

}  // namespace ingot
