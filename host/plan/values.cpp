#include "plan/values.hpp"

#include <algorithm>
#include <map>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "ingot/text.hpp"
#include "plan/kinds.hpp"
#include "plan/layers.hpp"

namespace ingot::plan {
namespace {

using kinds::Json;
using Values = std::map<std::string, Json>;

constexpr std::size_t kShown = 6;     // keys in a warning
constexpr std::size_t kLongest = 40;  // bytes of a value
constexpr std::size_t kMembers = 64;  // of an object; more are a table

// Keys that mean nothing for weights, or that tensors and vocabularies tell.
constexpr std::string_view kSilent[] = {
    // names, versions, types
    "_* name_or_path model_type transformers_version *_version version dtype *_dtype "
    "tokenizer_class unsloth* base_config_key prefix auto_class init_device",
    // ways to compute
    "use_cache* return_dict use_return_dict return_last_states output_attentions "
    "output_hidden_states output_router_logits output_past torchscript gradient_checkpointing* "
    "*attn_implementation* *_implementation use_flash* *flash_attn* *_kernel *_kernels "
    "use_mambapy use_associative_scan use_mem_eff_path use_triton use_fused* fused_* *fp32* fp16 "
    "bf16 num_logits_to_keep pretraining_tp ep_size chunk_size_feed_forward chunk_size_lm_head "
    "max_inference_chunksize use_cpu_initialization low_cpu_mem_usage trust_remote_code "
    "model_parallel reorder_and_upcast_attn slow_but_exact use_mems_eval use_mems_train",
    // vocabulary
    "*_token_id *_token_ids *_token_index *_id *_index *_token vocab_size *_vocab_size "
    "vocab_size_per_layer_input tie_* is_decoder is_encoder "
    "is_encoder_decoder add_cross_attention",
    // initial values and training
    "init* *_init *_init_std *_init_scheme *_init_floor init_std *initializer* time_step_min "
    "time_step_max time_step_floor linear_dt_* linear_a_log_* rescale_prenorm_residual seed "
    "w_init_variance_scale *dropout* *pdrop layerdrop *_layerdrop hidden_dropout_prob *loss* "
    "*_coef *_coefficient *aux* *jitter* neftune* *label* problem_type finetuning_task mask_time_* "
    "mask_feature_* apply_spec_augment summary_*",
    // generation
    "temperature top_k top_p typical_p do_sample num_beams num_beam_groups max_length min_length "
    "max_new_tokens repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size early_stopping num_return_sequences remove_invalid_values "
    "return_dict_in_generate exponential_decay_length_penalty renormalize_logits",
    // the number of layers
    "*_layers n_layer n_layers depth num_blocks decoder_sparse_step",
};

// Room for positions: weights keep their meaning, unless rotation differs too.
constexpr std::string_view kRoom =
    "max_position_embeddings n_positions n_ctx seq_length max_seq_len max_sequence_length "
    "model_max_length max_source_positions max_target_positions context_length";

// Keys where null says that there is none; elsewhere the class takes a default for it.
constexpr std::string_view kNone = "*_window *_softcapping *_soft_cap *_limit clip_qkv";

bool silent(std::string_view key) {
  if (std::any_of(std::begin(kSilent), std::end(kSilent),
                  [&](std::string_view row) { return kinds::among(row, key); })) {
    return true;
  }
  const auto meaning = kinds::meaning_of(key);
  if (meaning == kinds::Meaning::extra || meaning == kinds::Meaning::extras) return true;
  const auto rules = kinds::rules();
  return std::any_of(rules.begin(), rules.end(), [&](const kinds::Rule& rule) {
    return std::any_of(rule.numbers.begin(), rule.numbers.end(), [&](std::string_view number) {
      return kinds::number_of(number).key == key;
    });
  });
}

// Rotation: `rope_parameters`, or `rope_theta` beside `rope_scaling`.
void add_rotation(const Json& rope, const std::string& prefix, Values& out) {
  for (const auto& [key, value] : rope.items()) {
    if (value.is_object()) {
      add_rotation(value, fmt::format("{}{}.", prefix, key), out);
    } else if (key == "rope_type" || key == "type") {
      out[prefix + "rope_type"] = value == "su" ? Json("longrope") : value;
    } else if (!value.is_null()) {
      const bool plain = key == "rope_theta" || key == "partial_rotary_factor";
      out[prefix + (plain ? key : "rope." + key)] = value;
    }
  }
}

void add(const Json& object, const std::string& prefix, Values& out) {
  for (const auto& [key, value] : object.items()) {
    if (key == "rope_parameters" || key == "rope_scaling") {
      if (value.is_object()) add_rotation(value, prefix, out);
    } else if (value.is_object()) {
      if (prefix.empty() && value.size() <= kMembers && holds_layers(key, value))
        add(value, key + ".", out);
    } else if (!value.is_array() && !silent(key) &&
               (!value.is_null() || kinds::among(kNone, key))) {
      out[prefix + key] = value;
    }
  }
}

Values values_of(const Config& config, const Place& text) {
  Values out;
  const Json* const inner = config.account(text, 0, {}).object;
  for (const Json* object : {&config.document(), inner}) {
    if (object != nullptr && object->is_object()) add(*object, "", out);
  }
  if (out.contains("rope_theta")) out.emplace("rope_type", "default");
  const auto slides = out.find("use_sliding_window");
  if (slides != out.end() && slides->second == false) out.erase("sliding_window");
  return out;
}

}  // namespace

void compare_values(const Config& donor, const Config& other, const Place& text,
                    const std::string& donor_shown, const std::string& other_shown,
                    Problems& problems) {
  const Values mine = values_of(donor, text);
  const Values theirs = values_of(other, text);
  std::vector<std::string> differ, room;
  bool rotation = false;
  for (const auto& [key, value] : mine) {
    const auto at = theirs.find(key);
    if (at == theirs.end() || at->second == value) continue;
    std::string shown = fmt::format("{} ({} and {})", key, shorten(value.dump(), kLongest),
                                    shorten(at->second.dump(), kLongest));
    if (kinds::among(kRoom, key)) {
      room.push_back(std::move(shown));
    } else {
      rotation = rotation || key.find("rope") != std::string::npos;
      differ.push_back(std::move(shown));
    }
  }
  if (rotation) differ.insert(differ.end(), room.begin(), room.end());
  if (differ.empty()) return;
  const std::size_t more = differ.size() - std::min(differ.size(), kShown);
  differ.resize(differ.size() - more);
  problems.warn(
      Code::format,
      fmt::format("config.json of {} and {} differ in what the weights were trained with: {}{}; "
                  "the output has the values of {}",
                  donor_shown, other_shown, fmt::join(differ, ", "),
                  more > 0 ? fmt::format(" and {} more", more) : "", donor_shown));
}

}  // namespace ingot::plan
