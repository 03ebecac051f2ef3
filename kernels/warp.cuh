// Sums and maxima of integers over a warp, all 32 lanes taking part.
#pragma once

#include <cuda_runtime.h>

namespace ingot::gpu {

// The instruction of 8.0 and later does it at once; before, five exchanges do.
__device__ __forceinline__ unsigned exchange_sum(unsigned x) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) x += __shfl_xor_sync(0xffffffffU, x, flip);
  return x;
}
__device__ __forceinline__ unsigned exchange_max(unsigned x) {
#pragma unroll
  for (int flip = 16; flip > 0; flip /= 2) {
    const unsigned other = __shfl_xor_sync(0xffffffffU, x, flip);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ unsigned warp_sum(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return exchange_sum(x);
#else
  return __reduce_add_sync(0xffffffffU, x);
#endif
}
__device__ __forceinline__ unsigned warp_max(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return exchange_max(x);
#else
  return __reduce_max_sync(0xffffffffU, x);
#endif
}

// Sum of the lanes before this one.
__device__ __forceinline__ unsigned warp_before(unsigned x) {
  const unsigned lane = threadIdx.x % 32;
  unsigned sum = x;
#pragma unroll
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const unsigned other = __shfl_up_sync(0xffffffffU, sum, delta);
    if (lane >= delta) sum += other;
  }
  return sum - x;
}

}  // namespace ingot::gpu
