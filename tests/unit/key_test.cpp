// Magnitude keys and the selection predicate, against sorting.
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

TEST(Key, orders_as_magnitudes_do) {
  Random random(5);
  for (int i = 0; i < 200000; ++i) {
    const float a = math::from_bits(static_cast<std::uint32_t>(random.next()));
    const float b = math::from_bits(static_cast<std::uint32_t>(random.next()));
    if (std::isnan(a) || std::isnan(b)) continue;
    ASSERT_EQ(math::key(a) < math::key(b), std::fabs(a) < std::fabs(b));
    ASSERT_EQ(math::key(a) == math::key(b), std::fabs(a) == std::fabs(b));
  }
}

TEST(Key, every_nan_is_one_key_above_infinity) {
  for (const std::uint32_t u : {0x7f800001u, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    EXPECT_EQ(math::key(math::from_bits(u)), math::kNanKey);
  }
  EXPECT_LT(math::key(std::numeric_limits<float>::infinity()), math::kNanKey);
  EXPECT_EQ(math::key(-0.0F), 0u);
}

TEST(Key, bound_says_in_one_comparison_what_selected_says) {
  for (const std::uint32_t threshold : {0u, 1u, 1000u, math::kNanKey}) {
    for (const std::uint64_t index : {0u, 4u, 5u, 6u, 100u}) {
      for (const std::uint32_t key : {0u, 1u, 999u, 1000u, 1001u, math::kNanKey}) {
        EXPECT_EQ(math::selected(key, threshold, index, 5),
                  key >= math::bound(threshold, index, 5));
      }
    }
  }
}

// Keeps exactly k, and the same k as a stable sort by falling magnitude.
void check_selection(const Merge& merge) {
  const std::uint64_t k = math::kept(merge.work.rule, 0);
  const math::Facts facts = by_definition(merge)->facts;
  std::vector<std::uint64_t> order(merge.count());
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  const auto magnitude = [&](std::uint64_t i) {
    return math::key(merge.source(0, i) - merge.base(i));
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint64_t a, std::uint64_t b) { return magnitude(a) > magnitude(b); });
  std::vector<bool> expected(merge.count(), false);
  for (std::uint64_t r = 0; r < k; ++r) expected[order[r]] = true;
  for (std::uint64_t i = 0; i < merge.count(); ++i) {
    const float x = merge.source(0, i);
    const bool kept = math::evaluate<float>(merge.work.rule, facts, &x, merge.base(i), i).kept != 0;
    ASSERT_EQ(kept, expected[i]) << i;
  }
}

TEST(Key, selection_is_that_of_a_stable_sort) {
  for (const double density : {0.0001, 0.01, 0.2, 0.5, 0.999, 1.0}) {
    Merge merge = merge_of("ties", family(Dtype::f32, 5000, 2, 6, Flavour::plain));
    set_density(merge, density);
    check_selection(merge);
  }
}

TEST(Key, selection_among_massive_ties_goes_by_index) {
  Random random(4);
  std::vector<float> base(4000), tuned(4000);
  for (std::size_t i = 0; i < base.size(); ++i) {
    base[i] = 1.0F;
    tuned[i] = 1.0F + static_cast<float>(static_cast<int>(random.below(5)) - 2) * 0.125F;
  }
  for (const double density : {0.05, 0.3, 0.41, 0.6, 0.8, 0.97}) {
    Merge merge = merge_of("ties", {Column(Dtype::bf16, base), Column(Dtype::bf16, tuned)});
    set_density(merge, density);
    check_selection(merge);
  }
}

TEST(Key, selection_counts_nan_as_largest) {
  Merge merge = merge_of("ties", family(Dtype::bf16, 3000, 2, 12, Flavour::special));
  for (const double density : {0.02, 0.1, 0.5}) {
    set_density(merge, density);
    check_selection(merge);
  }
}

}  // namespace
}  // namespace ingot::test
