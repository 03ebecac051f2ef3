// consensus: the sum of the task vectors, where at least `least` models have a part in it.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Consensus {
  static constexpr Card kCard{
      "consensus",
      Base::origin,
      0,
      kSources,
      "sum of the changes, where several models have a part in it",
      "y = w (x - b),  X = y1 + y2 + ...\n"
      "A model has a part in X where |y| > threshold |X - y|.\n"
      "out = b + lambda X where at least `least` models have a part, else b",
      "",
      "Three or more fine-tunes of one base for different tasks: changes that serve one task alone "
      "are left out. With many models lambda is smaller, such as 0.3. mergekit does not have it.",
      "Localizing Task Information for Improved Model Merging and Compression (2024)",
      "https://arxiv.org/abs/2405.07813",
      "merge_method: consensus\nbase_model: base\nmodels:\n  - model: a\n  - model: b\n"
      "  - model: c\nparameters: {threshold: 0.4, least: 2, lambda: 0.3}"};
  static constexpr Parameter kParameters[] = {
      number("threshold", 0.4, "share of the others' sum that makes a part", 0),
      integer("least", 2, "how many models must have a part", 1, kSources), kLambda,
      each("weight", 1, "factor of the model", -kLargest, kLargest)};
  using Lens = Weighted;

  //   X = 0;  X += y_i in file order;  of the f32 y_i: |y_i| > t * |X - y_i|, each step rounded
  //   lambda * X, rounded, + b
  struct Combine {
    static constexpr int kForms = 1, kStages = 2, kUnrolled = 4, kHeld = 0;
    static constexpr bool kPropagates = false, kFused = false;
    struct Facts {
      float threshold = 0.0F, least = 0.0F, lambda = 1.0F;
    };
    struct Source {};
    template <class T>
    struct State {
      T sum{0};
      float total = 0.0F, parts = 0.0F;
      float low = 0.0F, high = 0.0F;
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(sum);
        visit(total);
        visit(parts);
        visit(low);
        visit(high);
      }
    };
    INGOT_HD static int form(const Facts&) { return 0; }
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts& f, const Source&, T x, float voice,
                              const At<T>&) {
      if constexpr (stage == 0) {
        s.sum += x;
        s.total += voice;
        s.low = voice < s.low ? voice : s.low;
        s.high = voice > s.high ? voice : s.high;
      } else {
        // A NaN takes part, so that it reaches the result.
        const bool part = !(magnitude(voice) <= f.threshold * magnitude(s.total - voice));
        s.parts = part ? s.parts + 1.0F : s.parts;
      }
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note& note) {
      note.conflict = s.low < 0.0F && s.high > 0.0F;
      return s.parts >= f.least ? land(s.sum, f.lambda, at.base) : at.base;
    }
    static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
  };
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    const Given<Consensus> given(rule);
    *facts.whole = {static_cast<float>(given.at<"threshold">()),
                    static_cast<float>(given.at<"least">()),
                    static_cast<float>(given.at<"lambda">())};
    for (int s = 0; s < rule.sources; ++s) {
      facts.lens[s].gain = {static_cast<float>(given.at<"weight">(s)), 0.0F};
    }
  }
  static const char* invalid(const Rule& rule) {
    const double least = Given<Consensus>(rule).at<"least">();
    if (least != static_cast<double>(static_cast<int>(least))) {
      return "least must be a whole number";
    }
    if (rule.sources == 0 || least <= rule.sources) return nullptr;
    return "least is larger than the number of models; no change would stay";
  }
};

}  // namespace ingot::math
