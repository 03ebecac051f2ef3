// The product of two low-rank matrices, element by element (Hyeon-Woo et al., "FedPara", 2022):
// LoHa.
//
//   value = value + scale * (sum of w1a[o][k] w1b[k][i]) * (sum of w2a[o][k] w2b[k][i])
//
// In convolutions a half may be sum over i, j of t[i][j][x] wa[i][out] wb[j][in].
// Sums by rising k (j outside, i inside), all in double, one rounding.
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

template <class Wide>
INGOT_HD Wide term(Wide sum, Wide a, Wide b) {
  return sum + a * b;
}

template <class Wide>
INGOT_HD auto hadamard(Wide value, Wide scale, Wide first, Wide second) {
  return narrow(value + scale * (first * second));
}

}  // namespace ingot::math
