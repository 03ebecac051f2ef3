// ram, ramplus_tl: what one model alone has changed is added, what several have changed is
// averaged.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

inline constexpr char kRamPaper[] = "Behavior Knowledge Merge in Reinforced Agentic Models (2026)";
inline constexpr char kRamLink[] = "https://arxiv.org/abs/2601.13572";
inline constexpr Parameter kInactive =
    number("epsilon", 1e-5, "changes up to this size count as none", 0);

// Whether a model has changed an element. A NaN counts, so that it reaches the result.
INGOT_HD bool active(float d, float epsilon) { return !(magnitude(d) <= epsilon); }

// Beside the sums how many are active, and the largest and smallest term, to tell whether two
// disagree in sign.
template <class T>
struct RamState {
  T sum{0}, alone{0};
  float count = 0.0F;
  float low = 0.0F, high = 0.0F;
  template <class Visit>
  INGOT_HD void each(Visit visit) {
    visit(sum);
    visit(alone);
    visit(count);
    visit(low);
    visit(high);
  }
};

//   n = number of active d_i;  M = 0;  M += d_i, active, in file order
//   n = 1:  fuse(d, l, d * l') + b, or d + b where nothing is enlarged;  else  M / n + b
//
// l and l' are the upper and the lower half of the factor of a model's own changes.
template <bool enlarged>
struct RamCombine {
  static constexpr int kForms = 1, kStages = 1, kUnrolled = 4, kHeld = 0;
  static constexpr bool kPropagates = false, kFused = false;
  struct Facts {
    float epsilon = 0.0F;
  };
  struct Source {
    double factor = 1.0;
    Gain gain;

    void set(double number) {
      factor = number;
      gain = math::gain(number);
    }
  };
  template <class T>
  using State = RamState<T>;
  INGOT_HD static int form(const Facts&) { return 0; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts& f, const Source& own, T x, float voice,
                            const At<T>&) {
    const bool counts = active(voice, f.epsilon);
    s.sum = counts ? s.sum + x : s.sum;
    if constexpr (enlarged) s.alone = counts ? survivor<true>(x, true, own.gain) : s.alone;
    s.count = counts ? s.count + 1.0F : s.count;
    s.low = counts && voice < s.low ? voice : s.low;
    s.high = counts && voice > s.high ? voice : s.high;
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts&, const At<T>& at, Note& note) {
    note.conflict = s.low < 0.0F && s.high > 0.0F;
    const T mean = s.count > 1.0F ? s.sum / static_cast<T>(s.count) : s.sum;
    return (enlarged && s.count == 1.0F ? s.alone : mean) + at.base;
  }
  static bool tell(const Rule& rule, Facts&, Source* source, Teller& teller) {
    bool told = true;
    for (int s = 0; enlarged && s < rule.sources; ++s) {
      told = teller.number("factor", s, -1, source[s].factor) && told;
      source[s].set(source[s].factor);
    }
    return told;
  }
};

struct Ram {
  static constexpr Card kCard{
      "ram",
      Base::origin,
      0,
      kSources,
      "own changes of a model added, common ones averaged",
      "d = x - b;  n = number of models with |d| > epsilon\n"
      "out = b + (sum of their d) / n;  n = 0: out = b",
      "",
      "Models trained by reinforcement learning from one base, whose changes are sparse and mostly "
      "lie in different places: a mean of all would make them smaller.",
      kRamPaper,
      kRamLink,
      "merge_method: ram\nbase_model: base\nmodels:\n  - model: a\n  - model: b"};
  static constexpr Parameter kParameters[] = {kInactive};
  using Lens = Delta;
  using Combine = RamCombine<false>;
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->epsilon = static_cast<float>(Given<Ram>(rule).at<"epsilon">());
  }
};

struct RamplusTl {
  static constexpr Card kCard{
      "ramplus_tl",
      Base::origin,
      0,
      kSources,
      "as ram, with a model's own changes enlarged",
      "d = x - b;  n = number of models with |d| > epsilon\n"
      "n = 1: out = b + (1 + r min(shared / own, alpha)) d\n"
      "n > 1: out = b + (sum of their d) / n;  n = 0: out = b\n"
      "own and shared count, in the tensor, the elements that the model has changed\n"
      "alone and together with others.",
      "number of changed elements",
      "As ram, where much is averaged: own changes are enlarged to make up for it, the more of a "
      "model's changes are shared.",
      kRamPaper,
      kRamLink,
      "merge_method: ramplus_tl\nbase_model: base\nmodels:\n  - model: a\n  - model: b\n"
      "parameters: {r: 0.1, alpha: 0.2}"};
  static constexpr Parameter kParameters[] = {
      number("r", 0.1, "how strongly own changes are enlarged"),
      number("alpha", 0.2, "largest ratio of shared to own changes that counts", 0), kInactive};
  using Lens = Delta;
  using Combine = RamCombine<true>;

  struct Counts : Adding {
    static constexpr Pass kPass = Pass::fold;
    // How many models have changed the element.
    struct Common {
      static constexpr bool kUsed = true;
      static constexpr Stream kStream = Stream::delta;
      static constexpr int kStages = 1;
      struct State {
        float count = 0.0F;
        template <class Visit>
        INGOT_HD void each(Visit visit) {
          visit(count);
        }
      };
      template <int stage, class F>
      INGOT_HD static void meet(State& s, const F& whole, float d, const Here&) {
        s.count = active(d, whole.epsilon) ? s.count + 1.0F : s.count;
      }
      template <class F>
      INGOT_HD static float finish(const State& s, const F&, const Here&) {
        return s.count;
      }
    };
    // What a model has changed together with others, and alone.
    struct Shares {
      static constexpr int kSums = 2;
      template <class F>
      INGOT_HD static void add(double* lane, float d, float, const F& whole, const Here& here) {
        const bool counts = active(d, whole.epsilon), alone = here.common == 1.0F;
        lane[0] += counts && !alone ? 1.0 : 0.0;
        lane[1] += counts && alone ? 1.0 : 0.0;
      }
    };
    using Terms = List<Shares>;
    template <class V>
    static bool wanted(const Rule& rule, const V&) {
      return rule.sources > 0;
    }
    static int sums(const Rule& rule) { return 2 * rule.sources; }
    static int groups(const Rule& rule) { return rule.sources; }
    static Group group(const Rule&, int n) {
      return {
          0, {Stream::delta, static_cast<std::uint8_t>(n)}, {}, static_cast<std::uint16_t>(2 * n)};
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      const Given<RamplusTl> given(rule);
      const double epsilon = given.at<"epsilon">(), alpha = given.at<"alpha">();
      for (int s = 0; s < rule.sources; ++s) {
        const double shared = sums[2 * s], own = sums[2 * s + 1];
        const double least = own > epsilon ? own : epsilon;
        // 0 / 0 is 0: no change at all.
        const double ratio = shared == 0.0 ? 0.0 : shared < alpha * least ? shared / least : alpha;
        facts.source[s].set(1.0 + given.at<"r">() * ratio);
      }
      return nullptr;
    }
  };
  using Passes = List<Counts>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->epsilon = static_cast<float>(Given<RamplusTl>(rule).at<"epsilon">());
  }
};

}  // namespace ingot::math
