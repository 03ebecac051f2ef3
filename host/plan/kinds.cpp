#include "plan/kinds.hpp"

#include <algorithm>
#include <charconv>
#include <string>
#include <utility>

namespace ingot::plan::kinds {
namespace {

constexpr std::uint64_t kTimes = 20'000;  // of a group of kinds

// ---------------------------------------------------------------------------------------------
// Keys of their own meaning, wherever they stand beside the layer count or one object deeper.

struct Known {
  Meaning meaning;
  std::string_view keys;  // separated by blanks, as `among` reads them
};

// In order: the first row that has the key.
constexpr Known kKnown[] = {
    {Meaning::by_layer,
     "layer_types mlp_layer_types layers_block_type layer_block_types indexer_types "
     "no_rope_layers nope_pattern layer_rope_theta activation_sparsity_pattern per_layer_config "
     "per_layer_configs layer_configs layer_config block_configs num_attention_heads_per_layer "
     "num_key_value_heads_per_layer num_heads_per_layer swiglu_limits swiglu_limits_shared "
     "partial_rotary_factors rope_theta compress_ratios attn_type_list attention_type_list "
     "hybrid_layer_pattern hybrid_override_pattern layer_pattern block_pattern moe_layer_freq "
     "moe_layer_pattern sparse_attention_freq sliding_windows attention_windows "
     "index_topk_pattern num_query_heads num_kv_heads num_q_heads ffn_multipliers qkv_multipliers "
     "moe_topk num_experts num_local_experts n_routed_experts num_experts_per_tok "
     "num_shared_expert intermediate_size intermediate_sizes moe_intermediate_size ffn_hidden_size "
     "ffn_dim n_inner num_attention_heads num_key_value_heads n_head n_heads num_heads head_dim "
     "kv_channels attention_layers attn_layers layers_num_experts attn_types attention_types_list "
     "layer_kinds layer_groups sliding_window window_sizes pyramid_num_routed layer_scales "
     "residual_scales layer_types_list pruned_heads"},
    {Meaning::numbers,
     "mlp_only_layers moe_layers cross_attention_layers full_attn_idxs full_attention_idxs "
     "full_attention_indices attn_layer_indices attn_layer_idxs attention_layer_indices "
     "attention_layer_idxs attention_layers_idx attn_layer_idx hybrid_layer_ids "
     "hybrid_layer_indices hybrid_layers local_layer_ids global_layer_ids rope_scaling_layers "
     "moe_layers_enum global_attn_indexes global_attention_layers global_attn_layers "
     "local_attention_layers full_attention_layers linear_attention_layers "
     "sliding_attention_layers sliding_window_layers swa_layers nope_layers nope_layer_ids "
     "no_rope_layer_indices rope_layers slstm_at dense_layers dense_layer_ids moe_layer_ids "
     "moe_layer_indices moe_layer_idxs sparse_layers mamba_layers mamba_layer_indices "
     "ssm_layers conv_layers window_block_indices window_block_indexes residual_block_indices "
     "fullatt_block_indexes deepstack_visual_indexes value_embedding_layers engram_layer_ids "
     "full_attention_layer_ids linear_layers kv_shared_layers"},
    {Meaning::from_one, "full_attn_layers kda_layers"},
    {Meaning::sources, "kv_source_layers"},
    {Meaning::cycle, "block_types _block_types"},
    {Meaning::extra,
     "num_nextn_predict_layers num_mtp_layers mtp_num_hidden_layers mtp_num_layers n_mtp_layers "
     "num_mtp_modules mtp_depth n_predict_layers num_nextn_layers mtp_layers"},
    {Meaning::extras,
     "mtp_layer_types mtp_mlp_layer_types mtp_layers_block_type mtp_hybrid_override_pattern "
     "mtp_per_layer_config mtp_local_layer_ids"},
    {Meaning::nothing,
     "architectures bad_words_ids suppress_tokens begin_suppress_tokens forced_decoder_ids "
     "keys_to_ignore_at_inference time_step_limit id2label label2id image_grid_pinpoints "
     "_sliding_window_pattern conv_dim conv_kernel conv_stride task_specific_params "
     "supported_aspect_ratios quantization_config rope_scaling rope_parameters auto_map "
     "generation_config altup_coefs mup_multipliers ssm_multipliers mlp_multipliers "
     "mamba_chunk_size out_features stage_names dilations tdnn_dim tdnn_kernel tdnn_dilation "
     "*_token_id *_token_ids *_token_index *_section *_sections *_kernel_size *_patch_size "
     "image_size patch_size temporal_patch_size attribute_map vision_feature_layer "
     "vision_feature_layers"},
};

}  // namespace

bool among(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(' '), list.size());
    std::string_view each = list.substr(0, end);
    const bool open = each.starts_with('*');
    if (open) each.remove_prefix(1);
    const bool goes_on = each.ends_with('*');
    if (goes_on) each.remove_suffix(1);
    if (open      ? goes_on ? word.find(each) != word.npos : word.ends_with(each)
             : goes_on ? word.starts_with(each)
                  : word == each) {
      return true;
    }
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

std::optional<Meaning> meaning_of(std::string_view key) {
  for (const Known& row : kKnown) {
    if (among(row.keys, key)) return row.meaning;
  }
  return std::nullopt;
}

// ---------------------------------------------------------------------------------------------
// Rules: the kind of layer i of n by numbers a, b and c.

namespace {

constexpr std::string_view kSliding = "sliding_attention full_attention";
constexpr std::string_view kLinear = "linear_attention full_attention";
constexpr std::string_view kFull = "full_attention sliding_attention";
constexpr std::string_view kSparse = "dense sparse";
constexpr std::string_view kFullName = "full attention";
constexpr std::string_view kSlidingName = "sliding attention";
constexpr std::string_view kExperts = "mixtures of experts";

// As the configuration classes of transformers 5.23 have them. The rules of no type stand last and
// hold for models that no row with the same first key speaks of.
constexpr Rule kRules[] = {
    // Attention.
    {"gemma2 vaultgemma t5_gemma_module gpt_oss",
     "layer_types",
     kSliding,
     kFullName,
     Form::every,
     {"=2"}},
    {"gemma3_text gemma3 t5gemma2_text t5gemma2_decoder",
     "layer_types",
     kSliding,
     kFullName,
     Form::every,
     {"sliding_window_pattern=6"}},
    {"embedding_gemma2_text",
     "layer_types",
     kSliding,
     kFullName,
     Form::every_or_last,
     {"sliding_window_pattern=6"}},
    {"cohere2", "layer_types", kSliding, kFullName, Form::every, {"sliding_window_pattern=4"}},
    {"exaone4 exaone_moe",
     "layer_types",
     kSliding,
     kFullName,
     Form::every,
     {"sliding_window_pattern=4"}},
    {"cohere2_moe",
     "layer_types",
     kSliding,
     kFullName,
     Form::prefixed,
     {"first_k_dense_replace=0", "prefix_dense_sliding_window_pattern=1",
      "sliding_window_pattern=4"}},
    {"olmo3", "layer_types", kSliding, kFullName, Form::every, {"=4"}},
    {"gemma3n_text gemma3n kolibri1", "layer_types", kSliding, kFullName, Form::every, {"=5"}},
    {"ultrabert", "layer_types", kSliding, kFullName, Form::every, {"=3"}, {}, "attention_windows"},
    {"gemma4_text gemma4 gemma4_unified_text gemma4_unified diffusion_gemma_text diffusion_gemma "
     "neomme beam",
     "layer_types",
     kSliding,
     kFullName,
     Form::every_or_last,
     {"=6"}},
    {"muse_glimmer_text muse_spark_text",
     "layer_types",
     kSliding,
     kFullName,
     Form::backward,
     {"=4"}},
    {"muse_glimmer_text muse_spark_text",
     "",
     "",
     "without rotation",
     Form::backward,
     {"=4"},
     {},
     "layer_rope_theta"},
    {"afmoe", "layer_types", kSliding, kFullName, Form::every, {"global_attn_every_n_layers=4"}},
    {"modernbert modernbert-decoder",
     "layer_types",
     kSliding,
     kFullName,
     Form::every_from_0,
     {"global_attn_every_n_layers=3"}},
    {"cwm granite_swa granitemoe_swa",
     "layer_types",
     kSliding,
     kFullName,
     Form::every_from_0,
     {"=4"}},
    {"mimo_v2_flash",
     "layer_types",
     kSliding,
     kFullName,
     Form::first_or_every,
     {"=6"},
     {},
     "hybrid_layer_pattern"},
    {"flint", "layer_types", kFull, kSlidingName, Form::fourths, {"=1"}},
    {"dots3_note_text",
     "layer_types",
     "indexed_attention sliding_attention",
     kSlidingName,
     Form::fourths,
     {"=0"},
     "use_sliding_window=1"},
    {"ministral", "layer_types", kFull, kSlidingName, Form::all, {"=1"}, "sliding_window=1"},
    {"qwen2 qwen3 qwen2_vl qwen2_vl_text qwen2_5_vl qwen2_5_vl_text qwen2_5_omni_text "
     "qwen2_5_omni_thinker qwen2_5_omni_talker deepseek_ocr2_encoder",
     "layer_types",
     kFull,
     kSlidingName,
     Form::after,
     {"max_window_layers=28"},
     "use_sliding_window=0 sliding_window=1"},
    {"qwen3_omni_moe_talker_code_predictor",
     "layer_types",
     kFull,
     kSlidingName,
     Form::after,
     {"max_window_layers=28"},
     "sliding_window=0"},
    {"dots1",
     "layer_types",
     kFull,
     kSlidingName,
     Form::after,
     {"max_window_layers=62"},
     "sliding_window=1"},
    {"qwen2_moe",
     "layer_types",
     kFull,
     kSlidingName,
     Form::even_before,
     {"max_window_layers=28"},
     "use_sliding_window=0"},
    {"qwen3_next qwen3_5_text qwen3_5 qwen3_5_moe_text qwen3_5_moe",
     "layer_types",
     kLinear,
     kFullName,
     Form::every,
     {"full_attention_interval=4"}},
    {"qwen4_exp_text",
     "layer_types",
     "linear_attention indexed_attention",
     "indexed attention",
     Form::every,
     {"full_attention_interval=4"}},
    {"minimax",
     "layer_types",
     kLinear,
     kFullName,
     Form::every_from_0,
     {"=2"},
     {},
     "attn_type_list"},
    {"olmo_hybrid", "layer_types", kLinear, kFullName, Form::every_or_sole, {"=4"}},
    {"bailing_hybrid", "layer_types", kLinear, kFullName, Form::every, {"layer_group_size=6"}},
    {"inkling_text",
     "layer_types",
     "hybrid_sliding hybrid",
     kFullName,
     Form::every,
     {"=6"},
     {},
     "local_layer_ids"},
    {"inkling2_text", "layer_types", "hybrid_sliding hybrid", kFullName, Form::every, {"=6"}},
    {"kimi_linear",
     "layer_types",
     kLinear,
     kFullName,
     Form::not_first,
     {"=4"},
     {},
     "linear_attn_config"},
    {"glm5_next_text",
     "layer_types",
     "linear_attention indexed_attention",
     "indexed attention",
     Form::every,
     {"=4"}},
    {"lfm2 lfm2_moe",
     "layer_types",
     "conv full_attention",
     kFullName,
     Form::all,
     {"=1"},
     {},
     "full_attn_idxs"},
    {"lfm3", "layer_types", "conv sliding_attention full_attention", "attention", Form::thirds, {}},
    {"granitemoehybrid",
     "layer_types",
     "full_attention linear_attention",
     "linear attention",
     Form::all,
     {"=1"},
     {},
     "layers_block_type"},
    {"deepseek_v4",
     "layer_types",
     "heavily_compressed_attention compressed_sparse_attention",
     "sparse attention",
     Form::odd_after,
     {"=2"},
     {},
     "compress_ratios"},
    {"zamba",
     "layers_block_type",
     "linear_attention hybrid",
     "hybrid",
     Form::trio,
     {"attn_layer_period=6", "attn_layer_offset=4"}},
    {"jamba", "", "", "attention", Form::offset, {"attn_layer_period=8", "attn_layer_offset=4"}},
    {"glm_moe_dsa glm5_next_text mistral_large4_text",
     "indexer_types",
     "shared full",
     "with an index of their own",
     Form::skipping,
     {"index_topk_freq=1", "index_skip_topk_offset=2"},
     {},
     "index_topk_pattern"},
    {"hy_v4",
     "indexer_types",
     "shared full",
     "with an index of their own",
     Form::second_every,
     {"=4"}},
    {"gemma3n_text gemma3n",
     "",
     "",
     "without keys and values of their own",
     Form::last,
     {"num_kv_shared_layers=15"}},
    {"gemma4_text gemma4 gemma4_unified_text gemma4_unified",
     "",
     "",
     "without keys and values of their own",
     Form::last,
     {"num_kv_shared_layers=0"}},
    {"gemma3n_text gemma3n",
     "activation_sparsity_pattern",
     "0.0 0.95",
     "with sparse activations",
     Form::ten,
     {}},
    // Rotation.
    {"llama4_text llama4 smollm3 mistral_large4_text",
     "no_rope_layers",
     "1 0",
     "without rotation",
     Form::every,
     {"no_rope_layer_interval=4"}},
    // Feed-forward.
    {"llama4_text llama4",
     "moe_layers",
     "#",
     kExperts,
     Form::every,
     {"interleave_moe_layer_step=1"}},
    {"deepseek_v3",
     "",
     "",
     kExperts,
     Form::after_every,
     {"first_k_dense_replace=3", "moe_layer_freq=1"}},
    {"glm4_moe glm4v_moe_text glm4v_moe",
     "",
     "",
     kExperts,
     Form::after_every,
     {"first_k_dense_replace=1", "moe_layer_freq=1"}},
    {"deepseek_v2 dots1 mistral4",
     "",
     "",
     kExperts,
     Form::after_every,
     {"first_k_dense_replace=0", "moe_layer_freq=1"}},
    {"axk1 axk2 dots3_note_text",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after_every,
     {"first_k_dense_replace=1", "moe_layer_freq=1"}},
    {"deepseek_v32 glm_moe_dsa",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after,
     {"first_k_dense_replace=3"}},
    {"bailing_hybrid",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after,
     {"first_k_dense_replace=2"}},
    {"exaone_moe mistral_large4_text unlimited_ocr_text kimi_linear",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after,
     {"first_k_dense_replace=1"}},
    {"cohere2_moe", "mlp_layer_types", kSparse, kExperts, Form::after, {"first_k_dense_replace=0"}},
    {"glm4_moe_lite hy_v3 hy_v4 laguna ernie4_5_vl_moe_text",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after,
     {"=1"}},
    {"mimo_v2_flash",
     "mlp_layer_types",
     kSparse,
     kExperts,
     Form::after,
     {"=1"},
     {},
     "moe_layer_freq"},
    {"glm5_next_text beam", "mlp_layer_types", kSparse, kExperts, Form::after, {"=3"}},
    {"step3p5", "mlp_layer_types", kSparse, kExperts, Form::after, {"=3"}, {}, "moe_layers_enum"},
    {"inkling_text", "mlp_layer_types", kSparse, kExperts, Form::after, {"dense_mlp_idx=0"}},
    {"deepseek_v4",
     "mlp_layer_types",
     "moe hash_moe",
     "routed by a hash",
     Form::before,
     {"num_hash_layers=3"}},
    {"afmoe", "", "", kExperts, Form::after, {"num_dense_layers=1"}},
    {"lfm2_moe", "", "", kExperts, Form::after, {"num_dense_layers=2"}},
    {"ernie4_5_moe",
     "",
     "",
     kExperts,
     Form::span,
     {"moe_layer_interval=1", "moe_layer_start_index=1", "moe_layer_end_index=-1"}},
    {"jamba", "", "", kExperts, Form::offset, {"expert_layer_period=2", "expert_layer_offset=1"}},
    // Any other model.
    {"", "", "", kExperts, Form::after_every, {"first_k_dense_replace", "moe_layer_freq=1"}},
    {"", "", "", kExperts, Form::after, {"num_dense_layers"}},
    {"", "", "", kExperts, Form::after, {"n_dense_layers"}},
    {"", "", "", kExperts, Form::after, {"n_dense_first"}},
    {"", "", "", kExperts, Form::after, {"num_first_dense_layers"}},
    {"", "", "", kExperts, Form::after, {"dense_mlp_idx"}},
    {"",
     "",
     "",
     kExperts,
     Form::span,
     {"moe_layer_interval", "moe_layer_start_index=0", "moe_layer_end_index=-1"}},
    {"", "", "", kExperts, Form::every, {"interleave_moe_layer_step"}},
    {"", "", "", kExperts, Form::offset, {"expert_layer_period", "expert_layer_offset=0"}},
    {"", "", "", "attention", Form::offset, {"attn_layer_period", "attn_layer_offset=0"}},
    {"", "", "", kFullName, Form::every, {"sliding_window_pattern"}, "sliding_window=1"},
    {"", "", "", kFullName, Form::every, {"full_attention_interval"}},
    {"", "", "", kFullName, Form::every, {"global_attn_every_n_layers"}},
    {"", "", "", kFullName, Form::every, {"layer_group_size"}},
    {"", "", "", "without rotation", Form::every, {"no_rope_layer_interval"}},
    {"",
     "",
     "",
     kSlidingName,
     Form::after,
     {"max_window_layers"},
     "use_sliding_window=0 sliding_window=1"},
    {"", "", "", "with cross attention", Form::every_from_0, {"cross_layer_interval"}},
    {"", "", "", "with cross attention", Form::every_from_0, {"cross_attention_frequency"}},
    {"", "", "", "without keys and values of their own", Form::last, {"num_kv_shared_layers"}},
};

// Types whose classes take the last layer for one of full attention whatever the list says.
constexpr std::string_view kFullLast =
    "gemma4_text gemma4 gemma4_unified_text gemma4_unified diffusion_gemma_text diffusion_gemma "
    "embedding_gemma2_text";

// Types whose classes read decoder_sparse_step and mlp_only_layers.
constexpr std::string_view kSparseStep =
    "qwen2_moe qwen3_moe qwen3_next qwen3_vl_moe_text qwen3_vl_moe qwen3_omni_moe_text flint "
    "qwen3_omni_moe_talker_text";

}  // namespace

std::span<const Rule> rules() { return kRules; }
bool same_matter(const Rule& own, const Rule& any) {
  return own.names == any.names ||
         (own.list == "layer_types" && (any.names == kFullName || any.names == kSlidingName));
}
bool full_last(std::string_view type) { return among(kFullLast, type); }
bool sparse_steps(std::string_view type) { return among(kSparseStep, type); }

Number number_of(std::string_view text) {
  Number out;
  const std::size_t sign = text.find('=');
  out.key = text.substr(0, sign);
  if (sign != std::string_view::npos) {
    std::int64_t value = 0;
    std::from_chars(text.data() + sign + 1, text.data() + text.size(), value);
    out.standard = value;
  }
  return out;
}

const Json* held(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 31;  // beyond, numbers say nothing new

}  // namespace

// The value of a number: as set, else its default; nullopt if there is neither, or if it is not a
// number.
std::optional<std::int64_t> value_of(const Json& object, const Number& number) {
  if (number.key.empty()) return number.standard.value_or(0);
  const Json* value = held(object, number.key);
  if (value == nullptr) return number.standard;
  if (value->is_boolean()) return value->get<bool>() ? 1 : 0;
  if (!value->is_number_integer()) return std::nullopt;
  if (value->is_number_unsigned() &&
      value->get<std::uint64_t>() > static_cast<std::uint64_t>(kLimit)) {
    return kLimit;
  }
  return std::clamp(value->get<std::int64_t>(), -kLimit, kLimit);
}

bool divides(std::int64_t period, std::int64_t i) { return period > 0 && i % period == 0; }

// The kind of layer i of n. All within the limit, so that no sum overflows.
int kind(Form form, std::int64_t i, std::int64_t n, const Numbers& k) {
  const auto [a, b, c] = k;
  switch (form) {
    case Form::all:
      return static_cast<int>(a);
    case Form::every:
      return divides(a, i + 1) ? 1 : 0;
    case Form::every_or_last:
      return divides(a, i + 1) || i == n - 1 ? 1 : 0;
    case Form::every_or_sole:
      return divides(a, i + 1) || (n < a && i == n - 1) ? 1 : 0;
    case Form::every_from_0:
      return divides(a, i) ? 1 : 0;
    case Form::offset:
      return a > 0 && i % a == b ? 1 : 0;
    case Form::after:
      return i >= a ? 1 : 0;
    case Form::after_every:
      return i >= a && divides(b, i) ? 1 : 0;
    case Form::before:
      return i < a ? 1 : 0;
    case Form::last:
      return i >= n - a ? 1 : 0;
    case Form::span:
      return divides(a, i + 1) && i >= b && (c < 0 || i <= c) ? 1 : 0;
    case Form::even_before:
      return i % 2 == 0 && i < a ? 1 : 0;
    case Form::backward:
      return divides(a, n - 1 - i) ? 1 : 0;
    case Form::skipping:
      return divides(std::max<std::int64_t>(a, 1), std::max<std::int64_t>(i - b + 1, 0)) ? 1 : 0;
    case Form::prefixed:
      return i < a ? (divides(b, i + 1) ? 1 : 0) : (divides(c, i - a + 1) ? 1 : 0);
    case Form::not_first:
      return i > 0 && divides(a, i) ? 1 : 0;
    case Form::first_or_every:
      return i == 0 || divides(a, i + 1) ? 1 : 0;
    case Form::second_every:
      return i == 0 || divides(a, i - 1) ? 1 : 0;
    case Form::odd_after:
      return i >= a && i % 2 == 1 ? 1 : 0;
    case Form::fourths:
      return i < 2 || i % 4 == 1 || (a != 0 && i == n - 1) ? 0 : 1;
    case Form::thirds:
      return i % 4 == 2 ? 2 : i % 4 == 0 && i > 0 ? 1 : 0;
    case Form::trio:
      return i == 2 || (i > 2 && a > 0 && (i - 3) % a == b) ? 1 : 0;
    case Form::ten:
      return n > 10 && i < 10 ? 1 : 0;
  }
  return 0;
}

// The word of a kind as JSON: text, or a number where it looks like one.
Json word_of(std::string_view words, int kind) {
  for (int k = 0; !words.empty(); ++k) {
    const std::size_t end = std::min(words.find(' '), words.size());
    const std::string_view word = words.substr(0, end);
    if (k == kind) {
      if (word.find_first_not_of("0123456789.") != std::string_view::npos) return std::string(word);
      return Json::parse(word);
    }
    words.remove_prefix(std::min(end + 1, words.size()));
  }
  return kind;
}

// ---------------------------------------------------------------------------------------------
// Reading

// The layer numbers that a list, or a text with commas, holds; nothing if it holds anything else.
std::optional<std::unordered_set<std::int64_t>> numbers_in(const Json& value) {
  std::unordered_set<std::int64_t> out;
  if (value.is_array()) {
    for (const Json& each : value) {
      if (!each.is_number_integer()) return std::nullopt;
      out.insert(each.get<std::int64_t>());
    }
    return out;
  }
  if (!value.is_string()) return std::nullopt;
  std::string_view rest = value.get_ref<const std::string&>();
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    std::int64_t number = 0;
    const char* const stop = rest.data() + end;
    const auto [at, error] = std::from_chars(rest.data(), stop, number);
    if (error != std::errc() || at != stop) return std::nullopt;
    out.insert(number);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return out;
}

Kinds read_numbers(const Json& value, std::int64_t first, const Layers& layers) {
  const auto set = numbers_in(value);
  Kinds out;
  if (!set) return out;
  for (const std::uint64_t layer : layers) {
    out.emplace_back(set->contains(static_cast<std::int64_t>(layer) + first));
  }
  return out;
}

// A map's keys are layer numbers.
bool numbered(const Json& value) {
  return value.is_object() && !value.empty() &&
         std::all_of(value.items().begin(), value.items().end(), [](const auto& item) {
           return !item.key().empty() && item.key().size() < 10 &&
                  item.key().find_first_not_of("0123456789") == std::string::npos;
         });
}

// The values for layers in a list, a text or a map; any other value holds for all layers.
Kinds read_by_layer(const Json& value, const Layers& layers, bool spread) {
  Kinds out;
  for (const std::uint64_t layer : layers) {
    if (value.is_array()) {
      if (layer >= value.size()) return {};
      out.push_back(value[layer]);
    } else if (value.is_object()) {
      const Json* each = held(value, std::to_string(layer));
      out.push_back(each == nullptr ? Json() : *each);
    } else if (value.is_string() && !spread) {
      const auto& text = value.get_ref<const std::string&>();
      if (layer >= text.size()) return {};
      out.emplace_back(text.substr(layer, 1));
    } else {
      out.push_back(value);
    }
  }
  return out;
}

Kinds read_cycle(const Json& value, const Layers& layers) {
  Kinds out;
  if (!value.is_array() || value.empty()) return out;
  for (const std::uint64_t layer : layers) out.push_back(value[layer % value.size()]);
  return out;
}

// GPT-Neo's [[kinds, times], ...].
Kinds read_groups(const Json& value, const Layers& layers) {
  Kinds out;
  if (!value.is_array()) return out;
  for (const std::uint64_t layer : layers) {
    std::uint64_t before = 0;
    const Json* found = nullptr;
    for (const Json& group : value) {
      if (!group.is_array() || group.size() != 2 || !group[0].is_array() || group[0].empty() ||
          !group[1].is_number_unsigned()) {
        return {};
      }
      const std::uint64_t size = group[0].size();
      const std::uint64_t times = std::min<std::uint64_t>(group[1].get<std::uint64_t>(), kTimes);
      if (layer < before + size * times) {
        found = &group[0][(layer - before) % size];
        break;
      }
      before += size * times;
    }
    if (found == nullptr) return {};
    out.push_back(*found);
  }
  return out;
}

bool gated(const Json& object, std::string_view gates) {
  while (!gates.empty()) {
    const std::size_t end = std::min(gates.find(' '), gates.size());
    if (value_of(object, number_of(gates.substr(0, end))).value_or(1) == 0) return false;
    gates.remove_prefix(std::min(end + 1, gates.size()));
  }
  return true;
}

std::optional<Numbers> numbers_of(const Rule& rule, const Json& object) {
  Numbers out = {};
  for (std::size_t k = 0; k < out.size(); ++k) {
    const auto value = value_of(object, number_of(rule.numbers[k]));
    if (!value) return std::nullopt;
    out[k] = *value;
  }
  return out;
}

bool replaced(const Rule& rule, const Json& object) {
  std::string_view rest = rule.instead;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(' '), rest.size());
    if (held(object, rest.substr(0, end)) != nullptr) return true;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return false;
}

// The values by the rule itself, without its list.
Kinds read_rule(const Rule& rule, const Json& object, std::uint64_t count, const Layers& layers) {
  const auto numbers = numbers_of(rule, object);
  if (!numbers || replaced(rule, object)) return {};
  const bool open = gated(object, rule.gates);
  const auto n = static_cast<std::int64_t>(std::min<std::uint64_t>(count, kLimit));
  Kinds out;
  for (const std::uint64_t layer : layers) {
    const auto i = static_cast<std::int64_t>(std::min<std::uint64_t>(layer, kLimit));
    const int which = open ? kind(rule.form, i, n, *numbers) : 0;
    if (rule.words.empty() || rule.words == "#") {
      out.emplace_back(which == 1);
    } else {
      out.push_back(word_of(rule.words, which));
    }
  }
  return out;
}

// The list that decides in a rule's place, or null.
const Json* deciding(const Rule& rule, const Json& object) {
  const Json* list = rule.list.empty() ? nullptr : held(object, rule.list);
  return list != nullptr && list->is_array() && !list->empty() ? list : nullptr;
}

Kinds read(const Rule& rule, const Account& account, const Layers& layers) {
  if (const Json* list = deciding(rule, *account.object)) {
    return rule.words == "#" ? read_numbers(*list, 0, layers) : read_by_layer(*list, layers, false);
  }
  return read_rule(rule, *account.object, account.count, layers);
}

// Whether a layer has experts by decoder_sparse_step and mlp_only_layers.
Kinds read_sparse(const Account& account, const Layers& layers) {
  const Json& object = *account.object;
  const auto step = value_of(object, {"decoder_sparse_step", 1});
  if (!step) return {};
  std::unordered_set<std::int64_t> only;
  if (const Json* list = held(object, "mlp_only_layers")) {
    if (auto set = numbers_in(*list)) only = std::move(*set);
  }
  const bool experts = value_of(object, {"num_experts", 1}).value_or(1) > 0;
  Kinds out;
  for (const std::uint64_t layer : layers) {
    const auto i = static_cast<std::int64_t>(layer);
    out.emplace_back(experts && divides(*step, i + 1) && !only.contains(i));
  }
  return out;
}

}  // namespace ingot::plan::kinds
