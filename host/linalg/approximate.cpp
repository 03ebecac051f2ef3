// Truncated decomposition of a large matrix of full rank: block Lanczos bidiagonalisation with full
// reorthogonalisation (Golub, Luk and Overton, 1981) from a random block (Musco and Musco,
// "Randomized block Krylov methods for stronger and faster approximate singular value
// decomposition", 2015).
//
// The matrix is only ever multiplied by a thin block, in f32; everything thin is in double.
#include <algorithm>
#include <cmath>
#include <utility>

#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/philox.hpp"
#include "linalg/gemm.hpp"
#include "linalg/sign.hpp"

namespace ingot::linalg {
namespace {

// Below this, or where the rank is no small part, all singular values cost no more than some.
constexpr std::size_t kWhole = 256;
// Share of the largest singular value below which the product in f32 has nothing to say.
constexpr double kNothing = 1e-8;
// Elements read at a time.
constexpr std::size_t kPiece = std::size_t{1} << 20;

bool whole(std::size_t height, std::size_t width, std::size_t rank) {
  const std::size_t side = std::min(height, width);
  return side <= kWhole || 3 * rank >= side;
}

// Thinner blocks reach further for the same work, down to about this.
std::size_t block_of(std::size_t rank) { return std::max<std::size_t>(16, rank * 5 / 8); }

std::size_t rows_at_once(std::size_t width) { return std::max<std::size_t>(1, kPiece / width); }

// The matrix by pieces of rows, kept in memory where that is allowed.
class Pieces {
 public:
  Pieces(const Rows& rows, bool keep) : rows_(rows), step_(rows_at_once(rows.width)) {
    if (keep) {
      kept_.resize(rows.height * rows.width);
      rows_.read(0, kept_);
    } else {
      piece_.resize(step_ * rows.width);
    }
  }

  template <class Use>
  void each(const Use& use) {
    for (std::size_t first = 0; first < rows_.height; first += step_) {
      const std::size_t count = std::min(step_, rows_.height - first);
      if (!kept_.empty()) {
        use(first, count, kept_.data() + first * rows_.width);
      } else {
        rows_.read(first, std::span(piece_.data(), count * rows_.width));
        use(first, count, piece_.data());
      }
    }
  }

 private:
  const Rows& rows_;
  std::size_t step_;
  std::vector<float> kept_, piece_;
};

std::vector<float> floats(const Matrix& m) {
  std::vector<float> values(m.data.size());
  std::transform(m.data.begin(), m.data.end(), values.begin(),
                 [](double x) { return static_cast<float>(x); });
  return values;
}

// v (block x width) times the transposed matrix: block x height.
Matrix forward(Pieces& pieces, const Rows& rows, const Matrix& v) {
  const std::vector<float> factor = floats(v);
  Matrix result(v.rows, rows.height);
  std::vector<float> part;
  pieces.each([&](std::size_t first, std::size_t count, const float* values) {
    part.resize(v.rows * count);
    gemm(v.rows, count, rows.width, 1.0F, {factor.data(), rows.width},
         {values, rows.width, As::turned}, 0.0F, part.data(), count);
    for (std::size_t r = 0; r < v.rows; ++r) {
      std::copy_n(part.data() + r * count, count, result.row(r) + first);
    }
  });
  return result;
}

// u (block x height) times the matrix: block x width.
Matrix backward(Pieces& pieces, const Rows& rows, const Matrix& u) {
  const std::vector<float> factor = floats(u);
  Matrix result(u.rows, rows.width);
  std::vector<float> part(u.rows * rows.width);
  pieces.each([&](std::size_t first, std::size_t count, const float* values) {
    gemm(u.rows, rows.width, count, 1.0F, {factor.data() + first, rows.height},
         {values, rows.width}, 0.0F, part.data(), rows.width);
    for (std::size_t i = 0; i < part.size(); ++i) result.data[i] += static_cast<double>(part[i]);
  });
  return result;
}

// Takes out of `rows` what lies in the span of the basis, twice, and makes them orthonormal.
Matrix orthonormal(Matrix rows, const std::vector<Matrix>& basis) {
  for (int pass = 0; pass < 2; ++pass) {
    for (const Matrix& known : basis) {
      const Matrix along =
          multiply(multiply(rows, As::is, known, As::turned), As::is, known, As::is);
      for (std::size_t i = 0; i < rows.data.size(); ++i) rows.data[i] -= along.data[i];
    }
    rows = split(std::move(rows)).right;
  }
  return rows;
}

// Rows of coefficients times a basis in parts.
Matrix combined(const Matrix& coefficients, const std::vector<Matrix>& basis) {
  Matrix sum(coefficients.rows, basis.front().cols);
  std::size_t first = 0;
  for (const Matrix& part : basis) {
    Matrix along(coefficients.rows, part.rows);
    for (std::size_t r = 0; r < along.rows; ++r) {
      std::copy_n(coefficients.row(r) + first, part.rows, along.row(r));
    }
    const Matrix term = multiply(along, As::is, part, As::is);
    for (std::size_t i = 0; i < sum.data.size(); ++i) sum.data[i] += term.data[i];
    first += part.rows;
  }
  return sum;
}

// In double, by eight lanes: one sum would wait for itself.
double squares(std::span<const float> values) {
  double lanes[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= values.size(); i += 8) {
    for (std::size_t l = 0; l < 8; ++l) {
      const double x = static_cast<double>(values[i + l]);
      lanes[l] += x * x;
    }
  }
  for (; i < values.size(); ++i) {
    lanes[0] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
         ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

double energy(Pieces& pieces, const Rows& rows) {
  double sum = 0;
  pieces.each([&](std::size_t, std::size_t count, const float* values) {
    sum += squares({values, count * rows.width});
  });
  return sum;
}

// What B times A, both rounded to f32, leaves of the matrix.
double residual(Pieces& pieces, const Rows& rows, const Matrix& b, const Matrix& a) {
  const std::vector<float> left = floats(b), right = floats(a);
  double sum = 0;
  std::vector<float> rest;
  pieces.each([&](std::size_t first, std::size_t count, const float* values) {
    rest.assign(values, values + count * rows.width);
    if (b.rows > 0) {
      gemm(count, rows.width, b.rows, -1.0F, {left.data() + first, rows.height, As::turned},
           {right.data(), rows.width}, 1.0F, rest.data(), rows.width);
    }
    sum += squares(rest);
  });
  return std::sqrt(sum);
}

// What a decomposition needs of the matrix, and singular values with it.
struct Found {
  std::vector<double> values;
  Matrix u, v;  // rows are vectors; those of `v` times their values
};

Found all_values(Pieces& pieces, const Rows& rows) {
  Matrix matrix(rows.height, rows.width);
  pieces.each([&](std::size_t first, std::size_t count, const float* values) {
    std::copy_n(values, count * rows.width, matrix.row(first));
  });
  Singular found = svd(matrix);
  for (std::size_t j = 0; j < found.v.rows; ++j) {
    for (std::size_t c = 0; c < found.v.cols; ++c) found.v.at(j, c) *= found.values[j];
  }
  return {std::move(found.values), std::move(found.u), std::move(found.v)};
}

// Signs from one stream of bits.
Matrix start(std::uint64_t seed, std::size_t block, std::size_t width) {
  Matrix v(block, width);
  for (std::size_t i = 0; i < v.data.size(); i += 128) {
    const math::Block bits = math::philox(seed, 0, i / 128);
    for (std::size_t j = i; j < std::min(i + 128, v.data.size()); ++j) {
      v.data[j] = (bits.word[(j % 128) / 32] >> (j % 32) & 1U) != 0 ? 1.0 : -1.0;
    }
  }
  return v;
}

double leading(std::span<const double> values, std::size_t rank) {
  double sum = 0;
  for (std::size_t j = 0; j < std::min(rank, values.size()); ++j) sum += values[j] * values[j];
  return sum;
}

// `gram` with the products of one more part.
Matrix bordered(const Matrix& gram, const std::vector<Matrix>& parts) {
  const std::size_t old = gram.rows, size = old + parts.back().rows;
  Matrix result(size, size);
  for (std::size_t r = 0; r < old; ++r) std::copy_n(gram.row(r), old, result.row(r));
  std::size_t first = 0;
  for (const Matrix& part : parts) {
    const Matrix block = multiply(parts.back(), As::is, part, As::turned);
    for (std::size_t r = 0; r < block.rows; ++r) {
      for (std::size_t c = 0; c < block.cols; ++c) {
        result.at(old + r, first + c) = result.at(first + c, old + r) = block.at(r, c);
      }
    }
    first += part.rows;
  }
  return result;
}

// The `rank` leading vectors as far as the Krylov space of a random block has them. The images of
// the left basis are all of the matrix that is seen; a vector's coefficients in the basis are an
// eigenvector of the images' Gram matrix.
Found some_values(Pieces& pieces, const Rows& rows, std::size_t rank, double total,
                  const Sketch& sketch) {
  const std::size_t side = std::min(rows.height, rows.width), block = block_of(rank);
  std::vector<Matrix> left, right, images;  // images: left blocks times the matrix
  Matrix next = start(sketch.seed, block, rows.width), gram;
  double before = total;
  for (std::size_t step = 1;; ++step) {
    right.push_back(orthonormal(std::move(next), right));
    left.push_back(orthonormal(forward(pieces, rows, right.back()), left));
    images.push_back(backward(pieces, rows, left.back()));
    gram = bordered(gram, images);
    next = images.back();
    const bool full = gram.rows + block > side;
    if (gram.rows < rank + 8 && !full) continue;  // the first blocks only point the way
    const Spectrum spectrum = eigen(gram);
    std::vector<double> values(spectrum.values.rbegin(), spectrum.values.rend());
    for (double& value : values) value = std::sqrt(std::max(0.0, value));
    const double rest = std::max(0.0, total - leading(values, rank));
    const bool settled = std::sqrt(before) - std::sqrt(rest) <= sketch.gain * std::sqrt(rest);
    before = rest;
    // What f32 cannot tell from nothing is nothing.
    if (!full && !settled && step < sketch.steps && rest > 1e-12 * total) continue;
    Matrix top(std::min(rank, gram.rows), gram.rows);
    for (std::size_t j = 0; j < top.rows; ++j) {
      std::copy_n(spectrum.vectors.row(gram.rows - 1 - j), gram.rows, top.row(j));
    }
    return {std::move(values), combined(top, left), combined(top, images)};
  }
}

}  // namespace

Low approximate(const Rows& rows, const Cut& cut, const Sketch& sketch) {
  const std::size_t side = std::min(rows.height, rows.width);
  const Cut bounded{std::min(cut.rank, side), cut.energy};
  if (side == 0) return {Matrix(0, rows.height), Matrix(0, rows.width), {}, 0, 0};
  Pieces pieces(rows, rows.height * rows.width * sizeof(float) <= sketch.memory);
  const double total = energy(pieces, rows);
  if (!std::isfinite(total)) {
    fail(Code::format, "a matrix to decompose holds NaN, infinity or values too large to square");
  }
  Found found = whole(rows.height, rows.width, bounded.rank)
                    ? all_values(pieces, rows)
                    : some_values(pieces, rows, bounded.rank, total, sketch);
  Low low;
  const std::size_t k = kept(found.values, total, bounded);
  low.b = Matrix(k, rows.height);
  low.a = Matrix(k, rows.width);
  for (std::size_t j = 0; j < k; ++j) {
    const double value = found.values[j];
    if (!(value > kNothing * found.values[0])) continue;
    for (std::size_t c = 0; c < rows.height; ++c) low.b.at(j, c) = found.u.at(j, c) * value;
    for (std::size_t c = 0; c < rows.width; ++c) low.a.at(j, c) = found.v.at(j, c) / value;
  }
  settle_signs(low.b, low.a);
  low.values = std::move(found.values);
  low.norm = std::sqrt(total);
  low.error = residual(pieces, rows, low.b, low.a);
  return low;
}

double residual(const Rows& rows, const Matrix& b, const Matrix& a) {
  Pieces pieces(rows, false);
  return residual(pieces, rows, b, a);
}

std::uint64_t approximate_memory(std::uint64_t height, std::uint64_t width, std::uint64_t rank,
                                 const Sketch& sketch) {
  const std::uint64_t matrix = height * width * sizeof(float);
  std::uint64_t bytes = (matrix <= sketch.memory ? matrix : kPiece * sizeof(float)) +
                        2 * std::max<std::uint64_t>(kPiece, width) * sizeof(float);
  if (whole(height, width, rank)) {
    const std::uint64_t side = std::min(height, width);
    return bytes +
           sizeof(double) * (2 * height * width + side * (height + width) + 8 * side * side);
  }
  // Three bases, what is made of a block, and the small problem.
  const std::uint64_t block = block_of(rank);
  const std::uint64_t basis =
      std::min<std::uint64_t>(block * sketch.steps, std::min(height, width) + block);
  return bytes + sizeof(double) * (basis * (height + 2 * width) + 4 * block * (height + width) +
                                   4 * basis * basis);
}

}  // namespace ingot::linalg
