// Learned scales of inputs or outputs (Liu et al., "(IA)3", 2022).
//
//   value = value * (1 + w (l - 1))
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

// What a weight is multiplied by; l itself for w = 1. Rounded once.
INGOT_HD float gain(double l, double weight) {
  return weight == 1 ? narrow(l) : narrow(1 + weight * (l - 1));
}

template <class T>
INGOT_HD T scale(T value, T gain) {
  return value * gain;
}

}  // namespace ingot::math
