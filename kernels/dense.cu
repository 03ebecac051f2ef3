#include "dense.hpp"

#include "launch.cuh"

namespace ingot::gpu {
namespace {

constexpr unsigned kLanes = 256;

static __global__ void narrow_kernel(const double* from, std::uint64_t count, float* to) {
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += std::uint64_t{gridDim.x} * blockDim.x)
    to[i] = static_cast<float>(from[i]);
}

static __global__ void widen_kernel(const float* from, std::uint64_t count, double* sum) {
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += std::uint64_t{gridDim.x} * blockDim.x)
    sum[i] += static_cast<double>(from[i]);
}

static __global__ void __launch_bounds__(kLanes)
    squares_kernel(const float* values, std::uint64_t count, double* sums) {
  INGOT_SHARED(double[kLanes], lanes);
  double lane = 0.0;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * kLanes + threadIdx.x; i < count;
       i += std::uint64_t{gridDim.x} * kLanes) {
    const auto x = static_cast<double>(values[i]);
    lane += x * x;
  }
  lanes[threadIdx.x] = lane;
  for (unsigned half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] += lanes[0];
}

unsigned blocks_of(std::uint64_t count, const Shape& shape) {
  return blocks_for((count + shape.threads - 1) / shape.threads, shape);
}

}  // namespace

void narrow(const double* from, std::uint64_t count, float* to, const Shape& shape,
            const Stream& stream) {
  launch("rounding", narrow_kernel, dim3(blocks_of(count, shape)), shape.threads, stream, from,
         count, to);
}

void widen(const float* from, std::uint64_t count, double* sum, const Shape& shape,
           const Stream& stream) {
  launch("adding", widen_kernel, dim3(blocks_of(count, shape)), shape.threads, stream, from, count,
         sum);
}

void squares(const float* values, std::uint64_t count, double* sums, const Stream& stream) {
  launch("adding squares", squares_kernel, dim3(kSums), kLanes, stream, values, count, sums);
}

}  // namespace ingot::gpu
