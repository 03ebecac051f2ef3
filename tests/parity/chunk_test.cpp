// Tensors of several chunks and of every kind, in every lodging: the same bytes, and a proof of
// each.
#include <gtest/gtest.h>

#include "ingot/math/codec.hpp"
#include "merging.hpp"
#include "store/header.hpp"

namespace ingot::test {
namespace {

using Bf16 = math::Codec<math::Format::bf16>;
using F16 = math::Codec<math::Format::f16>;

// A model whose big tensor has three chunks; fine-tunes differ from the base in most elements.
void write_mixed(const std::string& folder, std::uint64_t model) {
  const std::vector<TensorInfo> tensors = {
      {"buffer", Dtype::f64, {3}},
      {"model.layers.0.position_ids", Dtype::i64, {4}},
      {"model.embed.f32", Dtype::f32, {700, 100}},
      {"model.layers.0.big.weight", Dtype::bf16, {1500, 1500}},
      {"model.layers.0.empty.weight", Dtype::bf16, {0, 8}},
      {"model.layers.0.mid.weight", model == 2 ? Dtype::f16 : Dtype::bf16, {300, 301}},
      {"model.layers.0.small.weight", Dtype::bf16, {5}},
  };
  std::string data;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    Random base(t + 1), tune(100 * model + t);
    const auto put = [&](const auto& word) {
      data.append(reinterpret_cast<const char*>(&word), sizeof word);
    };
    for (std::uint64_t i = 0; i < tensors[t].count(); ++i) {
      const float x = static_cast<float>(base.uniform() - 0.5) * 0.04F;
      const float update = model == 0 ? 0.0F : static_cast<float>(tune.uniform() - 0.5) * 0.002F;
      switch (tensors[t].dtype) {
        case Dtype::f64:
          put(0.5);
          break;
        case Dtype::i64:
          put(i);
          break;
        case Dtype::f32:
          put(x + update);
          break;
        case Dtype::f16:
          put(F16::encode(x + update, {}));
          break;
        default:
          put(Bf16::encode(x + update, {}));
      }
    }
  }
  write_file(folder + "/model.safetensors", print_header(tensors, {{"format", "pt"}}) + data);
  write_file(folder + "/config.json",
             R"({"architectures": ["StrangeModel"], "num_hidden_layers": 1, "dtype": "bfloat16"})");
}

const std::map<std::string, std::string>& mixed_recipes() {
  static const std::map<std::string, std::string> all = {
      {"linear",
       "models: [{model: ./a, parameters: {weight: 0.7}}, {model: ./b, parameters: {weight: "
       "0.4}}]\n"
       "merge_method: linear\n"},
      {"slerp",
       "models: [{model: ./a}, {model: ./b}]\nmerge_method: slerp\nbase_model: ./a\n"
       "parameters: {t: 0.3}\ndtype: bfloat16\n"},
      {"ties",
       "models: [{model: ./a, parameters: {weight: 0.7, density: 0.3}}, "
       "{model: ./b, parameters: {weight: -0.4, density: 0.8}}]\n"
       "merge_method: ties\nbase_model: ./base\nparameters: {rescale: true}\n"},
      {"dare_ties",
       "models: [{model: ./a, parameters: {weight: 0.7, density: 0.3}}, "
       "{model: ./b, parameters: {weight: 0.4, density: 0.8}}]\n"
       "merge_method: dare_ties\nbase_model: ./base\ndtype: bfloat16\n"},
      {"task_arithmetic",
       "models: [{model: ./a, parameters: {weight: 0.7}}]\n"
       "merge_method: task_arithmetic\nbase_model: ./base\ndtype: float16\n"},
  };
  return all;
}

class Chunks : public testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<Folder>();
    for (const auto& [name, model] : {std::pair("base", 0), std::pair("a", 1), std::pair("b", 2)}) {
      write_mixed(*folder_ / name, static_cast<std::uint64_t>(model));
    }
  }
  static void TearDownTestSuite() { folder_.reset(); }

  static std::unique_ptr<Folder> folder_;
  Guard guard_;
};

std::unique_ptr<Folder> Chunks::folder_;

TEST_P(Chunks, EveryLodgingGivesTheSameBytesAndTheyAreProved) {
  const std::string& recipe = mixed_recipes().at(GetParam());
  std::map<std::string, std::string> expected;
  int run = 0;
  const auto merge_with = [&](MergeOptions::Storage storage, std::uint64_t memory, int threads) {
    Settings settings;
    settings.plan.root = folder_->path();
    settings.merge.storage = storage;
    settings.merge.memory = memory;
    settings.merge.threads = threads;
    const std::string out = *folder_ / (GetParam() + std::to_string(run++));
    run_merge(recipe, out, settings);
    const auto found = fingerprint(out);
    if (expected.empty()) expected = found;
    EXPECT_EQ(found, expected) << "storage " << static_cast<int>(storage) << ", memory " << memory;
    return out;
  };
  using Storage = MergeOptions::Storage;
  constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;
  // Room for one chunk of each operand, not for the tensor: it is read again for every pass.
  constexpr std::uint64_t kLittle = std::uint64_t{66} << 20;
  const std::string out = merge_with(Storage::mapped, kPlenty, 2);
  merge_with(Storage::direct, kPlenty, 2);
  merge_with(Storage::direct, kLittle, 1);
  merge_with(Storage::buffered, kPlenty, 3);
  merge_with(Storage::automatic, kLittle, 1);

  VerifyOptions options;
  options.root = folder_->path();
  options.all = true;
  const auto disk = system_disk();
  const Verdicts verdicts = verify(*disk, out, options);
  for (const Finding& finding : verdicts.findings) ADD_FAILURE() << finding.text;
  EXPECT_GT(verdicts.recomputed, 2'250'000U);
}

INSTANTIATE_TEST_SUITE_P(Methods, Chunks, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& [name, text] : mixed_recipes()) names.push_back(name);
                           return names;
                         }()),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace ingot::test
