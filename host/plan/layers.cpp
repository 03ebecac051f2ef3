#include "plan/layers.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "ingot/text.hpp"
#include "plan/kinds.hpp"

namespace ingot::plan {
namespace {

using namespace kinds;

// A bound on layers looked at in one comparison, and on each number tried for a rule.
constexpr std::uint64_t kMost = 20'000;
constexpr std::int64_t kTried = 1'024;
constexpr std::size_t kLongestValue = 60;  // bytes of a value in a message

// ---------------------------------------------------------------------------------------------
// The aspects in which layers of a model may differ

struct Aspect {
  std::string key;    // that tells it, or could
  std::string named;  // what the layers of kind 1 are, for messages of yes and no; may be empty
  std::function<Kinds(const Account&, const Layers&)> read;
  // Sets the keys of a copy of the donor's object; false if they cannot say it.
  std::function<bool(Json&, const Kinds&)> write;
  std::string deep;     // the object that holds the key; empty: that of the layer count
  bool placed = false;  // the kind is the layer's number
};

// A rule that decides nothing, because a list or another rule of the class does: its numbers are
// kept true where they can be.
struct Idle {
  const Rule* rule;
  std::string key;         // of the aspect that decides
  std::string_view words;  // of that aspect's kinds
};

class Reader {
 public:
  // `left`: the layers behind those counted are left out.
  explicit Reader(const Account& donor, std::string_view counter = {}, bool left = false)
      : donor_(donor), counter_(counter), left_(left) {}

  // All known aspects; `others` may have lists where the donor has none.
  std::vector<Aspect> run(std::span<const Account> others) {
    add_rules();
    add_places();
    add_sparse();
    add_groups();
    add_keys(*donor_.object, "");
    for (const auto& [key, value] : donor_.object->items()) {
      if (holds_layers(key, value)) add_keys(value, key);
    }
    for (const Account& other : others) {
      if (other.object != nullptr && other.object != donor_.object) add_theirs(*other.object);
    }
    return std::move(aspects_);
  }
  [[nodiscard]] const std::set<std::string>& taken() const { return taken_; }
  [[nodiscard]] const std::vector<Idle>& idle() const { return idle_; }

 private:
  // Keys of the other half of an encoder and decoder say nothing of this one.
  [[nodiscard]] bool foreign(std::string_view key) const {
    const bool encoder = counter_.find("encoder") != std::string_view::npos;
    const bool decoder = counter_.find("decoder") != std::string_view::npos;
    return (encoder && key.starts_with("decoder")) || (decoder && key.starts_with("encoder"));
  }

  void add_rules() {
    std::set<std::string_view> spoken;                     // first keys of rules for this type
    std::vector<std::pair<const Rule*, std::string>> own;  // rules for this type, and their keys
    for (const Rule& rule : rules()) {
      const Number first = number_of(rule.numbers[0]);
      const bool has = !first.key.empty() && held(*donor_.object, first.key) != nullptr;
      if (rule.types.empty() ? !has || spoken.contains(first.key) || foreign(first.key) ||
                                   taken_.contains(std::string(first.key))
                             : !among(rule.types, donor_.type)) {
        continue;
      }
      // The class itself tells, by other keys than this rule of no type.
      const auto decided = std::find_if(own.begin(), own.end(), [&](const auto& each) {
        return rule.types.empty() && same_matter(*each.first, rule);
      });
      if (decided != own.end()) {
        taken_.insert(std::string(first.key));
        idle_.push_back({&rule, decided->second, decided->first->words});
        continue;
      }
      for (const std::string_view text : rule.numbers) {
        const Number number = number_of(text);
        if (number.key.empty()) continue;
        // A list under the same name says it by layer.
        const Json* value = held(*donor_.object, number.key);
        if (value != nullptr && !value->is_number() && !value->is_boolean()) continue;
        spoken.insert(number.key);
        taken_.insert(std::string(number.key));
      }
      if (deciding(rule, *donor_.object) == nullptr &&
          (replaced(rule, *donor_.object) || !numbers_of(rule, *donor_.object))) {
        continue;
      }
      if (!rule.list.empty()) taken_.insert(std::string(rule.list));
      const std::uint64_t count = donor_.count;
      const bool listed = deciding(rule, *donor_.object) != nullptr;
      const std::string key(listed               ? rule.list
                            : !first.key.empty() ? first.key
                            : rule.list.empty()  ? rule.instead
                                                 : rule.list);
      if (listed && has) idle_.push_back({&rule, key, rule.words});
      if (!rule.types.empty()) own.emplace_back(&rule, key);
      aspects_.push_back({key,
                          std::string(rule.names),
                          [&rule](const Account& account, const Layers& layers) {
                            return read(rule, account, layers);
                          },
                          [&rule, count](Json& object, const Kinds& wanted) {
                            return write(rule, object, wanted, count);
                          },
                          {}});
    }
  }

  // Classes that compute with a layer's number: it means its own only at its place. DiffLlama's
  // lambda, GPT-2's scale of attention.
  void add_places() {
    const char* const scale = "scale_attn_by_inverse_layer_idx";
    const Json* const scaled = held(*donor_.object, scale);
    const bool by_key = scaled != nullptr && scaled->is_boolean() && scaled->get<bool>();
    if (donor_.type != "diffllama" && !by_key) return;
    aspects_.push_back({by_key ? scale : "model_type",
                        {},
                        [](const Account&, const Layers& layers) {
                          Kinds kinds;
                          for (const std::uint64_t layer : layers) kinds.emplace_back(layer);
                          return kinds;
                        },
                        [](Json&, const Kinds& wanted) {
                          for (std::size_t j = 0; j < wanted.size(); ++j) {
                            if (wanted[j] != Json(j)) return false;
                          }
                          return true;
                        },
                        {},
                        true});
  }

  void add_sparse() {
    const bool has = held(*donor_.object, "decoder_sparse_step") != nullptr;
    if ((!has && !sparse_steps(donor_.type)) || foreign("decoder_sparse_step")) return;
    taken_.insert("decoder_sparse_step");
    taken_.insert("mlp_only_layers");
    aspects_.push_back(
        {"decoder_sparse_step",
         "mixtures of experts",
         read_sparse,
         [](Json& object, const Kinds& wanted) {
           const auto step = value_of(object, {"decoder_sparse_step", 1}).value_or(1);
           const bool lists =
               held(object, "mlp_only_layers") != nullptr || object.contains("mlp_only_layers");
           if (value_of(object, {"num_experts", 1}).value_or(1) <= 0) {
             return std::none_of(wanted.begin(), wanted.end(),
                                 [](const Json& k) { return k.get<bool>(); });
           }
           for (const std::int64_t each : {step, std::int64_t{1}}) {
             Json only = Json::array();
             bool fits = true;
             for (std::size_t j = 0; j < wanted.size(); ++j) {
               const bool on = divides(each, static_cast<std::int64_t>(j) + 1);
               fits = fits && (on || !wanted[j].get<bool>());
               if (on && !wanted[j].get<bool>()) only.push_back(j);
             }
             if (!fits) continue;
             if (each != step) object["decoder_sparse_step"] = each;
             if (lists || !only.empty()) object["mlp_only_layers"] = only;
             return true;
           }
           return false;
         },
         {}});
  }

  void add_groups() {
    if (held(*donor_.object, "attention_types") == nullptr && donor_.type != "gpt_neo") return;
    taken_.insert("attention_types");
    aspects_.push_back({"attention_types",
                        {},
                        [](const Account& account, const Layers& layers) {
                          static const Json standard =
                              Json::parse(R"([[["global", "local"], 12]])");
                          const Json* value = held(*account.object, "attention_types");
                          return read_groups(value == nullptr ? standard : *value, layers);
                        },
                        [](Json& object, const Kinds& wanted) {
                          object["attention_types"] = Json::array({Json::array({Json(wanted), 1})});
                          return true;
                        },
                        {}});
  }

  void add_keys(const Json& object, const std::string& deep) {
    for (const auto& [key, value] : object.items()) {
      if (deep.empty() && taken_.contains(key)) continue;
      const auto meaning = meaning_of(key);
      if (meaning && !value.is_null() && !foreign(key)) add_key(key, value, *meaning, deep);
    }
  }

  static const Json* at(const Account& account, const std::string& key, const std::string& deep) {
    if (deep.empty()) return held(*account.object, key);
    const Json* inner = held(*account.object, deep);
    return inner == nullptr ? nullptr : held(*inner, key);
  }
  static Json& in(Json& object, const std::string& deep) {
    return deep.empty() ? object : object[deep];
  }

  void add_key(const std::string& key, const Json& value, Meaning meaning,
               const std::string& deep) {
    const auto reads = [&](auto&& act) {
      return [key, deep, act](const Account& account, const Layers& layers) {
        const Json* own = at(account, key, deep);
        return own == nullptr ? Kinds() : act(*own, layers);
      };
    };
    if (meaning == Meaning::by_layer) {
      // Lists of another length belong to something else; with the layers behind, to those too.
      const bool list = value.is_array() && value.size() >= donor_.count && donor_.count > 0 &&
                        value.size() <= donor_.count + extra();
      const bool text = value.is_string() && donor_.count > 0 &&
                        value.get_ref<const std::string&>().size() == donor_.count;
      const bool map = numbered(value);
      if (!list && !text && !map) return;
      if (deep.empty()) taken_.insert(key);
      const std::uint64_t count = donor_.count;
      aspects_.push_back(
          {key,
           {},
           reads([text](const Json& own, const Layers& layers) {
             return read_by_layer(own, layers, !text);
           }),
           [key, deep, list, text, count, left = left_](Json& object, const Kinds& wanted) {
             Json& place = in(object, deep)[key];
             if (text) {
               std::string letters;
               for (const Json& each : wanted) {
                 if (!each.is_string()) return false;
                 letters += each.get_ref<const std::string&>();
               }
               place = letters;
             } else if (list) {
               Json items = Json(wanted);
               // The list's values for layers after the others stay.
               for (std::uint64_t k = count; k < place.size() && !left; ++k)
                 items.push_back(place[k]);
               place = std::move(items);
             } else {
               Json by_number = Json::object();
               for (std::size_t j = 0; j < wanted.size(); ++j) {
                 if (!wanted[j].is_null()) by_number[std::to_string(j)] = wanted[j];
               }
               place = std::move(by_number);
             }
             return true;
           },
           deep});
    } else if (meaning == Meaning::numbers || meaning == Meaning::from_one) {
      if (!numbers_in(value)) return;
      if (deep.empty()) taken_.insert(key);
      const std::int64_t first = meaning == Meaning::from_one ? 1 : 0;
      aspects_.push_back(
          {key, fmt::format("among '{}'", key),
           reads([first](const Json& own, const Layers& l) { return read_numbers(own, first, l); }),
           [key, deep, first](Json& object, const Kinds& wanted) {
             Json list = Json::array();
             std::string text;
             for (std::size_t j = 0; j < wanted.size(); ++j) {
               if (!wanted[j].get<bool>()) continue;
               const std::int64_t number = static_cast<std::int64_t>(j) + first;
               list.push_back(number);
               text += fmt::format("{}{}", text.empty() ? "" : ",", number);
             }
             Json& place = in(object, deep)[key];
             place = place.is_string() ? Json(text) : list;
             return true;
           },
           deep});
    } else if (meaning == Meaning::cycle) {
      if (!value.is_array() || value.empty()) return;
      if (deep.empty()) taken_.insert(key);
      aspects_.push_back(
          {key,
           {},
           reads([](const Json& own, const Layers& layers) { return read_cycle(own, layers); }),
           [key, deep](Json& object, const Kinds& wanted) {
             Json& place = in(object, deep)[key];
             bool fits = true;
             for (std::size_t j = 0; j < wanted.size(); ++j) {
               fits = fits && place[j % place.size()] == wanted[j];
             }
             if (!fits) place = Json(wanted);
             return true;
           },
           deep});
    } else if (deep.empty() && meaning != Meaning::sources) {
      taken_.insert(key);
    }
  }

  [[nodiscard]] std::uint64_t extra() const {
    std::uint64_t most = 0;
    for (const auto& [key, value] : donor_.object->items()) {
      if (meaning_of(key) == Meaning::extra && value.is_number_unsigned()) {
        most = std::max(most, std::min<std::uint64_t>(value.get<std::uint64_t>(), 64));
      }
    }
    return most;
  }

  // A list that another model has and the donor has not: its own value holds for all its layers.
  void add_theirs(const Json& object) {
    for (const auto& [key, value] : object.items()) {
      if (taken_.contains(key) || meaning_of(key) != Meaning::by_layer) continue;
      if (!value.is_array() || value.empty()) continue;
      taken_.insert(key);
      aspects_.push_back({key,
                          {},
                          [key = key](const Account& account, const Layers& layers) {
                            const Json* own = held(*account.object, key);
                            return own == nullptr ? Kinds(layers.size())
                                                  : read_by_layer(*own, layers, true);
                          },
                          [key = key](Json& copy, const Kinds& wanted) {
                            const Json* own = held(copy, key);
                            const Json mine = own == nullptr ? Json() : *own;
                            if (std::all_of(wanted.begin(), wanted.end(),
                                            [&](const Json& k) { return k == mine; })) {
                              return true;
                            }
                            if (std::any_of(wanted.begin(), wanted.end(),
                                            [](const Json& k) { return k.is_null(); })) {
                              // One kind, and nothing said elsewhere: the same may be meant.
                              std::set<std::string> distinct;
                              for (const Json& k : wanted) {
                                if (!k.is_null()) distinct.insert(k.dump());
                              }
                              return distinct.size() < 2;
                            }
                            copy[key] = Json(wanted);
                            return true;
                          },
                          {}});
    }
  }

 public:
  // Writes the rule or its list for the new order.
  static bool write(const Rule& rule, Json& object, const Kinds& wanted, std::uint64_t) {
    Layers all(wanted.size());
    for (std::size_t j = 0; j < all.size(); ++j) all[j] = j;
    if (deciding(rule, object) == nullptr && read_rule(rule, object, all.size(), all) == wanted) {
      return true;
    }
    if (rule.list.empty()) return gated(object, rule.gates) && fit(rule, object, wanted, all);
    if (!gated(object, rule.gates) && read_rule(rule, object, all.size(), all) != wanted &&
        deciding(rule, object) == nullptr) {
      return false;
    }
    if (rule.words == "#") {
      Json list = Json::array();
      for (std::size_t j = 0; j < wanted.size(); ++j) {
        if (wanted[j].is_boolean() && wanted[j].get<bool>()) list.push_back(j);
      }
      object[std::string(rule.list)] = list;
    } else {
      object[std::string(rule.list)] = Json(wanted);
    }
    return true;
  }

  // Sets the numbers of a rule so that it gives the wanted kinds; changes as few as possible, and
  // by as little as possible.
  static bool fit(const Rule& rule, Json& object, const Kinds& wanted, const Layers& all) {
    const auto now = numbers_of(rule, object);
    if (!now) return false;
    const auto n = static_cast<std::int64_t>(wanted.size());
    std::vector<int> kinds;
    for (std::size_t j = 0; j < wanted.size(); ++j) {
      int found = -1;
      for (int k = 0; k < 3 && found < 0; ++k) {
        const Json word =
            rule.words.empty() || rule.words == "#" ? Json(k == 1) : word_of(rule.words, k);
        if (word == wanted[j]) found = k;
      }
      if (found < 0) return false;
      kinds.push_back(found);
    }
    const auto says = [&](const Numbers& numbers) {
      return std::all_of(all.begin(), all.end(), [&](std::uint64_t j) {
        return kind(rule.form, static_cast<std::int64_t>(j), n, numbers) == kinds[j];
      });
    };
    std::optional<Numbers> found;
    if (says(*now)) found = now;
    std::vector<std::size_t> free;
    for (std::size_t k = 0; k < 3; ++k) {
      if (!number_of(rule.numbers[k]).key.empty()) free.push_back(k);
    }
    const std::int64_t most = std::min(n + 1, kTried);
    for (std::size_t f = 0; f < free.size() && !found; ++f) {
      for (std::int64_t x = 0; x <= most && !found; ++x) {
        Numbers numbers = *now;
        numbers[free[f]] = x;
        if (says(numbers)) found = numbers;
      }
    }
    for (std::size_t f = 0; f < free.size() && !found; ++f) {
      for (std::size_t g = f + 1; g < free.size() && !found; ++g) {
        for (std::int64_t x = 0; x <= most && !found; ++x) {
          for (std::int64_t y = 0; y <= most && !found; ++y) {
            Numbers numbers = *now;
            numbers[free[f]] = x;
            numbers[free[g]] = y;
            if (says(numbers)) found = numbers;
          }
        }
      }
    }
    if (!found && rule.form == Form::span) {  // from the first to the last of kind 1
      const auto first = std::find(kinds.begin(), kinds.end(), 1);
      const auto last = std::find(kinds.rbegin(), kinds.rend(), 1);
      for (std::int64_t x = 1; first != kinds.end() && x <= most && !found; ++x) {
        const Numbers numbers = {x, first - kinds.begin(), n - 1 - (last - kinds.rbegin())};
        if (says(numbers)) found = numbers;
      }
    }
    if (!found) return false;
    for (const std::size_t k : free) {
      const Number number = number_of(rule.numbers[k]);
      if ((*found)[k] != (*now)[k]) object[std::string(number.key)] = (*found)[k];
    }
    return true;
  }

 private:
  const Account& donor_;
  std::string_view counter_;
  bool left_;
  std::vector<Aspect> aspects_;
  std::set<std::string> taken_;
  std::vector<Idle> idle_;
};

Layers layers_of(const std::vector<Origin>& origins, std::uint32_t model) {
  Layers out;
  for (const Origin& origin : origins) {
    if (origin.model == model) out.push_back(origin.layer);
  }
  return out;
}

// A kind in words: "sliding_attention"; for yes and no what the layers are.
std::string shown(const Aspect& aspect, const Json& kind) {
  if (kind.is_boolean()) {
    return fmt::format("{}{}", kind.get<bool>() ? "" : "not ",
                       aspect.named.empty() ? aspect.key : aspect.named);
  }
  const std::string text = kind.is_string() ? kind.get<std::string>() : kind.dump();
  return shorten(text, kLongestValue);
}

// "0, 3, 4 and 9 more".
std::string some(const Layers& layers) {
  const std::size_t most = std::min<std::size_t>(layers.size(), 8);
  std::string text = fmt::format(
      "{}", fmt::join(layers.begin(), layers.begin() + static_cast<std::ptrdiff_t>(most), ", "));
  if (layers.size() > most) text += fmt::format(" and {} more", layers.size() - most);
  return text;
}

class Rearranger {
 public:
  Rearranger(Json& object, std::span<const Account> accounts, std::uint32_t donor,
             const Order& order, bool allow, Problems& problems)
      : object_(object),
        accounts_(accounts),
        donor_(accounts[donor]),
        order_(order),
        allow_(allow),
        problems_(problems),
        told_(order.layers.size()),
        told_before_(std::min<std::uint64_t>(donor_.count, order.donor_sets.size())) {}

  bool run(bool& rearranged) {
    Reader reader(donor_, order_.counter, order_.left > 0);
    std::vector<Account> used;
    for (std::uint32_t m = 0; m < accounts_.size(); ++m) {
      if (!layers_of(order_.layers, m).empty()) used.push_back(accounts_[m]);
    }
    std::vector<Aspect> aspects = reader.run(used);
    for (const Aspect& aspect : aspects) {
      const auto wanted = kinds(aspect);
      if (!wanted) continue;
      partners(aspect, *wanted);
      tell(aspect, *wanted);
      const Json before = object_;
      if (!aspect.write(object_, *wanted)) {
        object_ = before;
        refuse(aspect, *wanted);
      } else {
        rearranged = rearranged || object_ != before || before.contains(aspect.key);
      }
      for (const Idle& idle : reader.idle()) {
        if (idle.key == aspect.key) follow(idle, aspect, *wanted);
      }
      if (among("indexer_types index_topk_freq index_topk_pattern", aspect.key)) {
        indexers(aspect.key, *wanted);
      }
    }
    sources();
    joined();
    strangers(reader.taken(), rearranged);
    check_tensors();
    return waived_;
  }

 private:
  // The kind of every output layer; nothing, and a problem, where a model says nothing of its own.
  std::optional<Kinds> kinds(const Aspect& aspect) {
    Kinds out(order_.layers.size());
    for (std::uint32_t m = 0; m < accounts_.size(); ++m) {
      const Layers layers = layers_of(order_.layers, m);
      if (layers.empty()) continue;
      Kinds own;
      if (accounts_[m].object != nullptr) own = aspect.read(accounts_[m], layers);
      // A model that says nothing takes part with the donor's layer of the same number.
      if (own.empty()) own = within(aspect, layers);
      if (own.empty()) {
        fail_at(fmt::format(
            "config.json of {}: '{}' has a value for each layer, but a layer of {} has no value",
            donor_.shown, aspect.key, accounts_[m].shown));
        return std::nullopt;
      }
      std::size_t next = 0;
      for (std::size_t j = 0; j < out.size(); ++j) {
        if (order_.layers[j].model == m) out[j] = own[next++];
      }
    }
    return out;
  }

  Kinds within(const Aspect& aspect, const Layers& layers) const {
    if (std::any_of(layers.begin(), layers.end(),
                    [&](std::uint64_t l) { return l >= donor_.count; })) {
      return {};
    }
    return aspect.read(donor_, layers);
  }

  // Layers that are merged with each other should be of one kind.
  void partners(const Aspect& aspect, const Kinds& wanted) {
    for (std::size_t j = 0; j < order_.partners.size() && j < wanted.size(); ++j) {
      for (const Origin& other : order_.partners[j]) {
        if (accounts_[other.model].object == nullptr) continue;
        const Kinds theirs = aspect.read(accounts_[other.model], {other.layer});
        if (theirs.empty() || theirs.front() == wanted[j]) continue;
        problems_.warn_like(
            fmt::format("partners {} {}", aspect.key, other.model), Code::format,
            fmt::format("layer {} of the output: '{}' of layer {} of {} is {}, but that of layer "
                        "{} of {} is {}; the output has the first value",
                        j, aspect.key, order_.layers[j].layer,
                        accounts_[order_.layers[j].model].shown, shown(aspect, wanted[j]),
                        other.layer, accounts_[other.model].shown, shown(aspect, theirs.front())));
      }
    }
  }

  // Collects the kinds of every layer, to compare them with its tensors.
  void tell(const Aspect& aspect, const Kinds& wanted) {
    for (std::size_t j = 0; j < wanted.size(); ++j) told_[j] += wanted[j].dump() + '\n';
    Layers all(told_before_.size());
    for (std::size_t j = 0; j < all.size(); ++j) all[j] = j;
    const Kinds own = aspect.read(donor_, all);
    for (std::size_t j = 0; j < own.size(); ++j) told_before_[j] += own[j].dump() + '\n';
  }

  void fail_at(std::string text) {
    if (allow_) {
      waived_ = true;
      problems_.warn(Code::format, std::move(text));
      return;
    }
    problems_.error(
        Code::format,
        text + "; choose other slices, or write the output anyway with --allow-layer-mismatch");
  }

  void refuse(const Aspect& aspect, const Kinds& wanted) {
    if (aspect.placed) {
      std::size_t j = 0;
      while (j + 1 < wanted.size() && wanted[j] == Json(j)) ++j;
      fail_at(
          fmt::format("config.json of {}: by '{}' each layer computes with its number, so layer "
                      "{} of the output, which was layer {}, would compute something else",
                      donor_.shown, aspect.key, j, wanted[j].dump()));
      return;
    }
    Layers which;
    for (std::size_t j = 0; j < wanted.size(); ++j) {
      if (wanted[j].is_boolean() ? wanted[j].get<bool>() : wanted[j] != wanted.front())
        which.push_back(j);
    }
    const bool yes = !wanted.empty() && wanted.front().is_boolean();
    if (yes && which.empty()) {
      fail_at(fmt::format("config.json of {}: '{}' cannot say that no layer of the output is {}",
                          donor_.shown, aspect.key, aspect.named));
      return;
    }
    fail_at(fmt::format(
        "config.json of {}: '{}' cannot say that layers {} of the output are {}{}", donor_.shown,
        aspect.key, some(which),
        yes ? aspect.named : shown(aspect, which.empty() ? wanted.front() : wanted[which.front()]),
        yes ? " and the others are not" : ""));
  }

  // Numbers of a rule that decides nothing.
  void follow(const Idle& idle, const Aspect& aspect, const Kinds& wanted) {
    const Rule& rule = *idle.rule;
    const auto said = [&](const Kinds& kinds) {  // in the rule's words
      if (idle.words == rule.words) return kinds;
      Kinds out;
      for (const Json& each : kinds) out.emplace_back(each == word_of(idle.words, 1));
      return out;
    };
    const auto all = [](std::size_t count) {
      Layers layers(count);
      for (std::size_t j = 0; j < count; ++j) layers[j] = j;
      return layers;
    };
    const Layers before = all(std::min<std::uint64_t>(donor_.count, kMost)),
                 now = all(wanted.size());
    const Kinds expected = said(wanted);
    const bool another = rule.types.empty();
    if (another && read_rule(rule, *donor_.object, donor_.count, before) !=
                       said(aspect.read(donor_, before))) {
      return;  // it was not true before
    }
    if (!gated(*donor_.object, rule.gates) ||
        read_rule(rule, object_, now.size(), now) == expected || !numbers_of(rule, object_) ||
        Reader::fit(rule, object_, expected, now)) {
      return;
    }
    problems_.warn(Code::format,
                   fmt::format("config.json of {}: '{}' gives the kind of each layer; '{}' cannot "
                               "give the kinds of the output's layers and was copied unchanged",
                               donor_.shown, another ? "model_type" : rule.list,
                               number_of(rule.numbers[0]).key));
  }

  // Layers without an index of their own take the choice of the last layer that has one; linear
  // attention passes none on.
  void indexers(const std::string& key, const Kinds& wanted) {
    const Json* types = held(object_, "layer_types");
    bool given = false;
    for (std::size_t j = 0; j < wanted.size(); ++j) {
      if (types != nullptr && types->is_array() && j < types->size() &&
          (*types)[j] == "linear_attention") {
        given = false;
      } else if (wanted[j] != "shared" && wanted[j] != "S") {
        given = true;
      } else if (!given) {
        fail_at(
            fmt::format("config.json of {}: layer {} of the output takes its choice of tokens "
                        "from an earlier layer ('{}'), but the output has no such layer",
                        donor_.shown, j, key));
        return;
      }
    }
  }

  // Lists that name for each layer the layer it takes something from.
  void sources() {
    for (auto& [key, value] : object_.items()) {
      if (meaning_of(key) != Meaning::sources || !value.is_array()) continue;
      Json list = Json::array();
      bool sound = true;
      for (std::size_t j = 0; j < order_.layers.size() && sound; ++j) {
        const Origin& origin = order_.layers[j];
        const Account& account = accounts_[origin.model];
        const Json* own = account.object == nullptr ? nullptr : held(*account.object, key);
        if (own == nullptr || !own->is_array() || origin.layer >= own->size() ||
            !(*own)[origin.layer].is_number_unsigned()) {
          sound = false;
          break;
        }
        const auto from = (*own)[origin.layer].get<std::uint64_t>();
        // The nearest copy of that layer, at this place or before it.
        std::size_t at = j + 1;
        while (at > 0 && !(order_.layers[at - 1].model == origin.model &&
                           order_.layers[at - 1].layer == from)) {
          --at;
        }
        sound = at > 0;
        if (sound) list.push_back(at - 1);
      }
      if (sound) {
        value = std::move(list);
      } else {
        fail_at(
            fmt::format("config.json of {}: '{}' names another layer for each layer, but one of "
                        "the named layers is not in the output",
                        donor_.shown, key));
      }
    }
  }

  // Tensors outside the layers that have a part for each; and caches that layers share, of which
  // each kind of attention needs one to share.
  void joined() {
    bool same = order_.layers.size() == donor_.count;
    for (std::size_t j = 0; j < order_.layers.size() && same; ++j) {
      same = order_.layers[j].layer == j && order_.layers[j].model == order_.layers[0].model;
    }
    if (!same && !order_.joined.empty()) {
      fail_at(
          fmt::format("tensor {} of {} has a part for each layer, and ingot cannot rearrange these "
                      "parts for slices",
                      order_.joined.front(), donor_.shown));
    }
    const Json* types = held(object_, "layer_types");
    if (types != nullptr && types->is_array() && !types->empty() && full_last(donor_.type) &&
        types->back() != "full_attention") {
      fail_at(
          fmt::format("config.json of {}: models of type {} need full_attention in their last "
                      "layer, but the last layer of the output has {}",
                      donor_.shown, donor_.type, types->back().dump()));
    }
    const auto shared = value_of(object_, {"num_kv_shared_layers", 0}).value_or(0);
    if (types == nullptr || !types->is_array() || shared <= 0) return;
    const std::size_t last =
        types->size() - std::min<std::size_t>(types->size(), static_cast<std::size_t>(shared));
    for (std::size_t j = last; j < types->size(); ++j) {
      if (std::find(types->begin(), types->begin() + static_cast<std::ptrdiff_t>(last),
                    (*types)[j]) != types->begin() + static_cast<std::ptrdiff_t>(last))
        continue;
      fail_at(fmt::format(
          "config.json of {}: layer {} of the output takes its keys and values from an earlier "
          "layer of its kind ('num_kv_shared_layers'), but the output has no such layer",
          donor_.shown, j));
      return;
    }
  }

  // Keys that are not known.
  void strangers(const std::set<std::string>& taken, bool& rearranged) {
    for (auto& [key, value] : object_.items()) {
      if (taken.contains(key)) continue;
      stranger(key, key, value, rearranged);
      if (!holds_layers(key, value)) continue;
      for (auto& [inner, each] : value.items()) {
        if (!meaning_of(inner)) stranger(fmt::format("{}.{}", key, inner), inner, each, rearranged);
      }
    }
  }

  void stranger(const std::string& place, const std::string& key, Json& value, bool& rearranged) {
    const auto meaning = meaning_of(key);
    if (meaning) return;
    const bool layers =
        key.find("layer") != std::string::npos || key.find("block") != std::string::npos;
    // Two or three items may be anything.
    const bool list = value.is_array() && donor_.count > 0 && value.size() == donor_.count &&
                      (layers || donor_.count > 3);
    const bool text = value.is_string() && key.ends_with("_pattern") &&
                      value.get_ref<const std::string&>().size() == donor_.count;
    const bool map = numbered(value) && value.size() <= donor_.count;
    if (list || text || map) {
      Json items = list ? Json::array() : map ? Json::object() : Json("");
      std::string letters;
      bool sound = true;
      for (std::size_t j = 0; j < order_.layers.size() && sound; ++j) {
        const Origin& origin = order_.layers[j];
        Kinds each;
        const Json* own = accounts_[origin.model].object == nullptr
                              ? nullptr
                              : held(*accounts_[origin.model].object, key);
        if (place == key && own != nullptr && own->type() == value.type())
          each = read_by_layer(*own, {origin.layer}, false);
        if (each.empty()) each = read_by_layer(value, {origin.layer}, false);
        sound = !each.empty();
        if (!sound) break;
        if (list) items.push_back(each.front());
        if (map && !each.front().is_null()) items[std::to_string(j)] = each.front();
        if (text) letters += each.front().get<std::string>();
      }
      if (sound) {
        value = text ? Json(letters) : items;
        rearranged = true;
      }
      problems_.warn(
          Code::format,
          sound
              ? fmt::format("config.json of {}: '{}' is not known; it seems to have a value for "
                            "each layer, so its values were rearranged with the layers; check them",
                            donor_.shown, place)
              : fmt::format("config.json of {}: '{}' seems to have a value for each layer, but a "
                            "model of the recipe has no value for one of its layers; it was copied "
                            "unchanged; check it",
                            donor_.shown, place));
      return;
    }
    const bool named = layers || key.ends_with("_idxs") || key.ends_with("_indices") ||
                       key.ends_with("_indexes") || key.ends_with("_ids") || key.ends_with("_idx");
    const bool numbers = named && value.is_array() && !value.empty() &&
                         std::all_of(value.begin(), value.end(),
                                     [](const Json& v) { return v.is_number_integer(); });
    const bool short_list =
        layers && value.is_array() && !value.empty() && value.size() == donor_.count;
    const bool number = value.is_number_integer() && suspicious(key) && value != 0;
    if (!numbers && !short_list && !number) return;
    problems_.warn(
        Code::format,
        fmt::format("config.json of {}: '{}' is not known and may {}, but the slices of the recipe "
                    "moved the layers; it was copied unchanged; check it",
                    donor_.shown, place, number ? "be a rule for layers" : "hold layer numbers"));
  }

  // Names of numbers that rules for layers have.
  static bool suspicious(std::string_view key) {
    if (key.find("layer") == std::string_view::npos &&
        key.find("block") == std::string_view::npos) {
      return key.ends_with("_every_n") || key.ends_with("_sparse_step");
    }
    for (const std::string_view part : {"period", "offset", "freq", "interval", "every", "step",
                                        "dense", "first", "start", "pattern"}) {
      if (key.find(part) != std::string_view::npos) return true;
    }
    return false;
  }

  // Layers of which config.json tells the same ought to have the same tensors. Where they have
  // not, the place makes the difference (a first layer of its own kind), and the output's layers
  // have to be as the donor's at their places, from the front or from the back.
  void check_tensors() {
    if (order_.sets.empty() || order_.donor_sets.empty()) return;
    std::map<std::string, std::uint32_t> sets;
    bool explained = true;
    const auto add = [&](const std::string& told, std::uint32_t set) {
      explained = sets.emplace(told, set).first->second == set && explained;
    };
    for (std::size_t j = 0; j < told_before_.size(); ++j)
      add(told_before_[j], order_.donor_sets[j]);
    for (std::size_t j = 0; j < told_.size(); ++j) add(told_[j], order_.sets[j]);
    if (explained || waived_) return;
    // Which end is of its own kind: the one that has not the set of most layers.
    const std::vector<std::uint32_t>& donor = order_.donor_sets;
    const std::size_t old = donor.size();
    const std::size_t now = order_.sets.size();
    const auto often = [&](std::uint32_t set) {
      return std::count(donor.begin(), donor.end(), set);
    };
    const bool backward = often(donor.front()) > often(donor.back());
    const auto place = [&](std::size_t j) {
      return backward ? old - std::min(now - j, old) : std::min(j, old - 1);
    };
    std::optional<std::size_t> wrong;
    for (std::size_t j = 0; j < now && !wrong; ++j) {
      if (order_.sets[j] != donor[place(j)]) wrong = j;
    }
    if (!wrong) return;
    const std::size_t j = *wrong;
    const Origin& origin = order_.layers[j];
    const auto& mine = order_.members[order_.sets[j]];
    const auto& expected = order_.members[donor[place(j)]];
    std::vector<std::string> differ;
    std::set_symmetric_difference(mine.begin(), mine.end(), expected.begin(), expected.end(),
                                  std::back_inserter(differ));
    const std::string first = differ.empty() ? "" : differ.front();
    const bool has = std::binary_search(mine.begin(), mine.end(), first);
    fail_at(fmt::format(
        "layer {} of the output, which is layer {} of {}, {} tensor {}, but layer {} of {}, which "
        "it replaces, {}; config.json describes both layers in the same way",
        j, origin.layer, accounts_[origin.model].shown, has ? "has the" : "has no", first, place(j),
        donor_.shown, has ? "does not have it" : "has it"));
  }

  Json& object_;
  std::span<const Account> accounts_;
  const Account& donor_;
  const Order& order_;
  bool allow_;
  Problems& problems_;
  std::vector<std::string> told_;         // by output layer
  std::vector<std::string> told_before_;  // by layer of the donor
  bool waived_ = false;
};

}  // namespace

bool holds_layers(const std::string& key, const Json& value) {
  if (!value.is_object() || numbered(value) || meaning_of(key)) return false;
  for (const char* own : {"num_hidden_layers", "hidden_size", "num_layers", "depth", "n_layer",
                          "n_layers", "model_type"}) {
    if (value.contains(own)) return false;
  }
  return true;
}

bool rearrange(Json& object, std::span<const Account> accounts, std::uint32_t donor,
               const Order& order, bool allow, Problems& problems, bool& rearranged) {
  return Rearranger(object, accounts, donor, order, allow, problems).run(rearranged);
}

void count_ahead(Json& object, const Json* giver, std::uint64_t layers, const std::string& shown,
                 const std::string& from, Problems& problems) {
  const auto counts = [](const std::string& key, const Json& value) {
    return meaning_of(key) == Meaning::extra && value.is_number_unsigned();
  };
  const auto set = [&](const std::string& key, Json& place, const Json& value) {
    if (place == value) return;
    problems.warn(
        Code::format,
        fmt::format("config.json of {}: '{}' is {}, but the output has {} for multi-token "
                    "prediction: its config.json has {}",
                    shown, key, place.is_null() ? "missing" : place.dump(),
                    layers == 0        ? "no layers"
                    : giver != nullptr ? fmt::format("the layers of {}", from)
                                       : fmt::format("{} layer{}", layers, layers == 1 ? "" : "s"),
                    value.dump()));
    place = value;
  };
  for (auto& [key, value] : object.items()) {
    if (!counts(key, value)) continue;
    const bool zero = value == 0;
    if (layers == 0 || (zero && (giver == nullptr || held(*giver, key) == nullptr))) {
      set(key, value, layers);
    }
  }
  if (layers == 0 || giver == nullptr) return;
  for (const auto& [key, value] : giver->items()) {
    const auto meaning = meaning_of(key);
    if (value.is_null() || (!counts(key, value) && meaning != Meaning::extras)) continue;
    set(key, object[key], value);
  }
}

void compare_layers(const Account& donor, const Account& other, std::uint64_t layers,
                    Problems& problems) {
  if (donor.object == nullptr || other.object == nullptr) return;
  Layers all(std::min(layers, kMost));
  for (std::size_t j = 0; j < all.size(); ++j) all[j] = j;
  const std::vector<Aspect> aspects = Reader(donor).run({});
  for (const Aspect& aspect : aspects) {
    const Kinds mine = aspect.read(donor, all);
    const Kinds theirs = aspect.read(other, all);
    if (mine.empty() || theirs.empty()) continue;
    for (std::size_t j = 0; j < all.size(); ++j) {
      if (mine[j] == theirs[j]) continue;
      problems.warn(Code::format, fmt::format("config.json: '{}' of layer {} is {} in {} and {} in "
                                              "{}; the output's config.json has the first value",
                                              aspect.key, j, shown(aspect, mine[j]), donor.shown,
                                              shown(aspect, theirs[j]), other.shown));
      break;
    }
  }
}

}  // namespace ingot::plan
