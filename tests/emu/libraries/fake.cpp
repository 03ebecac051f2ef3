// Stands for cuBLAS and cuSOLVER in tests: versions, and what is asked of them, as kernels of the
// emulator that opened it. Plain loops by other ways than LAPACK's: Jacobi's for eigenvalues,
// Householder's for QR.
#include "fake.hpp"

#include <cuda_runtime.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace {

struct Context {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
};

std::atomic<std::uint64_t> calls = 0, products = 0, eigen = 0, matrices = 0, qr = 0, fails = 0;
std::atomic<std::int64_t> live = 0;

constexpr int kNotInitialised = 1, kInvalidValue = 7, kExecutionFailed = 13;

// Counts a call; true if it is the one that is to fail.
bool failing() { return ++calls == fails; }

[[maybe_unused]] int create(Context** context) {
  if (failing()) return kNotInitialised;
  *context = new Context;
  ++live;
  return 0;
}
[[maybe_unused]] int destroy(Context* context) {
  delete context;
  --live;
  return 0;
}

template <class Body>
int enqueue(const Context* context, const Body& body) {
  return emu::enqueue(context->stream, 1, 1, body) == cudaSuccess ? 0 : kExecutionFailed;
}

std::size_t at(int row, int column, int pace) {
  return static_cast<std::size_t>(column) * static_cast<std::size_t>(pace) +
         static_cast<std::size_t>(row);
}

#if defined(INGOT_FAKE_BLAS)

// Column-major c (m x n) = alpha op(a) op(b) + beta c. The sums run backwards, so that nobody takes
// them for those of the exact class.
template <class T>
void multiply(int a_as, int b_as, int m, int n, int k, T alpha, const T* a, int lda, const T* b,
              int ldb, T beta, T* c, int ldc) {
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < m; ++i) {
      T sum = 0;
      for (int l = k - 1; l >= 0; --l) {
        sum += a[a_as == 0 ? at(i, l, lda) : at(l, i, lda)] *
               b[b_as == 0 ? at(l, j, ldb) : at(j, l, ldb)];
      }
      T& out = c[at(i, j, ldc)];
      out = (beta == 0 ? 0 : beta * out) + alpha * sum;
    }
  }
}

bool fits(int a_as, int b_as, int m, int n, int k, int lda, int ldb, int ldc) {
  return (a_as == 0 || a_as == 1) && (b_as == 0 || b_as == 1) && m > 0 && n > 0 && k > 0 &&
         lda >= (a_as == 0 ? m : k) && ldb >= (b_as == 0 ? k : n) && ldc >= m;
}

#else

// Cyclic Jacobi on a symmetric matrix; its eigenvectors become the rows of `v`.
void rotate(std::vector<double>& a, std::vector<double>& v, std::size_t n) {
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, all = 0;
    for (std::size_t i = 0; i < n * n; ++i) {
      all += a[i] * a[i];
      if (i / n != i % n) off += a[i] * a[i];
    }
    if (off <= 1e-31 * all) return;
    for (std::size_t p = 0; p < n; ++p) {
      for (std::size_t q = p + 1; q < n; ++q) {
        if (a[p * n + q] == 0) continue;
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q]);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (std::size_t k = 0; k < n; ++k) {
          const double x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y;
          a[k * n + q] = s * x + c * y;
        }
        for (std::size_t k = 0; k < n; ++k) {
          const double x = a[p * n + k], y = a[q * n + k];
          a[p * n + k] = c * x - s * y;
          a[q * n + k] = s * x + c * y;
        }
        for (std::size_t k = 0; k < n; ++k) {
          const double x = v[p * n + k], y = v[q * n + k];
          v[p * n + k] = c * x - s * y;
          v[q * n + k] = s * x + c * y;
        }
      }
    }
  }
}

// One matrix, replaced by its eigenvectors in rising order of their values.
void decompose(double* matrix, double* values, std::size_t n) {
  std::vector<double> a(n * n), v(n * n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    v[i * n + i] = 1;
    for (std::size_t j = 0; j <= i; ++j) {  // the lower half, column by column
      a[i * n + j] = a[j * n + i] = matrix[j * n + i];
    }
  }
  rotate(a, v, n);
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t to = 0;
    while (to < order.size() && a[order[to] * n + order[to]] <= a[i * n + i]) ++to;
    order.insert(order.begin() + static_cast<std::ptrdiff_t>(to), i);
  }
  for (std::size_t j = 0; j < n; ++j) {
    values[j] = a[order[j] * n + order[j]];
    for (std::size_t k = 0; k < n; ++k) matrix[j * n + k] = v[order[j] * n + k];
  }
}

#endif

}  // namespace

extern "C" {

void fake_reset(std::uint64_t n) {
  calls = products = eigen = matrices = qr = 0;
  fails = n;
}
FakeCalls fake_counted() { return {calls, products, eigen, matrices, qr, live}; }

#if defined(INGOT_FAKE_BLAS)

int cublasGetProperty(int part, int* number) {
  *number = 7 + part;
  return 0;
}
int cublasCreate_v2(Context** context) { return create(context); }
int cublasDestroy_v2(Context* context) { return destroy(context); }
int cublasSetMathMode(Context*, int mode) {
  return failing() ? kExecutionFailed : mode == 2 ? 0 : kInvalidValue;
}
int cublasSetStream_v2(Context* context, cudaStream_t stream) {
  if (failing()) return kExecutionFailed;
  *context = {stream, nullptr};
  return 0;
}
int cublasSetWorkspace_v2(Context* context, void* workspace, std::size_t bytes) {
  if (failing()) return kExecutionFailed;
  context->workspace = workspace;
  return bytes > 0 && reinterpret_cast<std::uintptr_t>(workspace) % 256 == 0 ? 0 : kInvalidValue;
}

int cublasSgemm_v2(Context* context, int a_as, int b_as, int m, int n, int k, const float* alpha,
                   const float* a, int lda, const float* b, int ldb, const float* beta, float* c,
                   int ldc) {
  if (failing()) return kExecutionFailed;
  if (context->workspace == nullptr) return kNotInitialised;
  if (!fits(a_as, b_as, m, n, k, lda, ldb, ldc)) return kInvalidValue;
  ++products;
  return enqueue(context, [=, scale = *alpha, keep = *beta] {
    multiply(a_as, b_as, m, n, k, scale, a, lda, b, ldb, keep, c, ldc);
  });
}

int cublasDgemmStridedBatched(Context* context, int a_as, int b_as, int m, int n, int k,
                              const double* alpha, const double* a, int lda, long long a_next,
                              const double* b, int ldb, long long b_next, const double* beta,
                              double* c, int ldc, long long c_next, int count) {
  if (failing()) return kExecutionFailed;
  if (context->workspace == nullptr) return kNotInitialised;
  if (!fits(a_as, b_as, m, n, k, lda, ldb, ldc) || count < 1) return kInvalidValue;
  ++products;
  return enqueue(context, [=, scale = *alpha, keep = *beta] {
    for (int i = 0; i < count; ++i) {
      multiply(a_as, b_as, m, n, k, scale, a + i * a_next, lda, b + i * b_next, ldb, keep,
               c + i * c_next, ldc);
    }
  });
}

// c = a diag(x).
int cublasDdgmm(Context* context, int side, int m, int n, const double* a, int lda, const double* x,
                int step, double* c, int ldc) {
  if (failing()) return kExecutionFailed;
  if (side != 1 || step != 1 || lda < m || ldc < m || a == c) return kInvalidValue;
  return enqueue(context, [=] {
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < m; ++i) c[at(i, j, ldc)] = a[at(i, j, lda)] * x[j];
    }
  });
}

int cublasDaxpy_v2(Context* context, int n, const double* alpha, const double* x, int x_step,
                   double* y, int y_step) {
  if (failing()) return kExecutionFailed;
  if (x_step != 1 || y_step != 1) return kInvalidValue;
  return enqueue(context, [=, scale = *alpha] {
    for (int i = 0; i < n; ++i) y[i] += scale * x[i];
  });
}

#else

int cusolverGetProperty(int part, int* number) {
  *number = 7 + part;
  return 0;
}
int cusolverDnCreate(Context** context) { return create(context); }
int cusolverDnDestroy(Context* context) { return destroy(context); }
int cusolverDnCreateParams(Context** parameters) { return create(parameters); }
int cusolverDnDestroyParams(Context* parameters) { return destroy(parameters); }
int cusolverDnSetStream(Context* context, cudaStream_t stream) {
  if (failing()) return kExecutionFailed;
  context->stream = stream;
  return 0;
}

int cusolverDnXsyevBatched_bufferSize(Context*, Context*, int vectors, int half, std::int64_t n,
                                      int a_type, const void*, std::int64_t lda, int w_type,
                                      const void*, int type, std::size_t* device, std::size_t* host,
                                      std::int64_t count) {
  if (failing()) return kExecutionFailed;
  if (vectors != 1 || half != 0 || n < 1 || lda != n || a_type != 1 || w_type != 1 || type != 1)
    return kInvalidValue;
  *device = static_cast<std::size_t>(n * count) * sizeof(double);
  *host = 40;
  return 0;
}

int cusolverDnXsyevBatched(Context* context, Context* parameters, int vectors, int half,
                           std::int64_t n, int a_type, void* a, std::int64_t lda, int w_type,
                           void* w, int type, void* room, std::size_t bytes, void* own,
                           std::size_t own_bytes, int* infos, std::int64_t count) {
  std::size_t device = 0, host = 0;
  if (const int status =
          cusolverDnXsyevBatched_bufferSize(context, parameters, vectors, half, n, a_type, a, lda,
                                            w_type, w, type, &device, &host, count);
      status != 0)
    return status;
  if (bytes < device || own_bytes < host || own == nullptr) return kInvalidValue;
  ++eigen;
  matrices += static_cast<std::uint64_t>(count);
  return enqueue(context, [=] {
    auto* const first = static_cast<double*>(room);
    for (std::int64_t i = 0; i < count; ++i) {
      first[i] = 0;  // the memory that was asked for is there
      decompose(static_cast<double*>(a) + i * n * n, static_cast<double*>(w) + i * n,
                static_cast<std::size_t>(n));
      infos[i] = 0;
    }
  });
}

int cusolverDnDgeqrf_bufferSize(Context*, int, int n, double*, int, int* size) {
  *size = n;
  return failing() ? kExecutionFailed : 0;
}
int cusolverDnDorgqr_bufferSize(Context*, int, int n, int, const double*, int, const double*,
                                int* size) {
  *size = 2 * n;
  return failing() ? kExecutionFailed : 0;
}

// Householder's, in LAPACK's form: vectors below the diagonal, 1 on it unsaid.
int cusolverDnDgeqrf(Context* context, int m, int n, double* a, int lda, double* scales,
                     double* room, int size, int* info) {
  if (failing()) return kExecutionFailed;
  if (m < n || lda < m || size < n) return kInvalidValue;
  ++qr;
  return enqueue(context, [=] {
    for (int j = 0; j < n; ++j) {
      room[j] = 0;
      double sum = 0;
      for (int i = j + 1; i < m; ++i) sum += a[at(i, j, lda)] * a[at(i, j, lda)];
      double& head = a[at(j, j, lda)];
      scales[j] = 0;
      if (sum == 0) continue;
      const double length = std::copysign(std::sqrt(head * head + sum), head);
      scales[j] = (head + length) / length;
      for (int i = j + 1; i < m; ++i) a[at(i, j, lda)] /= head + length;
      head = -length;
      for (int c = j + 1; c < n; ++c) {
        double along = a[at(j, c, lda)];
        for (int i = j + 1; i < m; ++i) along += a[at(i, j, lda)] * a[at(i, c, lda)];
        along *= scales[j];
        a[at(j, c, lda)] -= along;
        for (int i = j + 1; i < m; ++i) a[at(i, c, lda)] -= along * a[at(i, j, lda)];
      }
    }
    *info = 0;
  });
}

int cusolverDnDorgqr(Context* context, int m, int n, int k, double* a, int lda,
                     const double* scales, double* room, int size, int* info) {
  if (failing()) return kExecutionFailed;
  if (m < n || n != k || lda < m || size < 2 * n) return kInvalidValue;
  return enqueue(context, [=] {
    room[2 * n - 1] = 0;
    for (int j = n - 1; j >= 0; --j) {
      for (int c = j + 1; c < n; ++c) {
        double along = 0;
        for (int i = j + 1; i < m; ++i) along += a[at(i, j, lda)] * a[at(i, c, lda)];
        along *= scales[j];
        a[at(j, c, lda)] = -along;
        for (int i = j + 1; i < m; ++i) a[at(i, c, lda)] -= along * a[at(i, j, lda)];
      }
      for (int i = j + 1; i < m; ++i) a[at(i, j, lda)] *= -scales[j];
      for (int i = 0; i < j; ++i) a[at(i, j, lda)] = 0;
      a[at(j, j, lda)] = 1 - scales[j];
    }
    *info = 0;
  });
}

#endif
}
