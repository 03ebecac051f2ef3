// Every single operation of a merge fails once: the target stays as it was, and --resume ends in
// the same bytes.
#include <gtest/gtest.h>

#include "fault/disk.hpp"
#include "merging.hpp"

namespace ingot::test {
namespace {

Settings small() {
  Settings settings;
  settings.merge.threads = 2;
  settings.merge.sync = true;
  settings.plan.shard_bytes = 100'000;
  return settings;
}

// Under ThreadSanitizer, which takes ten times as long, each kind of failure goes over a third of
// the operations and begins elsewhere; what it looks for does not depend on the operation.
#if defined(__SANITIZE_THREAD__)
constexpr std::int64_t kStep = 3;
#else
constexpr std::int64_t kStep = 1;
#endif

// Recipes of merging.hpp, and an extraction whose ranks the run chooses.
std::string recipe_of(const std::string& name) {
  return name == "measured" ? "extract: lora\nbase_model: ./models/base\nmodel: ./models/c\n"
                              "rank: auto\nenergy: 0.3\n"
                            : recipes().at(name);
}

class EveryOperation : public testing::TestWithParam<std::pair<std::string, Fault>> {};

TEST_P(EveryOperation, FailsCleanlyAndResumesToTheSameBytes) {
  const auto& [name, fault] = GetParam();
  const std::string recipe = recipe_of(name);
  Folder folder;
  Script quiet;
  {
    FaultyDisk disk(quiet);
    run_merge(recipe, folder / "whole", small(), &disk);
  }
  const auto expected = fingerprint(folder / "whole");
  const std::int64_t operations = quiet.count;
  ASSERT_GT(operations, 100);

  std::int64_t failures = 0;
  std::uint64_t resumed = 0;
  // Decompositions take most of a measured run, and so its tests.
  const std::int64_t step = name == "measured" ? 9 : kStep;
  for (std::int64_t n = static_cast<std::int64_t>(fault) / 2 % step; n < operations; n += step) {
    const std::string out = folder / "out";
    Script script;
    script.fault = fault;
    script.at = n;
    FaultyDisk disk(script);
    bool failed = false;
    try {
      run_merge(recipe, out, small(), &disk);
    } catch (const Error& error) {
      failed = true;
      EXPECT_EQ(error.code(), Code::io) << error.what();
      EXPECT_NE(std::string(error.what()).find("injected"), std::string::npos) << error.what();
    }
    failures += failed ? 1 : 0;
    if (failed && std::filesystem::exists(out)) {
      // The rename had happened: only its aftermath failed, and the folder is whole.
      EXPECT_EQ(fingerprint(out), expected) << "operation " << n;
    } else if (failed) {
      Settings again = small();
      again.merge.resume = true;
      again.merge.sync = false;
      resumed += run_merge(recipe, out, again).resumed;
    }
    ASSERT_EQ(fingerprint(out), expected) << "operation " << n;
    std::filesystem::remove_all(out);
    ASSERT_FALSE(std::filesystem::exists(folder / ".out.partial")) << "operation " << n;
    ASSERT_FALSE(std::filesystem::exists(folder / ".out.ranks")) << "operation " << n;
  }
  EXPECT_GT(failures, 20);
  EXPECT_GT(resumed, 100) << "tensors that a resumed run did not merge again";
  RecordProperty("operations", std::to_string(operations));
  RecordProperty("failures", std::to_string(failures));
}

std::string name_of(const std::pair<std::string, Fault>& one) {
  constexpr const char* kNames[] = {"none", "error", "dead", "shorten", "full", "unsynced"};
  return one.first + "_" + kNames[static_cast<int>(one.second)];
}

INSTANTIATE_TEST_SUITE_P(
    Faults, EveryOperation,
    testing::Values(std::pair("ties", Fault::error), std::pair("ties", Fault::full),
                    std::pair("linear", Fault::dead), std::pair("dare_ties", Fault::error),
                    std::pair("measured", Fault::error), std::pair("measured", Fault::full),
                    std::pair("slerp", Fault::unsynced)),
    [](const auto& one) { return name_of(one.param); });

TEST(ShortTransfers, ChangeNoByte) {
  Folder folder;
  for (const auto& [name, recipe] : recipes()) {
    run_merge(recipe, folder / (name + "-whole"), small());
    Script script;
    script.fault = Fault::shorten;
    script.at = 0;
    FaultyDisk disk(script);
    run_merge(recipe, folder / (name + "-short"), small(), &disk);
    EXPECT_EQ(fingerprint(folder / (name + "-whole")), fingerprint(folder / (name + "-short")))
        << name;
  }
}

TEST(ExistingTarget, IsKeptUntilTheNewOneIsComplete) {
  Folder folder;
  const std::string out = folder / "out";
  Settings settings = small();
  run_merge(recipes().at("ties"), out, settings);
  const auto before = fingerprint(out);
  EXPECT_THROW(run_merge(recipes().at("linear"), out, settings), Error);
  EXPECT_EQ(fingerprint(out), before);

  settings.merge.force = true;
  Script script;
  script.fault = Fault::full;
  script.at = 150;
  FaultyDisk disk(script);
  EXPECT_THROW(run_merge(recipes().at("linear"), out, settings, &disk), Error);
  EXPECT_EQ(fingerprint(out), before);

  run_merge(recipes().at("linear"), out, settings);
  EXPECT_NE(fingerprint(out), before);
  EXPECT_FALSE(std::filesystem::exists(folder / ".out.partial"));
}

TEST(Target, MayNotBeAnInput) {
  Folder folder;
  std::filesystem::copy(example("models"), folder / "models",
                        std::filesystem::copy_options::recursive);
  Settings settings = small();
  settings.plan.root = folder.path();
  settings.merge.force = true;
  for (const std::string& out : {folder / "models/python", folder / "models"}) {
    EXPECT_THROW(run_merge(recipes().at("linear"), out, settings), Error) << out;
  }
  EXPECT_TRUE(std::filesystem::exists(folder / "models/python/model.safetensors"));
}

TEST(Resume, RefusesWhatAnotherRecipeLeft) {
  Folder folder;
  Settings settings = small();
  Script script;
  script.fault = Fault::full;
  script.at = 150;
  FaultyDisk disk(script);
  EXPECT_THROW(run_merge(recipes().at("linear"), folder / "out", settings, &disk), Error);
  settings.merge.resume = true;
  try {
    run_merge(recipes().at("task_arithmetic"), folder / "out", settings);
    FAIL() << "resumed with another recipe";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("--force"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace ingot::test
