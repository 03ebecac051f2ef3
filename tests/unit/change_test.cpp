// Low-rank changes of base tensors in every layout, and what every change promises.
#include "adapter/change.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "effects.hpp"

namespace ingot {
namespace {

using test::Bench;
using test::expect_near;
using test::kA;
using test::kB;
using test::kW;
using test::Values;

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

// B A as a matrix, out x in, in double.
std::vector<double> product(const Values& a, const Values& b, std::size_t rank) {
  const std::size_t in = a.size() / rank, out = b.size() / rank;
  std::vector<double> delta(out * in);
  for (std::size_t o = 0; o < out; ++o) {
    for (std::size_t k = 0; k < rank; ++k) {
      for (std::size_t i = 0; i < in; ++i) {
        delta[o * in + i] +=
            static_cast<double>(b[o * rank + k]) * static_cast<double>(a[k * in + i]);
      }
    }
  }
  return delta;
}

// Expert e's factors out of the interleaved ones (peft 1.9).
std::vector<double> expert(const Values& a, const Values& b, std::size_t experts, std::size_t rank,
                           std::size_t e) {
  const std::size_t in = a.size() / rank / experts, out = b.size() / rank / experts;
  Values ae(rank * in), be(out * rank);
  for (std::size_t k = 0; k < rank; ++k) {
    for (std::size_t i = 0; i < in; ++i) ae[k * in + i] = a[(e * rank + k) * in + i];
    for (std::size_t o = 0; o < out; ++o)
      be[o * rank + k] = b[o * rank * experts + k * experts + e];
  }
  return product(ae, be, rank);
}

TEST(Experts, KnownAnswersInBothOrientations) {
  Bench bench;
  bench.add("w", {2, 2, 3}, Values(12)).add("t", {2, 3, 2}, Values(12));
  bench.add("a", {4, 3}, {1, 0, 0, 0, 2, 0, 0, 0, 3, 1, 1, 1});
  bench.add("b", {2, 4}, {1, 2, 3, 4, 5, 6, 7, 8}).open();
  Effect effect = bench.effect(Family::lora, 2, {{Piece::a, "a"}, {Piece::b, "b"}});
  effect.cut.experts = 2;
  EXPECT_EQ(bench.apply("w", {effect}), (Values{2, 12, 0, 10, 28, 0, 8, 8, 20, 16, 16, 52}));
  effect.layout = Layout::transposed;
  EXPECT_EQ(bench.apply("t", {effect}), (Values{2, 10, 12, 28, 0, 0, 8, 16, 8, 16, 20, 52}));
}

// Fused factors of E experts whose outputs are gate and up one after the other, on tensors of one
// expert and one half each.
TEST(Experts, FusedFactorsLandInTensorsOfTheirOwn) {
  constexpr std::size_t kExperts = 3, kRank = 2, kIn = 5, kHalf = 4;
  for (const bool interleaved : {false, true}) {
    Bench bench;
    bench.grow("w", {kHalf, kIn}).grow("a", {kExperts * kRank, kIn});
    bench.grow("b", {2 * kHalf, kExperts * kRank}).open();
    for (std::size_t e = 0; e < kExperts; ++e) {
      for (std::size_t half = 0; half < 2; ++half) {
        Effect effect = bench.effect(Family::lora, 0.5, {{Piece::a, "a"}, {Piece::b, "b"}});
        effect.cut.experts = kExperts;
        effect.cut.expert = static_cast<std::uint32_t>(e);
        effect.cut.from = interleaved ? half : half * kHalf;
        effect.cut.step = interleaved ? 2 : 1;
        effect.cut.count = kHalf;
        const auto delta = expert(bench.values("a"), bench.values("b"), kExperts, kRank, e);
        Values expected = bench.values("w");
        for (std::size_t o = 0; o < kHalf; ++o) {
          const std::size_t row = effect.cut.from + o * effect.cut.step;
          for (std::size_t i = 0; i < kIn; ++i) {
            expected[o * kIn + i] += static_cast<float>(0.5 * delta[row * kIn + i]);
          }
        }
        expect_near(bench.apply("w", {effect}), expected);
      }
    }
  }
}

// One expert's gate and up, each with factors of its own, on the fused tensor of all experts.
TEST(Experts, FactorsOfOneExpertLandInItsBlock) {
  constexpr std::size_t kExperts = 3, kRank = 2, kIn = 5, kHalf = 4;
  for (const bool transposed : {false, true}) {
    for (const bool interleaved : {false, true}) {
      Bench bench;
      bench.grow("w",
                 transposed ? Shape{kExperts, kIn, 2 * kHalf} : Shape{kExperts, 2 * kHalf, kIn});
      bench.grow("a", {kRank, kIn}).grow("b", {kHalf, kRank}).open();
      Effect effect = bench.effect(Family::lora, 0.5, {{Piece::a, "a"}, {Piece::b, "b"}});
      effect.layout = transposed ? Layout::transposed : Layout::linear;
      effect.cut.block = 1;
      effect.cut.at = interleaved ? 1 : kHalf;
      effect.cut.pace = interleaved ? 2 : 1;
      const auto delta = product(bench.values("a"), bench.values("b"), kRank);
      Values expected = bench.values("w");
      for (std::size_t o = 0; o < kHalf; ++o) {
        for (std::size_t i = 0; i < kIn; ++i) {
          const std::size_t out = effect.cut.at + o * effect.cut.pace;
          const std::size_t at = transposed ? i * 2 * kHalf + out : out * kIn + i;
          expected[2 * kHalf * kIn + at] += static_cast<float>(0.5 * delta[o * kIn + i]);
        }
      }
      expect_near(bench.apply("w", {effect}), expected);
    }
  }
}

TEST(Lora, WhatDoesNotFitIsOneSentence) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("a", {2, 3}, kA).add("b", {2, 2}, kB);
  bench.add("a4", {2, 4}, Values(8)).add("b3", {3, 2}, Values(6)).add("one", {2}, {1, 2});
  bench.add("nan", {2, 2}, {1, NAN, 0, 1}).open();
  const auto refusal = [&](const char* base, const char* a, const char* b) -> std::string {
    try {
      static_cast<void>(
          bench.apply(base, {bench.effect(Family::lora, 1, {{Piece::a, a}, {Piece::b, b}})}));
    } catch (const Error& e) {
      return e.message();
    }
    return "";
  };
  EXPECT_EQ(refusal("w", "a", "b"), "");
  EXPECT_EQ(refusal("w", "a4", "b"),
            "adapter: a4 has shape [2, 4], expected 3 columns to change w of shape [2, 3]");
  EXPECT_EQ(refusal("w", "a", "b3"),
            "adapter: b3 has shape [3, 2], expected 2 rows to change w of shape [2, 3]");
  EXPECT_EQ(
      refusal("w", "a", "one"),
      "adapter: one has shape [2], expected a matrix with elements to change w of shape [2, 3]");
  EXPECT_EQ(refusal("one", "a", "b"),
            "adapter: one has shape [2], a low-rank change needs a matrix");
  EXPECT_EQ(refusal("w", "a", "nan"),
            "adapter: element 1 of nan is nan, so the adapter cannot be used");
}

}  // namespace
}  // namespace ingot
