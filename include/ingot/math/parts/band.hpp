// The lens of methods that drop a task vector's largest elements as well as its smallest.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

// Of the task vectors by falling magnitude, equal ones by index, those that come behind the first
// `top` and are among the first `top + k`: one selection less another.
struct Band {
  static constexpr std::uint64_t kEvery = ~std::uint64_t{0};
  static constexpr bool kDelta = true;
  static constexpr bool kGain = true;
  static constexpr Mask kMask = Mask::bound;
  struct Edge {
    std::uint32_t threshold;  // key of the last one that is selected
    std::uint64_t cut;        // of those at the threshold, the last index
    std::uint8_t measured = 0;
  };
  struct Facts {
    Edge outer{0, kEvery};       // selects what is kept and what is above it; at first all
    Edge inner{kNoKey, kEvery};  // selects what is above; at first nothing
    Survivors survivors;
  };
  struct Piece {
    std::int32_t least, most;
  };

  INGOT_HD static bool all(const Facts& f) {
    return f.outer.threshold == 0 && f.outer.cut == kEvery && f.inner.threshold == kNoKey;
  }
  INGOT_HD static bool keeps(const Facts& f, float d, std::uint64_t index) {
    const std::uint32_t k = key(d);
    return selected(k, f.outer.threshold, index, f.outer.cut) &&
           !selected(k, f.inner.threshold, index, f.inner.cut);
  }
  // The test of the elements from `first` on; shortens `n` to as many as it is right for.
  INGOT_HD static Piece piece(const Facts& f, std::uint64_t first, std::uint32_t& n) {
    shorten(f.outer, first, n);
    shorten(f.inner, first, n);
    const std::uint32_t least = bound(f.outer.threshold, first, f.outer.cut);
    const auto most = static_cast<std::int32_t>(bound(f.inner.threshold, first, f.inner.cut)) - 1;
    // A NaN's bits are compared, whatever its payload, where its key is meant.
    return {static_cast<std::int32_t>(least),
            most >= static_cast<std::int32_t>(kNanKey) ? 0x7fffffff : most};
  }
  INGOT_HD static bool empty(Piece p) {
    return p.least > static_cast<std::int32_t>(kNanKey) || p.most < p.least;
  }
  // Only of pieces that are not empty(), so that `least` is at most kNanKey.
  INGOT_HD static bool passes(Piece p, float d) {
    const auto k = static_cast<std::int32_t>(bits(d) & 0x7fffffffu);
    return k >= p.least && k <= p.most;
  }
  INGOT_HD static Gain gain(const Facts& f) { return f.survivors.gain; }

  static void keep_none(Facts& f) { f.outer = {kNoKey, kEvery}; }
  static bool tell(const Rule&, int source, Facts& f, Teller& teller) {
    bool told = tell(source, f.outer, "threshold", "cut", teller);
    told = tell(source, f.inner, "outlier_threshold", "outlier_cut", teller) && told;
    if (f.survivors.rescaled != 0) {
      told = teller.number("factor", source, -1, f.survivors.factor) && told;
      f.survivors.settle();
    }
    return told;
  }

 private:
  INGOT_HD static void shorten(const Edge& edge, std::uint64_t first, std::uint32_t& n) {
    if (first <= edge.cut && edge.cut - first < n - 1) {
      n = static_cast<std::uint32_t>(edge.cut - first) + 1;
    }
  }
  static bool tell(int source, Edge& edge, const char* threshold, const char* cut, Teller& teller) {
    if (edge.measured == 0) return true;
    auto shown = static_cast<std::int32_t>(edge.threshold);
    const bool told = teller.key(threshold, source, shown) && teller.count(cut, source, edge.cut);
    edge.threshold = static_cast<std::uint32_t>(shown);
    return told;
  }
};

// Both thresholds of each source, of a method that keeps the kept() largest behind the first
// outliers() (lens Band).
template <class M>
struct Edges {
  static constexpr Pass kPass = Pass::order;
  using Key = Magnitude;
  template <class V>
  [[nodiscard]] static bool wanted(const Rule& rule, const V&) {
    std::uint64_t ranks[kRanks];
    for (int s = 0; s < rule.sources; ++s) {
      if (of(rule, s, ranks) > 0) return true;
    }
    return false;
  }
  [[nodiscard]] static int streams(const Rule& rule) { return rule.sources; }
  [[nodiscard]] static int source(int stream) { return stream; }
  template <class V>
  [[nodiscard]] static int ranks(const Rule& rule, const V&, int s, std::uint64_t* ranks) {
    return of(rule, s, ranks);
  }
  template <class V>
  static void take(const Rule& rule, int s, const Selection* found, V facts) {
    Band::Facts& lens = facts.lens[s];
    int at = 0;
    if (cuts_inner(rule, s)) set(lens.inner, found[at++]);
    if (cuts_outer(rule, s)) set(lens.outer, found[at]);
  }
  // What will be measured, and what keeps nothing.
  template <class V>
  static void begin(const Rule& rule, V facts) {
    for (int s = 0; s < rule.sources; ++s) {
      if (M::kept(rule, s) == 0) Band::keep_none(facts.lens[s]);
      if (cuts_inner(rule, s)) facts.lens[s].inner = {0, 0, 1};
      if (cuts_outer(rule, s)) facts.lens[s].outer = {0, 0, 1};
    }
  }

 private:
  [[nodiscard]] static bool cuts_inner(const Rule& rule, int s) {
    return M::kept(rule, s) != 0 && M::outliers(rule, s) != 0;
  }
  [[nodiscard]] static bool cuts_outer(const Rule& rule, int s) {
    const std::uint64_t k = M::kept(rule, s);
    return k != 0 && M::outliers(rule, s) + k < rule.elements;
  }
  [[nodiscard]] static int of(const Rule& rule, int s, std::uint64_t* ranks) {
    int at = 0;
    if (cuts_inner(rule, s)) ranks[at++] = M::outliers(rule, s);
    if (cuts_outer(rule, s)) ranks[at++] = M::outliers(rule, s) + M::kept(rule, s);
    return at;
  }
  static void set(Band::Edge& edge, const Selection& found) {
    edge = {static_cast<std::uint32_t>(found.threshold), found.cut, 1};
  }
};

}  // namespace ingot::math
