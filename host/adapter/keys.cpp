#include "adapter/keys.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/clip.hpp"

namespace ingot::adapter {
namespace {

// The component of a name that tells the piece.
struct Head {
  std::string_view word;
  Family family;
  Piece piece;
  bool embedding = false;
};
constexpr std::array kHeads{
    Head{"lora_A", Family::lora, Piece::a},
    Head{"lora_B", Family::lora, Piece::b},
    Head{"lora_embedding_A", Family::lora, Piece::a, true},
    Head{"lora_embedding_B", Family::lora, Piece::b, true},
    Head{"lora_magnitude_vector", Family::lora, Piece::magnitude},
    Head{"lora_A", Family::adalora, Piece::a},
    Head{"lora_B", Family::adalora, Piece::b},
    Head{"lora_E", Family::adalora, Piece::e},
    Head{"hada_w1_a", Family::loha, Piece::w1_a},
    Head{"hada_w1_b", Family::loha, Piece::w1_b},
    Head{"hada_w2_a", Family::loha, Piece::w2_a},
    Head{"hada_w2_b", Family::loha, Piece::w2_b},
    Head{"hada_t1", Family::loha, Piece::t1},
    Head{"hada_t2", Family::loha, Piece::t2},
    Head{"lokr_w1", Family::lokr, Piece::w1},
    Head{"lokr_w1_a", Family::lokr, Piece::w1_a},
    Head{"lokr_w1_b", Family::lokr, Piece::w1_b},
    Head{"lokr_w2", Family::lokr, Piece::w2},
    Head{"lokr_w2_a", Family::lokr, Piece::w2_a},
    Head{"lokr_w2_b", Family::lokr, Piece::w2_b},
    Head{"lokr_t2", Family::lokr, Piece::t2},
    Head{"ia3_l", Family::ia3, Piece::l},
    Head{"oft_R", Family::oft, Piece::r},
    Head{"oft_embedding_R", Family::oft, Piece::r, true},
    Head{"boft_R", Family::boft, Piece::r},
    Head{"boft_s", Family::boft, Piece::s},
    Head{"vera_lambda_b", Family::vera, Piece::lambda_b},
    Head{"vera_lambda_d", Family::vera, Piece::lambda_d},
    Head{"vera_A", Family::vera, Piece::shared_a},
    Head{"vera_B", Family::vera, Piece::shared_b},
    Head{"miss_block", Family::miss, Piece::block},
    Head{"hra_u", Family::hra, Piece::u},
};

// Buffers that training leaves behind.
constexpr std::array kTraining{std::string_view("lora_velora_embed"),
                               std::string_view("lora_monteclora_sampler")};

// What other programs call their tensors.
struct Foreign {
  std::string_view word, whose;
};
constexpr std::array kForeign{
    Foreign{"lora_up", "Kohya"},       Foreign{"lora_down", "Kohya"},
    Foreign{"lora_mid", "Kohya"},      Foreign{"alpha", "Kohya"},
    Foreign{"dora_scale", "Kohya"},    Foreign{"lora", "diffusers"},
    Foreign{"diff", "ComfyUI"},        Foreign{"to_q_lora", "diffusers"},
    Foreign{"to_k_lora", "diffusers"}, Foreign{"diff_b", "ComfyUI"},
    Foreign{"to_v_lora", "diffusers"}, Foreign{"processor", "diffusers"},
};
constexpr std::array kForeignStarts{
    Foreign{"lora_unet_", "Kohya"},          Foreign{"lora_te_", "Kohya"},
    Foreign{"lora_te1_", "Kohya"},           Foreign{"lora_te2_", "Kohya"},
    Foreign{"lora_transformer_", "Kohya"},   Foreign{"lycoris_", "LyCORIS"},
    Foreign{"unet.", "diffusers"},           Foreign{"text_encoder.", "diffusers"},
    Foreign{"text_encoder_2.", "diffusers"}, Foreign{"diffusion_model.", "ComfyUI"},
};

using Words = std::vector<std::string_view>;

Words split(std::string_view name) {
  Words words;
  for (std::size_t start = 0;;) {
    const std::size_t dot = name.find('.', start);
    words.push_back(name.substr(start, dot - start));
    if (dot == std::string_view::npos) return words;
    start = dot + 1;
  }
}

std::string join(Words::const_iterator first, Words::const_iterator last) {
  return fmt::format("{}", fmt::join(first, last, "."));
}

Key refused(std::string why) {
  Key key;
  key.kind = Key::Kind::refused;
  key.why = std::move(why);
  return key;
}

std::optional<std::string_view> foreign(std::string_view name, const Words& words) {
  for (const Foreign& start : kForeignStarts) {
    if (name.starts_with(start.word)) return start.whose;
  }
  for (const std::string_view word : words) {
    for (const Foreign& known : kForeign) {
      if (known.word == word) return known.whose;
    }
  }
  return std::nullopt;
}

// Sets the path: `.base_layer` at its end are levels, inside it they mark a part of a wrapped
// module. `.token_adapter` wraps an embedding or a head beside the levels.
void set_path(Key& key, Words::const_iterator first, Words::const_iterator last) {
  for (; last != first; --last) {
    if (*(last - 1) == "base_layer") {
      ++key.nesting;
    } else if (*(last - 1) != "token_adapter") {
      break;
    }
  }
  Words words(first, last);
  const auto end = std::remove(words.begin(), words.end(), "base_layer");
  key.inner = end != words.end();
  words.erase(end, words.end());
  key.path = join(words.begin(), words.end());
}

}  // namespace

Key parse_key(std::string_view name, Family family) {
  Words words = split(name);
  if (std::any_of(words.begin(), words.end(), [](std::string_view w) { return w.empty(); })) {
    return refused("has an empty component");
  }
  std::erase(words, "_orig_mod");
  bool prefixed = false;
  if (words.size() > 1 && words[0] == "base_model") {
    prefixed = words[1] == "model";
    words.erase(words.begin(), words.begin() + (prefixed ? 2 : 1));
  }
  if (words.empty()) return refused("names nothing");

  for (std::size_t i = words.size(); i-- > 0;) {
    const std::string_view word = words[i];
    const auto at = words.cbegin() + static_cast<std::ptrdiff_t>(i);
    Words rest(at + 1, words.cend());
    if (!rest.empty() && rest.front() == "default") rest.erase(rest.begin());
    Key key;
    if (std::find(kTraining.begin(), kTraining.end(), word) != kTraining.end()) {
      key.kind = Key::Kind::idle;
      key.why = "used in training only";
      return key;
    }
    if (word == "trainable_tokens_delta") {
      if (!rest.empty()) return refused("has components after trainable_tokens_delta");
      key.kind = Key::Kind::tokens;
      set_path(key, words.cbegin(), at);
      if (key.path.empty()) return refused("names no module");
      return key;
    }
    if (word == "modules_to_save" || word == "original_module") {
      key.kind = word == "modules_to_save" ? Key::Kind::saved : Key::Kind::original;
      set_path(key, words.cbegin(), at);
      key.parameter = join(rest.cbegin(), rest.cend());
      if (key.path.empty() || rest.empty()) return refused("names no parameter of a module");
      return key;
    }
    if (word == "ln_tuning_layers") {
      key.kind = Key::Kind::saved;
      set_path(key, words.cbegin(), at);
      key.parameter = join(rest.cbegin(), rest.cend());
      if (key.path.empty() || rest.empty()) return refused("names no parameter of a module");
      return key;
    }
    if (word == "lora_diag") return refused("belongs to KaSA, which ingot does not compute");
    const auto known = std::find_if(kHeads.begin(), kHeads.end(), [&](const Head& head) {
      return head.word == word && head.family == family;
    });
    if (known == kHeads.end()) {
      const auto other = std::find_if(kHeads.begin(), kHeads.end(),
                                      [&](const Head& head) { return head.word == word; });
      if (other == kHeads.end()) continue;
      return refused(fmt::format("belongs to {}, while the configuration says {}",
                                 ingot::name(other->family), ingot::name(family)));
    }
    key.piece = known->piece;
    key.embedding = known->embedding;
    if (rest.size() == 1 && rest[0] == "bias" && key.piece == Piece::b) {
      key.piece = Piece::bias;
    } else if (!rest.empty() && !(rest.size() == 1 && rest[0] == "weight")) {
      return refused(
          fmt::format("has '{}' after {}; the name of an adapter there is read only where it "
                      "is 'default': save the adapter again, or rename its tensors",
                      clip(join(rest.cbegin(), rest.cend())), word));
    }
    if (key.piece == Piece::shared_a || key.piece == Piece::shared_b) {
      // Once at the model's level; modules may repeat it.
      key.kind = prefixed && i > 0 ? Key::Kind::idle : Key::Kind::shared;
      key.why = "a projection that stands at the model's level too";
      return key;
    }
    key.kind = Key::Kind::factor;
    set_path(key, words.cbegin(), at);
    if (key.path.empty()) return refused("names no module");
    return key;
  }

  Key key;
  if (words.size() < 2) return refused("is not a tensor of an adapter");
  key.parameter = words.back();
  set_path(key, words.cbegin(), words.cend() - 1);
  if (key.path.empty()) return refused("names no module");
  if (const auto whose = foreign(name, words)) {
    key.why = fmt::format(
        "is a name of {}, not of PEFT: convert the adapter to a PEFT folder first "
        "(diffusers loads it and save_lora_adapter writes one)",
        *whose);
  }
  return key;
}

std::ptrdiff_t place_of(std::string_view parameter) {
  constexpr std::array<std::string_view, kExperts> kOrder{
      "gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "down_proj", "w2"};
  return std::find(kOrder.begin(), kOrder.end(), parameter) - kOrder.begin();
}

std::string word(Piece piece, Family family) {
  if (piece == Piece::bias) return "lora_B.bias";
  for (const Head& head : kHeads) {
    if (head.piece == piece && head.family == family) return std::string(head.word);
  }
  return {};
}

}  // namespace ingot::adapter
