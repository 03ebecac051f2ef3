// What a method is told of one output tensor.
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

// fp8 overflow on encode: the largest finite value, or NaN (e4m3) / infinity (e5m2).
enum class Overflow : std::uint8_t { saturate, propagate };

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
// recipe gave them; a method's begin() turns them into Facts.
struct Rule {
  std::int32_t method = -1;    // index into the closed list of list.hpp
  std::int32_t sources = 0;    // inputs without the base
  bool base = false;           // a base tensor precedes the sources
  std::uint64_t elements = 0;  // of the whole tensor
  // Length of the last and of the first dimension; 0: the tensor has one dimension.
  std::uint64_t width = 0, height = 0;
  std::uint64_t seed = 0;
  double globals[kGlobals] = {};  // by the method's own parameter order
  Sourced<Locals> locals;
  Sourced<std::uint64_t> stream;  // random stream of each source (numbers.md, "Randomness")
};

}  // namespace ingot::math
