// sce: select the elements in which the models differ most, weigh each model by what it has changed
// there, and average what agrees in sign.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

// How far the task vectors of an element are apart: their variance, in double for every number
// type, in two walks, as a key. All equal ones have the key 0.
struct Spread {
  double total = 0.0, squares = 0.0;
  template <class Visit>
  INGOT_HD void each(Visit visit) {
    visit(total);
    visit(squares);
  }
  template <int stage>
  INGOT_HD void meet(float d, double models) {
    if constexpr (stage == 0) {
      total += static_cast<double>(d);
    } else {
      const double off = static_cast<double>(d) - total / models;
      squares += off * off;
    }
  }
  [[nodiscard]] INGOT_HD std::int32_t key(double models) const {
    return static_cast<std::int32_t>(math::key(static_cast<float>(squares / models)));
  }
};

struct Sce {
  static constexpr Card kCard{
      "sce",
      Base::origin,
      0,
      kSources,
      "most varied changes only, mean of those that agree, by their squares",
      "1. d = x - b; of the elements in which the models differ the share\n"
      "   `select_topk` with the largest variance of d is kept, the others become 0\n"
      "2. w of a model is the mean of its d^2; the w are divided by their sum\n"
      "3. the sign of d1 + d2 + ... is elected\n"
      "4. out = b + (sum of w d) / (sum of w), over the models whose d has that sign\n"
      "With select_topk: 1 all is kept. A tensor in which the models do not differ at\n"
      "all is kept as well.",
      "exact threshold of the variance, sums of squares",
      "Two or more fine-tunes of one base. No weights to choose: those that changed a tensor more "
      "count more. Start with select_topk 0.1 to 0.5.",
      "FuseChat: Knowledge Fusion of Chat Models (2024)",
      "https://arxiv.org/abs/2408.07990",
      "merge_method: sce\nbase_model: base\nmodels:\n  - model: a\n  - model: b\n"
      "parameters: {select_topk: 0.3}"};
  static constexpr Parameter kParameters[] = {
      kInt8Mask, number("select_topk", 1, "share of the elements with differences that is kept")};
  using Lens = Delta;

  //   V = 0;  V += d_i in file order; the majority is + if V >= 0, else -; a NaN agrees
  //   M = 0, W = 0;  M = fuse(w_i, d_i, M), W += w_i of those that agree;  M / W, 0 where W is 0
  //   result  M / W + b
  //
  // Votes, agreement and W are f32 decisions for every T. Form 1 selects.
  struct Combine {
    static constexpr int kForms = 2, kStages = 2, kUnrolled = 4, kHeld = 0;
    static constexpr bool kPropagates = false, kFused = false;
    struct Facts {
      std::uint64_t differing = 0;  // elements whose variance is not 0
      std::uint64_t kept = 0;       // how many of them stay
      std::uint64_t cut = ~std::uint64_t{0};
      std::int32_t threshold = static_cast<std::int32_t>(kNoKey);
      std::uint8_t selects = 0;
      double models = 0.0;

      // What follows from the number of differing elements.
      void rank(double share) {
        selects = differing == 0 ? 0 : 1;
        kept = static_cast<std::uint64_t>(share * static_cast<double>(differing));
      }
      [[nodiscard]] INGOT_HD bool keeps(std::int32_t key, std::uint64_t index) const {
        return key > threshold || (key == threshold && index <= cut);
      }
    };
    struct Source {
      double share = 0.0;
      Gain weight{0.0F, 0.0F};

      void set(double number) {
        share = number;
        weight = gain(number);
      }
    };
    template <class T>
    struct State {
      Spread spread;
      T sum{0};
      double weights = 0.0;  // of those that agree
      float votes = 0.0F;
      float least = 0.0F;  // the smallest opinion heard: negative if somebody opposes
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(spread.total);
        visit(spread.squares);
        visit(sum);
        visit(weights);
        visit(votes);
        visit(least);
      }
    };
    INGOT_HD static int form(const Facts& f) { return f.selects; }
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts& f, const Source& own, T x, float voice,
                              const At<T>&) {
      if constexpr (form == 1) s.spread.template meet<stage>(voice, f.models);
      if constexpr (stage == 0) {
        s.votes += voice;
      } else {
        const float opinion = heard(voice, majority(s.votes));
        const bool counts = agrees(opinion);
        const T rest = fuse(static_cast<T>(own.weight.rest), x, s.sum);
        s.sum = counts ? fuse(static_cast<T>(own.weight.whole), x, rest) : s.sum;
        s.weights = counts ? s.weights + own.share : s.weights;
        s.least = opinion < s.least ? opinion : s.least;
      }
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note& note) {
      if (form == 1 && !f.keeps(s.spread.key(f.models), at.index)) return at.base;
      note.conflict = opposes(s.least);
      // The divisor to twice the bits: the quotient by its upper half, less what the lower half
      // takes.
      const Gain divisor = gain(s.weights);
      if (divisor.whole == 0.0F) return T{0} + at.base;  // nobody agrees, or nobody who counts
      const T mean = s.sum / static_cast<T>(divisor.whole);
      const float excess = divisor.rest / divisor.whole;
      return fuse(mean, static_cast<T>(-excess), mean) + at.base;
    }
    static bool tell(const Rule& rule, Facts& f, Source* source, Teller& teller) {
      bool told = true;
      if (counted(rule)) {
        told = teller.count("differing", -1, f.differing);
        f.rank(Given<Sce>(rule).at<"select_topk">());
      }
      if (ordered(f)) {
        told = teller.key("threshold", -1, f.threshold) && teller.count("cut", -1, f.cut) && told;
      }
      for (int s = 0; weighed(f) && s < rule.sources; ++s) {
        told = teller.number("weight", s, -1, source[s].share) && told;
        source[s].set(source[s].share);
      }
      return told;
    }
  };

  // Elements in which the models differ.
  struct Differing : Adding {
    static constexpr Pass kPass = Pass::fold;
    struct Common {
      static constexpr bool kUsed = true;
      static constexpr Stream kStream = Stream::delta;
      static constexpr int kStages = 2;
      using State = Spread;
      template <int stage, class F>
      INGOT_HD static void meet(State& s, const F& whole, float d, const Here&) {
        s.meet<stage>(d, whole.models);
      }
      template <class F>
      INGOT_HD static float finish(const State& s, const F& whole, const Here&) {
        return s.key(whole.models) != 0 ? 1.0F : 0.0F;
      }
    };
    struct Count {
      static constexpr int kSums = 1;
      template <class F>
      INGOT_HD static void add(double* lane, float, float, const F&, const Here& here) {
        lane[0] += static_cast<double>(here.common);
      }
    };
    using Terms = List<Count>;
    template <class V>
    static bool wanted(const Rule& rule, const V&) {
      return counted(rule);
    }
    static int sums(const Rule&) { return 1; }
    static int groups(const Rule&) { return 1; }
    static Group group(const Rule&, int) { return {}; }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      facts.whole->differing = static_cast<std::uint64_t>(sums[0]);
      facts.whole->rank(Given<Sce>(rule).at<"select_topk">());
      return nullptr;
    }
  };

  // The threshold of the variance.
  struct Variance {
    static constexpr bool kSingle = false;
    static constexpr int kStages = 2;
    using Lens = Delta;
    using State = Spread;
    template <int stage>
    INGOT_HD static void meet(State& s, const Combine::Facts& whole, float d, const At<float>&) {
      s.meet<stage>(d, whole.models);
    }
    INGOT_HD static std::int32_t finish(const State& s, const Combine::Facts& whole,
                                        const At<float>&) {
      return s.key(whole.models);
    }
  };
  struct Threshold {
    static constexpr Pass kPass = Pass::order;
    using Key = Variance;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return ordered(*facts.whole);
    }
    static int streams(const Rule&) { return 1; }
    static int source(int) { return -1; }
    template <class V>
    static int ranks(const Rule&, const V& facts, int, std::uint64_t* ranks) {
      ranks[0] = facts.whole->kept;
      return 1;
    }
    static void take(const Rule&, int, const Selection* found, View<Lens, Combine> facts) {
      facts.whole->threshold = found->threshold;
      facts.whole->cut = found->cut;
    }
  };

  // The weights: sums of squares of what is kept.
  template <bool selects>
  struct Squares : Adding {
    static constexpr Pass kPass = Pass::fold;
    // 1 where an element is kept.
    struct Common {
      static constexpr bool kUsed = selects;
      static constexpr Stream kStream = Stream::delta;
      static constexpr int kStages = 2;
      using State = Spread;
      template <int stage, class F>
      INGOT_HD static void meet(State& s, const F& whole, float d, const Here&) {
        s.meet<stage>(d, whole.models);
      }
      template <class F>
      INGOT_HD static float finish(const State& s, const F& whole, const Here& here) {
        return whole.keeps(s.key(whole.models), here.index) ? 1.0F : 0.0F;
      }
    };
    struct Term {
      static constexpr int kSums = 1;
      template <class F>
      INGOT_HD static void add(double* lane, float d, float, const F&, const Here& here) {
        lane[0] = !selects || here.common != 0.0F ? add_product(lane[0], d, d) : lane[0];
      }
    };
    using Terms = List<Term>;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return weighed(*facts.whole) && (facts.whole->selects != 0) == selects;
    }
    static int sums(const Rule& rule) { return rule.sources; }
    static int groups(const Rule& rule) { return rule.sources; }
    static Group group(const Rule&, int n) {
      return {0, {Stream::delta, static_cast<std::uint8_t>(n)}, {}, static_cast<std::uint16_t>(n)};
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      double all = 0.0;
      for (int s = 0; s < rule.sources; ++s) all += sums[s];
      for (int s = 0; s < rule.sources; ++s) {
        facts.source[s].set(all == 0.0 ? 1.0 / rule.sources : sums[s] / all);
      }
      return nullptr;
    }
  };
  using Passes = List<Differing, Threshold, Squares<false>, Squares<true>>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->models = rule.sources;
    // Until something is found, and with a share of 0, nothing is kept.
    facts.whole->selects = Given<Sce>(rule).at<"select_topk">() < 1.0 ? 1 : 0;
  }

 private:
  static bool counted(const Rule& rule) {
    const double share = Given<Sce>(rule).at<"select_topk">();
    return rule.sources > 0 && share > 0.0 && share < 1.0;
  }
  static bool ordered(const Combine::Facts& f) { return f.selects != 0 && f.kept > 0; }
  static bool weighed(const Combine::Facts& f) {
    return f.models > 0.0 && (f.selects == 0 || f.kept > 0);
  }
};

}  // namespace ingot::math
