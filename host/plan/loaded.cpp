#include "plan/loaded.hpp"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <span>

#include <fmt/format.h>

#include "plan/roles.hpp"

namespace ingot::plan {
namespace {

struct Change {
  std::string_view from, to;
};

// Classes that rename alike. Of `prefixes` at most one is changed, the first that the name starts
// with, unless the name already starts with one that a change would give; then every one of `parts`
// is changed where it stands first.
struct Renamed {
  std::string_view stems;  // "Llava" of "LlavaForConditionalGeneration"
  std::span<const Change> prefixes, parts;
};

constexpr Change kLlava[] = {
    {"language_model.lm_head.", "lm_head."},
    {"language_model.model.", "model.language_model."},
    {"language_model.", "model.language_model."},
    {"vision_tower.vision_model.", "model.vision_tower."},
    {"vision_tower.", "model.vision_tower."},
    {"vision_model.", "model.vision_model."},
    {"image_tower.vision_model.", "model.image_tower."},
    {"image_tower.", "model.image_tower."},
    {"video_tower.vision_model.", "model.video_tower."},
    {"video_tower.", "model.video_tower."},
    {"audio_tower.", "model.audio_tower."},
    {"multi_modal_projector.", "model.multi_modal_projector."},
    {"image_newline", "model.image_newline"},
    {"vision_embed_tokens.", "model.vision_embed_tokens."},
    {"encoder.", "model.encoder."},
    {"projector.", "model.projector."},
    {"acoustic_tokenizer_encoder.", "model.acoustic_tokenizer_encoder."},
    {"semantic_tokenizer_encoder.", "model.semantic_tokenizer_encoder."},
};
constexpr Change kTower[] = {{"model.vision_tower.vision_model.", "model.vision_tower."}};
constexpr Change kAria[] = {{".mlp.experts.fc1.weight", ".mlp.experts.gate_up_proj"},
                            {".mlp.experts.fc2.weight", ".mlp.experts.down_proj"}};
constexpr Change kQwen[] = {{"visual.", "model.visual."},
                            {"audio_tower.", "model.audio_tower."},
                            {"model.", "model.language_model."}};
constexpr Change kPaddle[] = {{"mlp_AR.", "model.projector."},
                              {"visual.", "model.visual."},
                              {"model.", "model.language_model."}};
constexpr Change kEmu[] = {{"text_model.lm_head.", "lm_head."},
                           {"text_model.model.", "model.text_model."},
                           {"vqmodel.", "model.vqmodel."}};
constexpr Change kNeox[] = {{"embed_out.", "lm_head."}};
constexpr Change kNemotron[] = {{"backbone.", "model."}};
constexpr Change kGranite[] = {
    {".block_sparse_moe.router.layer.", ".block_sparse_moe.router."},
    {".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj"},
    {".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj"}};
constexpr Change kMixtral[] = {{".block_sparse_moe.", ".mlp."}};
constexpr Change kPhi[] = {{".block_sparse_moe.gate.", ".mlp.router."},
                           {".block_sparse_moe.", ".mlp."}};
constexpr Change kErnie[] = {{".mlp.moe_statics.", ".mlp.gate.moe_statics."}};
constexpr Change kExaone[] = {
    {".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"}};
constexpr Change kKimi[] = {{".block_sparse_moe.", ".mlp."},
                            {".self_attn.f_a_proj.", ".self_attn.forget_gate.f_a_proj."},
                            {".self_attn.f_b_proj.", ".self_attn.forget_gate.f_b_proj."},
                            {".self_attn.dt_bias", ".self_attn.forget_gate.dt_bias"},
                            {".self_attn.A_log", ".self_attn.forget_gate.A_log"}};
constexpr Change kHunyuan[] = {{".mlp.router.gate.", ".mlp.gate."},
                               {".mlp.expert_bias", ".mlp.e_score_correction_bias"},
                               {".mlp.shared_mlp.", ".mlp.shared_experts."}};
constexpr Change kLaguna[] = {
    {".mlp.experts.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"},
    {".mlp.shared_expert.", ".mlp.shared_experts."}};
constexpr Change kOlmoHybrid[] = {{".attention_layer_norm.", ".input_layernorm."},
                                  {".feedforward_layer_norm.", ".post_attention_layernorm."}};
constexpr Change kNomic[] = {{"encoder.layers.", "layers."},
                             {"emb_ln.", "embeddings.LayerNorm."},
                             {".attn.out_proj.", ".self_attn.o_proj."},
                             {".fc11.", ".up_proj."},
                             {".fc12.", ".gate_proj."},
                             {".fc2.", ".down_proj."},
                             {".norm1.", ".post_attention_layernorm."},
                             {".norm2.", ".post_mlp_layernorm."}};
constexpr Change kJina[] = {{"encoder.layers.", "layers."},
                            {"emb_ln.", "embeddings.LayerNorm."},
                            {".mixer.out_proj.", ".self_attn.o_proj."},
                            {".norm1.", ".post_attention_layernorm."},
                            {".norm2.", ".post_mlp_layernorm."}};
constexpr Change kNew[] = {{"new.", "gte."}};
constexpr Change kGte[] = {{"encoder.layer.", "layers."},
                           {".attention.o_proj.", ".self_attn.o_proj."},
                           {".attn_ln.", ".post_attention_layernorm."},
                           {".mlp_ln.", ".post_mlp_layernorm."},
                           {"lm_head.norm.", "lm_head.layer_norm."}};
constexpr Change kMimo[] = {{".self_attn.attention_sink_bias", ".self_attn.sinks"}};
constexpr Change kVit[] = {{"encoder.layer.", "layers."},
                           {".attention.attention.query.", ".attention.q_proj."},
                           {".attention.attention.key.", ".attention.k_proj."},
                           {".attention.attention.value.", ".attention.v_proj."},
                           {".attention.output.dense.", ".attention.o_proj."},
                           {".intermediate.dense.", ".mlp.fc1."},
                           {".output.dense.", ".mlp.fc2."}};
constexpr Change kDino[] = {{".attention.attention.query.", ".attention.q_proj."},
                            {".attention.attention.key.", ".attention.k_proj."},
                            {".attention.attention.value.", ".attention.v_proj."},
                            {".attention.output.dense.", ".attention.o_proj."},
                            {".mlp.weights_out.", ".mlp.down_proj."}};
constexpr Change kSwin[] = {{".attention.self.query.", ".attention.q_proj."},
                            {".attention.self.key.", ".attention.k_proj."},
                            {".attention.self.value.", ".attention.v_proj."},
                            {".attention.self.relative_position_bias_table",
                             ".attention.relative_position_bias.relative_position_bias_table"},
                            {".attention.output.dense.", ".attention.o_proj."},
                            {".intermediate.dense.", ".mlp.fc1."},
                            {".output.dense.", ".mlp.fc2."}};

constexpr Renamed kRenamed[] = {
    {"Llava LlavaNext LlavaNextVideo LlavaOnevision PaliGemma AyaVision GotOcr2 Gemma3 InternVL "
     "VipLlava Mistral3 PPChart2Table Mllama Fuyu VideoLlava Qwen2Audio Voxtral VoxtralRealtime "
     "AudioFlamingo3 MusicFlamingo GlmAsr GraniteSpeech GraniteSpeechPlus VibeVoiceAsr",
     kLlava, kTower},
    {"Aria", kLlava, kAria},
    {"AriaText", {}, kAria},
    {"Qwen2VL Qwen2_5_VL Qwen2_5OmniThinker Qwen3OmniMoeThinker", kQwen, {}},
    {"PaddleOCRVL", kPaddle, {}},
    {"Emu3", kEmu, {}},
    {"GPTNeoX", kNeox, {}},
    {"NemotronH", kNemotron, {}},
    {"GraniteMoe GraniteMoeShared GraniteMoeHybrid", {}, kGranite},
    {"Mixtral MiniMax MiniMaxM2", {}, kMixtral},
    {"Phimoe", {}, kPhi},
    {"Ernie4_5_Moe", {}, kErnie},
    {"ExaoneMoe", {}, kExaone},
    {"KimiLinear", {}, kKimi},
    {"HYV3", {}, kHunyuan},
    {"Laguna", {}, kLaguna},
    {"OlmoHybrid", {}, kOlmoHybrid},
    {"NomicBert", {}, kNomic},
    {"JinaEmbeddingsV3", {}, kJina},
    {"Gte", kNew, kGte},
    {"MiMoV2Flash", {}, kMimo},
    {"ViT AST Beit DeiT IJepa ViTMAE ViTMSN Vivit", {}, kVit},
    {"Dinov2 Dinov2WithRegisters", {}, kDino},
    {"Swin", {}, kSwin},
};

// A layer of files whose rows are those of several layers of the loaded model, one below the other
// and as many for each.
struct Divided {
  std::string_view stems, layer;
  std::initializer_list<std::string_view> parts;
};
const Divided kDivided[] = {
    {"NomicBert", "attn.Wqkv", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {"JinaEmbeddingsV3",
     "mixer.Wqkv",
     {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {"Gte", "attention.qkv_proj", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}},
    {"Gte", "mlp.up_gate_proj", {"mlp.up_proj", "mlp.gate_proj"}},
};
// Layers of files that are rows of one layer of the loaded model.
struct Joined {
  std::string_view stems;
  std::initializer_list<std::string_view> parts;
};
const Joined kJoined[] = {
    {"KimiLinear", {"self_attn.q_conv1d", "self_attn.k_conv1d", "self_attn.v_conv1d"}},
    {"OlmoHybrid", {"linear_attn.q_conv1d", "linear_attn.k_conv1d", "linear_attn.v_conv1d"}},
};

// What stands before the last components of a path, with the dot; nullopt if it has others.
std::optional<std::string_view> before(std::string_view path, std::string_view last) {
  if (!path.ends_with(last)) return std::nullopt;
  path.remove_suffix(last.size());
  if (!path.empty() && path.back() != '.') return std::nullopt;
  return path;
}

constexpr std::string_view kFusing =
    "Mixtral MiniMax MiniMaxM2 Phimoe Afmoe DeepseekV2 DeepseekV3 DeepseekV32 Dots1 Ernie4_5_Moe "
    "Glm4Moe Glm4MoeLite GlmMoeDsa Glm4vMoe LongcatFlash SolarOpen Mellum Qwen2Moe Qwen3Moe "
    "Qwen3OmniMoeThinker Qwen3Next Qwen3_5Moe HunYuanMoEV1 FlexOlmo Olmoe ExaoneMoe Cohere2Moe "
    "Jamba Lfm2Moe NemotronH MiMoV2Flash KimiLinear HYV3 Laguna";

// True if the class is one of the blank-separated stems with a head, or its base module.
bool among(std::string_view stems, std::string_view architecture) {
  while (!stems.empty()) {
    const std::size_t end = std::min(stems.find(' '), stems.size());
    const std::string_view stem = stems.substr(0, end);
    if (architecture.starts_with(stem)) {
      const std::string_view head = architecture.substr(stem.size());
      if (head.starts_with("For") || head == "Model" || head == "LMHeadModel") return true;
    }
    stems.remove_prefix(std::min(end + 1, stems.size()));
  }
  return false;
}

}  // namespace

std::string loaded_name(std::string_view architecture, std::string_view name, Renaming renaming) {
  std::string out(name);
  for (const Renamed& row : kRenamed) {
    if (!among(row.stems, architecture)) continue;
    // A base module alone has no outer module to be renamed.
    const bool whole = architecture.find("For") != std::string_view::npos;
    const bool done =
        std::any_of(row.prefixes.begin(), row.prefixes.end(),
                    [&](const Change& change) { return name.starts_with(change.to); });
    for (const Change& change : row.prefixes) {
      if (!whole || done || !name.starts_with(change.from)) continue;
      out.replace(0, change.from.size(), change.to);
      break;
    }
    for (const Change& change : row.parts) {
      if (renaming == Renaming::outer) break;
      const std::size_t at = out.find(change.from);
      if (at != std::string::npos) out.replace(at, change.from.size(), change.to);
    }
    break;
  }
  return out;
}

std::vector<std::string> divided(std::string_view architecture, std::string_view path) {
  for (const Divided& row : kDivided) {
    const auto front = before(path, row.layer);
    if (!front || !among(row.stems, architecture)) continue;
    std::vector<std::string> all;
    for (const std::string_view part : row.parts) all.push_back(fmt::format("{}{}", *front, part));
    return all;
  }
  return {};
}

std::optional<Portion> portion(std::string_view architecture, std::string_view path) {
  for (const Divided& row : kDivided) {
    if (!among(row.stems, architecture)) continue;
    for (std::size_t i = 0; i < row.parts.size(); ++i) {
      const auto front = before(path, row.parts.begin()[i]);
      if (front) return Portion{fmt::format("{}{}", *front, row.layer), i, row.parts.size()};
    }
  }
  return std::nullopt;
}

bool joined(std::string_view architecture, std::string_view path) {
  return std::any_of(std::begin(kJoined), std::end(kJoined), [&](const Joined& row) {
    return among(row.stems, architecture) &&
           std::any_of(row.parts.begin(), row.parts.end(),
                       [&](std::string_view part) { return before(path, part).has_value(); });
  });
}

bool reads_weight(std::string_view architecture, std::string_view path) {
  const std::string_view leaf = last_component(path);
  return (leaf == "out_proj" &&
          among("Mamba Mamba2 FalconMamba FalconH1 NemotronH", architecture)) ||
         (leaf == "dt_proj" && among("Mamba FalconMamba Jamba", architecture));
}

bool fuses_experts(std::string_view architecture) { return among(kFusing, architecture); }

std::optional<FusedPart> fused_part(std::string_view name, bool gated) {
  if (!name.ends_with(".weight")) return std::nullopt;
  const auto expert = expert_layer(parent(name));
  if (!expert) return std::nullopt;
  const std::string_view leaf = expert->leaf;
  FusedPart part;
  part.expert = expert->number;
  const bool gate = leaf == "gate_proj" || leaf == "w1", up = leaf == "up_proj" || leaf == "w3";
  if (!gate && !up && leaf != "down_proj" && leaf != "w2") return std::nullopt;
  part.second = up && gated;
  part.parameter = fmt::format("{}.{}", expert->owner,
                               gate || part.second ? "gate_up_proj"
                               : up                ? "up_proj"
                                                   : "down_proj");
  return part;
}

}  // namespace ingot::plan
