#include "base/scan.hpp"

#include <algorithm>
#include <cstring>

#include "base/sweep.hpp"

namespace ingot {
namespace {

// Elements looked at between two branches.
constexpr std::size_t kBlock = 4096;

bool sweep(const std::byte* data, std::size_t count, Codes codes) noexcept {
  static const bool wide = __builtin_cpu_supports("avx2");
  return wide ? avx2::sweep(data, count, codes.size, codes.least)
              : sse2::sweep(data, count, codes.size, codes.least);
}

}  // namespace

void Count::add(std::uint64_t index) { add(Count{1, index}); }

void Count::add(const Count& other) {
  if (other.count == 0) return;
  first = count == 0 ? other.first : std::min(first, other.first);
  count += other.count;
}

Codes nonfinite_codes(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::f64:
      return {8, 0x7ff0000000000000};
    case Dtype::f32:
      return {4, 0x7f800000};
    case Dtype::f16:
      return {2, 0x7c00};
    case Dtype::bf16:
      return {2, 0x7f80};
    case Dtype::f8_e4m3:
      return {1, 0x7f};
    case Dtype::f8_e5m2:
      return {1, 0x7c};
    default:
      return {};
  }
}

Codes largest_codes(Dtype dtype) noexcept {
  Codes codes = nonfinite_codes(dtype);
  if (codes.size > 0) --codes.least;
  return codes;
}

bool large(Codes codes, const std::byte* element) noexcept {
  if (codes.size == 0) return false;
  std::uint64_t word = 0;  // little-endian, as files are
  std::memcpy(&word, element, codes.size);
  const std::uint64_t sign = std::uint64_t{1} << (8 * codes.size - 1);
  return (word & (sign - 1)) >= codes.least;
}

void scan(Codes codes, std::span<const std::byte> elements,
          const std::function<void(std::uint64_t)>& found) {
  if (codes.size == 0) return;
  const std::size_t count = elements.size() / codes.size;
  for (std::size_t at = 0; at < count; at += kBlock) {
    const std::size_t n = std::min(kBlock, count - at);
    if (!sweep(elements.data() + at * codes.size, n, codes)) continue;
    for (std::size_t i = at; i < at + n; ++i) {
      if (large(codes, elements.data() + i * codes.size)) found(i);
    }
  }
}

Count count_nonfinite(Dtype dtype, std::span<const std::byte> elements, std::uint64_t first) {
  Count all;
  scan(nonfinite_codes(dtype), elements, [&](std::uint64_t i) { all.add(first + i); });
  return all;
}

}  // namespace ingot
