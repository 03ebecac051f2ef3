// What every change of a base tensor promises: the same bits for any split, backend and instruction
// set, and a bound that recomputing in double keeps.
#include "adapter/change.hpp"

#include <cmath>
#include <cstring>
#include <functional>
#include <thread>

#include <nlohmann/json.hpp>

#include "arithmetic.hpp"
#include "effects.hpp"

namespace ingot::test {
namespace {

constexpr std::uint64_t kOut = 24, kIn = 20;

// A tensor "w" with its effects.
struct Case {
  std::string name;
  std::function<std::vector<Effect>(Bench&)> make;  // adds w and the parts, then opens
};

Effect with(Effect effect, const std::function<void(Effect&)>& change) {
  change(effect);
  return effect;
}

Bench& grow_lora(Bench& bench, std::uint64_t rank = 5, std::uint64_t out = kOut,
                 std::uint64_t in = kIn, const std::string& suffix = "") {
  bench.grow("a" + suffix, {rank, in}).grow("b" + suffix, {out, rank});
  return bench.grow("m" + suffix, {out});
}
Effect lora(const Bench& bench, const std::string& suffix = "") {
  return bench.effect(Family::lora, 0.7, {{Piece::a, "a" + suffix}, {Piece::b, "b" + suffix}});
}
Effect dora(const Bench& bench, const std::string& suffix = "") {
  return bench.effect(
      Family::lora, 0.7,
      {{Piece::a, "a" + suffix}, {Piece::b, "b" + suffix}, {Piece::magnitude, "m" + suffix}});
}

std::vector<Case> cases() {
  return {
      {"lora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}, Dtype::bf16));
         bench.open();
         return {lora(bench)};
       }},
      {"two loras by columns",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kIn, kOut}));
         grow_lora(bench, 9, kOut, kIn, "2");
         bench.open();
         const auto turn = [](Effect& e) { e.layout = Layout::transposed; };
         return {with(lora(bench), turn), with(lora(bench, "2"), turn)};
       }},
      {"experts",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {3, kOut, kIn}), 6);
         bench.open();
         return {with(lora(bench), [](Effect& e) { e.cut.experts = 3; })};
       }},
      {"one half of one expert",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {3, kIn, 2 * kOut}), 6);
         bench.open();
         return {with(lora(bench), [](Effect& e) {
           e.layout = Layout::transposed;
           e.cut.block = 1;
           e.cut.at = 1;
           e.cut.pace = 2;
         })};
       }},
      {"dora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}, Dtype::bf16));
         bench.open();
         return {dora(bench)};
       }},
      {"lora, dora, dora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}, Dtype::bf16));
         grow_lora(bench, 3, kOut, kIn, "2");
         bench.open();
         return {lora(bench), dora(bench, "2"),
                 with(dora(bench), [](Effect& e) { e.weight = 0.3; })};
       }},
      {"dora by columns",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kIn, kOut}));
         bench.open();
         const auto turn = [](Effect& e) { e.layout = Layout::transposed; };
         return {with(lora(bench), turn), with(dora(bench), turn)};
       }},
      {"adalora and vera",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}));
         bench.grow("e", {5, 1}).grow("ld", {5}).grow("lb", {kOut}).open();
         return {
             bench.effect(Family::adalora, 2, {{Piece::a, "a"}, {Piece::b, "b"}, {Piece::e, "e"}}),
             bench.effect(Family::vera, 1,
                          {{Piece::shared_a, "a"},
                           {Piece::shared_b, "b"},
                           {Piece::lambda_d, "ld"},
                           {Piece::lambda_b, "lb"}})};
       }},
      {"ia3",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}, Dtype::bf16).grow("in", {1, kIn}).grow("out", {kOut, 1});
         bench.open();
         return {with(bench.effect(Family::ia3, 1, {{Piece::l, "in"}}),
                      [](Effect& e) { e.feedforward = true; }),
                 with(bench.effect(Family::ia3, 1, {{Piece::l, "out"}}),
                      [](Effect& e) { e.weight = 1.7; })};
       }},
      {"loha",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}).grow("w1a", {kOut, 3}).grow("w1b", {3, kIn});
         bench.grow("w2a", {kOut, 3}).grow("w2b", {3, kIn}).open();
         return {bench.effect(Family::loha, 1.5,
                              {{Piece::w1_a, "w1a"},
                               {Piece::w1_b, "w1b"},
                               {Piece::w2_a, "w2a"},
                               {Piece::w2_b, "w2b"}})};
       }},
      {"loha of a convolution",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {6, 5, 3, 3}).grow("w1a", {4, 6}).grow("w1b", {4, 5});
         bench.grow("t1", {4, 4, 3, 3}).grow("t2", {4, 4, 3, 3});
         bench.grow("w2a", {4, 6}).grow("w2b", {4, 5}).open();
         return {bench.effect(Family::loha, 1.5,
                              {{Piece::w1_a, "w1a"},
                               {Piece::w1_b, "w1b"},
                               {Piece::t1, "t1"},
                               {Piece::w2_a, "w2a"},
                               {Piece::w2_b, "w2b"},
                               {Piece::t2, "t2"}})};
       }},
      {"lokr",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}).grow("w1a", {4, 2}).grow("w1b", {2, 5}).grow("w2", {6, 4});
         bench.open();
         return {bench.effect(Family::lokr, 1.5,
                              {{Piece::w1_a, "w1a"}, {Piece::w1_b, "w1b"}, {Piece::w2, "w2"}})};
       }},
      {"lokr of a convolution",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {6, 6, 2, 2}).grow("w1", {2, 3}).grow("w2a", {4, 3}).grow("w2b", {4, 2});
         bench.grow("t2", {4, 4, 2, 2}).open();
         return {bench.effect(
             Family::lokr, 1.5,
             {{Piece::w1, "w1"}, {Piece::w2_a, "w2a"}, {Piece::w2_b, "w2b"}, {Piece::t2, "t2"}})};
       }},
      {"oft after lora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}, Dtype::bf16));
         bench.grow("r", {4, 10}).grow("r2", {1, 1}).open();
         return {lora(bench), bench.effect(Family::oft, 1, {{Piece::r, "r"}}),
                 with(bench.effect(Family::oft, 1, {{Piece::r, "r2"}}), [](Effect& e) {
                   e.cayley_neumann = false;
                   e.block_share = true;
                   e.weight = 0.5;
                 })};
       }},
      {"boft",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}).grow("r", {1, 5, 4, 4}).grow("s", {kOut, 1}).open();
         return {bench.effect(Family::boft, 1, {{Piece::r, "r"}, {Piece::s, "s"}})};
       }},
      {"hra",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}).grow("u", {kIn, 4}).open();
         return {bench.effect(Family::hra, 1, {{Piece::u, "u"}}),
                 with(bench.effect(Family::hra, 1, {{Piece::u, "u"}}),
                      [](Effect& e) { e.orthonormal = true; })};
       }},
      {"miss",
       [](Bench& bench) -> std::vector<Effect> {
         bench.grow("w", {kOut, kIn}).grow("rows", {3, kOut}).grow("mini", {3, 4});
         bench.grow("bat", {6, 4, 4}).open();
         const auto tile = [&](const char* part, AdapterConfig::Tiling tiling) {
           return with(bench.effect(Family::miss, 1, {{Piece::block, part}}),
                       [&](Effect& e) { e.tiling = tiling; });
         };
         return {tile("rows", AdapterConfig::Tiling::rows),
                 tile("mini", AdapterConfig::Tiling::mini),
                 tile("bat", AdapterConfig::Tiling::bat)};
       }},
      {"pissa, lora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}));
         grow_lora(bench, 3, kOut, kIn, "2");
         bench.open();
         return {lora(bench, "2"), with(lora(bench), [](Effect& e) {
                   e.residual = AdapterConfig::Residual::pissa;
                   e.weight = 0.8;
                 })};
       }},
      {"olora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kOut, kIn}));
         bench.open();
         return {with(lora(bench), [](Effect& e) { e.residual = AdapterConfig::Residual::olora; })};
       }},
      {"tokens under lora",
       [](Bench& bench) -> std::vector<Effect> {
         grow_lora(bench.grow("w", {kIn, kOut}, Dtype::bf16)).grow("rows", {2, kOut});
         bench.open();
         return {with(bench.effect(Family::none, 1, {{Piece::block, "rows"}}),
                      [](Effect& e) {
                        e.rows = {7, 2};
                      }),
                 with(lora(bench), [](Effect& e) { e.layout = Layout::embedding; })};
       }},
  };
}

void expect_same_bits(const Values& found, const Values& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(math::bits(found[i]), math::bits(expected[i])) << "element " << i;
  }
}

TEST(Changes, AreTheSameHoweverTheTensorIsSplit) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Bench bench;
    const auto effects = c.make(bench);
    const Values whole = bench.apply("w", effects);
    ASSERT_NE(whole, bench.values("w"));
    const auto derived = change(bench.at("w"), effects, std::nullopt);
    const auto working = derived->begin(bench.plan(), nullptr);
    Random random(11);
    for (int round = 0; round < 3; ++round) {
      Values pieces;
      while (pieces.size() < whole.size()) {
        const auto count =
            std::min<std::uint64_t>(1 + random.below(70), whole.size() - pieces.size());
        const Values piece = bench.fill(*working, "w", pieces.size(), count);
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      expect_same_bits(pieces, whole);
    }
  }
}

TEST(Changes, AreTheSameFromSeveralThreads) {
  constexpr std::uint64_t kPiece = 31;
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Bench bench;
    const auto effects = c.make(bench);
    const Values whole = bench.apply("w", effects);
    const auto derived = change(bench.at("w"), effects, Dtype::bf16);
    const auto working = derived->begin(bench.plan(), nullptr);
    Values found(whole.size());
    std::vector<std::thread> threads;
    for (std::uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        for (std::uint64_t at = t * kPiece; at < found.size(); at += 3 * kPiece) {
          const auto count = std::min<std::uint64_t>(kPiece, found.size() - at);
          const Values piece = bench.fill(*working, "w", at, count);
          std::copy(piece.begin(), piece.end(), found.begin() + static_cast<std::ptrdiff_t>(at));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    expect_same_bits(found, whole);
  }
}

TEST(Changes, KeepTheBoundOfDoublePrecision) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Bench bench;
    const auto effects = c.make(bench);
    const Values whole = bench.apply("w", effects), own = bench.values("w");
    const auto derived = change(bench.at("w"), effects, std::nullopt);
    double worst = 0;
    for (const std::uint64_t first : {std::uint64_t{0}, std::uint64_t{13}}) {
      const std::span<const float> part(own.data() + first, own.size() - first);
      const auto truths = derived->recompute(bench.plan(), first, part.size(), part);
      ASSERT_EQ(truths.size(), part.size());
      for (std::size_t i = 0; i < truths.size(); ++i) {
        const double off = std::fabs(static_cast<double>(whole[first + i]) - truths[i].value);
        ASSERT_LE(off, truths[i].slack) << i;
        // Some tens of roundings of numbers of order 1 to 100, no more.
        ASSERT_LT(truths[i].slack, 1e-4) << i;
        worst = std::max(worst, off);
      }
    }
    EXPECT_GT(worst, 0);
  }
}

TEST(Changes, FiguresDoNotDependOnPieces) {
  Bench bench;
  constexpr std::uint64_t kHeight = 900, kWidth = 40;  // 36,000 elements: two tiles and a bit
  bench.grow("w", {kHeight, kWidth}, Dtype::bf16);
  grow_lora(bench, 4, kHeight, kWidth);
  bench.open();
  const auto derived =
      change(bench.at("w"), {with(lora(bench), [](Effect& e) { e.scaling = 0.002; })}, Dtype::bf16);
  const auto figures = [&](std::vector<std::uint64_t> ends) {
    const auto working = derived->begin(bench.plan(), nullptr);
    std::uint64_t first = 0;
    for (const std::uint64_t end : ends) {
      bench.fill(*working, "w", first, end - first);
      first = end;
    }
    return derived->found(*working);
  };
  const std::string whole = figures({kHeight * kWidth});
  EXPECT_EQ(figures({math::kTile, kHeight * kWidth}), whole);
  EXPECT_EQ(figures({math::kTile, 2 * math::kTile, kHeight * kWidth}), whole);

  const Values before = bench.values("w");
  const Values after = bench.fill(*derived->begin(bench.plan(), nullptr), "w", 0, before.size());
  double weight = 0, change = 0, kept = 0, largest = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    using Codec = math::Codec<math::Format::bf16>;
    const double w = static_cast<double>(before[i]), d = static_cast<double>(after[i]) - w;
    weight += w * w;
    change += d * d;
    kept += d * (static_cast<double>(Codec::decode(Codec::encode(after[i], {}))) - w);
    largest = std::max(largest, std::fabs(d));
  }
  const auto json = nlohmann::json::parse(whole);
  EXPECT_NEAR(json["weight"], std::sqrt(weight), 1e-9);
  EXPECT_NEAR(json["change"], std::sqrt(change), 1e-9);
  EXPECT_NEAR(json["largest"], largest, 1e-9);
  EXPECT_NEAR(json["survived"], kept / change, 1e-9);
  EXPECT_GT(kept / change, 0.3);
  EXPECT_LT(kept / change, 0.99);
}

TEST(Changes, FiguresOfLargeTensorsAreSampled) {
  Bench bench;
  constexpr std::uint64_t kHeight = 4 * 1024, kWidth = 520;  // 130 tiles
  bench.grow("w", {kHeight, kWidth}).grow("l", {kHeight, 1}).open();
  const auto derived =
      change(bench.at("w"), {bench.effect(Family::ia3, 1, {{Piece::l, "l"}})}, Dtype::bf16);
  const auto working = derived->begin(bench.plan(), nullptr);
  const Values before = bench.values("w");
  const Values after = bench.fill(*working, "w", 0, before.size());
  double change = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    const double d = static_cast<double>(after[i]) - static_cast<double>(before[i]);
    change += d * d;
  }
  const auto json = nlohmann::json::parse(derived->found(*working));
  EXPECT_NEAR(json["change"].get<double>() / std::sqrt(change), 1, 0.05);
  EXPECT_NE(json["change"].get<double>(), std::sqrt(change));
}

TEST(Changes, OfWhatIsNotFiniteHaveNoFigures) {
  Bench bench;
  bench.add("w", {2, 2}, {1, INFINITY, 2, 3}).add("l", {2, 1}, {2, 3}).open();
  const auto derived =
      change(bench.at("w"), {bench.effect(Family::ia3, 1, {{Piece::l, "l"}})}, Dtype::bf16);
  const auto working = derived->begin(bench.plan(), nullptr);
  EXPECT_EQ(bench.fill(*working, "w", 0, 4), (Values{2, INFINITY, 6, 9}));
  EXPECT_EQ(derived->found(*working), "");
}

class ChangesOnBackends : public EveryIsa {};

TEST_P(ChangesOnBackends, GiveTheBitsOfThePlainLoops) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    Bench bench;
    const auto effects = c.make(bench);
    expect_same_bits(bench.apply("w", effects, backend_.get()), bench.apply("w", effects));
  }
}

INGOT_EVERY_ISA(ChangesOnBackends);

}  // namespace
}  // namespace ingot::test
