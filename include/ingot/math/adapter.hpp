// What the families of adapters share: the user's weight, sums of products whose shape is fixed.
//
// T is the type of elements (float in the engine), Wide that of sums and of everything a formula
// rounds once (double in the engine). narrow() rounds one to the other.
#pragma once

#include "ingot/math/fold.hpp"

namespace ingot::math {

INGOT_HD double widen(float x) { return static_cast<double>(x); }
INGOT_HD float narrow(double x) { return static_cast<float>(x); }

// `after` in the place of `before`, or only a part of the way to it (or beyond).
template <class T>
INGOT_HD T blend(T weight, bool full, T before, T after) {
  return full ? after : fuse(weight, after - before, before);
}

// Sum of a[i] * b[i] in the shape of fold.hpp.
template <class Wide, class T>
Wide dot(const T* a, const T* b, std::uint64_t count) {
  // A tile of up to 2^63 elements counts its tiles like a binary number: equal sizes combine.
  Wide levels[64];
  std::uint64_t tiles = 0;
  for (std::uint64_t first = 0; first < count; first += kTile) {
    const std::uint64_t here = count - first < kTile ? count - first : kTile;
    const std::uint32_t width = here < kLanes ? static_cast<std::uint32_t>(here) : kLanes;
    Wide lane[kLanes];
    for (std::uint32_t l = 0; l < kLanes; ++l) lane[l] = Wide(0.0);
    for (std::uint64_t i = 0; i < here; i += kLanes) {
      const std::uint32_t most = here - i < width ? static_cast<std::uint32_t>(here - i) : width;
      for (std::uint32_t l = 0; l < most; ++l) {
        lane[l] = fuse(widen(a[first + i + l]), widen(b[first + i + l]), lane[l]);
      }
    }
    for (std::uint32_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::uint32_t l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
    }
    Wide sum = lane[0];
    std::uint64_t carry = tiles++;
    int level = 0;
    for (; (carry & 1u) != 0; carry >>= 1, ++level) sum = levels[level] + sum;
    levels[level] = sum;
  }
  // Odd last ones move up unchanged until they meet a sum to the left.
  Wide total(0.0);
  bool any = false;
  for (int level = 0; tiles >> level != 0; ++level) {
    if ((tiles >> level & 1u) == 0) continue;
    total = any ? levels[level] + total : levels[level];
    any = true;
  }
  return total;
}

}  // namespace ingot::math
