// config.json and tensor names from untrusted folders: an Error or a plan, never anything else.
#include <gtest/gtest.h>

#include <chrono>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/plan.hpp"
#include "model.hpp"
#include "plan/config.hpp"
#include "plan/values.hpp"

namespace ingot {
namespace {

using test::llama;
using test::llama_config;
using test::write_model;

// Reads and prints a config; true if it was accepted.
bool survives(const std::string& text) {
  try {
    const plan::Config config(text, "m");
    if (!config.present()) return true;
    plan::Problems problems;
    plan::Edits edits;
    edits.dtype = "bfloat16";
    edits.shown = "m";
    const std::vector<plan::Config> models = {config};
    edits.models = models;
    for (const char* module : {"default", "vision_tower", "encoder", "audio_tower"}) {
      if (const auto count = config.layers(module, nullptr, 2)) {
        plan::Restacked stack;
        stack.count = count->place;
        stack.old_count = count->value;
        stack.order.layers = {{0, 0}, {0, 1'000'000}};
        edits.stacks.push_back(std::move(stack));
      }
    }
    static_cast<void>(config.architecture());
    static_cast<void>(config.quantised());
    static_cast<void>(config.tied());
    edits.ahead = {true, 3, 0};
    const plan::Config out(config.edited(edits, problems), "out");
    plan::compare_values(config, out, {"text_config", "num_layers"}, "m", "out", problems);
    return true;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::format) << e.what();
    return false;
  }
}

TEST(HostileConfig, EveryPrefixIsAnErrorOrAConfig) {
  const std::string text = llama_config(2, ", \"x\": [NaN, -Infinity, \"\\\"\", {\"y\": null}]");
  EXPECT_TRUE(survives(text));
  for (std::size_t n = 1; n + 2 < text.size(); ++n) EXPECT_FALSE(survives(text.substr(0, n))) << n;
}

TEST(HostileConfig, AnyByteMayBeWrong) {
  const std::string text = llama_config(2, ", \"text_config\": {\"num_layers\": 2, \"l\": [1, 2]}");
  test::Random random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::string bad = text;
    for (int k = 0; k < 3; ++k)
      bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    survives(bad);
  }
}

TEST(HostileConfig, ValuesOfTheWrongKindAreIgnored) {
  for (const char* value : {"null", "true", "-1", "1.5", "1e400", "18446744073709551616", "\"2\"",
                            "[]", "{}", "[2]", "18446744073709551615"}) {
    for (const char* key : {"architectures", "num_hidden_layers", "text_config", "vision_config",
                            "dtype", "quantization_config", "tie_word_embeddings", "vocab_size"}) {
      survives(fmt::format("{{\"{}\": {}}}", key, value));
    }
  }
  EXPECT_FALSE(survives("[]"));
  EXPECT_FALSE(survives("1"));
}

TEST(HostileConfig, DepthSizeAndKeysAreBounded) {
  std::string deep = "{\"a\": ";
  for (int i = 0; i < 100'000; ++i) deep += "[";
  EXPECT_FALSE(survives(deep));
  std::string many = "{";
  for (int i = 0; i < 200'000; ++i) many += fmt::format("\"{}\": 0, ", i);
  EXPECT_FALSE(survives(many + "\"z\": 0}"));
  EXPECT_FALSE(survives("{\"a\": \"" + std::string(20'000'000, 'x') + "\"}"));
  EXPECT_FALSE(survives(std::string("{}\0{}", 5)));
  EXPECT_FALSE(survives("{\"a\": \"\xff\"}"));
}

TEST(HostileConfig, AConfigThatLiesIsAProblemOfThePlan) {
  const test::Folder folder;
  const auto disk = system_disk();
  const auto plan = [&](const std::string& config) {
    write_model(folder / "m", llama(2), config);
    PlanOptions options;
    options.root = folder.path();
    return build(*disk, parse("merge_method: passthrough\nmodels:\n- model: m\n", "r.yml", {}),
                 options);
  };
  EXPECT_FALSE(plan("{").sound());
  EXPECT_TRUE(plan(llama_config(1'000'000)).sound());  // a warning: the weights hold two
  EXPECT_TRUE(plan("").sound());
}

TEST(HostileNames, StrangeLayerNumbersCostNothing) {
  test::Tensors tensors;
  for (const char* number :
       {"0", "99999", "100000", "18446744073709551616", "007", "-1", "1e3", ""}) {
    tensors.push_back({fmt::format("model.layers.{}.w", number), Dtype::bf16, {2}});
  }
  for (int i = 0; i < 20'000; ++i) {
    tensors.push_back({fmt::format("s{}.layers.{}.w", i, 99'999 - i), Dtype::bf16, {1}});
  }
  const test::Folder folder;
  const auto disk = system_disk();
  for (const char* name : {"a", "b"}) write_model(folder / name, tensors, llama_config(2));
  PlanOptions options;
  options.root = folder.path();
  const Plan plan =
      build(*disk,
            parse("merge_method: linear\nparameters: {weight: [1, 2]}\nmodels:\n- model: a\n"
                  "- model: b\n",
                  "r.yml", {}),
            options);
  EXPECT_TRUE(plan.sound());
  EXPECT_EQ(plan.jobs.size(), tensors.size());
}

}  // namespace
}  // namespace ingot
