#include "plan/ties.hpp"

#include <algorithm>

namespace ingot::plan {
namespace {

// A row fits a class that it lists, or a checkpoint that has its witness: a tensor that only heads
// of this kind have, and that is never tied.
struct Row {
  std::string_view stems;    // class names without their heads
  std::string_view witness;  // empty: only listed classes
  std::string_view head;
  std::string_view bias, stored_bias;  // the bias under two names
};
constexpr Row kRows[] = {
    {"Whisper Moonshine MoonshineStreaming Canary CohereAsr", "", "proj_out.weight", "", ""},
    {"ModernBert ModernBertDecoder", "", "decoder.weight", "", ""},
    {"Esm Gte", "", "lm_head.decoder.weight", "", ""},
    {"BertGeneration", "", "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"},
    {"BioGpt TrOCR", "", "output_projection.weight", "", ""},
    {"Flaubert XLM", "", "pred_layer.proj.weight", "", ""},
    {"XLNet", "", "lm_loss.weight", "", ""},
    {"Git", "", "output.weight", "", ""},
    {"Rwkv", "", "head.weight", "", ""},
    {"T5Gemma T5Gemma2", "", "lm_head.out_proj.weight", "", ""},
    {"Kosmos2", "", "text_model.lm_head.weight", "", ""},
    {"GPTNeoX GPTNeoXJapanese", "", "embed_out.weight", "", ""},
    {"Blip", "", "text_decoder.cls.predictions.decoder.weight",
     "text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"},
    {"", "cls.predictions.transform.dense.weight", "cls.predictions.decoder.weight",
     "cls.predictions.decoder.bias", "cls.predictions.bias"},
    {"", "lm_head.dense.weight", "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias"},
    {"", "predictions.dense.weight", "predictions.decoder.weight", "predictions.decoder.bias",
     "predictions.bias"},
    {"", "generator_predictions.dense.weight", "generator_lm_head.weight", "", ""},
    {"", "vocab_transform.weight", "vocab_projector.weight", "", ""},
};

// Encoder and decoder that share the embedding: its name in checkpoints, and what stands before
// and behind the names of its two other uses.
struct Shared {
  std::string_view embedding, before, behind;
};
constexpr Shared kShared[] = {
    {"shared.weight", "", ".embed_tokens.weight"},
    {"model.shared.weight", "model.", ".embed_tokens.weight"},
    {"led.shared.weight", "led.", ".embed_tokens.weight"},
    {"model.language_model.shared.weight", "model.language_model.", ".embed_tokens.weight"},
    {"language_model.model.shared.weight", "language_model.model.", ".embed_tokens.weight"},
    {"prophetnet.word_embeddings.weight", "prophetnet.", ".word_embeddings.weight"},
};

// What may follow the stem of a class with a head.
constexpr std::string_view kSpeaking[] = {
    "ForCausalLM",       "LMHeadModel",      "ForMaskedLM", "ForConditionalGeneration",
    "ForPreTraining",    "DoubleHeadsModel", "MTModel",     "GenerationDecoder",
    "ForImageTextToText"};

bool of_class(std::string_view stems, std::string_view architecture) {
  while (!stems.empty()) {
    const std::size_t end = std::min(stems.find(' '), stems.size());
    const std::string_view stem = stems.substr(0, end);
    if (architecture.starts_with(stem)) {
      const std::string_view rest = architecture.substr(stem.size());
      for (const char* start : {"For", "LM", "WithLM", "MT", "Decoder"}) {
        if (rest.starts_with(start)) return true;
      }
    }
    stems.remove_prefix(std::min(end + 1, stems.size()));
  }
  return false;
}

}  // namespace

Ties ties(std::string_view architecture, const std::function<bool(const std::string&)>& has,
          std::string_view head) {
  Ties out;
  out.head = head.empty() ? "lm_head.weight" : head;
  for (const Row& row : kRows) {
    const bool fits =
        row.witness.empty() ? of_class(row.stems, architecture) : has(std::string(row.witness));
    if (!fits) continue;
    out.head = row.head;
    if (!row.bias.empty()) out.biases.emplace_back(row.bias, row.stored_bias);
    break;
  }
  for (const Shared& row : kShared) {
    if (!has(std::string(row.embedding))) continue;
    out.embedding = row.embedding;
    for (const char* side : {"encoder", "decoder"}) {
      out.uses.push_back(std::string(row.before) + side + std::string(row.behind));
    }
  }
  return out;
}

bool speaks(std::string_view architecture) {
  return std::any_of(std::begin(kSpeaking), std::end(kSpeaking), [&](std::string_view part) {
    return architecture.find(part) != std::string_view::npos;
  });
}

}  // namespace ingot::plan
