// Roles of tensors and modules, by name and by the table of families.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "plan/roles.hpp"
#include "plan/ties.hpp"

namespace ingot::plan {
namespace {

const Shape kMatrix = {10, 4};
const Shape kVector = {4};

TEST(Roles, FamiliesAreFoundUnderEveryHead) {
  for (const char* name : {"LlamaForCausalLM", "LLaMaForCausalLM", "LlamaModel",
                           "LlamaForSequenceClassification", "Qwen2ForCausalLM"}) {
    ASSERT_NE(family(name), nullptr) << name;
    EXPECT_EQ(family(name)->stack, "model.layers") << name;
  }
  EXPECT_EQ(family("GPT2LMHeadModel")->layers, "n_layer");
  EXPECT_EQ(family("BertForMaskedLM")->prefix, "bert.");
  EXPECT_EQ(family("T5ForConditionalGeneration")->embedding, "shared.weight");
  EXPECT_EQ(family("Llam"), nullptr);
  EXPECT_EQ(family("ForCausalLM"), nullptr);
  EXPECT_EQ(family(""), nullptr);
}

TEST(Roles, VocabularyIsKnownByNameAlone) {
  for (const char* name :
       {"model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight",
        "transformer.word_embeddings.weight", "model.tok_embeddings.weight", "shared.weight",
        "bert.embeddings.word_embeddings.weight", "backbone.embeddings.weight",
        "model.language_model.embed_tokens.weight"}) {
    EXPECT_EQ(role(name, kMatrix, nullptr), Role::embedding) << name;
    EXPECT_FALSE(trailing(name, Role::embedding)) << name;
  }
  for (const char* name : {"lm_head.weight", "embed_out.weight", "output.weight",
                           "transformer.output_layer.weight", "vocab_projector.weight",
                           "cls.predictions.decoder.weight", "language_model.lm_head.weight"}) {
    EXPECT_EQ(role(name, kMatrix, nullptr), Role::head) << name;
    EXPECT_TRUE(trailing(name, Role::head)) << name;
  }
  for (const char* name : {"lm_head.bias", "cls.predictions.bias", "vocab_projector.bias"}) {
    EXPECT_EQ(role(name, kVector, nullptr), Role::head_bias) << name;
  }
  EXPECT_EQ(role("transformer.wpe.weight", kMatrix, nullptr), Role::other);
  EXPECT_EQ(role("bert.embeddings.position_embeddings.weight", kMatrix, nullptr), Role::other);
  EXPECT_EQ(role("lm_head.weight", kVector, family("LlamaForCausalLM")), Role::other);
}

TEST(Roles, NamesWithinLayersAreNoEnds) {
  for (const char* name :
       {"prophetnet.encoder.layers.0.feed_forward.output.weight",
        "led.encoder.layers.1.self_attn.output.weight",
        "model.encoder.layers.0.self_attn.output.weight", "rwkv.blocks.0.attention.output.weight",
        "model.layers.3.embed_tokens.weight"}) {
    EXPECT_EQ(role(name, kMatrix, nullptr), Role::other) << name;
  }
  EXPECT_EQ(role("rwkv.blocks.0.attention.output.bias", kVector, nullptr), Role::bias);
}

TEST(Roles, EndsOfAClassAreKnownByItsTable) {
  struct Row {
    const char *architecture, *embedding, *head, *vector;
  };
  for (const auto& [architecture, embedding, head, vector] :
       {Row{"XLNetLMHeadModel", "transformer.word_embedding.weight", "lm_loss.weight",
            "lm_loss.bias"},
        Row{"FlaubertWithLMHeadModel", "transformer.embeddings.weight", "pred_layer.proj.weight",
            "pred_layer.proj.bias"},
        Row{"RwkvForCausalLM", "rwkv.embeddings.weight", "head.weight", nullptr},
        Row{"ElectraForMaskedLM", "electra.embeddings.word_embeddings.weight",
            "generator_lm_head.weight", "generator_lm_head.bias"},
        Row{"BartForConditionalGeneration", "model.shared.weight", "lm_head.weight",
            "final_logits_bias"}}) {
    SCOPED_TRACE(architecture);
    const Ties ends = ties(
        architecture, [](const std::string&) { return true; }, nullptr);
    EXPECT_EQ(role(embedding, kMatrix, nullptr, &ends), Role::embedding);
    EXPECT_EQ(role(head, kMatrix, nullptr, &ends), Role::head);
    if (vector != nullptr) {
      EXPECT_EQ(role(vector, kVector, nullptr, &ends), Role::head_bias);
    }
  }
  // A class that is not listed has the ends of one whose embedding its checkpoint has.
  const auto has = [](const std::string& name) {
    return name == "bert.embeddings.word_embeddings.weight" || name == "cls.predictions.bias";
  };
  const Ties ends = ties("OwnForMaskedLM", has, nullptr);
  EXPECT_EQ(ends.head, "cls.predictions.decoder.weight");
  EXPECT_EQ(ends.tying, Tying::unknown);
}

TEST(Roles, BuffersAndBiasesMayBeMissing) {
  EXPECT_EQ(layer_role("self_attn.rotary_emb.inv_freq", kVector), Role::buffer);
  EXPECT_EQ(layer_role("attention.masked_bias", Shape{}), Role::buffer);
  EXPECT_EQ(layer_role("attn.bias", Shape{1, 1, 8, 8}), Role::buffer);
  EXPECT_EQ(layer_role("attn.bias", kVector), Role::bias);
  EXPECT_EQ(layer_role("self_attn.q_norm.weight", kVector), Role::other);
  EXPECT_EQ(role("bert.embeddings.position_ids", Shape{1, 512}, nullptr), Role::buffer);
}

TEST(Roles, WhatFollowsTheLayersIsToldByName) {
  for (const char* name :
       {"model.norm.weight", "transformer.ln_f.bias", "gpt_neox.final_layer_norm.weight",
        "score.weight", "classifier.dense.weight", "bert.pooler.dense.weight",
        "backbone.norm_f.weight", "model.final_layernorm.weight"}) {
    EXPECT_TRUE(trailing(name, Role::other)) << name;
  }
  for (const char* name :
       {"transformer.wpe.weight", "bert.embeddings.LayerNorm.weight", "model.embedding_norm.weight",
        "transformer.word_embeddings_layernorm.weight", "model.rotary.x"}) {
    EXPECT_FALSE(trailing(name, Role::other)) << name;
  }
}

TEST(Roles, ModulesAreToldByTheirMostTellingComponent) {
  const std::vector<std::vector<std::string>> cases = {
      {"model.layers.0.mlp.w", "text_decoder"},
      {"model.visual.blocks.0.attn.w", "vision_tower"},
      {"model.visual.merger.mlp.0.weight", "multi_modal_projector"},
      {"vision_tower.vision_model.encoder.layers.0.w", "vision_tower"},
      {"multi_modal_projector.linear_1.weight", "multi_modal_projector"},
      {"audio_tower.layers.0.w", "audio_tower"},
  };
  for (const auto& c : cases) EXPECT_EQ(module(c[0], false), c[1]) << c[0];
  EXPECT_EQ(module("model.encoder.layers.0.w", true), "encoder");
  EXPECT_EQ(module("decoder.block.0.w", true), "decoder");
  EXPECT_EQ(module("lm_head.weight", true), "shared");
  EXPECT_EQ(module("bert.encoder.layer.0.w", false), "text_decoder");
}

}  // namespace
}  // namespace ingot::plan
