// config.json: what is read from it, and the output's copy.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include "plan/config.hpp"
#include "plan/values.hpp"

namespace ingot::plan {
namespace {

std::string edited(const Config& config, Edits edits, Problems* problems = nullptr) {
  Problems own;
  edits.shown = std::string("m");
  if (edits.dtype.empty()) edits.dtype = std::string("bfloat16");
  return config.edited(edits, problems != nullptr ? *problems : own);
}

Restacked stack(Place count, std::uint64_t old_count, std::vector<Origin> layers) {
  Restacked out;
  out.count = std::move(count);
  out.old_count = old_count;
  out.order.layers = std::move(layers);
  return out;
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
      stack({"text_config", "num_hidden_layers"}, 3, {{0, 0}, {0, 2}, {1, 1}, {1, 1}}));
  const auto out = nlohmann::json::parse(edited(models[0], edits));
  EXPECT_EQ(out["text_config"]["num_hidden_layers"], 4);
  EXPECT_EQ(out["text_config"]["layer_types"], nlohmann::json({"a0", "a2", "b1", "b1"}));
  EXPECT_EQ(out["text_config"]["eos_token_id"], nlohmann::json({1, 2, 3}));
  EXPECT_EQ(out["text_config"]["hybrid_override_pattern"], "xzvv");
}

// A config with `keys` beside "model_type" and the layer count, and the output's of the layers.
nlohmann::json stacked(const std::string& keys, const std::vector<std::string>& others,
                       std::uint64_t count, std::vector<Origin> layers, Problems& problems,
                       bool allow = false) {
  std::vector<Config> models;
  models.emplace_back(keys, "m");
  for (const std::string& other : others) models.emplace_back(other, "n");
  Edits edits;
  edits.models = models;
  edits.allow_mismatch = allow;
  edits.stacks.push_back(stack({"", "num_hidden_layers"}, count, std::move(layers)));
  return nlohmann::json::parse(edited(models[0], edits, &problems));
}

std::string texts(const Problems& problems) {
  std::string out;
  for (const Problem& p : problems.finish()) out += p.text + "\n";
  return out;
}

using Origins = std::vector<Origin>;
const Origins kStack = {{0, 0}, {0, 1}, {0, 2}, {0, 1}, {0, 2}, {0, 3}};  // 0 to 3, then 1 to 4
const Origins kTwice = {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 3}};          // the last twice

TEST(Layers, WhatIsSaidByLayerMovesWithTheLayers) {
  Problems problems;
  const auto out = stacked(
      R"({"model_type": "x", "num_hidden_layers": 4, "intermediate_size": [10, 11, 12, 13],
          "per_layer_config": {"0": {"a": 1}, "3": {"b": 2}}, "hybrid_override_pattern": "wxyz",
          "mlp_only_layers": [0, 2], "moe_layers_enum": "1,3", "time_step_limit": [1, 2, 3, 4],
          "eos_token_id": [1, 2, 3, 4], "linear_attn_config": {"kda_layers": [1, 3],
          "full_attn_layers": [2, 4]}, "block_types": ["r", "a"]})",
      {}, 4, kStack, problems);
  const char* cycle = R"({"num_hidden_layers": 4, "block_types": ["r", "a"]})";
  EXPECT_EQ(out["intermediate_size"], nlohmann::json({10, 11, 12, 11, 12, 13}));
  EXPECT_EQ(out["per_layer_config"], nlohmann::json::parse(R"({"0": {"a": 1}, "5": {"b": 2}})"));
  EXPECT_EQ(out["hybrid_override_pattern"], "wxyxyz");
  EXPECT_EQ(out["mlp_only_layers"], nlohmann::json({0, 2, 4}));
  EXPECT_EQ(out["moe_layers_enum"], "1,3,5");
  EXPECT_EQ(out["time_step_limit"], nlohmann::json({1, 2, 3, 4}));
  EXPECT_EQ(out["eos_token_id"], nlohmann::json({1, 2, 3, 4}));
  EXPECT_EQ(out["linear_attn_config"]["kda_layers"], nlohmann::json({1, 3, 5}));
  EXPECT_EQ(out["linear_attn_config"]["full_attn_layers"], nlohmann::json({2, 4, 6}));
  EXPECT_EQ(out["block_types"], nlohmann::json({"r", "a"}));
  EXPECT_EQ(stacked(cycle, {}, 4, kTwice, problems)["block_types"],
            nlohmann::json({"r", "a", "r", "a", "a"}));
  EXPECT_EQ(texts(problems), "");
}

TEST(Layers, CountsAndPeriodsSayTheNewOrderOrAreErrors) {
  const std::string deep = R"({"model_type": "deepseek_v3", "num_hidden_layers": 4,
                               "first_k_dense_replace": 1})";
  Problems fine;
  EXPECT_EQ(stacked(deep, {}, 4, {{0, 0}, {0, 0}, {0, 1}}, fine)["first_k_dense_replace"], 2);
  EXPECT_EQ(stacked(deep, {}, 4, {{0, 1}, {0, 3}}, fine)["first_k_dense_replace"], 0);
  EXPECT_EQ(stacked(deep, {}, 4, kStack, fine)["first_k_dense_replace"], 1);
  EXPECT_EQ(texts(fine), "");
  Problems bad;
  stacked(deep, {}, 4, {{0, 0}, {0, 1}, {0, 0}}, bad);
  EXPECT_TRUE(bad.fatal());
  EXPECT_NE(texts(bad).find("'first_k_dense_replace' cannot say that layers 1"), std::string::npos)
      << texts(bad);
  EXPECT_NE(texts(bad).find("--allow-layer-mismatch"), std::string::npos);
  Problems waived;
  stacked(deep, {}, 4, {{0, 0}, {0, 1}, {0, 0}}, waived, true);
  EXPECT_FALSE(waived.fatal());
  EXPECT_EQ(waived.finish().size(), 1U);

  const std::string jamba = R"({"model_type": "jamba", "num_hidden_layers": 4,
      "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4,
      "expert_layer_offset": 3})";
  Problems none;
  const auto out = stacked(jamba, {}, 4, {{0, 1}, {0, 2}, {0, 3}, {0, 0}}, none);
  EXPECT_EQ(out["attn_layer_offset"], 0);
  EXPECT_EQ(out["expert_layer_offset"], 2);
  EXPECT_EQ(texts(none), "");
  Problems jumbled;
  stacked(jamba, {}, 4, kTwice, jumbled);
  EXPECT_TRUE(jumbled.fatal());

  Problems sparse;
  const auto moe = stacked(R"({"model_type": "qwen2_moe", "num_hidden_layers": 4,
                               "num_experts": 2, "decoder_sparse_step": 2})",
                           {}, 4, kTwice, sparse);
  EXPECT_EQ(moe["decoder_sparse_step"], 1);
  EXPECT_EQ(moe["mlp_only_layers"], nlohmann::json({0, 2}));
  EXPECT_EQ(texts(sparse), "");
}

TEST(Layers, ThoseThatComputeWithTheirNumberStayAtTheirPlace) {
  for (const char* text : {R"({"model_type": "diffllama", "num_hidden_layers": 4})",
                           R"({"model_type": "gpt2", "n_layer": 4, "num_hidden_layers": 4,
            "scale_attn_by_inverse_layer_idx": true})"}) {
    Problems fine;
    stacked(text, {}, 4, {{0, 0}, {0, 1}}, fine);
    EXPECT_EQ(texts(fine), "");
    Problems bad;
    stacked(text, {}, 4, {{0, 0}, {0, 2}}, bad);
    EXPECT_TRUE(bad.fatal());
    EXPECT_NE(texts(bad).find("layer 1 of the output, which was layer 2"), std::string::npos)
        << texts(bad);
  }
}

TEST(Layers, KeysThatCountTheSameLayersAgree) {
  Problems fine;
  const auto out = stacked(R"({"model_type": "xlstm", "num_hidden_layers": 4, "num_blocks": 4})",
                           {}, 4, {{0, 0}, {0, 1}}, fine);
  EXPECT_EQ(out["num_blocks"], 2);
}

TEST(Layers, KindsThatTheClassMakesUpAreWrittenWhereTheOrderChangesThem) {
  const std::string gemma = R"({"model_type": "gemma2", "num_hidden_layers": 4})";
  Problems problems;
  EXPECT_EQ(stacked(gemma, {}, 4, {{0, 0}, {0, 2}, {0, 3}}, problems)["layer_types"],
            nlohmann::json({"sliding_attention", "sliding_attention", "full_attention"}));
  EXPECT_FALSE(stacked(gemma, {}, 4, {{0, 0}, {0, 3}}, problems).contains("layer_types"));
  const auto llama = stacked(R"({"model_type": "llama4_text", "num_hidden_layers": 4,
                                 "interleave_moe_layer_step": 2})",
                             {}, 4, kTwice, problems);
  EXPECT_EQ(llama["no_rope_layers"], nlohmann::json({1, 1, 1, 0, 0}));
  EXPECT_EQ(llama["moe_layers"], nlohmann::json({1, 3, 4}));
  const auto neo = stacked(R"({"model_type": "gpt_neo", "num_hidden_layers": 4,
                               "attention_types": [[["global", "local"], 2]]})",
                           {}, 4, {{0, 1}, {0, 1}, {0, 2}}, problems);
  EXPECT_EQ(neo["attention_types"],
            nlohmann::json::parse(R"([[["local", "local", "global"], 1]])"));
  EXPECT_EQ(texts(problems), "");
  // A class that takes the last layer for one of full attention where none else is.
  const std::string olmo = R"({"model_type": "olmo_hybrid", "num_hidden_layers": 4})";
  EXPECT_EQ(stacked(olmo, {}, 4, {{0, 0}, {0, 1}}, problems)["layer_types"],
            nlohmann::json({"linear_attention", "linear_attention"}));
  EXPECT_FALSE(stacked(olmo, {}, 4, {{0, 2}, {0, 3}}, problems).contains("layer_types"));
  EXPECT_EQ(texts(problems), "");
  // Gates: a class that slides no window has no sliding layers.
  EXPECT_FALSE(stacked(R"({"model_type": "qwen3", "num_hidden_layers": 4, "max_window_layers": 2,
                           "use_sliding_window": false})",
                       {}, 4, kStack, problems)
                   .contains("layer_types"));
  EXPECT_EQ(texts(problems), "");
}

TEST(Layers, LayersBeyondTheDonorsDepthAreOfTheirOwnKind) {
  Problems problems;
  const auto out = stacked(R"({"model_type": "gemma3_text", "num_hidden_layers": 2,
                               "sliding_window_pattern": 2})",
                           {R"({"model_type": "gemma3_text", "num_hidden_layers": 4,
                                "sliding_window_pattern": 3})"},
                           2, {{0, 0}, {0, 1}, {1, 2}, {1, 3}}, problems);
  EXPECT_EQ(out["layer_types"], nlohmann::json({"sliding_attention", "full_attention",
                                                "full_attention", "sliding_attention"}));
  EXPECT_EQ(texts(problems), "");
}

TEST(Layers, ExtraLayersAreCountedAsTheOutputHasThem) {
  const std::vector<Config> models = {
      Config(R"({"num_hidden_layers": 2, "num_nextn_predict_layers": 1})", "m"),
      Config(R"({"num_hidden_layers": 2, "num_nextn_predict_layers": 3})", "other")};
  const auto count = [&](Ahead ahead, Problems& problems) {
    Edits edits;
    edits.models = models;
    edits.names = {"m", "other"};
    edits.ahead = ahead;
    return nlohmann::json::parse(edited(models[0], edits, &problems))["num_nextn_predict_layers"];
  };
  Problems quiet, problems;
  EXPECT_EQ(count({}, quiet), 1);  // nothing is known of such layers
  EXPECT_EQ(count({true, 1, 0}, quiet), 1);
  EXPECT_EQ(texts(quiet), "");
  EXPECT_EQ(count({true, 0, std::nullopt}, problems), 0);
  EXPECT_EQ(count({true, 3, 1}, problems), 3);
  EXPECT_NE(texts(problems).find("the output has no layers for multi-token prediction"),
            std::string::npos);
  EXPECT_NE(texts(problems).find("the output has the layers of other"), std::string::npos);
}

TEST(Layers, ExtraLayersAreCountedWhereverConfigsCountThem) {
  const std::vector<Config> models = {
      Config(R"({"num_mtp_layers": 0, "text_config": {"num_hidden_layers": 2},
                 "mtp_config": {"num_nextn_predict_layers": 0}})",
             "m"),
      Config(R"({"num_hidden_layers": 2, "mtp_num_hidden_layers": 2, "mtp_layer_types": ["a", "b"],
                 "num_nextn_predict_layers": null})",
             "other")};
  Edits edits;
  edits.models = models;
  edits.names = {"m", "other"};
  edits.text = {"text_config", "num_hidden_layers"};
  edits.ahead = {true, 2, 1};
  const auto out = nlohmann::json::parse(edited(models[0], edits));
  EXPECT_EQ(out["text_config"]["mtp_num_hidden_layers"], 2);
  EXPECT_EQ(out["text_config"]["mtp_layer_types"], nlohmann::json({"a", "b"}));
  EXPECT_FALSE(out["text_config"].contains("num_nextn_predict_layers"));
  EXPECT_EQ(out["num_mtp_layers"], 2);
  EXPECT_EQ(out["mtp_config"]["num_nextn_predict_layers"], 2);
}

TEST(Layers, WhatIsNotKnownIsWarnedOfWhateverElseIs) {
  Problems problems;
  const auto out = stacked(
      R"({"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"], "odd_layers": [1, 3],
          "odd_words": ["p", "q", "r", "s"], "odd_map": {"0": 1, "2": 5}, "odd_block_period": 3,
          "inner": {"odd_layer_ids": [1]}})",
      {}, 4, {{0, 3}, {0, 2}}, problems);
  EXPECT_EQ(out["layer_types"], nlohmann::json({"d", "c"}));
  EXPECT_EQ(out["odd_words"], nlohmann::json({"s", "r"}));
  EXPECT_EQ(out["odd_map"], nlohmann::json::parse(R"({"1": 5})"));
  EXPECT_EQ(out["odd_layers"], nlohmann::json({1, 3}));
  const std::string said = texts(problems);
  for (const char* key : {"'odd_layers'", "'odd_words'", "'odd_map'", "'odd_block_period'",
                          "'inner.odd_layer_ids'"}) {
    EXPECT_NE(said.find(key), std::string::npos) << key << "\n" << said;
  }
  EXPECT_FALSE(problems.fatal());
}

TEST(Layers, TensorsThatOnlyTheirPlaceExplainsHaveToStayThere) {
  const std::vector<Config> models = {Config(R"({"num_hidden_layers": 3})", "m")};
  std::vector<std::uint32_t> donor = {1, 0, 0};
  const auto fits = [&](Origins layers, std::vector<std::uint32_t> sets) {
    Edits edits;
    edits.models = models;
    edits.stacks.push_back(stack({"", "num_hidden_layers"}, 3, std::move(layers)));
    edits.stacks[0].order.sets = std::move(sets);
    edits.stacks[0].order.donor_sets = donor;
    edits.stacks[0].order.members = {{"b"}, {"a", "b"}};
    Problems problems;
    (void)edited(models[0], edits, &problems);
    return !problems.fatal();
  };
  EXPECT_TRUE(fits({{0, 0}, {0, 2}, {0, 1}, {0, 2}}, {1, 0, 0, 0}));
  EXPECT_FALSE(fits({{0, 1}, {0, 2}}, {0, 0}));
  EXPECT_FALSE(fits({{0, 0}, {0, 1}, {0, 0}}, {1, 0, 1}));
  donor = {0, 0, 1};
  EXPECT_TRUE(fits({{0, 0}, {0, 1}, {0, 0}, {0, 2}}, {0, 0, 0, 1}));
  EXPECT_FALSE(fits({{0, 0}, {0, 2}, {0, 1}}, {0, 1, 0}));
}

TEST(Layers, WhatTheClassTakesForGrantedHasToHold) {
  const auto gemma = [](const std::string& more, Origins layers) {
    Problems problems;
    stacked(R"({"model_type": "gemma4_text", "num_hidden_layers": 4, "layer_types":
               ["sliding_attention", "full_attention", "sliding_attention", "full_attention"])" +
                more + "}",
            {}, 4, std::move(layers), problems);
    return texts(problems);
  };
  // The last layer is one of full attention.
  EXPECT_EQ(gemma("", {{0, 0}, {0, 1}, {0, 3}}), "");
  EXPECT_NE(gemma("", {{0, 0}, {0, 1}, {0, 2}}).find("in their last layer"), std::string::npos);
  // Layers without keys and values of their own stand last, behind one of their kind.
  const std::string shared = ", \"num_kv_shared_layers\": 2";
  EXPECT_EQ(gemma(shared, {{0, 0}, {0, 1}, {0, 1}, {0, 2}, {0, 3}}), "");
  EXPECT_NE(gemma(shared, {{0, 0}, {0, 1}, {0, 3}, {0, 1}}).find("'num_kv_shared_layers' cannot"),
            std::string::npos);
  EXPECT_NE(gemma(shared, {{0, 1}, {0, 2}, {0, 3}}).find("layer 1 of the output takes its keys"),
            std::string::npos);
}

TEST(Layers, KeysThatTheClassDoesNotReadDecideNothingAndFollowWhereTheyCan) {
  const auto lite = [](int dense, Origins layers, Problems& problems) {
    return stacked(R"({"model_type": "glm4_moe_lite", "num_hidden_layers": 4,
                       "first_k_dense_replace": )" +
                       std::to_string(dense) + "}",
                   {}, 4, std::move(layers), problems);
  };
  Problems fine;
  const auto twice = lite(1, {{0, 0}, {0, 0}, {0, 1}}, fine);
  EXPECT_EQ(twice["mlp_layer_types"], nlohmann::json({"dense", "dense", "sparse"}));
  EXPECT_EQ(twice["first_k_dense_replace"], 2);
  const auto odd = lite(3, {{0, 1}, {0, 2}, {0, 0}}, fine);  // as wrong as it was
  EXPECT_EQ(odd["mlp_layer_types"], nlohmann::json({"sparse", "sparse", "dense"}));
  EXPECT_EQ(odd["first_k_dense_replace"], 3);
  EXPECT_EQ(texts(fine), "");
  Problems warned;
  lite(1, {{0, 1}, {0, 2}, {0, 0}}, warned);
  EXPECT_FALSE(warned.fatal());
  EXPECT_NE(texts(warned).find("'first_k_dense_replace' cannot give"), std::string::npos)
      << texts(warned);
}

TEST(Layers, SharedIndicesNeedALayerThatHasOne) {
  for (
      const char* text :
      {R"({"model_type": "hy_v4", "num_hidden_layers": 8})",
       R"({"model_type": "glm_moe_dsa", "num_hidden_layers": 8, "index_topk_freq": 4})",
       R"({"model_type": "glm_moe_dsa", "num_hidden_layers": 8, "index_topk_pattern": "FFSSSFSS"})"}) {
    Problems fine, bad, waived;
    stacked(text, {}, 8, {{0, 1}, {0, 2}, {0, 6}}, fine);
    EXPECT_EQ(texts(fine), "");
    stacked(text, {}, 8, {{0, 2}, {0, 6}}, bad);
    EXPECT_TRUE(bad.fatal());
    EXPECT_NE(texts(bad).find("layer 0 of the output takes its choice of tokens"),
              std::string::npos)
        << texts(bad);
    stacked(text, {}, 8, {{0, 2}, {0, 6}}, waived, true);
    EXPECT_FALSE(waived.fatal());
  }
  // Linear attention passes no choice on.
  const std::string linear = R"({"model_type": "glm5_next_text", "num_hidden_layers": 4,
      "layer_types": ["linear_attention", "indexed_attention", "linear_attention",
                      "indexed_attention"],
      "indexer_types": ["full", "full", "full", "shared"]})";
  Problems problems;
  stacked(linear, {}, 4, {{0, 1}, {0, 2}, {0, 3}}, problems);
  EXPECT_NE(texts(problems).find("layer 2 of the output"), std::string::npos) << texts(problems);
}

TEST(Layers, ModelsThatSayDifferentKindsOfALayerAreWarnedOf) {
  const Config a(R"({"model_type": "gemma2", "num_hidden_layers": 4})", "a");
  const Config b(R"({"model_type": "gemma2", "num_hidden_layers": 4, "layer_types":
      ["sliding_attention", "full_attention", "full_attention", "full_attention"]})",
                 "b");
  const Place count = {"", "num_hidden_layers"};
  Problems problems;
  compare_layers(a.account(count, 4, "a"), a.account(count, 4, "a"), 4, problems);
  EXPECT_EQ(texts(problems), "");
  compare_layers(a.account(count, 4, "a"), b.account(count, 4, "b"), 4, problems);
  EXPECT_NE(texts(problems).find("layer 2 is sliding_attention in a and full_attention in b"),
            std::string::npos)
      << texts(problems);
}

TEST(Layers, NestedObjectsAndDoubledKeysFollow) {
  const std::vector<Config> models = {
      Config(R"({"num_hidden_layers": 2, "layer_types": ["a", "b"], "thinker_config":
          {"text_config": {"num_hidden_layers": 2, "layer_types": ["a", "b"]}}})",
             "m")};
  EXPECT_EQ(models[0].layers("default", nullptr, 2)->place.object, "thinker_config.text_config");
  Edits edits;
  edits.models = models;
  edits.stacks.push_back(
      stack({"thinker_config.text_config", "num_hidden_layers"}, 2, {{0, 1}, {0, 1}, {0, 0}}));
  const auto out = nlohmann::json::parse(edited(models[0], edits));
  for (const auto& object : {out, out["thinker_config"]["text_config"]}) {
    EXPECT_EQ(object["num_hidden_layers"], 3);
    EXPECT_EQ(object["layer_types"], nlohmann::json({"b", "b", "a"}));
  }
}

// What is said of two models, as configs of the wild have it.
std::string differences(const std::string& a, const std::string& b, const Place& text = {}) {
  Problems problems;
  compare_values(Config(a, "a"), Config(b, "b"), text, "a", "b", problems);
  EXPECT_LE(problems.finish().size(), 1U);
  return texts(problems);
}

TEST(Values, TunesOfABaseDifferInNothingThatCounts) {
  // Qwen2.5 and its instruct form; Llama 3.1 saved by two releases; Mistral and a tune.
  EXPECT_EQ(differences(R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
      "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 3584,
      "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 131072,
      "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
      "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
      "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
      "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
      "use_mrope": false, "use_sliding_window": false, "vocab_size": 152064})",
                        R"({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
      "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
      "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
      "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
      "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
      "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": false,
      "torch_dtype": "float16", "transformers_version": "4.43.1", "use_cache": false,
      "use_sliding_window": false, "vocab_size": 151936, "unsloth_version": "2024.9"})"),
            "");
  EXPECT_EQ(differences(R"({"rope_theta": 500000.0, "rope_scaling": {"factor": 8.0,
      "low_freq_factor": 1.0, "rope_type": "llama3"}, "pad_token_id": null, "pretraining_tp": 1,
      "attention_bias": false, "mlp_bias": false, "head_dim": 128, "max_position_embeddings": 131072,
      "num_attention_heads": 32, "torch_dtype": "bfloat16"})",
                        R"({"rope_parameters": {"rope_theta": 500000, "factor": 8.0,
      "low_freq_factor": 1.0, "rope_type": "llama3"}, "pad_token_id": 128004, "dtype": "float32",
      "head_dim": null, "max_position_embeddings": 8192, "num_attention_heads": 32,
      "_name_or_path": "here", "_attn_implementation_autoset": true, "use_cache": false})"),
            "");
  EXPECT_EQ(differences(R"({"rope_theta": 10000.0, "rope_scaling": null, "sliding_window": 4096})",
                        R"({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
                            "sliding_window": 4096, "attention_dropout": 0.1})"),
            "");
}

TEST(Values, WhatGivesWeightsAnotherMeaningIsOneWarning) {
  const std::string math = differences(
      R"({"rope_theta": 1000000.0, "max_position_embeddings": 32768, "rms_norm_eps": 1e-06,
          "hidden_act": "silu", "num_attention_heads": 8, "head_dim": 64, "scoring_func": "softmax"})",
      R"({"rope_theta": 10000.0, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
          "hidden_act": "gelu", "num_attention_heads": 4, "head_dim": 128, "scoring_func": "sigmoid"})");
  EXPECT_NE(math.find("rms_norm_eps (1e-06 and 1e-05), rope_theta (1000000.0 and 10000.0)"),
            std::string::npos)
      << math;
  EXPECT_NE(math.find("head_dim (64 and 128), hidden_act"), std::string::npos) << math;
  EXPECT_NE(math.find("and 1 more; the output has the values of a"), std::string::npos) << math;
  // Room for positions counts with rotation.
  EXPECT_NE(differences(R"({"rope_theta": 1.0, "max_position_embeddings": 8})",
                        R"({"rope_theta": 2.0, "max_position_embeddings": 4})")
                .find("max_position_embeddings (8 and 4)"),
            std::string::npos);
  // Null is no window, and no scaling.
  EXPECT_NE(differences(R"({"sliding_window": 4096})", R"({"sliding_window": null})")
                .find("sliding_window (4096 and null)"),
            std::string::npos);
  EXPECT_NE(differences(R"({"rope_theta": 1e4, "rope_scaling": null})",
                        R"({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}})")
                .find("rope_type (\"default\" and \"yarn\")"),
            std::string::npos);
  // The text's object, and objects about the same layers.
  EXPECT_NE(differences(R"({"text_config": {"num_hidden_layers": 2, "num_experts_per_tok": 2}})",
                        R"({"num_hidden_layers": 2, "num_experts_per_tok": 4})",
                        {"text_config", "num_hidden_layers"})
                .find("num_experts_per_tok (2 and 4)"),
            std::string::npos);
  EXPECT_NE(
      differences(R"({"attn_config": {"alibi": true}})", R"({"attn_config": {"alibi": false}})")
          .find("attn_config.alibi"),
      std::string::npos);
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

TEST(Config, OtherKeysForTheVocabularyFollowItsOldNumber) {
  Edits edits;
  edits.vocabulary = 12;
  edits.old_vocabulary = 10;
  const auto keys = [&](const char* text) {
    return nlohmann::json::parse(edited(Config(text, "m"), edits));
  };
  auto out = keys(R"({"vocab_size": 10, "decoder_vocab_size": 10, "type_vocab_size": 10})");
  EXPECT_EQ(out["vocab_size"], 12);
  EXPECT_EQ(out["decoder_vocab_size"], 12);
  EXPECT_EQ(out["type_vocab_size"], 10);
  out = keys(R"({"src_vocab_size": 9, "tgt_vocab_size": 10})");
  EXPECT_EQ(out["src_vocab_size"], 9);
  EXPECT_EQ(out["tgt_vocab_size"], 12);
  EXPECT_FALSE(out.contains("vocab_size"));
  out = keys(
      R"({"vocab_size": 10, "decoder_vocab_size": 10, "share_encoder_decoder_embeddings": false})");
  EXPECT_EQ(out["vocab_size"], 12);
  EXPECT_EQ(out["decoder_vocab_size"], 10);
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
