// Low-rank products by the machine's cuBLAS, for --fast-product: sums in the library's order, in
// f32.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "loader.hpp"

namespace ingot::gpu {

class Stream;

class Blas {
 public:
  // Device memory that the library is given, in place of taking its own.
  static constexpr std::uint64_t kWorkspace = std::uint64_t{4} << 20;

  // Opens cuBLAS (loader.hpp says where) for the device that is current, and takes kWorkspace bytes
  // there. Its work goes to `stream`. Throws Error{device|memory}.
  Blas(const std::string& folder, const Stream& stream);
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // values (rows x columns) += scale * b (rows x rank) * a (rank x columns). All lie in device
  // memory, row-major; rows of `a` and of `values` are `width` elements apart. Enqueues, from one
  // thread at a time. Throws Error{device}.
  void add(std::uint64_t rows, std::uint64_t columns, std::uint32_t rank, float scale,
           const float* b, const float* a, float* values, std::uint64_t width);

 private:
  struct Calls;
  std::unique_ptr<Calls> calls_;
};

}  // namespace ingot::gpu
