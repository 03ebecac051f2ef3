// The calls into LAPACK and BLAS. LAPACK counts column by column: a row-major matrix is the
// transpose there, and every function here is written for that.
#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "linalg/gemm.hpp"

// Fortran's routines; the last arguments are the lengths of the texts.
extern "C" {
void dsyevd_(const char* job, const char* half, const int* n, double* a, const int* lda, double* w,
             double* work, const int* lwork, int* iwork, const int* liwork, int* info, std::size_t,
             std::size_t);
void dgeqrf_(const int* m, const int* n, double* a, const int* lda, double* tau, double* work,
             const int* lwork, int* info);
void dorgqr_(const int* m, const int* n, const int* k, double* a, const int* lda, const double* tau,
             double* work, const int* lwork, int* info);
void dgesdd_(const char* job, const int* m, const int* n, double* a, const int* lda, double* s,
             double* u, const int* ldu, double* vt, const int* ldvt, double* work, const int* lwork,
             int* iwork, int* info, std::size_t);
}

namespace ingot::linalg {
namespace {

constexpr int kAsk = -1;  // for lwork: tell how much room is wanted

int narrow(std::size_t n) {
  if (n > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
    fail(Code::shape, fmt::format("a matrix with {} rows or columns is too large to decompose", n));
  }
  return static_cast<int>(n);
}

// LAPACK's answer to kAsk.
std::vector<double> room(double wanted) {
  return std::vector<double>(static_cast<std::size_t>(wanted) + 1);
}

// Held during every call into the library. OpenBLAS for threads takes calls from all of them, each
// kept on its own: results then depend on no number of threads. A build for one thread or for
// OpenMP may have taken its place when the program starts (all are libopenblas.so.0); there calls
// wait for each other: entered twice, either was wrong in up to half of all decompositions
// (tests/unit/blas_test.cpp). OpenMP's number of threads belongs to the thread that calls.
class Turn {
 public:
  Turn() : lock_(mutex(), std::defer_lock) {
    static const int parallel = [] {
      openblas_set_num_threads(1);
      return openblas_get_parallel();
    }();
    if (parallel == OPENBLAS_THREAD) return;
    lock_.lock();
    openblas_set_num_threads(1);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  std::unique_lock<std::mutex> lock_;
};

void succeeded(const char* routine, int info) {
  if (info == 0) return;
  // What comes here is finite, so that no iteration fails to converge for want of numbers.
  fail(Code::internal, fmt::format("{} of LAPACK failed with code {}", routine, info));
}

}  // namespace

Matrix multiply(const Matrix& a, As a_as, const Matrix& b, As b_as) {
  const bool at = a_as == As::turned, bt = b_as == As::turned;
  const std::size_t m = at ? a.cols : a.rows, k = at ? a.rows : a.cols;
  const std::size_t n = bt ? b.rows : b.cols, l = bt ? b.cols : b.rows;
  if (k != l) fail(Code::internal, fmt::format("a product of widths {} and {}", k, l));
  Matrix c(m, n);
  if (k > 0) gemm(m, n, k, a.data.data(), a_as, b.data.data(), b_as, c.data.data());
  return c;
}

void gemm(std::size_t rows, std::size_t cols, std::size_t depth, const double* a, As a_as,
          const double* b, As b_as, double* c) {
  if (rows == 0 || cols == 0) return;
  const bool at = a_as == As::turned, bt = b_as == As::turned;
  const Turn turn;
  cblas_dgemm(CblasRowMajor, at ? CblasTrans : CblasNoTrans, bt ? CblasTrans : CblasNoTrans,
              narrow(rows), narrow(cols), narrow(depth), 1.0, a, narrow(at ? rows : depth), b,
              narrow(bt ? depth : cols), 0.0, c, narrow(cols));
}

void gemm(std::size_t rows, std::size_t cols, std::size_t depth, float alpha, const View& a,
          const View& b, float beta, float* c, std::size_t c_pace) {
  if (rows == 0 || cols == 0) return;
  const Turn turn;
  cblas_sgemm(CblasRowMajor, a.as == As::turned ? CblasTrans : CblasNoTrans,
              b.as == As::turned ? CblasTrans : CblasNoTrans, narrow(rows), narrow(cols),
              narrow(depth), alpha, a.data, narrow(a.pace), b.data, narrow(b.pace), beta, c,
              narrow(c_pace));
}

void add_product(std::size_t rows, std::size_t columns, std::size_t rank, float scale,
                 const float* b, const float* a, float* values, std::size_t width) {
  gemm(rows, columns, rank, scale, {b, rank}, {a, width}, 1.0F, values, width);
}

double norm(const Matrix& a) {
  // In parts, so that few roundings pile up; scaling against overflow is not needed:
  // entries are f32 values times a few of them.
  double sum = 0;
  for (std::size_t r = 0; r < a.rows; ++r) {
    double part = 0;
    for (std::size_t c = 0; c < a.cols; ++c) part += a.at(r, c) * a.at(r, c);
    sum += part;
  }
  return std::sqrt(sum);
}

Spectrum eigen(Matrix symmetric) {
  const int n = narrow(symmetric.rows);
  Spectrum result{std::vector<double>(symmetric.rows), std::move(symmetric)};
  if (n == 0) return result;
  const Turn turn;
  double* a = result.vectors.data.data();
  double wanted = 0;
  int whole = 0, info = 0;
  dsyevd_("V", "U", &n, a, &n, result.values.data(), &wanted, &kAsk, &whole, &kAsk, &info, 1, 1);
  succeeded("dsyevd", info);
  std::vector<double> work = room(wanted);
  std::vector<int> counts(static_cast<std::size_t>(whole));
  const int size = narrow(work.size());
  // Eigenvectors come as columns, which are rows here.
  dsyevd_("V", "U", &n, a, &n, result.values.data(), work.data(), &size, counts.data(), &whole,
          &info, 1, 1);
  succeeded("dsyevd", info);
  return result;
}

Split split(Matrix a) {
  // Seen by columns this is the transpose, height by rows: QR of it gives R transposed on the left.
  const std::size_t rows = a.rows, cols = a.cols, k = std::min(rows, cols);
  Split result{Matrix(rows, k), Matrix(k, cols)};
  if (k == 0) return result;
  const Turn turn;
  const int m = narrow(cols), n = narrow(rows), small = narrow(k);
  std::vector<double> scales(k);
  double wanted = 0, asked = 0;
  int info = 0;
  dgeqrf_(&m, &n, a.data.data(), &m, scales.data(), &wanted, &kAsk, &info);
  dorgqr_(&m, &small, &small, a.data.data(), &m, scales.data(), &asked, &kAsk, &info);
  std::vector<double> work = room(std::max(wanted, asked));
  const int size = narrow(work.size());
  dgeqrf_(&m, &n, a.data.data(), &m, scales.data(), work.data(), &size, &info);
  succeeded("dgeqrf", info);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c <= std::min(r, k - 1); ++c) result.left.at(r, c) = a.at(r, c);
  }
  dorgqr_(&m, &small, &small, a.data.data(), &m, scales.data(), work.data(), &size, &info);
  succeeded("dorgqr", info);
  std::copy_n(a.data.data(), k * cols, result.right.data.data());
  return result;
}

Singular svd(const Matrix& a) {
  const std::size_t k = std::min(a.rows, a.cols);
  Singular result{std::vector<double>(k), Matrix(k, a.rows), Matrix(k, a.cols)};
  if (k == 0) return result;
  if (!std::isfinite(norm(a))) {
    fail(Code::format, "a matrix to decompose holds NaN or infinity");
  }
  const Turn turn;
  // By columns the transpose: its left vectors are the right ones of `a`.
  const int m = narrow(a.cols), n = narrow(a.rows), small = narrow(k);
  Matrix copy = a;
  Matrix right(a.rows, k);  // by columns k x rows
  std::vector<int> counts(8 * k);
  double wanted = 0;
  const auto solve = [&](double* work, int size) {
    int info = 0;
    dgesdd_("S", &m, &n, copy.data.data(), &m, result.values.data(), result.v.data.data(), &m,
            right.data.data(), &small, work, &size, counts.data(), &info, 1);
    succeeded("dgesdd", info);
  };
  solve(&wanted, kAsk);
  std::vector<double> work = room(wanted);
  solve(work.data(), narrow(work.size()));
  for (std::size_t r = 0; r < a.rows; ++r) {
    for (std::size_t j = 0; j < k; ++j) result.u.at(j, r) = right.at(r, j);
  }
  return result;
}

}  // namespace ingot::linalg
