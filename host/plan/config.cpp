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

constexpr std::string_view kTextObjects[] = {"text_config", "llm_config", "language_config", ""};

// Lists of the length of the layer count that are no list of layers.
bool never_per_layer(std::string_view key) {
  return key == "architectures" || key.ends_with("_token_id") || key.ends_with("_token_ids") ||
         key.ends_with("_section") || key.ends_with("_sizes") || key.ends_with("_size");
}

// Lists of layer numbers, which cannot be rearranged by position.
bool names_layers(std::string_view key, const Json& value) {
  const bool likely = key.find("layer") != std::string_view::npos || key.ends_with("_idxs") ||
                      key.ends_with("_indices") || key.ends_with("_indexes");
  return likely && value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(),
                     [](const Json& v) { return v.is_number_integer(); });
}

// Rebuilds every list (and pattern string) of `object` that holds one item per layer; where no key
// counts layers, only lists that are named for them. Returns whether there was one.
bool restack(Json& object, const Edits& edits, const Restacked& stack, Problems& problems) {
  bool any = false;
  const bool counted = !stack.count.key.empty();
  for (auto& [key, value] : object.items()) {
    const bool list = value.is_array() && value.size() == stack.old_count &&
                      !never_per_layer(key) && (counted || key.find("layer") != std::string::npos);
    const bool pattern = value.is_string() && key.ends_with("_pattern") &&
                         value.get_ref<const std::string&>().size() == stack.old_count;
    if (!list && !pattern) {
      if (names_layers(key, value)) {
        problems.warn(Code::format, fmt::format("config.json of {}: '{}' may hold layer numbers, "
                                                "which the slices of the recipe have "
                                                "moved; it was copied as it is",
                                                edits.shown, key));
      }
      continue;
    }
    Json items = Json::array();
    std::string letters;
    const Json* donors = &value;
    for (const Origin& origin : stack.layers) {
      const Json* own = edits.models[origin.model].find({stack.count.object, key});
      // A model without this list takes part with the donor's item of the same layer.
      for (const Json* from : {own, donors}) {
        if (from == nullptr || from->type() != value.type()) continue;
        if (list && origin.layer < from->size()) {
          items.push_back((*from)[origin.layer]);
          break;
        }
        if (pattern && origin.layer < from->get_ref<const std::string&>().size()) {
          letters += from->get_ref<const std::string&>()[origin.layer];
          break;
        }
      }
    }
    if ((list ? items.size() : letters.size()) != stack.layers.size()) {
      problems.warn(Code::format, fmt::format("config.json of {}: '{}' has one item per layer, and "
                                              "a model of the recipe has none for one of "
                                              "its layers; it was copied as it is",
                                              edits.shown, key));
      continue;
    }
    value = list ? std::move(items) : Json(letters);
    any = true;
  }
  return any;
}

}  // namespace

Config::Config(std::string_view text, const std::string& shown) {
  if (text.empty()) return;
  const std::string where = fmt::format("config.json of {}", shown);
  if (text.size() > kBytes) {
    fail(Code::format,
         fmt::format("{} has {} bytes; more than {} are not read", where, text.size(), kBytes));
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
  const Json* object = place.object.empty() ? &document_ : member(document_, place.object);
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
    keys = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"};
    if (family != nullptr && !family->layers.empty())
      keys.insert(keys.begin(), std::string(family->layers));
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

  for (const Restacked& stack : edits.stacks) {
    Json& object = stack.count.object.empty() ? out : out[stack.count.object];
    const bool listed = restack(object, edits, stack, problems);
    if (!stack.count.key.empty()) {
      object[stack.count.key] = stack.layers.size();
    } else if (!listed) {
      problems.warn(Code::format, fmt::format("config.json of {} has no known key for the number "
                                              "of layers; the output has {}, so set it "
                                              "by hand",
                                              edits.shown, stack.layers.size()));
    }
    if (stack.changed && !listed) {
      problems.warn(
          Code::format,
          fmt::format("layer {} of the output has other tensors than layer {} of {}, whose "
                      "config.json holds no list of the kinds of layers: what it says of them by a "
                      "rule (a period, a first layer) may not fit any more, and programs may "
                      "refuse the output or leave tensors out",
                      *stack.changed, *stack.changed, edits.shown));
    }
  }

  const auto each_text = [&](auto&& act) {
    act(out);
    if (!edits.text.object.empty() && out.contains(edits.text.object)) act(out[edits.text.object]);
  };
  if (edits.vocabulary) {
    bool found = false;
    each_text([&](Json& object) {
      found = set_if_present(object, "vocab_size", *edits.vocabulary) || found;
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
