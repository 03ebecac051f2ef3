// Codecs against definitions: values from the bits of each format, encoding by nearest neighbour.
#include <cstdlib>

#include "arithmetic.hpp"

namespace ingot::test {
namespace {

using math::Codec;
using math::Format;
using math::Overflow;

// A format by its definition, in double, independent of the codec.
struct Definition {
  int exponent_bits, mantissa_bits, bias;
  bool infinity;          // the top exponent holds infinity and NaN; else only its last code is NaN
  std::uint32_t largest;  // code of the largest finite number
  std::uint32_t canonical;  // the NaN that encode writes
  [[nodiscard]] std::uint32_t magnitudes() const { return 1u << (exponent_bits + mantissa_bits); }
};

constexpr Definition kHalf{5, 10, 15, true, 0x7bff, 0x7e00};
constexpr Definition kBrain{8, 7, 127, true, 0x7f7f, 0x7fc0};
constexpr Definition kFour{4, 3, 7, false, 0x7e, 0x7f};
constexpr Definition kFive{5, 2, 15, true, 0x7b, 0x7f};

// The number of a code without its sign; NaN where the code is one.
double value(const Definition& d, std::uint32_t code) {
  const std::uint32_t exponent = code >> d.mantissa_bits;
  const std::uint32_t mantissa = code & ((1u << d.mantissa_bits) - 1u);
  const std::uint32_t top = (1u << d.exponent_bits) - 1u;
  if (d.infinity && exponent == top) {
    return mantissa == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
  }
  if (!d.infinity && code == d.magnitudes() - 1) return std::nan("");
  const double fraction =
      static_cast<double>(mantissa) / static_cast<double>(1u << d.mantissa_bits);
  if (exponent == 0) return std::ldexp(fraction, 1 - d.bias);
  return std::ldexp(1.0 + fraction, static_cast<int>(exponent) - d.bias);
}

// The code that |x| must become: nearest, ties to the even code, overflow by the rule.
std::uint32_t nearest(const Definition& d, double x, Overflow overflow) {
  if (std::isnan(x)) return d.canonical;
  // One past the largest is where the next code would lie if the format went on.
  const double step = value(d, d.largest) - value(d, d.largest - 1);
  const double limit = value(d, d.largest) + step / 2;
  const bool even = d.largest % 2 == 0;  // a tie with the next code goes to the even one
  if (x > limit || (x == limit && !even)) {
    if (d.exponent_bits == 5 && d.mantissa_bits == 10) return 0x7c00;
    if (d.exponent_bits == 8) return 0x7f80;
    if (overflow == Overflow::saturate) return d.largest;
    return d.infinity ? d.largest + 1 : d.canonical;
  }
  std::uint32_t low = 0, high = d.largest;  // value(low) <= x
  if (x >= value(d, d.largest)) return d.largest;
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (value(d, middle) <= x ? low : high) = middle;
  }
  const double below = x - value(d, low), above = value(d, high) - x;
  if (below != above) return below < above ? low : high;
  return low % 2 == 0 ? low : high;
}

template <Format f>
void check_decode(const Definition& d) {
  using Word = typename Codec<f>::Word;
  for (std::uint32_t sign : {0u, 1u}) {
    for (std::uint32_t code = 0; code < d.magnitudes(); ++code) {
      const float found = Codec<f>::decode(static_cast<Word>(code | (sign * d.magnitudes())));
      const double expected = value(d, code);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(found)) << code;
      } else {
        ASSERT_EQ(static_cast<double>(found), sign == 1 ? -expected : expected) << code;
        ASSERT_EQ(std::signbit(found), sign == 1) << code;
      }
    }
  }
}

template <Format f>
testing::AssertionResult encodes(const Definition& d, std::uint32_t u, Overflow overflow) {
  const float x = math::from_bits(u);
  const std::uint32_t found = Codec<f>::encode(x, overflow);
  std::uint32_t expected = nearest(d, std::fabs(static_cast<double>(x)), overflow);
  const bool number = !std::isnan(x) && expected != d.canonical;
  if (number && std::signbit(x)) expected |= d.magnitudes();
  if (found == expected) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << std::hex << "f32 " << u << " became " << found << ", expected " << expected;
}

template <Format f>
void check_encode(const Definition& d) {
  for (const Overflow overflow : {Overflow::saturate, Overflow::propagate}) {
    // Every code, the middle to its neighbour, and one f32 to either side of both.
    for (std::uint32_t code = 0; code <= d.largest; ++code) {
      const float at = static_cast<float>(value(d, code));
      const double next =
          code < d.largest ? value(d, code + 1) : 2 * value(d, code) - value(d, code - 1);
      const float middle = static_cast<float>((value(d, code) + next) / 2);
      for (const float x : {at, middle}) {
        for (const std::uint32_t u : {math::bits(x), math::bits(x) + 1, math::bits(x) - 1}) {
          ASSERT_TRUE(encodes<f>(d, u, overflow));
          ASSERT_TRUE(encodes<f>(d, u | 0x80000000u, overflow));
        }
      }
    }
    for (std::uint64_t u = 0; u < (std::uint64_t{1} << 32); u += 9973) {
      ASSERT_TRUE(encodes<f>(d, static_cast<std::uint32_t>(u), overflow));
    }
  }
}

// All 2^32 inputs: runs of neighbours that become the same code, each found by bisection.
template <Format f>
void check_every(const Definition& d) {
  constexpr std::uint32_t infinity = 0x7f800000, sign = 0x80000000;
  for (const Overflow overflow : {Overflow::saturate, Overflow::propagate}) {
    const auto expected = [&](std::uint32_t u) {
      return nearest(d, static_cast<double>(math::from_bits(u)), overflow);
    };
    std::uint32_t done = 0;
    while (done <= infinity) {
      const std::uint32_t code = expected(done);
      std::uint32_t end = infinity + 1;
      for (std::uint32_t inside = done; end - inside > 1;) {
        const std::uint32_t middle = inside + (end - inside) / 2;
        (expected(middle) == code ? inside : end) = middle;
      }
      const std::uint32_t negative = code == d.canonical ? code : code | d.magnitudes();
      std::uint32_t wrong = 0;
      for (; done < end; ++done) {
        wrong += Codec<f>::encode(math::from_bits(done), overflow) != code ? 1U : 0U;
        wrong += Codec<f>::encode(math::from_bits(done | sign), overflow) != negative ? 1U : 0U;
      }
      ASSERT_EQ(wrong, 0U) << "below " << std::hex << end;
    }
    std::uint32_t wrong = 0;
    for (; done < sign; ++done) {
      wrong += Codec<f>::encode(math::from_bits(done), overflow) != d.canonical ? 1U : 0U;
      wrong += Codec<f>::encode(math::from_bits(done | sign), overflow) != d.canonical ? 1U : 0U;
    }
    ASSERT_EQ(wrong, 0U);
  }
}

TEST(Codec, every_f16_code_decodes_to_its_definition) { check_decode<Format::f16>(kHalf); }
TEST(Codec, every_bf16_code_decodes_to_its_definition) { check_decode<Format::bf16>(kBrain); }
TEST(Codec, every_e4m3_code_decodes_to_its_definition) { check_decode<Format::e4m3>(kFour); }
TEST(Codec, every_e5m2_code_decodes_to_its_definition) { check_decode<Format::e5m2>(kFive); }

TEST(Codec, f16_encodes_to_the_nearest_code_ties_to_even) { check_encode<Format::f16>(kHalf); }
TEST(Codec, bf16_encodes_to_the_nearest_code_ties_to_even) { check_encode<Format::bf16>(kBrain); }
TEST(Codec, e4m3_encodes_to_the_nearest_code_ties_to_even) { check_encode<Format::e4m3>(kFour); }
TEST(Codec, e5m2_encodes_to_the_nearest_code_ties_to_even) { check_encode<Format::e5m2>(kFive); }

// Half a minute: only where INGOT_EXHAUSTIVE is set.
TEST(Codec, every_f32_encodes_to_the_nearest_code) {
  if (std::getenv("INGOT_EXHAUSTIVE") == nullptr) GTEST_SKIP() << "INGOT_EXHAUSTIVE is not set";
  check_every<Format::f16>(kHalf);
  check_every<Format::bf16>(kBrain);
  check_every<Format::e4m3>(kFour);
  check_every<Format::e5m2>(kFive);
}

TEST(Codec, every_code_but_nan_survives_decode_and_encode) {
  const auto round_trip = [](auto codec, std::uint32_t codes) {
    for (std::uint32_t w = 0; w < codes; ++w) {
      using C = decltype(codec);
      const float x = C::decode(static_cast<typename C::Word>(w));
      if (std::isnan(x)) continue;
      ASSERT_EQ(C::encode(x, Overflow::propagate), w);
    }
  };
  round_trip(Codec<Format::f16>{}, 65536);
  round_trip(Codec<Format::bf16>{}, 65536);
  round_trip(Codec<Format::e4m3>{}, 256);
  round_trip(Codec<Format::e5m2>{}, 256);
}

TEST(Codec, f32_keeps_every_number_and_makes_nan_canonical) {
  Random random(3);
  for (int i = 0; i < 200000; ++i) {
    const auto u = static_cast<std::uint32_t>(random.next());
    const std::uint32_t expected = (u & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : u;
    ASSERT_EQ(Codec<Format::f32>::encode(Codec<Format::f32>::decode(u), Overflow::saturate),
              expected);
  }
}

TEST(Codec, nan_becomes_the_one_of_its_format) {
  for (const std::uint32_t u : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu}) {
    const float x = math::from_bits(u);
    EXPECT_EQ(Codec<Format::f32>::encode(x, Overflow::saturate), 0x7fc00000u);
    EXPECT_EQ(Codec<Format::f16>::encode(x, Overflow::saturate), 0x7e00u);
    EXPECT_EQ(Codec<Format::bf16>::encode(x, Overflow::saturate), 0x7fc0u);
    EXPECT_EQ(Codec<Format::e4m3>::encode(x, Overflow::saturate), 0x7fu);
    EXPECT_EQ(Codec<Format::e5m2>::encode(x, Overflow::saturate), 0x7fu);
  }
}

TEST(Codec, fp8_overflow_follows_the_recipe) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Codec<Format::e4m3>::encode(464.0F, Overflow::propagate), 0x7eu);  // a tie, to even
  EXPECT_EQ(Codec<Format::e4m3>::encode(465.0F, Overflow::saturate), 0x7eu);
  EXPECT_EQ(Codec<Format::e4m3>::encode(465.0F, Overflow::propagate), 0x7fu);
  EXPECT_EQ(Codec<Format::e4m3>::encode(-1e9F, Overflow::saturate), 0xfeu);
  EXPECT_EQ(Codec<Format::e4m3>::encode(-inf, Overflow::propagate), 0x7fu);
  EXPECT_EQ(Codec<Format::e5m2>::encode(61439.0F, Overflow::propagate), 0x7bu);
  EXPECT_EQ(Codec<Format::e5m2>::encode(61440.0F, Overflow::propagate), 0x7cu);
  EXPECT_EQ(Codec<Format::e5m2>::encode(61440.0F, Overflow::saturate), 0x7bu);
  EXPECT_EQ(Codec<Format::e5m2>::encode(-inf, Overflow::saturate), 0xfbu);
}

TEST(Codec, widths_are_those_of_the_dtypes) {
  EXPECT_EQ(math::width(Format::f32), 4u);
  EXPECT_EQ(math::width(Format::f16), 2u);
  EXPECT_EQ(math::width(Format::bf16), 2u);
  EXPECT_EQ(math::width(Format::e4m3), 1u);
  EXPECT_EQ(math::width(Format::e5m2), 1u);
}

}  // namespace
}  // namespace ingot::test
