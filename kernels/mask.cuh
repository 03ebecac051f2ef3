// What a lens shows of a pack of one source.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/parts/lens.hpp"
#include "pack.cuh"

namespace ingot::gpu {

// The elements of a pack of differences (or values) that the lens lets through, as bits. `first` is
// the pack's index in the whole tensor.
template <class Lens>
__device__ __forceinline__ unsigned kept(const typename Lens::Facts& facts, std::uint64_t first,
                                         const float (&d)[kPack]) {
  constexpr unsigned all = (1U << kPack) - 1;
  if constexpr (Lens::kMask == math::Mask::none) {
    return all;
  } else {
    if (Lens::all(facts)) return all;
    if constexpr (Lens::kMask == math::Mask::random) {
      const math::Chance chance = Lens::chance(facts);
      return math::keep8(chance.seed, chance.stream, first, chance.keep);
    } else {
      std::uint32_t run = kPack;
      const auto piece = Lens::piece(facts, first, run);
      unsigned bits = 0;
      if (run < kPack) {  // the test changes within this pack: seldom
#pragma unroll
        for (unsigned j = 0; j < kPack; ++j)
          if (Lens::keeps(facts, d[j], first + j)) bits |= 1U << j;
      } else if (!Lens::empty(piece)) {
#pragma unroll
        for (unsigned j = 0; j < kPack; ++j)
          if (Lens::passes(piece, d[j])) bits |= 1U << j;
      }
      return bits;
    }
  }
}

// Replaces a pack of a source by what a formula sees of it. Returns the elements that the mask let
// through.
template <class Lens>
__device__ __forceinline__ unsigned see(const typename Lens::Facts& facts, std::uint64_t first,
                                        const float (&base)[kPack], float (&x)[kPack]) {
  if constexpr (Lens::kDelta) {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) x[j] = math::delta(x[j], base[j]);
  }
  const unsigned bits = kept<Lens>(facts, first, x);
  const math::Gain gain = Lens::gain(facts);
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) {
    const bool keeps = (bits >> j & 1U) != 0;
    x[j] = gain.split() ? math::seen<Lens, true>(x[j], keeps, gain)
                        : math::seen<Lens, false>(x[j], keeps, gain);
  }
  return bits;
}

// The same before any gain.
template <class Lens>
__device__ __forceinline__ void survive(const typename Lens::Facts& facts, std::uint64_t first,
                                        const float (&base)[kPack], float (&x)[kPack]) {
  if constexpr (Lens::kDelta) {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) x[j] = math::delta(x[j], base[j]);
  }
  const unsigned bits = kept<Lens>(facts, first, x);
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) x[j] = (bits >> j & 1U) != 0 ? x[j] : 0.0F;
}

}  // namespace ingot::gpu
