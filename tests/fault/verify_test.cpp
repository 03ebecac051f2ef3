// verify finds every way in which a folder can fall short of its recipe.
#include <gtest/gtest.h>

#include "merging.hpp"

namespace ingot::test {
namespace {

class Verify : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::copy(example("models"), folder_ / "models",
                          std::filesystem::copy_options::recursive);
    Settings settings;
    settings.plan.root = folder_.path();
    run_merge(recipes().at("ties"), out(), settings);
  }

  [[nodiscard]] std::string out() const { return folder_ / "out"; }
  [[nodiscard]] std::string file(const std::string& name) const { return out() + "/" + name; }

  [[nodiscard]] std::string findings(bool outputs_only = false) const {
    VerifyOptions options;
    options.root = folder_.path();
    options.all = true;
    options.outputs_only = outputs_only;
    const auto disk = system_disk();
    std::string text;
    for (const Finding& finding : verify(*disk, out(), options).findings)
      text += finding.text + "\n";
    return text;
  }

  void edit(const std::string& path, const std::function<void(std::string&)>& change) const {
    std::string bytes = read_file(path);
    change(bytes);
    write_file(path, bytes);
  }

  // Changes the receipt and makes its self-hash fit again, as a liar would.
  void forge(const std::string& from, const std::string& to) const {
    edit(file("ingot.json"), [&](std::string& text) {
      const auto at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text.replace(at, from.size(), to);
      const auto hash = text.rfind(",\n \"hash\":");
      const std::string body = text.substr(0, hash) + "\n}";
      text = text.substr(0, hash) + ",\n \"hash\": \"" +
             hash_block(std::as_bytes(std::span(body.data(), body.size()))).text() + "\"\n}\n";
    });
  }

  Folder folder_;
};

TEST_F(Verify, IsContentWithAnUntouchedFolder) {
  EXPECT_EQ(findings(), "");
  EXPECT_EQ(findings(true), "");
}

TEST_F(Verify, FindsAFlippedBitInAnyTensor) {
  edit(file("model.safetensors"), [](std::string& bytes) { bytes[bytes.size() - 7] ^= 4; });
  EXPECT_NE(findings().find("changed since the merge"), std::string::npos);
  EXPECT_NE(findings(true).find("changed since the merge"), std::string::npos);
}

TEST_F(Verify, FindsATensorThatIsNotThere) {
  edit(file("model.safetensors"), [](std::string& bytes) {
    const auto at = bytes.find("lm_head.weight");
    bytes.replace(at, 14, "lm_head.veight");
  });
  const std::string found = findings(true);
  EXPECT_NE(found.find("lm_head.weight: the receipt names it"), std::string::npos) << found;
  EXPECT_NE(found.find("lm_head.veight: the folder holds it"), std::string::npos) << found;
}

TEST_F(Verify, FindsAnInputThatChangedOrWentAway) {
  const std::string input = folder_ / "models/python/model.safetensors";
  edit(input, [](std::string& bytes) { bytes[bytes.size() - 7] ^= 4; });
  EXPECT_NE(findings().find("of ./models/python: the input changed"), std::string::npos);
  EXPECT_EQ(findings(true), "");
  std::filesystem::remove_all(folder_ / "models/python");
  EXPECT_NE(findings().find("models/python"), std::string::npos);
  EXPECT_EQ(findings(true), "");
}

TEST_F(Verify, FindsAReceiptThatWasEditedByAccident) {
  edit(file("ingot.json"),
       [](std::string& text) { text.replace(text.find("\"seed\": 0"), 9, "\"seed\": 1"); });
  EXPECT_NE(findings().find("self-hash"), std::string::npos);
}

TEST_F(Verify, FindsAForgedParameterByTheRecipe) {
  forge("\"weight\": 0.5", "\"weight\": 0.6");
  EXPECT_NE(findings().find("weight of source"), std::string::npos) << findings();
}

TEST_F(Verify, FindsForgedBytesByRecomputingThem) {
  // Bytes, tensor hash and self-hash all fit each other; only the arithmetic tells.
  std::string bytes = read_file(file("model.safetensors"));
  bytes[bytes.size() - 7] ^= 0x40;
  write_file(file("model.safetensors"), bytes);
  const auto disk = system_disk();
  const Checkpoint checkpoint = Checkpoint::open(*disk, out(), out());
  const Entry* last = &checkpoint.entries().front();
  for (const Entry& entry : checkpoint.entries()) {
    if (entry.offset > last->offset) last = &entry;
  }
  const std::string data = bytes.substr(last->offset, last->info.bytes());
  const Digest block = hash_block(std::as_bytes(std::span(data.data(), data.size())));
  const std::string receipt = read_file(file("ingot.json"));
  const auto entry = receipt.find("\"name\": \"" + last->info.name + "\"");
  const auto told = receipt.find("\n   \"hash\": \"", entry) + 13;
  forge(receipt.substr(told, 32), hash_digests(std::span(&block, 1)).text());
  EXPECT_EQ(findings(true), "");
  EXPECT_NE(findings().find("its rule gives"), std::string::npos) << findings();
}

TEST_F(Verify, FindsAChangedOrMissingCompanion) {
  edit(file("config.json"), [](std::string& text) { text += "\n"; });
  EXPECT_NE(findings(true).find("config.json"), std::string::npos);
  std::filesystem::remove(file("tokenizer.json"));
  EXPECT_NE(findings(true).find("tokenizer.json: the file is missing"), std::string::npos);
}

TEST_F(Verify, FailsAMergeThatChangedNothing) {
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  const Report report = run_merge(
      "models: [{model: ./models/python, parameters: {weight: 1}}]\nmerge_method: linear\ndtype: "
      "bfloat16\n",
      out(), settings);
  ASSERT_FALSE(report.warnings.empty());
  EXPECT_NE(report.warnings.back().find("changed nothing"), std::string::npos);
  EXPECT_NE(findings().find("changed nothing"), std::string::npos);
  settings.plan.allow_unchanged = true;
  run_merge(
      "models: [{model: ./models/python, parameters: {weight: 1}}]\nmerge_method: linear\ndtype: "
      "bfloat16\n",
      out(), settings);
  EXPECT_EQ(findings(), "");
}

}  // namespace
}  // namespace ingot::test
