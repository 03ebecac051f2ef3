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

// True if the operand's bytes can be taken from its file as they lie.
[[nodiscard]] bool dense(const Plan& plan, const Operand& operand);

// Writes elements [first, first + out.size() / width) of a computed operand, in staged_dtype.
void supply(const Plan& plan, const Operand& operand, std::uint64_t first, std::span<std::byte> out);

// Receipt hash of an operand's whole input tensor as stored (a strided view: of its elements in row-major
// order), read in blocks through `scratch`-free buffers of 1 MiB.
[[nodiscard]] Digest digest_operand(const Plan& plan, const Operand& operand);

}  // namespace ingot
