// Low-rank products on the CPU, compiled once per instruction set as tile.cpp is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/tile.hpp"

namespace ingot::cpu {

struct LowRank {
  const float* a = nullptr;  // rank x width
  const float* b = nullptr;  // height x rank
  std::uint32_t rank = 0;
  std::uint64_t width = 0;
  float scale = 1.0F;
};

// values = elements [first, first + count) decoded from `own` (data null: zeros), plus each
// product.
using Amend = void (*)(const Input& own, const LowRank* products, std::size_t number,
                       std::uint64_t first, std::uint64_t count, float* values);

namespace v2 {
extern const Amend amend;
}
namespace v3 {
extern const Amend amend;
}
namespace v4 {
extern const Amend amend;
}

}  // namespace ingot::cpu
