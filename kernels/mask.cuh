// What a mask leaves of a pack of one task vector.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/key.hpp"
#include "ingot/math/linear.hpp"
#include "ingot/math/philox.hpp"
#include "pack.cuh"

namespace ingot::gpu {

// Replaces a source's elements by the deltas that the mask keeps, times `gain`, in place. `first`
// is the pack's index in the whole tensor. Returns the elements that the mask let through, as bits.
__device__ __forceinline__ unsigned thin(const math::Facts& facts, const math::Source& source,
                                         math::Gain gain, std::uint64_t first,
                                         const float (&base)[kPack], float (&x)[kPack]) {
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) x[j] = math::delta(x[j], base[j]);
  unsigned kept = (1U << kPack) - 1;
  const math::Mask mask = source.all != 0 ? math::Mask::none : facts.mask;
  if (mask == math::Mask::random) {
    kept = math::keep8(facts.seed, source.stream, first, source.keep);
  } else if (mask == math::Mask::select && source.cut >= first && source.cut - first < kPack) {
    // The cut lies in this pack, the only one of the tensor.
    kept = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      if (math::selected(math::key(x[j]), source.threshold, first + j, source.cut)) kept |= 1U << j;
  } else if (mask == math::Mask::select) {
    const std::uint32_t bound = math::bound(source.threshold, first, source.cut);
    kept = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      if (math::key(x[j]) >= bound) kept |= 1U << j;
  }
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) {
    const bool keeps = (kept >> j & 1U) != 0;
    x[j] = gain.split() ? math::survivor<true>(x[j], keeps, gain)
                        : math::survivor<false>(x[j], keeps, gain);
  }
  return kept;
}

}  // namespace ingot::gpu
