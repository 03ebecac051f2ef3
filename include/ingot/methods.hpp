// The merge methods as the engine sees them: descriptions without types, made from math/list.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "ingot/facts.hpp"
#include "ingot/math/list.hpp"

namespace ingot::math {

// A pass as the engine drives it.
struct PassInfo {
  Pass kind = Pass::fold;
  bool (*wanted)(const Rule&, const Facts&) = nullptr;
  // fold, lines: how many sums, of what they start and how two are joined.
  int (*sums)(const Rule&) = nullptr;
  double start = 0;
  double (*join)(double, double) = nullptr;
  // What the sums of the tensor say; a reason why the tensor cannot be merged, or null.
  const char* (*take)(const Rule&, const double* sums, Facts&) = nullptr;
  // lines: the facts [first_fact, first_fact + facts) of a line from its sums.
  int first_fact = 0, facts = 0;
  void (*take_line)(const Rule&, const double* sums, double* facts) = nullptr;
  // order: streams of keys, the ranks wanted of each (at most kRanks, from 1, ascending), and what
  // was found.
  int (*streams)(const Rule&) = nullptr;
  int (*ranks)(const Rule&, const Facts&, int stream, std::uint64_t* ranks) = nullptr;
  void (*take_order)(const Rule&, int stream, const Selection*, Facts&) = nullptr;
  // order: the source whose key a stream is, -1 if it is of all sources.
  int (*source)(int stream) = nullptr;
};

struct Method {
  Card card;
  std::span<const Parameter> parameters;
  std::span<const PassInfo> passes;
  int line_facts = 0;                     // facts of each line that its formula or passes read
  Lines (*lines)(const Rule&) = nullptr;  // what a line is
  bool masks = false;                     // its lens drops elements
  bool random = false;                    // at random: the result depends on Rule::seed
  bool propagates = false;                // an input that is not finite makes an output that is not
  Facts (*begin)(const Rule&) = nullptr;
  // Why a rule cannot be run, beyond what every method asks; null for a sound rule.
  const char* (*invalid)(const Rule&) = nullptr;
  // How many elements of a source the mask keeps; kUncounted where chance decides.
  std::uint64_t (*kept)(const Rule&, int source) = nullptr;
  // True where the result is the one input as it is: the tensor can be copied.
  bool (*identity)(const Rule&) = nullptr;
  bool (*tell)(const Rule&, Facts&, Teller&) = nullptr;
};
inline constexpr std::uint64_t kUncounted = ~std::uint64_t{0};

namespace detail {

template <class M>
[[nodiscard]] ViewOf<M> view(Facts& facts) {
  return facts.view<typename M::Lens, typename M::Combine>();
}
template <class M>
[[nodiscard]] KnownOf<M> known(const Facts& facts) {
  return facts.known<typename M::Lens, typename M::Combine>();
}

template <class M, class P>
constexpr PassInfo pass_info() {
  PassInfo info;
  info.kind = P::kPass;
  info.wanted = [](const Rule& rule, const Facts& facts) {
    return P::wanted(rule, known<M>(facts));
  };
  if constexpr (P::kPass == Pass::order) {
    info.streams = P::streams;
    info.source = P::source;
    info.ranks = [](const Rule& rule, const Facts& facts, int stream, std::uint64_t* ranks) {
      return P::ranks(rule, known<M>(facts), stream, ranks);
    };
    info.take_order = [](const Rule& rule, int stream, const Selection* found, Facts& facts) {
      P::take(rule, stream, found, view<M>(facts));
    };
  } else {
    info.sums = P::sums;
    info.start = P::kStart;
    info.join = [](double a, double b) { return P::join(a, b); };
    if constexpr (P::kPass == Pass::lines) {
      info.first_fact = P::kFirstFact;
      info.facts = P::kFacts;
      info.take_line = P::take;
    } else {
      info.take = [](const Rule& rule, const double* sums, Facts& facts) {
        return P::take(rule, sums, view<M>(facts));
      };
    }
  }
  return info;
}

template <class M, class Passes>
struct PassTable;
template <class M, class... P>
struct PassTable<M, List<P...>> {
  static constexpr int size = sizeof...(P);
  static constexpr PassInfo table[sizeof...(P) + 1] = {pass_info<M, P>()..., PassInfo{}};
};

template <class M>
constexpr Method describe() {
  using Table = PassTable<M, typename M::Passes>;
  Method m;
  m.card = M::kCard;
  if constexpr (requires { M::kParameters; }) m.parameters = M::kParameters;
  m.passes = std::span<const PassInfo>(Table::table, static_cast<std::size_t>(Table::size));
  m.line_facts = line_facts<M>();
  m.masks = M::Lens::kMask != Mask::none;
  m.random = M::Lens::kMask == Mask::random;
  m.propagates = !m.masks && M::Combine::kPropagates;
  m.lines = [](const Rule& rule) {
    if constexpr (requires { M::lines(rule); }) {
      return M::lines(rule);
    } else {
      return Lines::none;
    }
  };
  m.begin = [](const Rule& rule) {
    Facts facts = Facts::of<typename M::Lens, typename M::Combine>(rule.sources);
    M::begin(rule, view<M>(facts));
    return facts;
  };
  m.invalid = [](const Rule& rule) -> const char* {
    if constexpr (requires { M::invalid(rule); }) {
      return M::invalid(rule);
    } else {
      return nullptr;
    }
  };
  m.kept = [](const Rule& rule, int source) {
    if constexpr (requires { M::kept(rule, source); }) {
      return M::kept(rule, source);
    } else if constexpr (M::Lens::kMask == Mask::random) {
      const double density = Given<M>(rule).template at<"density">(source);
      return density >= 1.0 ? rule.elements : density > 0.0 ? kUncounted : std::uint64_t{0};
    } else {
      return rule.elements;
    }
  };
  m.identity = [](const Rule& rule) {
    if constexpr (requires { M::identity(rule); }) {
      return M::identity(rule);
    } else {
      return false;
    }
  };
  m.tell = [](const Rule& rule, Facts& facts, Teller& teller) {
    const ViewOf<M> v = view<M>(facts);
    bool told = M::Combine::tell(rule, *v.whole, v.source, teller);
    for (int s = 0; s < v.sources; ++s) {
      told = M::Lens::tell(rule, s, v.lens[s], teller) && told;
    }
    return told;
  };
  return m;
}

template <class L>
struct MethodTable;
template <class... M>
struct MethodTable<List<M...>> {
  static constexpr Method table[] = {describe<M>()...};
};

}  // namespace detail

inline constexpr std::span<const Method> kMethods = detail::MethodTable<Methods>::table;
inline constexpr int kMethodCount = Methods::size;

// Index into kMethods, -1 if there is no such method.
[[nodiscard]] constexpr int find(const char* name) {
  for (int i = 0; i < kMethodCount; ++i) {
    const char* known = kMethods[static_cast<std::size_t>(i)].card.name;
    int c = 0;
    while (known[c] != '\0' && known[c] == name[c]) ++c;
    if (known[c] == name[c]) return i;
  }
  return -1;
}
[[nodiscard]] inline const Method& method(int index) {
  return kMethods[static_cast<std::size_t>(index)];
}

// Whether recipes of models have the method.
[[nodiscard]] constexpr bool of_models(const Method& method) {
  return method.card.base != Base::zero;
}

// Whether the inputs become task vectors where there is a base.
[[nodiscard]] constexpr bool has_task_vectors(const Method& method) {
  return method.card.base == Base::origin || method.card.base == Base::optional;
}

// Calls body.template operator()<M>() with the method of this index.
template <class Body, class... M>
inline void with_method(int index, Body&& body, List<M...>) {
  int at = 0;
  ((at++ == index ? body.template operator()<M>() : void()), ...);
}
template <class Body>
inline void with_method(int index, Body&& body) {
  with_method(index, body, Methods{});
}

// The facts of a rule that need no measuring.
[[nodiscard]] inline Facts begin(const Rule& rule) { return method(rule.method).begin(rule); }

// How many elements of a source its mask keeps; kUncounted where chance decides.
[[nodiscard]] inline std::uint64_t kept(const Rule& rule, int source) {
  return method(rule.method).kept(rule, source);
}

// True if some source loses elements at random: the result depends on Rule::seed.
[[nodiscard]] inline bool draws(const Rule& rule) {
  if (!method(rule.method).random) return false;
  for (int s = 0; s < rule.sources; ++s) {
    if (kept(rule, s) == kUncounted) return true;
  }
  return false;
}

// True if all of a tensor is read before its first output.
[[nodiscard]] inline bool measured(const Rule& rule) {
  const Method& m = method(rule.method);
  if (m.passes.empty()) return false;
  const Facts facts = begin(rule);
  for (const PassInfo& pass : m.passes) {
    if (pass.wanted(rule, facts)) return true;
  }
  return false;
}

// The place of a parameter's value: among Rule::globals, or, of each source, among Rule::locals; -1
// if the method does not have it.
[[nodiscard]] inline int global_place(const Method& m, const char* name) {
  int at = 0;
  for (const Parameter& p : m.parameters) {
    if (p.scope != Scope::global) continue;
    if (std::strcmp(p.name, name) == 0) return at;
    ++at;
  }
  return -1;
}
[[nodiscard]] inline int local_place(const Method& m, const char* name) {
  int at = 0;
  for (const Parameter& p : m.parameters) {
    if (p.scope == Scope::global) continue;
    if (std::strcmp(p.name, name) == 0) return at;
    ++at;
  }
  return -1;
}
// Sets a parameter by its name, of the tensor or of one source. False if the method lacks it.
inline bool set_global(Rule& rule, const char* name, double value) {
  const int at = global_place(method(rule.method), name);
  if (at >= 0) rule.globals[at] = value;
  return at >= 0;
}
inline bool set_local(Rule& rule, int source, const char* name, double value) {
  const int at = local_place(method(rule.method), name);
  if (at >= 0) rule.locals[source][at] = value;
  return at >= 0;
}
// Every parameter as the method's defaults have it; 0 where it is required.
inline void set_defaults(Rule& rule) {
  int global = 0, local = 0;
  for (const Parameter& p : method(rule.method).parameters) {
    if (p.scope == Scope::global) {
      rule.globals[global++] = p.fallback;
      continue;
    }
    for (int s = 0; s < rule.sources; ++s) rule.locals[s][local] = p.fallback;
    ++local;
  }
}

// Why a rule cannot be run, in words that follow "recipe: "; null for a sound rule. The ranges of
// single parameters are the caller's to check with the names and values it knows; they are checked
// here once more.
[[nodiscard]] inline const char* invalid(const Rule& rule) {
  if (rule.method < 0 || rule.method >= kMethodCount) return "no such merge method";
  const Method& m = method(rule.method);
  if (rule.sources < 0 || rule.sources > kSources) return "more than 64 models";
  if (m.card.base == Base::origin && !rule.base) return "the method needs a base_model";
  const int inputs = rule.sources + (m.card.base == Base::pivot && rule.base ? 1 : 0);
  if (inputs < m.card.least || inputs > m.card.most) {
    return "the method takes another number of models";
  }
  int global = 0, local = 0;
  for (const Parameter& parameter : m.parameters) {
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
  return m.invalid(rule);
}

// ---- the formula, one element at a time

// One element of the output, before it is encoded, and what became of it.
template <class T>
struct Outcome {
  T value{};
  std::uint64_t kept = 0;  // bit s: the mask let source s through
  bool conflict = false;
  float change = 0.0F;  // |value - base| where there is a base and T is float
};

namespace detail {

template <class Combine, int form, class T, class See>
T combine_element(const typename Combine::Facts& whole, const typename Combine::Source* source,
                  int sources, const At<T>& at, See see, Note& note) {
  typename Combine::template State<T> state;
  [&]<int... stage>(std::integer_sequence<int, stage...>) {
    const auto walk = [&]<int now>() {
      for (int s = 0; s < sources; ++s) {
        T exact{};
        float voice = 0.0F;
        see(s, exact, voice);
        Combine::template meet<form, now, T>(state, whole, source[s], exact, voice, at);
      }
    };
    (walk.template operator()<stage>(), ...);
  }
  (std::make_integer_sequence<int, Combine::kStages>{});
  return Combine::template finish<form, T>(state, whole, at, note);
}

}  // namespace detail

namespace detail {

template <class M, class T>
Outcome<T> evaluate(const Rule& rule, const Facts& facts, const float* x, float base,
                    std::uint64_t index, const double* line) {
  using Lens = typename M::Lens;
  using Combine = typename M::Combine;
  Outcome<T> outcome;
  const KnownOf<M> known = detail::known<M>(facts);
  At<T> at;
  at.base = static_cast<T>(base);
  at.index = index;
  for (int i = 0; line != nullptr && i < line_facts<M>(); ++i) at.line[i] = line[i];
  const auto see = [&](int s, T& exact, float& voice) {
    const float d = Lens::kDelta ? delta(x[s], base) : x[s];
    const T wide = Lens::kDelta ? delta(static_cast<T>(x[s]), at.base) : static_cast<T>(x[s]);
    const bool keeps = Lens::keeps(known.lens[s], d, index);
    outcome.kept |= std::uint64_t{keeps ? 1u : 0u} << s;
    const Gain gain = Lens::gain(known.lens[s]);
    voice = gain.split() ? seen<Lens, true>(d, keeps, gain) : seen<Lens, false>(d, keeps, gain);
    exact =
        gain.split() ? seen<Lens, true>(wide, keeps, gain) : seen<Lens, false>(wide, keeps, gain);
  };
  Note note;
  [&]<int... form>(std::integer_sequence<int, form...>) {
    ((form == Combine::form(*known.whole)
          ? void(outcome.value = combine_element<Combine, form, T>(*known.whole, known.source,
                                                                   known.sources, at, see, note))
          : void()),
     ...);
  }
  (std::make_integer_sequence<int, Combine::kForms>{});
  outcome.conflict = note.conflict;
  if (rule.base) outcome.change = magnitude(static_cast<float>(outcome.value) - base);
  return outcome;
}

template <class T, class L>
struct EvaluateTable;
template <class T, class... M>
struct EvaluateTable<T, List<M...>> {
  using Function = Outcome<T> (*)(const Rule&, const Facts&, const float*, float, std::uint64_t,
                                  const double*);
  static constexpr Function table[] = {evaluate<M, T>...};
};

}  // namespace detail

// The formula of a rule for one element: `x` the sources, `base` the base or 0, `index` the
// element's place in the whole tensor, `line` the facts of its line. Float is what backends
// compute; double and tracked numbers are what they are checked against. Masks, votes and conflicts
// are decided in f32 for all.
template <class T>
[[nodiscard]] Outcome<T> evaluate(const Rule& rule, const Facts& facts, const float* x, float base,
                                  std::uint64_t index, const double* line = nullptr) {
  return detail::EvaluateTable<T, Methods>::table[rule.method](rule, facts, x, base, index, line);
}

}  // namespace ingot::math
