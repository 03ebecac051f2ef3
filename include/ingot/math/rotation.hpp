// Turns and reflections of a weight's rows: OFT (Qiu et al., 2023), BOFT (Liu et al., 2024), HRA
// (Yuan et al., 2024).
//
//   OFT    W' = W blockdiag(R)^T, R the Cayley transform of a skew matrix or the start of its
//   series BOFT   W' = diag(s) W blockdiag(T)^T HRA    W' = W (I - 2 u1 u1^T) (I - 2 u2 u2^T) ...
//
// R, T and u are doubles, computed once. A row is turned in double and rounded once.
#pragma once

#include "ingot/math/adapter.hpp"

namespace ingot::math {

// R of a block from Q = U - U^T, both n x n by rows; `room` holds 2 n n numbers. The exact
// transform is (I - Q) (I + Q)^-1, which always exists: the eigenvalues of Q are imaginary.
inline void cayley(const double* q, double* r, int n, double* room) {
  // R^T solves (I + Q)^T R^T = (I - Q)^T; with Q^T = -Q: (I - Q) R^T = I + Q.
  double* const m = room;
  double* const x = room + n * n;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      const double one = i == j ? 1.0 : 0.0;
      m[i * n + j] = one - q[i * n + j];
      x[i * n + j] = one + q[i * n + j];
    }
  }
  for (int c = 0; c < n; ++c) {
    int pivot = c;
    for (int i = c + 1; i < n; ++i) {
      if (magnitude(m[i * n + c]) > magnitude(m[pivot * n + c])) pivot = i;
    }
    for (int j = 0; pivot != c && j < n; ++j) {
      const double a = m[c * n + j], b = x[c * n + j];
      m[c * n + j] = m[pivot * n + j];
      x[c * n + j] = x[pivot * n + j];
      m[pivot * n + j] = a;
      x[pivot * n + j] = b;
    }
    for (int i = 0; i < n; ++i) {
      if (i == c) continue;
      const double f = m[i * n + c] / m[c * n + c];
      for (int j = c; j < n; ++j) m[i * n + j] -= f * m[c * n + j];
      for (int j = 0; j < n; ++j) x[i * n + j] -= f * x[c * n + j];
    }
  }
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) r[j * n + i] = x[i * n + j] / m[i * n + i];
  }
}

// The series of PEFT with `terms` terms: I; I + 2Q; I + 2Q + 2Q^2 + ... + 2Q^(m-1) + Q^m with
// m = max(3, terms - 1). `room` holds 2 n n numbers.
inline void cayley_series(const double* q, double* r, int n, std::uint32_t terms, double* room) {
  double* power = room;
  double* next = room + n * n;
  for (int i = 0; i < n * n; ++i) {
    r[i] = i % (n + 1) == 0 ? 1.0 : 0.0;
    power[i] = q[i];
  }
  const std::uint32_t last = terms <= 2 ? terms - 1 : terms < 4 ? 3 : terms - 1;
  for (std::uint32_t p = 1; p <= last; ++p) {
    const double factor = p == last && terms > 2 ? 1.0 : 2.0;
    for (int i = 0; i < n * n; ++i) r[i] += factor * power[i];
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int k = 0; k < n; ++k) sum += power[i * n + k] * q[k * n + j];
        next[i * n + j] = sum;
      }
    }
    double* const swap = power;
    power = next;
    next = swap;
  }
}

// Sum of a row's elements times a line of the rotation, `step` apart, by rising index.
template <class Wide>
INGOT_HD Wide turned(const Wide* row, const double* line, std::uint64_t step, int n) {
  Wide sum(0.0);
  for (int j = 0; j < n; ++j) sum = sum + row[j] * Wide(line[static_cast<std::uint64_t>(j) * step]);
  return sum;
}

// row = row (I - 2 u u^T), u of length 1.
template <class Wide>
inline void reflect(Wide* row, const double* u, std::uint64_t count) {
  const Wide twice = Wide(2.0) * dot<Wide>(row, u, count);
  for (std::uint64_t i = 0; i < count; ++i) row[i] = row[i] - twice * Wide(u[i]);
}

}  // namespace ingot::math
