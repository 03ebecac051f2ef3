// Sums over a tensor or its lines in the fixed shapes of math/fold.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// Enqueues some groups of a fold or lines pass, `pass` being its number among its method's: sum n
// at
//   sums[n * places + place], places = fold_places() of the tensor's count elements.
// `sums` counts from the first sum of the first group; all pointers are device memory. Does not
// wait.
struct Folding {
  int method = 0, pass = 0;
  const Tensor* tensor = nullptr;
  std::uint64_t first = 0, count = 0;  // its elements
  math::LineShape shape;               // of a lines pass
};
void fold(const Folding& of, const math::Group* groups, unsigned group_count, double* sums,
          const Shape& shape, const Stream& stream);

// Tiles, segments of rows or columns that a pass over these elements has a sum for.
[[nodiscard]] std::uint64_t fold_places(const Folding& of);

// All groups of a pass, their sums counted from 0.
[[nodiscard]] std::vector<math::Group> groups(int method, int pass, const math::Rule& rule);
// How many sums a group has.
[[nodiscard]] unsigned group_sums(int method, int pass, const math::Group& group);

// What a device makes of arithmetic that a wrong flag would change: kCanaryInput in,
// kCanaryOutput out. Does not wait.
inline constexpr unsigned kCanaries = 6;
inline constexpr std::uint32_t kCanaryInput[kCanaries] = {
    0x3f800800,  // 1 + 2^-12
    0x3f801000,  // 1 + 2^-11
    0x00000001,  // the smallest subnormal
    0x3f800000,  // 1
    0x40400000,  // 3
    0x40000000,  // 2
};
inline constexpr std::uint32_t kCanaryOutput[kCanaries] = {
    0x00000000,  // x * x - y, two roundings: contraction would leave 2^-24
    0x33800000,  // fused, which is asked for: 2^-24
    0x00000001,  // subnormal * 1
    0x3eaaaaab,  // 1 / 3
    0x3fb504f3,  // sqrt(2)
    0x00000002,  // subnormal + subnormal
};
void canary(const float* in, float* out, const Stream& stream);

}  // namespace ingot::gpu
