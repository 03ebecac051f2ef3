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
    {"BertForMaskedLM", "bert.encoder.layer.0.output.dense.bias",
     "bert.encoder.layer.0.output.dense.bias"},
    {"SwinForImageClassification",
     "swin.encoder.layers.0.blocks.1.attention.self.relative_position_bias_table",
     "swin.encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_"
     "table"},
};

TEST(LoadedName, IsTheOneThatTheLoadedModelHas) {
  for (const Case& c : kCases) EXPECT_EQ(loaded_name(c.architecture, c.file), c.loaded);
}

// Newer files have the names of loaded models already.
TEST(LoadedName, StaysAsItIs) {
  for (const Case& c : kCases) EXPECT_EQ(loaded_name(c.architecture, c.loaded), c.loaded);
}

TEST(LoadedName, OfABaseModuleAloneHasNoOuterModule) {
  EXPECT_EQ(loaded_name("LlavaModel", "vision_tower.post_layernorm.weight"),
            "vision_tower.post_layernorm.weight");
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
