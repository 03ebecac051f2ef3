// A run of a matrix's elements as blocks: the rest of a row, whole rows, the beginning of a row.
#pragma once

#include <cstdint>

namespace ingot {

struct Block {
  std::uint64_t row = 0, column = 0;    // of its first element
  std::uint64_t rows = 0, columns = 0;  // columns < width only where rows == 1
  std::uint64_t at = 0;                 // its first element, counted from the run's
};

// No std templates: host/cpu compiles it for every instruction set.
//
// Calls body(block) for elements [first, first + count) of a matrix with rows of `width` elements.
template <class Body>
void each_block(std::uint64_t first, std::uint64_t count, std::uint64_t width, Body&& body) {
  for (std::uint64_t at = 0; at < count;) {
    Block block{(first + at) / width, (first + at) % width, 1, 0, at};
    const std::uint64_t row = width - block.column, rest = count - at;
    block.columns = row < rest ? row : rest;
    if (block.columns == width) block.rows = (count - at) / width;
    body(block);
    at += block.rows * block.columns;
  }
}

}  // namespace ingot
