// Weighted sums: of the inputs themselves (linear), and of task vectors on top of a base.
//
// linear (Wortsman et al., "Model soups", 2022):
//   S = 0;  S = fuse(w_i, x_i, S) in file order;  normalize: S / W, one true division, where W is
//   the sum of the f32 weights in file order, in f32.
//
// task arithmetic (Ilharco et al., "Editing models with task arithmetic", 2022):
//   d_i = x_i - b;  y_i = d_i * w_i, rounded, or 0 where a mask drops it;  M = 0;  M += y_i in file
//   order;  normalize: M / W, with W = 1 where |W| < 1e-8;  result lambda * M, rounded, + b.
// Nothing is fused here, so that an f32 merge has the peer's bits. Rescaled survivors are
//   y_i = fuse(d_i, g_i, d_i * g_i'), g_i + g_i' the factor times the weight, to twice the bits.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

// Facts::scalar of linear, sum and consensus.
inline constexpr int kDivisor = 0;  // W; divided by only if Facts::divisor is Divisor::weight
inline constexpr int kLambda = 1;   // sum and consensus

// One more input in the sum.
template <class T>
INGOT_HD T weigh(T sum, float weight, T x) {
  return fuse(static_cast<T>(weight), x, sum);
}

// The weighted mean from the weighted sum.
template <class T>
INGOT_HD T share_out(T sum, float divisor) {
  return sum / static_cast<T>(divisor);
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

// Largest and smallest of the weighted terms seen, to tell whether two disagree in sign.
struct Spread {
  float low = 0.0F, high = 0.0F;

  INGOT_HD void add(float term) {
    low = term < low ? term : low;
    high = term > high ? term : high;
  }
  INGOT_HD bool conflict() const { return low < 0.0F && high > 0.0F; }
};

}  // namespace ingot::math
