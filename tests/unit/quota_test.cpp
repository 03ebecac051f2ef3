// How many threads a process may use: affinity, quotas of cgroups, memory.
#include <cmath>
#include <filesystem>

#include <gtest/gtest.h>
#include <sched.h>

#include "base/threads.hpp"
#include "ingot/error.hpp"
#include "ingot/merge.hpp"
#include "merging.hpp"
#include "support.hpp"

namespace ingot::test {
namespace {

class QuotaTest : public ::testing::Test {
 protected:
  const Folder root_;

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ / path;
    std::filesystem::create_directories(full.parent_path());
    write_file(full.string(), text);
  }
  [[nodiscard]] double quota() const { return cpu_quota(root_.path()); }
};

TEST_F(QuotaTest, IsTheLeastOfAGroupAndThoseAroundIt) {
  EXPECT_TRUE(std::isinf(quota())) << "nothing is there";
  write("proc/self/cgroup", "0::/outer/inner\n");
  write("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
  EXPECT_TRUE(std::isinf(quota()));
  write("sys/fs/cgroup/outer/cpu.max", "250000 100000\n");
  EXPECT_EQ(quota(), 2.5);
  write("sys/fs/cgroup/outer/inner/cpu.max", "50000 100000\n");
  EXPECT_EQ(quota(), 0.5);
  write("sys/fs/cgroup/other/cpu.max", "1000 100000\n");
  EXPECT_EQ(quota(), 0.5) << "others' groups are none of ours";
}

TEST_F(QuotaTest, OfAContainerIsReadWhereItsGroupIsMounted) {
  write("proc/self/cgroup", "0::/system.slice/docker-1234.scope\n");
  write("sys/fs/cgroup/cpu.max", "400000 100000\n");
  EXPECT_EQ(quota(), 4);
}

TEST_F(QuotaTest, OfVersionOneIsAPairOfFiles) {
  write("proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a/b\n0::/\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_period_us", "100000\n");
  EXPECT_TRUE(std::isinf(quota()));
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "200000\n");
  EXPECT_EQ(quota(), 1.5);
}

TEST_F(QuotaTest, RubbishLimitsNothing) {
  for (const char* text : {"", ":", "0:", "0::", "0::relative", "x\ny\n", "0::/../../..\n"}) {
    write("proc/self/cgroup", text);
    for (const char* max : {"", "0 0", "-5 100000", "100000", "9 x"}) {
      write("sys/fs/cgroup/cpu.max", max);
      EXPECT_TRUE(std::isinf(quota())) << text << " / " << max;
    }
  }
}

TEST(ThreadCount, FollowsTheAffinityUnlessItIsChosen) {
  cpu_set_t before, one;
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (std::size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &before)) continue;
    CPU_SET(cpu, &one);
    break;
  }
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(thread_count(0), 1);
  EXPECT_EQ(thread_count(7), 7);
  ASSERT_EQ(::sched_setaffinity(0, sizeof before, &before), 0);
}

TEST(Crowd, OfAServerWithManyProcessorsFitsTheCeiling) {
  const auto disk = system_disk();
  PlanOptions planning;
  planning.root = example("");
  const Plan plan =
      build(*disk, parse(read_text(*disk, example("recipes/ties.yml")), "r.yml", {}), planning);
  ASSERT_TRUE(plan.sound());
  MergeOptions options;
  const Crowd all = crowd(plan, options, 8);
  EXPECT_EQ(all.threads, 8);
  const Crowd fewer = crowd(plan, options, 256);
  EXPECT_EQ(fewer.available, 256);
  EXPECT_LT(fewer.threads, 256);
  EXPECT_GT(fewer.threads, 64);
  options.memory = std::uint64_t{64} << 20;
  EXPECT_GE(crowd(plan, options, 256).threads, 1);
  options.memory = std::uint64_t{4} << 30;
  EXPECT_EQ(crowd(plan, options, 256).threads, 256);

  options.memory = std::uint64_t{1} << 30;
  options.threads = 256;
  try {
    (void)crowd(plan, options, 256);
    FAIL() << "256 threads that were asked for do not fit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::usage);
    EXPECT_NE(error.message().find("256 threads"), std::string::npos) << error.message();
    EXPECT_NE(error.message().find("--threads 24"), std::string::npos) << error.message();
  }
}

}  // namespace
}  // namespace ingot::test
