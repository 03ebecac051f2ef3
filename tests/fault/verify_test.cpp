// verify finds every way in which a folder can fall short of its recipe.
#include <algorithm>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/proof.hpp"
#include "ingot/math/fold.hpp"
#include "merging.hpp"
#include "model.hpp"

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

  // Why the folder cannot be checked.
  [[nodiscard]] std::string obstacle(Code code) const {
    try {
      return "checked: " + findings();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      return error.what();
    }
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
  EXPECT_NE(found.find("lm_head.weight: the receipt names this tensor"), std::string::npos)
      << found;
  EXPECT_NE(found.find("lm_head.veight: the folder has this tensor"), std::string::npos) << found;
}

TEST_F(Verify, FindsAnInputThatChangedOrWentAway) {
  const std::string input = folder_ / "models/python/model.safetensors";
  edit(input, [](std::string& bytes) { bytes[bytes.size() - 7] ^= 4; });
  EXPECT_NE(findings().find("of ./models/python: the input changed"), std::string::npos);
  EXPECT_EQ(findings(true), "");
  // What is gone cannot be checked, which says nothing of the folder.
  std::filesystem::remove_all(folder_ / "models/python");
  const std::string gone = obstacle(Code::missing);
  for (const char* word : {"models/python", "--root", "--outputs-only"}) {
    EXPECT_NE(gone.find(word), std::string::npos) << gone;
  }
  EXPECT_EQ(findings(true), "");
  // But what is wrong all the same is told.
  write_file(file("extra"), "");
  EXPECT_NE(findings().find("extra"), std::string::npos);
  EXPECT_NE(findings().find("--outputs-only"), std::string::npos);
}

TEST_F(Verify, FindsAReceiptThatWasEditedByAccident) {
  edit(file("ingot.json"), [](std::string& text) {
    text.replace(text.find("\"weight\": 0.5"), 13, "\"weight\": 0.6");
  });
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

TEST_F(Verify, FindsWeightsThatWereMovedToTheirNeighbours) {
  // The smallest possible lie, told of every weight, with hashes that fit.
  for (const auto& [name, recipe] : recipes()) {
    Settings settings;
    settings.plan.root = example("");
    settings.merge.force = true;
    run_merge(recipe, out(), settings);
    std::string bytes = read_file(file("model.safetensors"));
    const auto disk = system_disk();
    const Checkpoint checkpoint = Checkpoint::open(*disk, out(), out());
    auto receipt = nlohmann::ordered_json::parse(read_file(file("ingot.json")));
    std::size_t moved = 0;
    for (auto& one : receipt["tensors"]) {
      const Entry& entry = *checkpoint.find(one["name"].get<std::string>());
      const std::uint64_t width = bits(entry.info.dtype) / 8;
      // One element of each tensor, upwards in magnitude.
      const std::uint64_t at = entry.offset + entry.info.count() / 2 * width;
      if (one["rule"] != "copy") {
        bytes[at] = static_cast<char>(bytes[at] ^ 1);
        ++moved;
      }
      const std::string data = bytes.substr(entry.offset, entry.info.bytes());
      const Digest block = hash_block(std::as_bytes(std::span(data.data(), data.size())));
      one["hash"] = hash_digests(std::span(&block, 1)).text();
    }
    write_file(file("model.safetensors"), bytes);
    receipt.erase("hash");
    const std::string body = receipt.dump(1);
    receipt["hash"] = hash_block(std::as_bytes(std::span(body.data(), body.size()))).text();
    write_file(file("ingot.json"), receipt.dump(1) + "\n");
    EXPECT_EQ(findings(true), "") << name;
    VerifyOptions options;
    options.root = example("");
    const Verdicts verdicts = verify(*disk, out(), options);
    EXPECT_GE(verdicts.shortfalls, moved) << name;
    ASSERT_FALSE(verdicts.findings.empty()) << name;
    EXPECT_NE(verdicts.findings[0].text.find("its rule gives"), std::string::npos)
        << verdicts.findings[0].text;
  }
}

TEST_F(Verify, TellsOfAKindOnceAndCountsTheRest) {
  edit(file("model.safetensors"),
       [](std::string& bytes) { std::fill(bytes.begin() + 4096, bytes.end(), '\0'); });
  const auto disk = system_disk();
  VerifyOptions options;
  options.outputs_only = true;
  const Verdicts verdicts = verify(*disk, out(), options);
  EXPECT_EQ(verdicts.shortfalls, 21U);
  ASSERT_EQ(verdicts.findings.size(), 6U);
  EXPECT_EQ(verdicts.findings.back().text, "... and 16 more tensors that changed since the merge");
}

TEST_F(Verify, OfAFolderWithoutHashesSaysOnlyThat) {
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  settings.merge.hash = false;
  run_merge(recipes().at("linear"), out(), settings);
  const std::string found = findings();
  EXPECT_EQ(std::count(found.begin(), found.end(), '\n'), 1) << found;
  EXPECT_NE(found.find("--no-hash"), std::string::npos);
}

TEST_F(Verify, KnowsReceiptsOfOtherFormatsAndVersions) {
  forge("ingot-receipt-3", "ingot-receipt-1");
  EXPECT_NE(findings().find("receipt format \"ingot-receipt-1\" found"), std::string::npos);
  forge("ingot-receipt-1", "ingot-receipt-3");
  EXPECT_EQ(findings(), "");
  forge("\"ingot\": \"", "\"ingot\": \"9");
  EXPECT_NE(findings().find("verify with the ingot that wrote it"), std::string::npos);
}

TEST_F(Verify, DeeplyNestedReceiptsAreRefusedAtOnce) {
  for (const std::size_t levels : std::vector<std::size_t>{200, 30'000, 1'000'000}) {
    write_file(file("ingot.json"), "{\"format\":\"ingot-receipt-3\",\"deep\":" +
                                       std::string(levels, '[') + std::string(levels, ']') + "}");
    EXPECT_NE(findings().find("levels deep"), std::string::npos);
  }
}

TEST_F(Verify, OfLargeTensorsASampleIsTakenAndItsPowerTold) {
  // One tensor of formulas that need one pass, one of those that are measured; too large for a
  // walk.
  const Tensors tensors = {{"model.layers.0.mlp.up_proj.weight", Dtype::f32, {512, 512}}};
  for (const char* name : {"a", "b"}) {
    write_file(folder_ / name + std::string("/config.json"), llama_config(1));
    std::string bytes = print_header(tensors, {{"format", "pt"}});
    Random random(static_cast<std::uint64_t>(name[0]));
    for (std::uint64_t i = 0; i < tensors[0].count(); ++i) {
      const auto value = static_cast<float>(random.uniform() - 0.5);
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    write_file(folder_ / name + std::string("/model.safetensors"), bytes);
  }
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  const auto disk = system_disk();
  for (const char* method : {"linear", "ties", "dare_linear"}) {
    run_merge(fmt::format("models: [{{model: ./b, parameters: {{weight: 0.5, density: 0.5}}}}]\n"
                          "base_model: ./a\nmerge_method: {}\n",
                          std::string_view(method) == "linear" ? "task_arithmetic" : method),
              out(), settings);
    VerifyOptions options;
    options.root = folder_.path();
    Verdicts verdicts = verify(*disk, out(), options);
    EXPECT_EQ(verdicts.shortfalls, 0U) << method << verdicts.findings[0].text;
    EXPECT_EQ(verdicts.elements, 512U * 512U);
    EXPECT_EQ(verdicts.recomputed, 66U * 64U);
    EXPECT_EQ(verdicts.sampled, 1U);
    EXPECT_EQ(verdicts.uncounted, 1U);
    EXPECT_NEAR(verdicts.detection(1000), 0.985, 0.001);
    EXPECT_NEAR(verdicts.detection(1'000'000), 0.004, 0.001);
    EXPECT_NEAR(verdicts.run(0.99), 0.0694, 0.0001);
    options.all = true;
    verdicts = verify(*disk, out(), options);
    EXPECT_EQ(verdicts.recomputed, verdicts.elements);
    EXPECT_EQ(verdicts.uncounted, 0U);
    EXPECT_EQ(verdicts.detection(1000), 1);
    // What a sample does not count it does not believe either.
    const std::string receipt = read_file(file("ingot.json"));
    forge("\"conflicts\": 0", "\"conflicts\": 1");
    EXPECT_NE(findings(), "") << method;
    write_file(file("ingot.json"), receipt);
    forge("\"largest_change\": \"0x1", "\"largest_change\": \"0X1");
    options.all = false;
    EXPECT_NE(verify(*disk, out(), options).shortfalls, 0U) << method;
  }
}

TEST_F(Verify, TheSecondPathAddsInTheDocumentedShape) {
  Random random(3);
  for (const std::uint64_t count :
       std::vector<std::uint64_t>{0, 1, 255, 256, 257, 16384, 16385, 5 * 16384, 11 * 16384 + 3}) {
    Sum sum;
    std::vector<double> tiles;
    std::vector<double> lanes(math::kLanes);
    for (std::uint64_t i = 0; i < count; ++i) {
      const double x = random.uniform() - 0.3;
      sum.add(x);
      lanes[i % math::kLanes] += x;
      if (i % math::kTile != math::kTile - 1 && i + 1 != count) continue;
      tiles.push_back(math::fold_lanes<math::Adding>(lanes.data()));
      std::fill(lanes.begin(), lanes.end(), 0.0);
    }
    EXPECT_EQ(sum.total(), math::combine(tiles.data(), tiles.size())) << count;
  }
}

TEST_F(Verify, RemoteCodeIsNamedByWarningReceiptAndCard) {
  write_file(folder_ / "models/base/modeling_x.py", "class X: pass\n");
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  const Report report = run_merge(recipes().at("ties"), out(), settings);
  ASSERT_EQ(report.warnings.size(), 1U);
  EXPECT_NE(report.warnings[0].find("modeling_x.py of ./models/base"), std::string::npos);
  EXPECT_NE(read_file(file("README.md")).find("modeling_x.py"), std::string::npos);
  const auto receipt = nlohmann::json::parse(read_file(file("ingot.json")));
  EXPECT_EQ(receipt["remote_code"].dump(), R"(["modeling_x.py"])");
  EXPECT_EQ(receipt["warnings"].size(), 1U);
  EXPECT_EQ(findings(), "");
  // A configuration that names code names it wherever it lies, also beside Python's NaN.
  for (const char* config :
       {R"({"auto_map": {"AutoConfig": "owner/name--x.C"}})", R"({"a": {"b": [{"auto_map": {}}]}})",
        R"({"x": NaN, "auto_map": {}})", R"({"\u0061uto_map": {}})"}) {
    write_file(folder_ / "models/base/processor_config.json", config);
    const Report named = run_merge(recipes().at("ties"), out(), settings);
    EXPECT_NE(named.warnings[0].find("processor_config.json (auto_map)"), std::string::npos)
        << config;
  }
}

TEST_F(Verify, ReceiptsSayWhereEveryFileIsFrom) {
  std::map<std::string, std::string> origins;
  const auto receipt = nlohmann::json::parse(read_file(file("ingot.json")));
  for (const auto& one : receipt["files"]) {
    origins[one["file"]] = one["origin"].get<std::string>() + one.value("model", "");
  }
  EXPECT_EQ(origins["config.json"], "edited./models/base");
  EXPECT_EQ(origins["tokenizer.json"], "copied./models/base");
  EXPECT_EQ(origins["README.md"], "written");
  EXPECT_EQ(origins["recipe.yml"], "written");
}

TEST_F(Verify, ReceiptsNameTheCommitsOfTheHub) {
  const std::string commit(40, 'a');
  const std::string hub = folder_ / "hub/models--owner--name";
  std::filesystem::create_directories(hub + "/snapshots");
  std::filesystem::rename(folder_ / "models/python", hub + "/snapshots/" + commit);
  write_file(hub + "/refs/main", commit);
  ::setenv("HF_HUB_CACHE", (folder_ / "hub").c_str(), 1);
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  const std::string recipe =
      "models: [{model: owner/name, parameters: {weight: 1}}, {model: ./models/c, parameters: "
      "{weight: 1}}]\nmerge_method: linear\n";
  run_merge(recipe, out(), settings);
  const auto receipt = nlohmann::json::parse(read_file(file("ingot.json")));
  EXPECT_EQ(receipt["models"][0]["commit"], commit);
  EXPECT_FALSE(receipt["models"][1].contains("commit"));
  EXPECT_EQ(read_file(file("ingot.json")).find(folder_.path()), std::string::npos);
  EXPECT_EQ(findings(), "");
  forge(commit, std::string(40, 'b'));
  EXPECT_NE(findings().find("models[1].commit"), std::string::npos) << findings();
  ::unsetenv("HF_HUB_CACHE");
}

TEST_F(Verify, AFolderDoesNotVouchForItself) {
  std::filesystem::copy(folder_ / "models/c", folder_ / "x");
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  run_merge("models: [{model: ./x}]\nmerge_method: passthrough\n", out(), settings);
  EXPECT_EQ(findings(), "");
  std::filesystem::remove_all(folder_ / "x");
  std::filesystem::create_directory_symlink(out(), folder_ / "x");
  EXPECT_NE(findings().find("is in the folder itself"), std::string::npos) << findings();
}

TEST_F(Verify, OptionsThatChangeNothingDoNotStandInTheReceipt) {
  Settings settings;
  settings.plan.root = folder_.path();
  settings.merge.force = true;
  settings.plan.seed = 5;
  settings.plan.dtype = "float16";
  settings.plan.allow_mixed = settings.plan.allow_unchanged = true;
  settings.plan.allow_unknown_keys = settings.plan.truncate_embeddings = true;
  run_merge(recipes().at("ties"), out(), settings);  // which draws nothing and asks for float16
  EXPECT_NE(read_file(file("ingot.json")).find("\"options\": {},"), std::string::npos);
  EXPECT_EQ(findings(), "");
  settings.plan.shard_bytes = 100'000;
  run_merge(recipes().at("dare_linear"), out(), settings);
  const auto receipt = nlohmann::json::parse(read_file(file("ingot.json")));
  EXPECT_EQ(receipt["options"]["seed"], 5);
  EXPECT_EQ(receipt["options"]["dtype"], "float16");
  EXPECT_GE(receipt["options"]["shard_bytes"].get<std::uint64_t>(), 100'000U);
  EXPECT_EQ(receipt["options"].size(), 3U);
  EXPECT_EQ(findings(), "");
}

}  // namespace
}  // namespace ingot::test
