// Elements of stored tensors: read in row-major order whatever the file's, decoded to f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ingot/store.hpp"

namespace ingot {

// Elements [first, first + out.size() / width) of a tensor, as stored. Safe from several threads.
void read_elements(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                   std::span<std::byte> out);

// The same decoded to f32: exactly, f64 with one rounding. Throws Error{dtype} for types without a
// codec.
void read_values(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                 std::span<float> values);

// Decodes values.size() stored elements.
void to_floats(Dtype dtype, std::span<const std::byte> stored, std::span<float> values);

}  // namespace ingot
