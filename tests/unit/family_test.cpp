// Every family's answers that are known (PEFT 0.21.2 on CPU in f32).
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "effects.hpp"
#include "ingot/linalg.hpp"

namespace ingot {
namespace {

using test::Bench;
using test::expect_near;
using test::kA;
using test::kB;
using test::kW;
using test::Values;

const Values kWide{1, 2, 3, 4, 5, 6, 7, 8};

TEST(AdaLora, KnownAnswer) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("a", {2, 3}, kA).add("b", {2, 2}, kB).add("e", {2, 1}, {0.5F, 2});
  bench.open();
  expect_near(bench.apply("w", {bench.effect(Family::adalora, 4 / (2 + 1e-5),
                                             {{Piece::a, "a"}, {Piece::b, "b"}, {Piece::e, "e"}})}),
              {5.9999752F, 1.000005F, 12.99995F, 4, 5.9999952F, 6});
}

TEST(Vera, KnownAnswerAndProjectionsLargerThanTheLayer) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("a", {2, 3}, kA).add("b", {2, 2}, kB);
  bench.add("a4", {2, 4}, {1, -1, 2, 9, 0.5F, 0, 1, 9}).add("b3", {3, 2}, {1, 2, -1, 0.5F, 9, 9});
  bench.add("lb", {2}, {2, -1}).add("ld", {2}, {0.5F, 3}).open();
  for (const auto& [a, b] : {std::pair("a", "b"), std::pair("a4", "b3")}) {
    EXPECT_EQ(bench.apply("w", {bench.effect(Family::vera, 1,
                                             {{Piece::shared_a, a},
                                              {Piece::shared_b, b},
                                              {Piece::lambda_b, "lb"},
                                              {Piece::lambda_d, "ld"}})}),
              (Values{8, 1, 17, 3.75F, 4.5F, 5.5F}));
  }
}

class Dora : public testing::Test {
 protected:
  Dora() {
    bench_.add("w", {2, 3}, {3, 0, 4, 1, 2, 2}).add("t", {3, 2}, {3, 1, 0, 2, 4, 2});
    bench_.add("aa", {1, 3}, {1, 0, -1}).add("ba", {2, 1}, {0.5F, 1}).add("ma", {2}, {10, 6});
    bench_.add("ab", {1, 3}, {0, 3, 0}).add("bb", {2, 1}, {4, 0}).add("mb", {2}, {26, 6});
    bench_.add("v", {3, 2}, {1, 2, 2, 0, 1, -2});
    bench_.add("av", {1, 3}, {1, 0, -1}).add("bv", {2, 1}, {0.5F, -0.5F}).add("mv", {2}, {4, 3});
    bench_.add("zero", {2, 3}, {0, 0, 0, 1, 2, 2}).add("bz", {2, 1}, {0, 1});
    bench_.open();
    a_ = bench_.effect(Family::lora, 2,
                       {{Piece::a, "aa"}, {Piece::b, "ba"}, {Piece::magnitude, "ma"}});
    b_ = bench_.effect(Family::lora, 1,
                       {{Piece::a, "ab"}, {Piece::b, "bb"}, {Piece::magnitude, "mb"}});
  }
  Bench bench_;
  Effect a_, b_;
};

TEST_F(Dora, KnownAnswersAloneAndInBothOrders) {
  const Values alone{8, 0, 6, 4.9923019F, 3.3282013F, 0};
  const Values ab{16, 24, 12, 9.9846039F, 6.6564026F, 0};
  const Values ba{14, 48, 14, 6.6564026F, 6.6564026F, 3.3282013F};
  expect_near(bench_.apply("w", {a_}), alone);
  expect_near(bench_.apply("w", {a_, b_}), ab);
  expect_near(bench_.apply("w", {b_, a_}), ba);
  a_.layout = b_.layout = Layout::transposed;
  const auto turned = [](const Values& v) { return Values{v[0], v[3], v[1], v[4], v[2], v[5]}; };
  expect_near(bench_.apply("t", {a_}), turned(alone));
  expect_near(bench_.apply("t", {a_, b_}), turned(ab));
  expect_near(bench_.apply("t", {b_, a_}), turned(ba));
}

TEST_F(Dora, EmbeddingsAreMeasuredOverTheVocabulary) {
  Effect effect = bench_.effect(Family::lora, 2,
                                {{Piece::a, "av"}, {Piece::b, "bv"}, {Piece::magnitude, "mv"}});
  effect.layout = Layout::embedding;
  expect_near(bench_.apply("v", {effect}), {2.8284271F, 2.1213205F, 2.8284271F, 0, 0, -2.1213205F});
}

TEST_F(Dora, RowsOfZerosStayAndAreCounted) {
  const auto derived =
      change(bench_.at("zero"),
             {bench_.effect(Family::lora, 2,
                            {{Piece::a, "aa"}, {Piece::b, "bz"}, {Piece::magnitude, "ma"}})},
             Dtype::f32);
  const auto working = derived->begin(bench_.plan(), nullptr);
  expect_near(bench_.fill(*working, "zero", 0, 6), {0, 0, 0, 4.9923019F, 3.3282013F, 0});
  EXPECT_NE(derived->found(*working).find("\"skipped\":1"), std::string::npos);
}

TEST_F(Dora, WeightGoesPartOfTheWay) {
  a_.weight = 0.5;
  expect_near(bench_.apply("w", {a_}), {5.5F, 0, 5, (1 + 4.9923019F) / 2, (2 + 3.3282013F) / 2, 1});
}

TEST(Ia3, KnownAnswers) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("t", {3, 2}, {1, 4, 2, 5, 3, 6}).add("bias", {2}, {1, -1});
  bench.add("out", {2, 1}, {0.5F, 2}).add("in", {1, 3}, {0.5F, 2, -1});
  bench.add("conv", {4, 2, 1, 1}, kWide).add("l4", {1, 4, 1, 1}, {1, 2, 3, 4});
  bench.open();
  Effect other = bench.effect(Family::ia3, 1, {{Piece::l, "out"}});
  Effect ahead = bench.effect(Family::ia3, 1, {{Piece::l, "in"}});
  ahead.feedforward = true;
  EXPECT_EQ(bench.apply("w", {other}), (Values{0.5F, 1, 1.5F, 8, 10, 12}));
  EXPECT_EQ(bench.apply("bias", {other}), (Values{0.5F, -2}));
  EXPECT_EQ(bench.apply("w", {ahead}), (Values{0.5F, 4, -3, 2, 10, -6}));
  EXPECT_THROW(bench.apply("bias", {ahead}), Error);
  other.layout = ahead.layout = Layout::transposed;
  EXPECT_EQ(bench.apply("t", {other}), (Values{0.5F, 8, 1, 10, 1.5F, 12}));
  EXPECT_EQ(bench.apply("t", {ahead}), (Values{0.5F, 2, 4, 10, -3, -6}));
  Effect conv = bench.effect(Family::ia3, 1, {{Piece::l, "l4"}});
  EXPECT_EQ(bench.apply("conv", {conv}), (Values{1, 2, 6, 8, 15, 18, 28, 32}));
  conv.feedforward = true;
  EXPECT_EQ(bench.apply("conv", {conv}), (Values{1, 4, 3, 8, 15, 24, 21, 32}));
}

TEST(Ia3, TheIdentityIsOne) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("out", {2, 1}, {0.5F, 3}).open();
  Effect effect = bench.effect(Family::ia3, 1, {{Piece::l, "out"}});
  effect.weight = 0.5;
  EXPECT_EQ(bench.apply("w", {effect}), (Values{0.75F, 1.5F, 2.25F, 8, 10, 12}));
}

TEST(Bias, IsAddedWithTheScaling) {
  Bench bench;
  bench.add("bias", {2}, {1, -1}).add("added", {2}, {0.5F, 2}).open();
  EXPECT_EQ(bench.apply("bias", {bench.effect(Family::lora, 2, {{Piece::bias, "added"}})}),
            (Values{2, 3}));
}

TEST(Tokens, RowsAreReplacedByPosition) {
  Bench bench;
  bench.add("v", {4, 2}, kWide).add("rows", {2, 2}, {10, 20, 30, 40}).open();
  Effect effect = bench.effect(Family::none, 1, {{Piece::block, "rows"}});
  effect.rows = {3, 1};
  EXPECT_EQ(bench.apply("v", {effect}), (Values{1, 2, 30, 40, 5, 6, 10, 20}));
  effect.weight = 0.5;
  EXPECT_EQ(bench.apply("v", {effect}), (Values{1, 2, 16.5F, 22, 5, 6, 8.5F, 14}));
  effect.rows = {3, 3};
  EXPECT_THROW(bench.apply("v", {effect}), Error);
  effect.rows = {4, 1};
  EXPECT_THROW(bench.apply("v", {effect}), Error);
}

TEST(Loha, KnownAnswers) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("t", {3, 2}, {1, 4, 2, 5, 3, 6});
  bench.add("w1a", {2, 2}, {1, 2, 0, 1}).add("w1b", {2, 3}, {1, 0, -1, 2, 1, 0});
  bench.add("w2a", {2, 2}, {1, -1, 0.5F, 0}).add("w2b", {2, 3}, {2, 0, 1, 1, 1, -1});
  bench.add("conv", {2, 2, 1, 2}, kWide);
  bench.add("t1", {2, 2, 1, 2}, {1, 0, 0, 2, 0.5F, 1, 1, -1}).add("c1b", {2, 2}, {1, -1, 2, 0});
  bench.add("t2", {2, 2, 1, 2}, {1, 1, 0, 1, 1, 0, 2, 1}).add("c2b", {2, 2}, {2, 0, 1, 1});
  bench.open();
  Effect effect = bench.effect(
      Family::loha, 2,
      {{Piece::w1_a, "w1a"}, {Piece::w1_b, "w1b"}, {Piece::w2_a, "w2a"}, {Piece::w2_b, "w2b"}});
  EXPECT_EQ(bench.apply("w", {effect}), (Values{11, -2, -1, 8, 5, 6}));
  effect.layout = Layout::transposed;
  EXPECT_EQ(bench.apply("t", {effect}), (Values{11, 8, -2, 5, -1, 6}));
  EXPECT_EQ(bench.apply("conv", {bench.effect(Family::loha, 2,
                                              {{Piece::w1_a, "w1a"},
                                               {Piece::w1_b, "c1b"},
                                               {Piece::w2_a, "w2a"},
                                               {Piece::w2_b, "c2b"},
                                               {Piece::t1, "t1"},
                                               {Piece::t2, "t2"}})}),
            (Values{9, 30, 1, 4, -13, -36, 7, 10}));
}

TEST(Lokr, KnownAnswers) {
  Bench bench;
  bench.add("zero", {4, 4}, Values(16)).add("w1", {2, 2}, {1, 2, 0, -1});
  bench.add("w2", {2, 2}, {1, 0, 0.5F, 3});
  bench.add("long", {4, 6}, Values(24))
      .add("w2a", {2, 1}, {1, -2})
      .add("w2b", {1, 3}, {1, 0.5F, 3});
  bench.open();
  Effect effect = bench.effect(Family::lokr, 2, {{Piece::w1, "w1"}, {Piece::w2, "w2"}});
  const Values plain{2, 0, 4, 0, 1, 6, 2, 12, 0, 0, -2, 0, 0, 0, -1, -6};
  EXPECT_EQ(bench.apply("zero", {effect}), plain);
  effect.layout = Layout::transposed;
  Values turned(16);
  for (std::size_t i = 0; i < 16; ++i) turned[i % 4 * 4 + i / 4] = plain[i];
  EXPECT_EQ(bench.apply("zero", {effect}), turned);
  EXPECT_EQ(
      bench.apply("long",
                  {bench.effect(Family::lokr, 2,
                                {{Piece::w1, "w1"}, {Piece::w2_a, "w2a"}, {Piece::w2_b, "w2b"}})}),
      (Values{2, 1, 6, 4,  2,  12, -4, -2, -12, -8, -4, -24,
              0, 0, 0, -2, -1, -6, 0,  0,  0,   4,  2,  12}));
}

TEST(Oft, KnownAnswers) {
  Bench bench;
  bench.add("w", {2, 4}, kWide);
  bench.add("r", {2, 1}, {0.5F, -1}).add("small", {2, 1}, {0.25F, -0.5F}).open();
  Effect exact = bench.effect(Family::oft, 1, {{Piece::r, "r"}});
  exact.cayley_neumann = false;
  expect_near(bench.apply("w", {exact}), {-1, 2, 4, -3, -1.8F, 7.6F, 8, -7});
  EXPECT_EQ(
      bench.apply("w", {bench.effect(Family::oft, 1, {{Piece::r, "small"}})}),
      (Values{1.81640625F, 1.2890625F, -1.3125F, 4.5F, 7.20703125F, 2.9296875F, -2.0625F, 9.75F}));
}

TEST(Oft, SeveralTurnTheInputOneAfterTheOther) {
  Bench bench;
  bench.grow("w", {3, 6}).grow("a", {2, 3}).grow("b", {3, 1}).open();
  const Effect a = bench.effect(Family::oft, 1, {{Piece::r, "a"}});
  const Effect b = bench.effect(Family::oft, 1, {{Piece::r, "b"}});
  // The forward pass gives W (b (a x)): the columns of W meet b first.
  Bench after;
  after.add("w", {3, 6}, bench.apply("w", {b})).add("a", {2, 3}, bench.values("a")).open();
  EXPECT_EQ(bench.apply("w", {a, b}),
            after.apply("w", {after.effect(Family::oft, 1, {{Piece::r, "a"}})}));
}

TEST(Oft, ASharedBlockRepeats) {
  Bench bench;
  bench.add("w", {2, 4}, kWide)
      .add("one", {1, 1}, {0.25F})
      .add("two", {2, 1}, {0.25F, 0.25F})
      .open();
  Effect shared = bench.effect(Family::oft, 1, {{Piece::r, "one"}});
  EXPECT_THROW(bench.apply("w", {shared}), Error);
  shared.block_share = true;
  EXPECT_EQ(bench.apply("w", {shared}),
            bench.apply("w", {bench.effect(Family::oft, 1, {{Piece::r, "two"}})}));
}

TEST(Boft, KnownAnswer) {
  Bench bench;
  bench.add("w", {2, 4}, kWide).add("r", {1, 2, 2, 2}, {0, 1, 0, 0, 0, -0.5F, 0.5F, 0});
  bench.add("s", {2, 1}, {1, 2}).open();
  expect_near(bench.apply("w", {bench.effect(Family::boft, 1, {{Piece::r, "r"}, {Piece::s, "s"}})}),
              {-1, 2, 5, 0, -3.6F, 15.2F, 21.2F, -1.6F});
}

// A turn by 90 degrees of every pair: in the first stage neighbours, in the second every other one.
TEST(Boft, LaterStagesTurnWhatLiesFurtherApart) {
  const Values still(8), turn{0, 1, -1, 0, 0, 1, -1, 0};
  const auto stages = [](Values first, const Values& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  // S = (R - R^T) / 2 = [[0, 1], [-1, 0]], so (I - S) (I + S)^-1 takes (x, y) to (-y, x).
  Bench bench;
  bench.add("w", {1, 4}, {1, 2, 3, 4}).add("s", {1, 1}, {1});
  bench.add("near", {2, 2, 2, 2}, stages(turn, still));
  bench.add("far", {2, 2, 2, 2}, stages(still, turn));
  bench.add("both", {2, 2, 2, 2}, stages(turn, turn)).open();
  const auto after = [&](const char* r) {
    return bench.apply("w", {bench.effect(Family::boft, 1, {{Piece::r, r}, {Piece::s, "s"}})});
  };
  expect_near(after("near"), {-2, 1, -4, 3});
  expect_near(after("far"), {-3, -4, 1, 2});
  expect_near(after("both"), {4, -3, -2, 1});
}

TEST(Boft, StagesThatDoNotFitAreRefused) {
  Bench bench;
  bench.add("w", {2, 4}, kWide).add("wide", {2, 6}, Values(12)).add("s", {2, 1}, {1, 2});
  bench.add("none", {0, 2, 2, 2}, {}).add("three", {3, 2, 2, 2}, Values(24));
  bench.add("odd", {2, 3, 2, 2}, Values(24)).open();
  const auto refused = [&](const char* weight, const char* r) {
    EXPECT_THROW(
        bench.apply(weight, {bench.effect(Family::boft, 1, {{Piece::r, r}, {Piece::s, "s"}})}),
        Error)
        << r;
  };
  refused("w", "none");
  refused("w", "three");
  refused("wide", "odd");
}

TEST(Hra, KnownAnswersAndNoDirection) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("u", {3, 2}, {3, 0, 4, 1, 0, 0});
  bench.add("flat", {3, 2}, {1, 2, 0, 0, 0, 0}).open();
  Effect effect = bench.effect(Family::hra, 1, {{Piece::u, "u"}});
  expect_near(bench.apply("w", {effect}), {-1.64F, 1.52F, 3, -3.68F, 5.24F, 6});
  effect.orthonormal = true;
  expect_near(bench.apply("w", {effect}), {-1, -2, 3, -4, -5, 6});
  Effect flat = bench.effect(Family::hra, 1, {{Piece::u, "flat"}});
  EXPECT_NO_THROW(bench.apply("w", {flat}));
  flat.orthonormal = true;
  EXPECT_THROW(bench.apply("w", {flat}), Error);
}

TEST(Miss, KnownAnswers) {
  Bench bench;
  bench.add("w", {2, 3}, kW).add("t", {3, 2}, {1, 4, 2, 5, 3, 6}).add("wide", {2, 4}, kWide);
  bench.add("m", {2, 2}, {1, 2, 3, -4}).add("mini", {2, 1}, {1, 3});
  bench.add("bat", {1, 2, 2}, {1, 2, 3, -4}).open();
  Effect rows = bench.effect(Family::miss, 1, {{Piece::block, "m"}});
  EXPECT_EQ(bench.apply("w", {rows}), (Values{2, 5, 4, 6, 1, 8}));
  rows.layout = Layout::transposed;
  EXPECT_EQ(bench.apply("t", {rows}), (Values{2, 6, 5, 1, 4, 8}));
  Effect mini = bench.effect(Family::miss, 1, {{Piece::block, "mini"}});
  mini.tiling = AdapterConfig::Tiling::mini;
  EXPECT_EQ(bench.apply("w", {mini}), (Values{2, 5, 4, 5, 8, 7}));
  Effect bat = bench.effect(Family::miss, 1, {{Piece::block, "bat"}});
  bat.tiling = AdapterConfig::Tiling::bat;
  EXPECT_EQ(bench.apply("wide", {bat}), (Values{9, -2, 19, -4, 31, -12, 41, -14}));
}

linalg::Matrix matrix_of(const Values& values, std::size_t rows) {
  linalg::Matrix out(rows, values.size() / rows);
  std::copy(values.begin(), values.end(), out.data.begin());
  return out;
}

TEST(Residual, PissaLeavesTheLowerSingularValues) {
  constexpr std::size_t kRank = 3;
  for (const Shape& shape : {Shape{12, 30}, Shape{30, 12}}) {
    Bench bench;
    bench.grow("w", shape).add("a", {kRank, shape[1]}, Values(kRank * shape[1]));
    bench.add("b", {shape[0], kRank}, Values(kRank * shape[0])).open();
    Effect effect = bench.effect(Family::lora, 2, {{Piece::a, "a"}, {Piece::b, "b"}});
    effect.residual = AdapterConfig::Residual::pissa;
    const auto before = linalg::svd(matrix_of(bench.values("w"), shape[0])).values;
    const auto after = linalg::svd(matrix_of(bench.apply("w", {effect}), shape[0])).values;
    for (std::size_t i = 0; i < before.size(); ++i) {
      const double expected = i + kRank < before.size() ? before[i + kRank] : 0;
      EXPECT_NEAR(after[i], expected, 1e-5) << i;
    }
  }
}

TEST(Residual, IsRefusedWhereItCannotBeTold) {
  Bench bench;
  bench.grow("w", {5, 4}).grow("a", {2, 4}).grow("b", {5, 2}).grow("m", {5});
  bench.grow("a2", {2, 5}).grow("b2", {4, 2}).open();
  Effect plain = bench.effect(Family::lora, 1, {{Piece::a, "a"}, {Piece::b, "b"}});
  Effect pissa = plain;
  pissa.residual = AdapterConfig::Residual::pissa;
  EXPECT_NO_THROW(bench.apply("w", {plain, pissa}));
  EXPECT_THROW(bench.apply("w", {pissa, pissa}), Error);
  const Effect dora =
      bench.effect(Family::lora, 1, {{Piece::a, "a"}, {Piece::b, "b"}, {Piece::magnitude, "m"}});
  EXPECT_NO_THROW(bench.apply("w", {plain, dora}));
  EXPECT_THROW(bench.apply("w", {pissa, dora}), Error);
  Effect turned = bench.effect(Family::lora, 1, {{Piece::a, "a2"}, {Piece::b, "b2"}});
  turned.layout = Layout::transposed;
  turned.residual = AdapterConfig::Residual::pissa;
  EXPECT_NO_THROW(bench.apply("w", {turned}));
  turned.residual = AdapterConfig::Residual::olora;
  EXPECT_THROW(bench.apply("w", {turned}), Error);
}

}  // namespace
}  // namespace ingot
