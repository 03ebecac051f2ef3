// The combine of methods whose result is a linear combination of the sources, with coefficients
// that were found by measuring.
#pragma once

#include "ingot/math/method.hpp"
#include "ingot/math/parts/gain.hpp"

namespace ingot::math {

//   y_i = x_i - b, or x_i where there is no base
//   R = 0;  R = fuse(c'_i, y_i, R) in file order;  S = R;  S = fuse(c_i, y_i, S) in file order
//   result  S + b; or x, the bits of a single source
//
// c and c' are the upper and the lower half of a coefficient: without the lower halves a whole
// tensor would carry the rounding of a few numbers.
struct Blend {
  // Form 1 takes a single source as it is.
  static constexpr int kForms = 2, kStages = 2, kUnrolled = 4, kHeld = 0;
  static constexpr bool kPropagates = false;  // form 1 does not look at the base
  static constexpr bool kFused = false;
  struct Facts {
    std::uint8_t copies = 0;
  };
  struct Source {
    double coefficient = 0.0;
    Gain gain{0.0F, 0.0F};

    void set(double number) {
      coefficient = number;
      gain = math::gain(number);
    }
  };
  template <class T>
  struct State {
    T sum{0};
    template <class Visit>
    INGOT_HD void each(Visit visit) {
      visit(sum);
    }
  };
  INGOT_HD static int form(const Facts& f) { return f.copies; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts&, const Source& own, T x, float,
                            const At<T>& at) {
    if constexpr (form == 1) {
      s.sum = x;
    } else {
      const float part = stage == 0 ? own.gain.rest : own.gain.whole;
      s.sum = fuse(static_cast<T>(part), delta(x, at.base), s.sum);
    }
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts&, const At<T>& at, Note&) {
    return form == 1 ? s.sum : s.sum + at.base;
  }
  static bool tell(const Rule& rule, Facts& f, Source* source, Teller& teller) {
    bool told = true;
    for (int s = 0; f.copies == 0 && s < rule.sources; ++s) {
      told = teller.number("coefficient", s, -1, source[s].coefficient) && told;
      source[s].set(source[s].coefficient);
    }
    return told;
  }
};

}  // namespace ingot::math
