// See product.hpp. Only loops over raw pointers, everything with internal linkage (tile.cpp says
// why).
#include "cpu/product.hpp"

#include "ingot/math/product.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

using math::Format;

typedef std::uint32_t Word32 __attribute__((may_alias));
typedef std::uint16_t Word16 __attribute__((may_alias));
typedef std::uint8_t Word8 __attribute__((may_alias));

// Columns of A that are gone over for all rows at a time: 32 ranks of them fill half an L1 cache.
constexpr std::uint64_t kColumns = 128;
// Ranks per visit of a sum: between them it stays in a register.
constexpr std::uint32_t kRanks = 8;

template <Format f, class Word>
void decode(const std::byte* data, std::uint64_t n, float* __restrict out) {
  const Word* in = reinterpret_cast<const Word*>(data);
  for (std::uint64_t i = 0; i < n; ++i) out[i] = math::Codec<f>::decode(in[i]);
}

void decode(const Input& own, std::uint64_t n, float* out) {
  if (own.data == nullptr) {
    for (std::uint64_t i = 0; i < n; ++i) out[i] = 0.0F;
    return;
  }
  switch (own.format) {
    case Format::f32:
      return decode<Format::f32, Word32>(own.data, n, out);
    case Format::f16:
      return decode<Format::f16, Word16>(own.data, n, out);
    case Format::bf16:
      return decode<Format::bf16, Word16>(own.data, n, out);
    case Format::e4m3:
      return decode<Format::e4m3, Word8>(own.data, n, out);
    case Format::e5m2:
      return decode<Format::e5m2, Word8>(own.data, n, out);
  }
}

// sums[i] over ranks [k, k + kRanks), rising; `a` is A's row k at the first of n columns.
void eight(const float* b, const float* a, std::uint64_t width, std::uint64_t n,
           float* __restrict sums) {
  const float b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
  const float b4 = b[4], b5 = b[5], b6 = b[6], b7 = b[7];
  for (std::uint64_t i = 0; i < n; ++i) {
    float sum = sums[i];
    sum = math::extend(sum, b0, a[i]);
    sum = math::extend(sum, b1, a[i + width]);
    sum = math::extend(sum, b2, a[i + 2 * width]);
    sum = math::extend(sum, b3, a[i + 3 * width]);
    sum = math::extend(sum, b4, a[i + 4 * width]);
    sum = math::extend(sum, b5, a[i + 5 * width]);
    sum = math::extend(sum, b6, a[i + 6 * width]);
    sum = math::extend(sum, b7, a[i + 7 * width]);
    sums[i] = sum;
  }
}

void one(float b, const float* a, std::uint64_t n, float* __restrict sums) {
  for (std::uint64_t i = 0; i < n; ++i) sums[i] = math::extend(sums[i], b, a[i]);
}

// Adds columns [column, column + n) of one row of the product, n at most kColumns.
void add(const LowRank& p, std::uint64_t row, std::uint64_t column, std::uint64_t n,
         float* __restrict values) {
  float sums[kColumns] = {};
  const float* b = p.b + row * p.rank;
  const float* a = p.a + column;
  std::uint32_t k = 0;
  for (; k + kRanks <= p.rank; k += kRanks) eight(b + k, a + k * p.width, p.width, n, sums);
  for (; k < p.rank; ++k) one(b[k], a + k * p.width, n, sums);
  for (std::uint64_t i = 0; i < n; ++i) values[i] = math::amend(values[i], p.scale, sums[i]);
}

void amend_all(const Input& own, const LowRank* products, std::size_t number, std::uint64_t first,
               std::uint64_t count, float* values) {
  decode(own, count, values);
  for (std::size_t p = 0; p < number; ++p) {
    const std::uint64_t width = products[p].width;
    const std::uint64_t top = first / width, bottom = (first + count - 1) / width;
    for (std::uint64_t left = 0; left < width; left += kColumns) {
      const std::uint64_t right = left + kColumns < width ? left + kColumns : width;
      for (std::uint64_t row = top; row <= bottom; ++row) {
        // The part of the run in this row and these columns.
        std::uint64_t begin = row * width + left, end = row * width + right;
        begin = begin < first ? first : begin;
        end = end > first + count ? first + count : end;
        if (begin >= end) continue;
        add(products[p], row, begin - row * width, end - begin, values + (begin - first));
      }
    }
  }
}

}  // namespace

const Amend amend = amend_all;

}  // namespace ingot::cpu::INGOT_ISA
