// arcee_fusion: takes over the elements of another model whose importance stands out.
//
//   p, q        softmax of the other's and the base's row, each + 1e-8
//   D           sum of p log(p / q) over the row, at least 0
//   importance  f32(|x - b| D), the difference in f32, the product in double
//   threshold   median + 1.5 (third quartile - first quartile) of the importance, exact
//   result      x where importance >= threshold, else b
//
// mergekit takes the quartiles of large tensors from a random million of the elements.
#pragma once

#include "ingot/math/parts/exponential.hpp"
#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct ArceeFusion {
  static constexpr Card kCard{
      "arcee_fusion",
      Base::pivot,
      2,
      2,
      "elements of another model that stand out, on the base",
      "importance = |x - b| D,  D = sum of p log(p / q) over the row\n"
      "p = softmax(x) + 1e-8, q = softmax(b) + 1e-8, over the row\n"
      "threshold = median + 1.5 (third quartile - first quartile) of the importance\n"
      "out = x where importance >= threshold, else b",
      "softmax and divergence of each row, exact quartiles",
      "Exactly two models: a base and a fine-tune of it, of which only the largest changes are "
      "taken over. No parameters.",
      "",
      "",
      "merge_method: arcee_fusion\nbase_model: a\nmodels:\n  - model: a\n  - model: b"};
  static constexpr int kLineFacts = 4;
  using Lens = Value;

  // Facts of a row: at first the peaks of base and other (0, 1) and the masses (2, 3); then the
  // divergence takes the place 0.
  INGOT_HD static float importance(float d, double divergence) {
    return static_cast<float>(static_cast<double>(magnitude(d)) * divergence);
  }

  struct Combine {
    static constexpr int kForms = 1, kStages = 1, kUnrolled = 1, kHeld = 1;
    static constexpr bool kPropagates = false, kFused = false;
    struct Facts {
      double threshold = 0.0;
    };
    struct Source {};
    template <class T>
    struct State {
      T other{0};
      float voice = 0.0F;
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(other);
        visit(voice);
      }
    };
    INGOT_HD static int form(const Facts&) { return 0; }
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts&, const Source&, T x, float voice,
                              const At<T>&) {
      s.other = x;
      s.voice = voice;
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note&) {
      const float d = delta(s.voice, static_cast<float>(at.base));
      return static_cast<double>(importance(d, at.line[0])) >= f.threshold ? s.other : at.base;
    }
    static bool tell(const Rule&, Facts& f, Source*, Teller& teller) {
      return teller.number("threshold", -1, -1, f.threshold);
    }
  };

  // What the passes over rows share: a term of the base and the other.
  struct OfRows : Always {
    static constexpr Pass kPass = Pass::lines;
    using Common = NoCommon;
    static int groups(const Rule&) { return 1; }
    static Group group(const Rule&, int) { return {0, {Stream::value, 0}, {Stream::value, 1}, 0}; }
  };
  struct Peaks : OfRows, Largest {
    static constexpr int kFirstFact = 0, kFacts = 2;
    struct Term {
      static constexpr int kSums = 2;
      template <class F>
      INGOT_HD static void add(double* lane, float b, float x, const F&, const Here&) {
        lane[0] = join(lane[0], static_cast<double>(b));
        lane[1] = join(lane[1], static_cast<double>(x));
      }
    };
    using Terms = List<Term>;
    static int sums(const Rule&) { return 2; }
    static void take(const Rule&, const double* sums, double* facts) {
      facts[0] = sums[0];
      facts[1] = sums[1];
    }
  };
  struct Masses : OfRows, Adding {
    static constexpr int kFirstFact = 2, kFacts = 2;
    struct Term {
      static constexpr int kSums = 2;
      template <class F>
      INGOT_HD static void add(double* lane, float b, float x, const F&, const Here& here) {
        lane[0] += exponential(static_cast<double>(b) - here.line[0]);
        lane[1] += exponential(static_cast<double>(x) - here.line[1]);
      }
    };
    using Terms = List<Term>;
    static int sums(const Rule&) { return 2; }
    static void take(const Rule&, const double* sums, double* facts) {
      facts[0] = sums[0];
      facts[1] = sums[1];
    }
  };
  struct Divergence : OfRows, Adding {
    static constexpr int kFirstFact = 0, kFacts = 1;
    struct Term {
      static constexpr int kSums = 1;
      template <class F>
      INGOT_HD static void add(double* lane, float b, float x, const F&, const Here& here) {
        const double q = exponential(static_cast<double>(b) - here.line[0]) / here.line[2] + 1e-8;
        const double p = exponential(static_cast<double>(x) - here.line[1]) / here.line[3] + 1e-8;
        lane[0] += p * logarithm(p / q);
      }
    };
    using Terms = List<Term>;
    static int sums(const Rule&) { return 1; }
    static void take(const Rule&, const double* sums, double* facts) {
      facts[0] = sums[0] < 0.0 ? 0.0 : sums[0];
    }
  };

  // The importance is not negative, so that its key is that of a magnitude.
  struct Importance {
    static constexpr bool kSingle = true;
    using Lens = Delta;
    template <class F>
    INGOT_HD static std::int32_t key(const F&, float d, const At<float>& at) {
      return static_cast<std::int32_t>(math::key(importance(d, at.line[0])));
    }
  };
  struct Quartiles : Always {
    static constexpr Pass kPass = Pass::order;
    using Key = Importance;
    static int streams(const Rule&) { return 1; }
    static int source(int) { return 0; }
    template <class V>
    static int ranks(const Rule& rule, const V&, int, std::uint64_t* ranks) {
      int count = 0, place[3];
      of(rule, ranks, count, place);
      return count;
    }
    static void take(const Rule& rule, int, const Selection* found, View<Lens, Combine> facts) {
      std::uint64_t ranks[kRanks];
      int count = 0, place[3];
      of(rule, ranks, count, place);
      const auto quartile = [&](int q) {
        return static_cast<double>(
            from_bits(static_cast<std::uint32_t>(found[place[q]].threshold)));
      };
      facts.whole->threshold = quartile(1) + 1.5 * (quartile(0) - quartile(2));
    }

   private:
    // Ranks from the largest on of the third quartile, the median and the first quartile, each
    // once, and which of them each is.
    static void of(const Rule& rule, std::uint64_t* ranks, int& count, int* place) {
      static constexpr double kOrders[] = {0.75, 0.5, 0.25};
      for (int q = 0; rule.elements > 0 && q < 3; ++q) {
        const auto below =
            static_cast<std::uint64_t>(kOrders[q] * static_cast<double>(rule.elements - 1));
        const std::uint64_t rank = rule.elements - below;
        if (count == 0 || ranks[count - 1] != rank) ranks[count++] = rank;
        place[q] = count - 1;
      }
    }
  };
  using Passes = List<Peaks, Masses, Divergence, Quartiles>;

  static Lines lines(const Rule&) { return Lines::rows; }
  static void begin(const Rule&, View<Lens, Combine>) {}
};

}  // namespace ingot::math
