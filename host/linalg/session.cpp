// Sessions over LAPACK and BLAS, in the host's memory.
#include <cblas.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "linalg/gemm.hpp"

namespace ingot::linalg {

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

int shift_of(double norm) noexcept {
  constexpr int kFar = 60;  // f32 has 126 on either side
  if (!(norm > 0) || !std::isfinite(norm)) return 0;
  const int exponent = std::ilogb(norm);
  return std::abs(exponent) > kFar ? -exponent : 0;
}

Rows scaled(const Rows& rows, int shift) {
  return {rows.height, rows.width,
          [&rows, by = std::ldexp(1.0, shift)](std::size_t first, std::span<float> values) {
            rows.read(first, values);
            for (float& x : values) x = static_cast<float>(static_cast<double>(x) * by);
          }};
}

namespace {

class Matrices final : public Stack {
 public:
  Matrices(std::size_t count_, std::size_t rows_, std::size_t cols_)
      : Stack(count_, rows_, cols_), each(count_, Matrix(rows_, cols_)) {}
  std::vector<Matrix> each;
};

Matrices& of(Stack& stack) { return static_cast<Matrices&>(stack); }
const Matrices& of(const Stack& stack) { return static_cast<const Matrices&>(stack); }

std::vector<float> floats(const Matrix& m) {
  std::vector<float> values(m.data.size());
  std::transform(m.data.begin(), m.data.end(), values.begin(),
                 [](double x) { return static_cast<float>(x); });
  return values;
}

// The matrix by pieces of rows, kept in memory where that is allowed.
class Pieces final : public Dense {
 public:
  Pieces(const Rows& rows, bool keep) : rows_(rows), step_(rows_at_once(rows.width)) {
    if (keep) {
      kept_.resize(rows.height * rows.width);
      rows_.read(0, kept_);
    } else {
      piece_.resize(step_ * rows.width);
    }
  }

  void each(const Use& use) override {
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

  [[nodiscard]] double squares() override {
    double sum = 0;
    each([&](std::size_t, std::size_t count, const float* values) {
      sum += linalg::squares({values, count * rows_.width});
    });
    return sum;
  }

  [[nodiscard]] std::unique_ptr<Stack> forward(const Stack& v) override {
    const std::vector<float> factor = floats(of(v).each[0]);
    auto result = std::make_unique<Matrices>(1, v.rows, rows_.height);
    std::vector<float> part;
    each([&](std::size_t first, std::size_t count, const float* values) {
      part.resize(v.rows * count);
      gemm(v.rows, count, rows_.width, 1.0F, {factor.data(), rows_.width},
           {values, rows_.width, As::turned}, 0.0F, part.data(), count);
      for (std::size_t r = 0; r < v.rows; ++r) {
        std::copy_n(part.data() + r * count, count, result->each[0].row(r) + first);
      }
    });
    return result;
  }

  [[nodiscard]] std::unique_ptr<Stack> backward(const Stack& u) override {
    const std::vector<float> factor = floats(of(u).each[0]);
    auto result = std::make_unique<Matrices>(1, u.rows, rows_.width);
    std::vector<double>& sum = result->each[0].data;
    std::vector<float> part(u.rows * rows_.width);
    each([&](std::size_t first, std::size_t count, const float* values) {
      gemm(u.rows, rows_.width, count, 1.0F, {factor.data() + first, rows_.height},
           {values, rows_.width}, 0.0F, part.data(), rows_.width);
      for (std::size_t i = 0; i < part.size(); ++i) sum[i] += static_cast<double>(part[i]);
    });
    return result;
  }

  [[nodiscard]] double residual(const Matrix& b, const Matrix& a) override {
    const std::vector<float> left = floats(b), right = floats(a);
    double sum = 0;
    std::vector<float> rest;
    each([&](std::size_t first, std::size_t count, const float* values) {
      rest.assign(values, values + count * rows_.width);
      if (b.rows > 0) {
        gemm(count, rows_.width, b.rows, -1.0F, {left.data() + first, rows_.height, As::turned},
             {right.data(), rows_.width}, 1.0F, rest.data(), rows_.width);
      }
      sum += linalg::squares(rest);
    });
    return std::sqrt(sum);
  }

 private:
  const Rows& rows_;
  std::size_t step_;
  std::vector<float> kept_, piece_;
};

class HostSession final : public Session {
 public:
  std::unique_ptr<Stack> stack(std::size_t count, std::size_t rows, std::size_t cols) override {
    return std::make_unique<Matrices>(count, rows, cols);
  }
  void write(Stack& to, std::size_t index, Matrix matrix) override {
    of(to).each[index] = std::move(matrix);
  }
  Matrix read(const Stack& from, std::size_t index) override { return of(from).each[index]; }

  void multiply(const Part& a, As a_as, const Part& b, As b_as, Stack& c) override {
    const std::size_t depth = a_as == As::turned ? a.rows : a.stack.cols;
    for (std::size_t i = 0; i < c.count; ++i) {
      gemm(c.rows, c.cols, depth, of(a.stack).each[i].row(a.first), a_as,
           of(b.stack).each[i].row(b.first), b_as, of(c).each[i].data.data());
    }
  }
  void add(Stack& sum, double scale, const Stack& term) override {
    for (std::size_t i = 0; i < sum.count; ++i) {
      std::vector<double>& to = of(sum).each[i].data;
      const std::vector<double>& from = of(term).each[i].data;
      for (std::size_t e = 0; e < to.size(); ++e) to[e] += scale * from[e];
    }
  }
  void scale(const Stack& rows, std::span<const double> by, Stack& result) override {
    for (std::size_t i = 0; i < rows.count; ++i) {
      for (std::size_t r = 0; r < rows.rows; ++r) {
        const double* from = of(rows).each[i].row(r);
        std::transform(from, from + rows.cols, of(result).each[i].row(r),
                       [times = by[i * rows.rows + r]](double x) { return x * times; });
      }
    }
  }
  std::vector<double> eigen(Stack& symmetric) override {
    std::vector<double> values;
    for (Matrix& matrix : of(symmetric).each) {
      Spectrum spectrum = linalg::eigen(std::move(matrix));
      values.insert(values.end(), spectrum.values.begin(), spectrum.values.end());
      matrix = std::move(spectrum.vectors);
    }
    return values;
  }
  void orthonormalise(Stack& rows) override {
    Matrix& matrix = of(rows).each[0];
    matrix = split(std::move(matrix)).right;
  }
  Singular svd(const Matrix& a) override { return linalg::svd(a); }
  std::unique_ptr<Dense> dense(const Rows& rows, bool keep) override {
    return std::make_unique<Pieces>(rows, keep);
  }
};

class Lapack final : public Solver {
 public:
  explicit Lapack(const std::string& why) : why_(why) {}

  std::string describe() const override {
    const std::string config =
        openblas_get_config();  // "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..."
    const std::size_t name = config.find(' '), version = config.find(' ', name + 1);
    return "LAPACK of " + config.substr(0, version) + (why_.empty() ? "" : ": " + why_);
  }
  std::uint64_t capacity() const override { return 0; }
  std::uint64_t eigen_memory(std::size_t, std::size_t) override { return 0; }
  std::uint64_t session_memory() const override { return 0; }
  std::unique_ptr<Session> open(std::uint64_t) override { return std::make_unique<HostSession>(); }

 private:
  std::string why_;
};

}  // namespace

std::unique_ptr<Solver> lapack(const std::string& why) { return std::make_unique<Lapack>(why); }

double residual(const Rows& rows, const Matrix& b, const Matrix& a) {
  const int shift = shift_of(norm(b) * norm(a));
  if (shift == 0) return Pieces(rows, false).residual(b, a);
  const Rows near = scaled(rows, shift);
  Matrix left = b;
  for (double& x : left.data) x = std::ldexp(x, shift);
  return std::ldexp(Pieces(near, false).residual(left, a), -shift);
}

}  // namespace ingot::linalg
