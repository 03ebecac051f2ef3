// Matrices of doubles that tests decompose.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ingot/linalg.hpp"
#include "support.hpp"

namespace ingot::test {

// Of values whose f32 they are. The sum of four uniforms is near enough to normal.
inline linalg::Matrix random_matrix(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  Random random(seed);
  linalg::Matrix m(rows, cols);
  for (double& x : m.data) {
    double sum = -2;
    for (int i = 0; i < 4; ++i) sum += random.uniform();
    x = static_cast<double>(static_cast<float>(sum));
  }
  return m;
}

// turned(b) * a.
inline linalg::Matrix product(const linalg::Matrix& b, const linalg::Matrix& a) {
  return linalg::multiply(b, linalg::As::turned, a, linalg::As::is);
}

// The norm of the difference.
inline double distance(linalg::Matrix x, const linalg::Matrix& y) {
  for (std::size_t i = 0; i < x.data.size(); ++i) x.data[i] -= y.data[i];
  return linalg::norm(x);
}

}  // namespace ingot::test
