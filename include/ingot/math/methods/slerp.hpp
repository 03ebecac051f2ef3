// slerp: spherical interpolation of two tensors, on the vectors as they are.
//
// The angle and the coefficients come from three exact-product folds, x0 x0, x1 x1, x0 x1, in
// double on the host.
#pragma once

#include <cmath>

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

// Coefficients of two vectors at `t` of the arc between them, from their products aa, bb, ab. Norms
// that are not above 1e-8 (NaN included) count as 1, so that a zero vector is orthogonal.
struct Interpolation {
  double near = 0.0, far = 0.0;
};
[[nodiscard]] inline Interpolation interpolate(const double* products, double t) {
  const double root0 = std::sqrt(products[0]), root1 = std::sqrt(products[1]);
  const double norm0 = root0 > 1e-8 ? root0 : 1.0, norm1 = root1 > 1e-8 ? root1 : 1.0;
  double cosine = products[2] / norm0 / norm1;
  cosine = cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
  if (std::fabs(cosine) > 0.9995) return {1.0 - t, t};
  const double angle = std::acos(cosine);
  return {std::sin((1.0 - t) * angle) / std::sin(angle), std::sin(t * angle) / std::sin(angle)};
}

struct Slerp {
  static constexpr Card kCard{
      "slerp",
      Base::pivot,
      2,
      2,
      "interpolation of two models along an arc",
      "out = sin((1-t) p) / sin(p) * x0 + sin(t p) / sin(p) * x1\n"
      "x0 is the base, p the angle between the two tensors, taken as vectors.\n"
      "Tensors that are nearly parallel are mixed as (1-t) x0 + t x1.",
      "norms, dot product",
      "Exactly two models. It keeps the length of the weights where a plain mean would shrink "
      "them. "
      "t may differ by layer and by module.",
      "Animating Rotation with Quaternion Curves (1985)",
      "",
      "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n"
      "parameters: {t: 0.5}"};
  static constexpr Parameter kParameters[] = {needed("t", "0 is the base, 1 the other model")};
  using Lens = Value;
  using Combine = Arc;

  struct Angle : Adding, Always {
    static constexpr Pass kPass = Pass::fold;
    using Terms = List<Products>;
    using Common = NoCommon;
    static int sums(const Rule&) { return 3; }
    static int groups(const Rule&) { return 1; }
    static Group group(const Rule&, int) { return {0, {Stream::value, 0}, {Stream::value, 1}, 0}; }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      const Interpolation i = interpolate(sums, Given<Slerp>(rule).at<"t">());
      facts.whole->bend(i.near, i.far);
      return nullptr;
    }
  };
  using Passes = List<Angle>;

  static void begin(const Rule&, View<Lens, Combine>) {}
};

}  // namespace ingot::math
