#include <cstdlib>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "ingot/plan.hpp"
#include "support.hpp"

namespace ingot {
namespace {

ModelRef ref(const std::string& text) {
  return parse("merge_method: linear\nmodels: [{model: \"" + text + "\"}]\n", "r.yml", {})
      .models[0]
      .model;
}

constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";
constexpr const char* kOther = "0123ffff89abcdef0123456789abcdef01234567";

// A Hub cache with org/name at two commits, and a folder to start relative paths from.
class Resolve : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"}) ::unsetenv(name);
    ::setenv("HF_HUB_CACHE", (folder_ / "cache").c_str(), 1);
    const std::string repository = folder_ / "cache/models--org--name";
    test::write_file(repository + "/refs/main", kCommit);
    test::write_file(repository + "/refs/refs/pr/1", std::string(kOther) + "\n");
    test::write_file(repository + "/snapshots/" + kCommit + "/config.json", "{}");
    test::write_file(repository + "/snapshots/" + kOther + "/config.json", "{}");
    test::write_file(folder_ / "root/local/config.json", "{}");
    test::write_file(folder_ / "root/one.safetensors", "");
    test::write_file(folder_ / "root/me@home/c++/config.json", "{}");
  }

  std::string find(const std::string& text) { return resolve(*disk_, ref(text), folder_ / "root"); }
  std::string refusal(const std::string& text, Code code) {
    try {
      return "found " + find(text);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code) << e.what();
      return e.what();
    }
  }
  std::string snapshot(const std::string& commit) {
    return folder_ / ("cache/models--org--name/snapshots/" + commit);
  }

  test::Folder folder_;
  std::unique_ptr<Disk> disk_ = system_disk();
};

TEST_F(Resolve, RelativePathsStartAtTheRoot) {
  EXPECT_EQ(find("local"), folder_ / "root/local");
  EXPECT_EQ(find("./one.safetensors"), folder_ / "root/./one.safetensors");
  EXPECT_EQ(find(folder_ / "root/local"), folder_ / "root/local");
}

TEST_F(Resolve, ExistingPathIsTakenWithItsPlusAndAt) {
  EXPECT_EQ(find("me@home/c++"), folder_ / "root/me@home/c++");
  const ModelRef settled = settle(*disk_, ref("me@home/c++"), folder_ / "root");
  EXPECT_EQ(settled.path, "me@home/c++");
  EXPECT_TRUE(settled.adapters.empty());
  EXPECT_TRUE(settled.revision.empty());
  EXPECT_EQ(settle(*disk_, settled, folder_ / "root").path, "me@home/c++");
}

TEST_F(Resolve, AdaptersStayWhereTheWholeTextIsNoPath) {
  const ModelRef settled = settle(*disk_, ref("local+some/lora"), folder_ / "root");
  EXPECT_EQ(settled.path, "local");
  EXPECT_EQ(settled.adapters.size(), 1U);
  EXPECT_EQ(find("local+some/lora"), folder_ / "root/local");
}

TEST_F(Resolve, HubNamesComeFromTheCacheByBranchTagAndCommit) {
  EXPECT_EQ(find("org/name"), snapshot(kCommit));
  EXPECT_EQ(find("org/name@main"), snapshot(kCommit));
  EXPECT_EQ(find("org/name@refs/pr/1"), snapshot(kOther));
  EXPECT_EQ(find(std::string("org/name@") + kOther), snapshot(kOther));
  EXPECT_EQ(find("org/name@0123f"), snapshot(kOther));
}

// As the Hub's library lays a model out: the files of a snapshot are links to blobs beside it.
TEST_F(Resolve, SnapshotOfLinksOpens) {
  const std::string repository = folder_ / "cache/models--org--linked";
  test::write_file(repository + "/refs/main", kCommit);
  test::write_file(repository + "/blobs/1",
                   test::read_file(test::example("models/base/model.safetensors")));
  test::write_file(repository + "/blobs/2", "{}");
  const std::string snapshot = repository + "/snapshots/" + kCommit;
  std::filesystem::create_directories(snapshot);
  std::filesystem::create_symlink("../../blobs/1", snapshot + "/model.safetensors");
  std::filesystem::create_symlink("../../blobs/2", snapshot + "/config.json");
  const Checkpoint checkpoint = Checkpoint::open(*disk_, find("org/linked"), "org/linked");
  EXPECT_NE(checkpoint.find("lm_head.weight"), nullptr);
  EXPECT_EQ(checkpoint.config(), "{}");
}

TEST_F(Resolve, AmbiguousCommitNamesBoth) {
  const std::string text = refusal("org/name@0123", Code::usage);
  EXPECT_NE(text.find(kCommit), std::string::npos);
  EXPECT_NE(text.find(kOther), std::string::npos);
}

TEST_F(Resolve, CacheFollowsTheHubsVariables) {
  ::unsetenv("HF_HUB_CACHE");
  test::write_file(folder_ / "home/hub/models--gpt2/refs/main", kCommit);
  test::write_file(folder_ / ("home/hub/models--gpt2/snapshots/" + std::string(kCommit) + "/x"),
                   "");
  ::setenv("HF_HOME", (folder_ / "home").c_str(), 1);
  EXPECT_EQ(find("gpt2"), folder_ / ("home/hub/models--gpt2/snapshots/" + std::string(kCommit)));
  ::unsetenv("HF_HOME");
  ::setenv("HOME", (folder_ / "user").c_str(), 1);
  EXPECT_NE(refusal("gpt2", Code::missing).find(folder_ / "user/.cache/huggingface/hub"),
            std::string::npos);
  ::setenv("HF_HUB_CACHE", "~/models", 1);
  EXPECT_NE(refusal("gpt2", Code::missing).find(folder_ / "user/models"), std::string::npos);
}

TEST_F(Resolve, MissingModelSaysWhereItLookedAndHowToGetIt) {
  EXPECT_EQ(refusal("org/other@v2", Code::missing),
            "the model 'org/other@v2' is not a folder or file in " + folder_ / "root" +
                " (--root names another folder), nor in the Hub cache " + folder_ / "cache" +
                " at revision 'v2'; download it with: hf download org/other --revision v2");
  const std::string text = refusal("org/other", Code::missing);
  EXPECT_TRUE(text.ends_with("hf download org/other")) << text;
  EXPECT_EQ(refusal("./nowhere", Code::missing),
            "there is no folder or file " + folder_ / "root" +
                "/./nowhere for the model './nowhere'; relative paths start in " +
                folder_ / "root" + " (--root names another folder)");
}

TEST_F(Resolve, MisspelledPathsAreAnsweredWithTheNearestAndNotWithADownload) {
  test::write_file(folder_ / "root/adapters/c-lora/adapter_config.json", "{}");
  const auto meant = [&](const std::string& text) {
    const std::string told = refusal(text, Code::missing);
    EXPECT_EQ(told.find("hf download"), std::string::npos) << told;
    const std::size_t at = told.find("did you mean ");
    return at == std::string::npos ? "" : told.substr(at);
  };
  EXPECT_EQ(meant("adapters/c-lor"), "did you mean 'adapters/c-lora'?");
  EXPECT_EQ(meant("./adapter/c_lora"), "did you mean './adapters/c-lora'?");
  EXPECT_EQ(meant("lcoal"), "did you mean 'local'?");
  EXPECT_EQ(meant(folder_ / "root/locl"), "did you mean '" + folder_ / "root/local" + "'?");
  EXPECT_EQ(meant("adapters/other-thing"), "");  // a folder of this machine, so no Hub name
  // A Hub name is none of these.
  EXPECT_NE(refusal("mistralai/Mistral-7B-v0.1", Code::missing).find("hf download"),
            std::string::npos);
}

TEST_F(Resolve, HomeFolderIsSpelledOut) {
  ::setenv("HOME", "/home/me", 1);
  EXPECT_TRUE(refusal("~/models/a", Code::missing)
                  .ends_with("; only shells know '~': write '/home/me/models/a'"));
}

TEST_F(Resolve, RevisionOfAFolderIsRefused) {
  EXPECT_NE(refusal("local@main", Code::usage).find("remove '@main'"), std::string::npos);
}

TEST_F(Resolve, NothingLeavesTheCache) {
  test::write_file(folder_ / "secret/refs/main", kCommit);
  test::write_file(folder_ / "cache/evil", kCommit);
  for (const char* name : {"../absent", "org/../../secret", "...", "org/..", "org/.hidden", "a/b/c",
                           "org/", "/absent", "org/na me", "org\\\\name"}) {
    EXPECT_EQ(refusal(name, Code::missing).rfind("there is no folder or file", 0), 0U) << name;
  }
  for (const char* name :
       {"org/name@../../../evil", "org/name@..", "org/name@a//b", "org/name@/etc"}) {
    EXPECT_NE(refusal(name, Code::usage).find("is not a branch, tag or commit"), std::string::npos)
        << name;
  }
  test::write_file(folder_ / "cache/models--org--name/refs/bad", "../../../../secret");
  EXPECT_NE(refusal("org/name@bad", Code::format).find("does not hold a commit"),
            std::string::npos);
  EXPECT_EQ(refusal("@main", Code::usage), "the model '@main' has no path or name");
}

}  // namespace
}  // namespace ingot
