// What a method is told (Rule, on the host) and what is known when its formula runs (Facts: plain
// data, the same on host and device).
#pragma once

#include <cstddef>

#include "ingot/math/target.hpp"

namespace ingot::math {

inline constexpr int kSources = 64;  // most inputs of one output tensor, the base not counted
inline constexpr int kGlobals = 8;   // most global parameters of a method
inline constexpr int kLocals = 4;    // most per-source parameters of a method

// True for 0 and for what f32 holds with all its digits: a recipe's number that becomes 0,
// subnormal or infinite would be another number.
[[nodiscard]] inline bool single(double x) {
  const double size = x < 0.0 ? -x : x;
  return x == 0.0 || (size >= 0x1p-126 && size <= 0x1.fffffep127);
}

// How a task vector is thinned before it is combined.
enum class Mask : std::uint8_t { none, select, random };

// How the majority sign of an element is found (design §4). `weighted` votes after weighting, by
// total; `total` and `frequency` vote before weighting.
enum class Vote : std::uint8_t { none, weighted, total, frequency };

// What the disjoint mean is divided by: nothing, the weights that agree (1 where they cancel to
// exactly zero), or the number of sources that agree (at least 1).
enum class Divisor : std::uint8_t { none, weight, count };

// What survivors of a mask are multiplied by: 1, the ratio of the L1 norms before and after
// (mergekit 2.6), or 1 / density (peft 2.8).
enum class Rescale : std::uint8_t { none, norm, density };

// fp8 overflow on encode: the largest finite value, or NaN (e4m3) / infinity (e5m2).
enum class Overflow : std::uint8_t { saturate, propagate };

enum class Formula : std::uint8_t { linear, slerp, scale, sum, consensus };

// Values by source. Only those up to the last one written take memory, the others are zeros: a plan
// has a rule for every tensor, and most have a few sources of the kSources they may have.
template <class T>
class Sourced {
 public:
  Sourced() = default;
  Sourced(const Sourced& other) { grow(other.count_, other.values_); }
  Sourced(Sourced&& other) noexcept : values_(other.values_), count_(other.count_) {
    other.values_ = nullptr;
    other.count_ = 0;
  }
  Sourced& operator=(Sourced other) noexcept {
    T* const values = values_;
    const std::size_t count = count_;
    values_ = other.values_;
    count_ = other.count_;
    other.values_ = values;
    other.count_ = count;
    return *this;
  }
  ~Sourced() { delete[] values_; }

  template <class Index>
  [[nodiscard]] T& operator[](Index source) {
    const auto at = static_cast<std::size_t>(source);
    if (at >= count_) grow(at + 1, values_);
    return values_[at];
  }
  template <class Index>
  [[nodiscard]] const T& operator[](Index source) const {
    static constexpr T kNone{};
    const auto at = static_cast<std::size_t>(source);
    return at < count_ ? values_[at] : kNone;
  }

 private:
  // As many values as `count`, those there are taken from `from`.
  void grow(std::size_t count, const T* from) {
    T* const values = count > 0 ? new T[count]{} : nullptr;
    const std::size_t known = from == values_ && count_ < count ? count_ : count;
    for (std::size_t i = 0; i < known; ++i) values[i] = from[i];
    delete[] values_;
    values_ = values;
    count_ = count;
  }

  T* values_ = nullptr;
  std::size_t count_ = 0;
};

// The parameters of one source.
struct Locals {
  double values[kLocals] = {};

  template <class Index>
  [[nodiscard]] double& operator[](Index parameter) {
    return values[parameter];
  }
  template <class Index>
  [[nodiscard]] const double& operator[](Index parameter) const {
    return values[parameter];
  }
};

// One output tensor's arithmetic after every parameter is resolved. Values are doubles as the
// recipe gave them; a method's settle() turns them into Facts.
struct Rule {
  std::int32_t method = -1;    // index into the closed list of methods.hpp
  std::int32_t sources = 0;    // inputs without the base
  bool base = false;           // a base tensor precedes the sources
  std::uint64_t elements = 0;  // of the whole tensor
  std::uint64_t seed = 0;
  double globals[kGlobals] = {};  // by the method's own parameter order
  Sourced<Locals> locals;
  Sourced<std::uint64_t> stream;  // random stream of each source (numbers.md, "Randomness")
};

// What survivors of a mask are multiplied by: an f32 number, and what its rounding left off,
// rounded to f32. Without the rest a whole tensor would carry the rounding of a factor.
struct Gain {
  float whole = 1.0F;
  float rest = 0.0F;

  INGOT_HD bool split() const { return rest != 0.0F; }
};

// What one source brings to an element.
struct Source {
  float weight = 1.0F;
  float factor = 1.0F;          // of rescaling, to report; 1 unless Facts::rescaled
  Gain gain;                    // weight times factor; the factor alone where unweighted terms vote
  std::uint32_t threshold = 0;  // magnitude key of the last kept rank (Mask::select)
  std::uint32_t all = 1;        // 1: the mask keeps every element
  std::uint64_t cut = 0;        // ties at the threshold are kept up to this index, inclusive
  std::uint64_t stream = 0;
  std::uint64_t keep = 0;  // probability times 2^48, rounded down
};

// Everything a formula needs beside the elements: computed once per tensor, on the host.
struct Facts {
  std::int32_t sources = 0;
  Formula formula = Formula::linear;
  Mask mask = Mask::none;
  Vote vote = Vote::none;
  Divisor divisor = Divisor::none;
  bool rescaled = false;
  std::uint64_t seed = 0;
  float scalar[kGlobals] = {};  // the formula's own, named in its header: a divisor, lambda, ...
  Source source[kSources];
};

}  // namespace ingot::math
