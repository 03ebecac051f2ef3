// A number in double together with a bound on how far the same formula in the engine's arithmetic
// may be from it: running error analysis, one rounding of 2^-P relative after each operation
// (Higham, "Accuracy and Stability of Numerical Algorithms", 3.3).
//
// With eps = 2^-P, and a value x whose engine's counterpart lies within s of it:
//   x + y    s_x + s_y                       + eps (|x + y| + ...)
//   x y      |x| s_y + |y| s_x + s_x s_y     + eps (|x y| + ...)
//   x / y    (s_x + |x / y| s_y) / (|y| - s_y) + ...
//   sqrt x   s_x / (sqrt x + sqrt(x - s_x))    + ...
// The last term takes the engine's value, hence the dots: it is at most |result| plus its slack.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "ingot/math/adapter.hpp"

namespace ingot {

template <int P>
struct Tracked {
  double value = 0;
  double slack = 0;

  Tracked() = default;
  explicit Tracked(double exact) : value(exact) {}
  Tracked(double result, double error) : value(result) {
    // One more than the last place covers the roundings of this analysis; the second term is half
    // the smallest subnormal f32, for results that underflow.
    constexpr double kEpsilon = 1.0 / static_cast<double>(std::int64_t{1} << P) * (1 + 0x1p-20);
    constexpr double kTiny = P == 24 ? 0x1p-150 : 0;
    slack = error + kEpsilon * (std::fabs(result) + error) + kTiny + std::fabs(result) * 0x1p-50;
  }

  explicit operator float() const { return static_cast<float>(value); }
  Tracked& operator+=(Tracked other) { return *this = *this + other; }

  friend Tracked operator+(Tracked a, Tracked b) { return {a.value + b.value, a.slack + b.slack}; }
  friend Tracked operator-(Tracked a, Tracked b) { return {a.value - b.value, a.slack + b.slack}; }
  friend Tracked operator*(Tracked a, Tracked b) { return {a.value * b.value, crossed(a, b)}; }
  friend Tracked operator/(Tracked a, Tracked b) {
    const double q = a.value / b.value, room = std::fabs(b.value) - b.slack;
    if (!(room > 0)) return {q, std::numeric_limits<double>::infinity()};
    return {q, (a.slack + std::fabs(q) * b.slack) / room};
  }
  friend Tracked fuse(Tracked a, Tracked b, Tracked c) {
    return {std::fma(a.value, b.value, c.value), crossed(a, b) + c.slack};
  }
  friend Tracked root(Tracked a) {
    const double r = std::sqrt(a.value), least = a.value - a.slack;
    if (least <= 0) return {r, std::sqrt(a.value + a.slack)};
    return {r, a.slack / (r + std::sqrt(least))};
  }
  // A sum of `terms` products, taken by the engine in any order, fused or not, a common factor
  // multiplied into any part; `mass` is the sum of their magnitudes. The bound of Higham 4.2, n u
  // mass, with four more roundings.
  static Tracked any_order(double sum, double mass, std::uint64_t terms) {
    Tracked t(sum);
    const auto n = static_cast<double>(terms + 4);
    t.slack = n * mass / static_cast<double>(std::int64_t{1} << P) * (1 + 0x1p-10) + n * 0x1p-149;
    return t;
  }
  friend bool operator==(Tracked a, Tracked b) { return a.value == b.value; }

 private:
  static double crossed(Tracked a, Tracked b) {
    return std::fabs(a.value) * b.slack + std::fabs(b.value) * a.slack + a.slack * b.slack;
  }
};

using Single = Tracked<24>;

// The type of sums and of formulas that round once: double beside float.
template <class T>
struct Widened;
template <>
struct Widened<float> {
  using Type = double;
};
template <>
struct Widened<Single> {
  using Type = Tracked<53>;
};
template <class T>
using Wide = typename Widened<T>::Type;

using math::narrow;
using math::widen;

inline Tracked<53> widen(Single x) {
  Tracked<53> wide(x.value);
  wide.slack = x.slack;
  return wide;
}
inline Tracked<53> widen(Tracked<53> x) { return x; }
inline Single narrow(Tracked<53> x) { return {x.value, x.slack}; }

}  // namespace ingot
