// The one reduction skeleton: a block per tile and term, lanes in double, the shape of
// math/fold.hpp.
//
// Numbers are made pack by pack, as everywhere, and put in the block's memory; there lane l finds
// its elements l, l + 256, ... No atomics: the sums have the same bits for any grid.
#pragma once

#include <cuda_runtime.h>

#include "launch.cuh"
#include "mask.cuh"

namespace ingot::gpu {

// Elements of a tile that the block's memory holds at a time: one pack per lane.
inline constexpr unsigned kStep = math::kLanes * kPack;
static_assert(math::kTile % kStep == 0);

// Puts this thread's pack of a column at `numbers`; elements behind the end are +0.
__device__ __forceinline__ void fill(const Job& job, const math::Column& column, std::uint64_t pack,
                                     float* numbers) {
  const Tensor& tensor = job.tensor;
  float x[kPack] = {};
  unsigned bits = 0;
  if (pack < packs(tensor.count)) {
    bits = valid(pack, tensor.count);
    if (column.stream == math::Stream::value) {
      load(tensor.input[column.index], pack, x);
    } else {
      const unsigned s = column.index;
      float base[kPack];
      load_base(tensor, pack, base);
      load(source_of(tensor, s), pack, x);
      if (column.stream == math::Stream::survivor) {
        (void)thin(job.facts, job.facts.source[s], {}, tensor.first + pack * kPack, base, x);
      } else {
#pragma unroll
        for (unsigned j = 0; j < kPack; ++j) x[j] = math::delta(x[j], base[j]);
      }
    }
  }
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j)
    numbers[threadIdx.x * kPack + j] = (bits >> j & 1U) != 0 ? x[j] : 0.0F;
}

static __global__ void __launch_bounds__(math::kLanes)
    fold_kernel(const Job* jobs, const math::Term* terms, unsigned term_count, std::uint64_t tiles,
                double* sums) {
  INGOT_SHARED(float[kStep], a);
  INGOT_SHARED(float[kStep], b);
  INGOT_SHARED(double[math::kLanes], lanes);
  const Job& job = *jobs;
  const std::uint64_t all = packs(job.tensor.count);
  for (std::uint64_t task = blockIdx.x; task < tiles * term_count; task += gridDim.x) {
    const std::uint64_t tile = task % tiles;
    const math::Term term = terms[task / tiles];
    const bool product = term.kind == math::Term::Kind::product;
    double lane = 0.0;
    for (unsigned step = 0; step < math::kTile / kStep; ++step) {
      const std::uint64_t row = tile * (math::kTile / kPack) + step * math::kLanes;
      if (row >= all) break;
      fill(job, term.a, row + threadIdx.x, a);
      if (product) fill(job, term.b, row + threadIdx.x, b);
      __syncthreads();
      for (unsigned i = threadIdx.x; i < kStep; i += math::kLanes)
        lane = product ? math::add_product(lane, a[i], b[i]) : math::add_absolute(lane, a[i]);
      __syncthreads();
    }
    lanes[threadIdx.x] = lane;
    for (unsigned half = math::kLanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[task] = lanes[0];
  }
}

}  // namespace ingot::gpu
