#include "solver.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "check.hpp"
#include "dense.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "loader.hpp"
#include "memory.hpp"
#include "stream.hpp"

namespace ingot::gpu {

namespace {

// Of the interfaces of cuBLAS 12 and 13 and of cuSOLVER 11 and 12, which agree in what is used.
struct Blas;
struct Handle;
struct Parameters;
constexpr int kPedantic = 2;  // CUBLAS_PEDANTIC_MATH: f32 and f64, whatever the environment says
constexpr int kRight = 1;     // CUBLAS_SIDE_RIGHT
constexpr int kVectors = 1;   // CUSOLVER_EIG_MODE_VECTOR
constexpr int kLower = 0;     // CUBLAS_FILL_MODE_LOWER
constexpr int kDouble = 1;    // CUDA_R_64F
// Workspace that a session gives to cuBLAS, so that cuBLAS does not allocate any.
constexpr std::uint64_t kWorkspace = std::uint64_t{4} << 20;

using linalg::As;
using linalg::Matrix;

int turned(As as) { return as == As::turned ? 1 : 0; }  // CUBLAS_OP_T, CUBLAS_OP_N

void succeeded(int status, const char* library, const char* call) {
  if (status == 0) return;
  fail(Code::device, std::string(library) + " failed while " + call + " (status " +
                         std::to_string(status) + "); run with --device cpu");
}
void blas(int status, const char* call) { succeeded(status, "cuBLAS", call); }
void solve(int status, const char* call) { succeeded(status, "cuSOLVER", call); }

int narrow_int(std::uint64_t n) {
  if (n > static_cast<std::uint64_t>(std::numeric_limits<int>::max()))
    fail(Code::shape, "a matrix with " + std::to_string(n) +
                          " rows or columns is too large for cuBLAS; run with --device cpu");
  return static_cast<int>(n);
}

}  // namespace

class Algebra {
 public:
  explicit Algebra(const std::string& folder)
      : versions(device_libraries(folder)), libraries(open_libraries(folder)) {}

  const std::string versions;
  const Libraries libraries;

  template <class F>
  [[nodiscard]] F* of_blas(const char* name) const {
    return libraries.blas.symbol<F>(name);
  }
  template <class F>
  [[nodiscard]] F* of_solver(const char* name) const {
    return libraries.solver.symbol<F>(name);
  }

  int (*blas_create)(Blas**) = of_blas<int(Blas**)>("cublasCreate_v2");
  int (*blas_destroy)(Blas*) = of_blas<int(Blas*)>("cublasDestroy_v2");
  int (*blas_mode)(Blas*, int) = of_blas<int(Blas*, int)>("cublasSetMathMode");
  int (*blas_follow)(Blas*, cudaStream_t) = of_blas<int(Blas*, cudaStream_t)>("cublasSetStream_v2");
  int (*blas_lend)(Blas*, void*,
                   std::size_t) = of_blas<int(Blas*, void*, std::size_t)>("cublasSetWorkspace_v2");
  int (*sgemm)(Blas*, int, int, int, int, int, const float*, const float*, int, const float*, int,
               const float*, float*,
               int) = of_blas<int(Blas*, int, int, int, int, int, const float*, const float*, int,
                                  const float*, int, const float*, float*, int)>("cublasSgemm_v2");
  int (*dgemm)(Blas*, int, int, int, int, int, const double*, const double*, int, long long,
               const double*, int, long long, const double*, double*, int, long long, int) =
      of_blas<int(Blas*, int, int, int, int, int, const double*, const double*, int, long long,
                  const double*, int, long long, const double*, double*, int, long long, int)>(
          "cublasDgemmStridedBatched");
  int (*ddgmm)(Blas*, int, int, int, const double*, int, const double*, int, double*, int) =
      of_blas<int(Blas*, int, int, int, const double*, int, const double*, int, double*, int)>(
          "cublasDdgmm");
  int (*daxpy)(Blas*, int, const double*, const double*, int, double*, int) =
      of_blas<int(Blas*, int, const double*, const double*, int, double*, int)>("cublasDaxpy_v2");

  int (*create)(Handle**) = of_solver<int(Handle**)>("cusolverDnCreate");
  int (*destroy)(Handle*) = of_solver<int(Handle*)>("cusolverDnDestroy");
  int (*follow)(Handle*,
                cudaStream_t) = of_solver<int(Handle*, cudaStream_t)>("cusolverDnSetStream");
  int (*create_parameters)(Parameters**) = of_solver<int(Parameters**)>("cusolverDnCreateParams");
  int (*destroy_parameters)(Parameters*) = of_solver<int(Parameters*)>("cusolverDnDestroyParams");
  int (*syev_room)(Handle*, Parameters*, int, int, std::int64_t, int, const void*, std::int64_t,
                   int, const void*, int, std::size_t*, std::size_t*, std::int64_t) =
      of_solver<int(Handle*, Parameters*, int, int, std::int64_t, int, const void*, std::int64_t,
                    int, const void*, int, std::size_t*, std::size_t*, std::int64_t)>(
          "cusolverDnXsyevBatched_bufferSize");
  int (*syev)(Handle*, Parameters*, int, int, std::int64_t, int, void*, std::int64_t, int, void*,
              int, void*, std::size_t, void*, std::size_t, int*, std::int64_t) =
      of_solver<int(Handle*, Parameters*, int, int, std::int64_t, int, void*, std::int64_t, int,
                    void*, int, void*, std::size_t, void*, std::size_t, int*, std::int64_t)>(
          "cusolverDnXsyevBatched");
  int (*geqrf_room)(Handle*, int, int, double*, int, int*) =
      of_solver<int(Handle*, int, int, double*, int, int*)>("cusolverDnDgeqrf_bufferSize");
  int (*geqrf)(Handle*, int, int, double*, int, double*, double*, int, int*) =
      of_solver<int(Handle*, int, int, double*, int, double*, double*, int, int*)>(
          "cusolverDnDgeqrf");
  int (*orgqr_room)(Handle*, int, int, int, const double*, int, const double*, int*) =
      of_solver<int(Handle*, int, int, int, const double*, int, const double*, int*)>(
          "cusolverDnDorgqr_bufferSize");
  int (*orgqr)(Handle*, int, int, int, double*, int, const double*, double*, int, int*) =
      of_solver<int(Handle*, int, int, int, double*, int, const double*, double*, int, int*)>(
          "cusolverDnDorgqr");
};

namespace {

// A stream and the libraries' handles that follow it. Belongs to the device that was current.
class Desk {
 public:
  explicit Desk(const Algebra& algebra) : call(algebra) {
    try {
      blas(call.blas_create(&blas_handle), "starting");
      blas(call.blas_mode(blas_handle, kPedantic), "choosing its arithmetic");
      solve(call.create(&solver), "starting");
      solve(call.create_parameters(&parameters), "starting");
      solve(call.follow(solver, stream.get()), "taking a stream");
    } catch (...) {
      close();
      throw;
    }
  }
  ~Desk() { close(); }
  Desk(const Desk&) = delete;
  Desk& operator=(const Desk&) = delete;

  // A new stream takes memory back that was lent, so both are set anew.
  void lend(std::byte* memory) {
    blas(call.blas_follow(blas_handle, stream.get()), "taking a stream");
    blas(call.blas_lend(blas_handle, memory, kWorkspace), "taking its memory");
  }

  const Algebra& call;
  const Stream stream;
  Blas* blas_handle = nullptr;
  Handle* solver = nullptr;
  Parameters* parameters = nullptr;

 private:
  void close() noexcept {
    if (parameters != nullptr) (void)call.destroy_parameters(parameters);
    if (solver != nullptr) (void)call.destroy(solver);
    if (blas_handle != nullptr) (void)call.blas_destroy(blas_handle);
  }
};

// One device: its solver memory, divided among sessions, and a pool of library handles.
class Place {
 public:
  Place(const Algebra& algebra, const Site& site)
      : algebra_(algebra), device_(site.device), memory(site.memory, site.bytes) {}
  ~Place() { forgive(cudaSetDevice(device_)); }  // the handles' own
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  void use() const { check(cudaSetDevice(device_), "choosing a device"); }

  [[nodiscard]] std::unique_ptr<Desk> sit() {
    use();
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<Desk> desk = std::move(idle_.back());
        idle_.pop_back();
        return desk;
      }
    }
    return std::make_unique<Desk>(algebra_);
  }
  void rise(std::unique_ptr<Desk> desk) {
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(desk));
  }

 private:
  const Algebra& algebra_;
  int device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Desk>> idle_;

 public:
  Arena memory;
  std::atomic<int> sessions = 0;
};

// A part of a session's memory. What still works on it is ahead, in the session's one stream, of
// whatever gets the part next.
class Buffer {
 public:
  Buffer(Arena& arena, std::uint64_t bytes)
      : arena_(arena), bytes_(std::max<std::uint64_t>(bytes, 1)), data_(arena.try_take(bytes_)) {
    if (data_ == nullptr)
      fail(Code::memory, "a decomposition needs " + std::to_string(bytes) +
                             " bytes more of device memory than it was given; raise "
                             "--device-memory");
  }
  ~Buffer() {
    if (data_ != nullptr) arena_.give(data_, bytes_);
  }
  Buffer(Buffer&& other) noexcept
      : arena_(other.arena_), bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;

  template <class T>
  [[nodiscard]] T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  Arena& arena_;
  std::uint64_t bytes_;
  std::byte* data_;
};

class Held final : public linalg::Stack {
 public:
  Held(Arena& arena, std::size_t count_, std::size_t rows_, std::size_t cols_)
      : Stack(count_, rows_, cols_), buffer_(arena, count_ * rows_ * cols_ * sizeof(double)) {}
  [[nodiscard]] double* data() const { return buffer_.as<double>(); }
  [[nodiscard]] double* at(std::size_t index) const { return data() + index * rows * cols; }

 private:
  Buffer buffer_;
};

const Held& of(const linalg::Stack& stack) { return static_cast<const Held&>(stack); }

// A session's part of a device while it lasts.
class Seat {
 public:
  Seat(Place& place, std::uint64_t bytes)
      : place_(place),
        bytes_(bytes),
        part_(place.memory.take(bytes)),
        desk_(begin()),
        memory(part_ + kWorkspace, bytes - kWorkspace) {}
  ~Seat() {
    forgive(cudaStreamSynchronize(desk_->stream.get()));
    place_.rise(std::move(desk_));
    end();
  }
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;

  [[nodiscard]] Desk& desk() const {
    place_.use();
    return *desk_;
  }
  [[nodiscard]] const Algebra& call() const { return desk_->call; }

  // Copies and waits: the host's memory is ordinary.
  void up(void* to, const void* from, std::uint64_t bytes) const {
    copy(to, from, bytes, cudaMemcpyHostToDevice, "copying to it");
  }
  void down(void* to, const void* from, std::uint64_t bytes) const {
    copy(to, from, bytes, cudaMemcpyDeviceToHost, "copying from it");
  }
  void clear(void* memory_, std::uint64_t bytes) const {
    check(cudaMemsetAsync(memory_, 0, bytes, desk().stream.get()), "clearing its memory");
  }

 private:
  std::unique_ptr<Desk> begin() {
    if (part_ == nullptr) fail(Code::internal, "a session asks for more than the solver's memory");
    ++place_.sessions;
    try {
      std::unique_ptr<Desk> desk = place_.sit();
      desk->lend(part_);
      return desk;
    } catch (...) {
      end();
      throw;
    }
  }
  void end() {
    place_.memory.give(part_, bytes_);
    --place_.sessions;
  }
  void copy(void* to, const void* from, std::uint64_t bytes, cudaMemcpyKind kind,
            const char* call) const {
    if (bytes == 0) return;
    const cudaStream_t stream = desk().stream.get();
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error == cudaSuccess) return;
    // Nothing may still use the host's memory when it goes.
    forgive(cudaStreamSynchronize(stream));
    check(error, call);
  }

  Place& place_;
  std::uint64_t bytes_;
  std::byte* part_;
  std::unique_ptr<Desk> desk_;

 public:
  Arena memory;
};

// A matrix of f32 on the device, whole or a piece at a time.
class Swept final : public linalg::Dense {
 public:
  Swept(Seat& seat, const linalg::Rows& rows, bool keep)
      : seat_(seat),
        rows_(rows),
        keep_(keep),
        step_(std::min(linalg::rows_at_once(rows.width), rows.height)),
        piece_(step_ * rows.width),
        data_(seat.memory, (keep ? rows.height : step_) * rows.width * sizeof(float)) {
    if (!keep) return;
    each([this](std::size_t first, std::size_t count, const float* values) {
      squares_ += linalg::squares({values, count * rows_.width});
      seat_.up(data_.as<float>() + first * rows_.width, values,
               count * rows_.width * sizeof(float));
    });
  }

  void each(const Use& use) override {
    for (std::size_t first = 0; first < rows_.height; first += step_) {
      const std::size_t count = std::min(step_, rows_.height - first);
      rows_.read(first, std::span(piece_.data(), count * rows_.width));
      use(first, count, piece_.data());
    }
  }

  double squares() override {
    if (keep_) return squares_;
    double sum = 0;
    each([&](std::size_t, std::size_t count, const float* values) {
      sum += linalg::squares({values, count * rows_.width});
    });
    return sum;
  }

  std::unique_ptr<linalg::Stack> forward(const linalg::Stack& v) override {
    const Buffer factor = floats(v);
    const Buffer sums(seat_.memory, v.rows * rows_.height * sizeof(float));
    // Sums over a row need no parts, so that a kept matrix goes at once.
    sweep(keep_ ? rows_.height : step_,
          [&](std::size_t first, std::size_t count, const float* values) {
            product(As::turned, As::is, count, v.rows, rows_.width, 1, values, rows_.width,
                    factor.as<float>(), rows_.width, 0, sums.as<float>() + first, rows_.height);
          });
    return widened(sums, v.rows, rows_.height);
  }

  std::unique_ptr<linalg::Stack> backward(const linalg::Stack& u) override {
    const Buffer factor = floats(u);
    const Buffer part(seat_.memory, u.rows * rows_.width * sizeof(float));
    auto result = zeros(u.rows, rows_.width);
    sweep(step_, [&](std::size_t first, std::size_t count, const float* values) {
      product(As::is, As::is, rows_.width, u.rows, count, 1, values, rows_.width,
              factor.as<float>() + first, rows_.height, 0, part.as<float>(), rows_.width);
      widen(part.as<float>(), u.rows * rows_.width, result->data(), {}, seat_.desk().stream);
    });
    return result;
  }

  double residual(const Matrix& b, const Matrix& a) override {
    const Buffer left = floats(b), right = floats(a);
    const Buffer rest(seat_.memory, step_ * rows_.width * sizeof(float));
    const Buffer sums(seat_.memory, kSums * sizeof(double));
    seat_.clear(sums.as<double>(), kSums * sizeof(double));
    sweep(step_, [&](std::size_t first, std::size_t count, const float* values) {
      check(cudaMemcpyAsync(rest.as<float>(), values, count * rows_.width * sizeof(float),
                            cudaMemcpyDeviceToDevice, seat_.desk().stream.get()),
            "copying within it");
      if (b.rows > 0) {
        product(As::is, As::turned, rows_.width, count, b.rows, -1, right.as<float>(), rows_.width,
                left.as<float>() + first, rows_.height, 1, rest.as<float>(), rows_.width);
      }
      gpu::squares(rest.as<float>(), count * rows_.width, sums.as<double>(), seat_.desk().stream);
    });
    double parts[kSums];
    seat_.down(parts, sums.as<double>(), sizeof parts);
    double sum = 0;
    for (const double part : parts) sum += part;
    return std::sqrt(sum);
  }

 private:
  // use(first, count, values) for runs of rows on the device.
  template <class Use>
  void sweep(std::size_t step, const Use& use) {
    if (!keep_) {
      each([&](std::size_t first, std::size_t count, const float* values) {
        seat_.up(data_.as<float>(), values, count * rows_.width * sizeof(float));
        use(first, count, data_.as<const float>());
      });
      return;
    }
    for (std::size_t first = 0; first < rows_.height; first += step) {
      use(first, std::min(step, rows_.height - first),
          data_.as<const float>() + first * rows_.width);
    }
  }

  // c (m x n) = scale * a * b + keep * c over k terms, column by column, as cuBLAS counts.
  void product(As a_as, As b_as, std::size_t m, std::size_t n, std::size_t k, float scale,
               const float* a, std::size_t a_pace, const float* b, std::size_t b_pace, float keep,
               float* c, std::size_t c_pace) {
    Desk& desk = seat_.desk();
    blas(desk.call.sgemm(desk.blas_handle, turned(a_as), turned(b_as), narrow_int(m), narrow_int(n),
                         narrow_int(k), &scale, a, narrow_int(a_pace), b, narrow_int(b_pace), &keep,
                         c, narrow_int(c_pace)),
         "multiplying");
  }

  Buffer floats(const linalg::Stack& stack) {
    Buffer buffer(seat_.memory, stack.rows * stack.cols * sizeof(float));
    narrow(of(stack).data(), stack.rows * stack.cols, buffer.as<float>(), {}, seat_.desk().stream);
    return buffer;
  }
  Buffer floats(const Matrix& matrix) {
    std::vector<float> values(matrix.data.size());
    std::transform(matrix.data.begin(), matrix.data.end(), values.begin(),
                   [](double x) { return static_cast<float>(x); });
    Buffer buffer(seat_.memory, values.size() * sizeof(float));
    seat_.up(buffer.as<float>(), values.data(), values.size() * sizeof(float));
    return buffer;
  }
  std::unique_ptr<Held> zeros(std::size_t rows, std::size_t cols) {
    auto result = std::make_unique<Held>(seat_.memory, 1, rows, cols);
    seat_.clear(result->data(), rows * cols * sizeof(double));
    return result;
  }
  std::unique_ptr<Held> widened(const Buffer& sums, std::size_t rows, std::size_t cols) {
    auto result = zeros(rows, cols);
    widen(sums.as<float>(), rows * cols, result->data(), {}, seat_.desk().stream);
    return result;
  }

  Seat& seat_;
  const linalg::Rows& rows_;
  bool keep_;
  std::size_t step_;
  std::vector<float> piece_;
  Buffer data_;
  double squares_ = 0;
};

class DeviceSession final : public linalg::Session {
 public:
  DeviceSession(Place& place, std::uint64_t bytes) : seat_(place, bytes) {}

  std::unique_ptr<linalg::Stack> stack(std::size_t count, std::size_t rows,
                                       std::size_t cols) override {
    return make(count, rows, cols);
  }
  void write(linalg::Stack& to, std::size_t index, Matrix matrix) override {
    seat_.up(of(to).at(index), matrix.data.data(), matrix.data.size() * sizeof(double));
  }
  Matrix read(const linalg::Stack& from, std::size_t index) override {
    Matrix matrix(from.rows, from.cols);
    seat_.down(matrix.data.data(), of(from).at(index), matrix.data.size() * sizeof(double));
    return matrix;
  }

  // By columns each matrix is its transpose.
  void multiply(const linalg::Part& a, As a_as, const linalg::Part& b, As b_as,
                linalg::Stack& c) override {
    if (c.rows == 0 || c.cols == 0 || c.count == 0) return;
    const std::size_t depth = a_as == As::turned ? a.rows : a.stack.cols;
    const double one = 1, none = 0;
    const auto pace = [](const linalg::Stack& stack) {
      return static_cast<long long>(stack.rows * stack.cols);
    };
    Desk& desk = seat_.desk();
    blas(desk.call.dgemm(desk.blas_handle, turned(b_as), turned(a_as), narrow_int(c.cols),
                         narrow_int(c.rows), narrow_int(depth), &one,
                         of(b.stack).data() + b.first * b.stack.cols, narrow_int(b.stack.cols),
                         pace(b.stack), of(a.stack).data() + a.first * a.stack.cols,
                         narrow_int(a.stack.cols), pace(a.stack), &none, of(c).data(),
                         narrow_int(c.cols), pace(c), narrow_int(c.count)),
         "multiplying");
  }

  void add(linalg::Stack& sum, double scale, const linalg::Stack& term) override {
    Desk& desk = seat_.desk();
    blas(desk.call.daxpy(desk.blas_handle, narrow_int(sum.count * sum.rows * sum.cols), &scale,
                         of(term).data(), 1, of(sum).data(), 1),
         "adding");
  }

  // By columns, each row of every matrix is a column of one wide one.
  void scale(const linalg::Stack& rows, std::span<const double> by,
             linalg::Stack& result) override {
    const Buffer factors(seat_.memory, by.size_bytes());
    seat_.up(factors.as<double>(), by.data(), by.size_bytes());
    Desk& desk = seat_.desk();
    const int pace = narrow_int(rows.cols);
    blas(desk.call.ddgmm(desk.blas_handle, kRight, pace, narrow_int(rows.count * rows.rows),
                         of(rows).data(), pace, factors.as<double>(), 1, of(result).data(), pace),
         "scaling");
  }

  std::vector<double> eigen(linalg::Stack& symmetric) override {
    const std::size_t n = symmetric.rows, count = symmetric.count;
    std::vector<double> values(n * count);
    if (values.empty()) return values;
    Desk& desk = seat_.desk();
    double* a = of(symmetric).data();
    const Buffer found(seat_.memory, values.size() * sizeof(double));
    const Buffer answers(seat_.memory, count * sizeof(int));
    const auto order = static_cast<std::int64_t>(n), batch = static_cast<std::int64_t>(count);
    std::size_t device = 0, host = 0;
    solve(desk.call.syev_room(desk.solver, desk.parameters, kVectors, kLower, order, kDouble, a,
                              order, kDouble, found.as<double>(), kDouble, &device, &host, batch),
          "sizing its memory");
    const Buffer room(seat_.memory, device);
    std::vector<std::byte> own(host);  // in use until the answers are here
    std::vector<int> infos(count);
    const int status =
        desk.call.syev(desk.solver, desk.parameters, kVectors, kLower, order, kDouble, a, order,
                       kDouble, found.as<double>(), kDouble, room.as<void>(), device, own.data(),
                       host, answers.as<int>(), batch);
    if (status != 0) forgive(cudaStreamSynchronize(desk.stream.get()));
    solve(status, "decomposing");
    seat_.down(infos.data(), answers.as<int>(), count * sizeof(int));
    expect("XsyevBatched", infos);
    seat_.down(values.data(), found.as<double>(), values.size() * sizeof(double));
    return values;
  }

  void orthonormalise(linalg::Stack& rows) override {
    Desk& desk = seat_.desk();
    const int m = narrow_int(rows.cols), n = narrow_int(rows.rows);
    double* a = of(rows).data();
    const Buffer scales(seat_.memory, rows.rows * sizeof(double));
    const Buffer answer(seat_.memory, 2 * sizeof(int));
    int first = 0, second = 0;
    solve(desk.call.geqrf_room(desk.solver, m, n, a, m, &first), "sizing its memory");
    solve(desk.call.orgqr_room(desk.solver, m, n, n, a, m, scales.as<double>(), &second),
          "sizing its memory");
    const int size = std::max(first, second);
    const Buffer room(seat_.memory, static_cast<std::uint64_t>(size) * sizeof(double));
    solve(desk.call.geqrf(desk.solver, m, n, a, m, scales.as<double>(), room.as<double>(), size,
                          answer.as<int>()),
          "decomposing");
    solve(desk.call.orgqr(desk.solver, m, n, n, a, m, scales.as<double>(), room.as<double>(), size,
                          answer.as<int>() + 1),
          "decomposing");
    std::vector<int> infos(2);
    seat_.down(infos.data(), answer.as<int>(), 2 * sizeof(int));
    expect("geqrf and orgqr", infos);
  }

  // By the eigenvectors of the smaller Gram matrix: what is below 1e-8 of the largest value is
  // rounding, and of no weight where a matrix of f32 is approximated.
  linalg::Singular svd(const Matrix& a) override {
    const bool wide = a.cols >= a.rows;
    const std::size_t k = std::min(a.rows, a.cols);
    const auto matrix = make(1, a.rows, a.cols), gram = make(1, k, k);
    write(*matrix, 0, a);
    multiply(*matrix, wide ? As::is : As::turned, *matrix, wide ? As::turned : As::is, *gram);
    const std::vector<double> rising = eigen(*gram);
    const auto images = make(1, k, wide ? a.cols : a.rows);
    multiply(*gram, As::is, *matrix, wide ? As::is : As::turned, *images);
    linalg::Singular found{std::vector<double>(k), Matrix(k, a.rows), Matrix(k, a.cols)};
    const Matrix near = read(*gram, 0), far = read(*images, 0);
    Matrix& same = wide ? found.u : found.v;
    Matrix& other = wide ? found.v : found.u;
    for (std::size_t j = 0; j < k; ++j) {
      const std::size_t from = k - 1 - j;
      const double value = std::sqrt(std::max(0.0, rising[from]));
      found.values[j] = value;
      std::copy_n(near.row(from), near.cols, same.row(j));
      if (!(value > 0)) continue;
      for (std::size_t c = 0; c < far.cols; ++c) other.at(j, c) = far.at(from, c) / value;
    }
    return found;
  }

  std::unique_ptr<linalg::Dense> dense(const linalg::Rows& rows, bool keep) override {
    return std::make_unique<Swept>(seat_, rows, keep);
  }

 private:
  std::unique_ptr<Held> make(std::size_t count, std::size_t rows, std::size_t cols) {
    return std::make_unique<Held>(seat_.memory, count, rows, cols);
  }
  // What comes here is finite, so that no iteration fails to converge for want of numbers.
  static void expect(const char* routine, std::span<const int> infos) {
    for (const int info : infos)
      if (info != 0)
        fail(Code::internal,
             std::string(routine) + " of cuSOLVER failed with code " + std::to_string(info));
  }

  Seat seat_;
};

class DeviceSolver final : public linalg::Solver {
 public:
  DeviceSolver(std::shared_ptr<const Algebra> algebra, std::span<const Site> sites)
      : algebra_(std::move(algebra)) {
    for (const Site& site : sites) places_.push_back(std::make_unique<Place>(*algebra_, site));
  }

  std::string describe() const override {
    std::string text = algebra_->versions;
    const auto more = [&text](std::uint64_t count, const char* why) {
      if (count > 0) text += "; " + std::to_string(count) + " by LAPACK, " + why;
    };
    more(ill, "their Gram matrices ill-conditioned");
    more(large, "too large for --device-memory");
    return text;
  }
  std::uint64_t capacity() const override {
    std::uint64_t bytes = std::numeric_limits<std::uint64_t>::max();
    for (const auto& place : places_) bytes = std::min(bytes, place->memory.capacity());
    return bytes;
  }
  std::uint64_t session_memory() const override { return kWorkspace + 64 * kAlign; }
  std::uint64_t eigen_memory(std::size_t order, std::size_t count) override {
    Place& place = *places_.front();
    std::unique_ptr<Desk> desk = place.sit();
    std::size_t device = 0, host = 0;
    const auto n = static_cast<std::int64_t>(order);
    solve(algebra_->syev_room(desk->solver, desk->parameters, kVectors, kLower, n, kDouble, nullptr,
                              n, kDouble, nullptr, kDouble, &device, &host,
                              static_cast<std::int64_t>(count)),
          "sizing its memory");
    place.rise(std::move(desk));
    return device + count * (order * 2 * sizeof(double) + sizeof(int)) + 4 * kAlign;
  }
  std::unique_ptr<linalg::Session> open(std::uint64_t bytes) override {
    Place& place =
        **std::min_element(places_.begin(), places_.end(),
                           [](const auto& a, const auto& b) { return a->sessions < b->sessions; });
    return std::make_unique<DeviceSession>(place, bytes);
  }

 private:
  std::shared_ptr<const Algebra> algebra_;  // also of desks, which go first
  std::vector<std::unique_ptr<Place>> places_;
};

}  // namespace

std::shared_ptr<const Algebra> open_algebra(const std::string& folder) {
  return std::make_shared<const Algebra>(folder);
}

std::unique_ptr<linalg::Solver> make_solver(std::shared_ptr<const Algebra> algebra,
                                            std::span<const Site> sites) {
  return std::make_unique<DeviceSolver>(std::move(algebra), sites);
}

}  // namespace ingot::gpu
