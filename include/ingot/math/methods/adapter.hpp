// What adapters do with factors and updates, in PEFT's meaning: votes before weights, a mean over
// those that agree, 1 / density as the factor of what is kept. No recipe of models has these; their
// `linear` is the method of models without normalize.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

// Parameters of all of them.
struct OfAdapters {
  static constexpr Parameter kParameters[] = {kWeight, kDensity};
  static constexpr Card card(const char* name, const char* paper) {
    return {name, Base::zero, 1, kSources, "", "", "", "", paper, "", ""};
  }
};

// The largest elements of each: all for density >= 1, none for <= 0, else trunc(density * n).
template <class M>
struct PrunedAdapters : OfAdapters {
  using Lens = Trim;
  using Passes = List<Thresholds<M>>;
  static std::uint64_t kept(const Rule& rule, int s) { return top<M>(rule, s, 0); }
};

// Elements at random, divided by the density.
template <class M>
struct DroppedAdapters : OfAdapters {
  using Lens = Drop;
  using Passes = List<>;
  static const char* invalid(const Rule& rule) { return drawable<M>(rule); }
};

namespace detail {

// Facts of an adapter's source. `weight` is 1 where voices are unweighted.
template <class M, class V>
void begin_adapters(const Rule& rule, V facts, bool weighted) {
  bool rescaled = false;
  if constexpr (M::Lens::kMask == Mask::random) {
    begin_drop<M>(rule, facts);
    rescaled = thinned<M>(rule);
  } else {
    begin_trim<M>(rule, facts);
  }
  for (int s = 0; s < rule.sources; ++s) {
    const auto weight = static_cast<float>(Given<M>(rule).template at<"weight">(s));
    Survivors& survivors = facts.lens[s].survivors;
    survivors.weight = weighted ? static_cast<double>(weight) : 1.0;
    survivors.rescaled = rescaled ? 1 : 0;
    if (rescaled && thinned<M>(rule, s)) {
      survivors.factor = 1.0 / Given<M>(rule).template at<"density">(s);
    }
    survivors.settle();
  }
}
template <class M, class V>
void begin_adapter_election(const Rule& rule, V facts) {
  begin_adapters<M>(rule, facts, false);
  facts.whole->divided = 1;
  for (int s = 0; s < rule.sources; ++s) {
    facts.source[s].weight = static_cast<float>(Given<M>(rule).template at<"weight">(s));
  }
}

}  // namespace detail

struct AdapterMagnitudePrune : PrunedAdapters<AdapterMagnitudePrune> {
  static constexpr Card kCard = card("adapter_magnitude_prune", "");
  using Combine = Sum;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapters<AdapterMagnitudePrune>(rule, facts, true);
  }
};
struct AdapterTiesTotal : PrunedAdapters<AdapterTiesTotal> {
  static constexpr Card kCard = card("adapter_ties_total", "");
  using Combine = Elect<Vote::total>;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapter_election<AdapterTiesTotal>(rule, facts);
  }
};
struct AdapterTiesFrequency : PrunedAdapters<AdapterTiesFrequency> {
  static constexpr Card kCard = card("adapter_ties_frequency", "");
  using Combine = Elect<Vote::frequency>;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapter_election<AdapterTiesFrequency>(rule, facts);
  }
};
struct AdapterDareLinear : DroppedAdapters<AdapterDareLinear> {
  static constexpr Card kCard = card("adapter_dare_linear", kDarePaper);
  using Combine = Sum;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapters<AdapterDareLinear>(rule, facts, true);
  }
};
struct AdapterDareTiesTotal : DroppedAdapters<AdapterDareTiesTotal> {
  static constexpr Card kCard = card("adapter_dare_ties_total", kDarePaper);
  using Combine = Elect<Vote::total>;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapter_election<AdapterDareTiesTotal>(rule, facts);
  }
};
struct AdapterDareTiesFrequency : DroppedAdapters<AdapterDareTiesFrequency> {
  static constexpr Card kCard = card("adapter_dare_ties_frequency", kDarePaper);
  using Combine = Elect<Vote::frequency>;
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    detail::begin_adapter_election<AdapterDareTiesFrequency>(rule, facts);
  }
};

}  // namespace ingot::math
