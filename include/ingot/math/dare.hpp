// Random drop (Yu et al., "Language models are super Mario: absorbing abilities from homologous
// models as a free lunch", 2023).
//
// An element of a task vector is kept with probability `density`, by philox.hpp; survivors are
// multiplied by a factor: the ratio of the L1 norms before and after the drop (recipes), or
// 1 / density (adapters, and the paper). Here: how densities become integers, norms a factor and
// factors a gain.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

// Keep probability in units of 2^-48, rounded down. `density` lies strictly between 0 and 1.
INGOT_HD std::uint64_t probability(double density) {
  return static_cast<std::uint64_t>(density * 0x1p48);
}

// Restores the L1 norm; 1 where either norm is below 1e-7 (nothing to restore, or nothing left).
INGOT_HD double restore(double before, double after) {
  return before < 1e-7 || after < 1e-7 ? 1.0 : before / after;
}

// Splits a double into an f32 and the f32 remainder; infinities and NaN get the remainder 0.
INGOT_HD Gain gain(double number) {
  const float whole = static_cast<float>(number);
  const float rest = static_cast<float>(number - static_cast<double>(whole));
  return {whole, magnitude(whole) <= 0x1.fffffep127F ? rest : 0.0F};
}

}  // namespace ingot::math
