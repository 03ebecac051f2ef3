#include "ingot/shape.hpp"

#include <gtest/gtest.h>

#include "ingot/error.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kHuge = std::uint64_t{1} << 62;

TEST(Shape, CountsElementsAndAScalarIsOne) {
  EXPECT_EQ(Shape().checked_count(), 1U);
  EXPECT_EQ((Shape{4096, 11008}).checked_count(), 45088768U);
  EXPECT_EQ((Shape{5, 0, 3}).checked_count(), 0U);
  EXPECT_EQ((Shape{4096, 11008}).count(), 45088768U);
}

TEST(Shape, OverflowIsNoCountWhateverTheOrderOfAxes) {
  EXPECT_EQ((Shape{kHuge}).checked_count(), kHuge);
  EXPECT_FALSE((Shape{kHuge, 2}).checked_count());
  EXPECT_FALSE((Shape{UINT64_MAX}).checked_count());
  EXPECT_FALSE((Shape{0, kHuge, kHuge}).checked_count());
  EXPECT_FALSE((Shape{kHuge, kHuge, 0}).checked_count());
  EXPECT_EQ((Shape{kHuge, 2}).count(), 0U);
}

TEST(Shape, BytesFollowTheWidthInBits) {
  EXPECT_EQ((Shape{3, 5}).checked_bytes(Dtype::f32), 60U);
  EXPECT_EQ((Shape{4}).checked_bytes(Dtype::f6_e2m3), 3U);
  EXPECT_EQ((Shape{0, 7}).checked_bytes(Dtype::f64), 0U);
  EXPECT_FALSE((Shape{3}).checked_bytes(Dtype::f4)) << "half a byte";
  EXPECT_FALSE((Shape{kHuge}).checked_bytes(Dtype::f64)) << "overflow";
}

TEST(Shape, RankStopsAtEight) {
  Shape shape;
  for (int i = 0; i < Shape::kMaxRank; ++i) EXPECT_TRUE(shape.push(1));
  EXPECT_FALSE(shape.push(2));
  EXPECT_EQ(shape.rank(), 8);
  EXPECT_EQ(shape.count(), 1U);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
}

TEST(Shape, PrintsAndComparesByExtents) {
  EXPECT_EQ((Shape{4096, 11008}).text(), "[4096, 11008]");
  EXPECT_EQ(Shape().text(), "[]");
  EXPECT_TRUE((Shape{2, 3}) == (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{2, 3, 1}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
}

}  // namespace
}  // namespace ingot
