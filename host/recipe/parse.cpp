#include <algorithm>
#include <array>
#include <cmath>
#include <exception>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "ingot/math/rule.hpp"
#include "ingot/recipe.hpp"
#include "recipe/number.hpp"
#include "recipe/reference.hpp"
#include "recipe/tree.hpp"

namespace ingot {
namespace {

// Every place of a recipe that has fixed keys, and the keys. Below `parameters` the names are the
// method's own, which the plan checks.
enum class Place {
  top,
  model,
  slice,
  source,
  module,
  tokenizer,
  condition,
  reference,
  path,
  fusion,
  member,
  extraction,
  adapter
};

struct Keys {
  const char* where;
  std::vector<std::string> names;
  // mergekit's own grammar, which leaves unknown keys unread: a recipe that has one runs there.
  bool shared = true;
};

std::array<Keys, 13> all_keys() {
  return {{
      {"at the top level",
       {"merge_method", "models", "slices", "modules", "base_model", "parameters", "dtype",
        "out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"}},
      {"in an entry of 'models'", {"model", "parameters"}},
      {"in an entry of 'slices'", {"sources", "base_model", "parameters"}},
      {"in an entry of 'sources'", {"model", "layer_range", "parameters"}},
      {"in a module", {"models", "slices", "parameters"}},
      {"in 'tokenizer'", {"source", "tokens", "pad_to_multiple_of"}},
      {"in a condition", {"filter", "value"}},
      {"in a model reference",
       {"model", "path", "revision", "lora", "adapters", "override_architecture"}},
      {"in a model path", {"path", "revision"}},
      {"at the top level of a recipe of adapters",
       {"adapter_method", "adapters", "parameters", "rank", "energy", "ranks", "majority_sign",
        "whole_tensors", "keep_scaling", "compat", "for", "dtype", "name"},
       false},
      {"in an entry of 'adapters'", {"adapter", "parameters"}, false},
      {"at the top level of an extraction",
       {"extract", "base_model", "model", "rank", "energy", "bytes", "ranks", "whole_tensors",
        "for", "dtype", "name"},
       false},
      {"in an adapter", {"path", "revision", "weight"}, false},
  }};
}

// A key of mergekit's grammar that does nothing there either.
constexpr const char* kIdle = "residual_weight";

// Keys that say which weights are meant: unread in another place, they would leave other ones.
constexpr const char* kWeights[] = {"lora",     "adapter", "adapters",
                                    "revision", "path",    "override_architecture"};

// Files of other programs that look like recipes, by a key that only they have.
struct Foreign {
  const char* key;
  const char* what;
};
constexpr Foreign kForeign[] = {
    {"experts",
     "mergekit-moe, which builds a mixture of experts out of dense models; ingot merges models and "
     "does not build one"},
    {"gate_mode",
     "mergekit-moe, which builds a mixture of experts out of dense models; ingot merges models and "
     "does not build one"},
    {"genome",
     "mergekit-evolve, which searches for parameters; ingot runs one recipe, such as the one that "
     "the search found"},
};

// The most remarks about one recipe.
constexpr std::size_t kMostRemarks = 1000;

constexpr double kMostLayers = 1'000'000;
constexpr std::size_t kMostText = 4096;  // bytes of a name or path, as file systems have it
constexpr double kMostPadding = 1'048'576;
constexpr double kMostWeight = 1e6;  // of an adapter
constexpr double kMostRank = 1'048'576;
constexpr double kMostBytes = 0x1p62;

const char* describe(const Node& node) {
  switch (node.kind) {
    case Node::Kind::null:
      return "nothing";
    case Node::Kind::scalar:
      return "a single value";
    case Node::Kind::list:
      return "a list";
    case Node::Kind::map:
      return "a mapping";
  }
  return "";
}

const Node::Pair* find(const Node& map, std::string_view key) {
  const auto found = std::find_if(map.pairs.begin(), map.pairs.end(),
                                  [&](const Node::Pair& pair) { return pair.key == key; });
  return found == map.pairs.end() ? nullptr : &*found;
}

// A plain scalar is what PyYAML's safe loader and mergekit's own conversion make of it together:
// one of YAML 1.1's words for a boolean, a number, or text.
Scalar scalar_of(const Node& node) {
  if (node.plain) {
    for (const char* word : {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}) {
      if (node.text == word) return true;
    }
    for (const char* word : {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"}) {
      if (node.text == word) return false;
    }
    if (const auto value = number(node.text)) return *value;
  }
  return node.text;
}

class Reader {
 public:
  Reader(Recipe& recipe, const ParseOptions& options)
      : recipe_(recipe), options_(options), keys_(all_keys()) {}

  void recipe(const Node& top) {
    if (top.kind != Node::Kind::map) {
      bad(top.mark, fmt::format("a recipe is a mapping with 'merge_method' and one of 'models', "
                                "'slices' and 'modules', not {}",
                                describe(top)));
    }
    for (const Foreign& foreign : kForeign) {
      if (find(top, "merge_method") == nullptr && find(top, foreign.key) != nullptr) {
        bad(find(top, foreign.key)->mark,
            fmt::format("'{}': this file is for {}", foreign.key, foreign.what));
      }
    }
    if (const auto* type = find(top, "adapter_method")) return fusion(top, *type);
    if (const auto* type = find(top, "extract")) return extraction(top, *type);
    check(top, Place::top);
    attempt([&] {
      const Node::Pair* method = find(top, "merge_method");
      if (method == nullptr)
        bad(top.mark, "'merge_method' is missing, for example 'merge_method: linear'");
      recipe_.method = text(*method);
      recipe_.method_mark = method->value->mark;
    });
    attempt([&] { one_of(top, {"models", "slices", "modules"}); });
    read(top, "models", [&](const auto& pair) { recipe_.models = models(pair); });
    read(top, "slices", [&](const auto& pair) { recipe_.slices = slices(pair); });
    read(top, "modules", [&](const auto& pair) { recipe_.modules = modules(pair); });
    read(top, "base_model", [&](const auto& pair) { recipe_.base_model = reference(pair); });
    read(top, "parameters", [&](const auto& pair) { recipe_.parameters = parameters(pair); });
    output_dtype(top);
    read(top, "out_dtype", [&](const auto& pair) {
      recipe_.out_dtype = dtype(pair);
      recipe_.out_dtype_mark = pair.value->mark;
    });
    attempt([&] { vocabulary(top); });
    read(top, "chat_template", [&](const auto& pair) {
      const bool none = pair.value->kind == Node::Kind::scalar && pair.value->text.empty();
      if (none) return as_absent(pair, "is empty");
      recipe_.chat_template = text(pair, kRecipeBytes);
      recipe_.chat_template_mark = pair.value->mark;
    });
  }

  // What is said of a recipe that has no more to read.
  void finish() {
    auto& all = recipe_.remarks;
    std::stable_sort(all.begin(), all.end(), [](const Remark& a, const Remark& b) {
      return std::pair(a.mark.line, a.mark.column) < std::pair(b.mark.line, b.mark.column);
    });
  }

  // Runs `work`; what is wrong there is remarked, and the rest of the recipe is read all the same.
  template <class Work>
  void attempt(const Work& work) {
    try {
      work();
    } catch (const Spoilt&) {
    }
  }

 private:
  // Ends the reading of one part of the recipe; what is wrong with it has been remarked.
  struct Spoilt final : std::exception {};

  [[noreturn]] void bad(Mark mark, const std::string& message) {
    remark(true, mark, message);
    throw Spoilt();
  }

  void note(Mark mark, const std::string& message) { remark(false, mark, message); }

  void remark(bool fatal, Mark mark, const std::string& message) {
    auto& all = recipe_.remarks;
    // An error is never lost for want of room.
    const bool first = fatal && std::none_of(all.begin(), all.end(),
                                             [](const Remark& other) { return other.fatal; });
    if (all.size() < kMostRemarks || first)
      all.push_back({fatal, mark, fmt::format("{}: {}", position(recipe_.file, mark), message)});
  }

  void as_absent(const Node::Pair& pair, const char* why) {
    note(pair.mark, fmt::format("'{}' {}: read as if the key were not there", pair.key, why));
  }

  // The key's pair, null where the map has none or one without a value.
  const Node::Pair* given(const Node& map, std::string_view key) {
    const Node::Pair* pair = find(map, key);
    if (pair == nullptr || pair->value->kind != Node::Kind::null) return pair;
    as_absent(*pair, "has no value");
    return nullptr;
  }

  // Reads one key of a map, where it is given; what is wrong with it spoils no other key.
  template <class Work>
  void read(const Node& map, std::string_view key, const Work& work) {
    attempt([&] {
      const Node::Pair* pair = given(map, key);
      if (pair != nullptr) work(*pair);
    });
  }

  // Says of every key that the place does not have what becomes of it.
  void check(const Node& map, Place place) {
    const Keys& keys = keys_[static_cast<std::size_t>(place)];
    for (const Node::Pair& pair : map.pairs) {
      if (std::find(keys.names.begin(), keys.names.end(), pair.key) != keys.names.end()) continue;
      if (options_.allow_unknown_keys) {
        recipe_.waived.push_back(fmt::format("{} (line {})", pair.key, pair.mark.line));
      } else {
        unknown(pair, keys);
      }
    }
  }

  // mergekit leaves unknown keys unread, so recipes have them: such a key is a warning that says
  // so. It is an error where it looks like a slip, or says which weights are meant.
  void unknown(const Node::Pair& pair, const Keys& keys) {
    const std::string key = clip(pair.key);
    if (key == kIdle) {
      return note(pair.mark, fmt::format("'{}' changes nothing, as in mergekit; remove it", key));
    }
    const std::string near = nearest(pair.key, keys.names);
    const auto home = std::find_if(keys_.begin(), keys_.end(), [&](const Keys& other) {
      return &other != &keys_.back() &&  // an adapter's `weight` is also what parameters are called
             std::find(other.names.begin(), other.names.end(), pair.key) != other.names.end();
    });
    const auto has = [&](const char* name) {
      return std::find(keys.names.begin(), keys.names.end(), name) != keys.names.end();
    };
    std::string advice = !near.empty() ? fmt::format("did you mean '{}'?", near)
                         : home != keys_.end()
                             ? fmt::format("it belongs {}", home->where)
                             : fmt::format("known there: {}", fmt::join(keys.names, ", "));
    if (near.empty() && home == keys_.end() && has("parameters")) {
      advice += " (a method's parameters go under 'parameters')";
    }
    const bool weights = home != keys_.end() && std::find(std::begin(kWeights), std::end(kWeights),
                                                          pair.key) != std::end(kWeights);
    if (!keys.shared || !near.empty() || weights) {
      return remark(true, pair.mark,
                    fmt::format("unknown key '{}' {}; {}", key, keys.where, advice));
    }
    note(pair.mark, fmt::format("unknown key '{}' {} is ignored, as mergekit ignores it; {}", key,
                                keys.where, advice));
  }

  // True for a list or map that says as much as an absent one.
  static bool hollow(const Node& node) {
    return node.kind == Node::Kind::null || (node.kind == Node::Kind::list && node.items.empty()) ||
           (node.kind == Node::Kind::map && node.pairs.empty());
  }

  void one_of(const Node& map, const std::vector<std::string>& names) {
    const Node::Pair* first = nullptr;
    for (const std::string& name : names) {
      const Node::Pair* pair = find(map, name);
      if (pair == nullptr || hollow(*pair->value)) continue;
      if (first != nullptr) {
        bad(pair->mark,
            fmt::format("'{}' cannot stand beside '{}' of line {}; give exactly one of {}", name,
                        first->key, first->mark.line, fmt::join(names, ", ")));
      }
      first = pair;
    }
    if (first != nullptr) return;
    for (const std::string& name : names) {
      const Node::Pair* pair = find(map, name);
      if (pair == nullptr) continue;
      bad(pair->mark, fmt::format("'{}' is empty, so there is nothing to merge; give exactly one "
                                  "of {}",
                                  name, fmt::join(names, ", ")));
    }
    bad(map.mark, fmt::format("nothing to merge: give exactly one of {}", fmt::join(names, ", ")));
  }

  // The value of a key, which must be of this kind and not empty.
  const Node& expect(const Node::Pair& pair, Node::Kind kind, const char* wanted) {
    const Node& node = *pair.value;
    if (node.kind == Node::Kind::null) {
      bad(pair.mark, fmt::format("'{}' has no value; give it one or remove the key", pair.key));
    }
    if (node.kind != kind) {
      bad(node.mark, fmt::format("'{}' takes {}, not {}", pair.key, wanted, describe(node)));
    }
    if (kind == Node::Kind::list && node.items.empty()) {
      bad(node.mark, fmt::format("'{}' is an empty list", pair.key));
    }
    return node;
  }

  std::string text(const Node::Pair& pair, std::size_t most = kMostText) {
    const Node& node = expect(pair, Node::Kind::scalar, "text");
    if (node.text.empty()) bad(node.mark, fmt::format("'{}' is empty", pair.key));
    if (node.text.size() > most) {
      bad(node.mark, fmt::format("'{}' has {} bytes; at most {} are expected", pair.key,
                                 node.text.size(), most));
    }
    return node.text;
  }

  // Reads each entry of a list, which are mappings; a spoilt one spoils no other.
  template <class Work>
  void entries(const Node::Pair& pair, Place place, const Work& work) {
    const Node& list = expect(pair, Node::Kind::list, "a list");
    for (const Node* item : list.items) {
      attempt([&] {
        if (item->kind != Node::Kind::map) {
          bad(item->mark,
              fmt::format("an entry of '{}' is a mapping, as in '- {}: ...', not {}", pair.key,
                          keys_[static_cast<std::size_t>(place)].names.front(), describe(*item)));
        }
        check(*item, place);
        work(*item);
      });
    }
  }

  const Node::Pair& need(const Node& map, const char* key, const std::string& owner) {
    const Node::Pair* pair = find(map, key);
    if (pair == nullptr) bad(map.mark, fmt::format("an entry of '{}' needs '{}'", owner, key));
    return *pair;
  }

  std::vector<Source> models(const Node::Pair& pair) {
    std::vector<Source> out;
    if (hollow(*pair.value)) {
      as_absent(pair, "is an empty list");
      return out;
    }
    entries(pair, Place::model,
            [&](const Node& item) { out.push_back(source(item, pair.key, false)); });
    return out;
  }

  Source source(const Node& map, const std::string& owner, bool ranged) {
    Source out;
    out.mark = map.mark;
    read(map, "parameters", [&](const auto& pair) { out.parameters = parameters(pair); });
    bool sound = false;
    attempt([&] {
      out.model = reference(need(map, "model", owner));
      sound = true;
    });
    if (ranged) out.layer_range = layers(need(map, "layer_range", owner));
    if (!sound) throw Spoilt();
    return out;
  }

  std::vector<Slice> slices(const Node::Pair& pair) {
    std::vector<Slice> out;
    if (hollow(*pair.value)) {
      as_absent(pair, "is an empty list");
      return out;
    }
    entries(pair, Place::slice, [&](const Node& item) {
      Slice slice;
      slice.mark = item.mark;
      const Node::Pair& sources = need(item, "sources", pair.key);
      entries(sources, Place::source, [&](const Node& entry) {
        slice.sources.push_back(source(entry, sources.key, true));
      });
      read(item, "base_model", [&](const auto& base) { slice.base_model = reference(base); });
      read(item, "parameters", [&](const auto& own) { slice.parameters = parameters(own); });
      out.push_back(std::move(slice));
    });
    return out;
  }

  // Half open; one without layers has equal ends.
  std::pair<std::int64_t, std::int64_t> layers(const Node::Pair& pair) {
    const Node& list = expect(pair, Node::Kind::list, "a pair of whole numbers, as in [0, 16]");
    std::vector<double> ends;
    for (const Node* item : list.items) {
      const auto value = item->kind == Node::Kind::scalar ? number(item->text) : std::nullopt;
      if (!value || !(*value >= 0 && *value <= kMostLayers) || std::trunc(*value) != *value) {
        ends.clear();
        break;
      }
      ends.push_back(*value);
    }
    if (ends.size() != 2) {
      bad(list.mark, fmt::format("'{}' takes a pair of whole numbers, as in [0, 16]", pair.key));
    }
    if (ends[0] > ends[1]) {
      bad(list.mark, fmt::format("'{}' [{}, {}] ends before it begins; [{}, {}] are the layers "
                                 "from {} to before {}",
                                 pair.key, ends[0], ends[1], ends[1], ends[0], ends[1], ends[0]));
    }
    return {static_cast<std::int64_t>(ends[0]), static_cast<std::int64_t>(ends[1])};
  }

  std::vector<Module> modules(const Node::Pair& pair) {
    std::vector<Module> out;
    if (hollow(*pair.value)) {
      as_absent(pair, "is empty");
      return out;
    }
    const Node& map = expect(pair, Node::Kind::map, "a mapping from module names");
    for (const Node::Pair& entry : map.pairs) {
      attempt([&] {
        const Node& node = expect(entry, Node::Kind::map, "a mapping with 'models' or 'slices'");
        check(node, Place::module);
        Module module;
        module.name = entry.key;
        module.mark = entry.mark;
        attempt([&] { one_of(node, {"models", "slices"}); });
        read(node, "models", [&](const auto& list) { module.models = models(list); });
        read(node, "slices", [&](const auto& list) { module.slices = slices(list); });
        read(node, "parameters", [&](const auto& own) { module.parameters = parameters(own); });
        out.push_back(std::move(module));
      });
    }
    return out;
  }

  ModelRef reference(const Node::Pair& pair) {
    if (pair.value->kind != Node::Kind::map) return reference_of(text(pair), pair.value->mark);
    const Node& map = *pair.value;
    check(map, Place::reference);
    const Node::Pair* model = find(map, "model");
    const Node::Pair* place = find(map, "path");
    if (model == nullptr && place == nullptr) bad(map.mark, "a model reference needs 'model'");
    if (model != nullptr && place != nullptr) {
      bad(place->mark, "'path' cannot stand beside 'model', which says the same");
    }
    ModelRef out;
    if (model != nullptr) {
      if (const auto* revision = given(map, "revision")) {
        bad(revision->mark, "'revision' goes with 'path', or after '@' in 'model'");
      }
      out = path(*model);
    } else {
      out = path_of(map);
    }
    out.mapped = true;
    if (const auto* lora = given(map, "lora")) {
      ModelRef only = path(*lora);
      add_adapter(out, {only.text, only.path, only.revision, 1});
    }
    if (const auto* list = given(map, "adapters")) {
      for (const Node* item : expect(*list, Node::Kind::list, "a list of adapters").items) {
        add_adapter(out, adapter(*item));
      }
    }
    if (const auto* name = given(map, "override_architecture")) {
      out.override_architecture = text(*name);
      out.text += " as " + out.override_architecture;
    }
    out.mark = map.mark;
    return out;
  }

  AdapterRef adapter(const Node& node) {
    AdapterRef out;
    if (node.kind == Node::Kind::scalar && !node.text.empty() && node.text.size() <= kMostText) {
      out.text = node.text;
      split_revision(out.text, out.path, out.revision);
      return out;
    }
    if (node.kind != Node::Kind::map) {
      bad(node.mark,
          fmt::format("an adapter is a path or a mapping with 'path', not {}", describe(node)));
    }
    check(node, Place::adapter);
    const ModelRef place = path_of(node);
    out.text = place.text;
    out.path = place.path;
    out.revision = place.revision;
    if (const auto* weight = find(node, "weight")) {
      const auto value = number(expect(*weight, Node::Kind::scalar, "a number").text);
      if (!value || !(std::fabs(*value) <= kMostWeight)) {
        bad(weight->value->mark,
            fmt::format("'weight' takes a number, at most {} in size, not '{}'", kMostWeight,
                        clip(weight->value->text)));
      }
      if (!math::single(*value)) {
        bad(weight->value->mark,
            fmt::format("'weight' is {}: single precision has no such small number; it must be 0 "
                        "or at least 1.2e-38 in size",
                        clip(weight->value->text)));
      }
      out.weight = *value;
    }
    return out;
  }

  // What stands under `model` or `lora` of the mapping form: `path[@revision]`, or a mapping
  // itself.
  ModelRef path(const Node::Pair& pair) {
    ModelRef out;
    if (pair.value->kind != Node::Kind::map) {
      out.text = text(pair);
      split_revision(out.text, out.path, out.revision);
      return out;
    }
    check(*pair.value, Place::path);
    return path_of(*pair.value);
  }

  // `path` and `revision` of a mapping.
  ModelRef path_of(const Node& map) {
    ModelRef out;
    const Node::Pair* place = find(map, "path");
    if (place == nullptr) bad(map.mark, "a model path needs 'path'");
    out.path = out.text = text(*place);
    if (const auto* revision = given(map, "revision")) {
      out.revision = text(*revision);
      out.text += "@" + out.revision;
    }
    return out;
  }

  Parameters parameters(const Node::Pair& pair) {
    const Node& map = expect(pair, Node::Kind::map, "a mapping from parameter names");
    Parameters out;
    for (const Node::Pair& entry : map.pairs) {
      attempt([&] {
        const bool empty = entry.value->kind == Node::Kind::list && entry.value->items.empty();
        if (empty) return as_absent(entry, "is an empty list");
        out.emplace(entry.key, setting(entry));
      });
    }
    return out;
  }

  Setting setting(const Node::Pair& pair) {
    const Node& node = *pair.value;
    Setting out;
    out.mark = pair.mark;
    const bool conditions = node.kind == Node::Kind::list && !node.items.empty() &&
                            node.items.front()->kind == Node::Kind::map;
    if (node.kind == Node::Kind::map) {
      out.conditions.push_back(condition(node, pair.key));
    } else if (conditions) {
      for (const Node* item : node.items) {
        if (item->kind != Node::Kind::map) {
          bad(item->mark,
              fmt::format("'{}' mixes conditions and plain values in one list", pair.key));
        }
        out.conditions.push_back(condition(*item, pair.key));
      }
    } else {
      out.conditions.push_back({std::nullopt, value(pair)});
    }
    return out;
  }

  Condition condition(const Node& map, const std::string& parameter) {
    check(map, Place::condition);
    const Node::Pair* held = find(map, "value");
    if (held == nullptr) bad(map.mark, fmt::format("a condition of '{}' needs 'value'", parameter));
    Condition out{std::nullopt, value(*held)};
    if (const auto* filter = given(map, "filter")) {
      out.filter = expect(*filter, Node::Kind::scalar, "text").text;
    }
    return out;
  }

  // A single value, or a gradient of them.
  Value value(const Node::Pair& pair) {
    const Node& node = *pair.value;
    Value out;
    out.mark = node.mark;
    if (node.kind != Node::Kind::list) {
      out.points.push_back(
          scalar_of(expect(pair, Node::Kind::scalar, "a value or a list of values")));
      return out;
    }
    out.gradient = true;
    for (const Node* item : expect(pair, Node::Kind::list, "a list").items) {
      if (item->kind != Node::Kind::scalar) {
        bad(item->mark, fmt::format("'{}' takes a list of single values; this is {}", pair.key,
                                    describe(*item)));
      }
      out.points.push_back(scalar_of(*item));
    }
    return out;
  }

  std::string dtype(const Node::Pair& pair) {
    std::string name = text(pair);
    if (constexpr std::string_view kTorch = "torch."; name.starts_with(kTorch)) {
      name.erase(0, kTorch.size());
    }
    return name;
  }

  void output_dtype(const Node& top) {
    read(top, "dtype", [&](const auto& pair) {
      recipe_.dtype = dtype(pair);
      recipe_.dtype_mark = pair.value->mark;
    });
  }

  // A recipe that makes one adapter of several.
  void fusion(const Node& top, const Node::Pair& type) {
    check(top, Place::fusion);
    recipe_.kind = Recipe::Kind::adapters;
    attempt([&] {
      recipe_.method = text(type);
      recipe_.method_mark = type.value->mark;
    });
    attempt([&] {
      const Node::Pair* list = find(top, "adapters");
      if (list == nullptr) bad(top.mark, "'adapters' is missing: the list of what to merge");
      (void)expect(*list, Node::Kind::list, "a list");
      entries(*list, Place::member, [&](const Node& item) {
        Source source;
        source.mark = item.mark;
        source.model = reference(need(item, "adapter", list->key));
        read(item, "parameters", [&](const auto& pair) { source.parameters = parameters(pair); });
        recipe_.models.push_back(std::move(source));
      });
    });
    read(top, "parameters", [&](const auto& pair) { recipe_.parameters = parameters(pair); });
    ranks(top);
    Adaptation& out = recipe_.adaptation;
    read(top, "majority_sign", [&](const auto& pair) {
      out.majority_sign = one_word(pair, {"total", "frequency"});
      out.majority_sign_mark = pair.value->mark;
    });
    read(top, "whole_tensors", [&](const auto& pair) {
      out.whole_tensors = one_word(pair, {"refuse", "average"});
      out.whole_tensors_mark = pair.value->mark;
    });
    read(top, "keep_scaling", [&](const auto& pair) {
      const Scalar value = scalar_of(expect(pair, Node::Kind::scalar, "true or false"));
      if (!std::holds_alternative<bool>(value)) {
        bad(pair.value->mark, "'keep_scaling' takes true or false");
      }
      out.keep_scaling = std::get<bool>(value);
    });
    read(top, "compat", [&](const auto& pair) {
      out.compat_mark = pair.value->mark;
      for (const Node* item : expect(pair, Node::Kind::list, "a list of names").items) {
        if (item->kind != Node::Kind::scalar) bad(item->mark, "'compat' takes a list of names");
        out.compat.push_back(item->text);
      }
    });
    output_dtype(top);
  }

  // A recipe that makes an adapter of the difference of two models.
  void extraction(const Node& top, const Node::Pair& type) {
    check(top, Place::extraction);
    recipe_.kind = Recipe::Kind::extraction;
    attempt([&] {
      recipe_.method = one_word(type, {"lora"});
      recipe_.method_mark = type.value->mark;
    });
    for (const char* key : {"base_model", "model"}) {
      if (find(top, key) == nullptr) {
        remark(true, top.mark,
               fmt::format("'{}' is missing: an extraction takes the difference of 'model' and "
                           "'base_model'",
                           key));
      }
    }
    if (const auto* base = find(top, "base_model")) {
      attempt([&] { recipe_.base_model = reference(*base); });
    }
    if (const auto* model = find(top, "model")) {
      attempt([&] {
        Source tuned;
        tuned.model = reference(*model);
        tuned.mark = tuned.model.mark;
        recipe_.models.push_back(std::move(tuned));
      });
    }
    ranks(top);
    Adaptation& out = recipe_.adaptation;
    read(top, "bytes", [&](const auto& pair) { out.bytes = whole(pair, kMostBytes); });
    read(top, "whole_tensors", [&](const auto& pair) {
      out.whole_tensors = one_word(pair, {"save", "skip"});
      out.whole_tensors_mark = pair.value->mark;
    });
    output_dtype(top);
  }

  void ranks(const Node& top) {
    Adaptation& out = recipe_.adaptation;
    read(top, "for", [&](const auto& pair) {
      out.reader = one_word(pair, {"peft", "vllm", "llama.cpp"});
      out.reader_mark = pair.value->mark;
    });
    read(top, "rank", [&](const auto& pair) {
      out.rank_mark = pair.value->mark;
      out.automatic = pair.value->kind == Node::Kind::scalar && pair.value->text == "auto";
      if (!out.automatic) out.rank = whole(pair, kMostRank);
    });
    read(top, "energy", [&](const auto& pair) {
      out.energy_mark = pair.value->mark;
      const auto value = number(expect(pair, Node::Kind::scalar, "a number").text);
      if (!value || !(*value > 0 && *value <= 1)) {
        bad(pair.value->mark, "'energy' takes a share above 0 and at most 1, as in 0.99");
      }
      out.energy = *value;
    });
    read(top, "ranks", [&](const auto& pair) {
      const Node& map = expect(pair, Node::Kind::map, "a mapping from modules to ranks");
      for (const Node::Pair& entry : map.pairs) {
        const auto value = number(expect(entry, Node::Kind::scalar, "a whole number").text);
        if (!value || !(*value >= 0 && *value <= kMostRank) || std::trunc(*value) != *value) {
          bad(entry.value->mark, fmt::format("the rank of '{}' is a whole number from 0 to {}",
                                             clip(entry.key), kMostRank));
        }
        out.ranks.emplace(entry.key, static_cast<std::uint64_t>(*value));
      }
    });
  }

  std::uint64_t whole(const Node::Pair& pair, double most) {
    const auto value = number(expect(pair, Node::Kind::scalar, "a whole number").text);
    if (!value || !(*value >= 1 && *value <= most) || std::trunc(*value) != *value) {
      bad(pair.value->mark, fmt::format("'{}' takes a whole number from 1 to {}", pair.key, most));
    }
    return static_cast<std::uint64_t>(*value);
  }

  std::string one_word(const Node::Pair& pair, const std::vector<std::string>& known) {
    std::string word = text(pair);
    if (std::find(known.begin(), known.end(), word) == known.end()) {
      bad(pair.value->mark,
          fmt::format("'{}' is one of {}, not '{}'", pair.key, fmt::join(known, ", "), clip(word)));
    }
    return word;
  }

  void vocabulary(const Node& top) {
    const Node::Pair* plain = given(top, "tokenizer_source");
    const Node::Pair* full = given(top, "tokenizer");
    if (plain != nullptr && full != nullptr) {
      bad(full->mark, fmt::format("'tokenizer' cannot stand beside 'tokenizer_source' of line {}",
                                  plain->mark.line));
    }
    Vocabulary& out = recipe_.vocabulary;
    if (plain != nullptr) {
      out.mark = plain->mark;
      donor(*plain);
    } else if (full != nullptr) {
      out.mark = full->mark;
      const Node& map = expect(*full, Node::Kind::map,
                               "a mapping with 'source' ('tokenizer_source' takes a name)");
      check(map, Place::tokenizer);
      out.kind = Vocabulary::Kind::unite;
      if (const auto* source = find(map, "source")) donor(*source);
      if (const auto* tokens = given(map, "tokens")) {
        out.tokens = !expect(*tokens, Node::Kind::map, "a mapping from tokens").pairs.empty();
      }
      if (const auto* pad = given(map, "pad_to_multiple_of")) {
        const auto value = number(expect(*pad, Node::Kind::scalar, "a whole number").text);
        if (!value || !(*value >= 1 && *value <= kMostPadding) || std::trunc(*value) != *value) {
          bad(pad->value->mark,
              fmt::format("'pad_to_multiple_of' takes a whole number from 1 to {}", kMostPadding));
        }
        out.pad_to_multiple_of = static_cast<std::uint64_t>(*value);
      }
    }
  }

  void donor(const Node::Pair& pair) {
    Vocabulary& out = recipe_.vocabulary;
    ModelRef ref = reference(pair);
    if (ref.text == "base") {
      out.kind = Vocabulary::Kind::base;
    } else if (ref.text == "union") {
      out.kind = Vocabulary::Kind::unite;
    } else {
      out.kind = Vocabulary::Kind::model;
      out.model = std::move(ref);
    }
  }

  Recipe& recipe_;
  const ParseOptions& options_;
  const std::array<Keys, 13> keys_;
};

}  // namespace

Recipe parse(std::string_view text, const std::string& file, const ParseOptions& options) {
  Recipe recipe;
  recipe.file = file;
  recipe.text = text;
  const Tree tree(text, file, recipe.remarks);
  Reader reader(recipe, options);
  reader.attempt([&] { reader.recipe(tree.root()); });
  reader.finish();
  if (options.collect) return recipe;
  for (const Remark& remark : recipe.remarks) {
    if (remark.fatal) fail(Code::usage, remark.text);
  }
  return recipe;
}

}  // namespace ingot
