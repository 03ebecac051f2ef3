// Between f32 and f64, for decompositions: the products with a large matrix are of f32, all that is
// thin is double. All pointers are device memory. Each enqueues and does not wait.
#pragma once

#include <cstdint>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// to[i] = from[i], rounded.
void narrow(const double* from, std::uint64_t count, float* to, const Shape& shape,
            const Stream& stream);

// sum[i] += from[i].
void widen(const float* from, std::uint64_t count, double* sum, const Shape& shape,
           const Stream& stream);

// Adds the squares of `count` values to kSums sums, in an order that depends on `count` alone.
inline constexpr unsigned kSums = 64;
void squares(const float* values, std::uint64_t count, double* sums, const Stream& stream);

}  // namespace ingot::gpu
