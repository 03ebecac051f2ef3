// config.json: what is read from it, and the output's copy.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "plan/config.hpp"

namespace ingot::plan {
namespace {

std::string edited(const Config& config, Edits edits, Problems* problems = nullptr) {
  Problems own;
  edits.shown = std::string("m");
  if (edits.dtype.empty()) edits.dtype = std::string("bfloat16");
  return config.edited(edits, problems != nullptr ? *problems : own);
}

TEST(Config, WhatIsNotEditedKeepsItsOrderAndItsNumbers) {
  const std::string text =
      "{\n  \"z\": 1e-06,\n  \"a\": 1000000.0,\n  \"big\": 123456789012345678,\n  \"limit\": [\n   "
      " 0.0,\n    "
      "Infinity\n  ],\n  \"nan\": NaN,\n  \"low\": -Infinity,\n  \"said\": \"NaN, "
      "\\\"Infinity\\\"\",\n  "
      "\"none\": null,\n  \"empty\": [],\n  \"dtype\": \"bfloat16\"\n}\n";
  EXPECT_EQ(edited(Config(text, "m"), {}), text);
  const std::string letters = "{\n  \"name\": \"h\xc3\xa9\",\n  \"dtype\": \"bfloat16\"\n}\n";
  EXPECT_EQ(edited(Config(letters, "m"), {}), letters);
  const std::string escaped =
      "{\n  \"name\": \"h\\u00e9\",\n  \"x\": NaN,\n  \"dtype\": \"bfloat16\"\n}\n";
  EXPECT_EQ(edited(Config(escaped, "m"), {}), escaped);
}

TEST(Config, TypeGoesWhereTheDonorHasIt) {
  Edits edits;
  edits.dtype = "float16";
  EXPECT_EQ(edited(Config("{\"torch_dtype\": \"bfloat16\"}", "m"), edits),
            "{\n  \"torch_dtype\": \"float16\"\n}\n");
  EXPECT_EQ(edited(Config("{\"dtype\": \"x\", \"torch_dtype\": \"x\"}", "m"), edits),
            "{\n  \"dtype\": \"float16\",\n  \"torch_dtype\": \"float16\"\n}\n");
  EXPECT_EQ(edited(Config("{}", "m"), edits), "{\n  \"dtype\": \"float16\"\n}\n");
  const Config nested("{\"dtype\": \"x\", \"text_config\": {\"dtype\": \"y\"}}", "m");
  EXPECT_NE(edited(nested, edits).find("\"dtype\": \"y\""), std::string::npos);
  edits.uniform = true;
  EXPECT_EQ(edited(nested, edits).find("\"dtype\": \"y\""), std::string::npos);
}

TEST(Config, PerLayerListsFollowTheLayers) {
  const std::vector<Config> models = {
      Config(
          "{\"text_config\": {\"num_hidden_layers\": 3, \"layer_types\": [\"a0\", \"a1\", \"a2\"], "
          "\"eos_token_id\": [1, 2, 3], \"pattern\": 1, \"hybrid_override_pattern\": \"xyz\"}}",
          "m"),
      Config("{\"text_config\": {\"num_hidden_layers\": 2, \"layer_types\": [\"b0\", \"b1\"], "
             "\"hybrid_override_pattern\": \"uv\"}}",
             "n")};
  Edits edits;
  edits.models = models;
  edits.stacks.push_back(
      {{"text_config", "num_hidden_layers"}, 3, {{0, 0}, {0, 2}, {1, 1}, {1, 1}}});
  const auto out = nlohmann::json::parse(edited(models[0], edits));
  EXPECT_EQ(out["text_config"]["num_hidden_layers"], 4);
  EXPECT_EQ(out["text_config"]["layer_types"], nlohmann::json({"a0", "a2", "b1", "b1"}));
  EXPECT_EQ(out["text_config"]["eos_token_id"], nlohmann::json({1, 2, 3}));
  EXPECT_EQ(out["text_config"]["hybrid_override_pattern"], "xzvv");
}

TEST(Config, ListsThatCannotFollowAreWarnedOf) {
  const std::vector<Config> models = {
      Config("{\"n_layer\": 2, \"mlp_only_layers\": [1], \"kinds\": [1, 2]}", "m"),
      Config("{\"n_layer\": 9}", "n")};
  Edits edits;
  edits.models = models;
  edits.stacks.push_back({{"", "n_layer"}, 2, {{0, 0}, {1, 8}}});
  Problems problems;
  const auto out = nlohmann::json::parse(edited(models[0], edits, &problems));
  EXPECT_EQ(out["n_layer"], 2);
  EXPECT_EQ(out["kinds"], nlohmann::json({1, 2}));
  ASSERT_EQ(problems.finish().size(), 2U);
  EXPECT_FALSE(problems.fatal());
}

TEST(Config, VocabularyAndTiesAreSetWhereTheTextModelHasThem) {
  Edits edits;
  edits.text = {"text_config", ""};
  edits.vocabulary = 12;
  edits.tied = false;
  const Config config(
      "{\"vocab_size\": 9, \"text_config\": {\"vocab_size\": 10, \"tie_word_embeddings\": "
      "true}, \"vision_config\": {\"vocab_size\": 7}}",
      "m");
  const auto out = nlohmann::json::parse(edited(config, edits));
  EXPECT_EQ(out["vocab_size"], 12);
  EXPECT_EQ(out["text_config"]["vocab_size"], 12);
  EXPECT_EQ(out["text_config"]["tie_word_embeddings"], false);
  EXPECT_EQ(out["vision_config"]["vocab_size"], 7);
}

TEST(Config, LayerCountIsTheKeyThatAgreesWithTheWeights) {
  const Config config(
      "{\"num_hidden_layers\": 7, \"num_layers\": 5, \"vision_config\": {\"depth\": 3}, "
      "\"encoder_layers\": 2}",
      "m");
  EXPECT_EQ(config.layers("default", nullptr, 5)->place.key, "num_layers");
  EXPECT_EQ(config.layers("default", nullptr, 9)->place.key, "num_hidden_layers");
  EXPECT_EQ(config.layers("vision_tower", nullptr, 3)->place.object, "vision_config");
  EXPECT_EQ(config.layers("encoder", nullptr, 2)->place.key, "encoder_layers");
  EXPECT_FALSE(Config("{}", "m").layers("default", nullptr, 1).has_value());
}

TEST(Config, QuantisationIsFoundWhereverItStands) {
  EXPECT_EQ(Config("{\"quantization_config\": {\"quant_method\": \"fp8\"}}", "m").quantised(),
            "fp8");
  EXPECT_EQ(Config("{\"text_config\": {\"compression_config\": {}}}", "m").quantised(),
            "compression_config");
  EXPECT_EQ(Config("{\"quantization_config\": null}", "m").quantised(), "");
}

}  // namespace
}  // namespace ingot::plan
