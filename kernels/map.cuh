// The one elementwise skeleton: blocks take spans of packs, a formula turns a pack of every input
// into a pack of the output and counts what it did.
#pragma once

#include <cuda_runtime.h>

#include "apply.hpp"
#include "launch.cuh"
#include "pack.cuh"
#include "warp.cuh"

namespace ingot::gpu {

// Counts of one span: in registers where the number of sources is known (K > 0), else in the
// block's memory; then added to the job's.
template <unsigned K>
class Tally {
 public:
  __device__ __forceinline__ void begin(unsigned* sums) {
    sums_ = sums;
    for (unsigned i = threadIdx.x; i < kSums; i += blockDim.x) sums_[i] = 0;
    __syncthreads();
  }
  // All lanes of a warp call this together.
  __device__ __forceinline__ void keep(unsigned source, unsigned bits) {
    if constexpr (K > 0) {
      kept_[source] += static_cast<unsigned>(__popc(bits));
    } else {
      add(source, warp_sum(static_cast<unsigned>(__popc(bits))));
    }
  }
  __device__ __forceinline__ void conflict(unsigned bits) {
    conflicts_ += static_cast<unsigned>(__popc(bits));
  }
  __device__ __forceinline__ void change(float difference) {
    const std::uint32_t bits = math::bits(math::magnitude(difference));
    change_ = bits > change_ ? bits : change_;
  }
  __device__ __forceinline__ void end(unsigned sources, Counts* counts) {
    if constexpr (K > 0) {
#pragma unroll
      for (unsigned s = 0; s < K; ++s) add(s, warp_sum(kept_[s]));
    }
    add(kConflicts, warp_sum(conflicts_));
    const unsigned change = warp_max(change_);
    if (threadIdx.x % 32 == 0) atomicMax(&sums_[kChange], change);
    __syncthreads();
    // Every counter is read by the thread that clears it for the next span.
    for (unsigned i = threadIdx.x; i < kSums; i += blockDim.x) {
      if (sums_[i] == 0 || counts == nullptr) continue;
      if (i < sources) atomicAdd(&counts->kept[i], sums_[i]);
      if (i == kConflicts) atomicAdd(&counts->conflicts, sums_[i]);
      if (i == kChange) atomicMax(&counts->change, sums_[i] > 0x7f800000U ? 0x7fc00000U : sums_[i]);
    }
  }

  static constexpr unsigned kConflicts = math::kSources;
  static constexpr unsigned kChange = math::kSources + 1;
  static constexpr unsigned kSums = math::kSources + 2;

 private:
  __device__ __forceinline__ void add(unsigned counter, unsigned sum) {
    if (threadIdx.x % 32 == 0) atomicAdd(&sums_[counter], sum);
  }

  unsigned* sums_ = nullptr;
  unsigned kept_[K > 0 ? K : 1] = {};
  unsigned conflicts_ = 0;
  std::uint32_t change_ = 0;
};

// The job that a span belongs to: the last one that begins at or before it.
__device__ __forceinline__ unsigned job_of(const Batch& batch, std::uint64_t span) {
  unsigned low = 0, high = batch.count;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (batch.jobs[middle].span <= span ? low : high) = middle;
  }
  return low;
}

// Formula::kBlocks is how many blocks a processor must have registers for. Left to a number of its
// own, ptxas spills a register or two to reach it (registers.json has what it makes of these).
template <class Formula>
static __global__ void __launch_bounds__(256, Formula::kBlocks) map_kernel(const Batch batch) {
  INGOT_SHARED(unsigned[Tally<0>::kSums], sums);
  for (std::uint64_t span = blockIdx.x; span < batch.spans; span += gridDim.x) {
    const unsigned index = job_of(batch, span);
    const Job& job = batch.jobs[index];
    const std::uint64_t all = packs(job.tensor.count);
    const std::uint64_t begin = (span - job.span) * batch.packs;
    const std::uint64_t end = begin + batch.packs < all ? begin + batch.packs : all;
    Tally<Formula::kSources> tally;
    tally.begin(sums);
    for (std::uint64_t row = begin; row < end; row += blockDim.x) {
      // Threads behind the end repeat the last pack and neither count nor store: warps stay whole.
      const bool inside = row + threadIdx.x < end;
      const std::uint64_t pack = inside ? row + threadIdx.x : end - 1;
      const unsigned bits = inside ? valid(pack, job.tensor.count) : 0U;
      float out[kPack];
      Formula::run(job, pack, bits, out, tally);
      if (inside) store(job.output, job.format, job.overflow, pack, out);
    }
    tally.end(static_cast<unsigned>(job.tensor.sources),
              batch.counts == nullptr ? nullptr : batch.counts + index);
  }
}

}  // namespace ingot::gpu
