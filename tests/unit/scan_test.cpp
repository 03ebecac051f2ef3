// The scan for values that are not finite against the codecs, for every code there is.
#include "base/scan.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "base/sweep.hpp"
#include "ingot/math/codec.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using Bytes = std::vector<std::byte>;

template <class Word>
Bytes bytes_of(const std::vector<Word>& words) {
  Bytes bytes(words.size() * sizeof(Word));
  std::memcpy(bytes.data(), words.data(), bytes.size());
  return bytes;
}

// All codes of a type, and those that the codec decodes to something not finite.
template <math::Format format>
void expect_every_code(Dtype dtype) {
  using Codec = math::Codec<format>;
  using Word = typename Codec::Word;
  std::vector<Word> words;
  std::vector<std::uint64_t> expected;
  for (std::uint32_t code = 0; code <= std::numeric_limits<Word>::max(); ++code) {
    words.push_back(static_cast<Word>(code));
    if (!std::isfinite(Codec::decode(words.back()))) expected.push_back(code);
    // Alone, so that no other code can be the one that is found.
    const Bytes one = bytes_of(std::vector<Word>(3, words.back()));
    EXPECT_EQ(count_nonfinite(dtype, one).count,
              std::isfinite(Codec::decode(words.back())) ? 0U : 3U)
        << code;
  }
  std::vector<std::uint64_t> found;
  scan(nonfinite_codes(dtype), bytes_of(words), [&](std::uint64_t i) { found.push_back(i); });
  EXPECT_EQ(found, expected);
  const Count count = count_nonfinite(dtype, bytes_of(words), 100);
  EXPECT_EQ(count, (Count{expected.size(), 100 + expected.front()}));
}

TEST(Scan, FindsEveryCodeThatIsNotFiniteAndNoOther) {
  expect_every_code<math::Format::f16>(Dtype::f16);
  expect_every_code<math::Format::bf16>(Dtype::bf16);
  expect_every_code<math::Format::e4m3>(Dtype::f8_e4m3);
  expect_every_code<math::Format::e5m2>(Dtype::f8_e5m2);
}

TEST(Scan, TellsTheEdgesOfTheWideTypes) {
  using F = std::numeric_limits<float>;
  using D = std::numeric_limits<double>;
  const std::vector<float> floats = {
      F::max(),      F::lowest(),    F::denorm_min(), -0.0F,
      F::infinity(), -F::infinity(), F::quiet_NaN(),  std::bit_cast<float>(0xff800001)};
  EXPECT_EQ(count_nonfinite(Dtype::f32, bytes_of(floats)), (Count{4, 4}));
  const std::vector<double> doubles = {D::max(), D::lowest(),   D::denorm_min(), -0.0,
                                       1e300,    D::infinity(), -D::infinity(),  D::quiet_NaN()};
  EXPECT_EQ(count_nonfinite(Dtype::f64, bytes_of(doubles)), (Count{3, 5}));
}

TEST(Scan, SeesTheLargestValueWhereItIsAskedFor) {
  for (const auto& [dtype, code] : {std::pair{Dtype::f8_e4m3, 0x7e}, {Dtype::f8_e5m2, 0x7b}}) {
    std::vector<std::uint8_t> codes = {static_cast<std::uint8_t>(code),
                                       static_cast<std::uint8_t>(code | 0x80),
                                       static_cast<std::uint8_t>(code - 1)};
    std::size_t found = 0;
    scan(largest_codes(dtype), bytes_of(codes), [&](std::uint64_t) { ++found; });
    EXPECT_EQ(found, 2U);
    EXPECT_EQ(count_nonfinite(dtype, bytes_of(codes)).count, 0U);
  }
}

TEST(Scan, FindsOneElementAtAnyPlaceAddressAndLength) {
  test::Random random(1);
  for (const Dtype dtype :
       {Dtype::f64, Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8_e4m3, Dtype::f8_e5m2}) {
    const Codes codes = nonfinite_codes(dtype);
    for (int round = 0; round < 300; ++round) {
      const std::size_t shift = random.below(9), count = 1 + random.below(round < 200 ? 300 : 9000);
      const std::size_t place = random.below(count);
      Bytes memory(shift + count * codes.size + codes.size - 1);
      // What lies around the elements is not looked at, were it never so large.
      std::memset(memory.data(), 0xff, memory.size());
      std::memset(memory.data() + shift, 0x11, count * codes.size);
      const std::span elements = std::span(memory).subspan(shift);
      EXPECT_EQ(count_nonfinite(dtype, elements), Count{});
      std::memcpy(memory.data() + shift + place * codes.size, &codes.least, codes.size);
      EXPECT_EQ(count_nonfinite(dtype, elements), (Count{1, place}));
    }
  }
}

TEST(Scan, IsTheSameForEveryWidthOfVectors) {
  test::Random random(2);
  for (const unsigned size : {1U, 2U, 4U, 8U}) {
    for (int round = 0; round < 500; ++round) {
      Bytes bytes(size * (1 + random.below(200)));
      for (std::byte& b : bytes) b = static_cast<std::byte>(random.below(128));
      const std::uint64_t least = std::uint64_t{127} << (8 * size - 8);
      const std::size_t count = bytes.size() / size;
      const bool narrow = sse2::sweep(bytes.data(), count, size, least);
      if (__builtin_cpu_supports("avx2")) {
        EXPECT_EQ(avx2::sweep(bytes.data(), count, size, least), narrow);
      }
    }
  }
}

TEST(Scan, LeavesTypesWithoutSuchCodesAlone) {
  const Bytes ones(64, std::byte{0xff});
  for (const Dtype dtype : {Dtype::i64, Dtype::i8, Dtype::u8, Dtype::boolean, Dtype::f4}) {
    EXPECT_EQ(count_nonfinite(dtype, ones), Count{});
  }
}

TEST(Count, IsTheSameForAnyOrderOfItsParts) {
  Count one, other;
  for (const std::uint64_t index : {7U, 3U, 9U}) one.add(index);
  for (const std::uint64_t index : {9U, 7U, 3U}) other.add(index);
  one.add(Count{});
  EXPECT_EQ(one, other);
  EXPECT_EQ(one, (Count{3, 3}));
}

}  // namespace
}  // namespace ingot
