// nearswap: the base moves towards the other model by at most t in each element.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Nearswap {
  static constexpr Card kCard{
      "nearswap",
      Base::pivot,
      2,
      2,
      "the base moved towards another model by at most t",
      "d = x - b\n"
      "out = x where |d| <= t, else b + t or b - t, towards x",
      "",
      "Exactly two models: it takes over another model where the two are close already, and "
      "changes "
      "nothing by more than t. t is of the size of the differences, such as 0.001.",
      "",
      "",
      "merge_method: nearswap\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n"
      "parameters: {t: 0.001}"};
  static constexpr Parameter kParameters[] = {
      needed("t", "0 is the base; the largest change of an element")};
  using Lens = Value;

  // In mergekit's words b + w d, w = clamp(t / max(|d|, 1e-6), 0, 1). Form 0, t >= 1e-6: as the
  // card says. Form 1: b + fuse(d, w, d * w') where |d| <= 1e-6, w = t / 1e-6 and its lower half,
  // else b + t or b - t.
  struct Combine {
    static constexpr int kForms = 2, kStages = 1, kUnrolled = 1, kHeld = 1;
    static constexpr bool kPropagates = false, kFused = false;
    struct Facts {
      float step = 0.0F;
      float reach = 1e-6F;  // up to here `slope` counts
      Gain slope;
      std::uint8_t small = 0;
    };
    struct Source {};
    template <class T>
    struct State {
      T other{0};
      float difference = 0.0F;
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(other);
        visit(difference);
      }
    };
    INGOT_HD static int form(const Facts& f) { return f.small; }
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts&, const Source&, T x, float voice,
                              const At<T>& at) {
      s.other = x;
      s.difference = delta(voice, static_cast<float>(at.base));
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note&) {
      // A NaN is neither near nor on a side, and reaches the result.
      const float step = s.difference > 0.0F   ? f.step
                         : s.difference < 0.0F ? -f.step
                                               : s.difference;
      const T moved = at.base + static_cast<T>(step);
      if (!(magnitude(s.difference) <= f.reach)) return moved;
      if (form == 0) return s.other;
      return at.base + survivor<true>(delta(s.other, at.base), true, f.slope);
    }
    static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
  };
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    const double t = Given<Nearswap>(rule).at<"t">();
    Combine::Facts& f = *facts.whole;
    f.step = t > 0.0 ? static_cast<float>(t) : 0.0F;
    f.small = t >= 1e-6 ? 0 : 1;
    if (f.small == 0) f.reach = f.step;
    f.slope = gain(t > 0.0 ? t / 1e-6 : 0.0);
  }
};

}  // namespace ingot::math
