// Going through a tensor's elements in order with bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ingot/store.hpp"

namespace ingot::tool {

// True if sweep can turn the elements of this type into numbers.
[[nodiscard]] bool has_values(Dtype dtype) noexcept;

class Sweep {
 public:
  static constexpr std::uint64_t kPiece = std::uint64_t{1} << 18;  // elements

  // Both must outlive the sweep.
  Sweep(const Checkpoint& model, const Entry& entry);

  // Loads the next piece of at most kPiece elements; false at the end. Throws Error{io}.
  [[nodiscard]] bool next();

  [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
  // The piece's bytes, dense and row-major.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }
  // The piece's numbers, exact but for 64-bit integers beyond 2^53. Only if has_values(dtype).
  [[nodiscard]] std::span<const double> values();

 private:
  void gather();

  const Checkpoint& model_;
  const Entry& entry_;
  std::uint64_t first_ = 0;
  std::uint64_t count_ = 0;
  std::vector<std::byte> bytes_;
  std::vector<double> values_;
};

}  // namespace ingot::tool
