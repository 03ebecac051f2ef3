// The selection kernels: sample, count against windows, histogram, match.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/key.hpp"
#include "ingot/math/linear.hpp"
#include "launch.cuh"
#include "pack.cuh"
#include "select.hpp"
#include "warp.cuh"

namespace ingot::gpu {

// The keys of a source's pack.
__device__ __forceinline__ void load_keys(const Tensor& tensor, unsigned source, std::uint64_t pack,
                                          const float (&base)[kPack],
                                          std::uint32_t (&keys)[kPack]) {
  float x[kPack];
  load(source_of(tensor, source), pack, x);
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) keys[j] = math::key(math::delta(x[j], base[j]));
}

__device__ __forceinline__ std::uint32_t key_of(const Tensor& tensor, unsigned source,
                                                std::uint64_t index) {
  const float base = tensor.base ? element(tensor.input[0], index) : 0.0F;
  return math::key(math::delta(element(source_of(tensor, source), index), base));
}

static __global__ void __launch_bounds__(256)
    sample_kernel(const Tensor* tensors, std::uint64_t runs, unsigned sources, std::uint32_t stride,
                  std::uint32_t* keys) {
  const Tensor& tensor = *tensors;
  const std::uint64_t each = runs * math::kSampled;
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t task = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       task < each * sources; task += step) {
    const std::uint64_t run = task % each / math::kSampled;
    const std::uint64_t window = run * stride;
    const std::uint64_t left = tensor.count - window;
    const std::uint32_t length = left < stride ? static_cast<std::uint32_t>(left) : stride;
    const std::uint32_t size = length < math::kSampled ? length : math::kSampled;
    const std::uint32_t i = static_cast<std::uint32_t>(task % math::kSampled);
    if (i >= size) continue;
    const std::uint64_t at = window + math::sampled(tensor.first + window, length, size) + i;
    keys[task] = key_of(tensor, static_cast<unsigned>(task / each), at);
  }
}

// Sources that a block counts at once: the base is read once for all of them.
inline constexpr unsigned kGroup = 4;

// What a block counts of one source.
enum Counter : unsigned { kAbove, kAtHigh, kAtLow, kBetween, kCounters };

static __global__ void __launch_bounds__(256)
    verify_kernel(const Tensor* tensors, std::uint64_t spans, unsigned sources,
                  const Window* windows, std::uint32_t limit, Census* census, Found* found,
                  Segment* segments) {
  // A byte per pack: its candidates.
  INGOT_SHARED(std::uint32_t[kGroup][kSpan / 32], marks);
  INGOT_SHARED(unsigned[kGroup * kCounters], counts);
  INGOT_SHARED(unsigned[32], warp_totals);
  INGOT_SHARED(unsigned, place);
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  const unsigned group = blockIdx.y * kGroup;
  const unsigned members = sources - group < kGroup ? sources - group : kGroup;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  for (std::uint64_t span = blockIdx.x; span < spans; span += gridDim.x) {
    for (unsigned i = threadIdx.x; i < kGroup * kCounters; i += blockDim.x) counts[i] = 0;
    unsigned tally[kGroup][kCounters] = {};
    for (unsigned p = threadIdx.x; p < kSpan / kPack; p += blockDim.x) {
      const std::uint64_t pack = span * (kSpan / kPack) + p;
      const unsigned bits = pack < all ? valid(pack, tensor.count) : 0U;
      float base[kPack];
      if (bits != 0) load_base(tensor, pack, base);
#pragma unroll
      for (unsigned m = 0; m < kGroup; ++m) {
        if (m >= members || windows[group + m].active == 0) continue;
        unsigned candidates = 0;
        if (bits != 0) {
          const std::uint32_t low = windows[group + m].low, high = windows[group + m].high;
          std::uint32_t keys[kPack];
          load_keys(tensor, group + m, pack, base, keys);
          unsigned above = 0, at_high = 0, at_low = 0;
#pragma unroll
          for (unsigned j = 0; j < kPack; ++j) {
            if (keys[j] > high) above |= 1U << j;
            if (keys[j] == high) at_high |= 1U << j;
            if (keys[j] == low) at_low |= 1U << j;
            if (keys[j] > low && keys[j] < high) candidates |= 1U << j;
          }
          candidates &= bits;
          tally[m][kAbove] += static_cast<unsigned>(__popc(above & bits));
          tally[m][kAtHigh] += static_cast<unsigned>(__popc(at_high & bits));
          tally[m][kAtLow] += static_cast<unsigned>(__popc(at_low & bits));
          tally[m][kBetween] += static_cast<unsigned>(__popc(candidates));
        }
        reinterpret_cast<std::uint8_t*>(marks[m])[p] = static_cast<std::uint8_t>(candidates);
      }
    }
    __syncthreads();
#pragma unroll
    for (unsigned m = 0; m < kGroup; ++m)
#pragma unroll
      for (unsigned c = 0; c < kCounters; ++c) {
        const unsigned sum = warp_sum(tally[m][c]);
        if (lane == 0 && sum != 0) atomicAdd(&counts[m * kCounters + c], sum);
      }
    __syncthreads();

    for (unsigned m = 0; m < members; ++m) {
      const Window window = windows[group + m];
      if (window.active == 0) continue;
      const unsigned* count = counts + m * kCounters;
      Census& total = census[group + m];
      const unsigned candidates = count[kBetween];
      if (threadIdx.x == 0) {
        const bool point = window.low == window.high;
        if (count[kAbove] != 0) atomicAdd(&total.above, count[kAbove]);
        if (count[kAtHigh] != 0) atomicAdd(&total.at_high, count[kAtHigh]);
        if (count[kAtLow] != 0 && !point) atomicAdd(&total.at_low, count[kAtLow]);
        place = candidates != 0 ? atomicAdd(&total.between, candidates) : 0U;
        if (!point) segments[(group + m) * spans + span] = {place, candidates};
      }
      if (candidates == 0) continue;
      // In order of their indices: each word's candidates come behind those of all words before it.
      unsigned before = 0;
      for (unsigned row = 0; row < kSpan / 32; row += blockDim.x) {
        const unsigned w = row + threadIdx.x;
        const std::uint32_t word = w < kSpan / 32 ? marks[m][w] : 0U;
        const unsigned mine = static_cast<unsigned>(__popc(word));
        const unsigned ahead = warp_before(mine);
        if (lane == 31) warp_totals[warp] = ahead + mine;
        __syncthreads();
        unsigned at = place + before + ahead;
        for (unsigned other = 0; other < blockDim.x / 32; ++other) {
          if (other < warp) at += warp_totals[other];
          before += warp_totals[other];
        }
        for (std::uint32_t left = word; left != 0; left &= left - 1, ++at) {
          if (at >= limit) break;
          const unsigned bit = static_cast<unsigned>(__ffs(static_cast<int>(left))) - 1;
          const std::uint64_t index = span * kSpan + w * 32 + bit;
          found[std::uint64_t{group + m} * limit + at] = {key_of(tensor, group + m, index),
                                                          static_cast<std::uint32_t>(index)};
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

static __global__ void __launch_bounds__(256)
    histogram_kernel(const Tensor* tensors, std::uint64_t rows, unsigned source, bool fine,
                     std::uint32_t prefix, unsigned* bins) {
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const std::uint64_t pack = row * blockDim.x + threadIdx.x;
    const unsigned bits = pack < all ? valid(pack, tensor.count) : 0U;
    std::uint32_t keys[kPack] = {};
    if (bits != 0) {
      float base[kPack];
      load_base(tensor, pack, base);
      load_keys(tensor, source, pack, base, keys);
    }
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) {
      const bool counted = (bits >> j & 1U) != 0 && (!fine || keys[j] >> 16 == prefix);
      const unsigned bin = !counted ? ~0U : fine ? keys[j] & 0xffffU : keys[j] >> 16;
      // Many elements share a bin: one lane adds for all that have the same.
      const unsigned same = __match_any_sync(0xffffffffU, bin);
      const bool first = (same & ((1U << threadIdx.x % 32) - 1)) == 0;
      if (counted && first) atomicAdd(&bins[bin], static_cast<unsigned>(__popc(same)));
    }
  }
}

static __global__ void __launch_bounds__(256)
    match_kernel(const Tensor* tensors, unsigned source, std::uint32_t key, std::uint8_t* out) {
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t pack = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; pack < all;
       pack += step) {
    float base[kPack];
    std::uint32_t keys[kPack];
    load_base(tensor, pack, base);
    load_keys(tensor, source, pack, base, keys);
    unsigned bits = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      if (keys[j] == key) bits |= 1U << j;
    out[pack] = static_cast<std::uint8_t>(bits & valid(pack, tensor.count));
  }
}

}  // namespace ingot::gpu
