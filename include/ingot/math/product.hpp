// Low-rank products: what LoRA and its kin add to a weight (Hu et al., "LoRA", 2022).
//
//   S = 0;  S = fuse(b[o][k], a[k][i], S) for rising k;  value = fuse(scale, S, value)
#pragma once

#include "ingot/math/target.hpp"

namespace ingot::math {

// One more rank of an element's sum.
template <class T>
INGOT_HD T extend(T sum, T b, T a) {
  return fuse(b, a, sum);
}

// The product on top of what is there. Fused, so that the scale costs no rounding of its own.
template <class T>
INGOT_HD T amend(T value, T scale, T sum) {
  return fuse(scale, sum, value);
}

}  // namespace ingot::math
