// Adapters taken out of fine-tunes: what they leave of the difference, how ranks are chosen, what
// is brought in full.
#include <algorithm>
#include <cmath>
#include <map>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapting.hpp"
#include "ingot/linalg.hpp"
#include "merging.hpp"

namespace ingot {
namespace {

using linalg::As;
using linalg::Matrix;
using test::Folder;
using test::Values;

const std::string kBase = test::example("models/base");

std::string recipe_of(const std::string& tuned, const std::string& more) {
  return fmt::format("extract: lora\nbase_model: {}\nmodel: {}\n{}", kBase, tuned, more);
}

std::map<std::string, Values> extracted(const std::string& tuned, const std::string& more,
                                        const std::string& out) {
  (void)test::run_merge(recipe_of(tuned, more), out);
  return test::read_adapter_values(out);
}

// Base and adapter as a model in f32.
void bake(const std::string& adapter, const std::string& out) {
  test::Settings settings;
  settings.plan.dtype = "float32";
  (void)test::run_merge(
      fmt::format("merge_method: passthrough\nmodels: [{{model: {{path: {}, adapters: [{}]}}}}]\n",
                  kBase, adapter),
      out, settings);
}

Matrix tensor(const std::string& folder, const std::string& name) {
  const auto disk = system_disk();
  const Checkpoint model = Checkpoint::open(*disk, folder, folder);
  const Entry& entry = *model.find(name);
  std::vector<float> values(entry.info.count());
  read_values(model, entry, 0, values);
  Matrix m(entry.info.shape[0], entry.info.shape[1]);
  std::copy(values.begin(), values.end(), m.data.begin());
  return m;
}

Matrix minus(Matrix a, const Matrix& b) {
  for (std::size_t i = 0; i < a.data.size(); ++i) a.data[i] -= b.data[i];
  return a;
}

Matrix matrix_of(const Values& values) {
  Matrix m(values.shape[0], values.values.size() / values.shape[0]);
  std::copy(values.values.begin(), values.values.end(), m.data.begin());
  return m;
}

Matrix update(const std::map<std::string, Values>& found, const std::string& module) {
  const std::string prefix = "base_model.model." + module;
  return linalg::multiply(matrix_of(found.at(prefix + ".lora_B.weight")), As::is,
                          matrix_of(found.at(prefix + ".lora_A.weight")), As::is);
}

std::vector<std::string> findings(const std::string& out) {
  const auto disk = system_disk();
  std::vector<std::string> texts;
  VerifyOptions options;
  options.all = true;
  for (const Finding& f : verify(*disk, out, options).findings) texts.push_back(f.text);
  return texts;
}

constexpr const char* kModule = "model.layers.1.self_attn.q_proj";

TEST(Extract, FindsTheAdapterThatWasBakedIn) {
  const Folder folder;
  bake(test::example("adapters/c-lora"), folder / "tuned");
  const auto found = extracted(folder / "tuned", "rank: 8\nwhole_tensors: skip\n", folder / "out");
  const std::string name = std::string(kModule) + ".weight";
  const Matrix difference = minus(tensor(folder / "tuned", name), tensor(kBase, name));
  ASSERT_GT(linalg::norm(difference), 0);
  EXPECT_LT(linalg::norm(minus(update(found, kModule), difference)),
            1e-5 * linalg::norm(difference) + 1e-6);
  EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
  // And back again.
  bake(folder / "out", folder / "back");
  EXPECT_LT(linalg::norm(minus(tensor(folder / "back", name), tensor(folder / "tuned", name))),
            1e-5 * linalg::norm(difference) + 1e-6);
}

TEST(Extract, LeavesNoMoreThanTheOptimumAllows) {
  const Folder folder;
  const auto found = extracted(test::example("models/c"), "rank: 5\n", folder / "out");
  for (const char* module : {kModule, "model.layers.0.mlp.down_proj"}) {
    const std::string name = std::string(module) + ".weight";
    const Matrix difference = minus(tensor(test::example("models/c"), name), tensor(kBase, name));
    const auto values = linalg::svd(difference).values;
    double best = 0;
    for (std::size_t j = 5; j < values.size(); ++j) best += values[j] * values[j];
    EXPECT_LT(linalg::norm(minus(update(found, module), difference)), 1.005 * std::sqrt(best));
  }
  EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
}

TEST(Extract, ReceiptHasTheErrorOfEachModule) {
  const Folder folder;
  (void)extracted(test::example("models/c"), "rank: 5\n", folder / "out");
  const auto receipt = nlohmann::json::parse(test::read_file(folder / "out/ingot.json"));
  EXPECT_NE(receipt.dump().find("relative_error"), std::string::npos);
}

TEST(Extract, KeepsTheEnergyThatWasAsked) {
  const Folder folder;
  const auto found =
      extracted(test::example("models/c"), "rank: auto\nenergy: 0.7\n", folder / "out");
  const std::string name = std::string(kModule) + ".weight";
  const Matrix difference = minus(tensor(test::example("models/c"), name), tensor(kBase, name));
  const auto values = linalg::svd(difference).values;
  double total = 0;
  for (const double v : values) total += v * v;
  EXPECT_EQ(found.at(fmt::format("base_model.model.{}.lora_A.weight", kModule)).shape[0],
            linalg::kept(values, total, {values.size(), 0.7}));
  EXPECT_NE(test::read_file(folder / "out/recipe.yml").find("ranks:"), std::string::npos);
  EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
}

TEST(Extract, StaysWithinTheBytesAndSpendsThem) {
  const Folder folder;
  const auto found =
      extracted(test::example("models/c"), "bytes: 40000\nwhole_tensors: skip\n", folder / "out");
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : found) bytes += 4 * tensor.values.size();
  EXPECT_LE(bytes, 40000U);
  EXPECT_GT(bytes, 36000U);
  const auto disk = system_disk();
  const Plan plan =
      build(*disk, parse(recipe_of(test::example("models/c"), "bytes: 100\n"), "r.yml", {}), {});
  EXPECT_FALSE(plan.sound());
}

TEST(Extract, BringsChangedTensorsInFullOrSkipsThem) {
  const Folder folder;
  const auto found = extracted(test::example("models/c"), "rank: 2\n", folder / "save");
  const auto config = nlohmann::json::parse(test::read_file(folder / "save/adapter_config.json"));
  ASSERT_TRUE(config["modules_to_save"].is_array());
  for (const std::string module : config["modules_to_save"]) {
    const Values& kept = found.at("base_model.model." + module + ".weight");
    const auto disk = system_disk();
    const Checkpoint base = Checkpoint::open(*disk, kBase, "base");
    std::vector<float> values(kept.values.size());
    if (base.find(module + ".weight")->info.count() == values.size()) {
      read_values(base, *base.find(module + ".weight"), 0, values);
      EXPECT_NE(values, kept.values) << module << " did not change";
    }
  }
  const auto skipped =
      extracted(test::example("models/c"), "rank: 2\nwhole_tensors: skip\n", folder / "skip");
  for (const auto& [name, tensor] : skipped) {
    EXPECT_NE(name.find(".lora_"), std::string::npos) << name;
  }
}

TEST(Extract, RefusesWithTheReason) {
  const auto disk = system_disk();
  const auto refusal = [&](const std::string& tuned, const std::string& more) {
    std::string all;
    for (const Problem& p : build(*disk, parse(recipe_of(tuned, more), "r.yml", {}), {}).problems) {
      if (p.fatal) all += p.text;
    }
    return all;
  };
  EXPECT_NE(refusal(test::example("models/c"), "").find("give one of rank"), std::string::npos);
  EXPECT_NE(refusal(test::example("models/c"), "rank: auto\n").find("go together"),
            std::string::npos);
  EXPECT_NE(refusal(kBase, "rank: 4\n").find("nothing to extract"), std::string::npos);
}

}  // namespace
}  // namespace ingot
