// The closed list of merge methods: for each its parameters, the facts it needs, its formula.
//
// A new method is one header beside this file, one entry in kMethods, one golden.
#pragma once

#include <cmath>

#include "ingot/math/dare.hpp"
#include "ingot/math/fold.hpp"
#include "ingot/math/key.hpp"
#include "ingot/math/linear.hpp"
#include "ingot/math/philox.hpp"
#include "ingot/math/rule.hpp"
#include "ingot/math/slerp.hpp"
#include "ingot/math/ties.hpp"

namespace ingot::math {

enum class Kind : std::uint8_t { real, boolean };

// Whose value a parameter is: one per output tensor; one per source but the base; one per input,
// the base included.
enum class Scope : std::uint8_t { global, source, every };

struct Parameter {
  const char* name;
  Kind kind;
  Scope scope;
  bool required;
  double fallback;   // where not required
  double low, high;  // inclusive range; a value outside, or NaN, is an error
};

// How a method uses base_model.
enum class Base : std::uint8_t {
  ignored,  // an ordinary input (linear), or none (passthrough)
  pivot,    // required, one of exactly two inputs, at t = 0 (slerp)
  origin,   // required; the other inputs become task vectors relative to it
  zero,     // none, and no recipe of models has the method: inputs are task vectors as they are
};

struct Method {
  const char* name;
  Base base;
  int least, most;              // number of inputs, the base not counted for Base::origin
  const Parameter* parameters;  // globals and locals in the order of Rule::globals / Rule::locals
  int parameter_count;
  Formula formula;
  Mask mask;
  Vote vote;
  Divisor divisor;    // what `normalize` divides by
  Rescale rescale;    // what `rescale` multiplies survivors by
  const char* paper;  // title and year, for the model card
};

// Magnitude selection of one source: keep key > threshold, and key == threshold up to index cut.
struct Selection {
  std::uint32_t threshold = 0;
  std::uint64_t cut = 0;
  bool all = true;  // every element is kept; threshold and cut mean nothing
};

// What must be measured before apply.
struct Needs {
  bool select = false;  // a Selection of every source whose kept() is neither 0 nor all elements
  int folds = 0;        // sums over the tensor, by term(), after the selection is known

  // True if all of a tensor is read before its first output.
  [[nodiscard]] bool any() const noexcept { return select || folds > 0; }
};

// Any finite f32.
inline constexpr double kLargest = 0x1.fffffep127;

// Rule::globals of every method that has them, in this order; so do the parameter lists below.
//   linear       normalize
//   slerp        t
//   task vectors normalize, lambda, int8_mask, rescale
inline constexpr int kNormalizeGlobal = 0;
inline constexpr int kLambdaGlobal = 1;
inline constexpr int kRescaleGlobal = 3;
inline constexpr int kTGlobal = 0;
// Rule::locals: weight, density; of passthrough: scale.
inline constexpr int kWeightLocal = 0;
inline constexpr int kDensityLocal = 1;

inline constexpr Parameter kLinearParameters[] = {
    {"normalize", Kind::boolean, Scope::global, false, 1, 0, 1},
    {"weight", Kind::real, Scope::every, true, 0, -kLargest, kLargest},
};
inline constexpr Parameter kSlerpParameters[] = {
    {"t", Kind::real, Scope::global, true, 0, -kLargest, kLargest},
};
inline constexpr Parameter kArithmeticParameters[] = {
    {"normalize", Kind::boolean, Scope::global, false, 0, 0, 1},
    {"lambda", Kind::real, Scope::global, false, 1, -kLargest, kLargest},
    {"int8_mask", Kind::boolean, Scope::global, false, 0, 0, 1},  // accepted; changes nothing
    {"weight", Kind::real, Scope::source, true, 0, -kLargest, kLargest},
};
inline constexpr Parameter kTiesParameters[] = {
    {"normalize", Kind::boolean, Scope::global, false, 1, 0, 1},
    {"lambda", Kind::real, Scope::global, false, 1, -kLargest, kLargest},
    {"int8_mask", Kind::boolean, Scope::global, false, 0, 0, 1},
    {"rescale", Kind::boolean, Scope::global, false, 0, 0, 1},
    {"weight", Kind::real, Scope::source, true, 0, -kLargest, kLargest},
    {"density", Kind::real, Scope::source, false, 1, 0, 1},
};
inline constexpr Parameter kDareParameters[] = {
    {"normalize", Kind::boolean, Scope::global, false, 0, 0, 1},
    {"lambda", Kind::real, Scope::global, false, 1, -kLargest, kLargest},
    {"int8_mask", Kind::boolean, Scope::global, false, 0, 0, 1},
    {"rescale", Kind::boolean, Scope::global, false, 1, 0, 1},
    {"weight", Kind::real, Scope::source, true, 0, -kLargest, kLargest},
    {"density", Kind::real, Scope::source, false, 1, 0, 1},
};
// Of adapters: the globals of task vectors, which no recipe sets, and their locals.
inline constexpr Parameter kFactorParameters[] = {
    {"normalize", Kind::boolean, Scope::global, false, 0, 0, 0},
    {"lambda", Kind::real, Scope::global, false, 1, 1, 1},
    {"int8_mask", Kind::boolean, Scope::global, false, 0, 0, 0},
    {"rescale", Kind::boolean, Scope::global, false, 1, 1, 1},
    {"weight", Kind::real, Scope::source, true, 0, -kLargest, kLargest},
    {"density", Kind::real, Scope::source, false, 1, 0, 1},
};
inline constexpr Parameter kPassthroughParameters[] = {
    {"scale", Kind::real, Scope::every, false, 1, -kLargest, kLargest},
};

inline constexpr char kDarePaper[] =
    "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch "
    "(2023)";

inline constexpr Method kMethods[] = {
    {"linear", Base::ignored, 1, kSources, kLinearParameters, 2, Formula::linear, Mask::none,
     Vote::none, Divisor::weight, Rescale::none,
     "Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without "
     "Increasing Inference Time (2022)"},
    {"slerp", Base::pivot, 2, 2, kSlerpParameters, 1, Formula::slerp, Mask::none, Vote::none,
     Divisor::none, Rescale::none, "Animating Rotation with Quaternion Curves (1985)"},
    {"task_arithmetic", Base::origin, 0, kSources, kArithmeticParameters, 4, Formula::sum,
     Mask::none, Vote::none, Divisor::weight, Rescale::none,
     "Editing Models with Task Arithmetic (2022)"},
    {"ties", Base::origin, 0, kSources, kTiesParameters, 6, Formula::consensus, Mask::select,
     Vote::weighted, Divisor::weight, Rescale::norm,
     "TIES-Merging: Resolving Interference When Merging Models (2023)"},
    {"dare_linear", Base::origin, 0, kSources, kDareParameters, 6, Formula::sum, Mask::random,
     Vote::none, Divisor::weight, Rescale::norm, kDarePaper},
    {"dare_ties", Base::origin, 0, kSources, kDareParameters, 6, Formula::consensus, Mask::random,
     Vote::weighted, Divisor::weight, Rescale::norm, kDarePaper},
    {"passthrough", Base::ignored, 1, 1, kPassthroughParameters, 1, Formula::scale, Mask::none,
     Vote::none, Divisor::none, Rescale::none, ""},
    // What adapters do with factors and updates (PEFT's meaning: votes before weights, a mean over
    // those that agree). Their `linear` is the one above without normalize.
    {"adapter_magnitude_prune", Base::zero, 1, kSources, kFactorParameters, 6, Formula::sum,
     Mask::select, Vote::none, Divisor::none, Rescale::none, ""},
    {"adapter_ties_total", Base::zero, 1, kSources, kFactorParameters, 6, Formula::consensus,
     Mask::select, Vote::total, Divisor::count, Rescale::none, ""},
    {"adapter_ties_frequency", Base::zero, 1, kSources, kFactorParameters, 6, Formula::consensus,
     Mask::select, Vote::frequency, Divisor::count, Rescale::none, ""},
    {"adapter_dare_linear", Base::zero, 1, kSources, kFactorParameters, 6, Formula::sum,
     Mask::random, Vote::none, Divisor::none, Rescale::density, kDarePaper},
    {"adapter_dare_ties_total", Base::zero, 1, kSources, kFactorParameters, 6, Formula::consensus,
     Mask::random, Vote::total, Divisor::count, Rescale::density, kDarePaper},
    {"adapter_dare_ties_frequency", Base::zero, 1, kSources, kFactorParameters, 6,
     Formula::consensus, Mask::random, Vote::frequency, Divisor::count, Rescale::density,
     kDarePaper},
};
inline constexpr int kMethodCount = static_cast<int>(sizeof kMethods / sizeof kMethods[0]);

// Index into kMethods, -1 if there is no such method.
[[nodiscard]] inline int find(const char* name) {
  for (int i = 0; i < kMethodCount; ++i) {
    const char* known = kMethods[i].name;
    int c = 0;
    while (known[c] != '\0' && known[c] == name[c]) ++c;
    if (known[c] == name[c]) return i;
  }
  return -1;
}

[[nodiscard]] inline const Method& method(int index) { return kMethods[index]; }

namespace detail {

[[nodiscard]] inline double density(const Rule& rule, int source) {
  return rule.locals[source][kDensityLocal];
}

// True if survivors of some source get a factor.
[[nodiscard]] inline bool rescales(const Rule& rule) {
  const Method& m = method(rule.method);
  if (m.rescale == Rescale::none || rule.globals[kRescaleGlobal] == 0.0) return false;
  for (int s = 0; s < rule.sources; ++s) {
    if (density(rule, s) > 0.0 && density(rule, s) < 1.0) return true;
  }
  return false;
}

[[nodiscard]] inline bool votes_unweighted(const Method& m) {
  return m.vote == Vote::total || m.vote == Vote::frequency;
}

// Gives a source the factor of its survivors. The weight is the rounded one, by whose sum a
// normalized merge divides: so its rounding cancels.
inline void rescale(const Method& m, double factor, Source& source) {
  const double weight = static_cast<double>(source.weight);
  source.factor = static_cast<float>(factor);
  source.gain = gain(votes_unweighted(m) ? factor : factor * weight);
}

// The sum of the f32 weights, and of their magnitudes, in double; the smallest and the largest
// magnitude but 0.
struct Weights {
  double sum = 0.0, size = 0.0;
  double least = 0.0, most = 0.0;
};
[[nodiscard]] inline Weights weights(const Rule& rule) {
  Weights w;
  for (int s = 0; s < rule.sources; ++s) {
    const double weight = static_cast<double>(static_cast<float>(rule.locals[s][kWeightLocal]));
    w.sum += weight;
    const double size = weight < 0.0 ? -weight : weight;
    w.size += size;
    if (size > 0.0 && (w.least == 0.0 || size < w.least)) w.least = size;
    if (size > w.most) w.most = size;
  }
  return w;
}

}  // namespace detail

// How many elements of a source a selecting mask keeps: all for density >= 1, none for <= 0, else
// trunc(density * n) with the product in double, at least 1 but for adapters. All for methods that
// do not select.
[[nodiscard]] inline std::uint64_t kept(const Rule& rule, int source) {
  if (method(rule.method).mask != Mask::select) return rule.elements;
  const double density = detail::density(rule, source);
  if (density >= 1.0) return rule.elements;
  if (!(density > 0.0)) return 0;
  const std::uint64_t k = static_cast<std::uint64_t>(density * static_cast<double>(rule.elements));
  return k > 0 || method(rule.method).base == Base::zero ? k : 1;
}

// True if some source loses elements at random: the result depends on Rule::seed.
[[nodiscard]] inline bool draws(const Rule& rule) {
  if (method(rule.method).mask != Mask::random) return false;
  for (int s = 0; s < rule.sources; ++s) {
    if (detail::density(rule, s) > 0.0 && detail::density(rule, s) < 1.0) return true;
  }
  return false;
}

[[nodiscard]] inline Needs needs(const Rule& rule) {
  const Method& m = method(rule.method);
  Needs needs;
  for (int s = 0; s < rule.sources; ++s) {
    const std::uint64_t k = kept(rule, s);
    needs.select = needs.select || (k != 0 && k != rule.elements);
  }
  if (m.formula == Formula::slerp) needs.folds = 3;
  if (m.rescale == Rescale::norm && detail::rescales(rule)) needs.folds = 2 * rule.sources;
  return needs;
}

// The fold with number `index`, below needs(rule).folds. Slerp: x0*x0, x1*x1, x0*x1, x0 the base.
// L1 rescaling: for each source its norm before the mask, then after it.
[[nodiscard]] inline Term term(const Rule& rule, int index) {
  if (method(rule.method).formula == Formula::slerp) {
    const Column x0{Stream::value, 0}, x1{Stream::value, 1};
    if (index == 0) return {Term::Kind::product, x0, x0};
    if (index == 1) return {Term::Kind::product, x1, x1};
    return {Term::Kind::product, x0, x1};
  }
  const Column column{index % 2 == 0 ? Stream::delta : Stream::survivor,
                      static_cast<std::uint8_t>(index / 2)};
  return {Term::Kind::absolute, column, column};
}

// Why a rule cannot be run, in words that follow "recipe: "; null for a sound rule. The ranges of
// single parameters are the caller's to check with the names and values it knows; they are checked
// here once more.
[[nodiscard]] inline const char* invalid(const Rule& rule) {
  if (rule.method < 0 || rule.method >= kMethodCount) return "no such merge method";
  const Method& m = method(rule.method);
  if (rule.sources < 0 || rule.sources > kSources) return "more than 64 models";
  if (m.base == Base::origin && !rule.base) return "the method needs a base_model";
  const int inputs = rule.sources + (m.base == Base::pivot && rule.base ? 1 : 0);
  if (inputs < m.least || inputs > m.most) return "the method takes another number of models";
  int global = 0, local = 0;
  for (int p = 0; p < m.parameter_count; ++p) {
    const Parameter& parameter = m.parameters[p];
    const bool is_global = parameter.scope == Scope::global;
    const int values = is_global ? 1 : rule.sources;
    for (int v = 0; v < values; ++v) {
      const double value = is_global ? rule.globals[global] : rule.locals[v][local];
      if (!(value >= parameter.low && value <= parameter.high))
        return "a parameter is out of range";
      if (parameter.kind == Kind::real && !single(value)) {
        return "a weight, or a weight times a scaling, is too small for single precision (1.2e-38 "
               "and more, or 0)";
      }
    }
    ++(is_global ? global : local);
  }
  for (int s = 0; s < rule.sources && m.mask == Mask::random; ++s) {
    const double density = detail::density(rule, s);
    if (density > 0.0 && density < 0x1p-48) {
      return "a density below 3.6e-15 keeps nothing; set 0 or a larger one";
    }
  }
  // Products of weights and elements, and the sum of the weights, must be far from both ends of
  // f32: dividing them brings no lost digit back. Weights that vote are each a divisor.
  if (m.divisor == Divisor::weight && rule.globals[kNormalizeGlobal] != 0.0) {
    const detail::Weights w = detail::weights(rule);
    const double small = m.formula == Formula::consensus ? w.least : w.most;
    if (w.most > 0x1p64) {
      return "normalize divides by weights that are too large for single precision (above 1.8e19); "
             "divide all weights by one number";
    }
    if (m.formula != Formula::sum && small > 0.0 && small < 0x1p-64) {
      return "normalize divides by weights that are too small for single precision (below "
             "5.4e-20); "
             "multiply all weights by one number";
    }
  }
  // The inputs of a normalized linear merge would be amplified a millionfold, errors included.
  if (m.formula == Formula::linear && rule.globals[kNormalizeGlobal] != 0.0) {
    const detail::Weights w = detail::weights(rule);
    if (!(w.sum > 1e-6 * w.size || -w.sum > 1e-6 * w.size)) {
      return "the weights sum to zero or nearly so and normalize is on; change them or set "
             "normalize: false";
    }
  }
  return nullptr;
}

// Facts as far as they are known before the folds. `selections` has one entry per source, or is
// null if needs(rule).select is false; entries of sources that keep all or nothing are not read.
[[nodiscard]] inline Facts prepare(const Rule& rule, const Selection* selections) {
  const Method& m = method(rule.method);
  Facts facts;
  facts.sources = rule.sources;
  facts.formula = m.formula;
  facts.mask = m.mask;
  facts.vote = m.vote;
  facts.seed = rule.seed;
  for (int s = 0; s < rule.sources; ++s) {
    Source& source = facts.source[s];
    source.weight = static_cast<float>(rule.locals[s][kWeightLocal]);
    source.gain.whole = detail::votes_unweighted(m) ? 1.0F : source.weight;
    source.stream = rule.stream[s];
    if (m.mask == Mask::none) continue;
    const double density = detail::density(rule, s);
    source.all = density >= 1.0 ? 1 : 0;
    if (source.all != 0) continue;
    if (m.mask == Mask::random) {
      source.keep = density > 0.0 ? probability(density) : 0;
    } else if (kept(rule, s) == 0) {
      source.threshold = kNoKey;
      source.cut = ~std::uint64_t{0};  // so that bound() stays at the threshold
    } else if (kept(rule, s) == rule.elements || selections[s].all) {
      source.all = 1;
    } else {
      source.threshold = selections[s].threshold;
      source.cut = selections[s].cut;
    }
    if (m.rescale == Rescale::density && detail::rescales(rule) && density > 0.0) {
      detail::rescale(m, 1.0 / density, source);
    }
  }
  facts.rescaled = m.rescale == Rescale::density && detail::rescales(rule);
  if (m.divisor == Divisor::weight && rule.globals[kNormalizeGlobal] != 0.0) {
    float divisor = 0.0F;
    for (int s = 0; s < rule.sources; ++s) divisor += facts.source[s].weight;
    if (m.formula == Formula::sum && magnitude(divisor) < 1e-8F) divisor = 1.0F;
    facts.scalar[kDivisor] = divisor;
    // Division by 1 changes nothing; saying so saves it. A consensus divides by other sums.
    if (m.formula == Formula::consensus || divisor != 1.0F) facts.divisor = Divisor::weight;
  }
  if (m.base == Base::origin || m.base == Base::zero)
    facts.scalar[kLambda] = static_cast<float>(rule.globals[kLambdaGlobal]);
  return facts;
}

// The facts that follow from the folds: `folds` holds needs(rule).folds sums of the whole tensor.
inline void conclude(const Rule& rule, const double* folds, Facts& facts) {
  const Method& m = method(rule.method);
  if (m.formula == Formula::slerp) {
    // Norms that are not above 1e-8 (NaN included) count as 1, so a zero vector is orthogonal.
    const double root0 = std::sqrt(folds[0]), root1 = std::sqrt(folds[1]);
    const double norm0 = root0 > 1e-8 ? root0 : 1.0, norm1 = root1 > 1e-8 ? root1 : 1.0;
    double cosine = folds[2] / norm0 / norm1;
    cosine = cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
    const double t = rule.globals[kTGlobal];
    double near = 1.0 - t, far = t;
    if (!(std::fabs(cosine) > 0.9995)) {
      const double angle = std::acos(cosine);
      near = std::sin((1.0 - t) * angle) / std::sin(angle);
      far = std::sin(t * angle) / std::sin(angle);
    }
    bend(facts, near, far);
  }
  if (m.rescale == Rescale::norm && detail::rescales(rule)) {
    facts.rescaled = true;
    for (int s = 0; s < rule.sources; ++s) {
      const double density = detail::density(rule, s);
      const bool masked = density > 0.0 && density < 1.0;
      if (masked) {
        detail::rescale(m, restore(folds[2 * s], folds[2 * s + 1]), facts.source[s]);
      }
    }
  }
}

// One element of the output, before it is encoded, and what became of it.
template <class T>
struct Outcome {
  T value{};
  std::uint64_t kept = 0;  // bit s: the mask let source s through
  bool conflict = false;
  float change = 0.0F;  // |value - base| where there is a base and T is float
};

namespace detail {

template <class T, Vote vote, Divisor divisor>
[[nodiscard]] INGOT_HD T consent(const Facts& facts, const float* weight, const T* survivor,
                                 const float* decided, T base, bool& conflict) {
  const Consensus<vote, divisor, T, 0> formula{weight, facts.sources, facts.scalar[kLambda]};
  return formula(survivor, decided, base, conflict);
}

}  // namespace detail

// The formula of a rule for one element: `x` the sources, `base` the base or 0, `index` the
// element's place in the whole tensor. Float is what backends compute; double is the reference they
// are checked against. Masks, votes and conflicts are decided in f32 for both.
template <class T>
[[nodiscard]] INGOT_HD Outcome<T> evaluate(const Rule&, const Facts& facts, const float* x,
                                           float base, std::uint64_t index) {
  Outcome<T> outcome;
  const T origin = static_cast<T>(base);
  const int k = facts.sources;
  if (facts.formula == Formula::linear) {
    T sum{0};
    for (int s = 0; s < k; ++s) sum = weigh(sum, facts.source[s].weight, static_cast<T>(x[s]));
    outcome.value = facts.divisor == Divisor::none ? sum : share_out(sum, facts.scalar[kDivisor]);
    return outcome;
  }
  if (facts.formula == Formula::scale) {
    outcome.value = static_cast<T>(x[0]) * static_cast<T>(facts.source[0].weight);
    return outcome;
  }
  if (facts.formula == Formula::slerp) {
    outcome.value = Arc(facts)(origin, static_cast<T>(x[0]));
    outcome.change = magnitude(static_cast<float>(outcome.value) - base);
    return outcome;
  }
  float weight[kSources] = {}, decided[kSources] = {};
  T alive[kSources] = {};
  for (int s = 0; s < k; ++s) {
    const Source& source = facts.source[s];
    const float d = delta(x[s], base);
    bool keeps = source.all != 0;
    if (!keeps && facts.mask == Mask::select) {
      keeps = selected(key(d), source.threshold, index, source.cut);
    } else if (!keeps) {
      keeps = keep(facts.seed, source.stream, index, source.keep);
    }
    outcome.kept |= std::uint64_t{keeps ? 1u : 0u} << s;
    weight[s] = source.weight;
    const T exact = delta(static_cast<T>(x[s]), origin);
    const Gain gain = source.gain;
    decided[s] = gain.split() ? survivor<true>(d, keeps, gain) : survivor<false>(d, keeps, gain);
    alive[s] =
        gain.split() ? survivor<true>(exact, keeps, gain) : survivor<false>(exact, keeps, gain);
  }
  if (facts.formula == Formula::sum) {
    T sum{0};
    Spread spread;
    for (int s = 0; s < k; ++s) {
      sum += alive[s];
      spread.add(decided[s]);
    }
    if (facts.divisor != Divisor::none) sum = share_out(sum, facts.scalar[kDivisor]);
    outcome.value = land(sum, facts.scalar[kLambda], origin);
    outcome.conflict = spread.conflict();
  } else {
    bool& conflict = outcome.conflict;
    T& value = outcome.value;
    if (facts.vote == Vote::total) {
      value = detail::consent<T, Vote::total, Divisor::count>(facts, weight, alive, decided, origin,
                                                              conflict);
    } else if (facts.vote == Vote::frequency) {
      value = detail::consent<T, Vote::frequency, Divisor::count>(facts, weight, alive, decided,
                                                                  origin, conflict);
    } else if (facts.divisor == Divisor::none) {
      value = detail::consent<T, Vote::weighted, Divisor::none>(facts, weight, alive, decided,
                                                                origin, conflict);
    } else {
      value = detail::consent<T, Vote::weighted, Divisor::weight>(facts, weight, alive, decided,
                                                                  origin, conflict);
    }
  }
  outcome.change = magnitude(static_cast<float>(outcome.value) - base);
  return outcome;
}

}  // namespace ingot::math
