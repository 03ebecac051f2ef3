// See product.hpp. Only loops over raw pointers, everything with internal linkage (tile.cpp says
// why).
#include "cpu/product.hpp"

#include "base/block.hpp"
#include "ingot/math/product.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

using math::Format;

typedef std::uint32_t Word32 __attribute__((may_alias));
typedef std::uint16_t Word16 __attribute__((may_alias));
typedef std::uint8_t Word8 __attribute__((may_alias));

// A band of rows times a strip of columns is summed in registers: each load of A counts for all
// rows of the band. 12 registers of sums: additions to one do not wait for each other, and g++ 12
// keeps them in registers only where a strip has more than 16 columns (half the rate with 16).
#if defined(__AVX512F__)
constexpr std::uint64_t kStrip = 48;
#else
constexpr std::uint64_t kStrip = 24;
#endif
constexpr std::uint64_t kBand = 4;
// Rows that are decoded and changed by all products before the next ones: they stay in the L2
// cache.
constexpr std::uint64_t kGroup = 32;
// Most ranks of a strip that are packed: rows of A lie a power of two apart and would take each
// other's place in the L1 cache.
constexpr std::uint32_t kPacked = 256;

template <Format f, class Word>
void decode(const std::byte* data, std::uint64_t first, std::uint64_t n, float* __restrict out) {
  const Word* in = reinterpret_cast<const Word*>(data) + first;
  for (std::uint64_t i = 0; i < n; ++i) out[i] = math::Codec<f>::decode(in[i]);
}

// Elements [first, first + n) of `own`; zeros if there are none.
void decode(const Input& own, std::uint64_t first, std::uint64_t n, float* out) {
  if (own.data == nullptr) {
    for (std::uint64_t i = 0; i < n; ++i) out[i] = 0.0F;
    return;
  }
  switch (own.format) {
    case Format::f32:
      return decode<Format::f32, Word32>(own.data, first, n, out);
    case Format::f16:
      return decode<Format::f16, Word16>(own.data, first, n, out);
    case Format::bf16:
      return decode<Format::bf16, Word16>(own.data, first, n, out);
    case Format::e4m3:
      return decode<Format::e4m3, Word8>(own.data, first, n, out);
    case Format::e5m2:
      return decode<Format::e5m2, Word8>(own.data, first, n, out);
  }
}

// Adds kRows rows by n columns of a product, n at most kStrip. `a` is row 0 of A at the first
// column, its rows are `pace` apart; values' are `width` apart.
template <std::uint64_t kRows>
void add(const LowRank& p, const float* b, const float* a, std::uint64_t pace, std::uint64_t n,
         float* values) {
  float sums[kRows][kStrip] = {};
  const auto sum = [&](std::uint64_t columns) __attribute__((always_inline)) {
    for (std::uint32_t k = 0; k < p.rank; ++k) {
      for (std::uint64_t r = 0; r < kRows; ++r) {
        for (std::uint64_t i = 0; i < columns; ++i) {
          sums[r][i] = math::extend(sums[r][i], b[r * p.rank + k], a[k * pace + i]);
        }
      }
    }
  };
  // A number that the compiler knows, or the sums would not stay in registers.
  if (n == kStrip) {
    sum(kStrip);
  } else {
    sum(n);
  }
  for (std::uint64_t r = 0; r < kRows; ++r) {
    for (std::uint64_t i = 0; i < n; ++i) {
      values[r * p.width + i] = math::amend(values[r * p.width + i], p.scale, sums[r][i]);
    }
  }
}

// Adds columns [begin, end) of `rows` rows from `row` on; `values` is the first of them.
void add(const LowRank& p, std::uint64_t row, std::uint64_t rows, std::uint64_t begin,
         std::uint64_t end, float* values) {
  const float* b = p.b + row * p.rank;
  float packed[kPacked * kStrip];
  for (std::uint64_t column = begin; column < end; column += kStrip) {
    const std::uint64_t n = end - column < kStrip ? end - column : kStrip;
    const float* a = p.a + column;
    std::uint64_t pace = p.width;
    if (rows >= kBand && n == kStrip && p.rank <= kPacked) {
      for (std::uint32_t k = 0; k < p.rank; ++k) {
        for (std::uint64_t i = 0; i < kStrip; ++i) packed[k * kStrip + i] = a[k * p.width + i];
      }
      a = packed;
      pace = kStrip;
    }
    float* at = values + (column - begin);
    std::uint64_t r = 0;
    for (; r + kBand <= rows; r += kBand)
      add<kBand>(p, b + r * p.rank, a, pace, n, at + r * p.width);
    for (; r < rows; ++r) add<1>(p, b + r * p.rank, a, pace, n, at + r * p.width);
  }
}

void amend_all(const Input& own, const LowRank* products, std::size_t number, std::uint64_t first,
               std::uint64_t count, float* values) {
  if (number == 0) return decode(own, 0, count, values);
  each_block(first, count, products[0].width, [&](const Block& block) {
    for (std::uint64_t row = 0; row < block.rows; row += kGroup) {
      const std::uint64_t rows = block.rows - row < kGroup ? block.rows - row : kGroup;
      const std::uint64_t at = block.at + row * block.columns;
      decode(own, at, rows * block.columns, values + at);
      for (std::size_t p = 0; p < number; ++p) {
        add(products[p], block.row + row, rows, block.column, block.column + block.columns,
            values + at);
      }
    }
  });
}

}  // namespace

const Amend amend = amend_all;

}  // namespace ingot::cpu::INGOT_ISA
