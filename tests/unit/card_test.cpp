// The model card: what it takes over from the cards of the inputs, and what it says was done.
#include <gtest/gtest.h>

#include <algorithm>

#include "ingot/plan.hpp"
#include "model.hpp"
#include "plan/card.hpp"
#include "plan/metadata.hpp"

namespace ingot {
namespace {

using test::llama;
using test::llama_config;
using test::write_file;
using test::write_model;

class CardTest : public ::testing::Test {
 protected:
  CardTest() {
    for (const char* name : {"a", "b", "hub/models--org--c/snapshots/0123456"}) {
      write_model(folder_ / name, llama(2), llama_config(2));
    }
    write_file(folder_ / "hub/models--org--c/refs/main", "0123456");
    setenv("HF_HUB_CACHE", (folder_ / "hub").c_str(), 1);
  }
  Plan plan(const std::string& text, PlanOptions options = {}) const {
    const auto disk = system_disk();
    options.root = folder_.path();
    return build(*disk, parse(text, "recipe.yml", {}), options);
  }
  static std::string card(const Plan& plan) {
    for (const Companion& file : plan.companions) {
      if (file.name == "README.md") return file.text;
    }
    return "";
  }
  static std::string head(const std::string& card) {
    return card.substr(0, card.find("\n---\n", 4) + 5);
  }
  // Cards of a and b with these headers.
  void say(const std::string& a, const std::string& b) const {
    write_file(folder_ / "a/README.md", "---\n" + a + "---\ntext");
    write_file(folder_ / "b/README.md", "---\n" + b + "---\n");
  }

  test::Folder folder_;
  const std::string linear_ =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: b\n";
};

TEST_F(CardTest, TakesOverWhatTheInputsAgreeOn) {
  say("license: apache-2.0\nlanguage:\n- en\n- no\npipeline_tag: text-generation\n"
      "tags: [chat, \"two words\", only-a]\nlibrary_name: transformers\nmodel-index: [{x: 1}]\n",
      "license: [apache-2.0]\nlanguage: de\ntags:\n- two words\n- chat\n");
  const Plan p = plan(linear_);
  ASSERT_TRUE(p.sound());
  EXPECT_TRUE(p.problems.empty());
  EXPECT_EQ(head(card(p)),
            "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"no\"\n- de\n"
            "pipeline_tag: text-generation\nlibrary_name: transformers\n"
            "tags:\n- ingot\n- merge\n- chat\n- \"two words\"\n---\n");
}

TEST_F(CardTest, DifferentLicencesAndTasksAreSaidAndWarnedOf) {
  say("license: other\nlicense_name: mine\npipeline_tag: text-generation\n",
      "license: mit\npipeline_tag: fill-mask\n");
  const Plan p = plan(linear_);
  ASSERT_TRUE(p.sound());
  EXPECT_EQ(p.problems.size(), 2U);
  const std::string text = card(p);
  EXPECT_NE(text.find("license: other\nlicense_name: several\npipeline_tag: text-generation\n"),
            std::string::npos);
  EXPECT_NE(text.find("| a | other (mine) |\n| b | mit |\n"), std::string::npos);
  EXPECT_NE(text.find("b has fill-mask"), std::string::npos);
}

TEST_F(CardTest, AModelWithoutLicenceIsNamedWhereOthersHaveOne) {
  say("license: mit\n", "language: en\n");
  EXPECT_NE(card(plan(linear_)).find("\nNo licence is given by the card of b.\n"),
            std::string::npos);
  say("", "");
  EXPECT_EQ(card(plan(linear_)).find("licence"), std::string::npos);
}

TEST_F(CardTest, HostileHeadersBecomeWordsOrNothing) {
  const std::string clean = head(card(plan(linear_)));
  for (const char* header :
       {"license: \"mit\\n---\\n# gone\"\n", "license: \"\xE2\x80\xAE\"\n", "license: {a: b}\n",
        "tags: [[a]]\n", "license: &a [*a]\n", "license: \"", "\t\n", "- a\n", "license: ''\n"}) {
    say(header, "");
    const Plan p = plan(linear_);
    ASSERT_TRUE(p.sound()) << header;
    EXPECT_EQ(head(card(p)), clean) << header;
  }
  say("tags: ['a: b', '# x', '- y', '\"q\\']\n", "");
  EXPECT_NE(card(plan(linear_)).find("- \"a: b\"\n- \"# x\"\n- \"- y\"\n- \"\\\"q\\\\\"\n---\n"),
            std::string::npos);
  say("license: " + std::string(200, 'x') + "\n", "license: mit\n");
  EXPECT_NE(card(plan(linear_)).find("license: mit\n"), std::string::npos);
  write_file(folder_ / "a/README.md", "---\n" + std::string(70'000, '#') + "\n---\n");
  const Plan p = plan(linear_);
  ASSERT_EQ(p.problems.size(), 1U);
  EXPECT_FALSE(p.problems[0].fatal);
}

TEST_F(CardTest, NamesOfTheHubAreBasesAndFoldersAreNot) {
  const std::string text = card(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: org/c\n"));
  EXPECT_TRUE(text.starts_with("---\nbase_model:\n- org/c\nbase_model_relation: merge\n"));
  EXPECT_EQ(card(plan(linear_)).find("base_model"), std::string::npos);
  const std::string path = "hub/models--org--c/snapshots/0123456";
  EXPECT_TRUE(
      card(plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: " +
                path + "\n"))
          .starts_with("---\nbase_model:\n- org/c\n"));
}

TEST_F(CardTest, SaysWhatWasDoneAndHowToDoItAgain) {
  PlanOptions options;
  options.title = "My `model`";
  options.dtype = "float32";
  options.seed = 7;
  const std::string ties =
      "merge_method: dare_ties\nbase_model: a\nmodels:\n- model: b\n  parameters: {weight: [0.1, "
      "0.88], density: 0.5}\n";
  const std::string text = card(plan(ties, options));
  EXPECT_NE(text.find("\n# My \\`model\\`\n"), std::string::npos);
  EXPECT_NE(text.find("`dare_ties`"), std::string::npos);
  EXPECT_NE(text.find("| b | merged | 0.1 to 0.88 | 0.5 |\n| a | base |  |  |\n"),
            std::string::npos);
  EXPECT_NE(text.find("ingot merge recipe.yml 'My `model`' --seed 7 --dtype float32 --root DIR\n"),
            std::string::npos);
  EXPECT_NE(text.find("`rescale` true"), std::string::npos);
  // The seed stands in the receipt only where something is drawn.
  EXPECT_EQ(card(plan(linear_, options)).find("--seed"), std::string::npos);
}

TEST_F(CardTest, YamlStringsAreStringsToEveryReader) {
  for (const char* plain : {"apache-2.0", "en", "org/name", "text-generation"}) {
    EXPECT_EQ(plan::yaml_string(plain), plain);
  }
  for (const char* other :
       {"no", "Yes", "null", "~", "1.0", "", "a b", "-", "a:b", ".inf", "NaN"}) {
    EXPECT_EQ(plan::yaml_string(other), "\"" + std::string(other) + "\"");
  }
}

}  // namespace
}  // namespace ingot
