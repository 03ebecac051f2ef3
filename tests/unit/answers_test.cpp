// The known answers of docs/numbers.md, "Randomness", which tools/truth.py computed on its own.
#include <gtest/gtest.h>

#include "base/hash.hpp"
#include "ingot/math/parts/task.hpp"
#include "ingot/math/philox.hpp"

namespace ingot::test {
namespace {

std::uint32_t first_mask(const char* tensor, std::uint64_t position, double density) {
  std::uint32_t mask = 0;
  for (std::uint32_t i = 0; i < 32; ++i) {
    const bool kept =
        math::keep(0, stream_key(tensor, "drop", position), i, math::probability(density));
    mask |= (kept ? 1U : 0U) << i;
  }
  return mask;
}

std::uint32_t bytes(std::uint32_t shown) { return __builtin_bswap32(shown); }

TEST(KnownAnswers, StreamsAndMasksAreThoseOfTheDocument) {
  EXPECT_EQ(stream_key("model.norm.weight", "drop", 0), 0x083f283daf933b5dU);
  EXPECT_EQ(stream_key("lm_head.weight", "drop", 2), 0x6558986c8d166d03U);
  EXPECT_EQ(first_mask("model.norm.weight", 0, 0.5), bytes(0x7ed0121bU));
  EXPECT_EQ(first_mask("model.norm.weight", 1, 0.3), bytes(0x82018254U));
}

}  // namespace
}  // namespace ingot::test
