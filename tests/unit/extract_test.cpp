// Adapters taken out of fine-tunes: what they leave of the difference, how ranks are chosen, what
// is brought in full.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapting.hpp"
#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/codec.hpp"
#include "merging.hpp"
#include "watched.hpp"

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

// Writes a copy of the base whose linear layers are `value` all over, in bf16.
void fill_model(const std::string& folder, float value) {
  std::filesystem::copy(kBase, folder, std::filesystem::copy_options::recursive);
  const auto disk = system_disk();
  const Checkpoint model = Checkpoint::open(*disk, folder, folder);
  std::string bytes = test::read_file(folder + "/model.safetensors");
  for (const Entry& entry : model.entries()) {
    if (entry.info.name.find("proj") == std::string::npos) continue;
    ASSERT_EQ(entry.info.dtype, Dtype::bf16);
    const auto code = math::Codec<math::Format::bf16>::encode(value, {});
    for (std::uint64_t i = 0; i < entry.info.count(); ++i) {
      std::memcpy(bytes.data() + entry.offset + 2 * i, &code, 2);
    }
  }
  test::write_file(folder + "/model.safetensors", bytes);
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
  EXPECT_EQ(found.size(), 28U);
  const auto bytes = std::filesystem::file_size(folder / "out/adapter_model.safetensors");
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

// Models with one layer of three experts, a router, and a layer with an expert's old name.
struct Mixture {
  static constexpr std::uint64_t kExperts = 3, kWidth = 6, kInner = 5, kRank = 2;
  bool transposed = false;

  [[nodiscard]] Shape shape(bool down) const {
    const std::uint64_t out = down ? kWidth : 2 * kInner, in = down ? kInner : kWidth;
    return transposed ? Shape{kExperts, in, out} : Shape{kExperts, out, in};
  }
  [[nodiscard]] std::map<std::string, Shape> shapes() const {
    return {{"model.layers.0.mlp.experts.gate_up_proj", shape(false)},
            {"model.layers.0.mlp.experts.down_proj", shape(true)},
            {"model.layers.0.mlp.gate.weight", {kExperts, kWidth}},
            {"model.layers.1.mlp.up_proj.weight", {kInner, kWidth}},
            {"model.layers.1.self_attn.q_proj.weight", {kWidth, kWidth}}};
  }
  // Every matrix of the tuned model differs by a product of rank kRank.
  void write(const std::string& folder, bool tuned) const {
    std::vector<TensorInfo> infos;
    std::vector<float> values;
    test::Random random(7), change(8);
    const auto next = [](test::Random& from) {
      return static_cast<float>(from.below(2001)) / 1000 - 1;
    };
    for (const auto& [name, shape] : shapes()) {
      infos.push_back({name, Dtype::f32, shape});
      const bool blocks = shape.rank() == 3;
      const std::uint64_t height = shape[blocks ? 1 : 0], width = shape[blocks ? 2 : 1];
      for (std::uint64_t block = 0; block < (blocks ? shape[0] : 1); ++block) {
        std::vector<float> b(height * kRank), a(kRank * width);
        for (float& x : b) x = next(change);
        for (float& x : a) x = next(change);
        for (std::uint64_t i = 0; i < height * width; ++i) {
          float value = next(random);
          for (std::uint64_t k = 0; tuned && k < kRank; ++k) {
            value += b[i / width * kRank + k] * a[k * width + i % width];
          }
          values.push_back(value);
        }
      }
    }
    std::string bytes = print_header(infos, {{"format", "pt"}});
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    test::write_file(folder + "/model.safetensors", bytes);
    test::write_file(
        folder + "/config.json",
        fmt::format(R"({{"architectures": ["{}ForCausalLM"], "num_hidden_layers": 2}})",
                    transposed ? "GptOss" : "Qwen3Moe"));
  }
};

class FusedExperts : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(BothLayouts, FusedExperts, testing::Bool());

TEST_P(FusedExperts, BecomeAnAdapterOfParametersThatBakesBack) {
  const Folder folder;
  const Mixture mixture{GetParam()};
  mixture.write(folder / "base", false);
  mixture.write(folder / "tuned", true);
  (void)test::run_merge(fmt::format("extract: lora\nbase_model: {}\nmodel: {}\nrank: 2\n",
                                    folder / "base", folder / "tuned"),
                        folder / "out");
  const auto found = test::read_adapter_values(folder / "out");
  const std::string owner = "base_model.model.model.layers.0.mlp.experts";
  // PEFT wraps the parameter that the class defines first innermost.
  EXPECT_EQ(found.at(owner + ".base_layer.lora_A.weight").shape, (Shape{6, Mixture::kWidth}));
  EXPECT_EQ(found.at(owner + ".base_layer.lora_B.weight").shape, (Shape{2 * Mixture::kInner, 6}));
  EXPECT_EQ(found.at(owner + ".lora_A.weight").shape, (Shape{6, Mixture::kInner}));
  EXPECT_EQ(found.at(owner + ".lora_B.weight").shape, (Shape{Mixture::kWidth, 6}));
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["target_modules"], nlohmann::json({"model.layers.1.self_attn.q_proj"}));
  EXPECT_EQ(config["target_parameters"],
            nlohmann::json(
                {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj",
                 "model.layers.0.mlp.gate.weight", "model.layers.1.mlp.up_proj.weight"}));
  EXPECT_EQ(config["rank_pattern"], nlohmann::json::object());
  EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
  // Rows of A lie expert by expert, columns of B rank by rank.
  const Values &a = found.at(owner + ".lora_A.weight"), &b = found.at(owner + ".lora_B.weight");
  const auto disk = system_disk();
  const auto values = [&](const std::string& model, const std::string& name) {
    const Checkpoint checkpoint = Checkpoint::open(*disk, folder / model, model);
    const Entry& entry = *checkpoint.find(name);
    std::vector<float> all(entry.info.count());
    read_values(checkpoint, entry, 0, all);
    return all;
  };
  const std::string down = "model.layers.0.mlp.experts.down_proj";
  const std::vector<float> base = values("base", down), tuned = values("tuned", down);
  for (std::uint64_t e = 0; e < 3; ++e) {
    for (std::uint64_t o = 0; o < Mixture::kWidth; ++o) {
      for (std::uint64_t i = 0; i < Mixture::kInner; ++i) {
        float sum = 0;
        for (std::uint64_t k = 0; k < 2; ++k) {
          sum += b.values[o * 6 + k * 3 + e] * a.values[(e * 2 + k) * Mixture::kInner + i];
        }
        const std::uint64_t at = e * Mixture::kWidth * Mixture::kInner +
                                 (GetParam() ? i * Mixture::kWidth + o : o * Mixture::kInner + i);
        EXPECT_NEAR(sum, tuned[at] - base[at], 1e-5);
      }
    }
  }
  test::Settings settings;
  settings.plan.dtype = "float32";
  (void)test::run_merge(
      fmt::format("merge_method: passthrough\nmodels: [{{model: {{path: {}, adapters: [{}]}}}}]\n",
                  folder / "base", folder / "out"),
      folder / "back", settings);
  for (const auto& [name, shape] : mixture.shapes()) {
    const std::vector<float> back = values("back", name), wanted = values("tuned", name);
    for (std::size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], wanted[i], 1e-5) << name;
  }
}

// Models of any tensors in f32. Those whose names `changed` accepts differ in the tuned one.
void write_pair(const Folder& folder, const std::string& config,
                const std::map<std::string, Shape>& shapes,
                const std::function<bool(const std::string&)>& changed) {
  for (const char* model : {"base", "tuned"}) {
    std::vector<TensorInfo> infos;
    std::vector<float> values;
    test::Random random(7), change(8);
    for (const auto& [name, shape] : shapes) {
      infos.push_back({name, name.ends_with("_tracked") ? Dtype::i32 : Dtype::f32, shape});
      for (std::uint64_t i = 0; i < shape.count(); ++i) {
        const float value = static_cast<float>(random.below(2001)) / 1000 - 1;
        const float more = static_cast<float>(change.below(2001)) / 1000 - 1;
        values.push_back(*model == 't' && changed(name) ? value + more : value);
      }
    }
    std::string bytes = print_header(infos, {{"format", "pt"}});
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    const std::string path = (folder / model);
    test::write_file(path + "/model.safetensors", bytes);
    test::write_file(path + "/config.json", config);
  }
}

struct Made {
  std::map<std::string, Values> tensors;
  nlohmann::json config;
};
Made extract_pair(const Folder& folder, const std::string& more = "rank: 8\n") {
  (void)test::run_merge(fmt::format("extract: lora\nbase_model: {}\nmodel: {}\n{}", folder / "base",
                                    folder / "tuned", more),
                        folder / "out");
  EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
  return {test::read_adapter_values(folder / "out"),
          nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"))};
}

// The tuned model's numbers, from the adapter on the base.
void expect_back(const Folder& folder) {
  test::Settings settings;
  settings.plan.dtype = "float32";
  (void)test::run_merge(
      fmt::format("merge_method: passthrough\nmodels: [{{model: {{path: {}, adapters: [{}]}}}}]\n",
                  folder / "base", folder / "out"),
      folder / "back", settings);
  const auto disk = system_disk();
  const Checkpoint tuned = Checkpoint::open(*disk, folder / "tuned", "tuned");
  const Checkpoint back = Checkpoint::open(*disk, folder / "back", "back");
  ASSERT_EQ(back.entries().size(), tuned.entries().size());
  for (const Entry& entry : tuned.entries()) {
    const Entry* other = back.find(entry.info.name);
    ASSERT_NE(other, nullptr) << entry.info.name;
    if (!is_float(entry.info.dtype)) continue;
    std::vector<float> wanted(entry.info.count()), found(wanted.size());
    read_values(tuned, entry, 0, wanted);
    read_values(back, *other, 0, found);
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_NEAR(found[i], wanted[i], 1e-5) << entry.info.name;
    }
  }
}

bool any(const std::string&) { return true; }

// PEFT's own way for resized embeddings: loaded over the base's tensor, which all uses share.
TEST(Extract, KeepsATiedVocabularyTied) {
  const Folder folder;
  write_pair(folder,
             R"({"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "tie_word_embeddings": true})",
             {{"transformer.wte.weight", {12, 6}},
              {"transformer.wpe.weight", {4, 6}},
              {"transformer.h.0.attn.c_attn.weight", {6, 18}},
              {"transformer.h.0.attn.c_attn.bias", {18}},
              {"transformer.ln_f.weight", {6}}},
             any);
  const Made made = extract_pair(folder);
  EXPECT_TRUE(made.tensors.contains("base_model.model.transformer.wte.weight"));
  EXPECT_EQ(made.config["modules_to_save"],
            nlohmann::json({"transformer.ln_f", "transformer.wpe"}));
  EXPECT_EQ(made.config["bias"], "all");
  expect_back(folder);
}

// What PEFT can neither factorise nor save by its module stands under its own name.
TEST(Extract, BringsLayersAndParametersThatLoraDoesNotFitInFull) {
  const Folder folder;
  const std::string mixer = "backbone.layers.0.mixer.";
  write_pair(folder,
             R"({"architectures": ["Mamba2ForCausalLM"], "num_hidden_layers": 1,
                 "tie_word_embeddings": false})",
             {{"backbone.embeddings.weight", {12, 6}},
              {mixer + "A_log", {4}},
              {mixer + "conv1d.bias", {8}},
              {mixer + "conv1d.weight", {8, 1, 4}},
              {mixer + "dt_bias", {4}},
              {mixer + "in_proj.weight", {10, 6}},
              {mixer + "out_proj.weight", {6, 8}},
              {"lm_head.weight", {12, 6}}},
             any);
  const Made made = extract_pair(folder);
  EXPECT_EQ(made.config["target_modules"], nlohmann::json({mixer + "in_proj"}));
  EXPECT_EQ(made.config["modules_to_save"],
            nlohmann::json({"backbone.embeddings", mixer + "A_log", mixer + "conv1d",
                            mixer + "dt_bias", mixer + "out_proj", "lm_head"}));
  EXPECT_TRUE(made.tensors.contains("base_model.model." + mixer + "A_log"));
  expect_back(folder);
}

// PEFT loads all that a saved module has, and stops where its counter is missing.
TEST(Extract, BringsABatchNormWithItsCounter) {
  const Folder folder;
  const std::string norm = "encoder.layers.0.conv.norm.", other = "encoder.layers.1.conv.norm.";
  std::map<std::string, Shape> shapes{{"encoder.layers.0.fc.weight", {4, 4}}};
  for (const std::string& each : {norm, other}) {
    for (const char* leaf : {"weight", "bias", "running_mean", "running_var"}) {
      shapes[each + leaf] = {4};
    }
    shapes[each + "num_batches_tracked"] = {};
  }
  write_pair(folder, R"({"architectures": ["CohereAsrModel"]})", shapes,
             [&](const std::string& name) { return name == norm + "weight"; });
  const Made made = extract_pair(folder);
  EXPECT_EQ(made.config["modules_to_save"], nlohmann::json({"encoder.layers.0.conv.norm"}));
  for (const char* leaf : {"bias", "running_mean", "running_var", "num_batches_tracked"}) {
    EXPECT_TRUE(made.tensors.contains("base_model.model." + norm + leaf)) << leaf;
    EXPECT_FALSE(made.tensors.contains("base_model.model." + other + leaf)) << leaf;
  }
  expect_back(folder);
}

// transformers 5 has the experts of these in one parameter, and other names for some.
TEST(Extract, FusesExpertsAsTheLoadedModelDoes) {
  const Folder folder;
  std::map<std::string, Shape> shapes{{"model.layers.0.block_sparse_moe.gate.weight", {3, 6}},
                                      {"model.layers.0.self_attn.q_proj.weight", {6, 6}}};
  for (int e = 0; e < 3; ++e) {
    const std::string expert = fmt::format("model.layers.0.block_sparse_moe.experts.{}.", e);
    shapes[expert + "w1.weight"] = shapes[expert + "w3.weight"] = {5, 6};
    shapes[expert + "w2.weight"] = {6, 5};
  }
  write_pair(folder, R"({"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1})", shapes,
             any);
  const Made made = extract_pair(folder);
  const std::string owner = "base_model.model.model.layers.0.mlp.experts";
  EXPECT_EQ(made.tensors.at(owner + ".base_layer.lora_A.weight").shape, (Shape{24, 6}));
  EXPECT_EQ(made.tensors.at(owner + ".base_layer.lora_B.weight").shape, (Shape{10, 24}));
  EXPECT_EQ(made.tensors.at(owner + ".lora_A.weight").shape, (Shape{24, 5}));
  EXPECT_EQ(
      made.config["target_parameters"],
      nlohmann::json({"model.layers.0.mlp.experts.gate_up_proj",
                      "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.gate.weight"}));
  expect_back(folder);
  // Servers know them by the names of files.
  std::filesystem::remove_all(folder / "out");
  const Made served = extract_pair(folder, "rank: 8\nfor: vllm\n");
  EXPECT_TRUE(served.tensors.contains(
      "base_model.model.model.layers.0.block_sparse_moe.experts.2.w3.lora_A.weight"));
  EXPECT_EQ(served.config["target_parameters"], nlohmann::json());
  for (const auto& [name, tensor] : served.tensors) {
    EXPECT_EQ(name.find(".gate."), std::string::npos) << name;
  }
}

// transformers makes three layers of one of these files, and one of three of those.
TEST(Extract, DividesLayersAsTheLoadedModelDoes) {
  const Folder folder;
  const std::string layer = "nomic_bert.encoder.layers.0.";
  write_pair(folder, R"({"architectures": ["NomicBertForMaskedLM"], "num_hidden_layers": 1})",
             {{layer + "attn.Wqkv.weight", {18, 6}},
              {layer + "mlp.fc11.weight", {5, 6}},
              {layer + "norm1.weight", {6}}},
             any);
  const Made made = extract_pair(folder);
  EXPECT_EQ(made.config["target_modules"],
            nlohmann::json(
                {"nomic_bert.layers.0.mlp.up_proj", "nomic_bert.layers.0.self_attn.k_proj",
                 "nomic_bert.layers.0.self_attn.q_proj", "nomic_bert.layers.0.self_attn.v_proj"}));
  EXPECT_EQ(made.config["modules_to_save"],
            nlohmann::json({"nomic_bert.layers.0.post_attention_layernorm"}));
  expect_back(folder);
}

TEST(Extract, SaysWhatTheLoadedModelHasInOtherTensors) {
  const Folder folder;
  const std::string attention = "model.layers.0.self_attn.";
  std::map<std::string, Shape> shapes{{attention + "q_proj.weight", {6, 6}}};
  for (const char* side : {"q", "k", "v"}) shapes[attention + side + "_conv1d.weight"] = {6, 1, 4};
  write_pair(folder, R"({"architectures": ["KimiLinearForCausalLM"], "num_hidden_layers": 1})",
             shapes, any);
  const auto disk = system_disk();
  const Plan plan = build(*disk,
                          parse(fmt::format("extract: lora\nbase_model: {}\nmodel: {}\nrank: 6\n",
                                            folder / "base", folder / "tuned"),
                                "r.yml", {}),
                          {});
  EXPECT_EQ(plan.jobs.size(), 2U);
  std::string said;
  for (const Problem& problem : plan.problems) said += problem.text;
  EXPECT_NE(said.find(attention + "k_conv1d.weight: transformers loads its elements in another "
                                  "order or tensor"),
            std::string::npos)
      << said;
}

// Two tensors of files that one model ties and the other does not.
TEST(Extract, OfAModelThatTiesItsHeadBringsTheHead) {
  const Folder folder;
  const std::map<std::string, Shape> shapes{{"lm_head.weight", {12, 6}},
                                            {"model.embed_tokens.weight", {12, 6}},
                                            {"model.layers.0.self_attn.q_proj.weight", {6, 6}}};
  write_pair(folder,
             R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
                 "tie_word_embeddings": false})",
             shapes, any);
  auto tied = shapes;
  tied.erase("lm_head.weight");
  const Folder other;
  write_pair(other,
             R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
                 "tie_word_embeddings": true})",
             tied, any);
  std::filesystem::remove_all(folder / "tuned");
  std::filesystem::copy(other / "tuned", folder / "tuned");
  const Made made = extract_pair(folder);
  EXPECT_EQ(made.tensors.at("base_model.model.lm_head.weight").values,
            made.tensors.at("base_model.model.model.embed_tokens.weight").values);
}

TEST(Extract, GivesAllModulesOneRankWhereThatCostsLittle) {
  const Folder folder;
  write_pair(folder, R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1})",
             {{"model.layers.0.mlp.up_proj.weight", {40, 40}},
              {"model.layers.0.self_attn.q_proj.weight", {30, 40}},
              {"model.layers.0.self_attn.k_proj.weight", {3, 5}}},
             any);
  const Made level = extract_pair(folder, "rank: 8\n");
  EXPECT_EQ(level.config["rank_pattern"], nlohmann::json::object());
  EXPECT_EQ(
      level.tensors.at("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight").shape,
      (Shape{8, 5}));
}

TEST(Extract, OfValuesAtEitherEndOfSinglePrecisionIsRightOrAnError) {
  for (const float value : {2.9e38F, -3.3e38F, 1e30F, 1e-36F}) {
    const Folder folder;
    fill_model(folder / "tuned", value);
    const std::string out = folder / "out";
    try {
      for (const auto& [name, tensor] : extracted(folder / "tuned", "rank: 4\n", out)) {
        for (const float x : tensor.values) ASSERT_TRUE(std::isfinite(x)) << name << value;
      }
      const auto wrong = findings(out);
      EXPECT_TRUE(wrong.empty()) << value << wrong.front();
    } catch (const Error& error) {
      EXPECT_EQ(exit_code(error.code()), 3) << value << error.what();
      EXPECT_FALSE(std::filesystem::exists(out));
      EXPECT_GT(std::fabs(value), 3e38F) << error.what();
    }
  }
}

TEST(Extract, OfSmallDifferencesInFloat16IsRightOrAnError) {
  for (const double weight : {1e-2, 1e-4, 1e-7}) {
    const Folder folder;
    const std::string out = folder / "out";
    test::Settings settings;
    settings.plan.dtype = "float32";
    (void)test::run_merge(
        fmt::format(
            "merge_method: passthrough\nmodels: [{{model: {{path: {}, adapters: [{{path: {}, "
            "weight: {}}}]}}}}]\n",
            kBase, test::example("adapters/c-lora"), weight),
        folder / "tuned", settings);
    try {
      (void)extracted(folder / "tuned", "rank: 4\ndtype: float16\nwhole_tensors: skip\n", out);
      const auto wrong = findings(out);
      EXPECT_TRUE(wrong.empty()) << weight << wrong.front();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::range) << error.what();
      EXPECT_NE(std::string(error.what()).find("float16 cannot hold"), std::string::npos);
      EXPECT_FALSE(std::filesystem::exists(out));
      EXPECT_LT(weight, 1e-5) << error.what();
    }
  }
}

// Finite weights whose difference is not, and weights that are not: each with tensor and models,
// whether ranks are given or measured.
TEST(Extract, OfWhatIsNotFiniteNamesTensorAndModels) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const std::string ranks : {"rank: 4\n", "rank: auto\nenergy: 0.9\n", "bytes: 200000\n"}) {
    for (const auto& [base, tuned, words] :
         {std::tuple(-2e38F, 2e38F, "float32 does not hold the difference"),
          std::tuple(1.0F, kInfinity, "/tuned holds inf (element 0)"),
          std::tuple(kInfinity, 1.0F, "/base holds inf (element 0)")}) {
      const Folder folder;
      fill_model(folder / "base", base);
      fill_model(folder / "tuned", tuned);
      try {
        (void)test::run_merge(fmt::format("extract: lora\nbase_model: {}\nmodel: {}\n{}",
                                          folder / "base", folder / "tuned", ranks),
                              folder / "out");
        ADD_FAILURE() << ranks << words;
      } catch (const Error& error) {
        const std::string text = error.what();
        EXPECT_EQ(exit_code(error.code()), 3) << text;
        EXPECT_NE(text.find(words), std::string::npos) << text;
        EXPECT_NE(text.find("proj.weight"), std::string::npos) << text;
      }
    }
  }
}

Plan planned(Disk& disk, const std::string& recipe) {
  return build(disk, parse(recipe, "r.yml", {}), {});
}

std::string open_of(const Plan& plan) {
  std::string all;
  for (const std::string& open : plan.open) all += open + "\n";
  return all;
}

TEST(Extract, IsPlannedFromHeadersAlone) {
  const Folder folder;
  // A head beside the embedding to which the configuration ties it, and what a server leaves out.
  write_pair(folder,
             R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1,
                 "tie_word_embeddings": true})",
             {{"lm_head.weight", {12, 6}},
              {"model.embed_tokens.weight", {12, 6}},
              {"model.layers.0.self_attn.q_proj.weight", {6, 6}},
              {"model.norm.weight", {6}}},
             any);
  for (const std::string ranks : {"rank: 4\n", "rank: auto\nenergy: 0.9\n", "bytes: 20000\n"}) {
    for (const std::string more : {"", "whole_tensors: skip\n", "for: vllm\n"}) {
      test::Watched disk(true);
      const Plan plan = planned(disk, fmt::format("extract: lora\nbase_model: {}\nmodel: {}\n{}{}",
                                                  folder / "base", folder / "tuned", ranks, more));
      for (const Problem& problem : plan.problems) EXPECT_FALSE(problem.fatal) << problem.text;
      EXPECT_FALSE(plan.open.empty());
      const std::string open = open_of(plan);
      EXPECT_EQ(open.find("the ranks of 1 modules") == std::string::npos, ranks == "rank: 4\n")
          << open;
      EXPECT_NE(open.find("whether lm_head.weight of "), std::string::npos) << open;
    }
  }
  // The run finds that the head is one of its own.
  const Made made = extract_pair(folder);
  EXPECT_TRUE(made.tensors.contains("base_model.model.lm_head.weight"));
}

TEST(Extract, SaysHowLargeRanksThatTheRunChoosesMayBe) {
  const auto disk = system_disk();
  const std::string open =
      open_of(planned(*disk, recipe_of(test::example("models/c"), "rank: auto\nenergy: 0.9\n")));
  EXPECT_NE(open.find("the ranks of 14 modules, which the run chooses by energy 0.9, 64 at most"),
            std::string::npos)
      << open;
}

// Decompositions that the ranks were chosen by are written, and hashed as they are read.
TEST(Extract, WithMeasuredRanksReadsTheModelsAsOftenAsWithGivenOnes) {
  std::map<std::string, std::map<std::string, std::uint64_t>> read;
  for (const std::string ranks : {"rank: 3\n", "rank: auto\nenergy: 0.5\n", "bytes: 150000\n"}) {
    const Folder folder;
    test::Watched disk(false);
    test::Settings settings;
    settings.merge.threads = 1;  // two may hash one tensor at once
    (void)test::run_merge(recipe_of(test::example("models/c"), ranks + "whole_tensors: skip\n"),
                          folder / "out", settings, &disk);
    read[ranks] = disk.read();
    EXPECT_EQ(findings(folder / "out"), std::vector<std::string>());
    std::size_t entries = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      ++entries;
    }
    EXPECT_EQ(entries, 1U) << "what the run kept is gone";
  }
  EXPECT_EQ(read["rank: auto\nenergy: 0.5\n"], read["rank: 3\n"]);
  EXPECT_EQ(read["bytes: 150000\n"], read["rank: 3\n"]);
}

// More directions than were kept, because all modules get the largest rank.
TEST(Extract, DecomposesAgainWhereARankWasRaisedBeyondWhatWasKept) {
  const Folder folder;
  const std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> modules{
      {"model.layers.0.self_attn.k_proj", {280, 30}},
      {"model.layers.0.self_attn.q_proj", {300, 40}}};
  for (const bool tuned : {false, true}) {
    std::vector<TensorInfo> infos;
    std::vector<float> values;
    for (const auto& [name, shape] : modules) {
      const auto [side, rank] = shape;
      infos.push_back({name + ".weight", Dtype::f32, {side, side}});
      // Ones on a part of the diagonal, and a little noise elsewhere.
      for (std::uint64_t i = 0; i < side * side; ++i) {
        const bool diagonal = i / side == i % side;
        const float noise = static_cast<float>(i * i % 251) * 1e-5F;
        values.push_back(!tuned ? 0.0F : diagonal && i / side < rank ? 1.0F : noise);
      }
    }
    std::string bytes = print_header(infos, {{"format", "pt"}});
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    const std::string path = folder / (tuned ? "tuned" : "base");
    test::write_file(path + "/model.safetensors", bytes);
    test::write_file(path + "/config.json",
                     R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1})");
  }
  const Made made = extract_pair(folder, "rank: auto\nenergy: 0.96\n");
  const std::string recipe = test::read_file(folder / "out/recipe.yml");
  std::set<std::uint64_t> ranks;
  for (const auto& [name, tensor] : made.tensors) {
    if (name.find("lora_A") != std::string::npos) ranks.insert(tensor.shape[0]);
  }
  EXPECT_EQ(ranks.size(), 1U);
  EXPECT_GT(*ranks.begin(), 32U) << recipe;
  EXPECT_NE(recipe.find("k_proj\": 2"), std::string::npos) << recipe;
}

TEST(Extract, KeepsWhatHasTheNameOfItsOwnFile) {
  const Folder folder;
  const std::string recipe = recipe_of(test::example("models/c"), "rank: auto\nenergy: 0.5\n");
  test::write_file(folder / ".out.ranks", "mine");
  try {
    (void)test::run_merge(recipe, folder / "out");
    ADD_FAILURE() << "a file was replaced";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::usage);
    EXPECT_NE(std::string(error.what()).find(".out.ranks is in the way"), std::string::npos);
  }
  EXPECT_EQ(test::read_file(folder / ".out.ranks"), "mine");
  EXPECT_FALSE(std::filesystem::exists(folder / ".out.partial"));
  test::write_file(folder / ".out.ranks", "");  // as a run that was killed leaves it
  (void)test::run_merge(recipe, folder / "out");
  EXPECT_FALSE(std::filesystem::exists(folder / ".out.ranks"));
}

TEST(Extract, TellsHowFarMeasuringIs) {
  const auto disk = system_disk();
  const auto backend = cpu_backend("");
  for (const std::string ranks : {"rank: 3\n", "rank: auto\nenergy: 0.5\nfor: vllm\n",
                                  "bytes: 200000\n", "bytes: 100000\nfor: llama.cpp\n"}) {
    const Folder folder;
    Plan plan = planned(*disk, recipe_of(test::example("models/c"), ranks));
    Progress last;
    MergeOptions options;
    options.sync = false;
    (void)merge(*disk, *backend, plan, folder / "out", options, [&](const Progress& progress) {
      if (progress.phase != Phase::measure) return;
      EXPECT_GE(progress.bytes_done, last.bytes_done);
      last = progress;
    });
    EXPECT_GT(last.bytes_total, 0U);
    EXPECT_EQ(last.bytes_done, last.bytes_total) << ranks;
    EXPECT_TRUE(plan.open.empty()) << "it is the plan that was written";
  }
}

TEST(Extract, OfAModelThatChangesWhileItIsMeasuredIsAnError) {
  const Folder folder;
  write_pair(folder, R"({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1})",
             {{"model.layers.0.self_attn.q_proj.weight", {6, 6}}}, any);
  const auto disk = system_disk();
  const auto backend = cpu_backend("");
  Plan plan = planned(*disk, fmt::format("extract: lora\nbase_model: {}\nmodel: {}\n"
                                         "rank: auto\nenergy: 0.9\n",
                                         folder / "base", folder / "tuned"));
  const std::string file = folder / "tuned/model.safetensors";
  const auto touch = [&](const Progress& progress) {
    if (progress.phase != Phase::measure || progress.bytes_done == 0) return;
    test::write_file(file, test::read_file(file));
  };
  try {
    (void)merge(*disk, *backend, plan, folder / "out", {}, touch);
    ADD_FAILURE() << "merged";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::io);
    EXPECT_NE(std::string(error.what()).find("changed while it was measured"), std::string::npos)
        << error.what();
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "out"));
  EXPECT_FALSE(std::filesystem::exists(folder / ".out.partial"));
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
  EXPECT_NE(refusal(test::example("models/c"), "").find("give one of 'rank: N'"),
            std::string::npos);
  EXPECT_NE(refusal(test::example("models/c"), "rank: auto\n").find("go together"),
            std::string::npos);
  EXPECT_NE(refusal(kBase, "rank: 4\n").find("nothing to extract"), std::string::npos);
}

}  // namespace
}  // namespace ingot
