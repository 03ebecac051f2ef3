// Dense linear algebra in double over LAPACK and BLAS: decompositions of what adapters multiply to.
//
// Bounded class: results are judged by reconstruction error, not by bytes. On one machine they are
// the same in every run, for any number of threads, because each call is single-threaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace ingot::linalg {

// Row-major.
struct Matrix {
  std::size_t rows = 0, cols = 0;
  std::vector<double> data;

  Matrix() = default;
  Matrix(std::size_t rows_, std::size_t cols_) : rows(rows_), cols(cols_), data(rows_ * cols_) {}

  [[nodiscard]] double* row(std::size_t r) { return data.data() + r * cols; }
  [[nodiscard]] const double* row(std::size_t r) const { return data.data() + r * cols; }
  [[nodiscard]] double& at(std::size_t r, std::size_t c) { return data[r * cols + c]; }
  [[nodiscard]] double at(std::size_t r, std::size_t c) const { return data[r * cols + c]; }
};

// Whether a factor of a product is taken as it is or transposed.
enum class As : std::uint8_t { is, turned };

// a times b.
[[nodiscard]] Matrix multiply(const Matrix& a, As a_as, const Matrix& b, As b_as);

// values (rows x columns) += scale * b (rows x rank) * a (rank x columns) in f32, summed in BLAS's order.
// Rows of `a` and of `values` are `width` elements apart.
void add_product(std::size_t rows, std::size_t columns, std::size_t rank, float scale, const float* b,
                 const float* a, float* values, std::size_t width);

// The square root of the sum of squares.
[[nodiscard]] double norm(const Matrix& a);

// Eigenvalues of a symmetric matrix in rising order; row j of `vectors` belongs to values[j].
struct Spectrum {
  std::vector<double> values;
  Matrix vectors;
};
[[nodiscard]] Spectrum eigen(Matrix symmetric);

// left * right with orthonormal rows in `right`, min(rows, cols) of them. Holds for any rank.
struct Split {
  Matrix left, right;
};
[[nodiscard]] Split split(Matrix a);

// Thin singular value decomposition a = turned(u) * diag(values) * v, values falling; vectors are
// the rows of u and v. Values that are not finite in `a` are Error{format}.
struct Singular {
  std::vector<double> values;
  Matrix u, v;
};
[[nodiscard]] Singular svd(const Matrix& a);

// How many singular values stay: `rank` of them at most, and of those the fewest whose squares sum
// to `energy` of all (1: no bound).
struct Cut {
  std::size_t rank = 0;
  double energy = 1;
};
// `total` is the sum of all squares, of values beyond the span too.
[[nodiscard]] std::size_t kept(std::span<const double> values, double total, const Cut& cut);

// A matrix of low rank as B times A. Rows of `a` are orthonormal, its largest entry by magnitude
// (the first of several) is positive in each row, and the singular values are in `b`, which is
// stored transposed (rank x height). Where the matrix has a lower rank than asked, the rest is
// zero.
struct Low {
  Matrix b, a;
  std::vector<double> values;  // singular values found, falling: at least as many as rows of `a`
  double norm = 0;             // Frobenius norm of the matrix
  double error = 0;            // and of what B times A leaves of it
};

// The best approximation of turned(b) * a, whose rows are ranks: of `b` R x height, of `a` R x
// width. The product is never formed. Values that are not finite are Error{format}.
[[nodiscard]] Low recombine(const Matrix& b, const Matrix& a, const Cut& cut);

// The singular values alone, at a third of the cost.
[[nodiscard]] std::vector<double> spectrum(const Matrix& b, const Matrix& a);

// A matrix that is read by runs of rows, as often as asked; each read gives the same values.
struct Rows {
  std::size_t height = 0, width = 0;
  // Fills `values` with rows [first, first + values.size() / width).
  std::function<void(std::size_t first, std::span<float> values)> read;
};

struct Sketch {
  std::uint64_t seed = 0;  // of the first block, drawn by Philox
  // Ends the iteration: another block lowered the error by less than this share of it.
  double gain = 1e-3;
  std::size_t steps = 12;  // most blocks
  std::uint64_t memory =
      0;  // bytes for the matrix itself; if it takes more, it is read anew each time
};

// A nearly best approximation of a matrix of full rank, by block Lanczos bidiagonalisation from a
// random start: `error` is measured against the matrix with A and B rounded to f32. Small matrices,
// and ranks that are no small part of them, are decomposed whole.
[[nodiscard]] Low approximate(const Rows& rows, const Cut& cut, const Sketch& sketch);

// The Frobenius norm of what turned(b) * a, both rounded to f32, leaves of a matrix.
[[nodiscard]] double residual(const Rows& rows, const Matrix& b, const Matrix& a);

// Bytes that recombine() and approximate() hold at most beside their arguments and results.
[[nodiscard]] std::uint64_t recombine_memory(std::uint64_t height, std::uint64_t width,
                                             std::uint64_t ranks);
[[nodiscard]] std::uint64_t approximate_memory(std::uint64_t height, std::uint64_t width,
                                               std::uint64_t rank, const Sketch& sketch);

}  // namespace ingot::linalg
