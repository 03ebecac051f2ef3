// The shape of a tensor, with counts that cannot overflow unnoticed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "ingot/dtype.hpp"

namespace ingot {

// Row-major extents, rank 0 (a scalar: one element) to 8.
class Shape {
 public:
  static constexpr int kMaxRank = 8;

  Shape() = default;
  Shape(std::initializer_list<std::uint64_t> extents);

  // Appends an axis; false, and unchanged, when the rank is already kMaxRank.
  [[nodiscard]] bool push(std::uint64_t extent) noexcept;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] std::uint64_t operator[](int axis) const noexcept {
    return extents_[static_cast<std::size_t>(axis)];
  }
  void set(int axis, std::uint64_t extent) noexcept {
    extents_[static_cast<std::size_t>(axis)] = extent;
  }

  // Number of elements; nothing if the product exceeds 2^63 - 1.
  [[nodiscard]] std::optional<std::uint64_t> checked_count() const noexcept;
  // Bytes of a dense tensor of this shape; nothing on overflow or a fraction of a byte.
  [[nodiscard]] std::optional<std::uint64_t> checked_bytes(Dtype dtype) const noexcept;
  // The same for shapes that were checked when they were read.
  [[nodiscard]] std::uint64_t count() const noexcept { return checked_count().value_or(0); }

  // "[4096, 11008]".
  [[nodiscard]] std::string text() const;

  friend bool operator==(const Shape& a, const Shape& b) noexcept {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }

 private:
  std::array<std::uint64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

}  // namespace ingot
