// Files of the output beside its weights.
#include <gtest/gtest.h>

#include <algorithm>

#include "ingot/plan.hpp"
#include "model.hpp"
#include "plan/folder.hpp"

namespace ingot {
namespace {

using test::llama;
using test::llama_config;
using test::write_file;
using test::write_model;

class FolderTest : public ::testing::Test {
 protected:
  FolderTest() {
    write_model(folder_ / "a", llama(2),
                llama_config(2, ", \"layer_types\": [\"full\", \"sliding\"]"));
    write_model(folder_ / "b", llama(2), llama_config(2));
  }
  Plan plan(const std::string& text, PlanOptions options = {}) const {
    const auto disk = system_disk();
    options.root = folder_.path();
    return build(*disk, parse(text, "recipe.yml", {}), options);
  }
  static const Companion* find(const Plan& plan, const std::string& name) {
    const auto it = std::find_if(plan.companions.begin(), plan.companions.end(),
                                 [&](const Companion& c) { return c.name == name; });
    return it == plan.companions.end() ? nullptr : &*it;
  }

  test::Folder folder_;
  const std::string linear_ =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: b\n";
};

TEST_F(FolderTest, DonorsFilesComeAlongButNotItsWeightsNorItsStory) {
  for (const char* name :
       {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
        "merges.txt", "preprocessor_config.json", "modeling_own.py", "LICENSE", "tokenizer.model",
        "chat_template.jinja", "special_tokens_map.json"}) {
    write_file(folder_ / ("a/" + std::string(name)), "{}");
    EXPECT_EQ(plan::fate(name), plan::Fate::taken) << name;
  }
  for (const char* name :
       {"README.md", ".gitattributes", "model.gguf", "pytorch_model.bin", "tf_model.h5",
        "optimizer.pt", "trainer_state.json", "training_args.bin", "ingot.json", "recipe.yml",
        "mergekit_config.yml", "pytorch_model.bin.index.json", "figure.png", "rng_state_0.pth",
        "events.out.tfevents.1", "flax_model.msgpack"}) {
    write_file(folder_ / ("a/" + std::string(name)), "old");
    EXPECT_EQ(plan::fate(name), plan::Fate::passed_over) << name;
  }
  for (const char* name : {"id_rsa", "server.pem", "credentials.json", "train.yaml", "notes.txt",
                           "tokenizer.bak", "x_config.json"}) {
    write_file(folder_ / ("a/" + std::string(name)), "secret");
    EXPECT_EQ(plan::fate(name), plan::Fate::unknown) << name;
  }
  const Plan p = plan(linear_);
  ASSERT_TRUE(p.sound());
  EXPECT_EQ(p.companions.size(), 11 + 3U);  // config, card, recipe
  EXPECT_EQ(find(p, "LICENSE")->from, p.models[0].checkpoint.path() + "/LICENSE");
  EXPECT_EQ(find(p, "recipe.yml")->text, linear_);
  PlanOptions options;
  options.copy_tokenizer = false;
  options.model_card = false;
  const Plan bare = plan(linear_, options);
  EXPECT_EQ(find(bare, "tokenizer.json"), nullptr);
  EXPECT_EQ(find(bare, "merges.txt"), nullptr);
  EXPECT_EQ(find(bare, "README.md"), nullptr);
  EXPECT_NE(find(bare, "preprocessor_config.json"), nullptr);
}

TEST_F(FolderTest, ChatTemplateOfTheRecipeReplacesTheDonors) {
  write_file(folder_ / "a/tokenizer_config.json", "{\"chat_template\": \"old\", \"x\": 1}");
  write_file(folder_ / "a/chat_template.jinja", "old");
  const Plan p = plan(linear_ + "chat_template: \"{{ messages }} and more text\"\n");
  ASSERT_TRUE(p.sound());
  EXPECT_EQ(find(p, "chat_template.jinja")->text, "{{ messages }} and more text");
  EXPECT_EQ(find(p, "tokenizer_config.json")->text,
            "{\"chat_template\": \"{{ messages }} and more text\", \"x\": 1}");
  EXPECT_EQ(find(plan(linear_), "chat_template.jinja")->text, "");
}

TEST_F(FolderTest, AChatTemplateWithoutTokenizerIsAWarning) {
  PlanOptions options;
  options.copy_tokenizer = false;
  const Plan p = plan(linear_ + "chat_template: chatml\n", options);
  ASSERT_TRUE(p.sound());
  ASSERT_EQ(p.problems.size(), 1U);
  EXPECT_EQ(p.problems[0].text,
            "recipe.yml:6:16: chat_template goes with a tokenizer, and none is copied");
}

TEST_F(FolderTest, ConfigTellsWhatIsWritten) {
  const Plan p = plan(
      "merge_method: passthrough\ndtype: float16\nslices:\n- sources: [{model: a, layer_range: [1, "
      "2]}]\n"
      "- sources: [{model: a, layer_range: [0, 2]}]\n");
  ASSERT_TRUE(p.sound());
  EXPECT_EQ(
      find(p, "config.json")->text,
      "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"num_hidden_layers\": 3,\n  "
      "\"tie_word_embeddings\": false,\n  \"vocab_size\": 10,\n  \"layer_types\": [\n    "
      "\"sliding\",\n    "
      "\"full\",\n    \"sliding\"\n  ],\n  \"dtype\": \"float16\"\n}\n");
}

TEST_F(FolderTest, ConfigFollowsHeadAndVocabulary) {
  test::Tensors tied = llama(2, Dtype::bf16, 12);
  tied.pop_back();
  write_model(folder_ / "tied", tied,
              "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 2, "
              "\"tie_word_embeddings\": true, \"vocab_size\": 12, \"dtype\": \"bfloat16\"}");
  PlanOptions options;
  options.truncate_embeddings = true;
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: tied\n- model: a\n",
           options);
  ASSERT_TRUE(p.sound());
  EXPECT_EQ(
      find(p, "config.json")->text,
      "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"num_hidden_layers\": 2,\n  "
      "\"tie_word_embeddings\": false,\n  \"vocab_size\": 10,\n  \"dtype\": \"bfloat16\"\n}\n");
}

TEST_F(FolderTest, CardQuotesWhatItCannotTrust) {
  const Plan p = plan("# ``` in a recipe\n" + linear_);
  const std::string& text = find(p, "README.md")->text;
  EXPECT_TRUE(text.starts_with("---\nlibrary_name: transformers\ntags:\n- ingot\n- merge\n---\n"));
  EXPECT_NE(text.find("````yaml\n# ``` in a recipe\n"), std::string::npos);
  EXPECT_NE(text.find("| a | merged |"), std::string::npos);
  EXPECT_NE(text.find("`linear`"), std::string::npos);
}

TEST_F(FolderTest, ShardsBringAnIndex) {
  PlanOptions options;
  options.shard_bytes = 100;
  const Plan p = plan(linear_, options);
  ASSERT_TRUE(p.sound());
  EXPECT_NE(find(p, "model.safetensors.index.json"), nullptr);
  EXPECT_EQ(find(plan(linear_), "model.safetensors.index.json"), nullptr);
}

}  // namespace
}  // namespace ingot
