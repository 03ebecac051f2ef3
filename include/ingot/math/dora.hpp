// Weight decomposition (Liu et al., "DoRA", 2024): a changed row, or column, keeps its direction
// and gets a trained length.
//
//   f = m / |W + D|;  value = f * (value + D)      W before any adapter, D the low-rank change
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

// One more element of a line's sum of squares.
template <class Wide, class T>
INGOT_HD Wide square(Wide sum, T x) {
  return sum + widen(x) * widen(x);
}

// The factor of a line whose squares are not zero, rounded once.
template <class Wide>
INGOT_HD auto stretch(Wide magnitude, Wide squares) {
  return narrow(magnitude / root(squares));
}

}  // namespace ingot::math
