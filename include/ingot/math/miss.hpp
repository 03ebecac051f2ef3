// Shards that repeat along a weight (Kang and Yin, "MiSS", 2024).
//
//   rows   value = value + m[i mod r][o]          mini: m[i mod r][o mod c]
//   bat    value = value + sum of row[k] m[k][b] + m[a][b], row, a, b within the r x r block
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

// Element b of a block's row, in double by rising k, rounded once by the caller. `shard` is r x r.
template <class Wide>
INGOT_HD Wide blocked(const Wide* row, const float* shard, std::uint64_t r, std::uint64_t a,
                      std::uint64_t b) {
  Wide sum = row[b];
  for (std::uint64_t k = 0; k < r; ++k) {
    sum = sum + row[k] * Wide(static_cast<double>(shard[k * r + b]));
  }
  return sum + Wide(static_cast<double>(shard[a * r + b]));
}

}  // namespace ingot::math
