// model_stock: between the base and the mean of the models, by the angle between their task
// vectors.
#pragma once

#include <cmath>

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct ModelStock {
  static constexpr Card kCard{
      "model_stock",
      Base::origin,
      2,
      kSources,
      "between the base and the mean of the models, by their angle",
      "out = b + t (d1 + d2 + ... + dN) / N     with d = x - b\n"
      "t = N c / (1 + (N-1) c),  c the mean cosine between two of the d\n"
      "The d are whole tensors, or, with filter_wise: true, rows. t is not limited:\n"
      "it is negative for a negative c. Where 1 + (N-1) c is next to 0, t is 0.",
      "norms, dot products of all pairs (of each row with filter_wise: true)",
      "Two or more fine-tunes of one base on the same data: it stands for the mean of many more. "
      "No "
      "weights to choose.",
      "Model Stock: All we need is just a few fine-tuned models (2024)",
      "https://arxiv.org/abs/2403.19522",
      "merge_method: model_stock\nbase_model: base\nmodels:\n  - model: a\n  - model: b"};
  static constexpr Parameter kParameters[] = {flag("filter_wise", false, "each row has its own t")};
  static constexpr int kLineFacts = 1;  // t / N
  using Lens = Delta;

  //   M = 0;  M += d_i in file order;  fuse(M, s, M * s') + b
  //
  // s and s' are the upper and the lower half of t / N, of the tensor or of the row.
  struct Combine {
    static constexpr int kForms = 2, kStages = 1, kUnrolled = 8, kHeld = 0;
    static constexpr bool kPropagates = true, kFused = false;
    struct Facts {
      double share = 0.0;
      Gain gain;
      std::uint8_t lines = 0;

      void set(double number) {
        share = number;
        gain = math::gain(number);
      }
    };
    struct Source {};
    // Beside the sum its largest and smallest terms, to tell whether two disagree in sign.
    template <class T>
    struct State {
      T sum{0};
      float low = 0.0F, high = 0.0F;
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(sum);
        visit(low);
        visit(high);
      }
    };
    INGOT_HD static int form(const Facts& f) { return f.lines; }
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts&, const Source&, T x, float voice,
                              const At<T>&) {
      s.sum += x;
      s.low = voice < s.low ? voice : s.low;
      s.high = voice > s.high ? voice : s.high;
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note& note) {
      note.conflict = s.low < 0.0F && s.high > 0.0F;
      const Gain gain = form == 1 ? math::gain(at.line[0]) : f.gain;
      return survivor<true>(s.sum, true, gain) + at.base;
    }
    static bool tell(const Rule&, Facts& f, Source*, Teller& teller) {
      if (f.lines != 0) return true;
      const bool told = teller.number("share", -1, -1, f.share);
      f.set(f.share);
      return told;
    }
  };

  // t / N from the products of the task vectors; a vector without length is at right angles to all.
  static double share(const Rule& rule, const double* sums) {
    const int n = rule.sources;
    double cosines = 0.0;
    for (int j = 1; j < n; ++j) {
      for (int i = 0; i < j; ++i) {
        const double a = std::sqrt(sums[i]), b = std::sqrt(sums[j]);
        if (a == 0.0 || b == 0.0) continue;
        const double cosine = sums[Gram<Stream::delta>::at(n, i, j)] / a / b;
        cosines += cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
      }
    }
    const double c = cosines / (n * (n - 1) / 2), q = 1.0 + (n - 1) * c;
    return std::fabs(q) < 1e-6 ? 0.0 : c / q;
  }

  struct Whole : Gram<Stream::delta> {
    static constexpr Pass kPass = Pass::fold;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return facts.whole->lines == 0;
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      facts.whole->set(share(rule, sums));
      return nullptr;
    }
  };
  struct Rows : Gram<Stream::delta> {
    static constexpr Pass kPass = Pass::lines;
    static constexpr int kFirstFact = 0, kFacts = 1;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return facts.whole->lines != 0;
    }
    static void take(const Rule& rule, const double* sums, double* facts) {
      facts[0] = share(rule, sums);
    }
  };
  using Passes = List<Whole, Rows>;

  static Lines lines(const Rule& rule) {
    return Given<ModelStock>(rule).on<"filter_wise">() ? Lines::rows : Lines::none;
  }
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->lines = lines(rule) == Lines::none ? 0 : 1;
  }
};

}  // namespace ingot::math
