// Sums over a tensor whose bits do not depend on who adds: one fixed shape.
//
// Within a tile of 16,384 elements lane l of 256 adds elements l, l + 256, ... in index order, in
// double, from +0.0; the lanes fold by halves (128, 64, ..., 1); tile sums combine pairwise by
// index, level by level, an odd last one moving up unchanged. Absent elements of the last tile
// count as +0.0, which changes no lane.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

inline constexpr std::uint32_t kTile = 16384;
inline constexpr std::uint32_t kLanes = 256;

// A column of numbers that a term reads.
enum class Stream : std::uint8_t {
  value,     // an input as decoded; index counts the inputs, a base being number 0
  delta,     // a source minus the base
  survivor,  // the same after the mask, before any rescaling: zero where it was dropped
};

struct Column {
  Stream stream = Stream::value;
  std::uint8_t index = 0;
};

// What a fold adds up. Methods list their terms; backends know only these two kinds.
struct Term {
  enum class Kind : std::uint8_t { product, absolute };
  Kind kind = Kind::product;
  Column a, b;  // absolute reads a only
};

// Adds one element. A product of two f32 is exact in double, so that fused or not is the same.
INGOT_HD double add_product(double lane, float a, float b) {
#if defined(__FMA__) || defined(__CUDACC__)
  return fuse(static_cast<double>(a), static_cast<double>(b), lane);
#else
  return lane + static_cast<double>(a) * static_cast<double>(b);
#endif
}
INGOT_HD double add_absolute(double lane, float a) {
  return lane + static_cast<double>(magnitude(a));
}

// Folds 256 lanes to one, in place.
INGOT_HD double fold_lanes(double* lane) {
  for (std::uint32_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::uint32_t l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

// The sum of a tensor from the sums of its tiles, all of them, by index. Overwrites them.
INGOT_HD double combine(double* tiles, std::uint64_t count) {
  if (count == 0) return 0.0;
  while (count > 1) {
    const std::uint64_t pairs = count / 2;
    for (std::uint64_t i = 0; i < pairs; ++i) tiles[i] = tiles[2 * i] + tiles[2 * i + 1];
    if (count % 2 == 1) tiles[pairs] = tiles[count - 1];
    count = pairs + count % 2;
  }
  return tiles[0];
}

}  // namespace ingot::math
