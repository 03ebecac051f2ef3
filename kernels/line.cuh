// Where elements stand in the whole tensor, and the facts of their lines.
#pragma once

#include <cuda_runtime.h>

#include "job.hpp"

namespace ingot::gpu {

// The facts of the line at `row` and `column` of the whole tensor; zeros where there are none.
template <unsigned facts>
__device__ __forceinline__ void line_facts(const LineTable& table, std::uint64_t row,
                                           std::uint64_t column, double (&line)[math::kLineFacts]) {
  const std::uint64_t number = table.shape.lines == math::Lines::rows ? row : column;
  const std::uint64_t n =
      number >= table.first ? number - table.first : number + table.shape.count - table.first;
  if (table.facts == nullptr || n >= table.count) return;  // behind the last element
#pragma unroll
  for (unsigned i = 0; i < facts; ++i) line[i] = table.facts[i * table.count + n];
}

// The surroundings of the elements from `first` on, a few: a pack, or one. Nothing is computed that
// its users do not read; with `facts` 0 nothing of lines.
template <int facts>
class Places {
 public:
  __device__ __forceinline__ Places(const Tensor& tensor, std::uint64_t first)
      : table_(tensor.line), first_(first) {
    if constexpr (facts > 0) {
      row_ = first / table_.shape.width;
      column_ = first - row_ * table_.shape.width;
    }
  }

  [[nodiscard]] __device__ __forceinline__ math::At<float> at(unsigned j, float base) const {
    math::At<float> at;
    at.base = base;
    at.index = first_ + j;
    lines(j, at.line);
    return at;
  }
  [[nodiscard]] __device__ __forceinline__ math::Here here(unsigned j, float common) const {
    math::Here here;
    here.common = common;
    here.index = first_ + j;
    lines(j, here.line);
    return here;
  }

 private:
  __device__ __forceinline__ void lines(unsigned j, double (&line)[math::kLineFacts]) const {
    if constexpr (facts > 0) {
      std::uint64_t row = row_, column = column_ + j;
      for (; column >= table_.shape.width; column -= table_.shape.width) ++row;
      line_facts<facts>(table_, row, column, line);
    }
  }

  const LineTable& table_;
  std::uint64_t first_, row_ = 0, column_ = 0;
};

}  // namespace ingot::gpu
