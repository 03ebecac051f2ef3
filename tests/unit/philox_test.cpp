// The generator and the masks drawn with it, against numbers from elsewhere.
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

void expect_block(const math::Block& block, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                  std::uint32_t d) {
  EXPECT_EQ(block.word[0], a);
  EXPECT_EQ(block.word[1], b);
  EXPECT_EQ(block.word[2], c);
  EXPECT_EQ(block.word[3], d);
}

// Known answers of Random123 for Philox4x32-10: zeros, ones, digits of pi.
TEST(Philox, gives_the_published_answers) {
  expect_block(math::philox(0, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8);
  expect_block(math::philox(~std::uint64_t{0}, ~std::uint64_t{0}, ~std::uint64_t{0}), 0x408f276d,
               0x41c83b0e, 0xa20bc7c6, 0x6d5451fd);
  expect_block(math::philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88), 0xd16cfe09,
               0x94fdcceb, 0x5001e420, 0x24126ea1);
}

TEST(Philox, draws_are_the_halves_of_the_words_low_half_first) {
  const math::Block block = math::philox(7, 11, 13);
  for (std::uint32_t j = 0; j < 8; ++j) {
    const std::uint32_t word = block.word[j / 2];
    EXPECT_EQ(math::draw(block, j), j % 2 == 0 ? word & 0xffffu : word >> 16);
  }
}

TEST(Philox, keeps_below_the_threshold_drops_above_and_asks_again_on_equality) {
  const std::uint64_t seed = 42, stream = 0x1234567890abcdef;
  int equal = 0, kept_on_equality = 0;
  for (std::uint64_t element = 0; element < 400000; ++element) {
    const std::uint32_t first = math::draw(math::philox(seed, stream, element / 8),
                                           static_cast<std::uint32_t>(element % 8));
    const std::uint64_t threshold = (std::uint64_t{12345} << 32) | 0x80000000u;
    const bool kept = math::keep(seed, stream, element, threshold);
    if (first != 12345) {
      ASSERT_EQ(kept, first < 12345);
      continue;
    }
    ++equal;
    const math::Block second = math::philox(seed, stream, (element / 4) | (std::uint64_t{1} << 63));
    ASSERT_EQ(kept, second.word[element % 4] < 0x80000000u);
    kept_on_equality += kept ? 1 : 0;
  }
  EXPECT_GT(equal, 0);
  EXPECT_GT(kept_on_equality, 0);
  EXPECT_LT(kept_on_equality, equal);
}

TEST(Philox, eight_at_a_time_are_the_same_eight) {
  for (const double density : {0.0, 0.1, 0.5, 0.999, 1.0}) {
    const std::uint64_t threshold = math::probability(density);
    for (std::uint64_t first = 0; first < 80000; first += 8) {
      const std::uint32_t mask = math::keep8(3, 5, first, threshold);
      for (std::uint32_t j = 0; j < 8; ++j) {
        ASSERT_EQ((mask >> j) & 1u, math::keep(3, 5, first + j, threshold) ? 1u : 0u);
      }
    }
  }
}

TEST(Philox, probabilities_are_rounded_down_to_units_of_2_to_the_minus_48) {
  EXPECT_EQ(math::probability(0.5), std::uint64_t{1} << 47);
  EXPECT_EQ(math::probability(0x1p-48), 1u);
  EXPECT_EQ(math::probability(0x1p-49), 0u);
  EXPECT_EQ(math::probability(std::nextafter(1.0, 0.0)), (std::uint64_t{1} << 48) - 1);
  EXPECT_EQ(math::probability(0.1), 28147497671065u);  // floor of 0.1 (as a double) * 2^48
}

TEST(Philox, the_share_kept_is_the_density) {
  for (const double density : {0.01, 0.1, 0.5, 0.66, 0.9}) {
    const std::uint64_t threshold = math::probability(density);
    double kept = 0;
    constexpr double kDraws = 400000;
    for (std::uint64_t e = 0; e < 400000; ++e) kept += math::keep(1, 2, e, threshold) ? 1 : 0;
    const double deviation = std::sqrt(kDraws * density * (1 - density));
    EXPECT_NEAR(kept, kDraws * density, 5 * deviation) << density;
  }
}

TEST(Philox, streams_seeds_and_elements_are_unrelated) {
  const std::uint64_t half = math::probability(0.5);
  int agree_stream = 0, agree_seed = 0, agree_next = 0;
  for (std::uint64_t e = 0; e < 100000; ++e) {
    const bool kept = math::keep(1, 1, e, half);
    agree_stream += kept == math::keep(1, 2, e, half) ? 1 : 0;
    agree_seed += kept == math::keep(2, 1, e, half) ? 1 : 0;
    agree_next += kept == math::keep(1, 1, e + 1, half) ? 1 : 0;
  }
  EXPECT_NEAR(agree_stream, 50000, 800);
  EXPECT_NEAR(agree_seed, 50000, 800);
  EXPECT_NEAR(agree_next, 50000, 800);
}

}  // namespace
}  // namespace ingot::test
