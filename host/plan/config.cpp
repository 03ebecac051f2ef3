#include "plan/config.hpp"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "store/json.hpp"

namespace ingot::plan {
namespace {

using Json = nlohmann::ordered_json;

// Real ones have some hundred keys; with the label maps of ImageNet-21k, 44,000. Every look for a
// key passes all of them.
constexpr std::size_t kBytes = std::size_t{16} << 20;
constexpr std::size_t kKeys = 50'000;

// Python writes NaN and Infinity as bare words. They travel through JSON as strings that begin with
// a private-use character (U+E000), which no config is known to hold.
constexpr std::string_view kMark = "\xee\x80\x80";
constexpr std::string_view kWords[] = {"NaN", "-Infinity", "Infinity"};

// The text as JSON, and how many keys it has.
struct Scan {
  std::string text;
  std::size_t keys = 0;
};

Scan scan(std::string_view text) {
  Scan out;
  out.text.reserve(text.size() + 16);
  bool inside = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (inside && c == '\\' && i + 1 < text.size()) {
      out.text += c;
      out.text += text[++i];
      continue;
    }
    if (c == '"') inside = !inside;
    if (!inside) {
      const auto* word = std::find_if(std::begin(kWords), std::end(kWords),
                                      [&](auto w) { return text.substr(i).starts_with(w); });
      if (word != std::end(kWords)) {
        out.text += fmt::format("\"{}{}\"", kMark, *word);
        i += word->size() - 1;
        continue;
      }
      if (c == ':') ++out.keys;
    }
    out.text += c;
  }
  return out;
}

void replace_all(std::string& text, const std::string& from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

std::optional<std::uint64_t> whole(const Json* value) {
  if (value == nullptr || !value->is_number_unsigned()) return std::nullopt;
  return value->get<std::uint64_t>();
}

const Json* member(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() ? nullptr : &*it;
}

constexpr std::string_view kTextObjects[] = {"text_config",
                                             "llm_config",
                                             "language_config",
                                             "lm_config",
                                             "language_model_config",
                                             "thinker_config.text_config",
                                             ""};

// Other keys for the rows of the vocabulary; they follow where they say its old number.
constexpr const char* kVocabularies[] = {"decoder_vocab_size", "src_vocab_size", "tgt_vocab_size",
                                         "n_words"};

constexpr const char* kCounts[] = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"};

// The object under a path of keys with dots, or null.
template <class Value>
Value* inner(Value& document, std::string_view path) {
  Value* object = &document;
  while (!path.empty()) {
    const std::size_t end = std::min(path.find('.'), path.size());
    if (!object->is_object()) return nullptr;
    const auto it = object->find(std::string(path.substr(0, end)));
    if (it == object->end()) return nullptr;
    object = &*it;
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return object->is_object() ? object : nullptr;
}

}  // namespace

Config::Config(std::string_view text, const std::string& shown) {
  if (text.empty()) return;
  const std::string where = fmt::format("config.json of {}", shown);
  if (text.size() > kBytes) {
    fail(Code::format,
         fmt::format("{} has {} bytes; at most {} are read", where, text.size(), kBytes));
  }
  const Scan scanned = scan(text);
  if (scanned.keys > kKeys) {
    fail(Code::format,
         fmt::format("{} has {} keys; at most {} are read", where, scanned.keys, kKeys));
  }
  document_ = json_of(scanned.text, where);
  if (!document_.is_object()) {
    fail(Code::format, fmt::format("{} is not a JSON object", where));
  }
  ascii_ = std::all_of(text.begin(), text.end(),
                       [](char c) { return static_cast<signed char>(c) >= 0; });
}

const Json* Config::find(const Place& place) const {
  const Json* object = inner(document_, place.object);
  return object == nullptr ? nullptr : member(*object, place.key);
}

std::string Config::architecture() const {
  const Json* list = member(document_, "architectures");
  if (list == nullptr || !list->is_array() || list->empty() || !list->front().is_string())
    return {};
  return list->front().get<std::string>();
}

std::string Config::quantised() const {
  for (const std::string_view object : kTextObjects) {
    for (const char* key : {"quantization_config", "compression_config"}) {
      const Json* value = find({std::string(object), key});
      if (value == nullptr || value->is_null()) continue;
      const Json* method = member(*value, "quant_method");
      return method != nullptr && method->is_string() ? method->get<std::string>() : key;
    }
  }
  return {};
}

std::optional<LayerCount> Config::layers(std::string_view module, const Family* family,
                                         std::uint64_t stored) const {
  std::vector<std::string> objects;
  std::vector<std::string> keys;
  if (module == "multi_modal_projector") return std::nullopt;
  if (module == "vision_tower") {
    objects = {"vision_config", "visual"};
    keys = {"num_hidden_layers", "depth", "num_layers", "n_layers"};
  } else if (module == "audio_tower") {
    objects = {"audio_config"};
    keys = {"num_hidden_layers", "encoder_layers", "num_layers"};
  } else if (module == "encoder" || module == "decoder") {
    objects = {"", std::string(module)};
    keys = {fmt::format("{}_layers", module), fmt::format("num_{}_layers", module), "num_layers",
            "num_hidden_layers"};
  } else {
    objects.assign(std::begin(kTextObjects), std::end(kTextObjects));
    keys.assign(std::begin(kCounts), std::end(kCounts));
    if (family != nullptr && !family->layers.empty())
      keys.insert(keys.begin(), std::string(family->layers));
    keys.emplace_back("decoder_layers");  // of a decoder that was saved without its encoder
  }
  std::optional<LayerCount> any;
  for (const std::string& object : objects) {
    for (const std::string& key : keys) {
      const auto value = whole(find({object, key}));
      if (!value || *value == 0) continue;
      if (*value == stored) return LayerCount{{object, key}, *value};
      if (!any) any = LayerCount{{object, key}, *value};
    }
  }
  return any;
}

std::optional<bool> Config::tied() const {
  std::optional<bool> said;
  for (const std::string_view object : kTextObjects) {
    const Json* value = find({std::string(object), "tie_word_embeddings"});
    if (value != nullptr && value->is_boolean()) said = said.value_or(false) || value->get<bool>();
  }
  return said;
}

Account Config::account(const Place& count, std::uint64_t layers, const std::string& shown) const {
  Account out;
  out.count = layers;
  out.shown = shown;
  out.object = inner(document_, count.object);
  for (const std::string_view path : kTextObjects) {
    const Json* object = out.object == nullptr ? inner(document_, path) : nullptr;
    if (object == nullptr) continue;
    const auto counts = [&](const char* key) { return object->contains(key); };
    if (object->contains(count.key) || std::any_of(std::begin(kCounts), std::end(kCounts), counts))
      out.object = object;
  }
  for (const Json* object : {out.object, &document_}) {
    const Json* type = object == nullptr ? nullptr : member(*object, "model_type");
    if (out.type.empty() && type != nullptr && type->is_string()) out.type = *type;
  }
  return out;
}

// The values of the document for layers, rearranged for the layers of the output.
void Config::restack(Json& out, const Edits& edits, const Restacked& stack,
                     Problems& problems) const {
  const auto name = [&](std::size_t m) {
    return m < edits.names.size() ? edits.names[m] : edits.shown;
  };
  // A document may say of the text model beside its sub-config what it says in there.
  std::vector<std::string> objects = {stack.count.object};
  const auto doubled =
      stack.count.object.empty() ? std::nullopt : whole(find({"", stack.count.key}));
  if (doubled == stack.old_count) objects.emplace_back();
  bool listed = false;
  Order order = stack.order;
  for (const std::string& path : objects) {
    Json* object = inner(out, path);
    if (object == nullptr) continue;
    std::vector<Account> accounts;
    for (std::size_t m = 0; m < edits.models.size(); ++m) {
      const std::uint64_t depth = m < stack.depths.size() ? stack.depths[m] : stack.old_count;
      accounts.push_back(edits.models[m].account({path, stack.count.key}, depth, name(m)));
    }
    // This config is the donor's also where another model lent it.
    accounts[edits.donor] = account({path, stack.count.key}, stack.old_count, edits.shown);
    const bool waived =
        rearrange(*object, accounts, edits.donor, order, edits.allow_mismatch, problems, listed);
    if (waived && edits.mismatched != nullptr) *edits.mismatched = true;
    order.sets.clear();  // looked at once
    order.joined.clear();
    if (stack.count.key.empty()) continue;
    // Other keys that count the same layers, or a fixed number for each layer.
    const bool decoder = stack.count.key.find("decoder") != std::string::npos;
    for (const char* key : kCounts) {
      const auto it = object->find(key);
      if (decoder || it == object->end() || !it->is_number_unsigned()) continue;
      const auto value = it->get<std::uint64_t>();
      if (value > 0 && stack.old_count > 0 && value % stack.old_count == 0) {
        *it = value / stack.old_count * stack.order.layers.size();
      }
    }
    const auto blocks = object->find("num_blocks");  // xLSTM's
    if (blocks != object->end() && whole(&*blocks) == stack.old_count) {
      *blocks = stack.order.layers.size();
    }
    (*object)[stack.count.key] = stack.order.layers.size();
  }
  if (stack.count.key.empty() && !listed) {
    problems.warn(Code::format,
                  fmt::format("config.json of {} has no known key for the number of layers; the "
                              "output has {}, so set it by hand",
                              edits.shown, stack.order.layers.size()));
  }
}

// What the document and its object of the text say of layers for multi-token prediction.
void Config::count_ahead(Json& out, const Edits& edits, Problems& problems) const {
  const Ahead& ahead = edits.ahead;
  const bool lent = ahead.from && *ahead.from != edits.donor;
  const std::string from = lent ? edits.names[*ahead.from] : std::string();
  Json said = Json::object();  // by the model that gives them, wherever in its config it does
  if (lent) {
    const Config& giver = edits.models[*ahead.from];
    for (const Json* object : {&giver.document_, giver.account(edits.text, 0, from).object}) {
      if (object != nullptr && object->is_object()) said.update(*object);
    }
  }
  Json* text = inner(out, edits.text.object);
  if (text == nullptr) text = &out;
  plan::count_ahead(*text, lent ? &said : nullptr, ahead.layers, edits.shown, from, problems);
  // The same keys are repeated beside the text's object, or in objects about these layers alone.
  const auto again = [&](Json& object) {
    plan::count_ahead(object, nullptr, ahead.layers, edits.shown, from, problems);
  };
  if (text != &out) again(out);
  for (Json* object : {text, &out}) {
    for (auto& [key, value] : object->items()) {
      if (value.is_object() && key.starts_with("mtp")) again(value);
    }
  }
}

std::string Config::edited(const Edits& edits, Problems& problems) const {
  Json out = document_;
  const auto set_if_present = [](Json& object, const char* key, const Json& value) {
    const auto it = object.find(key);
    if (it == object.end()) return false;
    *it = value;
    return true;
  };

  for (auto& [key, value] : out.items()) {
    if (!edits.uniform || !value.is_object() || !key.ends_with("_config")) continue;
    for (const char* name : {"dtype", "torch_dtype"}) {
      const auto it = value.find(name);
      if (it != value.end() && it->is_string()) *it = edits.dtype;
    }
  }
  if (!edits.dtype.empty()) {
    const bool dtype = set_if_present(out, "dtype", edits.dtype);
    const bool torch_dtype = set_if_present(out, "torch_dtype", edits.dtype);
    if (!dtype && !torch_dtype) out["dtype"] = edits.dtype;
  }

  for (const Restacked& stack : edits.stacks) restack(out, edits, stack, problems);

  if (edits.ahead.known) count_ahead(out, edits, problems);

  const auto each_text = [&](auto&& act) {
    act(out);
    Json* text = edits.text.object.empty() ? nullptr : inner(out, edits.text.object);
    if (text != nullptr) act(*text);
  };
  if (edits.vocabulary) {
    bool found = false;
    each_text([&](Json& object) {
      found = set_if_present(object, "vocab_size", *edits.vocabulary) || found;
      const Json* shared = member(object, "share_encoder_decoder_embeddings");
      if (shared != nullptr && *shared == false) return;  // the decoder has rows of its own
      for (const char* key : kVocabularies) {
        if (whole(member(object, key)) != edits.old_vocabulary) continue;
        object[key] = *edits.vocabulary;
        found = true;
      }
    });
    if (!found) out["vocab_size"] = *edits.vocabulary;
  }
  if (edits.tied) {
    bool found = false;
    each_text([&](Json& object) {
      found = set_if_present(object, "tie_word_embeddings", *edits.tied) || found;
    });
    if (!found) out["tie_word_embeddings"] = *edits.tied;
  }

  std::string text = out.dump(2, ' ', ascii_) + "\n";
  const std::string mark = ascii_ ? "\\ue000" : std::string(kMark);
  for (const std::string_view word : kWords) {
    replace_all(text, fmt::format("\"{}{}\"", mark, word), word);
  }
  return text;
}

}  // namespace ingot::plan
