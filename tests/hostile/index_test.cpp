// Index files that lie, are broken, or point out of their folder.
#include <gtest/gtest.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "support.hpp"

namespace ingot {
namespace {

std::string weights(const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) tensors.push_back({name, Dtype::u8, {1}});
  return print_header(tensors, {}) + std::string(names.size(), 'w');
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A model of two shards, x with a and b, y with c, and whatever index a test gives it.
class HostileIndex : public ::testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder_ / "m/x.safetensors", weights({"a", "b"}));
    test::write_file(folder_ / "m/y.safetensors", weights({"c"}));
    test::write_file(folder_ / "outside.safetensors", weights({"c"}));
  }

  void index(const std::string& text) {
    test::write_file(folder_ / "m/model.safetensors.index.json", text);
  }

  Checkpoint open() { return Checkpoint::open(*disk_, folder_ / "m", "m"); }

  // The message of the error that opening ends in.
  std::string refusal(Code code = Code::format) {
    try {
      (void)open();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_TRUE(contains(error.what(), folder_ / "m")) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "accepted";
    return "";
  }

  std::string refusal_of(const std::string& text, Code code = Code::format) {
    index(text);
    return refusal(code);
  }

  const test::Folder folder_;
  const std::unique_ptr<Disk> disk_ = system_disk();
};

#define EXPECT_REFUSAL(text, words) EXPECT_PRED2(contains, refusal_of(text), words)

constexpr const char* kGood =
    R"({"metadata":{"total_size":3,"more":[{"weight_map":{"z":1}},null,-1.5e3,true]},)"
    R"("weight_map":{"a":"x.safetensors","b":"x.safetensors","c":"y.safetensors"},"other":[[[]]]})";

TEST_F(HostileIndex, TheIndexTheOthersAreMadeFromIsGood) {
  index(kGood);
  EXPECT_EQ(open().entries().size(), 3U);
}

TEST_F(HostileIndex, EveryTruncationIsRefused) {
  const std::string good = kGood;
  for (std::size_t size = 0; size < good.size(); ++size) (void)refusal_of(good.substr(0, size));
}

TEST_F(HostileIndex, EveryByteChangedNeverDoesMoreThanFail) {
  const std::string good = kGood;
  test::Random random(11);
  for (std::size_t at = 0; at < good.size(); ++at) {
    std::string text = good;
    text[at] = static_cast<char>(random.next());
    index(text);
    try {
      EXPECT_EQ(open().entries().size(), 3U);
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == Code::format || error.code() == Code::missing) << error.what();
    }
  }
}

TEST_F(HostileIndex, ATensorTheShardDoesNotHaveIsNamed) {
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","b":"x.safetensors","c":"y.safetensors",)"
                 R"("d":"y.safetensors"}})",
                 "tensor 'd' is placed in y.safetensors but is in no shard");
  EXPECT_REFUSAL(R"({"weight_map":{"0":"x.safetensors","a":"x.safetensors","b":"x.safetensors",)"
                 R"("c":"y.safetensors"}})",
                 "tensor '0' is placed in x.safetensors but is in no shard");
}

TEST_F(HostileIndex, ATensorTheIndexDoesNotListIsNamed) {
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","c":"y.safetensors"}})",
                 "tensor 'b' is in x.safetensors but not in the index");
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors"}})",
                 "tensor 'b' is in x.safetensors but not in the index");
}

TEST_F(HostileIndex, AShardLeftOutIsNamed) {
  test::write_file(folder_ / "m/model-00001-of-00002.safetensors", weights({"d"}));
  test::write_file(folder_ / "m/model-00002-of-00002.safetensors", weights({"e"}));
  EXPECT_REFUSAL(
      R"({"weight_map":{"d":"model-00001-of-00002.safetensors"}})",
      "shard 'model-00002-of-00002.safetensors' is in the same folder but not in the index");
  // Files of other names, and shards of another count, are no part of it.
  test::write_file(folder_ / "m/model-00001-of-00001.safetensors", weights({"f"}));
  test::write_file(folder_ / "m/other-00003-of-00002.safetensors", weights({"f"}));
  test::write_file(folder_ / "m/-of-00002.safetensors", weights({"f"}));
  index(R"({"weight_map":{"d":"model-00001-of-00002.safetensors",)"
        R"("e":"model-00002-of-00002.safetensors"}})");
  EXPECT_EQ(open().entries().size(), 2U);
  // A model may be a part of another, and have its files alone.
  index(R"({"weight_map":{"f":"model-00001-of-00001.safetensors"}})");
  EXPECT_EQ(open().entries().size(), 1U);
}

TEST_F(HostileIndex, ATensorInAnotherShardThanListedIsNamed) {
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","b":"y.safetensors","c":"y.safetensors"}})",
                 "tensor 'b' is placed in y.safetensors but is in x.safetensors");
}

TEST_F(HostileIndex, OfATensorInTwoShardsTheIndexDecides) {
  test::write_file(folder_ / "m/y.safetensors", weights({"b", "c"}));
  index(kGood);
  const Checkpoint model = open();
  ASSERT_EQ(model.entries().size(), 3U);
  EXPECT_TRUE(model.file(model.find("b")->file).path().ends_with("/x.safetensors"));
  ASSERT_EQ(model.warnings().size(), 1U);
  EXPECT_PRED2(contains, model.warnings()[0],
               "1 stale tensor was skipped: 'b' in y.safetensors, which the index places in "
               "x.safetensors");
}

TEST_F(HostileIndex, ATensorInTwoShardsThatTheIndexDoesNotListIsNamedWithBoth) {
  test::write_file(folder_ / "m/y.safetensors", weights({"b", "c"}));
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","c":"y.safetensors"}})",
                 "tensor 'b' is both in x.safetensors and in y.safetensors");
  test::write_file(folder_ / "m/z.safetensors", weights({"d"}));
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","b":"z.safetensors","c":"y.safetensors"}})",
                 "tensor 'b' is both in x.safetensors and in y.safetensors");
}

TEST_F(HostileIndex, ShardsMayLieInFoldersBelow) {
  test::write_file(folder_ / "m/part/deep/y.safetensors", weights({"d"}));
  index(R"({"weight_map":{"a":"x.safetensors","b":"x.safetensors",)"
        R"("d":"part/deep/y.safetensors"}})");
  EXPECT_EQ(open().entries().size(), 3U);
  ASSERT_EQ(::symlink("../..", (folder_ / "m/part/up").c_str()), 0);
  EXPECT_PRED2(contains, refusal_of(R"({"weight_map":{"c":"part/up/outside.safetensors"}})"),
               "outside");
  // A shard of a series that the index leaves out is noticed there too.
  test::write_file(folder_ / "m/sub/model-00001-of-00002.safetensors", weights({"d"}));
  test::write_file(folder_ / "m/sub/model-00002-of-00002.safetensors", weights({"e"}));
  EXPECT_REFUSAL(R"({"weight_map":{"d":"sub/model-00001-of-00002.safetensors"}})",
                 "shard 'sub/model-00002-of-00002.safetensors' is in the same folder");
}

TEST_F(HostileIndex, ATensorIsListedOnce) {
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})",
                 "tensor 'a' is listed twice");
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","\u0061":"y.safetensors"}})",
                 "tensor 'a' is listed twice");
  EXPECT_REFUSAL(R"({"weight_map":{},"weight_map":{"a":"x.safetensors"}})", "given twice");
}

TEST_F(HostileIndex, AMissingShardIsNamedWithTheRemedy) {
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  const std::string text = refusal_of(kGood, Code::missing);
  EXPECT_TRUE(contains(text, "m/y.safetensors is missing; fetch the model again")) << text;
  EXPECT_TRUE(contains(text, "model.safetensors.index.json lists")) << text;
}

TEST_F(HostileIndex, AShardThatIsAFolderIsRefused) {
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  test::write_file(folder_ / "m/y.safetensors/z", "");
  EXPECT_TRUE(contains(refusal_of(kGood, Code::missing), "y.safetensors is a folder, not a file"));
}

TEST_F(HostileIndex, ABrokenShardIsNamed) {
  test::write_file(folder_ / "m/y.safetensors", "short");
  EXPECT_REFUSAL(kGood,
                 "m/y.safetensors: the file has 5 bytes, but a safetensors file begins with 8");
}

TEST_F(HostileIndex, NoShardLiesOutsideTheFolder) {
  const std::string outside = folder_ / "outside.safetensors";
  for (const std::string& name :
       {outside, std::string("../outside.safetensors"), std::string("./y.safetensors"),
        std::string("sub//y.safetensors"), std::string("sub/../../outside.safetensors"),
        std::string("/y.safetensors"), std::string("..\\\\outside.safetensors"),
        std::string("C:y.safetensors"), std::string("y\\u0000.safetensors"),
        std::string("y\\n.safetensors"), std::string(".."), std::string("."), std::string("")}) {
    EXPECT_REFUSAL(
        R"({"weight_map":{"a":"x.safetensors","b":"x.safetensors","c":")" + name + "\"}}",
        "not a file in this folder or below it");
  }
}

TEST_F(HostileIndex, ShardsAreFilesOfTheIndexsKind) {
  test::write_file(folder_ / "m/y.bin", "x");
  EXPECT_REFUSAL(R"({"weight_map":{"a":"x.safetensors","c":"y.bin"}})", "not a .safetensors file");
  EXPECT_REFUSAL(R"({"weight_map":{"a":"config.json"}})", "not a .safetensors file");
}

TEST_F(HostileIndex, NoLinkLeadsOutOfTheFolder) {
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  ASSERT_EQ(::symlink("../outside.safetensors", (folder_ / "m/y.safetensors").c_str()), 0);
  EXPECT_REFUSAL(kGood, "outside the model's folder");
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  test::write_file(folder_ / "m/z.safetensors", weights({"c"}));
  ASSERT_EQ(::symlink("z.safetensors", (folder_ / "m/y.safetensors").c_str()), 0);
  EXPECT_EQ(open().entries().size(), 3U) << "a link inside the folder is fine";
}

TEST_F(HostileIndex, NeighboursWithTheSameBeginningAreOutside) {
  test::write_file(folder_ / "m2/y.safetensors", weights({"c"}));
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  ASSERT_EQ(::symlink("../m2/y.safetensors", (folder_ / "m/y.safetensors").c_str()), 0);
  EXPECT_REFUSAL(kGood, "outside the model's folder");
}

TEST_F(HostileIndex, ASnapshotMayNotBorrowAnotherRepositorysBlobs) {
  test::write_file(folder_ / "models--a--b/snapshots/r/x", "");
  test::write_file(folder_ / "models--c--d/blobs/00", weights({"c"}));
  const std::string snapshot = folder_ / "models--a--b/snapshots/r";
  ASSERT_EQ(::symlink("../../../models--c--d/blobs/00", (snapshot + "/model.safetensors").c_str()),
            0);
  EXPECT_THROW((void)Checkpoint::open(*disk_, snapshot, "a/b"), Error);
  // The layout counts only under a name the cache gives.
  test::write_file(folder_ / "plain/snapshots/r/x", "");
  test::write_file(folder_ / "plain/blobs/00", weights({"c"}));
  const std::string plain = folder_ / "plain/snapshots/r";
  ASSERT_EQ(::symlink("../../blobs/00", (plain + "/model.safetensors").c_str()), 0);
  EXPECT_THROW((void)Checkpoint::open(*disk_, plain, "plain"), Error);
}

TEST_F(HostileIndex, ConfigJsonIsNoWayOutEither) {
  index(kGood);
  ASSERT_EQ(::symlink("/etc/passwd", (folder_ / "m/config.json").c_str()), 0);
  EXPECT_TRUE(contains(refusal(), "outside the model's folder"));
}

TEST_F(HostileIndex, LinksInACircleAndDevicesAreRefused) {
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  ASSERT_EQ(::symlink("y.safetensors", (folder_ / "m/y.safetensors").c_str()), 0);
  EXPECT_TRUE(
      contains(refusal_of(kGood, Code::missing), "not a file, or a link to a missing file"));
  ASSERT_EQ(::unlink((folder_ / "m/y.safetensors").c_str()), 0);
  ASSERT_EQ(::symlink("/dev/zero", (folder_ / "m/y.safetensors").c_str()), 0);
  EXPECT_TRUE(contains(refusal_of(kGood, Code::missing), "not a file"));
}

TEST_F(HostileIndex, TheIndexIsAnObjectWithAMapOfTexts) {
  EXPECT_REFUSAL("[]", "must be an object");
  EXPECT_REFUSAL("3", "must be an object");
  EXPECT_REFUSAL("{}", "has no weight_map");
  EXPECT_REFUSAL(R"({"weight_map":{}})", "has an empty weight_map");
  EXPECT_REFUSAL(R"({"metadata":{"weight_map":{"a":"x.safetensors"}}})", "has no weight_map");
  EXPECT_REFUSAL(R"({"weight_map":[]})", "weight_map must be an object");
  EXPECT_REFUSAL(R"({"weight_map":null})", "weight_map must be an object");
  for (const char* value : {"1", "-1", "1.5", "null", "true", "[]", "{}"}) {
    EXPECT_REFUSAL(std::string(R"({"weight_map":{"a":)") + value + "}}",
                   "tensor 'a' must be placed in a file");
  }
}

TEST_F(HostileIndex, NothingHidesBehindAZeroByteOrAfterTheObject) {
  EXPECT_REFUSAL(std::string(kGood) + std::string("\0{}", 3), "not valid JSON");
  EXPECT_REFUSAL(std::string(kGood) + "{}", "not valid JSON");
}

TEST_F(HostileIndex, DeepNestingIsHarmless) {
  index(R"({"metadata":)" + std::string(200'000, '[') + std::string(200'000, ']') +
        R"(,"weight_map":{"a":"x.safetensors","b":"x.safetensors","c":"y.safetensors"}})");
  EXPECT_EQ(open().entries().size(), 3U);
  EXPECT_REFUSAL(R"({"weight_map":{"a":)" + std::string(200'000, '['), "must be placed in a file");
}

TEST_F(HostileIndex, NamesAreUtf8WithoutControlCharacters) {
  EXPECT_REFUSAL("{\"weight_map\":{\"\xff\":\"x.safetensors\"}}", "not valid JSON");
  EXPECT_REFUSAL(R"({"weight_map":{"\u0000":"x.safetensors"}})", "control characters");
}

}  // namespace
}  // namespace ingot
