#include "plan/tensors.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "plan/folder.hpp"
#include "plan/ties.hpp"
#include "plan/types.hpp"
#include "token/rows.hpp"
#include "token/vocab.hpp"

namespace ingot::plan {
namespace {

// Forty times what the largest mixtures of experts have; a bound on the memory of a plan, which
// takes about 1 KB for an output tensor of three models.
constexpr std::size_t kTensors = 3'000'000;

// A bound on the layers of the donor that are compared with the output's.
constexpr std::uint64_t kCompared = 20'000;

// Stands for layers of slices, whose numbers in the output are not the catalogue's.
constexpr std::uint64_t kNoLayer = ~std::uint64_t{0};

// The tensor of every input of a section that plays one part, null where an input has none.
using Found = std::vector<const Spot*>;

// Calls act(part, place, found) once for every part at every place that some input has. `lists` are
// sorted and `keep` says what counts of them; a place is a layer number less the input's `first`,
// so that layers of different numbers meet.
template <class Keep, class Act>
void join(std::vector<std::span<const Spot>> lists, const std::vector<std::uint64_t>& first,
          Keep keep, Act act) {
  using Key = std::tuple<std::int32_t, std::uint64_t, std::uint32_t>;
  const auto key = [&](std::size_t i) {
    const Spot& spot = lists[i].front();
    return Key{spot.stack, spot.layer - first[i], spot.part};
  };
  for (;;) {
    std::optional<Key> least;
    for (std::size_t i = 0; i < lists.size(); ++i) {
      while (!lists[i].empty() && !keep(lists[i].front())) lists[i] = lists[i].subspan(1);
      if (!lists[i].empty() && (!least || key(i) < *least)) least = key(i);
    }
    if (!least) return;
    Found found(lists.size(), nullptr);
    for (std::size_t i = 0; i < lists.size(); ++i) {
      if (lists[i].empty() || key(i) != *least) continue;
      found[i] = &lists[i].front();
      lists[i] = lists[i].subspan(1);
    }
    act(std::get<2>(*least), std::get<1>(*least), std::move(found));
  }
}

// The vocabularies behind a tokenizer setting.
struct Tokenizers {
  Vocab output;
  std::vector<std::shared_ptr<const Vocab>> own;  // by model; null: as the output's donor
};

class Writer {
 public:
  Writer(Disk& disk, Draft& draft, Rules& rules, std::optional<Dtype> wanted)
      : disk_(disk),
        draft_(draft),
        rules_(rules),
        wanted_(wanted),
        names_(draft.names),
        problems_(draft.problems) {}

  Written run(const std::vector<Part>& parts) {
    index_parts();
    read_tokenizers();
    for (const Part& part : parts) {
      if (part.sections.empty()) continue;
      if (part.sections.front().whole) {
        write_whole(part);
      } else {
        write_slices(part);
      }
    }
    list_unused(parts);
    written_.ahead.layers = std::max<std::size_t>(ahead_.size(), written_.ahead.from ? 1 : 0);
    written_.head = !heads_written_.empty();
    return std::move(written_);
  }

 private:
  // --- the catalogue at a glance

  void index_parts() {
    const std::size_t models = draft_.views.size();
    holds_.assign(models, std::vector<bool>(names_.templates.size()));
    counted_ = holds_;
    for (std::size_t m = 0; m < models; ++m) {
      for (const Spot& spot : names_.listings[m].spots) {
        holds_[m][spot.part] = true;
        if (spot.stack == kNoStack || spot.layer < depth(static_cast<std::uint32_t>(m), spot.stack))
          counted_[m][spot.part] = true;
        written_.ahead.known = written_.ahead.known || names_.templates[spot.part].ahead ||
                               names_.behind(spot.part, spot.layer);
      }
    }
    tied_ = tied(names_.ties, draft_.plan.architecture, draft_.configs[draft_.donor].tied(), true);
    for (const Model& model : draft_.plan.models) {
      used_.emplace_back(model.checkpoint.entries().size());
    }
    for (std::uint32_t p = 0; p < names_.templates.size(); ++p) {
      const Template& part = names_.templates[p];
      if (part.role == Role::head) {
        heads_.push_back(p);
        written_.donor_head = written_.donor_head || holds_[draft_.donor][p];
      }
      if (part.role != Role::embedding) continue;
      const bool best = names_.family != nullptr && part.before == names_.family->embedding;
      embeddings_.insert(best ? embeddings_.begin() : embeddings_.end(), p);
    }
    if (!embeddings_.empty()) {
      const Spot* spot = names_.listings[draft_.donor].find(embeddings_.front());
      if (spot != nullptr)
        written_.donor_rows = draft_.item(draft_.donor, spot->entry).info.shape[0];
      // The base's config.json gives the number of rows before an adapter replaced them.
      const auto& rows = draft_.views[draft_.donor].rows;
      if (rows) written_.donor_rows = rows;
    }
  }

  void read_tokenizers() {
    const Vocabulary& setting = draft_.recipe().vocabulary;
    if (setting.kind != Vocabulary::Kind::base && setting.kind != Vocabulary::Kind::model) return;
    try {
      const std::string folder = tokenizer_folder(disk_, draft_);
      auto output = read_vocab(disk_, folder);
      if (!output) {
        problems_.error(Code::missing,
                        fmt::format("{}: {} has no tokenizer whose vocabulary can be read",
                                    draft_.place(setting.mark), folder));
        return;
      }
      Tokenizers all{std::move(*output), {}};
      check_vocabulary(all.output, folder);
      std::map<std::string, std::shared_ptr<const Vocab>> read = {{folder, nullptr}};
      for (const View& view : draft_.views) {
        const auto [at, fresh] = read.try_emplace(view.tokenizer);
        if (fresh) {
          if (auto own = read_vocab(disk_, view.tokenizer)) {
            at->second = std::make_shared<const Vocab>(std::move(*own));
            check_vocabulary(*at->second, view.tokenizer);
          }
        }
        all.own.push_back(at->second);
      }
      tokenizers_ = std::move(all);
    } catch (Error& e) {
      e.add("reading the tokenizers");
      problems_.error(e.code(), e.what());
    }
  }

  // Rows of ids without a token become one row, the mean of the others; what a vocabulary leaves
  // out by mistake would be lost in silence.
  void check_vocabulary(const Vocab& vocab, const std::string& folder) {
    if (2 * vocab.used() < vocab.rows()) {
      problems_.warn(
          Code::format,
          fmt::format(
              "{} gives tokens to {} of its {} ids, so its vocabulary is missing or cut off: the "
              "rows of all other ids become the mean of the rest; fetch the tokenizer again",
              vocab.file, vocab.used(), vocab.rows()));
      return;
    }
    for (std::uint32_t v = 0; v < draft_.views.size(); ++v) {
      const auto rows = rows_of(draft_, v);
      if (draft_.views[v].tokenizer != folder || !rows || 2 * vocab.used() >= *rows) continue;
      problems_.warn(Code::format,
                     fmt::format("{} has {} tokens, and the embedding of {} has {} rows: the rows "
                                 "without a token are left out",
                                 vocab.file, vocab.used(), draft_.shown(v), *rows));
      return;
    }
  }

  // --- enumeration

  void write_whole(const Part& part) {
    const Section& section = part.sections.front();
    join(
        all_spots(section), std::vector<std::uint64_t>(section.inputs.size(), 0),
        [&](const Spot& s) { return in_module(part, s); },
        [&](std::uint32_t p, std::uint64_t layer, Found found) {
          const std::int32_t stack = names_.templates[p].stack;
          double t = 0;
          if (stack != kNoStack) {
            t = gradient(layer, depth(section.inputs.front().model, stack));
          }
          write(part, section, p, layer, layer, t, std::move(found));
        });
  }

  void write_slices(const Part& part) {
    check_stack(part);
    const Section& first = part.sections.front();
    const Section& last = part.sections.back();
    // Layers of other stacks are not part of the slices: they stay where they are.
    const auto beside = [&](const Section& section, bool trailing) {
      join(
          all_spots(section), std::vector<std::uint64_t>(section.inputs.size(), 0),
          [&](const Spot& s) {
            return in_module(part, s) && s.stack != section.stack &&
                   names_.templates[s.part].trailing == trailing;
          },
          [&](std::uint32_t p, std::uint64_t layer, Found found) {
            write(part, section, p, layer, layer, 0, std::move(found));
          });
    };
    beside(first, false);
    Restacked stack;
    const auto& count = names_.counts[static_cast<std::size_t>(first.stack)];
    if (count) {
      stack.count = count->place;
      stack.order.counter = count->place.key;
    }
    stack.old_count = depth(draft_.donor, first.stack);
    for (std::uint32_t m = 0; m < draft_.views.size(); ++m) {
      stack.depths.push_back(depth(m, first.stack));
    }
    for (const Section& section : part.sections) {
      std::vector<std::span<const Spot>> lists;
      std::vector<std::uint64_t> starts;
      for (const Input& input : section.inputs) {
        lists.push_back(names_.listings[input.model].range(section.stack, input.first,
                                                           input.first + section.count));
        starts.push_back(input.first);
      }
      join(
          std::move(lists), starts, [](const Spot&) { return true; },
          [&](std::uint32_t p, std::uint64_t k, Found found) {
            write(part, section, p, section.offset + k, k, gradient(k, section.count),
                  std::move(found));
          });
      const Input& giver = section.inputs.front();
      for (std::uint64_t k = 0; k < section.count; ++k) {
        stack.order.layers.push_back({giver.model, giver.first + k});
        auto& partners = stack.order.partners.emplace_back();
        for (const Input& input : section.inputs) {
          if (&input != &giver) partners.push_back({input.model, input.first + k});
        }
      }
    }
    describe(first.stack, stack);
    written_.stacks.push_back(std::move(stack));
    beside(last, true);
    tell_ahead(part);
    // The last slice's models may be tied while another has a head of its own.
    for (const std::uint32_t head : heads_) {
      const Template& what = names_.templates[head];
      if (what.module != part.module || what.ahead || heads_written_.contains(head)) continue;
      if (std::any_of(part.sections.begin(), part.sections.end(), [&](const Section& section) {
            return std::any_of(section.inputs.begin(), section.inputs.end(),
                               [&](const Input& i) { return bool{holds_[i.model][head]}; });
          })) {
        write(part, last, head, 0, 0, 0, Found(last.inputs.size(), nullptr));
      }
    }
    tell_tied(part);
  }

  // A module for multi-token prediction reads what the last layers give: it comes whole from the
  // models of the last slice.
  void tell_ahead(const Part& part) {
    std::set<std::string_view> roots;
    std::string owners, givers;
    const std::vector<Input>& last = part.sections.back().inputs;
    for (std::uint32_t m = 0; m < draft_.views.size(); ++m) {
      bool owns = false;
      for (const Spot& spot : names_.listings[m].spots) {
        const std::string_view root = ahead(names_.templates[spot.part].before);
        if (root.empty() || !in_module(part, spot)) continue;
        roots.insert(root);
        owns = true;
      }
      if (!owns) continue;
      owners += (owners.empty() ? "" : ", ") + draft_.shown(m);
      if (std::any_of(last.begin(), last.end(), [&](const Input& i) { return i.model == m; })) {
        givers += (givers.empty() ? "" : ", ") + draft_.shown(m);
      }
    }
    if (roots.empty()) return;
    const std::string what =
        fmt::format("{} {}", roots.size() > 1 ? "modules" : "module", fmt::join(roots, ", "));
    const std::string& file = draft_.recipe().file;
    if (!givers.empty()) {
      problems_.warn(Code::missing,
                     fmt::format("{}: {} for multi-token prediction comes whole from "
                                 "{}, as the last slice does",
                                 file, what, givers));
    } else if (draft_.plan.options.strict_modules) {
      problems_.error(Code::missing,
                      fmt::format("{}: {} has {}, which the models of the last slice "
                                  "lack, and --strict-modules asks for models that "
                                  "have the same modules",
                                  file, owners, what));
    } else {
      problems_.warn(Code::missing, fmt::format("{}: {} of {} is left out: multi-token prediction "
                                                "comes from the last slice, whose models have none",
                                                file, what, owners));
    }
  }

  // Without a head of its own the output reads its last layers by the embedding of the first.
  void tell_tied(const Part& part) {
    if (embeddings_.empty() || !speaks(architecture(draft_, draft_.donor))) return;
    const auto embedding = [&](const Section& section) {
      std::set<std::tuple<std::uint32_t, std::uint32_t, const void*>> items;
      for (const Input& input : section.inputs) {
        const Spot* spot = names_.listings[input.model].find(embeddings_.front());
        if (spot == nullptr) continue;
        const Item& item = draft_.item(input.model, spot->entry);
        items.emplace(item.model, item.entry, item.effects.get());
      }
      return items;
    };
    const Section& first = part.sections.front();
    const Section& last = part.sections.back();
    if (names_.templates[embeddings_.front()].module != part.module && part.module != kAllModules)
      return;
    if (!heads_written_.empty() || embedding(first) == embedding(last)) return;
    problems_.warn(
        Code::format,
        fmt::format("{}: the models have no head of their own, so the embedding of {}, from the "
                    "first slice, is the head behind the last layers, which come from {}; a model "
                    "with its own head in the last slice would give that",
                    draft_.recipe().file, draft_.shown(first.inputs.front().model),
                    draft_.shown(last.inputs.front().model)));
  }

  [[nodiscard]] std::vector<std::span<const Spot>> all_spots(const Section& section) const {
    std::vector<std::span<const Spot>> lists;
    for (const Input& input : section.inputs)
      lists.emplace_back(names_.listings[input.model].spots);
    return lists;
  }
  // The tensors of the output's layers and of the donor's: names and shapes, buffers apart.
  void describe(std::int32_t stack, Restacked& out) const {
    std::map<std::vector<std::string>, std::uint32_t> sets;
    const auto set = [&](const Origin& layer) {
      std::vector<std::string> members;
      for (const Spot& spot :
           names_.listings[layer.model].range(stack, layer.layer, layer.layer + 1)) {
        const Template& name = names_.templates[spot.part];
        if (name.role == Role::buffer) continue;
        members.push_back(fmt::format("{} {}", name.after,
                                      draft_.item(layer.model, spot.entry).info.shape.text()));
      }
      std::sort(members.begin(), members.end());
      const auto [at, fresh] =
          sets.emplace(std::move(members), static_cast<std::uint32_t>(sets.size()));
      if (fresh) out.order.members.push_back(at->first);
      return at->second;
    };
    for (const Origin& layer : out.order.layers) out.order.sets.push_back(set(layer));
    for (std::uint64_t k = 0; k < std::min<std::uint64_t>(out.old_count, kCompared); ++k) {
      out.order.donor_sets.push_back(set({draft_.donor, k}));
    }
    std::uint64_t stored = 0;
    for (const Spot& spot : names_.listings[draft_.donor].spots) {
      if (spot.stack == stack) stored = std::max(stored, std::uint64_t{spot.layer} + 1);
    }
    out.order.left = stored - std::min(stored, out.old_count);
    for (std::size_t s = 0; s < names_.stacks.size(); ++s) {  // as many beside them, one for each
      const auto number = static_cast<std::int32_t>(s);
      if (!ahead(names_.stacks[s].prefix).empty()) continue;
      if (number != stack && out.old_count > 1 && depth(draft_.donor, number) == out.old_count &&
          names_.stacks[s].module == names_.stacks[static_cast<std::size_t>(stack)].module) {
        out.order.joined.push_back(names_.stacks[s].prefix);
      }
    }
    std::map<std::string, std::uint64_t> lists;  // "queries.0", "queries.1": one for each
    for (const Spot& spot : names_.listings[draft_.donor].range(kNoStack)) {
      const std::string& whole = names_.templates[spot.part].before;
      const std::string_view last = last_component(whole);
      const std::uint64_t members = is_number(last) ? ++lists[std::string(parent(whole))] : 0;
      if (members > 1 && members == out.old_count) out.order.joined.emplace_back(parent(whole));
    }
    for (const Spot& spot : names_.listings[draft_.donor].range(kNoStack)) {
      const Template& name = names_.templates[spot.part];
      if (name.before.find("per_layer") == std::string::npos ||
          name.module != names_.stacks[static_cast<std::size_t>(stack)].module) {
        continue;
      }
      const Shape& shape = draft_.item(draft_.donor, spot.entry).info.shape;
      bool parts = false;
      for (int axis = 0; axis < shape.rank(); ++axis) {
        parts = parts || (out.old_count > 1 && shape[axis] % out.old_count == 0);
      }
      if (parts) out.order.joined.push_back(name.before);
    }
  }
  [[nodiscard]] bool in_module(const Part& part, const Spot& spot) const {
    return part.module == kAllModules || names_.templates[spot.part].module == part.module;
  }
  [[nodiscard]] std::uint64_t depth(std::uint32_t model, std::int32_t stack) const {
    return names_.listings[model].counts[static_cast<std::size_t>(stack)];
  }
  // The place of layer k of n on a gradient, from 0 to 1; 0 for tensors outside the layers
  // (mergekit 1.3, 1.4).
  [[nodiscard]] static double gradient(std::uint64_t k, std::uint64_t n) {
    if (k >= n) return 0;
    return n == 1 ? 1 : static_cast<double>(k) / static_cast<double>(n - 1);
  }

  // All layers of one stack need the same tensors: if only some of its models have a tensor, the
  // result is not a model.
  void check_stack(const Part& part) {
    for (std::uint32_t p = 0; p < names_.templates.size(); ++p) {
      const Template& name = names_.templates[p];
      if (name.stack != part.sections.front().stack || name.role == Role::buffer) continue;
      const std::uint32_t first = part.sections.front().inputs.front().model;
      for (const Section& section : part.sections) {
        const std::uint32_t other = section.inputs.front().model;
        if (counted_[first][p] == counted_[other][p]) continue;
        const auto [with, without] =
            counted_[first][p] ? std::pair(first, other) : std::pair(other, first);
        std::string text = fmt::format(
            "layers of {} have {}, but layers of {} do not: a stack of both does not make a model",
            draft_.shown(with), name.after, draft_.shown(without));
        const std::string key = fmt::format("stack {} {}", with, without);
        if (draft_.plan.options.allow_mixed) {
          draft_.plan.waived.mixed = true;
          problems_.warn_like(key, Code::missing, std::move(text));
        } else {
          problems_.error_like(key, Code::missing, std::move(text));
        }
        break;
      }
    }
  }

  // --- one output tensor

  // One input that takes part.
  struct Share {
    std::size_t input = 0;  // index into the section's inputs
    std::uint32_t model = 0;
    const Item* item = nullptr;
    std::string name;  // as the catalogue calls it, for filters
  };

  // `layer` is the output's; `place` is the layer less the section's first, as join counts it.
  void write(const Part& part, const Section& section, std::uint32_t p, std::uint64_t layer,
             std::uint64_t place, double t, Found found) {
    const Template& what = names_.templates[p];
    const std::string output = what.name(layer);
    if (what.role == Role::buffer) return write_buffer(part, section, p, output, found);
    std::vector<std::uint32_t> models;  // that give the tensor of each input
    for (const Input& input : section.inputs) models.push_back(input.model);
    std::string filled;
    if (!fill_gaps(section, p, layer, output, found, models, filled)) return;
    const bool tieable = what.role == Role::head || what.role == Role::embedding;
    if (tieable && !stand_in(section, p, output, found)) return;
    if (std::all_of(found.begin(), found.end(), [](const Spot* s) { return s == nullptr; })) {
      problems_.error(Code::missing,
                      fmt::format("{}: no model of {} has tensor {} or a tensor tied to it",
                                  draft_.recipe().file, section.where, output));
      return;
    }

    std::vector<Share> shares;  // the base first
    bool sound = true;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const Input& input = section.inputs[i];
      if (found[i] == nullptr) {
        sound = absent(section, p, i, output, found) && sound;
        continue;
      }
      const std::uint64_t own = outside(section, what) ? place : input.first + place;
      Share share{i, models[i], &draft_.item(models[i], found[i]->entry),
                  names_.templates[found[i]->part].name(own)};
      const bool base = section.base && *section.base == i;
      shares.insert(base ? shares.begin() : shares.end(), std::move(share));
    }
    if (!sound) return;

    Job job;
    job.output.name = output;
    job.output.shape = shares.front().item->info.shape;
    for (const Share& share : shares) {
      job.operands.push_back({share.item->model, share.item->entry, share.item->rows, {}});
    }
    if (!same_shapes(what, shares, job)) return;
    if (!same_types(shares, job)) return;
    if (filled.empty() || !same_item(shares)) {
      if (job.action == Action::merge && !find_rule(section, shares, t, job)) return;
    } else {
      pass_through(shares, job);
    }
    if (!filled.empty()) job.reason = filled;
    if (!derive(shares, job)) return;
    if (what.role == Role::head) heads_written_.insert(p);
    note_ahead(section, p, layer, shares);
    if (!embeddings_.empty() && p == embeddings_.front()) written_.rows = job.output.shape[0];
    add(std::move(job));
  }

  // What config.json must say of layers for multi-token prediction.
  void note_ahead(const Section& section, std::uint32_t p, std::uint64_t layer,
                  const std::vector<Share>& shares) {
    const Template& what = names_.templates[p];
    if (!what.ahead && !(outside(section, what) && names_.behind(p, layer))) return;
    const bool own = std::any_of(shares.begin(), shares.end(),
                                 [&](const Share& share) { return share.model == draft_.donor; });
    std::optional<std::uint32_t>& from = written_.ahead.from;
    if (own || !from) from = own ? draft_.donor : shares.front().model;
    if (what.stack != kNoStack) {
      ahead_.insert(layer);
      return;
    }
    std::string_view rest = what.before;  // "mtp.0.norm.weight": the number that follows
    rest.remove_prefix(ahead(rest).size());
    std::uint64_t number = 0;
    if (rest.starts_with('.') &&
        std::from_chars(rest.data() + 1, rest.data() + rest.size(), number).ec == std::errc()) {
      ahead_.insert(number);
    }
  }

  // True where the catalogue's layer numbers are the output's: not within slices.
  [[nodiscard]] static bool outside(const Section& section, const Template& what) {
    return section.whole || what.stack != section.stack;
  }

  // A model without a whole module takes part with the base's, or, where there is no base or that
  // lacks it too, with that of the first model that has it; where the donor's class has no such
  // module it stays out of the output. False: there is nothing to write. `filled` says whose is
  // taken for whose.
  bool fill_gaps(const Section& section, std::uint32_t p, std::uint64_t layer,
                 const std::string& output, Found& found, std::vector<std::uint32_t>& models,
                 std::string& filled) {
    std::vector<std::size_t> without;
    std::optional<std::size_t> giver;
    const Gap* gap = nullptr;
    const std::optional<std::size_t> base = base_of(section);
    const std::uint64_t number = outside(section, names_.templates[p]) ? layer : kNoLayer;
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] != nullptr) {
        if (!giver || base == i) giver = i;
        continue;
      }
      const Gap* own = names_.gap(section.inputs[i].model, p, number);
      if (own == nullptr) continue;
      gap = own;
      without.push_back(i);
    }
    if (gap == nullptr || !giver) return true;
    const std::uint32_t owner = section.inputs[*giver].model;
    const std::string& lender = draft_.shown(owner);
    const std::string what = fmt::format("module {} ({} tensor{})", gap->root, gap->tensors,
                                         gap->tensors == 1 ? "" : "s");
    std::string names;
    for (const std::size_t i : without) {
      const std::string& name = draft_.shown(section.inputs[i].model);
      names += (names.empty() ? "" : ", ") + name;
    }
    const std::string key = fmt::format("module {} {}", gap->root, names);
    const bool several = without.size() > 1;
    if (draft_.plan.options.strict_modules) {
      if (told_.insert(key).second) {
        problems_.error(Code::missing,
                        fmt::format("{} {} no {}, which {} has, and --strict-modules asks for "
                                    "models that have the same modules",
                                    names, several ? "have" : "has", what, lender));
      }
      return false;
    }
    const std::string own = architecture(draft_, draft_.donor),
                      theirs = architecture(draft_, owner);
    const bool foreign = names_.gap(draft_.donor, p, number) != nullptr && own != theirs &&
                         !own.empty() && !theirs.empty();
    if (foreign) {
      const std::string reason = fmt::format("in module {}, which {} and its class lack", gap->root,
                                             draft_.shown(draft_.donor));
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (found[i] == nullptr) continue;
        reasons_.try_emplace(place(section.inputs[i].model, found[i]->entry), reason);
      }
      if (told_.insert(key).second) {
        problems_.warn(Code::missing,
                       fmt::format("{} of {} is left out: {} and its class {} have none; name {} "
                                   "as base_model to keep it",
                                   what, lender, draft_.shown(draft_.donor), own, lender));
      }
      return false;
    }
    for (const std::size_t i : without) {
      found[i] = found[*giver];
      models[i] = owner;
    }
    filled = fmt::format("module {}: {} {} none, that of {} is taken", gap->root, names,
                         several ? "have" : "has", lender);
    if (told_.insert(key).second) {
      problems_.warn(Code::missing,
                     fmt::format("{} {} no {}, which {} has: the output uses that of {} for {}; "
                                 "--strict-modules refuses this (first tensor: {})",
                                 names, several ? "have" : "has", what, lender, lender,
                                 several ? "them" : "it", output));
    }
    return true;
  }

  // The base among a section's inputs, or what the recipe calls so where the method has none.
  [[nodiscard]] std::optional<std::size_t> base_of(const Section& section) const {
    if (section.base || !draft_.recipe().base_model) return section.base;
    for (std::size_t i = 0; i < section.inputs.size(); ++i) {
      if (section.inputs[i].model == draft_.donor) return i;
    }
    return std::nullopt;
  }

  static bool same_item(const std::vector<Share>& shares) {
    return std::all_of(shares.begin(), shares.end(),
                       [&](const Share& share) { return share.item == shares.front().item; });
  }

  // The one tensor that all inputs take part with, as it is but for the type that is asked for.
  static void pass_through(std::vector<Share>& shares, Job& job) {
    shares.resize(1);
    job.operands.resize(1);
    if (job.action == Action::copy) return;
    job.work.inputs.resize(1);
    const bool computed = shares.front().item->effects != nullptr || job.operands.front().rows;
    if (!computed && shares.front().item->info.dtype == job.output.dtype) {
      job.action = Action::copy;
      return;
    }
    job.work.rule = Rules::pass(job.output.count());
  }

  void add(Job job) {
    if (draft_.plan.jobs.size() == kTensors) {
      problems_.error_like("tensors", Code::usage,
                           fmt::format("{}: the output would have more than {} tensors",
                                       draft_.recipe().file, kTensors));
      return;
    }
    const std::uint64_t most = job.output.count();
    for (const Operand& operand : job.operands) {
      const TensorInfo& info = stored(operand.model, operand.entry);
      if (!operand.derived || operand.derived->own()) {
        use(operand.model, operand.entry,
            operand.rows ? info.bytes() : most * bits(info.dtype) / 8);
      }
      if (operand.derived) {
        for (const Ingredient& each : operand.derived->ingredients()) {
          use(each.model, each.entry, stored(each.model, each.entry).bytes());
        }
      }
      if (!operand.rows) continue;
      for (const RowMap::Pick& pick : operand.rows->picks) {
        use(pick.model, pick.entry, stored(pick.model, pick.entry).bytes());
      }
    }
    draft_.plan.jobs.push_back(std::move(job));
  }

  [[nodiscard]] const TensorInfo& stored(std::uint32_t model, std::uint32_t entry) const {
    return draft_.plan.models[model].checkpoint.entries()[entry].info;
  }

  void use(std::uint32_t model, std::uint32_t index, std::uint64_t bytes) {
    if (used_[model][index]) return;
    used_[model][index] = true;
    draft_.plan.bytes_in += bytes;
  }

  // Buffers are computed when a model is loaded. One that all models have is taken along as it is;
  // arithmetic, or another type, would only spoil it.
  void write_buffer(const Part& part, const Section& section, std::uint32_t p,
                    const std::string& output, const Found& found) {
    std::optional<std::uint32_t> lacks;
    for (const Section& other : part.sections) {
      for (const Input& input : other.inputs) {
        if (!holds_[input.model][p] && !lacks) lacks = input.model;
      }
    }
    const bool all =
        std::all_of(found.begin(), found.end(), [](const Spot* s) { return s != nullptr; });
    const std::size_t giver = section.base.value_or(0);
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] == nullptr || (!lacks && all && i == giver)) continue;
      const std::uint32_t model = section.inputs[i].model;
      reasons_[place(model, found[i]->entry)] =
          lacks ? fmt::format("a buffer that {} lacks; it is computed when the model is loaded",
                              draft_.shown(*lacks))
          : all ? fmt::format("a buffer, taken from {}", draft_.shown(section.inputs[giver].model))
                : "a buffer that other models lack; it is computed when the model is loaded";
    }
    if (lacks || !all) return;
    Job job;
    const Item& item = draft_.item(section.inputs[giver].model, found[giver]->entry);
    job.output = item.info;
    job.output.name = output;
    job.action = Action::copy;
    job.operands.push_back({item.model, item.entry, {}, {}});
    job.reason = "a buffer, computed from the configuration";
    add(std::move(job));
  }

  // Tied weights are stored once: a model without this one takes part with its other. False, and a
  // problem, for one whose weights are not tied.
  bool stand_in(const Section& section, std::uint32_t p, const std::string& output, Found& found) {
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (found[i] != nullptr) continue;
      const std::uint32_t model = section.inputs[i].model;
      const Listing& listing = names_.listings[model];
      for (const auto* others : {&embeddings_, &heads_}) {
        for (const std::uint32_t other : *others) {
          if (found[i] == nullptr && other != p) found[i] = listing.find(other);
        }
      }
      if (found[i] == nullptr || draft_.configs[model].tied().value_or(true)) continue;
      problems_.error(
          Code::missing,
          fmt::format("{} has no tensor {}, and its config.json says that weights are not tied "
                      "(tie_word_embeddings: false), so {} cannot replace it",
                      draft_.shown(model), output, draft_.item(model, found[i]->entry).info.name));
      return false;
    }
    return true;
  }

  // What happens if one input does not have a tensor. Biases may be absent: the model takes no
  // part.
  bool absent(const Section& section, std::uint32_t p, std::size_t i, const std::string& output,
              const Found& found) {
    const Template& what = names_.templates[p];
    const std::uint32_t model = section.inputs[i].model;
    const bool base = section.base && *section.base == i;
    const auto has =
        std::find_if(found.begin(), found.end(), [](const Spot* s) { return s != nullptr; });
    const std::uint32_t owner = section.inputs[static_cast<std::size_t>(has - found.begin())].model;
    const std::string key = fmt::format("absent {} {}", p, model);
    if (what.role == Role::bias && !base && rules_.method().card.base != math::Base::pivot) {
      problems_.warn_like(
          key, Code::missing,
          fmt::format("{} has no tensor {}, which {} has: the tensor is merged without this model",
                      draft_.shown(model), output, draft_.shown(owner)));
      return true;
    }
    problems_.error_like(
        key, Code::missing,
        fmt::format("{} has no tensor {}, which {} has: all models of a merge need it",
                    draft_.shown(model), output, draft_.shown(owner)));
    return false;
  }

  bool same_shapes(const Template& what, const std::vector<Share>& shares, Job& job) {
    const Share& first = shares.front();
    bool heights = false;
    for (const Share& share : shares) {
      const Shape& a = first.item->info.shape;
      const Shape& b = share.item->info.shape;
      if (a == b) continue;
      Shape level = b;
      if (vocabulary(what.role) && b.rank() == a.rank() && b.rank() > 0) level.set(0, a[0]);
      if (!(level == a)) {
        problems_.error_like(
            fmt::format("shape {}{} {} {}", what.before, what.after, first.model, share.model),
            Code::shape,
            fmt::format("tensor {}: {} has shape {}, {} has {}", job.output.name,
                        draft_.shown(first.model), a.text(), draft_.shown(share.model), b.text()));
        return false;
      }
      heights = true;
    }
    if (!vocabulary(what.role)) return true;
    const bool by_token = draft_.recipe().vocabulary.kind != Vocabulary::Kind::none;
    if (by_token) return map_vocabulary(shares, job);
    return !heights || cut_vocabulary(shares, job);
  }

  // Matrices of different height without a tokenizer setting.
  bool cut_vocabulary(const std::vector<Share>& shares, Job& job) {
    const auto shorter = [](const Share& a, const Share& b) {
      return a.item->info.shape[0] < b.item->info.shape[0];
    };
    const auto [low, high] = std::minmax_element(shares.begin(), shares.end(), shorter);
    const std::uint64_t least = low->item->info.shape[0];
    const std::uint64_t most = high->item->info.shape[0];
    if (!draft_.plan.options.truncate_embeddings) {
      problems_.error_like(fmt::format("height {} {}", least, most), Code::shape,
                           fmt::format("vocabularies differ: {} has {} rows in {}, {} has {}; set "
                                       "tokenizer_source: base (or a model) to "
                                       "match rows by token, or pass --unsafe-truncate-embeddings "
                                       "to keep the first {} rows of all",
                                       job.output.name, least, draft_.shown(low->model),
                                       draft_.shown(high->model), most, least));
      return false;
    }
    job.output.shape.set(0, least);
    draft_.plan.waived.truncated = true;
    problems_.warn(
        Code::shape,
        fmt::format(
            "{}: rows beyond {} are cut off (up to {} in {}), as --unsafe-truncate-embeddings asks",
            job.output.name, least, most, draft_.shown(high->model)));
    return true;
  }

  bool map_vocabulary(const std::vector<Share>& shares, Job& job) {
    if (!tokenizers_) return false;  // said before
    std::vector<ModelRows> rows;
    std::optional<std::size_t> base;
    for (const Share& share : shares) {
      const Shape& shape = share.item->info.shape;
      if (draft_.recipe().base_model && share.model == draft_.donor) base = rows.size();
      const auto& own = tokenizers_->own[share.model];
      if (share.item->effects || share.item->rows) {
        problems_.error(
            Code::usage,
            fmt::format(
                "{}: {} has adapters on tensor {}, whose rows cannot be matched by token at "
                "the same time; bake the adapters first and name the result",
                draft_.recipe().file, draft_.shown(share.model), share.name));
        return false;
      }
      rows.push_back(
          {own ? &*own : &tokenizers_->output, share.item->model, share.item->entry, shape[0]});
    }
    const std::uint64_t pad = draft_.recipe().vocabulary.pad_to_multiple_of;
    const std::uint64_t height = padded_rows(tokenizers_->output, pad);
    std::uint64_t width = 1;
    for (int axis = 1; axis < job.output.shape.rank(); ++axis) width *= job.output.shape[axis];
    job.output.shape.set(0, height);
    auto maps = map_rows(tokenizers_->output, rows, base, pad, width);
    for (std::size_t i = 0; i < maps.size(); ++i) {
      if (maps[i]) job.operands[i].rows = std::make_shared<const RowMap>(std::move(*maps[i]));
    }
    return true;
  }

  bool same_types(const std::vector<Share>& shares, Job& job) {
    std::vector<Dtype> stored;
    std::vector<Dtype> types;  // of the models: a tensor that an adapter brings has the base's
    for (const Share& share : shares) {
      stored.push_back(share.item->info.dtype);
      types.push_back(share.item->type);
    }
    std::optional<Dtype> wanted = wanted_;
    if (!wanted && stored != types) wanted = meet(types, wanted_).output;
    Meeting meeting = meet(stored, wanted);
    if (!meeting.refusal.empty()) {
      std::string list;
      for (const Share& share : shares) {
        list += fmt::format("{}{} as {}", list.empty() ? "" : ", ", draft_.shown(share.model),
                            word(share.item->info.dtype));
      }
      problems_.error_like(
          "type " + meeting.refusal, Code::dtype,
          fmt::format("tensor {} is stored in {}: {}", job.output.name, list, meeting.refusal));
      return false;
    }
    job.action = meeting.action;
    job.reason = std::move(meeting.reason);
    job.output.dtype = meeting.output;
    job.work.inputs = std::move(meeting.inputs);
    job.work.output = meeting.output;
    job.work.overflow = draft_.plan.options.overflow;
    for (std::size_t i = 0; i < job.operands.size(); ++i) {
      const bool adapted = shares[i].item->effects != nullptr;
      if (!job.operands[i].rows && !adapted) continue;
      if (job.action == Action::copy) {
        problems_.error(
            Code::dtype,
            fmt::format(
                "tensor {} is stored as {}, {}{}", job.output.name, word(meeting.output),
                adapted ? "which no adapter can change" : "whose rows cannot be matched by token",
                meeting.output == Dtype::f64 ? "; --dtype float32 narrows it" : ""));
        return false;
      }
      job.work.inputs[i] = Dtype::f32;
    }
    return true;
  }

  // Adapters' effects as computed operands.
  bool derive(const std::vector<Share>& shares, Job& job) {
    for (std::size_t i = 0; i < shares.size(); ++i) {
      const Item& item = *shares[i].item;
      if (!item.effects) continue;
      try {
        // The share of the change that rounding keeps is reported only if rounding is the last
        // step.
        const bool last = shares.size() == 1 && passes(job);
        job.operands[i].derived =
            change({{item.model, item.entry}, stored(item.model, item.entry)}, *item.effects,
                   last ? std::optional(job.output.dtype) : std::nullopt);
      } catch (const Error& e) {
        problems_.error_like(
            fmt::format("change {} {}", shares[i].model, static_cast<int>(e.code())), e.code(),
            e.what());
        return false;
      }
    }
    return true;
  }

  // True if the formula returns its one input as it is.
  [[nodiscard]] bool passes(const Job& job) const {
    const math::Rule& rule = job.work.rule;
    return math::method(rule.method).identity(rule);
  }

  bool find_rule(const Section& section, const std::vector<Share>& shares, double t, Job& job) {
    if (section.alone) {
      job.work.rule = Rules::pass(job.output.count());
      if (!shares[0].item->effects) copy_if_unchanged(job);
      return true;
    }
    std::vector<Seat> seats;
    for (const Share& share : shares) {
      if (section.base && *section.base == share.input) continue;
      seats.push_back(
          {static_cast<std::uint32_t>(share.input), draft_.shown(share.model), share.name});
    }
    const std::string& name = job.output.name;
    const std::string& drawn = tied_ && names_.ties.copies(name) ? names_.ties.embedding : name;
    const auto rule = rules_.resolve(section.binding, name, drawn, seats, section.base.has_value(),
                                     t, job.output.shape);
    if (!rule) return false;
    job.work.rule = *rule;
    if (shares.size() == 1 && !shares[0].item->effects) copy_if_unchanged(job);
    return true;
  }

  // Formulas that return one input as it is, in its own type, need no arithmetic.
  void copy_if_unchanged(Job& job) {
    if (job.operands.size() != 1 || job.operands[0].rows) return;
    const Operand& only = job.operands[0];
    if (stored(only.model, only.entry).dtype != job.output.dtype) return;
    if (passes(job)) {
      job.reason = &rules_.method() == &math::method(job.work.rule.method)
                       ? fmt::format("{} without scale", rules_.method().card.name)
                       : "its slice or module has one model";
    } else if (job.work.rule.base) {
      job.reason = "only the base has it";
    } else {
      return;
    }
    job.action = Action::copy;
  }

  // --- tensors that no output uses

  void list_unused(const std::vector<Part>& parts) {
    std::vector<bool> modules(names_.modules.size());
    std::vector<bool> takes_part(draft_.plan.models.size());
    for (const Part& part : parts) {
      for (std::size_t m = 0; m < modules.size(); ++m) {
        modules[m] = modules[m] || part.module == kAllModules || part.module == m;
      }
      for (const Section& section : part.sections) {
        for (const Input& input : section.inputs) takes_part[input.model] = true;
      }
    }
    for (std::uint32_t m = 0; m < draft_.views.size(); ++m) {
      for (const Spot& spot : names_.listings[m].spots) {
        const Template& what = names_.templates[spot.part];
        const Item& item = draft_.item(m, spot.entry);
        const std::string reason =
            !takes_part[m] ? "its model gives configuration and tokenizer only"
            : !modules[what.module]
                ? fmt::format("module '{}' is not named in the recipe", names_.modules[what.module])
            : what.stack != kNoStack && !what.ahead
                ? fmt::format("layer {} is outside the recipe's slices", spot.layer)
            : what.trailing ? "tensors after the layers come from the last slice"
                            : "tensors before the layers come from the first slice";
        spare(item.model, item.entry, reason);
        if (!item.effects) continue;
        for (const Effect& effect : *item.effects) {
          for (const Effect::Part& part : effect.parts) {
            spare(part.tensor.place.model, part.tensor.place.entry, reason);
          }
        }
      }
    }
    for (std::uint32_t m = 0; m < used_.size(); ++m) {
      for (std::uint32_t e = 0; e < used_[m].size(); ++e) {
        if (used_[m][e]) continue;
        const auto reason = reasons_.find({m, e});
        const auto spared = draft_.spared.find({m, e});
        draft_.plan.unused.push_back({m, e,
                                      reason != reasons_.end()        ? reason->second
                                      : spared != draft_.spared.end() ? spared->second
                                                                      : "no output reads it"});
      }
    }
  }

  // A reason that counts where no output reads the tensor; the first given.
  void spare(std::uint32_t model, std::uint32_t entry, const std::string& reason) {
    if (!used_[model][entry]) reasons_.try_emplace({model, entry}, reason);
  }

  [[nodiscard]] std::pair<std::uint32_t, std::uint32_t> place(std::uint32_t view,
                                                              std::uint32_t index) const {
    const Item& item = draft_.item(view, index);
    return {item.model, item.entry};
  }

  Disk& disk_;
  Draft& draft_;
  Rules& rules_;
  std::optional<Dtype> wanted_;
  const Catalogue& names_;
  Problems& problems_;
  std::optional<Tokenizers> tokenizers_;
  bool tied_ = false;                       // the donor's class and configuration tie the ends
  std::vector<std::vector<bool>> holds_;    // by model and part
  std::vector<std::vector<bool>> counted_;  // the same, less the layers that no config counts
  std::vector<std::uint32_t> heads_;
  std::vector<std::uint32_t> embeddings_;  // the one that stands in for absent heads first
  std::set<std::uint32_t> heads_written_;
  std::set<std::uint64_t> ahead_;        // layers for multi-token prediction that are written
  std::set<std::string> told_;           // modules that some models lack, told of once
  std::vector<std::vector<bool>> used_;  // by Plan::models and entry
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::string> reasons_;  // by model and entry
  Written written_;
};

}  // namespace

Written write_tensors(Disk& disk, Draft& draft, Rules& rules, std::optional<Dtype> wanted,
                      const std::vector<Part>& parts) {
  return Writer(disk, draft, rules, wanted).run(parts);
}

}  // namespace ingot::plan
