// Truncated decomposition of a product of two thin matrices, without the product.
//
// Each side is written as a small matrix times orthonormal rows; the singular values of the product
// are those of the small matrices' product. The orthonormal rows come from the Gram matrix, which
// needs nothing but matrix products, or from Householder's QR where squaring would cost accuracy.
#include <algorithm>
#include <cmath>
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
    fail(Code::format, "the factors hold NaN, infinity or values too large to square");
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
    // What is nothing beside the largest is rounding, not a direction.
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

std::vector<double> spectrum(const Matrix& b, const Matrix& a) {
  check(b, a);
  return svd(multiply(Side(b).core(), As::turned, Side(a).core(), As::is)).values;
}

std::uint64_t recombine_memory(std::uint64_t height, std::uint64_t width, std::uint64_t ranks) {
  // QR holds a copy and the basis beside the arguments; the core's SVD some ten small matrices.
  return sizeof(double) * (2 * ranks * (height + width) + 16 * ranks * ranks);
}

}  // namespace ingot::linalg
