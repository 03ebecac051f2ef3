// Factors to twice the bits of an f32, and what a mask leaves of a task vector.
#pragma once

#include "ingot/math/target.hpp"

namespace ingot::math {

// An f32 number, and what its rounding left off, rounded to f32. Without the rest a whole tensor
// would carry the rounding of a factor.
struct Gain {
  float whole = 1.0F;
  float rest = 0.0F;

  INGOT_HD bool split() const { return rest != 0.0F; }
};

// Splits a double into an f32 and the f32 remainder; infinities and NaN get the remainder 0.
INGOT_HD Gain gain(double number) {
  const float whole = static_cast<float>(number);
  const float rest = static_cast<float>(number - static_cast<double>(whole));
  return {whole, magnitude(whole) <= 0x1.fffffep127F ? rest : 0.0F};
}

// What a task vector is at an element.
template <class T>
INGOT_HD T delta(T x, T base) {
  return x - base;
}

// What a mask leaves of it, times the gain: dropped elements are +0, whatever they were. `split` is
// gain.split().
template <bool split, class T>
INGOT_HD T survivor(T delta, bool kept, Gain gain) {
  const T whole = static_cast<T>(gain.whole), rest = static_cast<T>(gain.rest);
  return !kept ? T{0} : split ? fuse(delta, whole, delta * rest) : delta * whole;
}

// The merged task vector back on its base.
template <class T>
INGOT_HD T land(T merged, float lambda, T base) {
  return static_cast<T>(lambda) * merged + base;
}

// True where a factor times a sum of terms could be the sum: 1 where either norm is below 1e-7
// (nothing to restore, or nothing left), else what restores the L1 norm.
INGOT_HD double restore(double before, double after) {
  return before < 1e-7 || after < 1e-7 ? 1.0 : before / after;
}

}  // namespace ingot::math
