// What fuzz targets demand of parsed tensors.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

#include "ingot/store.hpp"

namespace ingot::test {

// Ends the program, which is how a fuzzer learns of a broken promise.
inline void check(bool holds) {
  if (!holds) std::abort();
}

// Names are sorted and each there once, and every element lies in a file of `size` bytes.
inline void check_entries(const std::vector<Entry>& entries, std::uint64_t size) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    const Shape& shape = entry.info.shape;
    check(i == 0 || entries[i - 1].info.name < entry.info.name);
    const std::optional<std::uint64_t> bytes = shape.checked_bytes(entry.info.dtype);
    check(bytes.has_value() && *bytes <= size && entry.offset <= size);
    std::uint64_t end = *bytes;
    if (!entry.strides.empty()) {
      check(entry.strides.size() == static_cast<std::size_t>(shape.rank()));
      const std::uint64_t width = bits(entry.info.dtype) / 8;
      end = width;
      for (int axis = 0; axis < shape.rank(); ++axis) {
        check(shape[axis] > 0);
        end += (shape[axis] - 1) * entry.strides[static_cast<std::size_t>(axis)] * width;
      }
    }
    check(end <= size - entry.offset);
  }
}

}  // namespace ingot::test
