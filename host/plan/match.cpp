#include "plan/match.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>

#include "plan/aliases.hpp"
#include "plan/loaded.hpp"

namespace ingot::plan {
namespace {

// A number of six digits or more counts something else than layers.
constexpr std::size_t kDigits = 5;

// Heads stand beside the base module, so they never carry its prefix.
bool beside_base(std::string_view name) {
  const std::string_view first = first_component(name);
  return first == "lm_head" || first == "embed_out" || first == "score" || first == "classifier" ||
         first == "cls" || first == "qa_outputs" || first == "vocab_projector";
}

// Old BERT-type checkpoints call the weight and bias of a layer norm gamma and beta.
std::string modern(std::string name) {
  for (const auto& [old, now] :
       {std::pair{"LayerNorm.gamma", "weight"}, {"LayerNorm.beta", "bias"}}) {
    if (name.ends_with(old)) name.replace(name.rfind('.') + 1, std::string::npos, now);
  }
  return name;
}

// How whole checkpoints of one architecture differ in their names.
const std::vector<Renames>& candidates() {
  static const std::vector<Renames> all = [] {
    std::vector<Renames> list;
    for (const char* prefix :
         {"model.", "transformer.", "gpt_neox.", "backbone.", "bert.", "roberta.", "distilbert.",
          "language_model.", "module.", "_orig_mod."}) {
      list.push_back({{prefix, ""}});
      list.push_back({{"", prefix}});
    }
    // Models of text and images or sound before and after transformers 4.52 and 5.
    const Renames llava = {{"language_model.lm_head.", "lm_head."},
                           {"language_model.model.", "model.language_model."},
                           {"vision_tower.", "model.vision_tower."},
                           {"vision_model.", "model.vision_model."},
                           {"image_tower.", "model.image_tower."},
                           {"video_tower.", "model.video_tower."},
                           {"audio_tower.", "model.audio_tower."},
                           {"multi_modal_projector.", "model.multi_modal_projector."},
                           {"vision_embed_tokens.", "model.vision_embed_tokens."},
                           {"encoder.", "model.encoder."},
                           {"projector.", "model.projector."}};
    const Renames qwen = {{"model.", "model.language_model."}, {"visual.", "model.visual."}};
    for (const Renames& now : {llava, qwen}) {
      list.push_back(now);
      Renames back;
      for (const auto& [from, to] : now) back.emplace_back(to, from);
      list.push_back(back);
    }
    return list;
  }();
  return all;
}

// BertModel, MistralModel: the base module alone, whose names have no prefix by right.
bool is_base(std::string_view architecture) {
  return architecture.ends_with("Model") && !architecture.ends_with("HeadModel") &&
         !architecture.ends_with("HeadsModel");
}

// The donor's own renames: the base module's prefix, where no name has it and the layers would.
Renames donor_renames(const View& donor, const Family* family, std::string_view architecture) {
  if (family == nullptr || family->prefix.empty() || is_base(architecture)) return {};
  const auto has = [&](std::string_view prefix) {
    return std::any_of(donor.items.begin(), donor.items.end(),
                       [&](const Item& item) { return item.info.name.starts_with(prefix); });
  };
  std::string bare(family->stack.substr(family->prefix.size()));
  if (has(family->prefix) || !has(bare + ".")) return {};
  return {{"", std::string(family->prefix)}};
}

// Where a layer number may stand in a name.
struct Number {
  std::size_t begin = 0, end = 0;
  std::uint32_t value = 0;
};

std::vector<Number> numbers(std::string_view name) {
  std::vector<Number> found;
  for (std::size_t dot = name.find('.'); dot != std::string_view::npos;) {
    const std::size_t begin = dot + 1;
    const std::size_t end = name.find('.', begin);
    if (end == std::string_view::npos) break;
    const std::string_view word = name.substr(begin, end - begin);
    const bool digits =
        is_number(word) && word.size() <= kDigits && (word.size() == 1 || word[0] != '0');
    if (digits) {
      Number number{begin, end, 0};
      std::from_chars(word.data(), word.data() + word.size(), number.value);
      found.push_back(number);
    }
    dot = end;
  }
  return found;
}

// Where the layers of the text are, and its head: "model.language_model." and "lm_head.".
struct Standing {
  std::string body, head;
};

template <class Names>
Standing standing_of(const Names& names) {
  std::map<std::string, std::uint64_t, std::less<>> depths;
  Standing found;
  for (const std::string& name : names) {
    if (module(name, false) != "text_decoder") continue;
    if (name.ends_with("lm_head.weight")) found.head = name.substr(0, name.size() - 6);
    for (const Number& number : numbers(name)) {
      const std::string_view before = std::string_view(name).substr(0, number.begin - 1);
      if (!counts_layers(last_component(before))) continue;
      std::uint64_t& depth = depths[std::string(parent(before))];
      depth = std::max(depth, std::uint64_t{number.value} + 1);
      break;
    }
  }
  const auto deepest =
      std::max_element(depths.begin(), depths.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  if (deepest != depths.end() && !deepest->first.empty()) found.body = deepest->first + ".";
  return found;
}

// The renames that lay the text of one model over the text of another, whatever stands before it:
// text-only and image-text forms of one model.
Renames laid_over(const Standing& own, const Standing& other) {
  Renames renames;
  if (own.body.empty() || other.body.empty()) return renames;
  if (!own.head.empty() && !other.head.empty()) renames.emplace_back(own.head, other.head);
  renames.emplace_back(own.body, other.body);
  return renames;
}

std::vector<std::string> names_of(const View& view) {
  std::vector<std::string> names;
  names.reserve(view.items.size());
  for (const Item& item : view.items) names.push_back(item.info.name);
  return names;
}

// Builds the catalogue model by model.
class Cataloguer {
 public:
  Cataloguer(std::span<const View> models, std::span<const Config> configs, std::uint32_t donor,
             const Family* family, Problems& problems)
      : models_(models), configs_(configs), donor_(donor), problems_(problems) {
    out_.family = family;
  }

  Catalogue run() {
    name_all();
    find_ends();
    find_paired();
    find_odd_stacks();
    out_.listings.resize(models_.size());
    intern(donor_);  // first, so that the donor's order of templates counts
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
      if (m != donor_) intern(m);
    }
    name_single_module();
    for (std::uint32_t m = 0; m < models_.size(); ++m) count_layers(m);
    find_gaps();
    return std::move(out_);
  }

 private:
  void name_all() {
    names_.resize(models_.size());
    translate(donor_, donor_renames(models_[donor_], out_.family, configs_[donor_].architecture()));
    std::vector<std::string> sorted = names_[donor_];
    std::sort(sorted.begin(), sorted.end());
    std::unordered_set<std::string> known;
    Spelt spelt;
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
      if (m == donor_) continue;
      translate(m, {});
      const auto& own = names_[m];
      if (std::is_sorted(own.begin(), own.end()) &&
          std::includes(sorted.begin(), sorted.end(), own.begin(), own.end())) {
        continue;
      }
      if (known.empty()) {
        known.insert(sorted.begin(), sorted.end());
        for (const std::string& name : sorted) spelt.emplace(name, name);
        for (const std::string& name : sorted) spelt.emplace(loaded(donor_, name), name);
      }
      translate(m, match_names(names_of(models_[m]), known), &spelt);
    }
  }

  // The donor's names by themselves and by those that its loaded model has.
  using Spelt = std::unordered_map<std::string, std::string>;
  [[nodiscard]] std::string loaded(std::uint32_t m, const std::string& name) const {
    return loaded_name(configs_[m].architecture(), name);
  }

  // A name as the donor spells it; the same name if the donor does not have it.
  [[nodiscard]] std::string respelt(std::uint32_t m, const std::string& name,
                                    const Spelt& spelt) const {
    const auto found = spelt.find(name);
    if (found != spelt.end()) return found->second;
    const auto same = spelt.find(loaded(m, name));
    if (same != spelt.end()) return same->second;
    for (const std::string& other : aliases(name)) {
      const auto known = spelt.find(other);
      if (known != spelt.end()) return known->second;
    }
    return name;
  }

  void translate(std::uint32_t m, const Renames& renames, const Spelt* spelt = nullptr) {
    const auto& entries = models_[m].items;
    names_[m].clear();
    names_[m].reserve(entries.size());
    bool changed = false;
    for (const Item& entry : entries) {
      names_[m].push_back(rename(entry.info.name, renames));
      if (spelt != nullptr) names_[m].back() = respelt(m, names_[m].back(), *spelt);
      changed = changed || names_[m].back() != entry.info.name;
    }
    if (!changed) return;
    std::unordered_map<std::string_view, const Item*> taken;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto [it, fresh] = taken.emplace(names_[m][i], &entries[i]);
      if (fresh) continue;
      problems_.error(
          Code::format,
          fmt::format(
              "{}: tensors '{}' and '{}' are two names of one tensor, '{}'; remove one of them",
              models_[m].text, it->second->info.name, entries[i].info.name, names_[m][i]));
    }
  }

  void find_ends() {
    const std::unordered_set<std::string_view> own(names_[donor_].begin(), names_[donor_].end());
    out_.ties = ties(
        configs_[donor_].architecture(),
        [&](const std::string& name) { return own.contains(name); }, out_.family);
  }

  void find_paired() {
    bool encoder = false;
    bool decoder = false;
    for (const std::string& name : names_[donor_]) {
      std::string_view rest = name;
      if (rest.starts_with("model.")) rest.remove_prefix(6);
      encoder = encoder || rest.starts_with("encoder.");
      decoder = decoder || rest.starts_with("decoder.");
    }
    paired_ = encoder && decoder;
  }

  // Stacks whose name does not tell: one of exactly as many members as the donor's config has
  // layers.
  void find_odd_stacks() {
    std::map<std::string_view, std::uint64_t> extent;
    for (const std::string& name : names_[donor_]) {
      for (const Number& number : numbers(name)) {
        const std::string_view before = std::string_view(name).substr(0, number.begin - 1);
        std::uint64_t& count = extent[before];
        count = std::max<std::uint64_t>(count, std::uint64_t{number.value} + 1);
        break;  // the first number of a name only
      }
    }
    for (const auto& [before, count] : extent) {
      if (count < 2) continue;
      const auto layers = configs_[donor_].layers(module(before, paired_), out_.family, count);
      if (layers && layers->value == count) odd_.emplace(before);
    }
  }

  bool is_stack(std::string_view before) const {
    return counts_layers(last_component(before)) || odd_.contains(std::string(before)) ||
           (out_.family != nullptr && !out_.family->stack.empty() && before == out_.family->stack);
  }

  std::uint32_t module_of(std::string_view name) {
    const std::string_view word = module(name, paired_);
    for (std::uint32_t i = 0; i < out_.modules.size(); ++i) {
      if (out_.modules[i] == word) return i;
    }
    out_.modules.emplace_back(word);
    return static_cast<std::uint32_t>(out_.modules.size() - 1);
  }

  std::int32_t stack_of(std::string_view before) {
    const auto [it, fresh] =
        stacks_.emplace(std::string(before), static_cast<std::int32_t>(out_.stacks.size()));
    if (fresh) out_.stacks.push_back({std::string(before), module_of(before)});
    return it->second;
  }

  void intern(std::uint32_t m) {
    const auto& entries = models_[m].items;
    Listing& listing = out_.listings[m];
    listing.spots.reserve(entries.size());
    std::string key;
    for (std::uint32_t i = 0; i < entries.size(); ++i) {
      const std::string_view name = names_[m][i];
      std::string_view before = name;
      std::string_view after;
      std::uint32_t layer = 0;
      bool layered = false;
      for (const Number& number : numbers(name)) {
        if (!is_stack(name.substr(0, number.begin - 1))) continue;
        before = name.substr(0, number.begin - 1);
        after = name.substr(number.end + 1);
        layer = number.value;
        layered = true;
        break;
      }
      key.assign(before).append(1, '\0').append(after);
      const auto [it, fresh] =
          parts_.emplace(key, static_cast<std::uint32_t>(out_.templates.size()));
      if (fresh) {
        const Shape& shape = entries[i].info.shape;
        Template part{std::string(before), std::string(after), kNoStack, 0, Role::other, false,
                      !ahead(name).empty()};
        if (layered) {
          part.stack = stack_of(before);
          part.module = out_.stacks[static_cast<std::size_t>(part.stack)].module;
          part.role = layer_role(after, shape);
        } else {
          part.module = module_of(name);
          part.role = role(name, shape, out_.family, &out_.ties);
        }
        part.trailing = part.ahead || (!layered && trailing(name, part.role));
        out_.templates.push_back(std::move(part));
        matrix_.push_back(false);
      }
      matrix_[it->second] = matrix_[it->second] || entries[i].info.shape.rank() >= 2;
      listing.spots.push_back({out_.templates[it->second].stack, layer, it->second, i});
    }
    std::sort(listing.spots.begin(), listing.spots.end());
  }

  // True for modules beside the text.
  [[nodiscard]] bool is_tower(std::uint32_t module) const {
    const std::string& name = out_.modules[module];
    return name == "vision_tower" || name == "audio_tower" || name == "multi_modal_projector";
  }

  // Names from the left, component by component: act("model"), act("model.layers"), ... until it
  // returns true. No module stands deeper than the last.
  template <class Act>
  static void prefixes(std::string_view name, Act act) {
    std::size_t dot = name.find('.');
    for (int depth = 0; depth < 8; ++depth, dot = name.find('.', dot + 1)) {
      if (act(name.substr(0, dot)) || dot == std::string_view::npos) return;
    }
  }

  static bool inside(std::string_view name, std::string_view root) {
    return name.starts_with(root) && (name.size() == root.size() || name[root.size()] == '.');
  }

  // Tensors that belong to no optional module: the text's layers and its embedding.
  [[nodiscard]] std::set<std::string> vital() const {
    std::set<std::string> names;
    for (const Listing& listing : out_.listings) {
      std::vector<const Stack*> deepest(out_.modules.size());
      std::vector<std::uint64_t> most(out_.modules.size());
      for (std::size_t s = 0; s < out_.stacks.size(); ++s) {
        const std::uint32_t module = out_.stacks[s].module;
        if (is_tower(module) || listing.counts[s] <= most[module]) continue;
        most[module] = listing.counts[s];
        deepest[module] = &out_.stacks[s];
      }
      for (const Stack* stack : deepest) {
        if (stack != nullptr) names.insert(stack->prefix);
      }
    }
    for (const Spot& spot : out_.listings[donor_].spots) {
      const Template& part = out_.templates[spot.part];
      if (part.stack != kNoStack || part.role != Role::embedding) continue;
      names.insert(part.before);
      break;
    }
    return names;
  }

  // How much stands below a name.
  struct Bulk {
    std::uint64_t tensors = 0;
    bool matrix = false;
  };

  void find_gaps() {
    const std::size_t parts = out_.templates.size();
    std::vector<std::vector<std::uint64_t>> held(models_.size(), std::vector<std::uint64_t>(parts));
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
      for (const Spot& spot : out_.listings[m].spots) ++held[m][spot.part];
    }
    find_beyond();
    const auto all = [](const auto& counts) {
      return std::find(counts.begin(), counts.end(), 0U) == counts.end();
    };
    if (std::all_of(held.begin(), held.end(), all)) return;

    std::map<std::string, Bulk, std::less<>> below;
    for (std::uint32_t p = 0; p < parts; ++p) {
      const auto owner =
          std::find_if(held.begin(), held.end(), [&](const auto& counts) { return counts[p] > 0; });
      prefixes(out_.templates[p].before, [&](std::string_view prefix) {
        auto at = below.find(prefix);
        if (at == below.end()) at = below.emplace(prefix, Bulk{}).first;
        at->second.tensors += (*owner)[p];
        at->second.matrix = at->second.matrix || matrix_[p];
        return false;
      });
    }
    const std::set<std::string> needed = vital();
    std::map<std::string, std::int32_t, std::less<>> gaps;  // -1: not a module
    const auto gap_at = [&](std::string_view root, bool tower) {
      if (const auto at = gaps.find(root); at != gaps.end()) return at->second;
      const Bulk& bulk = below.find(root)->second;
      const bool whole = (tower || (bulk.tensors >= 2 && bulk.matrix)) &&
                         std::none_of(needed.begin(), needed.end(),
                                      [&](const std::string& name) { return inside(name, root); });
      const std::int32_t index = whole ? static_cast<std::int32_t>(out_.gaps.size()) : -1;
      if (whole) out_.gaps.push_back({std::string(root), bulk.tensors});
      gaps.emplace(root, index);
      return index;
    };
    out_.lacking.assign(models_.size(), std::vector<std::int32_t>(parts, -1));
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
      if (all(held[m])) continue;
      std::set<std::string, std::less<>> known;
      std::set<std::uint32_t> towers;  // modules
      for (std::uint32_t p = 0; p < parts; ++p) {
        if (held[m][p] == 0) continue;
        prefixes(out_.templates[p].before, [&](std::string_view prefix) {
          known.emplace(prefix);
          return false;
        });
        if (is_tower(out_.templates[p].module)) towers.insert(out_.templates[p].module);
      }
      for (std::uint32_t p = 0; p < parts; ++p) {
        const Template& part = out_.templates[p];
        if (held[m][p] > 0 || towers.contains(part.module)) continue;
        prefixes(part.before, [&](std::string_view prefix) {
          if (known.contains(prefix)) return false;
          out_.lacking[m][p] = gap_at(prefix, is_tower(part.module));
          return true;
        });
      }
    }
  }

  void find_beyond() {
    // Layers beyond the counted ones.
    for (std::uint32_t m = 0; m < models_.size(); ++m) {
      std::map<std::pair<std::int32_t, std::uint64_t>, std::uint64_t> extra;
      for (const Spot& spot : out_.listings[m].spots) {
        if (spot.stack == kNoStack ||
            spot.layer < out_.listings[m].counts[static_cast<std::size_t>(spot.stack)]) {
          continue;
        }
        ++extra[{spot.stack, spot.layer}];
      }
      for (const auto& [place, tensors] : extra) {
        const auto [at, fresh] =
            out_.beyond.emplace(place, static_cast<std::int32_t>(out_.gaps.size()));
        if (!fresh) continue;
        const std::string& prefix = out_.stacks[static_cast<std::size_t>(place.first)].prefix;
        out_.gaps.push_back({fmt::format("{}.{}", prefix, place.second), tensors});
      }
    }
  }

  void name_single_module() {
    if (out_.modules.size() == 1) out_.modules.front() = "default";
  }

  void count_layers(std::uint32_t m) {
    Listing& listing = out_.listings[m];
    listing.counts.assign(out_.stacks.size(), 0);
    out_.counts.resize(out_.stacks.size());
    for (const Spot& spot : listing.spots) {
      if (spot.stack == kNoStack) continue;
      std::uint64_t& count = listing.counts[static_cast<std::size_t>(spot.stack)];
      count = std::max<std::uint64_t>(count, std::uint64_t{spot.layer} + 1);
    }
    // The deepest stack of a module is the one whose depth config.json tells.
    for (std::uint32_t module = 0; module < out_.modules.size(); ++module) {
      std::size_t main = out_.stacks.size();
      for (std::size_t s = 0; s < out_.stacks.size(); ++s) {
        if (out_.stacks[s].module != module) continue;
        if (main == out_.stacks.size() || listing.counts[s] > listing.counts[main]) main = s;
      }
      if (main == out_.stacks.size() || listing.counts[main] == 0) continue;
      std::uint64_t& stored = listing.counts[main];
      const auto count = configs_[m].layers(out_.modules[module], out_.family, stored);
      if (m == donor_) out_.counts[main] = count;
      if (!count || count->value == stored) continue;
      if (count->value > stored) {
        problems_.warn(Code::format,
                       fmt::format("{}: config.json says {} layers ({}), the weights hold {} ({})",
                                   models_[m].text, count->value, count->place.key, stored,
                                   out_.stacks[main].prefix));
      } else {
        stored = count->value;  // layers beyond are something else: multi-token prediction
      }
    }
  }

  std::span<const View> models_;
  std::span<const Config> configs_;
  std::uint32_t donor_;
  Problems& problems_;
  Catalogue out_;
  bool paired_ = false;
  std::vector<std::vector<std::string>> names_;  // the output's name of every entry
  std::vector<bool> matrix_;                     // by part: some model has it as a matrix
  std::unordered_set<std::string> odd_;
  std::unordered_map<std::string, std::int32_t> stacks_;
  std::unordered_map<std::string, std::uint32_t> parts_;
};

}  // namespace

std::string rename(std::string_view name, const Renames& renames) {
  for (const auto& [from, to] : renames) {
    if (!name.starts_with(from) || (from.empty() && beside_base(name))) continue;
    return modern(to + std::string(name.substr(from.size())));
  }
  return modern(std::string(name));
}

Renames match_names(std::span<const std::string> names,
                    const std::unordered_set<std::string>& known) {
  const auto hits = [&](const Renames& renames) {
    return std::count_if(names.begin(), names.end(), [&](const std::string& name) {
      return known.contains(rename(name, renames));
    });
  };
  Renames best;
  auto most = hits(best);
  if (most == static_cast<std::ptrdiff_t>(names.size())) return best;
  const auto attempt = [&](const Renames& renames) {
    const auto count = hits(renames);
    if (count <= most) return;
    best = renames;
    most = count;
  };
  for (const Renames& renames : candidates()) attempt(renames);
  attempt(laid_over(standing_of(names), standing_of(known)));
  return best;
}

std::string Template::name(std::uint64_t layer) const {
  return stack == kNoStack ? before : fmt::format("{}.{}.{}", before, layer, after);
}

std::span<const Spot> Listing::range(std::int32_t stack, std::uint64_t first,
                                     std::uint64_t last) const {
  const auto below = [](const Spot& spot, std::pair<std::int32_t, std::uint64_t> place) {
    return std::pair(spot.stack, std::uint64_t{spot.layer}) < place;
  };
  const auto begin = std::lower_bound(spots.begin(), spots.end(), std::pair(stack, first), below);
  const auto end = std::lower_bound(begin, spots.end(), std::pair(stack, last), below);
  return {begin, end};
}

const Spot* Listing::find(std::uint32_t part) const {
  const Spot wanted{kNoStack, 0, part, 0};
  const auto it = std::lower_bound(spots.begin(), spots.end(), wanted);
  return it != spots.end() && it->stack == kNoStack && it->part == part ? &*it : nullptr;
}

const Gap* Catalogue::gap(std::uint32_t model, std::uint32_t part, std::uint64_t layer) const {
  const std::int32_t stack = templates[part].stack;
  if (const auto at = beyond.find({stack, layer}); stack != kNoStack && at != beyond.end()) {
    const bool absent = listings[model].range(stack, layer, layer + 1).empty();
    return absent ? &gaps[static_cast<std::size_t>(at->second)] : nullptr;
  }
  const std::int32_t index = lacking.empty() ? -1 : lacking[model][part];
  return index < 0 ? nullptr : &gaps[static_cast<std::size_t>(index)];
}

bool Catalogue::behind(std::uint32_t part, std::uint64_t layer) const {
  const Template& what = templates[part];
  const std::string& module = modules[what.module];
  return what.stack != kNoStack && (module == "text_decoder" || module == "default") &&
         beyond.contains({what.stack, layer});
}

const Gap* Catalogue::gap(std::uint32_t model, std::int32_t stack) const {
  for (std::uint32_t p = 0; p < templates.size(); ++p) {
    if (templates[p].stack != stack || lacking.empty() || lacking[model][p] < 0) continue;
    return &gaps[static_cast<std::size_t>(lacking[model][p])];
  }
  return nullptr;
}

Catalogue catalogue(std::span<const View> models, std::span<const Config> configs,
                    std::uint32_t donor, const Family* family, Problems& problems) {
  return Cataloguer(models, configs, donor, family, problems).run();
}

}  // namespace ingot::plan
