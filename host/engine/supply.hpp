// Operands that are not simply a run of bytes in a file: rows rearranged to a vocabulary, strided
// views of `.bin` files, f64 narrowed on load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/hash.hpp"
#include "ingot/plan.hpp"

namespace ingot {

// The element type in which an operand reaches the backend.
[[nodiscard]] Dtype staged_dtype(const Plan& plan, const Operand& operand);

// True if the operand's bytes can be taken from its file as they lie. `merging`: they enter a formula.
[[nodiscard]] bool dense(const Plan& plan, const Operand& operand, bool merging);

// Writes elements [first, first + out.size() / width) of an operand in staged_dtype; for a copy (not
// `merging`) bytes [first, first + out.size()) of it as stored, in row-major order.
void supply(const Plan& plan, const Operand& operand, bool merging, std::uint64_t first,
            std::span<std::byte> out);

// Receipt hash of an operand's whole input tensor as stored, in row-major order.
[[nodiscard]] Digest digest_operand(const Plan& plan, const Operand& operand);

// Decodes `values.size()` stored elements to f32: exactly, f64 with one rounding. Throws Error{dtype} for
// types without a codec.
void decode(Dtype dtype, std::span<const std::byte> stored, std::span<float> values);

}  // namespace ingot
