// Truncated decomposition of a product of two thin matrices, without the product.
//
// Each side is written as a small matrix times orthonormal rows; the singular values of the product
// are those of the small matrices' product. The orthonormal rows come from the Gram matrix, which
// needs nothing but matrix products, or from Householder's QR where squaring would cost accuracy.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "linalg/sign.hpp"

namespace ingot::linalg {
namespace {

// Gram matrices square the ratio of scales. Down to this ratio of eigenvalues a direction is still
// known to 1e-6 of itself, which f32 cannot tell from the truth; below, QR is taken.
constexpr double kSquared = 1e-10;

// Rows as core * basis, basis orthonormal.
class Side {
 public:
  explicit Side(const Matrix& rows) : rows_(rows) {
    if (rows.rows <= rows.cols) {
      Spectrum spectrum = eigen(multiply(rows, As::is, rows, As::turned));
      const std::vector<double>& values = spectrum.values;
      if (!values.empty() && values.front() > kSquared * values.back()) {
        // rows = V' L^1/2 (L^-1/2 V rows)
        core_ = Matrix(rows.rows, rows.rows);
        inverse_ = Matrix(rows.rows, rows.rows);
        for (std::size_t j = 0; j < rows.rows; ++j) {
          const double scale = std::sqrt(values[j]);
          for (std::size_t r = 0; r < rows.rows; ++r) {
            core_.at(r, j) = spectrum.vectors.at(j, r) * scale;
            inverse_.at(j, r) = spectrum.vectors.at(j, r) / scale;
          }
        }
        return;
      }
    }
    Split parts = split(rows);
    core_ = std::move(parts.left);
    basis_ = std::move(parts.right);
  }

  [[nodiscard]] const Matrix& core() const { return core_; }

  // coefficients * basis
  [[nodiscard]] Matrix lift(const Matrix& coefficients) const {
    if (inverse_.rows == 0) return multiply(coefficients, As::is, basis_, As::is);
    return multiply(multiply(coefficients, As::is, inverse_, As::is), As::is, rows_, As::is);
  }

 private:
  const Matrix& rows_;
  Matrix core_, inverse_, basis_;
};

void check(const Matrix& b, const Matrix& a) {
  if (a.rows != b.rows) fail(Code::internal, "a product whose factors have different ranks");
  if (!std::isfinite(norm(a) * norm(b))) {
    fail(Code::format, "the factors hold NaN or infinity");
  }
}

double squares(std::span<const double> values) {
  double sum = 0;
  for (auto value = values.rbegin(); value != values.rend(); ++value) sum += *value * *value;
  return sum;
}

}  // namespace

std::size_t kept(std::span<const double> values, double total, const Cut& cut) {
  const std::size_t most = std::min(values.size(), cut.rank);
  if (!(cut.energy < 1)) return most;
  double sum = 0;
  for (std::size_t k = 0; k < most; ++k) {
    if (sum >= cut.energy * total) return k;
    sum += values[k] * values[k];
  }
  return most;
}

void settle_signs(Matrix& b, Matrix& a) {
  for (std::size_t r = 0; r < a.rows; ++r) {
    double* row = a.row(r);
    const auto* largest = std::max_element(
        row, row + a.cols, [](double x, double y) { return std::fabs(x) < std::fabs(y); });
    if (largest == row + a.cols || *largest >= 0) continue;
    for (std::size_t c = 0; c < a.cols; ++c) row[c] = -row[c];
    for (std::size_t c = 0; c < b.cols; ++c) b.at(r, c) = -b.at(r, c);
  }
}

Low recombine(const Matrix& b, const Matrix& a, const Cut& cut) {
  check(b, a);
  const Side left(b), right(a);
  const Singular core = svd(multiply(left.core(), As::turned, right.core(), As::is));
  Low low;
  low.values = core.values;
  const double total = squares(core.values);
  const std::size_t k = kept(core.values, total, cut);
  Matrix u(k, core.u.cols), v(k, core.v.cols);
  for (std::size_t j = 0; j < k; ++j) {
    // A value this small beside the largest is rounding, not a direction.
    if (!(core.values[j] > 1e-15 * core.values[0])) continue;
    for (std::size_t c = 0; c < u.cols; ++c) u.at(j, c) = core.u.at(j, c) * core.values[j];
    std::copy_n(core.v.row(j), v.cols, v.row(j));
  }
  low.b = left.lift(u);
  low.a = right.lift(v);
  settle_signs(low.b, low.a);
  low.norm = std::sqrt(total);
  low.error = std::sqrt(squares(std::span(core.values).subspan(k)));
  return low;
}

namespace {

// One side of many products: rows = core * basis as above, by their Gram matrices alone.
struct Sides {
  std::unique_ptr<Stack> rows, gram, roots, inverses;  // gram: its eigenvectors
  std::vector<double> values;

  Sides(Session& session, std::size_t count, std::size_t ranks, std::size_t width)
      : rows(session.stack(count, ranks, width)),
        gram(session.stack(count, ranks, ranks)),
        roots(session.stack(count, ranks, ranks)),
        inverses(session.stack(count, ranks, ranks)) {}

  // Squared ratios of scales at which this is no more accurate than QR.
  [[nodiscard]] bool ill(std::size_t index) const {
    const std::span some = std::span(values).subspan(index * gram->rows, gram->rows);
    return !(some.front() > kSquared * some.back());
  }
  void decompose(Session& session) {
    session.multiply(*rows, As::is, *rows, As::turned, *gram);
    values = session.eigen(*gram);
    std::vector<double> by(values.size());
    std::transform(values.begin(), values.end(), by.begin(),
                   [](double x) { return std::sqrt(std::max(0.0, x)); });
    session.scale(*gram, by, *roots);
    for (double& x : by) x = x > 0 ? 1 / x : 0;
    session.scale(*gram, by, *inverses);
  }
};

// Bytes of a solver's memory for `count` of the products.
std::uint64_t session_bytes(Solver& solver, const Products& products, std::size_t rank,
                            std::size_t count) {
  const std::uint64_t both = products.height + products.width, ranks = products.ranks;
  // Eight stacks of small matrices, and room for each stack's end.
  return solver.session_memory() + solver.eigen_memory(ranks, count) + 32 * 4096 +
         count * sizeof(double) * ((ranks + rank) * both + 12 * ranks * ranks);
}

std::vector<std::size_t> recombine(Session& session, Solver& solver, const Products& products,
                                   std::size_t rank,
                                   const std::function<void(std::size_t, Low&&)>& take) {
  const std::size_t n = products.count, ranks = products.ranks;
  Sides left(session, n, ranks, products.height), right(session, n, ranks, products.width);
  for (std::size_t i = 0; i < n; ++i) {
    Matrix b, a;
    products.load(i, b, a);
    check(b, a);
    session.write(*left.rows, i, std::move(b));
    session.write(*right.rows, i, std::move(a));
  }
  left.decompose(session);
  right.decompose(session);

  // The leading right vectors of the core span what its best approximation keeps. They come from
  // its Gram matrix; small ones among them may be off, yet projecting onto their span leaves,
  // squared, no more than the rounding of the largest value squared beside the best.
  const auto core = session.stack(n, ranks, ranks), vectors = session.stack(n, ranks, ranks),
             images = session.stack(n, ranks, ranks);
  session.multiply(*left.roots, As::is, *right.roots, As::turned, *core);
  session.multiply(*core, As::turned, *core, As::is, *vectors);
  const std::vector<double> values = session.eigen(*vectors);
  session.multiply(*vectors, As::is, *core, As::turned, *images);

  const std::size_t k = std::min(rank, ranks);
  const auto b = session.stack(n, k, products.height), a = session.stack(n, k, products.width);
  const auto small = session.stack(n, k, ranks);
  session.multiply(Part(*images, ranks - k, k), As::is, *left.inverses, As::is, *small);
  session.multiply(*small, As::is, *left.rows, As::is, *b);
  session.multiply(Part(*vectors, ranks - k, k), As::is, *right.inverses, As::is, *small);
  session.multiply(*small, As::is, *right.rows, As::is, *a);

  std::vector<std::size_t> rest;
  for (std::size_t i = 0; i < n; ++i) {
    if (left.ill(i) || right.ill(i)) {
      rest.push_back(i);
      ++solver.ill;
      continue;
    }
    Low low{Matrix(k, products.height), Matrix(k, products.width), {}, 0, 0};
    const Matrix rising_b = session.read(*b, i), rising_a = session.read(*a, i);
    for (std::size_t j = 0; j < k; ++j) {
      std::copy_n(rising_b.row(k - 1 - j), products.height, low.b.row(j));
      std::copy_n(rising_a.row(k - 1 - j), products.width, low.a.row(j));
    }
    settle_signs(low.b, low.a);
    for (std::size_t j = ranks; j-- > 0;) {
      low.values.push_back(std::sqrt(std::max(0.0, values[i * ranks + j])));
    }
    low.norm = std::sqrt(squares(low.values));
    low.error = std::sqrt(squares(std::span(low.values).subspan(k)));
    take(i, std::move(low));
    ++solver.done;
  }
  return rest;
}

}  // namespace

std::size_t recombine_count(Solver& solver, const Products& products, std::size_t rank,
                            std::size_t most) {
  if (products.ranks == 0 || products.ranks > std::min(products.height, products.width)) return 0;
  // Half of the memory, so that one batch is copied while another is decomposed.
  std::size_t count = most;
  while (count > 1 && session_bytes(solver, products, rank, count) > solver.capacity() / 2) {
    count = count * 3 / 4;
  }
  if (count > 0 && session_bytes(solver, products, rank, count) > solver.capacity()) return 0;
  return count;
}

std::vector<std::size_t> recombine(Solver& solver, const Products& products, std::size_t rank,
                                   const std::function<void(std::size_t, Low&&)>& take) {
  try {
    const auto session = solver.open(session_bytes(solver, products, rank, products.count));
    return recombine(*session, solver, products, rank, take);
  } catch (const Error& error) {
    if (error.code() != Code::memory) throw;
  }
  // A library asked for more room than it has said it would; nothing has been handed over yet.
  solver.large += products.count;
  std::vector<std::size_t> rest(products.count);
  std::iota(rest.begin(), rest.end(), std::size_t{0});
  return rest;
}

std::vector<double> spectrum(const Matrix& b, const Matrix& a) {
  check(b, a);
  return svd(multiply(Side(b).core(), As::turned, Side(a).core(), As::is)).values;
}

std::uint64_t recombine_memory(std::uint64_t height, std::uint64_t width, std::uint64_t ranks) {
  // QR holds a copy and the basis beside the arguments; the core's SVD some ten small matrices.
  return sizeof(double) * (2 * ranks * (height + width) + 16 * ranks * ranks);
}

double recombine_work(std::uint64_t height, std::uint64_t width, std::uint64_t ranks) {
  const auto both = static_cast<double>(height + width), r = static_cast<double>(ranks);
  // Gram matrices and bases, and the small problems.
  return 8 * both * r * r + 60 * r * r * r;
}

}  // namespace ingot::linalg
