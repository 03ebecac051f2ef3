#include "engine/arena.hpp"

#include <atomic>
#include <cstring>
#include <thread>

#include <gtest/gtest.h>

#include "engine/crew.hpp"
#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot::test {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

TEST(Arena, LendsPagesAndJoinsThemAgain) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 10 * kPage);
  Extent a = arena.try_take(3 * kPage), b = arena.try_take(1), c = arena.try_take(5 * kPage);
  ASSERT_NE(a.data(), nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data()) % kPage, 0U);
  EXPECT_EQ(b.size(), kPage);
  EXPECT_EQ(arena.try_take(2 * kPage).data(), nullptr);
  b = {};
  a = {};
  EXPECT_NE(arena.try_take(4 * kPage).data(), nullptr);  // a and b are neighbours again
  c = {};
  EXPECT_NE(arena.try_take(10 * kPage).data(), nullptr);
}

TEST(Arena, SplitsAnExtentIntoPartsThatReturnOneByOne) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 4 * kPage);
  Extent all = arena.take(4 * kPage);
  Extent first = all.split(kPage);
  Extent rest = all.split(3 * kPage);
  EXPECT_EQ(rest.data(), first.data() + kPage);
  EXPECT_EQ(arena.try_take(1).data(), nullptr);
  first = {};
  EXPECT_NE(arena.try_take(kPage).data(), nullptr);
}

TEST(Arena, WaitsForRoomAndStopsWaitingWhenTheRunIsOver) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 2 * kPage);
  Extent held = arena.take(2 * kPage);
  std::atomic<bool> met = false;
  std::thread waiter([&] { met = arena.take(kPage).data() != nullptr; });
  held = {};
  waiter.join();
  EXPECT_TRUE(met);
  held = arena.take(2 * kPage);
  std::thread doomed([&] { met = arena.take(kPage).data() != nullptr; });
  arena.stop();
  doomed.join();
  EXPECT_FALSE(met);
}

TEST(Arena, LendsAndCountsNoMoreThanItsSizeTogether) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 32 * kMiB);
  Extent mapped = arena.try_count(20 * kMiB);
  ASSERT_TRUE(mapped);
  EXPECT_EQ(mapped.data(), nullptr);
  EXPECT_EQ(arena.counted(), 20 * kMiB);
  EXPECT_FALSE(arena.try_count(13 * kMiB));
  Extent lent = arena.try_take(12 * kMiB);
  ASSERT_TRUE(lent);
  EXPECT_FALSE(arena.try_take(8 * kMiB)) << "there is room, and no memory under the ceiling";
  (void)mapped.split(10 * kMiB);  // is given back at once
  EXPECT_EQ(arena.counted(), 10 * kMiB);
  EXPECT_TRUE(arena.try_take(8 * kMiB));
}

TEST(Arena, GivesPagesBackToTheSystemWhereCountedRoomNeedsThem) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 64 * kMiB);
  {
    const Extent all = arena.take(64 * kMiB);
    std::memset(all.data(), 1, all.size());
  }
  EXPECT_EQ(arena.resident(), 64 * kMiB) << "kept for the next extent";
  const Extent mapped = arena.take(8 * kMiB);
  std::memset(mapped.data(), 1, mapped.size());
  const Extent counted = arena.count(48 * kMiB);
  ASSERT_TRUE(counted);
  EXPECT_LE(arena.resident() + arena.counted(), (64 + 4) * kMiB);
  EXPECT_EQ(mapped.data()[8 * kMiB - 1], std::byte{1}) << "what is lent stays";
}

TEST(Arena, MeetsWhatFitsTheWholeBesideWhatIsCounted) {
  const auto backend = cpu_backend("");
  Arena arena(*backend, 40 * kMiB);
  { const Extent all = arena.take(40 * kMiB); }
  for (int i = 0; i < 100; ++i) {
    const Extent counted = arena.count(29 * kMiB + 3 * kPage);
    const Extent lent = arena.take(11 * kMiB - 3 * kPage);
    ASSERT_TRUE(lent);
    ASSERT_LE(arena.resident() + arena.counted(), (40 + 4) * kMiB);
  }
}

TEST(Crew, RunsEverythingAndLowPrioritiesFirst) {
  std::atomic<int> sum = 0;
  std::vector<int> order;
  {
    std::mutex gate;
    gate.lock();
    Crew crew(1);
    std::atomic<bool> done = false;
    crew.post(0, [&](int) { const std::lock_guard hold(gate); });
    for (int i = 9; i >= 0; --i) {
      crew.post(static_cast<std::uint64_t>(i), [&, i](int) {
        order.push_back(i);
        sum += i;
      });
    }
    crew.post(99, [&](int) { done = true; });
    gate.unlock();
    while (!done) std::this_thread::yield();
  }
  EXPECT_EQ(sum, 45);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(Crew, KeepsTheFirstErrorAndDropsTheRest) {
  std::atomic<int> ran = 0, told = 0;
  Crew crew(2);
  crew.on_failure([&] { ++told; });
  crew.post(0, [](int) { fail(Code::io, "first"); });
  while (!crew.failed()) std::this_thread::yield();
  crew.post(1, [&](int) { ++ran; });
  crew.fail(std::make_exception_ptr(Error(Code::io, "second")));
  try {
    crew.check();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "first");
  }
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace ingot::test
