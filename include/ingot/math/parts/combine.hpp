// Combines: one element of the result from what lenses show of all sources.
//
// A combine walks the sources in file order, once or several times (kStages), with a small state:
// meet<form, stage>() takes one source, finish() makes the result. Loops unroll the walk where the
// number of sources is small; else the states of many elements lie side by side in memory, so that
// any number of sources streams through.
//
// kForms: variants that are chosen once per tensor and compiled apart. kUnrolled: up to how many
// sources the CPU's loops are unrolled, kHeld: the kernels'. kPropagates: an input that is not
// finite always makes a result that is not.
#pragma once

#include "ingot/math/method.hpp"
#include "ingot/math/parts/gain.hpp"

namespace ingot::math {

// ---- linear (Wortsman et al., "Model soups", 2022)
//
//   S = 0;  S = fuse(w_i, x_i, S) in file order;  normalize: S / W, one true division, where W is
//   the sum of the f32 weights in file order, in f32.
struct Mean {
  static constexpr int kForms = 2, kStages = 1, kUnrolled = 8, kHeld = 4;
  static constexpr bool kPropagates = true;
  // Loops may decode, sum and encode in one, where all inputs and the output have one format.
  static constexpr bool kFused = true;
  struct Facts {
    float divisor = 1.0F;
    std::uint8_t divided = 0;  // division by 1 changes nothing; saying so saves it
  };
  struct Source {
    float weight = 1.0F;
  };
  template <class T>
  struct State {
    T sum{0};
    template <class Visit>
    INGOT_HD void each(Visit visit) {
      visit(sum);
    }
  };
  INGOT_HD static int form(const Facts& f) { return f.divided; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts&, const Source& own, T x, float,
                            const At<T>&) {
    s.sum = fuse(static_cast<T>(own.weight), x, s.sum);
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>&, Note&) {
    return form == 1 ? s.sum / static_cast<T>(f.divisor) : s.sum;
  }
  static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
};

// ---- one source, times a number
struct Scale {
  static constexpr int kForms = 1, kStages = 1, kUnrolled = 1, kHeld = 1;
  static constexpr bool kPropagates = true, kFused = false;
  struct Facts {};
  struct Source {
    float scale = 1.0F;
  };
  template <class T>
  struct State {
    T product{0};
    template <class Visit>
    INGOT_HD void each(Visit visit) {
      visit(product);
    }
  };
  INGOT_HD static int form(const Facts&) { return 0; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts&, const Source& own, T x, float,
                            const At<T>&) {
    s.product = x * static_cast<T>(own.scale);
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts&, const At<T>&, Note&) {
    return s.product;
  }
  static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
};

// ---- two tensors along an arc: s0 * v0 + s1 * v1, v0 the base, v1 the other model
//
//   fuse(s1, v1, fuse(s0, v0, fuse(s1', v1, s0' * v0)))
//
// s and s' are the upper and the lower half of a coefficient. Without the lower halves a whole
// tensor carries the rounding of two numbers (RMS error up to 1.05 of a program whose coefficients
// happened to fall closer); with them each element is off by its own roundings alone.
struct Arc {
  static constexpr int kForms = 1, kStages = 1, kUnrolled = 1, kHeld = 1;
  static constexpr bool kPropagates = true, kFused = false;
  struct Facts {
    Gain near, far;
    double coefficient[2] = {};

    void bend(double of_near, double of_far) {
      coefficient[0] = of_near;
      coefficient[1] = of_far;
      near = gain(of_near);
      far = gain(of_far);
    }
  };
  struct Source {};
  template <class T>
  struct State {
    T other{0};
    template <class Visit>
    INGOT_HD void each(Visit visit) {
      visit(other);
    }
  };
  INGOT_HD static int form(const Facts&) { return 0; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts&, const Source&, T x, float, const At<T>&) {
    s.other = x;
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note&) {
    const T rest = fuse(static_cast<T>(f.far.rest), s.other, static_cast<T>(f.near.rest) * at.base);
    return fuse(static_cast<T>(f.far.whole), s.other,
                fuse(static_cast<T>(f.near.whole), at.base, rest));
  }
  static bool tell(const Rule&, Facts& f, Source*, Teller& teller) {
    const bool told = teller.number("coefficients", -1, 0, f.coefficient[0]) &&
                      teller.number("coefficients", -1, 1, f.coefficient[1]);
    f.bend(f.coefficient[0], f.coefficient[1]);
    return told;
  }
};

// ---- task arithmetic (Ilharco et al., "Editing models with task arithmetic", 2022)
//
//   M = 0;  M += y_i in file order, y_i what the lens shows;  normalize: M / W, with W = 1 where
//   |W| < 1e-8;  result lambda * M, rounded, + b.
// Nothing is fused here, so that an f32 merge has the peer's bits.
struct Sum {
  static constexpr int kForms = 1, kStages = 1, kUnrolled = 8, kHeld = 4;
  static constexpr bool kPropagates = true, kFused = false;
  struct Facts {
    float lambda = 1.0F;
    float divisor = 1.0F;
    std::uint8_t divided = 0;
  };
  struct Source {};
  // Beside the sum the largest and smallest of its terms, to tell whether two disagree in sign.
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
  INGOT_HD static int form(const Facts&) { return 0; }
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
    const T sum = f.divided != 0 ? s.sum / static_cast<T>(f.divisor) : s.sum;
    return land(sum, f.lambda, at.base);
  }
  static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
};

// ---- sign election and disjoint mean (Yadav et al., "TIES-Merging", 2023), in the two meanings
// people know
//
//   terms     y_i what the lens shows; where voices are unweighted y_i * w_i, rounded
//   vote      S = 0; in file order S += y_i (weighted, total), sign of y_i (frequency);
//             the majority is + if S >= 0, else -
//   agreement the voting term is not zero and not of the other sign; a NaN agrees with everybody,
//   so
//             that it reaches the result
//   mean      M = 0; M += the terms of those that agree, in file order
//             V = sum of their weights in f32, 1 where exactly zero (Divisor::weight),
//             or their number, at least 1 (Divisor::count);  M / V
//   result    lambda * M, rounded, + b
//
// Recipes vote weighted and divide by weights (if normalize); adapters vote total or frequency and
// divide by the count. Votes, agreement and V are f32 decisions for every T.

// How the majority sign is found: after weighting, or before (by total or by counting heads).
enum class Vote : std::uint8_t { weighted, total, frequency };
// What the disjoint mean is divided by.
enum class Divisor : std::uint8_t { none, weight, count };

// What a source that votes with `voice` puts in the ballot box.
template <Vote vote>
INGOT_HD float ballot(float voice) {
  if (vote != Vote::frequency) return voice;
  return voice > 0.0F ? 1.0F : voice < 0.0F ? -1.0F : 0.0F;
}
// The majority as a mask for sign bits: those who agree have their sign clear after the flip.
INGOT_HD std::uint32_t majority(float votes) { return votes >= 0.0F ? 0u : 0x80000000u; }
// A voice as the majority hears it: positive agrees, negative opposes.
INGOT_HD float heard(float voice, std::uint32_t majority) {
  return from_bits(bits(voice) ^ majority);
}
INGOT_HD bool agrees(float heard) { return !(heard <= 0.0F); }
INGOT_HD bool opposes(float heard) { return heard < 0.0F; }

template <Divisor divisor, class T>
INGOT_HD T disjoint_mean(T sum, float shares) {
  if (divisor == Divisor::none) return sum;
  if (divisor == Divisor::weight) return sum / static_cast<T>(shares == 0.0F ? 1.0F : shares);
  return sum / static_cast<T>(shares >= 1.0F ? shares : 1.0F);
}

template <Vote vote>
struct Elect {
  // Form 0 does not divide; form 1 divides by the weights (weighted) or by the count.
  static constexpr int kForms = 2, kStages = 2, kUnrolled = 8;
  static constexpr int kHeld = vote == Vote::weighted ? 4 : 0;
  static constexpr bool kPropagates = false, kFused = false;
  struct Facts {
    float lambda = 1.0F;
    std::uint8_t divided = 0;
  };
  struct Source {
    float weight = 1.0F;
  };
  template <class T>
  struct State {
    T sum{0};
    float votes = 0.0F;  // a first vote of -0 becomes +0: the majority is the same
    float shares = 0.0F;
    float least = 0.0F;  // the smallest opinion heard: negative if somebody opposes
    template <class Visit>
    INGOT_HD void each(Visit visit) {
      visit(sum);
      visit(votes);
      visit(shares);
      visit(least);
    }
  };
  template <int form>
  static constexpr Divisor kDivisor = form == 0                ? Divisor::none
                                      : vote == Vote::weighted ? Divisor::weight
                                                               : Divisor::count;

  INGOT_HD static int form(const Facts& f) { return f.divided; }
  template <int form, int stage, class T>
  INGOT_HD static void meet(State<T>& s, const Facts&, const Source& own, T x, float voice,
                            const At<T>&) {
    if constexpr (stage == 0) {
      s.votes += ballot<vote>(voice);
    } else {
      const float opinion = heard(voice, majority(s.votes));
      const T term = vote == Vote::weighted ? x : x * static_cast<T>(own.weight);
      const float share = kDivisor<form> == Divisor::count ? 1.0F : own.weight;
      s.sum = agrees(opinion) ? s.sum + term : s.sum;
      s.shares = agrees(opinion) ? s.shares + share : s.shares;
      s.least = opinion < s.least ? opinion : s.least;
    }
  }
  template <int form, class T>
  INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note& note) {
    note.conflict = opposes(s.least);
    return land(disjoint_mean<kDivisor<form>>(s.sum, s.shares), f.lambda, at.base);
  }
  static bool tell(const Rule&, Facts&, Source*, Teller&) { return true; }
};

}  // namespace ingot::math
