#include "measure.hpp"

#include <cmath>

#include "fold.cuh"

namespace ingot::gpu {
namespace {

static __global__ void canary_kernel(const float* in, float* out) {
  out[0] = in[0] * in[0] - in[1];
  out[1] = math::fuse(in[0], in[0], -in[1]);
  out[2] = in[2] * in[3];
  out[3] = in[3] / in[4];
  out[4] = sqrtf(in[5]);
  out[5] = in[2] + in[2];
}

}  // namespace

void fold(const Job* job, std::uint64_t count, const math::Term* terms, unsigned term_count,
          double* sums, const Shape& shape, const Stream& stream) {
  const std::uint64_t tiles = (count + math::kTile - 1) / math::kTile;
  // The number of threads is part of the sum's shape.
  launch("folding", fold_kernel, dim3(blocks_for(tiles * term_count, shape)), math::kLanes, stream,
         job, terms, term_count, tiles, sums);
}

void canary(const float* in, float* out, const Stream& stream) {
  launch("testing its arithmetic", canary_kernel, dim3(1), 1, stream, in, out);
}

}  // namespace ingot::gpu
