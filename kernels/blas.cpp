#include "blas.hpp"

#include "ingot/error.hpp"
#include "memory.hpp"
#include "stream.hpp"

namespace ingot::gpu {
namespace {

// Of cuBLAS's interface, which versions 12 and 13 share.
struct Context;
constexpr int kAsIs = 0;      // CUBLAS_OP_N
constexpr int kPedantic = 2;  // CUBLAS_PEDANTIC_MATH: f32, whatever the environment says

void succeeded(int status, const char* call) {
  if (status == 0) return;
  fail(Code::device, std::string("cuBLAS failed while ") + call + " (status " +
                         std::to_string(status) + "); leave out --fast-product");
}

}  // namespace

struct Blas::Calls {
  explicit Calls(const std::string& folder) : library(open_blas(folder)) {}

  Library library;
  Context* context = nullptr;
  int (*destroy)(Context*) = library.symbol<int(Context*)>("cublasDestroy_v2");
  int (*multiply)(Context*, int, int, int, int, int, const float*, const float*, int, const float*,
                  int, const float*, float*, int) =
      library.symbol<int(Context*, int, int, int, int, int, const float*, const float*, int,
                         const float*, int, const float*, float*, int)>("cublasSgemm_v2");
  Device workspace{kWorkspace};
};

Blas::Blas(const std::string& folder, const Stream& stream)
    : calls_(std::make_unique<Calls>(folder)) {
  const Library& library = calls_->library;
  auto* const create = library.symbol<int(Context**)>("cublasCreate_v2");
  auto* const mode = library.symbol<int(Context*, int)>("cublasSetMathMode");
  auto* const follow = library.symbol<int(Context*, cudaStream_t)>("cublasSetStream_v2");
  auto* const lend = library.symbol<int(Context*, void*, std::size_t)>("cublasSetWorkspace_v2");
  succeeded(create(&calls_->context), "starting");
  succeeded(mode(calls_->context, kPedantic), "choosing its arithmetic");
  // In this order: a new stream takes the memory back.
  succeeded(follow(calls_->context, stream.get()), "taking a stream");
  succeeded(lend(calls_->context, calls_->workspace.data(), kWorkspace), "taking its memory");
}

Blas::~Blas() {
  if (calls_->context != nullptr) (void)calls_->destroy(calls_->context);
}

void Blas::add(std::uint64_t rows, std::uint64_t columns, std::uint32_t rank, float scale,
               const float* b, const float* a, float* values, std::uint64_t width) {
  const auto narrow = [](std::uint64_t n) { return static_cast<int>(n); };
  if (width > 0x7fffffff || rows > 0x7fffffff)
    fail(Code::shape, "cuBLAS cannot multiply a matrix with " + std::to_string(width) +
                          " columns; leave out --fast-product");
  const float one = 1.0F;
  // It counts column by column: each matrix is its transpose there.
  succeeded(
      calls_->multiply(calls_->context, kAsIs, kAsIs, narrow(columns), narrow(rows), narrow(rank),
                       &scale, a, narrow(width), b, narrow(rank), &one, values, narrow(width)),
      "multiplying");
}

}  // namespace ingot::gpu
