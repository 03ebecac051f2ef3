#include "product.hpp"

#include "ingot/math/product.hpp"
#include "launch.cuh"
#include "pack.cuh"

namespace ingot::gpu {
namespace {

// A thread has a patch of the tensor: so often is each loaded factor used.
constexpr unsigned kRows = 4, kColumns = 4;

// Patches of the rows that hold elements [first, first + count).
[[nodiscard]] INGOT_HD std::uint64_t patches(std::uint64_t first, std::uint64_t count,
                                             std::uint64_t width) {
  const std::uint64_t rows = (first + count - 1) / width - first / width + 1;
  return (rows + kRows - 1) / kRows * ((width + kColumns - 1) / kColumns);
}

static __global__ void __launch_bounds__(256) amend_kernel(const Amendment* in) {
  const Amendment& work = *in;
  const std::uint64_t top = work.first / work.width;
  const std::uint64_t last = work.first + work.count;
  const std::uint64_t across = (work.width + kColumns - 1) / kColumns;
  const std::uint64_t all = patches(work.first, work.count, work.width);
  for (std::uint64_t patch = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; patch < all;
       patch += std::uint64_t{gridDim.x} * blockDim.x) {
    const std::uint64_t row = top + patch / across * kRows;
    const std::uint64_t column = patch % across * kColumns;
    const auto inside = [&](unsigned r, unsigned c) {
      const std::uint64_t at = (row + r) * work.width + column + c;
      return column + c < work.width && at >= work.first && at < last;
    };
    float value[kRows][kColumns];
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
#pragma unroll
      for (unsigned c = 0; c < kColumns; ++c) {
        const std::uint64_t at = (row + r) * work.width + column + c;
        value[r][c] =
            work.own.data != nullptr && inside(r, c) ? element(work.own, at - work.first) : 0.0F;
      }
    }
    // Rows and columns past the ends read the last one and are not stored.
    const std::uint64_t below = (last - 1) / work.width - row, right = work.width - 1 - column;
    for (unsigned p = 0; p < work.number; ++p) {
      const LowRank product = work.products[p];
      const float* b = product.b + (row - product.top) * product.rank;
      const float* a = product.a + column;
      float sum[kRows][kColumns] = {};
#pragma unroll 2
      for (std::uint32_t k = 0; k < product.rank; ++k, a += work.width, ++b) {
        float x[kColumns];
#pragma unroll
        for (unsigned c = 0; c < kColumns; ++c) x[c] = a[c < right ? c : right];
#pragma unroll
        for (unsigned r = 0; r < kRows; ++r) {
          const float y = b[(r < below ? r : below) * product.rank];
#pragma unroll
          for (unsigned c = 0; c < kColumns; ++c) sum[r][c] = math::extend(sum[r][c], y, x[c]);
        }
      }
#pragma unroll
      for (unsigned r = 0; r < kRows; ++r) {
#pragma unroll
        for (unsigned c = 0; c < kColumns; ++c) {
          value[r][c] = math::amend(value[r][c], product.scale, sum[r][c]);
        }
      }
    }
#pragma unroll
    for (unsigned r = 0; r < kRows; ++r) {
#pragma unroll
      for (unsigned c = 0; c < kColumns; ++c) {
        if (!inside(r, c)) continue;
        work.values[(row + r) * work.width + column + c - work.first] = value[r][c];
      }
    }
  }
}

}  // namespace

void amend(const Amendment* amendment, std::uint64_t first, std::uint64_t count,
           std::uint64_t width, const Shape& shape, const Stream& stream) {
  launch(
      "adding products", amend_kernel,
      dim3(blocks_for((patches(first, count, width) + shape.threads - 1) / shape.threads, shape)),
      shape.threads, stream, amendment);
}

}  // namespace ingot::gpu
