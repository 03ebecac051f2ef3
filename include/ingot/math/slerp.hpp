// Spherical interpolation of two tensors (Shoemake, "Animating rotation with quaternion curves",
// 1985), on the vectors as they are: result s0 * v0 + s1 * v1, v0 the base, v1 the other model.
//
//   fuse(s1, v1, s0 * v0)
//
// Fused because it loses nothing: the second product is not rounded. The angle and the coefficients
// come from three exact-product folds, x0*x0, x1*x1, x0*x1, in double on the host.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

// Facts::scalar of slerp.
inline constexpr int kNear = 0;  // s0
inline constexpr int kFar = 1;   // s1

template <class T>
INGOT_HD T interpolate(T v0, T v1, float s0, float s1) {
  return fuse(static_cast<T>(s1), v1, static_cast<T>(s0) * v0);
}

}  // namespace ingot::math
