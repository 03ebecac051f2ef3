// Stands for cuBLAS and cuSOLVER in tests: versions, and the one product that is asked of cuBLAS, as a kernel
// of the emulator that opened it.
#include <cuda_runtime.h>

#include <cstddef>

namespace {

#if defined(INGOT_FAKE_BLAS)

struct Context {
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;
};

constexpr int kNotInitialised = 1, kInvalidValue = 7, kExecutionFailed = 13;

#endif

}  // namespace

extern "C" {

#if defined(INGOT_FAKE_BLAS)

int cublasGetProperty(int part, int* number) {
  *number = 7 + part;
  return 0;
}
int cublasCreate_v2(Context** context) {
  *context = new Context;
  return 0;
}
int cublasDestroy_v2(Context* context) {
  delete context;
  return 0;
}
int cublasSetMathMode(Context*, int mode) { return mode == 2 ? 0 : kInvalidValue; }
int cublasSetStream_v2(Context* context, cudaStream_t stream) {
  *context = {stream, nullptr};
  return 0;
}
int cublasSetWorkspace_v2(Context* context, void* workspace, std::size_t bytes) {
  context->workspace = workspace;
  return bytes > 0 ? 0 : kInvalidValue;
}

// Column-major, nothing turned: c (m x n) = alpha a (m x k) b (k x n) + beta c. The sums run backwards, so
// that nobody takes them for those of the exact class.
int cublasSgemm_v2(Context* context, int a_as, int b_as, int m, int n, int k, const float* alpha,
                   const float* a, int lda, const float* b, int ldb, const float* beta, float* c,
                   int ldc) {
  if (context->workspace == nullptr) return kNotInitialised;
  if (a_as != 0 || b_as != 0 || m > lda || k > ldb || m > ldc) return kInvalidValue;
  const auto body = [=, scale = *alpha, keep = *beta] {
    const auto at = [](int row, int column, int pace) {
      return static_cast<std::size_t>(column) * static_cast<std::size_t>(pace) +
             static_cast<std::size_t>(row);
    };
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < m; ++i) {
        float sum = 0;
        for (int l = k - 1; l >= 0; --l) sum += a[at(i, l, lda)] * b[at(l, j, ldb)];
        float& out = c[at(i, j, ldc)];
        out = keep * out + scale * sum;
      }
    }
  };
  return emu::enqueue(context->stream, 1, 1, body) == cudaSuccess ? 0 : kExecutionFailed;
}

#else

int cusolverGetProperty(int part, int* number) {
  *number = 7 + part;
  return 0;
}

#endif
}
