// What the families of adapters share: two precisions, the user's weight, sums of a fixed shape.
//
// T is the type of elements (float in the engine), Wide that of sums and of everything that a
// formula rounds once (double in the engine); narrow() rounds one to the other.
#pragma once

#include "ingot/math/fold.hpp"

namespace ingot::math {

INGOT_HD double widen(float x) { return static_cast<double>(x); }
INGOT_HD double widen(double x) { return x; }
INGOT_HD float narrow(double x) { return static_cast<float>(x); }
INGOT_HD double root(double x) { return __builtin_sqrt(x); }

// `after` in the place of `before`, or `weight` of the way to it.
template <class T>
INGOT_HD T blend(T weight, bool full, T before, T after) {
  return full ? after : fuse(weight, after - before, before);
}

// Sum of a[i] * b[i] in the shape of fold.hpp: lanes of a tile, their halves, tiles pairwise.
template <class Wide, class A, class B>
inline Wide dot(const A* a, const B* b, std::uint64_t count) {
  Wide levels[64];  // sums of 2^level tiles, where bit `level` of `tiles` is set
  std::uint64_t tiles = 0;
  for (std::uint64_t first = 0; first < count; first += kTile) {
    const std::uint64_t here = count - first < kTile ? count - first : kTile;
    Wide lane[kLanes];
    for (std::uint32_t l = 0; l < kLanes; ++l) lane[l] = Wide(0.0);
    for (std::uint64_t i = 0; i < here; i += kLanes) {
      const std::uint64_t most = here - i < kLanes ? here - i : kLanes;
      for (std::uint64_t l = 0; l < most; ++l) {
        lane[l] = lane[l] + Wide(widen(a[first + i + l])) * Wide(widen(b[first + i + l]));
      }
    }
    for (std::uint32_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::uint32_t l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
    }
    Wide sum = lane[0];
    int level = 0;
    for (std::uint64_t carry = tiles++; (carry & 1u) != 0; carry >>= 1) sum = levels[level++] + sum;
    levels[level] = sum;
  }
  // An odd last sum moves up unchanged until it meets one to its left.
  Wide total(0.0);
  bool any = false;
  for (int level = 0; level < 64; ++level) {
    if ((tiles >> level & 1u) == 0) continue;
    total = any ? levels[level] + total : levels[level];
    any = true;
  }
  return total;
}

}  // namespace ingot::math
