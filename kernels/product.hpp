// Low-rank products on top of stored tensors.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// B times A times a scale. Of B only rows from `top` on are in memory.
struct LowRank {
  const float* a = nullptr;  // rank x width
  const float* b = nullptr;
  std::uint64_t top = 0;
  std::uint32_t rank = 0;
  float scale = 1.0F;
};

// Consecutive elements of a tensor and the products that are added to them in turn.
struct Amendment {
  Operand own;  // elements from `first` on; no data: zeros
  const LowRank* products = nullptr;
  unsigned number = 0;
  std::uint64_t width = 1;  // of the tensor and of every product
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  float* values = nullptr;
};

// Enqueues it; `amendment` and its products are in device memory, `shape` bounds the grid. Does not
// wait.
void amend(const Amendment* amendment, std::uint64_t first, std::uint64_t count,
           std::uint64_t width, const Shape& shape, const Stream& stream);

}  // namespace ingot::gpu
