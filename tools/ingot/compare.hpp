// How alike two tensors are.
#pragma once

#include <cstdint>

#include "sweep.hpp"

namespace ingot::tool {

struct Likeness {
  std::uint64_t elements = 0;
  std::uint64_t differing = 0;   // in bits where the types agree, else in value
  std::uint64_t not_finite = 0;  // infinite or NaN on either side: left out of all that follows
  // Steps between neighbouring numbers of the common type; only where that is a float.
  std::uint64_t ulps = 0;  // elements measured
  std::uint64_t max_ulp = 0;
  double sum_ulp = 0;
  double max_difference = 0;
  double aa = 0, bb = 0, ab = 0, dd = 0;  // sums of squares, products, squared differences

  // Adds the current piece of two sweeps over tensors of one shape.
  void add(Dtype left, Sweep& a, Dtype right, Sweep& b);
  // Adds another tensor's.
  void add(const Likeness& other);

  [[nodiscard]] double mean_ulp() const;
  // ||a - b|| / ||a||; 0 where both are zero, infinite where only a is.
  [[nodiscard]] double relative() const;
  // 1 where both are zero, 0 where one is.
  [[nodiscard]] double cosine() const;
};

// Number of steps from a to b over the floating-point numbers of `width` bits, given as bit
// patterns.
[[nodiscard]] std::uint64_t ulp_distance(std::uint64_t a, std::uint64_t b,
                                         std::uint32_t width) noexcept;

}  // namespace ingot::tool
