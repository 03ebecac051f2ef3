// The selection kernels: sample, count against brackets, histogram, match. `Keys` says of what
// (keys.cuh).
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/key.hpp"
#include "keys.cuh"
#include "launch.cuh"
#include "select.hpp"
#include "warp.cuh"

namespace ingot::gpu {

template <class Keys>
static __global__ void __launch_bounds__(256)
    sample_kernel(const Tensor* tensors, std::uint64_t runs, const int* sources, unsigned streams,
                  std::uint32_t stride, std::int32_t* keys) {
  const Tensor& tensor = *tensors;
  const std::uint64_t each = runs * math::kSampled;
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t task = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       task < each * streams; task += step) {
    const std::uint64_t run = task % each / math::kSampled;
    const std::uint64_t window = run * stride;
    const std::uint64_t left = tensor.count - window;
    const std::uint32_t length = left < stride ? static_cast<std::uint32_t>(left) : stride;
    const std::uint32_t size = length < math::kSampled ? length : math::kSampled;
    const std::uint32_t i = static_cast<std::uint32_t>(task % math::kSampled);
    if (i >= size) continue;
    const std::uint64_t at = window + math::sampled(tensor.first + window, length, size) + i;
    keys[task] = Keys::of(tensor, static_cast<unsigned>(sources[task / each]), at);
  }
}

// Brackets that a block counts at once: the base is read once for all of them, and the keys of a
// stream once for brackets that stand together.
inline constexpr unsigned kGroup = 4;

// What a block counts for one bracket.
enum Counter : unsigned { kAbove, kAtHigh, kAtLow, kBetween, kCounters };

template <class Keys>
static __global__ void __launch_bounds__(256, Keys::kBlocks)
    verify_kernel(const Tensor* tensors, std::uint64_t spans, const Bracket* brackets,
                  unsigned bracket_count, std::uint32_t limit, Census* census, Candidate* found,
                  Segment* segments) {
  // A byte per pack: its candidates.
  INGOT_SHARED(std::uint32_t[kGroup][kSpan / 32], marks);
  INGOT_SHARED(unsigned[kGroup * kCounters], counts);
  INGOT_SHARED(unsigned[32], warp_totals);
  INGOT_SHARED(unsigned, place);
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  const unsigned group = blockIdx.y * kGroup;
  const unsigned members = bracket_count - group < kGroup ? bracket_count - group : kGroup;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  for (std::uint64_t span = blockIdx.x; span < spans; span += gridDim.x) {
    for (unsigned i = threadIdx.x; i < kGroup * kCounters; i += blockDim.x) counts[i] = 0;
    unsigned tally[kGroup][kCounters] = {};
    for (unsigned p = threadIdx.x; p < kSpan / kPack; p += blockDim.x) {
      const std::uint64_t pack = span * (kSpan / kPack) + p;
      const unsigned bits = pack < all ? valid(pack, tensor.count) : 0U;
      float base[kPack] = {};
      std::int32_t keys[kPack] = {};
      if (bits != 0) load_base(tensor, pack, base);
#pragma unroll
      for (unsigned m = 0; m < kGroup; ++m) {
        if (m >= members) continue;
        unsigned candidates = 0;
        if (bits != 0) {
          const Bracket& bracket = brackets[group + m];
          const std::int32_t low = bracket.low, high = bracket.high;
          if (m == 0 || bracket.stream != brackets[group + m - 1].stream)
            Keys::load(tensor, static_cast<unsigned>(bracket.stream), pack, base, keys);
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
      const Bracket bracket = brackets[group + m];
      const unsigned* count = counts + m * kCounters;
      Census& total = census[group + m];
      const unsigned candidates = count[kBetween];
      if (threadIdx.x == 0) {
        const bool point = bracket.low == bracket.high;
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
          found[std::uint64_t{group + m} * limit + at] = {
              Keys::of(tensor, static_cast<unsigned>(bracket.stream), index),
              static_cast<std::uint32_t>(index)};
        }
        __syncthreads();
      }
    }
    __syncthreads();
  }
}

template <class Keys>
static __global__ void __launch_bounds__(256)
    histogram_kernel(const Tensor* tensors, std::uint64_t rows, unsigned source, bool fine,
                     std::int32_t prefix, unsigned* bins) {
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const std::uint64_t pack = row * blockDim.x + threadIdx.x;
    const unsigned bits = pack < all ? valid(pack, tensor.count) : 0U;
    std::int32_t keys[kPack] = {};
    if (bits != 0) {
      float base[kPack];
      load_base(tensor, pack, base);
      Keys::load(tensor, source, pack, base, keys);
    }
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) {
      const bool counted = (bits >> j & 1U) != 0 && (!fine || keys[j] >> 16 == prefix);
      const unsigned bin = !counted ? ~0U
                           : fine   ? static_cast<unsigned>(keys[j]) & 0xffffU
                                    : static_cast<unsigned>((keys[j] >> 16) + 32768);
      // Many elements share a bin: one lane adds for all that have the same.
      const unsigned same = __match_any_sync(0xffffffffU, bin);
      const bool first = (same & ((1U << threadIdx.x % 32) - 1)) == 0;
      if (counted && first) atomicAdd(&bins[bin], static_cast<unsigned>(__popc(same)));
    }
  }
}

template <class Keys>
static __global__ void __launch_bounds__(256)
    match_kernel(const Tensor* tensors, unsigned source, std::int32_t key, std::uint8_t* out) {
  const Tensor& tensor = *tensors;
  const std::uint64_t all = packs(tensor.count);
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t pack = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; pack < all;
       pack += step) {
    float base[kPack];
    std::int32_t keys[kPack];
    load_base(tensor, pack, base);
    Keys::load(tensor, source, pack, base, keys);
    unsigned bits = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      if (keys[j] == key) bits |= 1U << j;
    out[pack] = static_cast<std::uint8_t>(bits & valid(pack, tensor.count));
  }
}

}  // namespace ingot::gpu
