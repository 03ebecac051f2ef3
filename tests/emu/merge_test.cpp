// Whole merges of the example models through the kernels: the CPU's folder for every method.
#include "merging.hpp"

#include <gtest/gtest.h>

#include "stand.hpp"

namespace ingot::test {
namespace {

class Merges : public testing::TestWithParam<std::string> {
 protected:
  std::map<std::string, std::string> hash(Backend& backend, const Settings& settings) {
    const std::string out = folder_ / ("out" + std::to_string(count_++));
    const std::unique_ptr<Disk> disk = system_disk();
    PlanOptions options = settings.plan;
    options.root = example("");
    const Plan plan = build(*disk, parse(recipes().at(GetParam()), "recipe.yml", {}), options);
    (void)merge(*disk, backend, plan, out, settings.merge);
    return fingerprint(out);
  }
  Folder folder_;
  int count_ = 0;
};

TEST_P(Merges, HaveTheFolderOfTheCpu) {
  INGOT_NEEDS_DEVICE();
  const auto expected = hash(*cpu_backend(""), {});
  ASSERT_FALSE(expected.empty());
  struct Way {
    std::uint64_t seed;
    const char* devices;
    std::uint64_t device_memory, memory;
    int threads;
  };
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  for (const Way& way : {
         Way{0, "cuda", 512 * kMiB, 1024 * kMiB, 0}, Way{1, "cuda:0", 4 * kMiB, 1024 * kMiB, 2},
#if defined(INGOT_EMULATED)
             Way{7, "cuda:1,0", 300 * kMiB, 128 * kMiB, 3},
#endif
             Way {
           2, "cuda", 300 * kMiB, 128 * kMiB, 3
         }
       }) {
    fresh(way.seed, true, 2);
    Settings settings;
    settings.merge.memory = way.memory;
    settings.merge.threads = way.threads;
    {
      const std::unique_ptr<Backend> cuda = cuda_backend({way.devices, way.device_memory});
      EXPECT_EQ(hash(*cuda, settings), expected) << way.devices << ", seed " << way.seed;
      std::uint64_t copied = 0;
      for (const Activity& a : cuda->activity()) copied += a.bytes_out;
      EXPECT_GT(copied, 0U) << "the device did nothing";
    }
#if defined(INGOT_EMULATED)
    // Factors of adapters, and what DoRA measures of a weight, lie in memory that is not pinned.
    const bool computed = GetParam() == "adapters" || GetParam() == "bake";
    EXPECT_EQ(emu::traffic().unpinned > 0, computed);
    EXPECT_EQ(emu::traffic().live, 0U);
#endif
  }
}

#if defined(INGOT_EMULATED)
TEST_P(Merges, AFailingDeviceLeavesNothingBehindAndResumes) {
  const auto expected = hash(*cpu_backend(""), {});
  const DeviceOptions device = {"cuda", 8 << 20};
  Settings settings;
  settings.merge.threads = 1;
  std::uint64_t first = 0, last = 0;  // calls to the device that a merge makes
  {
    emu::plug({});
    const std::unique_ptr<Backend> cuda = cuda_backend(device);
    first = emu::traffic().calls;
    (void)hash(*cuda, settings);
    last = emu::traffic().calls;
  }
  const std::unique_ptr<Disk> disk = system_disk();
  PlanOptions options;
  options.root = example("");
  const Plan plan = build(*disk, parse(recipes().at(GetParam()), "recipe.yml", {}), options);
  for (const std::uint64_t sixths : {1U, 3U, 5U}) {
    const std::string out = folder_ / ("lost" + std::to_string(sixths));
    emu::Setup setup;
    setup.fail_call = first + (last - first) * sixths / 6;
    setup.lost = true;
    emu::plug(setup);
    settings.merge.resume = false;
    try {
      const std::unique_ptr<Backend> cuda = cuda_backend(device);
      (void)merge(*disk, *cuda, plan, out, settings.merge);
      FAIL() << "the device was lost and nobody noticed";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::device) << e.what();
    }
    EXPECT_EQ(disk->kind(out), Disk::Kind::absent);
    EXPECT_EQ(emu::traffic().live, 0U);

    emu::plug({});
    settings.merge.resume = true;
    (void)merge(*disk, *cuda_backend(device), plan, out, settings.merge);
    EXPECT_EQ(fingerprint(out), expected);
  }
}
#endif

// Of the models of examples/, weights of 1e6 overflow float16 and float8: what the device made is
// counted as what the CPU made.
TEST(Nonfinite, IsFoundInWhatTheDeviceMadeAsInWhatTheCpuMade) {
  INGOT_NEEDS_DEVICE();
  fresh(0);
  const Folder folder;
  const std::unique_ptr<Disk> disk = system_disk();
  const auto linear = [](const std::string& dtype) {
    return "merge_method: linear\nparameters: {normalize: false}\ndtype: " + dtype +
           "\nmodels:\n- {model: ./models/python, parameters: {weight: 1e6}}\n- {model: "
           "./models/c, "
           "parameters: {weight: 1e6}}\n";
  };
  // Error or receipt, by backend.
  const auto run = [&](Backend& backend, const std::string& recipe, bool allow) {
    PlanOptions options;
    options.root = example("");
    options.allow_nonfinite = allow;
    const Plan plan = build(*disk, parse(recipe, "recipe.yml", {}), options);
    const std::string out = folder / "out";
    std::filesystem::remove_all(out);
    MergeOptions merging;
    merging.sync = false;
    merging.threads = 1;
    try {
      std::string text;
      for (const std::string& w : merge(*disk, backend, plan, out, merging).warnings)
        text += w + "\n";
      return text + read_file(out + "/ingot.json");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::range) << e.what();
      EXPECT_EQ(disk->kind(out), Disk::Kind::absent);
      return std::string(e.what());
    }
  };
  const auto cpu = cpu_backend("");
  const auto cuda = cuda_backend({"cuda", std::uint64_t{64} << 20});
  struct Case {
    const char* dtype;
    bool allow;
    const char* said;
  };
  for (const Case& c :
       {Case{"float16", false, "are not finite"}, Case{"float16", true, "\"nonfinite\""},
        Case{"float8_e4m3fn", false, "\"saturated\""}}) {
    const std::string expected = run(*cpu, linear(c.dtype), c.allow);
    EXPECT_NE(expected.find(c.said), std::string::npos) << expected.substr(0, 200);
    const std::string found = run(*cuda, linear(c.dtype), c.allow);
    EXPECT_NE(found.find(c.said), std::string::npos) << found.substr(0, 200);
    // An error names the tensor that was done first.
    if (c.allow || expected.find("saturated") != std::string::npos) {
      EXPECT_EQ(found, expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Merges, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& [name, text] : recipes()) names.push_back(name);
                           return names;
                         }()),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace ingot::test
