// Sums over a tensor in the fixed shape of math/fold.hpp.
#pragma once

#include <cstdint>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// Enqueues sums[term * ceil(count / kTile) + tile] of a job's inputs, after its mask where a term
// asks for it. All pointers are device memory; the job's output is not touched. Does not wait.
void fold(const Job* job, std::uint64_t count, const math::Term* terms, unsigned term_count,
          double* sums, const Shape& shape, const Stream& stream);

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
