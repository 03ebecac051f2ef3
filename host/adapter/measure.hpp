// How much of a change is left once it is rounded to the type it is stored in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ingot/dtype.hpp"

namespace ingot {

// Sums over a tensor in a shape of its own, so that the figures do not depend on chunks or threads.
// Elements handed over in less than whole tiles of kFoldTile are not measured; twice the same count
// once.
class Measure {
 public:
  Measure(std::uint64_t count, std::optional<Dtype> output);

  // Elements of the base as stored and what became of them. From several threads at once.
  void add(Dtype dtype, std::uint64_t first, std::span<const std::byte> own,
           std::span<const float> values);

  struct Result {
    double weight = 0;    // root of the sum of squares of the base,
    double change = 0;    // ... of the change before rounding
    double largest = 0;   // magnitude of the largest change
    double survived = 1;  // of the change, in its own direction; 1 where nothing changes
  };
  [[nodiscard]] Result result() const;

  [[nodiscard]] static std::uint64_t memory(std::uint64_t count);

 private:
  struct Tile {
    double weight = 0, change = 0, kept = 0, largest = 0;
  };
  const std::uint64_t count_;
  const std::optional<Dtype> output_;
  std::vector<Tile> tiles_;
};

}  // namespace ingot
