#include "plan/roles.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <initializer_list>

#include "plan/ties.hpp"

namespace ingot::plan {
namespace {

constexpr std::string_view kHeads[] = {
    "ForCausalLM",
    "LMHeadModel",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "Model",
};

// Names are those of the checkpoints, which old and new releases of transformers share.
constexpr Family kFamilies[] = {
    {"Llama LLaMa Mistral Mixtral Qwen2 Qwen2Moe Qwen3 Qwen3Moe Phi Phi3 Phi3Small Phimoe StableLm "
     "StableLMEpoch Gemma Gemma2 Gemma3 Cohere Cohere2 Olmo Olmo2 Olmo3 Olmoe Granite GraniteMoe "
     "GraniteMoeHybrid Starcoder2 Deepseek DeepseekV2 DeepseekV3 Solar InternLM Baichuan Yi Glm "
     "Glm4 Glm4Moe Arcee Apertus SmolLM3 Exaone4 MiniCPM GptOss Ernie4_5 Lfm2 Jamba Afmoe SeedOss "
     "HunYuanDenseV1 Nemotron Qwen3Next Qwen3_5 Qwen3_5Moe Helium BitNet Persimmon Bamba Zamba2 "
     "JetMoe "
     "Ernie4_5_Moe DiffLlama VaultGemma Doge MiniMax MiniMaxM2 GlmMoeDsa ExaoneMoe FlexOlmo "
     "OlmoHybrid GraniteMoeShared RecurrentGemma KimiLinear",
     "model.", "model.layers", "num_hidden_layers", "model.embed_tokens.weight", "lm_head.weight"},
    {"GPT2 GPTBigCode GPTJ CodeGen JAIS", "transformer.", "transformer.h", "n_layer",
     "transformer.wte.weight", "lm_head.weight"},
    {"GPTNeo Exaone", "transformer.", "transformer.h", "num_layers", "transformer.wte.weight",
     "lm_head.weight"},
    {"QWen", "transformer.", "transformer.h", "num_hidden_layers", "transformer.wte.weight",
     "lm_head.weight"},
    {"GPTNeoX", "gpt_neox.", "gpt_neox.layers", "num_hidden_layers", "gpt_neox.embed_in.weight",
     "embed_out.weight"},
    {"Falcon RW", "transformer.", "transformer.h", "num_hidden_layers",
     "transformer.word_embeddings.weight", "lm_head.weight"},
    {"Bloom", "transformer.", "transformer.h", "n_layer", "transformer.word_embeddings.weight",
     "lm_head.weight"},
    {"MPT Mpt", "transformer.", "transformer.blocks", "n_layers", "transformer.wte.weight",
     "lm_head.weight"},
    {"OPT", "model.", "model.decoder.layers", "num_hidden_layers",
     "model.decoder.embed_tokens.weight", "lm_head.weight"},
    {"InternLM2", "model.", "model.layers", "num_hidden_layers", "model.tok_embeddings.weight",
     "output.weight"},
    {"ChatGLM", "transformer.", "transformer.encoder.layers", "num_layers",
     "transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"},
    {"Mamba Mamba2 FalconMamba", "backbone.", "backbone.layers", "num_hidden_layers",
     "backbone.embeddings.weight", "lm_head.weight"},
    {"Bert", "bert.", "bert.encoder.layer", "num_hidden_layers",
     "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"},
    {"Roberta XLMRoberta", "roberta.", "roberta.encoder.layer", "num_hidden_layers",
     "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"},
    {"DistilBert", "distilbert.", "distilbert.transformer.layer", "n_layers",
     "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"},
    // Encoder and decoder, or text and images: modules and layer counts are found by name.
    {"T5 MT5 UMT5", "", "", "", "shared.weight", "lm_head.weight"},
    {"Whisper Bart MBart", "", "", "", "", ""},
    {"Qwen2VL Qwen2_5_VL Qwen3VL Qwen3VLMoe Mistral3 Llama4 Llava LlavaNext Gemma3n", "", "", "",
     "", ""},
};

bool contains(std::initializer_list<std::string_view> list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

// True if a component of the name is a number.
bool numbered(std::string_view name) {
  while (!name.empty()) {
    const std::string_view component = first_component(name);
    if (is_number(component)) return true;
    name.remove_prefix(std::min(component.size() + 1, name.size()));
  }
  return false;
}

bool is_buffer(std::string_view name, const Shape& shape) {
  const std::string_view last = last_component(name);
  if (contains({"inv_freq", "original_inv_freq", "masked_bias", "position_ids", "token_type_ids",
                "cos_cached", "sin_cached"},
               last)) {
    return true;
  }
  return last == "bias" && shape.rank() >= 3;  // a causal mask, [1, 1, n, n]
}

}  // namespace

const Family* family(std::string_view architecture) {
  for (const std::string_view head : kHeads) {
    if (architecture.size() > head.size() && architecture.ends_with(head)) {
      architecture.remove_suffix(head.size());
      break;
    }
  }
  for (const Family& row : kFamilies) {
    if (has_word(row.stems, architecture)) return &row;
  }
  return nullptr;
}

bool is_number(std::string_view word) {
  return !word.empty() && word.find_first_not_of("0123456789") == word.npos;
}

bool has_word(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(' '), list.size());
    if (list.substr(0, end) == word) return true;
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return false;
}

std::string_view first_component(std::string_view name) { return name.substr(0, name.find('.')); }

std::string_view last_component(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? name : name.substr(dot + 1);
}

std::string_view parent(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(0, dot);
}

std::optional<ExpertLayer> expert_layer(std::string_view path) {
  const std::string_view numbered = parent(path), digits = last_component(numbered);
  ExpertLayer layer{parent(numbered), 0, last_component(path)};
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), layer.number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  if (last_component(layer.owner) != "experts") return std::nullopt;
  return layer;
}

Role role(std::string_view name, const Shape& shape, const Family* family, const Ties* ties) {
  if (numbered(name)) return layer_role(name, shape);
  if (is_buffer(name, shape)) return Role::buffer;
  const std::string_view owner = parent(name);
  const std::string_view last = last_component(name);
  if (ties != nullptr) {
    const bool use = name == ties->embedding ||
                     std::find(ties->uses.begin(), ties->uses.end(), name) != ties->uses.end();
    if (use && shape.rank() == 2) return Role::embedding;
    if (name == ties->head && shape.rank() == 2) return Role::head;
    if (ties->bias(name)) return Role::head_bias;
  }
  if (family != nullptr && !family->embedding.empty()) {
    if (name == family->embedding && shape.rank() == 2) return Role::embedding;
    if (name == family->head && shape.rank() == 2) return Role::head;
    if (last == "bias" && owner == parent(family->head)) return Role::head_bias;
  }
  const std::string_view module = last_component(owner);
  const bool headed =
      contains({"lm_head", "embed_out", "output", "output_layer", "vocab_projector"}, module) ||
      owner.ends_with("cls.predictions.decoder") || owner.ends_with("lm_head.decoder");
  if (last == "weight" && shape.rank() == 2) {
    if (contains({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in", "shared",
                  "token_embedding"},
                 module) ||
        owner == "backbone.embeddings") {
      return Role::embedding;
    }
    if (headed) return Role::head;
  }
  if (last == "bias") {
    return headed || owner == "cls.predictions" ? Role::head_bias : Role::bias;
  }
  return Role::other;
}

Role layer_role(std::string_view name, const Shape& shape) {
  if (is_buffer(name, shape)) return Role::buffer;
  return last_component(name) == "bias" ? Role::bias : Role::other;
}

bool trailing(std::string_view name, Role role) {
  if (role == Role::head || role == Role::head_bias) return true;
  if (role == Role::embedding || name.find("emb") != std::string_view::npos) return false;
  if (name.find("norm") != std::string_view::npos) return true;
  while (!name.empty()) {
    const std::string_view component = first_component(name);
    if (contains({"ln_f", "lm_head", "embed_out", "output", "output_layer", "score", "classifier",
                  "pooler", "cls", "qa_outputs", "head", "logit_scale", "vocab_projector",
                  "vocab_transform", "pre_classifier"},
                 component)) {
      return true;
    }
    name.remove_prefix(std::min(component.size() + 1, name.size()));
  }
  return false;
}

std::string_view ahead(std::string_view name) {
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('.', begin), name.size());
    const std::string_view component = name.substr(begin, end - begin);
    if (component == "mtp" || component.starts_with("mtp_")) return name.substr(0, end);
    begin = end + 1;
  }
  return {};
}

bool counts_layers(std::string_view component) {
  return contains({"layers", "layer", "h", "block", "blocks", "resblocks"}, component);
}

std::string_view module(std::string_view name, bool paired) {
  // The first component that says what it is decides: "model.visual.merger.mlp.0" is a projector's,
  // so projectors are asked first.
  bool vision = false;
  bool audio = false;
  for (std::string_view rest = name; !rest.empty();) {
    const std::string_view component = first_component(rest);
    if (contains({"multi_modal_projector", "mm_projector", "merger", "deepstack_merger_list",
                  "connector", "projector", "embed_vision", "embed_audio"},
                 component)) {
      return "multi_modal_projector";
    }
    vision = vision ||
             contains({"vision_tower", "vision_model", "visual", "vision_encoder", "image_newline"},
                      component);
    audio = audio || contains({"audio_tower", "audio_encoder", "speech_encoder"}, component);
    rest.remove_prefix(std::min(component.size() + 1, rest.size()));
  }
  if (vision) return "vision_tower";
  if (audio) return "audio_tower";
  if (paired) {
    std::string_view rest = name;
    if (rest.starts_with("model.")) rest.remove_prefix(6);
    const std::string_view side = first_component(rest);
    return side == "encoder" || side == "decoder" ? side : "shared";
  }
  return "text_decoder";
}

}  // namespace ingot::plan
