// A Kronecker product on top of a weight (Edalati et al., "KronA", 2022): LoKr.
//
//   value = value + scale * (w1[o / c][i / d] * w2[o mod c][i mod d])     w2 is c x d
//
// In double, one rounding.
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

template <class Wide>
INGOT_HD auto kronecker(Wide value, Wide scale, Wide outer, Wide inner) {
  return narrow(value + scale * (outer * inner));
}

}  // namespace ingot::math
