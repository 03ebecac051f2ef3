// What the methods of task vectors share: their parameters, the passes that thin a task vector and
// restore its norm, and the checks of their weights.
#pragma once

#include "ingot/math/fold.hpp"
#include "ingot/math/parts/combine.hpp"
#include "ingot/math/parts/lens.hpp"

namespace ingot::math {

// ---- parameters, in the order in which recipes read them

inline constexpr Parameter kWeight = each("weight", "factor of the model");
inline constexpr Parameter kDensity =
    each("density", 1, "share of the elements of the change that are kept", 0, 1);
inline constexpr Parameter kLambda = number("lambda", 1, "factor of the merged change");
inline constexpr Parameter kInt8Mask =
    flag("int8_mask", false, "accepted, as mergekit has it; changes nothing here");
constexpr Parameter normalize(bool value) {
  return flag("normalize", value, "divide by the sum of the weights");
}
constexpr Parameter rescale(bool value) {
  return flag("rescale", value, "enlarge what is kept so that the sum of magnitudes stays");
}
constexpr Parameter of_every_input(Parameter parameter) {
  parameter.scope = Scope::every;
  return parameter;
}

inline constexpr char kTiesPaper[] =
    "TIES-Merging: Resolving Interference When Merging Models (2023)";
inline constexpr char kTiesLink[] = "https://arxiv.org/abs/2306.01708";
inline constexpr char kDarePaper[] =
    "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch "
    "(2023)";
inline constexpr char kDareLink[] = "https://arxiv.org/abs/2311.03099";

// ---- weights

// The sum of the f32 weights, and of their magnitudes, in double; the smallest and the largest
// magnitude but 0.
struct Weights {
  double sum = 0.0, size = 0.0;
  double least = 0.0, most = 0.0;
};
template <class M>
[[nodiscard]] Weights weights(const Rule& rule) {
  Weights w;
  for (int s = 0; s < rule.sources; ++s) {
    const double weight =
        static_cast<double>(static_cast<float>(Given<M>(rule).template at<"weight">(s)));
    w.sum += weight;
    const double size = weight < 0.0 ? -weight : weight;
    w.size += size;
    if (size > 0.0 && (w.least == 0.0 || size < w.least)) w.least = size;
    if (size > w.most) w.most = size;
  }
  return w;
}

// Products of weights and elements, and the sum of the weights, must be far from both ends of f32:
// dividing them brings no lost digit back. `small` is the smallest number that divides, 0 where
// that does not matter.
[[nodiscard]] inline const char* divisors(const Weights& w, double small) {
  if (w.most > 0x1p64) {
    return "normalize divides by weights that are too large for single precision (above 1.8e19); "
           "divide all weights by one number";
  }
  if (small > 0.0 && small < 0x1p-64) {
    return "normalize divides by weights that are too small for single precision (below "
           "5.4e-20); "
           "multiply all weights by one number";
  }
  return nullptr;
}

// The sum of the weights in file order, in f32.
template <class M>
[[nodiscard]] float sum_of_weights(const Rule& rule) {
  float sum = 0.0F;
  for (int s = 0; s < rule.sources; ++s) {
    sum += static_cast<float>(Given<M>(rule).template at<"weight">(s));
  }
  return sum;
}

// ---- masks

// Keep probability in units of 2^-48, rounded down. `density` lies strictly between 0 and 1.
[[nodiscard]] inline std::uint64_t probability(double density) {
  return static_cast<std::uint64_t>(density * 0x1p48);
}

// True if the density of a source drops some elements and keeps others.
template <class M>
[[nodiscard]] bool thinned(const Rule& rule, int source) {
  const double density = Given<M>(rule).template at<"density">(source);
  return density > 0.0 && density < 1.0;
}
template <class M>
[[nodiscard]] bool thinned(const Rule& rule) {
  for (int s = 0; s < rule.sources; ++s) {
    if (thinned<M>(rule, s)) return true;
  }
  return false;
}

// How many elements of a source a selecting mask keeps: all for density >= 1, none for <= 0, else
// trunc(density * n) with the product in double, at least `least`.
template <class M>
[[nodiscard]] std::uint64_t top(const Rule& rule, int source, std::uint64_t least = 1) {
  const double density = Given<M>(rule).template at<"density">(source);
  if (density >= 1.0) return rule.elements;
  if (!(density > 0.0)) return 0;
  const auto k = static_cast<std::uint64_t>(density * static_cast<double>(rule.elements));
  return k > least ? k : least;
}

// Why densities cannot be drawn with, or null.
template <class M>
[[nodiscard]] const char* drawable(const Rule& rule) {
  for (int s = 0; s < rule.sources; ++s) {
    const double density = Given<M>(rule).template at<"density">(s);
    if (density > 0.0 && density < 0x1p-48) {
      return "a density below 3.6e-15 keeps nothing; set 0 or a larger one";
    }
  }
  return nullptr;
}

// ---- passes

// A key: larger |d|, larger key.
struct Magnitude {
  static constexpr bool kSingle = true;  // of one source
  using Lens = Delta;
  template <class F>
  INGOT_HD static std::int32_t key(const F&, float d, const At<float>&) {
    return static_cast<std::int32_t>(math::key(d));
  }
};

// The thresholds of a method that keeps the kept() largest of each source (lens Trim).
template <class M>
struct Thresholds {
  static constexpr Pass kPass = Pass::order;
  using Key = Magnitude;
  template <class V>
  [[nodiscard]] static bool wanted(const Rule& rule, const V&) {
    for (int s = 0; s < rule.sources; ++s) {
      if (cuts(rule, s)) return true;
    }
    return false;
  }
  [[nodiscard]] static int streams(const Rule& rule) { return rule.sources; }
  [[nodiscard]] static int source(int stream) { return stream; }
  template <class V>
  [[nodiscard]] static int ranks(const Rule& rule, const V&, int s, std::uint64_t* ranks) {
    if (!cuts(rule, s)) return 0;
    ranks[0] = M::kept(rule, s);
    return 1;
  }
  template <class V>
  static void take(const Rule&, int s, const Selection* found, V facts) {
    facts.lens[s].threshold = static_cast<std::uint32_t>(found->threshold);
    facts.lens[s].cut = found->cut;
  }

 private:
  [[nodiscard]] static bool cuts(const Rule& rule, int s) {
    const std::uint64_t k = M::kept(rule, s);
    return k != 0 && k != rule.elements;
  }
};

// The L1 norm of each task vector before and after its mask, and the factor that restores it.
template <class M>
struct Norms : Adding {
  static constexpr Pass kPass = Pass::fold;
  using Terms = List<Magnitudes>;
  using Common = NoCommon;
  template <class V>
  [[nodiscard]] static bool wanted(const Rule& rule, const V&) {
    return Given<M>(rule).template on<"rescale">() && thinned<M>(rule);
  }
  [[nodiscard]] static int sums(const Rule& rule) { return 2 * rule.sources; }
  [[nodiscard]] static int groups(const Rule& rule) { return rule.sources; }
  [[nodiscard]] static Group group(const Rule&, int n) {
    const auto s = static_cast<std::uint8_t>(n);
    return {0, {Stream::delta, s}, {Stream::survivor, s}, static_cast<std::uint16_t>(2 * n)};
  }
  template <class V>
  static const char* take(const Rule& rule, const double* sums, V facts) {
    for (int s = 0; s < rule.sources; ++s) {
      Survivors& survivors = facts.lens[s].survivors;
      if (thinned<M>(rule, s)) survivors.factor = restore(sums[2 * s], sums[2 * s + 1]);
      survivors.settle();
    }
    return nullptr;
  }
};

// ---- facts that need no measuring

// Weights, lambda and the divisor of methods that sum (Sum).
template <class M, class Lens>
void begin_sum(const Rule& rule, View<Lens, Sum> facts) {
  const Given<M> given(rule);
  facts.whole->lambda = static_cast<float>(given.template at<"lambda">());
  if (!given.template on<"normalize">()) return;
  const float divisor = sum_of_weights<M>(rule);
  facts.whole->divisor = magnitude(divisor) < 1e-8F ? 1.0F : divisor;
  facts.whole->divided = facts.whole->divisor != 1.0F ? 1 : 0;
}

// The same of methods that elect a sign.
template <class M, class Lens>
void begin_election(const Rule& rule, View<Lens, Elect<Vote::weighted>> facts) {
  const Given<M> given(rule);
  facts.whole->lambda = static_cast<float>(given.template at<"lambda">());
  facts.whole->divided = given.template on<"normalize">() ? 1 : 0;
  for (int s = 0; s < rule.sources; ++s) {
    facts.source[s].weight = static_cast<float>(given.template at<"weight">(s));
  }
}

// What survivors are multiplied by before any rescaling: the weight.
template <class M, class V>
void begin_survivors(const Rule& rule, V facts) {
  const bool rescaled = Norms<M>::wanted(rule, facts);
  for (int s = 0; s < rule.sources; ++s) {
    Survivors& survivors = facts.lens[s].survivors;
    survivors.weight =
        static_cast<double>(static_cast<float>(Given<M>(rule).template at<"weight">(s)));
    survivors.rescaled = rescaled ? 1 : 0;
    survivors.settle();
  }
}

// Trims: a source of density 0 keeps nothing; what is cut is measured.
template <class M, class V>
void begin_trim(const Rule& rule, V facts) {
  for (int s = 0; s < rule.sources; ++s) {
    const std::uint64_t k = M::kept(rule, s);
    if (k == 0) {
      Trim::keep_none(facts.lens[s]);
    } else if (k < rule.elements) {
      facts.lens[s].cut = 0;
    }
  }
}

// Draws: probability and random stream of each source.
template <class M, class V>
void begin_drop(const Rule& rule, V facts) {
  for (int s = 0; s < rule.sources; ++s) {
    const double density = Given<M>(rule).template at<"density">(s);
    Drop::Facts& lens = facts.lens[s];
    lens.all = density >= 1.0 ? 1 : 0;
    lens.chance = {rule.seed, rule.stream[s], density > 0.0 ? probability(density) : 0};
    if (lens.all != 0) lens.chance.keep = 0;
  }
}

// Why the weights of a normalized election cannot be used, or null: weights that vote are each a
// divisor.
template <class M>
[[nodiscard]] const char* invalid_election(const Rule& rule) {
  if (!Given<M>(rule).template on<"normalize">()) return nullptr;
  const Weights w = weights<M>(rule);
  return divisors(w, w.least);
}
template <class M>
[[nodiscard]] const char* invalid_sum(const Rule& rule) {
  return Given<M>(rule).template on<"normalize">() ? divisors(weights<M>(rule), 0.0) : nullptr;
}

}  // namespace ingot::math
