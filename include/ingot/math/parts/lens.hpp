// Lenses: what a formula sees of one source.
//
// keeps() is the definition: whether the mask lets an element through, from its task vector d, in
// f32, and its index. Loops use faster forms that decide the same: piece() and passes() for a run
// of elements, chance() for masks that draw.
#pragma once

#include "ingot/math/key.hpp"
#include "ingot/math/method.hpp"
#include "ingot/math/parts/gain.hpp"
#include "ingot/math/philox.hpp"

namespace ingot::math {

// How loops evaluate a mask.
enum class Mask : std::uint8_t {
  none,    // everything passes
  bound,   // a test of the magnitude: piece(), passes()
  random,  // a draw per element: chance()
};

// What a draw is compared with.
struct Chance {
  std::uint64_t seed = 0, stream = 0;
  std::uint64_t keep = 0;  // probability times 2^48, rounded down
};

// The source as it is.
struct Value {
  static constexpr bool kDelta = false;  // sees the source, not its difference from the base
  static constexpr bool kGain = false;   // nothing is multiplied
  static constexpr Mask kMask = Mask::none;
  struct Facts {};
  INGOT_HD static bool all(const Facts&) { return true; }
  INGOT_HD static bool keeps(const Facts&, float, std::uint64_t) { return true; }
  INGOT_HD static Gain gain(const Facts&) { return {}; }
  static bool tell(const Rule&, int, Facts&, Teller&) { return true; }
};

// The source less the base.
struct Delta : Value {
  static constexpr bool kDelta = true;
};

// The source less the base, times its weight.
struct Weighted : Delta {
  static constexpr bool kGain = true;
  struct Facts {
    Gain gain;
  };
  INGOT_HD static bool all(const Facts&) { return true; }
  INGOT_HD static bool keeps(const Facts&, float, std::uint64_t) { return true; }
  INGOT_HD static Gain gain(const Facts& facts) { return facts.gain; }
  static bool tell(const Rule&, int, Facts&, Teller&) { return true; }
};

// What rescaled sources share: the factor of the survivors, and the gain that is made of it.
struct Survivors {
  Gain gain;            // factor times weight; the factor alone where unweighted terms vote
  double factor = 1.0;  // restores the L1 norm, or divides by the density
  double weight = 1.0;  // the rounded one, by whose sum a normalized merge divides
  std::uint8_t rescaled = 0;

  void settle() { gain = math::gain(factor * weight); }
};

// The k largest task vectors; ties to the lowest index.
struct Trim {
  static constexpr std::uint64_t kEvery = ~std::uint64_t{0};
  static constexpr bool kDelta = true;
  static constexpr bool kGain = true;
  static constexpr Mask kMask = Mask::bound;
  struct Facts {
    // Key of the last one that is kept, and, of those at the threshold, the last index that is. 0
    // and kEvery keep all; 0 and 0 is what will be measured.
    std::uint32_t threshold = 0;
    std::uint64_t cut = kEvery;
    Survivors survivors;
  };
  struct Piece {
    std::int32_t least;
  };

  INGOT_HD static bool all(const Facts& f) { return f.threshold == 0 && f.cut == kEvery; }
  INGOT_HD static bool keeps(const Facts& f, float d, std::uint64_t index) {
    return selected(key(d), f.threshold, index, f.cut);
  }
  // The test of the elements from `first` on; shortens `n` to as many as it is right for.
  INGOT_HD static Piece piece(const Facts& f, std::uint64_t first, std::uint32_t& n) {
    if (first <= f.cut && f.cut - first < n - 1) n = static_cast<std::uint32_t>(f.cut - first) + 1;
    return {static_cast<std::int32_t>(bound(f.threshold, first, f.cut))};
  }
  // True for a piece that keeps nothing, whatever there is.
  INGOT_HD static bool empty(Piece p) { return p.least > static_cast<std::int32_t>(kNanKey); }
  // Keys and bounds have 31 bits; signed comparison is the cheap one. The bound is at most kNanKey,
  // so a NaN reaches it whatever its payload, and its key need not be made canonical.
  INGOT_HD static bool passes(Piece p, float d) {
    return static_cast<std::int32_t>(bits(d) & 0x7fffffffu) >= p.least;
  }
  INGOT_HD static Gain gain(const Facts& f) { return f.survivors.gain; }

  static void keep_none(Facts& f) { f.threshold = kNoKey; }
  static bool tell(const Rule&, int source, Facts& f, Teller& teller) {
    bool told = true;
    if (!all(f) && f.threshold != kNoKey) {
      auto shown = static_cast<std::int32_t>(f.threshold);
      told = teller.key("threshold", source, shown) && teller.count("cut", source, f.cut);
      f.threshold = static_cast<std::uint32_t>(shown);
    }
    if (f.survivors.rescaled != 0) {
      told = told && teller.number("factor", source, -1, f.survivors.factor);
      f.survivors.settle();
    }
    return told;
  }
};

// Elements kept at random.
struct Drop {
  static constexpr bool kDelta = true;
  static constexpr bool kGain = true;
  static constexpr Mask kMask = Mask::random;
  struct Facts {
    Chance chance;
    std::uint8_t all = 1;  // nothing is dropped
    Survivors survivors;
  };

  INGOT_HD static bool all(const Facts& f) { return f.all != 0; }
  INGOT_HD static Chance chance(const Facts& f) { return f.chance; }
  INGOT_HD static bool keeps(const Facts& f, float, std::uint64_t index) {
    return f.all != 0 || keep(f.chance.seed, f.chance.stream, index, f.chance.keep);
  }
  INGOT_HD static Gain gain(const Facts& f) { return f.survivors.gain; }
  static bool tell(const Rule&, int source, Facts& f, Teller& teller) {
    if (f.survivors.rescaled == 0) return true;
    const bool told = teller.number("factor", source, -1, f.survivors.factor);
    f.survivors.settle();
    return told;
  }
};

// What a lens makes of a difference (or a value) in T.
template <class Lens, bool split, class T>
INGOT_HD T seen(T d, bool kept, Gain gain) {
  if constexpr (Lens::kGain) {
    return survivor<split>(d, kept, gain);
  } else if constexpr (Lens::kMask != Mask::none) {
    return kept ? d : T{0};
  } else {
    return d;
  }
}

}  // namespace ingot::math
