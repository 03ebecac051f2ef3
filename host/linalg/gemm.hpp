// The products of f32 and of f64 matrices as BLAS has them.
#pragma once

#include <cstddef>

#include "ingot/linalg.hpp"

namespace ingot::linalg {

// A row-major matrix of somebody else's; rows are `pace` elements apart.
struct View {
  const float* data = nullptr;
  std::size_t pace = 0;
  As as = As::is;
};

// c (rows x cols, its rows c_pace apart) = alpha * a * b + beta * c over `depth` terms, a and b as
// they say.
void gemm(std::size_t rows, std::size_t cols, std::size_t depth, float alpha, const View& a,
          const View& b, float beta, float* c, std::size_t c_pace);

// c (rows x cols) = a * b over `depth` terms in double, rows as wide as they are.
void gemm(std::size_t rows, std::size_t cols, std::size_t depth, const double* a, As a_as,
          const double* b, As b_as, double* c);

}  // namespace ingot::linalg
