// Truncated decomposition of a large matrix of full rank: block Lanczos bidiagonalisation with full
// reorthogonalisation (Golub, Luk and Overton, 1981) from a random block (Musco and Musco,
// "Randomized block Krylov methods for stronger and faster approximate singular value
// decomposition", 2015).
//
// The matrix is only ever multiplied by a thin block, in f32; everything thin is in double.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/philox.hpp"
#include "linalg/gemm.hpp"
#include "linalg/sign.hpp"

namespace ingot::linalg {
namespace {

// Below this size, or if the rank is a large part of the full rank, all singular values cost no
// more than some.
constexpr std::size_t kWhole = 256;
// Share of the largest singular value below which the product in f32 has nothing to say.
constexpr double kNothing = 1e-8;

bool whole(std::size_t height, std::size_t width, std::size_t rank) {
  const std::size_t side = std::min(height, width);
  return side <= kWhole || 3 * rank >= side;
}

// Thinner blocks reach further for the same work, down to about this.
std::size_t block_of(std::size_t rank) { return std::max<std::size_t>(16, rank * 5 / 8); }

using Stacks = std::vector<std::unique_ptr<Stack>>;

// a times b, of stacks of one matrix.
std::unique_ptr<Stack> product(Session& session, const Stack& a, As a_as, const Stack& b, As b_as) {
  auto c =
      session.stack(1, a_as == As::turned ? a.cols : a.rows, b_as == As::turned ? b.rows : b.cols);
  session.multiply(a, a_as, b, b_as, *c);
  return c;
}

// Takes out of `rows` what lies in the span of the basis, twice, and makes them orthonormal.
void orthonormalise(Session& session, Stack& rows, const Stacks& basis) {
  for (int pass = 0; pass < 2; ++pass) {
    for (const auto& known : basis) {
      const auto share = product(session, rows, As::is, *known, As::turned);
      session.add(rows, -1, *product(session, *share, As::is, *known, As::is));
    }
    session.orthonormalise(rows);
  }
}

std::unique_ptr<Stack> copy_of(Session& session, Matrix matrix) {
  auto stack = session.stack(1, matrix.rows, matrix.cols);
  session.write(*stack, 0, std::move(matrix));
  return stack;
}

// Rows of coefficients times a basis in parts.
Matrix combined(Session& session, const Matrix& coefficients, const Stacks& basis) {
  const auto sum = copy_of(session, Matrix(coefficients.rows, basis.front()->cols));
  std::size_t first = 0;
  for (const auto& part : basis) {
    Matrix along(coefficients.rows, part->rows);
    for (std::size_t r = 0; r < along.rows; ++r) {
      std::copy_n(coefficients.row(r) + first, part->rows, along.row(r));
    }
    const auto share = copy_of(session, std::move(along));
    session.add(*sum, 1, *product(session, *share, As::is, *part, As::is));
    first += part->rows;
  }
  return session.read(*sum, 0);
}

// The access to the matrix that a decomposition needs, and its singular values.
struct Found {
  std::vector<double> values;
  Matrix u, v;  // rows are vectors; those of `v` times their values
};

Found all_values(Session& session, Dense& dense, const Rows& rows) {
  Matrix matrix(rows.height, rows.width);
  dense.each([&](std::size_t first, std::size_t count, const float* values) {
    std::copy_n(values, count * rows.width, matrix.row(first));
  });
  Singular found = session.svd(matrix);
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
Matrix bordered(Session& session, const Matrix& gram, const Stacks& parts) {
  const std::size_t old = gram.rows, size = old + parts.back()->rows;
  Matrix result(size, size);
  for (std::size_t r = 0; r < old; ++r) std::copy_n(gram.row(r), old, result.row(r));
  std::size_t first = 0;
  for (const auto& part : parts) {
    const Matrix block =
        session.read(*product(session, *parts.back(), As::is, *part, As::turned), 0);
    for (std::size_t r = 0; r < block.rows; ++r) {
      for (std::size_t c = 0; c < block.cols; ++c) {
        result.at(old + r, first + c) = result.at(first + c, old + r) = block.at(r, c);
      }
    }
    first += part->rows;
  }
  return result;
}

// The `rank` leading vectors as far as the Krylov space of a random block has them. The images of
// the left basis are all of the matrix that is seen; a vector's coefficients in the basis are an
// eigenvector of the images' Gram matrix.
Found some_values(Session& session, Dense& dense, const Rows& rows, std::size_t rank, double total,
                  const Sketch& sketch) {
  const std::size_t side = std::min(rows.height, rows.width), block = block_of(rank);
  Stacks left, right, images;  // images: left blocks times the matrix
  const std::vector<double> ones(block, 1.0);
  Matrix gram;
  double before = total;
  for (std::size_t step = 1;; ++step) {
    std::unique_ptr<Stack> next;
    if (images.empty()) {
      next = copy_of(session, start(sketch.seed, block, rows.width));
    } else {
      next = session.stack(1, block, rows.width);
      session.scale(*images.back(), ones, *next);
    }
    orthonormalise(session, *next, right);
    right.push_back(std::move(next));
    auto image = dense.forward(*right.back());
    orthonormalise(session, *image, left);
    left.push_back(std::move(image));
    images.push_back(dense.backward(*left.back()));
    gram = bordered(session, gram, images);
    const bool full = gram.rows + block > side;
    if (gram.rows < rank + 8 && !full) continue;  // the first blocks only point the way
    const auto problem = copy_of(session, gram);
    const std::vector<double> rising = session.eigen(*problem);
    std::vector<double> values(rising.rbegin(), rising.rend());
    for (double& value : values) value = std::sqrt(std::max(0.0, value));
    const double rest = std::max(0.0, total - leading(values, rank));
    const bool settled = std::sqrt(before) - std::sqrt(rest) <= sketch.gain * std::sqrt(rest);
    before = rest;
    // A rest below f32's resolution counts as zero.
    if (!full && !settled && step < sketch.steps && rest > 1e-12 * total) continue;
    const Matrix vectors = session.read(*problem, 0);
    Matrix top(std::min(rank, gram.rows), gram.rows);
    for (std::size_t j = 0; j < top.rows; ++j) {
      std::copy_n(vectors.row(gram.rows - 1 - j), gram.rows, top.row(j));
    }
    return {std::move(values), combined(session, top, left), combined(session, top, images)};
  }
}

Low low_of(Session& session, const Rows& rows, const Cut& cut, const Sketch& sketch, bool keep) {
  Rows near;  // before `dense`, which reads from it
  auto dense = session.dense(rows, keep);
  double total = dense->squares();
  if (!std::isfinite(total)) {
    fail(Code::format, "a matrix to decompose holds NaN or infinity");
  }
  const int shift = shift_of(std::sqrt(total));
  if (shift != 0) {
    dense.reset();  // its memory is the next one's
    near = scaled(rows, shift);
    dense = session.dense(near, keep);
    total = std::ldexp(total, 2 * shift);
  }
  Found found = whole(rows.height, rows.width, cut.rank)
                    ? all_values(session, *dense, rows)
                    : some_values(session, *dense, rows, cut.rank, total, sketch);
  Low low;
  const std::size_t k = kept(found.values, total, cut);
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
  low.error = dense->residual(low.b, low.a);
  if (shift != 0) {
    for (double& x : low.b.data) x = std::ldexp(x, -shift);
    for (double& x : low.values) x = std::ldexp(x, -shift);
    low.norm = std::ldexp(low.norm, -shift);
    low.error = std::ldexp(low.error, -shift);
  }
  return low;
}

// The most vectors of a basis.
std::uint64_t basis_of(std::uint64_t height, std::uint64_t width, std::uint64_t rank,
                       const Sketch& sketch) {
  const std::uint64_t block = block_of(rank);
  return std::min<std::uint64_t>(block * sketch.steps, std::min(height, width) + block);
}

// Bytes of a solver's own memory, without the matrix in f32.
std::uint64_t session_bytes(Solver& solver, std::uint64_t height, std::uint64_t width,
                            std::uint64_t rank, const Sketch& sketch) {
  const std::uint64_t side = std::min(height, width), both = height + width;
  const std::uint64_t pieces =
      (3 * rows_at_once(width) * width + (rank + block_of(rank)) * both) * sizeof(float);
  if (whole(height, width, rank)) {
    return solver.session_memory() + solver.eigen_memory(side, 1) + pieces +
           sizeof(double) * (2 * height * width + 2 * side * side);
  }
  const std::uint64_t block = block_of(rank), basis = basis_of(height, width, rank, sketch);
  return solver.session_memory() + solver.eigen_memory(basis, 1) + pieces +
         sizeof(double) * (basis * (height + 2 * width) + (4 * block + 2 * rank + 64) * both +
                           2 * basis * basis);
}

}  // namespace

Low approximate(const Rows& rows, const Cut& cut, const Sketch& sketch, Solver* solver) {
  const std::size_t side = std::min(rows.height, rows.width);
  const Cut bounded{std::min(cut.rank, side), cut.energy};
  if (side == 0) return {Matrix(0, rows.height), Matrix(0, rows.width), {}, 0, 0};
  const std::uint64_t matrix = rows.height * rows.width * sizeof(float);
  if (solver != nullptr && solver->capacity() > 0) {
    const std::uint64_t most = solver->capacity();
    const std::uint64_t thin =
        session_bytes(*solver, rows.height, rows.width, bounded.rank, sketch);
    const bool keep = thin + matrix <= most;
    if (thin <= most) {
      try {
        const auto session = solver->open(keep ? thin + matrix : thin);
        Low low = low_of(*session, rows, bounded, sketch, keep);
        ++solver->done;
        return low;
      } catch (const Error& error) {
        if (error.code() != Code::memory) throw;  // a library asked for more room than it has
      }
    }
    ++solver->large;
  }
  const auto host = lapack();
  return low_of(*host->open(0), rows, bounded, sketch, matrix <= sketch.memory);
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
  const std::uint64_t block = block_of(rank), basis = basis_of(height, width, rank, sketch);
  return bytes + sizeof(double) * (basis * (height + 2 * width) + 4 * block * (height + width) +
                                   4 * basis * basis);
}

double approximate_work(std::uint64_t height, std::uint64_t width, std::uint64_t rank,
                        const Sketch& sketch) {
  const auto h = static_cast<double>(height), w = static_cast<double>(width);
  if (whole(height, width, rank)) {
    const double side = std::min(h, w);
    return 60 * side * side * std::max(h, w) / 3;
  }
  const auto basis = static_cast<double>(basis_of(height, width, rank, sketch));
  // The products with the matrix, the orthogonalisation, the small problem of every step.
  return 2 * h * w * basis + 4 * basis * basis * (h + w) + 30 * basis * basis * basis;
}

}  // namespace ingot::linalg
