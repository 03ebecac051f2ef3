#include "plan/aliases.hpp"

#include <algorithm>
#include <iterator>
#include <span>

namespace ingot::plan {
namespace {

// Whole components of names. '^' at the front: only where the name begins.
struct Pair {
  std::string_view memory, disk;
};

// Pairs of one class or of similar classes: all that occur in a name are replaced together.
constexpr Pair kNorm[] = {{"LayerNorm.weight", "LayerNorm.gamma"},
                          {"LayerNorm.bias", "LayerNorm.beta"}};  // first releases of BERT
constexpr Pair kNeoX[] = {{"^lm_head.", "^embed_out."}};
constexpr Pair kNemotronH[] = {{"^model.", "^backbone."}};
constexpr Pair kMixtral[] = {{"mlp.", "block_sparse_moe."}};
constexpr Pair kPhimoe[] = {{"mlp.router.", "block_sparse_moe.gate."}};
constexpr Pair kKimi[] = {{"self_attn.forget_gate.", "self_attn."}};
constexpr Pair kGraniteMoe[] = {
    {"block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear.weight"},
    {"block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear.weight"},
    {"block_sparse_moe.router.weight", "block_sparse_moe.router.layer.weight"}};
constexpr Pair kAria[] = {{"mlp.experts.gate_up_proj", "mlp.experts.fc1.weight"},
                          {"mlp.experts.down_proj", "mlp.experts.fc2.weight"}};
constexpr Pair kHunyuan[] = {{"mlp.gate.", "mlp.router.gate."},
                             {"mlp.shared_experts.", "mlp.shared_mlp."},
                             {"mlp.e_score_correction_bias", "mlp.expert_bias"}};
constexpr Pair kLaguna[] = {
    {"mlp.shared_experts.", "mlp.shared_expert."},
    {"mlp.gate.e_score_correction_bias", "mlp.experts.e_score_correction_bias"}};
constexpr Pair kErnie[] = {{"mlp.gate.moe_statics.", "mlp.moe_statics."}};
constexpr Pair kExaone[] = {{"mlp.gate.e_score_correction_bias", "mlp.e_score_correction_bias"}};
constexpr Pair kMimo[] = {{"self_attn.sinks", "self_attn.attention_sink_bias"}};
constexpr Pair kOlmoHybrid[] = {{"input_layernorm.", "attention_layer_norm."},
                                {"post_attention_layernorm.", "feedforward_layer_norm."}};
constexpr Pair kClip[] = {{"vision_tower.", "vision_tower.vision_model."}};
constexpr Pair kClipVision[] = {{"^", "^vision_model."}};
constexpr Pair kClipText[] = {{"^", "^text_model."}};
constexpr Pair kViT[] = {{"layers.", "encoder.layer."},
                         {"attention.q_proj.", "attention.attention.query."},
                         {"attention.k_proj.", "attention.attention.key."},
                         {"attention.v_proj.", "attention.attention.value."},
                         {"attention.o_proj.", "attention.output.dense."},
                         {"mlp.fc1.", "intermediate.dense."},
                         {"mlp.fc2.", "output.dense."}};
constexpr Pair kViTDecoder[] = {{"attention.q_proj.", "attention.attention.query."},
                                {"attention.k_proj.", "attention.attention.key."},
                                {"attention.v_proj.", "attention.attention.value."},
                                {"attention.o_proj.", "attention.output.dense."},
                                {"mlp.fc1.", "intermediate.dense."},
                                {"mlp.fc2.", "output.dense."}};
constexpr Pair kDino[] = {{"attention.q_proj.", "attention.attention.query."},
                          {"attention.k_proj.", "attention.attention.key."},
                          {"attention.v_proj.", "attention.attention.value."},
                          {"attention.o_proj.", "attention.output.dense."},
                          {"mlp.down_proj.", "mlp.weights_out."}};
constexpr Pair kSwin[] = {{"attention.q_proj.", "attention.self.query."},
                          {"attention.k_proj.", "attention.self.key."},
                          {"attention.v_proj.", "attention.self.value."},
                          {"attention.o_proj.", "attention.output.dense."},
                          {"mlp.fc1.", "intermediate.dense."},
                          {"mlp.fc2.", "output.dense."}};
constexpr Pair kSegformer[] = {{"attention.q_proj.", "attention.self.query."},
                               {"attention.k_proj.", "attention.self.key."},
                               {"attention.v_proj.", "attention.self.value."},
                               {"attention.o_proj.", "attention.output.dense."},
                               {"mlp.fc1.", "mlp.dense1."},
                               {"mlp.fc2.", "mlp.dense2."},
                               {"layernorm_before.", "layer_norm_1."},
                               {"layernorm_after.", "layer_norm_2."}};
constexpr Pair kDetr[] = {{"self_attn.o_proj.", "self_attn.out_proj."},
                          {"encoder_attn.o_proj.", "encoder_attn.out_proj."},
                          {"mlp.fc1.", "fc1."},
                          {"mlp.fc2.", "fc2."},
                          {"backbone.", "backbone.conv_encoder."}};
constexpr Pair kNomic[] = {{"layers.", "encoder.layers."},
                           {"self_attn.o_proj.", "attn.out_proj."},
                           {"up_proj.", "fc11."},
                           {"gate_proj.", "fc12."},
                           {"down_proj.", "fc2."},
                           {"post_attention_layernorm.", "norm1."},
                           {"post_mlp_layernorm.", "norm2."},
                           {"embeddings.LayerNorm.", "emb_ln."}};
constexpr Pair kJina[] = {{"layers.", "encoder.layers."},
                          {"self_attn.o_proj.", "mixer.out_proj."},
                          {"post_attention_layernorm.", "norm1."},
                          {"post_mlp_layernorm.", "norm2."},
                          {"embeddings.LayerNorm.", "emb_ln."}};
constexpr Pair kGte[] = {{"layers.", "encoder.layer."},
                         {"self_attn.o_proj.", "attention.o_proj."},
                         {"post_attention_layernorm.", "attn_ln."},
                         {"post_mlp_layernorm.", "mlp_ln."},
                         {"lm_head.layer_norm.", "lm_head.norm."}};
constexpr Pair kNew[] = {{"^gte.layers.", "^new.encoder.layer."},  // Gte before transformers had it
                         {"^gte.", "^new."},
                         {"self_attn.o_proj.", "attention.o_proj."},
                         {"post_attention_layernorm.", "attn_ln."},
                         {"post_mlp_layernorm.", "mlp_ln."}};
constexpr Pair kTimesFm[] = {{"fc1.", "ff0."}, {"fc2.", "ff1."}};

constexpr std::span<const Pair> kClasses[] = {
    kNorm,      kNeoX,       kNemotronH, kMixtral, kPhimoe,     kKimi, kGraniteMoe,
    kAria,      kHunyuan,    kLaguna,    kErnie,   kExaone,     kMimo, kOlmoHybrid,
    kClip,      kClipVision, kClipText,  kViT,     kViTDecoder, kDino, kSwin,
    kSegformer, kDetr,       kNomic,     kJina,    kGte,        kNew,  kTimesFm};

// Replaces the first place where `from` stands as whole components. False if there is none.
bool replace(std::string& name, std::string_view from, std::string_view to) {
  const bool front = from.starts_with('^');
  if (front) {
    from.remove_prefix(1);
    to.remove_prefix(1);
  }
  for (std::size_t at = name.find(from); at != std::string::npos; at = name.find(from, at + 1)) {
    if (at > 0 && (front || name[at - 1] != '.')) continue;
    const std::size_t end = at + from.size();
    if (!from.empty() && from.back() != '.' && end != name.size() && name[end] != '.') continue;
    name.replace(at, from.size(), to);
    return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> aliases(std::string_view name) {
  std::vector<std::string> out;
  const auto add = [&](std::string other) {
    if (other != name && std::find(out.begin(), out.end(), other) == out.end()) {
      out.push_back(std::move(other));
    }
  };
  for (const std::span<const Pair> pairs : kClasses) {
    std::string disk(name), memory(name);
    for (const Pair& pair : pairs) {
      replace(disk, pair.memory, pair.disk);
      replace(memory, pair.disk, pair.memory);
    }
    add(std::move(disk));
    add(std::move(memory));
  }
  return out;
}

}  // namespace ingot::plan
