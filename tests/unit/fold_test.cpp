// The shape of sums, against the definition written as plainly as possible.
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

// The sum of one tile: lanes, then halves.
double tile_sum(const std::vector<double>& numbers) {
  std::vector<double> lanes(256, 0.0);
  for (std::size_t i = 0; i < numbers.size(); ++i) lanes[i % 256] += numbers[i];
  for (std::size_t half = 128; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

// Pairs of neighbours, level by level; an odd last one moves up.
double pairwise(std::vector<double> sums) {
  while (sums.size() > 1) {
    std::vector<double> next;
    for (std::size_t i = 0; i + 1 < sums.size(); i += 2) next.push_back(sums[i] + sums[i + 1]);
    if (sums.size() % 2 == 1) next.push_back(sums.back());
    sums = next;
  }
  return sums.empty() ? 0.0 : sums[0];
}

std::vector<double> awkward(std::size_t n, std::uint64_t seed) {
  Random random(seed);
  std::vector<double> numbers(n);
  for (double& x : numbers)
    x = std::ldexp(random.uniform() - 0.5, static_cast<int>(random.below(60)) - 30);
  return numbers;
}

TEST(Fold, tiles_combine_pairwise_with_an_odd_one_moving_up) {
  for (std::size_t n = 0; n < 70; ++n) {
    std::vector<double> tiles = awkward(n, n + 1);
    const double expected = pairwise(tiles);
    EXPECT_EQ(math::combine(tiles.data(), n), expected) << n;
  }
}

TEST(Fold, five_tiles_are_added_as_documented) {
  // ((a + b) + (c + d)) + e, and not ((((a + b) + c) + d) + e)
  std::vector<double> tiles = {1e16, 1.0, 1.0, 1.0, -1e16};
  EXPECT_EQ(math::combine(tiles.data(), 5), ((1e16 + 1.0) + (1.0 + 1.0)) + -1e16);
}

TEST(Fold, lanes_fold_by_halves) {
  std::vector<double> lanes = awkward(256, 9);
  const double expected = tile_sum(lanes);
  EXPECT_EQ(math::fold_lanes<math::Adding>(lanes.data()), expected);
}

TEST(Fold, products_of_f32_are_exact_in_double) {
  Random random(8);
  for (int i = 0; i < 100000; ++i) {
    const float a = math::from_bits(static_cast<std::uint32_t>(random.next()));
    const float b = math::from_bits(static_cast<std::uint32_t>(random.next()));
    const double product = static_cast<double>(a) * static_cast<double>(b);
    if (!std::isfinite(product)) continue;
    ASSERT_EQ(std::fma(static_cast<double>(a), static_cast<double>(b), -product), 0.0);
  }
}

// The number of a method's first fold.
int first_fold(const Merge& merge) {
  const auto passes = math::method(merge.work.rule.method).passes;
  int pass = 0;
  while (passes[static_cast<std::size_t>(pass)].kind != math::Pass::fold) ++pass;
  return pass;
}

class FoldOnCpu : public EveryIsa {};

TEST_P(FoldOnCpu, slerp_sums_are_those_of_the_definition) {
  for (const std::uint64_t count :
       {1u, 7u, 8u, 31u, 32u, 33u, 255u, 256u, 257u, 16383u, 16384u, 16385u, 100000u, 1048579u}) {
    const Merge merge = merge_of("slerp", family(Dtype::bf16, count, 2, count, Flavour::plain));
    std::vector<double> sums[3];
    for (std::uint64_t first = 0; first < count; first += math::kTile) {
      std::vector<double> aa, bb, ab;
      for (std::uint64_t i = first; i < std::min<std::uint64_t>(first + math::kTile, count); ++i) {
        const double a = static_cast<double>(merge.base(i)),
                     b = static_cast<double>(merge.source(0, i));
        aa.push_back(a * a);
        bb.push_back(b * b);
        ab.push_back(a * b);
      }
      sums[0].push_back(tile_sum(aa));
      sums[1].push_back(tile_sum(bb));
      sums[2].push_back(tile_sum(ab));
    }
    const math::Facts facts = math::begin(merge.work.rule);
    std::vector<double> found[3];
    Chunks(merge, 1).each([&](Chunk chunk) {
      const std::size_t n = (chunk.count + math::kTile - 1) / math::kTile;
      std::vector<double> tiles(3 * n);
      chunk.facts = &facts;
      backend_->fold(chunk, 0, tiles);
      for (std::size_t t = 0; t < 3 * n; ++t) found[t / n].push_back(tiles[t]);
    });
    for (int t = 0; t < 3; ++t) EXPECT_EQ(found[t], sums[t]) << count << " term " << t;
  }
}

TEST_P(FoldOnCpu, norms_before_and_after_a_mask_are_those_of_the_definition) {
  for (const char* method : {"ties", "dare_linear"}) {
    Merge merge = merge_of(method, family(Dtype::f16, 50000, 4, 3, Flavour::plain));
    (void)math::set_global(merge.work.rule, "rescale", 1);
    set_density(merge, 0.3);
    (void)math::set_local(merge.work.rule, 1, "density", 1.0);
    const Measurements known = *by_definition(merge);
    std::vector<double> tiles(6 * 4);
    Chunks(merge, 3).each([&](Chunk chunk) {
      chunk.facts = &known.facts;
      backend_->fold(chunk, first_fold(merge), tiles);
    });
    for (int s = 0; s < 3; ++s) {
      for (std::uint64_t tile = 0; tile < 4; ++tile) {
        std::vector<double> before, after;
        for (std::uint64_t i = tile * math::kTile;
             i < std::min<std::uint64_t>((tile + 1) * math::kTile, merge.count()); ++i) {
          float x[3];
          for (int m = 0; m < 3; ++m) x[m] = merge.source(m, i);
          const bool kept =
              ((math::evaluate<float>(merge.work.rule, known.facts, x, merge.base(i), i).kept >>
                s) &
               1u) != 0;
          const double d = std::fabs(static_cast<double>(x[s] - merge.base(i)));
          before.push_back(d);
          after.push_back(kept ? d : 0.0);
        }
        const std::size_t row = static_cast<std::size_t>(2 * s);
        EXPECT_EQ(tiles[row * 4 + tile], tile_sum(before));
        EXPECT_EQ(tiles[(row + 1) * 4 + tile], tile_sum(after));
      }
    }
  }
}

// Once the norms are known the facts hold factors; a fold is what it was before.
TEST_P(FoldOnCpu, survivors_are_summed_before_they_are_rescaled) {
  for (const char* method : {"ties", "dare_linear"}) {
    for (const Flavour flavour : {Flavour::plain, Flavour::special}) {
      Merge merge = merge_of(method, family(Dtype::bf16, 3000, 2, 3, flavour));
      (void)math::set_global(merge.work.rule, "rescale", 1);
      set_density(merge, 0.3);
      const Measurements known = *by_definition(merge);
      const auto fold = [&](const math::Facts& facts) {
        std::vector<double> sums(2);
        Chunks(merge, 0).each([&](Chunk chunk) {
          chunk.facts = &facts;
          backend_->fold(chunk, first_fold(merge), sums);
        });
        return sums;
      };
      // The factor of these facts is another one.
      math::Facts scaled = known.facts;
      const double sums[] = {3.3, 1.0};
      (void)math::method(merge.work.rule.method)
          .passes[static_cast<std::size_t>(first_fold(merge))]
          .take(merge.work.rule, sums, scaled);
      const std::vector<double> before = fold(known.facts), after = fold(scaled);
      for (std::size_t t = 0; t < 2; ++t) {
        EXPECT_TRUE(before[t] == after[t] || (std::isnan(before[t]) && std::isnan(after[t])));
      }
    }
  }
}

INGOT_EVERY_ISA(FoldOnCpu);

}  // namespace
}  // namespace ingot::test
