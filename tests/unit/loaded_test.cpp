// Names of tensors in files and in loaded models.
#include <gtest/gtest.h>

#include "plan/loaded.hpp"

namespace ingot::plan {
namespace {

struct Case {
  const char *architecture, *file, *loaded;
};

constexpr Case kCases[] = {
    {"LlavaForConditionalGeneration", "language_model.model.layers.0.mlp.up_proj.weight",
     "model.language_model.layers.0.mlp.up_proj.weight"},
    {"LlavaForConditionalGeneration", "language_model.lm_head.weight", "lm_head.weight"},
    {"PaliGemmaForConditionalGeneration",
     "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
     "model.vision_tower.encoder.layers.0.mlp.fc1.weight"},
    {"Gemma3ForConditionalGeneration", "model.vision_tower.vision_model.post_layernorm.weight",
     "model.vision_tower.post_layernorm.weight"},
    {"Gemma3ForCausalLM", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"},
    {"LlavaNextForConditionalGeneration", "image_newline", "model.image_newline"},
    {"Qwen2_5_VLForConditionalGeneration", "model.layers.1.self_attn.q_proj.bias",
     "model.language_model.layers.1.self_attn.q_proj.bias"},
    {"Qwen2_5_VLForConditionalGeneration", "visual.blocks.0.attn.qkv.weight",
     "model.visual.blocks.0.attn.qkv.weight"},
    {"Qwen2VLForConditionalGeneration", "lm_head.weight", "lm_head.weight"},
    {"Qwen2ForCausalLM", "model.layers.1.self_attn.q_proj.bias",
     "model.layers.1.self_attn.q_proj.bias"},
    {"GPTNeoXForCausalLM", "embed_out.weight", "lm_head.weight"},
    {"NemotronHForCausalLM", "backbone.layers.3.mixer.experts.2.up_proj.weight",
     "model.layers.3.mixer.experts.2.up_proj.weight"},
    {"GraniteMoeForCausalLM", "model.layers.0.block_sparse_moe.input_linear.weight",
     "model.layers.0.block_sparse_moe.experts.gate_up_proj"},
    {"MixtralForCausalLM", "model.layers.0.block_sparse_moe.experts.7.w1.weight",
     "model.layers.0.mlp.experts.7.w1.weight"},
    {"PhimoeForCausalLM", "model.layers.0.block_sparse_moe.gate.weight",
     "model.layers.0.mlp.router.weight"},
    {"AriaForConditionalGeneration", "language_model.model.layers.0.mlp.experts.fc1.weight",
     "model.language_model.layers.0.mlp.experts.gate_up_proj"},
    {"ViTForImageClassification", "vit.encoder.layer.0.attention.attention.query.weight",
     "vit.layers.0.attention.q_proj.weight"},
    {"ViTForImageClassification", "vit.encoder.layer.0.attention.output.dense.bias",
     "vit.layers.0.attention.o_proj.bias"},
    {"ViTForImageClassification", "vit.encoder.layer.0.output.dense.bias",
     "vit.layers.0.mlp.fc2.bias"},
    {"KimiLinearForCausalLM", "model.layers.1.block_sparse_moe.experts.2.w1.weight",
     "model.layers.1.mlp.experts.2.w1.weight"},
    {"KimiLinearForCausalLM", "model.layers.0.self_attn.f_a_proj.weight",
     "model.layers.0.self_attn.forget_gate.f_a_proj.weight"},
    {"KimiLinearForCausalLM", "model.layers.0.self_attn.A_log",
     "model.layers.0.self_attn.forget_gate.A_log"},
    {"HYV3ForCausalLM", "model.layers.1.mlp.router.gate.weight", "model.layers.1.mlp.gate.weight"},
    {"HYV3ForCausalLM", "model.layers.1.mlp.shared_mlp.up_proj.weight",
     "model.layers.1.mlp.shared_experts.up_proj.weight"},
    {"HYV3ForCausalLM", "model.layers.1.mlp.expert_bias",
     "model.layers.1.mlp.e_score_correction_bias"},
    {"LagunaForCausalLM", "model.layers.1.mlp.experts.e_score_correction_bias",
     "model.layers.1.mlp.gate.e_score_correction_bias"},
    {"OlmoHybridForCausalLM", "model.layers.1.attention_layer_norm.weight",
     "model.layers.1.input_layernorm.weight"},
    {"NomicBertForMaskedLM", "nomic_bert.encoder.layers.0.mlp.fc12.weight",
     "nomic_bert.layers.0.mlp.gate_proj.weight"},
    {"NomicBertModel", "emb_ln.bias", "embeddings.LayerNorm.bias"},
    {"JinaEmbeddingsV3ForMaskedLM", "roberta.encoder.layers.0.mixer.out_proj.weight",
     "roberta.layers.0.self_attn.o_proj.weight"},
    {"GteForMaskedLM", "new.encoder.layer.3.attn_ln.weight",
     "gte.layers.3.post_attention_layernorm.weight"},
    {"GteForMaskedLM", "lm_head.norm.bias", "lm_head.layer_norm.bias"},
    {"MllamaForConditionalGeneration", "vision_model.transformer.layers.0.mlp.fc1.weight",
     "model.vision_model.transformer.layers.0.mlp.fc1.weight"},
    {"BertForMaskedLM", "bert.encoder.layer.0.output.dense.bias",
     "bert.encoder.layer.0.output.dense.bias"},
    {"SwinForImageClassification",
     "swin.encoder.layers.0.blocks.1.attention.self.relative_position_bias_table",
     "swin.encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_"
     "table"},
    // Numbers keep their order among other words.
    {"SegformerForImageClassification", "segformer.encoder.block.2.1.attention.self.query.weight",
     "segformer.stages.2.blocks.1.attention.q_proj.weight"},
    {"SegformerForSemanticSegmentation", "segformer.encoder.layer_norm.3.weight",
     "segformer.stages.3.layer_norm.weight"},
    {"DetrForObjectDetection", "model.decoder.layers.1.encoder_attn.out_proj.weight",
     "model.decoder.layers.1.encoder_attn.o_proj.weight"},
    {"DetrForObjectDetection", "model.encoder.layers.10.fc2.weight",
     "model.encoder.layers.10.mlp.fc2.weight"},
    {"MimiModel", "encoder_transformer.layers.0.self_attn.q_proj.weight",
     "encoder.encoder_transformer.layers.0.self_attn.q_proj.weight"},
    {"Molmo2ForConditionalGeneration", "model.transformer.blocks.3.self_attn.attn_out.weight",
     "model.language_model.layers.3.self_attn.o_proj.weight"},
    {"DeepseekV4ForCausalLM", "layers.2.attn.wq_a.weight",
     "model.layers.2.self_attn.q_a_proj.weight"},
    {"InklingForConditionalGeneration", "model.llm.layers.1.attn.wq_du.weight",
     "model.language_model.layers.1.self_attn.q_proj.weight"},
    // A number that tells one layer from another: literal.
    {"Kimi_K25ForConditionalGeneration", "mm_projector.proj.2.weight",
     "model.mm_projector.out_proj.weight"},
    // What is frequent is a rule for names that the smallest model does not have.
    {"BailingHybridForCausalLM", "model.layers.7.attention.kv_a_proj_with_mqa.weight",
     "model.layers.7.self_attn.kv_a_proj_with_mqa.weight"},
    {"AXK2ForCausalLM", "model.layers.1.self_attn.q_b_proj.weight",
     "model.layers.1.self_attn.q_gate_proj.weight"},
    {"Dinov2ForImageClassification", "dinov2.encoder.layer.0.attention.output.dense.weight",
     "dinov2.encoder.layer.0.attention.o_proj.weight"},
    {"BlipForConditionalGeneration", "vision_model.encoder.layers.0.self_attn.qkv.weight",
     "vision_model.encoder.layers.0.self_attn.qkv.weight"},
};

TEST(LoadedName, IsTheOneThatTheLoadedModelHas) {
  for (const Case& c : kCases) EXPECT_EQ(loaded_name(c.architecture, c.file), c.loaded);
}

// Newer files have the names of loaded models already.
TEST(LoadedName, StaysAsItIs) {
  for (const Case& c : kCases) EXPECT_EQ(loaded_name(c.architecture, c.loaded), c.loaded);
}

// For servers: what stands within a module keeps the name that files have.
TEST(LoadedName, ChangesOuterModulesAlone) {
  constexpr Case kOuter[] = {
      {"Qwen2VLForConditionalGeneration", "model.layers.1.self_attn.q_proj.bias",
       "model.language_model.layers.1.self_attn.q_proj.bias"},
      {"LlavaForConditionalGeneration", "language_model.model.norm.weight",
       "model.language_model.norm.weight"},
      {"MixtralForCausalLM", "model.layers.0.block_sparse_moe.gate.weight",
       "model.layers.0.block_sparse_moe.gate.weight"},
      {"ViTForImageClassification", "vit.encoder.layer.0.output.dense.bias",
       "vit.encoder.layer.0.output.dense.bias"},
      {"InklingForConditionalGeneration", "model.llm.layers.1.attn.wq_du.weight",
       "model.llm.layers.1.attn.wq_du.weight"},
      {"NomicBertModel", "encoder.layers.0.mlp.fc2.weight", "encoder.layers.0.mlp.fc2.weight"},
  };
  for (const Case& c : kOuter) {
    EXPECT_EQ(loaded_name(c.architecture, c.file, Renaming::outer), c.loaded);
  }
}

TEST(LoadedName, OfABaseModuleAloneHasNoOuterModule) {
  EXPECT_EQ(loaded_name("LlavaModel", "vision_tower.post_layernorm.weight"),
            "vision_tower.post_layernorm.weight");
}

TEST(Divided, RowsAreSharedOutInTheOrderOfTheLoadedModel) {
  EXPECT_EQ(divided("NomicBertModel", "layers.0.attn.Wqkv"),
            (std::vector<std::string>{"layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj",
                                      "layers.0.self_attn.v_proj"}));
  EXPECT_EQ(divided("GteForMaskedLM", "gte.layers.1.mlp.up_gate_proj"),
            (std::vector<std::string>{"gte.layers.1.mlp.up_proj", "gte.layers.1.mlp.gate_proj"}));
  EXPECT_TRUE(divided("ModernBertModel", "layers.0.attn.Wqkv").empty());
  EXPECT_TRUE(divided("NomicBertModel", "layers.0.xattn.Wqkv").empty());
  const auto value = portion("JinaEmbeddingsV3Model", "layers.2.self_attn.v_proj");
  ASSERT_TRUE(value);
  EXPECT_EQ(value->path, "layers.2.mixer.Wqkv");
  EXPECT_EQ(value->index, 2);
  EXPECT_EQ(value->count, 3);
  EXPECT_FALSE(portion("BertModel", "layers.2.self_attn.v_proj"));
  EXPECT_TRUE(remade("KimiLinearForCausalLM", "model.layers.0.self_attn.k_conv1d.weight"));
  // Of three that the loaded model has apart, with fewer rows for two of them.
  EXPECT_TRUE(remade("Molmo2ForConditionalGeneration",
                     "model.language_model.layers.0.self_attn.att_proj.weight"));
  EXPECT_TRUE(
      remade("Ernie4_5_VLMoeModel", "language_model.layers.1.mlp.experts.3.up_proj.weight"));
  EXPECT_FALSE(remade("Ernie4_5_VLMoeModel", "language_model.layers.0.mlp.up_proj.weight"));
  EXPECT_FALSE(remade("Ernie4_5_VLMoeModel", "weight"));
  // Counted from another layer.
  EXPECT_TRUE(remade("Inkling2ForCausalLM", "model.attn_res.attn_queries.0"));
  EXPECT_FALSE(remade("Qwen3NextForCausalLM", "model.layers.0.self_attn.k_conv1d.weight"));
}

TEST(FusedPart, IsOfClassesThatFuse) {
  for (const char* each : {"DeepseekV3ForCausalLM", "GlmMoeDsaForCausalLM", "MixtralForCausalLM",
                           "AXK2ForCausalLM", "Qwen3MoeForSequenceClassification"}) {
    EXPECT_TRUE(fuses_experts(each)) << each;
  }
  EXPECT_FALSE(fuses_experts("LlamaForCausalLM"));
  EXPECT_FALSE(fuses_experts(""));
}

TEST(FusedPart, TellsWhereAnExpertStands) {
  const auto gate = fused_part("model.layers.0.mlp.experts.3.gate_proj.weight", true);
  ASSERT_TRUE(gate);
  EXPECT_EQ(gate->parameter, "model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(gate->expert, 3);
  EXPECT_FALSE(gate->second);
  const auto up = fused_part("model.layers.0.mlp.experts.3.w3.weight", true);
  ASSERT_TRUE(up);
  EXPECT_EQ(up->parameter, gate->parameter);
  EXPECT_TRUE(up->second);
  EXPECT_EQ(fused_part("m.experts.0.up_proj.weight", false)->parameter, "m.experts.up_proj");
  EXPECT_EQ(fused_part("m.experts.11.w2.weight", true)->parameter, "m.experts.down_proj");
  for (const char* other : {"m.experts.0.up_proj.bias", "m.shared_experts.up_proj.weight",
                            "m.experts.up_proj", "m.experts.x.up_proj.weight", "up_proj.weight"}) {
    EXPECT_FALSE(fused_part(other, true)) << other;
  }
}

}  // namespace
}  // namespace ingot::plan
