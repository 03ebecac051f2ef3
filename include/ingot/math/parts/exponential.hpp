// e^x and log x in double out of +, -, *, / and integers, so that host and device give the same
// bits. Both are within a few units of the last place.
#pragma once

#include "ingot/math/target.hpp"

namespace ingot::math {

// 0 below -708, where the result would soon be subnormal; infinite above 709.
INGOT_HD double exponential(double x) {
  if (x < -708.0) return 0.0;
  if (x > 709.0) return __builtin_inf();
  if (!(x == x)) return x;
  // x = n log 2 + r, |r| <= log 2 / 2; adding and taking away 1.5 * 2^52 rounds to whole numbers.
  const double shift = 0x1.8p52;
  const double n = (x * 0x1.71547652b82fep0 + shift) - shift;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  // e^r by its series, up to r^13 / 13!.
  const double inverse[] = {1.0 / 479001600.0,
                            1.0 / 39916800.0,
                            1.0 / 3628800.0,
                            1.0 / 362880.0,
                            1.0 / 40320.0,
                            1.0 / 5040.0,
                            1.0 / 720.0,
                            1.0 / 120.0,
                            1.0 / 24.0,
                            1.0 / 6.0,
                            0.5,
                            1.0,
                            1.0};
  double sum = 1.0 / 6227020800.0;
  for (double each : inverse) sum = sum * r + each;
  const std::uint64_t exponent = static_cast<std::uint64_t>(static_cast<std::int64_t>(n) + 1023)
                                 << 52;
  double power;
  __builtin_memcpy(&power, &exponent, sizeof power);
  return sum * power;
}

// Of a positive normal number; NaN for anything else.
INGOT_HD double logarithm(double x) {
  if (!(x >= 0x1p-1022 && x <= 0x1.fffffffffffffp1023)) return __builtin_nan("");
  std::uint64_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  std::int64_t e = static_cast<std::int64_t>(u >> 52) - 1023;
  u = (u & 0x000fffffffffffffu) | 0x3ff0000000000000u;
  double m;
  __builtin_memcpy(&m, &u, sizeof m);
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    ++e;
  }
  // log m = 2 (s + s^3 / 3 + s^5 / 5 + ...), s = (m - 1) / (m + 1), |s| <= 0.172.
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double sum = 0.0;
  for (int k = 23; k >= 1; k -= 2) sum = sum * square + 1.0 / static_cast<double>(k);
  return static_cast<double>(e) * 0x1.62e42fefa39efp-1 + 2.0 * s * sum;
}

}  // namespace ingot::math
