// How much of a change is left once it is rounded to the type it is stored in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ingot/dtype.hpp"

namespace ingot {

// Sums over tiles of kFoldTile elements, each by itself, so that the figures do not depend on
// chunks or threads. Of large tensors an even sample of 64 to 127 tiles (a million elements or
// more) is measured, for all of them would cost as much as a product of rank 8; sums are scaled up.
// A tile handed over in pieces is not measured, one handed over twice counts once.
class Measure {
 public:
  Measure(std::uint64_t count, std::optional<Dtype> output);

  // Elements of the base as stored and what became of them. From several threads at once.
  void add(Dtype dtype, std::uint64_t first, std::span<const std::byte> own,
           std::span<const float> values);

  struct Result {
    double weight = 0;    // root of the sum of squares of the base,
    double change = 0;    // ... of the change before rounding
    double largest = 0;   // magnitude of the largest change that was measured
    double survived = 1;  // of the change, in its own direction; 1 where nothing changes
  };
  [[nodiscard]] Result result() const;

  [[nodiscard]] static std::uint64_t memory(std::uint64_t count);

 private:
  struct Tile {
    std::uint64_t count = 0;
    double weight = 0, change = 0, kept = 0, largest = 0;
  };
  const std::uint64_t count_;
  const std::uint64_t stride_;  // every so many tiles one is measured
  const std::optional<Dtype> output_;
  std::vector<Tile> tiles_;
};

}  // namespace ingot
