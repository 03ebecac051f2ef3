#include "ingot/shape.hpp"

#include "ingot/error.hpp"

namespace ingot {

Shape::Shape(std::initializer_list<std::uint64_t> extents) {
  for (std::uint64_t extent : extents) {
    if (!push(extent)) fail(Code::internal, "a shape was built with more than 8 axes");
  }
}

bool Shape::push(std::uint64_t extent) noexcept {
  if (rank_ == kMaxRank) return false;
  extents_[static_cast<std::size_t>(rank_++)] = extent;
  return true;
}

std::optional<std::uint64_t> Shape::checked_count() const noexcept {
  // Zero extents are left out of the product that is checked, so that the answer does not depend
  // on the order of the axes and every partial product is safe as well.
  std::uint64_t product = 1;
  bool empty = false;
  for (int i = 0; i < rank_; ++i) {
    const std::uint64_t extent = (*this)[i];
    if (extent == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(product, extent, &product) || product > INT64_MAX) {
      return std::nullopt;
    }
  }
  return empty ? 0 : product;
}

std::optional<std::uint64_t> Shape::checked_bytes(Dtype dtype) const noexcept {
  const std::optional<std::uint64_t> elements = checked_count();
  std::uint64_t width = 0;
  if (!elements || __builtin_mul_overflow(*elements, std::uint64_t{bits(dtype)}, &width) ||
      width % 8 != 0) {
    return std::nullopt;
  }
  return width / 8;
}

std::string Shape::text() const {
  std::string out = "[";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) out += ", ";
    out += std::to_string((*this)[i]);
  }
  return out += "]";
}

}  // namespace ingot
