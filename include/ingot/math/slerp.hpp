// Spherical interpolation of two tensors (Shoemake, "Animating rotation with quaternion curves",
// 1985), on the vectors as they are: result s0 * v0 + s1 * v1, v0 the base, v1 the other model.
//
//   fuse(s1, v1, fuse(s0, v0, fuse(s1', v1, s0' * v0)))
//
// s and s' are the upper and the lower half of a coefficient: its f32 value, and what that rounding
// left off, rounded to f32. Without the lower halves a whole tensor carries the rounding of two
// numbers (RMS error up to 1.05 of a program whose coefficients happened to fall closer); with them
// each element is off by its own roundings alone. The angle and the coefficients come from three
// exact-product folds, x0*x0, x1*x1, x0*x1, in double on the host.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

// Facts::scalar of slerp.
inline constexpr int kNear = 0;      // s0
inline constexpr int kFar = 1;       // s1
inline constexpr int kNearRest = 2;  // s0'
inline constexpr int kFarRest = 3;   // s1'

struct Arc {
  float near, far, near_rest, far_rest;

  explicit INGOT_HD Arc(const Facts& facts)
      : near(facts.scalar[kNear]),
        far(facts.scalar[kFar]),
        near_rest(facts.scalar[kNearRest]),
        far_rest(facts.scalar[kFarRest]) {}

  template <class T>
  INGOT_HD T operator()(T v0, T v1) const {
    const T rest = fuse(static_cast<T>(far_rest), v1, static_cast<T>(near_rest) * v0);
    return fuse(static_cast<T>(far), v1, fuse(static_cast<T>(near), v0, rest));
  }
};

// Puts the coefficients, in double, into the facts.
INGOT_HD void bend(Facts& facts, double near, double far) {
  facts.scalar[kNear] = static_cast<float>(near);
  facts.scalar[kFar] = static_cast<float>(far);
  facts.scalar[kNearRest] = static_cast<float>(near - static_cast<double>(facts.scalar[kNear]));
  facts.scalar[kFarRest] = static_cast<float>(far - static_cast<double>(facts.scalar[kFar]));
}

}  // namespace ingot::math
