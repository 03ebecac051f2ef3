// Low-rank changes of base tensors in every layout, and what every change promises.
#include "adapter/change.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "effects.hpp"

namespace ingot {
namespace {

using test::Bench;
using test::Values;

const Values kW{1, 2, 3, 4, 5, 6};
const Values kA{1, -1, 2, 0.5F, 0, 1};
const Values kB{1, 2, -1, 0.5F};

void expect_near(const Values& found, const Values& expected, float most = 1e-6F) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], most * std::max(1.0F, std::fabs(expected[i]))) << i;
  }
}

TEST(Lora, KnownAnswers) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("conv", {2, 3, 1, 1}, kW).add("t", {3, 2}, {1, 4, 2, 5, 3, 6});
  bench.add("a", {2, 3}, kA).add("b", {2, 2}, kB);
  bench.add("a1", {2, 3, 1, 1}, kA).add("b1", {2, 2, 1, 1}, kB);
  bench.add("v", {4, 2}, {1, 2, 3, 4, 5, 6, 7, 8}).add("av", {2, 4}, {1, 0, -1, 2, 0.5F, 1, 0, -1});
  bench.open();
  const Effect plain = bench.effect(Family::lora, 2, {{Piece::a, "a"}, {Piece::b, "b"}});
  EXPECT_EQ(bench.apply("w", {plain}), (Values{5, 0, 11, 2.5F, 7, 3}));
  EXPECT_EQ(
      bench.apply("conv", {bench.effect(Family::lora, 2, {{Piece::a, "a1"}, {Piece::b, "b1"}})}),
      (Values{5, 0, 11, 2.5F, 7, 3}));
  Effect root = plain;
  root.scaling = 2 * std::sqrt(2.0);
  expect_near(bench.apply("w", {root}),
              {6.6568542F, -0.8284271F, 14.313708F, 1.8786798F, 7.8284273F, 1.7573595F});
  Effect transposed = plain;
  transposed.layout = Layout::transposed;
  EXPECT_EQ(bench.apply("t", {transposed}), (Values{5, 2.5F, 0, 7, 11, 3}));
  Effect embedding = bench.effect(Family::lora, 2, {{Piece::a, "av"}, {Piece::b, "b"}});
  embedding.layout = Layout::embedding;
  EXPECT_EQ(bench.apply("v", {embedding}), (Values{5, 0.5F, 7, 5, 3, 8, 7, 3}));
}

TEST(Lora, ConvolutionsAreFlattenedKernels) {
  const Values w{1, 2, 3, 4, 5, 6, 7, 8}, a{1, -1, 0, 2, 0.5F, 0, 1, 1};
  const Values merged{5, 0, 7, 12, 3.5F, 8, 8, 5};
  for (const Shape& kernel : {Shape{2, 2, 2}, Shape{2, 2, 1, 2}, Shape{2, 1, 2, 2}}) {
    Bench bench;
    Shape column{2, 2};
    while (column.rank() < kernel.rank()) ASSERT_TRUE(column.push(1));
    bench.add("w", kernel, w).add("a", kernel, a).add("b", column, kB).open();
    EXPECT_EQ(bench.apply("w", {bench.effect(Family::lora, 2, {{Piece::a, "a"}, {Piece::b, "b"}})}),
              merged)
        << kernel.text();
  }
}

TEST(Lora, WeightAndTimesScaleTheChange) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("a", {2, 3}, kA).add("b", {2, 2}, kB).open();
  Effect effect = bench.effect(Family::lora, 2, {{Piece::a, "a"}, {Piece::b, "b"}});
  effect.weight = -0.5;
  EXPECT_EQ(bench.apply("w", {effect}), (Values{-1, 3, -1, 4.75F, 4, 7.5F}));
  effect.times = 2;
  effect.weight = 0.5;
  EXPECT_EQ(bench.apply("w", {effect}), (Values{5, 0, 11, 2.5F, 7, 3}));
}

}  // namespace
}  // namespace ingot
