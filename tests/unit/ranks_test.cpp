// How ranks are measured: on as many threads as asked, with the same result.
#include "plan/ranks.hpp"

#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include <gtest/gtest.h>

namespace ingot::plan {
namespace {

constexpr std::size_t kModules = 12;

// Where the threads that solve meet: each waits until `wanted` of them have come.
class Meeting {
 public:
  explicit Meeting(std::size_t wanted) : wanted_(wanted) {}

  void come() {
    std::unique_lock lock(mutex_);
    most_ = std::max(most_, ++here_);
    threads_.insert(std::this_thread::get_id());
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return threads_.size() >= wanted_; });
    --here_;
  }
  // The most that were there at once.
  [[nodiscard]] std::size_t most() const { return most_; }
  [[nodiscard]] std::size_t threads() const { return threads_.size(); }

 private:
  const std::size_t wanted_;
  std::mutex mutex_;  // guards threads_
  std::condition_variable changed_;
  std::set<std::thread::id> threads_;
  std::size_t here_ = 0, most_ = 0;
};

// Two equal singular values and nothing else.
class Even final : public adapter::Target {
 public:
  explicit Even(Meeting& meeting, std::uint64_t bytes = 0) : meeting_(meeting), bytes_(bytes) {
    height = width = 2;
  }

  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return {}; }
  [[nodiscard]] std::string describe() const override { return "{}"; }
  [[nodiscard]] std::uint64_t memory(std::uint64_t) const override { return bytes_; }
  [[nodiscard]] double work(std::uint64_t) const override { return 1; }
  [[nodiscard]] linalg::Low solve(const Plan&, Backend*, std::uint64_t,
                                  const linalg::Cut& cut) const override {
    meeting_.come();
    const std::vector<double> values{1, 1};
    const std::size_t rank = linalg::kept(values, 2, cut);
    return {linalg::Matrix(rank, 2), linalg::Matrix(rank, 2), values, std::sqrt(2.0), 0};
  }
  [[nodiscard]] double distance(const Plan&, std::uint64_t, const linalg::Matrix&,
                                const linalg::Matrix&) const override {
    return 0;
  }
  [[nodiscard]] double allowance() const override { return 1; }

 private:
  Meeting& meeting_;
  std::uint64_t bytes_;
};

std::map<std::string, std::uint64_t> measured(const Adaptation& wishes, int threads,
                                              Meeting& meeting, std::uint64_t memory = 0,
                                              std::uint64_t each = 0) {
  Plan plan;
  plan.options.memory = memory;
  plan.options.threads = threads;
  std::vector<Measured> modules;
  for (std::size_t i = 0; i < kModules; ++i) {
    modules.push_back(
        {std::to_string(i), 2, 1, 4, [&, each] { return std::make_unique<Even>(meeting, each); }});
  }
  Problems problems;
  Measuring measuring;
  return ranks_of(plan, wishes, 2, 4, modules, problems, &measuring);
}

TEST(Ranks, AreMeasuredOnTheThreadsThatWereAskedFor) {
  Adaptation energy, bytes;
  energy.automatic = true;
  energy.energy = 0.5;
  bytes.bytes = kModules * 4 * 4;  // one rank each
  for (const Adaptation& wishes : {energy, bytes}) {
    for (const int threads : {1, 3}) {
      Meeting meeting(static_cast<std::size_t>(threads));
      const auto ranks = measured(wishes, threads, meeting);
      EXPECT_EQ(meeting.threads(), static_cast<std::size_t>(threads));
      ASSERT_EQ(ranks.size(), kModules);
      for (const auto& [module, rank] : ranks) EXPECT_EQ(rank, 1U) << module;
    }
  }
}

TEST(Ranks, AreMeasuredAsManyAtOnceAsTheCeilingHasRoomFor) {
  constexpr std::uint64_t kMiB = 1 << 20;
  Adaptation energy, bytes;
  energy.automatic = true;
  energy.energy = 0.5;
  bytes.bytes = kModules * 4 * 4;
  for (const Adaptation& wishes : {energy, bytes}) {
    Meeting alone(1), two(2), none(1);
    EXPECT_EQ(measured(wishes, 3, alone, 100 * kMiB, 30 * kMiB).size(), kModules);
    EXPECT_EQ(alone.most(), 1U);
    EXPECT_EQ(measured(wishes, 3, two, 110 * kMiB, 30 * kMiB).size(), kModules);
    EXPECT_EQ(two.most(), 2U);
    try {
      measured(wishes, 3, none, 60 * kMiB, 30 * kMiB);
      ADD_FAILURE() << "measured without room";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::usage);
      EXPECT_STREQ(error.what(),
                   "--memory 60 MiB is too small to measure the ranks: 0 needs at least 99 MiB");
    }
    EXPECT_EQ(none.threads(), 0U);
  }
}

}  // namespace
}  // namespace ingot::plan
