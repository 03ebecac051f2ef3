#include "progress.hpp"

#include <gtest/gtest.h>

namespace ingot::tool {
namespace {

constexpr std::uint64_t kMB = 1'000'000;

TEST(Pace, BeginsWithWhatWasExpected) {
  Pace pace(0, 100e6);
  ASSERT_TRUE(pace.left(900 * kMB));
  EXPECT_NEAR(*pace.left(900 * kMB), 9, 0.1);
  // A first tenth of a second in which nothing arrives is no reason to say minutes.
  pace.note(0.1, 1 * kMB);
  EXPECT_NEAR(*pace.left(900 * kMB), 9, 1);
}

TEST(Pace, WhatWasExpectedIsNoRate) {
  Pace pace(0, 2e9);
  EXPECT_EQ(pace.rate(), 0);
  pace.note(0.1, 1 * kMB);
  EXPECT_EQ(pace.rate(), 0);
  for (int s = 1; s <= 60; ++s) pace.note(s, 100 * kMB * static_cast<std::uint64_t>(s));
  EXPECT_NEAR(pace.rate(), 100e6, 1e6);
}

TEST(Pace, SaysNothingBeforeSomethingWasSeen) {
  Pace pace;
  EXPECT_FALSE(pace.left(100));
  pace.note(0.1, 50);
  EXPECT_FALSE(pace.left(100));
  EXPECT_EQ(pace.rate(), 0);
  pace.note(1, 50);
  EXPECT_NEAR(*pace.left(100), 1, 0.2);
}

TEST(Pace, FollowsWhatIsSeen) {
  Pace pace(0, 1000e6);  // ten times too fast
  for (int s = 1; s <= 60; ++s) pace.note(s, 100 * kMB * static_cast<std::uint64_t>(s));
  EXPECT_NEAR(pace.rate(), 100e6, 1e6);
  EXPECT_NEAR(*pace.left(7000 * kMB), 10, 0.2);
}

TEST(Pace, LumpsDoNotMakeItJump) {
  Pace pace(0, 100e6);
  double least = 1e9, most = 0;
  std::uint64_t done = 0;
  for (int s = 1; s <= 40; ++s) {
    if (s % 4 == 0) done += 400 * kMB;
    pace.note(s, done);
    least = std::min(least, pace.rate());
    most = std::max(most, pace.rate());
  }
  EXPECT_GT(least, 30e6);
  EXPECT_LT(most, 180e6);
}

TEST(Pace, WhatWasDoneBeforeIsNoSpeed) {
  Pace pace(5000 * kMB);
  pace.note(1, 5010 * kMB);
  EXPECT_NEAR(pace.rate(), 10e6, 1e3);
  EXPECT_NEAR(*pace.left(5110 * kMB), 10, 0.1);
}

TEST(Pace, TheEndIsNow) {
  Pace pace(0, 1e6);
  pace.note(1, 7);
  EXPECT_EQ(*pace.left(7), 0);
  EXPECT_EQ(*pace.left(3), 0);
}

TEST(Share, NoShareIsMoreThanAll) {
  EXPECT_EQ(percent(1, 4), 25);
  EXPECT_EQ(percent(9, 4), 100);
  EXPECT_EQ(percent(UINT64_MAX, 1), 100);
}

}  // namespace
}  // namespace ingot::tool
