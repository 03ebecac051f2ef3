// From two models to the adapter that leads from one to the other.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "adapter/keys.hpp"
#include "adapter/solve.hpp"
#include "adapter/stack.hpp"
#include "plan/adapt.hpp"
#include "plan/card.hpp"
#include "plan/draft.hpp"
#include "plan/folder.hpp"
#include "plan/fuse.hpp"
#include "plan/layout.hpp"
#include "plan/loaded.hpp"
#include "plan/peft.hpp"
#include "plan/ranks.hpp"
#include "plan/roles.hpp"
#include "plan/ties.hpp"
#include "plan/types.hpp"
#include "store/header.hpp"
#include "store/values.hpp"

namespace ingot::plan {
namespace {

using adapter::Campaign;
using adapter::kExperts;
using adapter::place_of;
using adapter::Side;

// Tensors of (experts, ...): parameters of fused experts, and weights of JetMoE's like.
bool of_experts(std::string_view name, const Shape& shape) {
  if (shape.rank() != 3) return false;
  if (place_of(last_component(name)) < kExperts) return true;
  const std::string_view module = last_component(parent(name));
  return name.ends_with(".weight") && (module == "input_linear" || module == "output_linear");
}

// Tables of vectors: layers that look a row up and do not multiply by it.
bool is_table(std::string_view path) {
  const std::string_view leaf = last_component(path);
  return path.find("emb") != std::string_view::npos || leaf == "wpe" || leaf == "wte" ||
         leaf == "shared" || leaf == "relative_attention_bias";
}

// Convolutions that LoRA does not fit: along one axis, since classes ask their layers for stride or
// weight, and where every output has an input of its own.
bool is_plain_convolution(const Shape& shape) {
  return shape.rank() == 3 || (shape.rank() > 3 && shape[1] == 1);
}

// A rank with as many digits as any that a budget of bytes gives.
constexpr std::uint64_t kLongRank = 9999;

class Extraction {
 public:
  Extraction(Disk& disk, Plan& plan, Problems& problems, Measuring* measuring)
      : disk_(disk),
        plan_(plan),
        problems_(problems),
        wishes_(plan.recipe.adaptation),
        reader_(reader(plan.recipe.adaptation)),
        measuring_(measuring),
        draft_{plan, problems, {}, {}, {}, {}, 0, {}, {}, {}, {}} {}

  void run(bool complete) {
    if (complete) check_wishes();
    dtype_ = wanted_dtype(plan_.recipe, plan_.options, problems_).value_or(Dtype::f32);
    if (!open_models(disk_, draft_) || !complete) return;
    base_ = draft_.donor;
    tuned_ = draft_.by_text.at(plan_.recipe.models.front().model.text);
    if (base_ == tuned_) {
      problems_.error(Code::usage,
                      fmt::format("{} and its base are the same model: there is nothing "
                                  "to extract",
                                  draft_.shown(tuned_)));
    }
    if (problems_.fatal()) return;
    pair_up();
    join_experts();
    if (problems_.fatal()) return;
    const std::vector<Measured> measured = measurable();
    if (measuring_ != nullptr) expect(measured);
    compare();
    choose_ranks(measured);
    if (problems_.fatal()) return;
    for (const Module& module : modules_) factorise(module);
    for (const Whole& whole : whole_) keep(whole);
    note();
    if (plan_.jobs.empty() && !problems_.fatal()) {
      problems_.error(Code::usage,
                      fmt::format("{}: the output would have no tensors", plan_.recipe.file));
    }
    if (problems_.fatal()) return;
    finish();
  }

 private:
  // A layer, or a parameter of all experts, whose difference becomes a product.
  struct Module {
    std::string path;
    std::string parameter;  // for target_parameters; empty: the weight of a module like any other
    Shape shape;            // of the base's tensor, or of the tensor that the loaded model makes
    adapter::Difference difference;

    [[nodiscard]] std::string name() const {
      return parameter.empty() ? path : path + "." + parameter;
    }
  };
  // How a tensor that only a copy can bring stands in the folder.
  enum class Form : std::uint8_t {
    module,     // its whole module is saved (modules_to_save)
    bias,       // a trained bias (bias: all)
    parameter,  // under its own name, which modules_to_save names: PEFT loads it over the base's
    embedding,  // of all uses of a tied vocabulary, as PEFT saves resized ones
  };
  struct Whole {
    std::string name;
    Ingredient base, tuned;
    bool in_base = false;
    Role role = Role::other;
    Form form = Form::module;
    bool changed = true;
  };
  // Tensors whose change the adapter does not have.
  struct Left {
    const char* what;
    Ingredient base, tuned;
    bool in_base = false;
  };
  // The experts of a layer that the loaded model has in one parameter, from files with a tensor for
  // each.
  struct Pieces {
    std::map<std::pair<std::uint64_t, bool>, adapter::Difference::Piece> all;
    Shape shape;  // of each
    bool even = true;
    std::vector<Module> apart;  // the same as layers of their own
  };

  void check_wishes() {
    const int wishes =
        (wishes_.rank > 0 ? 1 : 0) + (wishes_.automatic ? 1 : 0) + (wishes_.bytes > 0 ? 1 : 0);
    if (wishes != 1) {
      problems_.error(Code::usage,
                      fmt::format("{}: give one of 'rank: N', 'rank: auto' with 'energy', and "
                                  "'bytes'",
                                  plan_.recipe.file));
    }
    if (wishes_.automatic != (wishes_.energy > 0)) {
      problems_.error(Code::usage, fmt::format("{}: 'rank: auto' and 'energy' go together, for "
                                               "example 'energy: 0.9'",
                                               plan_.recipe.file));
    }
    if (!reader_.whole && wishes_.whole_tensors == "save") {
      problems_.error(Code::usage,
                      fmt::format("{}: {} loads no whole tensors; remove 'whole_tensors: save', or "
                                  "'for: {}'",
                                  plan_.recipe.file, reader_.name, reader_.word));
    }
    if (reader_.most > 0 && wishes_.rank > reader_.most) {
      problems_.error(Code::usage,
                      fmt::format("{}: 'rank' is {}, and {} loads adapters up to "
                                  "rank {}; choose a smaller rank",
                                  plan_.recipe.file, wishes_.rank, reader_.name, reader_.most));
    }
  }

  // The two models' tensors by the name that the loaded model has.
  using Named = std::map<std::string, std::pair<const Item*, Role>>;
  [[nodiscard]] Named named(std::uint32_t view) const {
    Named all;
    for (const Spot& spot : draft_.names.listings[view].spots) {
      const Template& part = draft_.names.templates[spot.part];
      all[loaded_name(plan_.architecture, part.name(spot.layer),
                      reader_.whole ? Renaming::all : Renaming::outer)] = {
          &draft_.item(view, spot.entry), part.role};
    }
    return all;
  }

  void unused(const Ingredient& tensor, std::string reason) {
    plan_.unused.push_back({tensor.model, tensor.entry, std::move(reason)});
  }

  static Ingredient place(const Item& item) { return {item.model, item.entry}; }

  // A change that the adapter cannot have, or shall not.
  void leave(const char* what, const Item* base, const Item& tuned, std::string reason) {
    left_.push_back(
        {what, base != nullptr ? place(*base) : Ingredient{}, place(tuned), base != nullptr});
    unused(place(tuned), std::move(reason));
  }
  [[nodiscard]] std::string not_for_reader() const {
    return fmt::format("{} does not load it as a part of an adapter", reader_.name);
  }

  static const Item* find(const Named& all, Role role) {
    for (const auto& [name, found] : all) {
      if (found.second == role && found.first->info.shape.rank() == 2) return found.first;
    }
    return nullptr;
  }

  // True if the head of a model is its embedding.
  [[nodiscard]] bool tied(std::uint32_t view, const Named& all) {
    const Config& config = draft_.configs[view];
    const Item *embedding = find(all, Role::embedding), *head = find(all, Role::head);
    const auto* top = config.find({"", "tie_word_embeddings"});  // parts may say otherwise
    if (!plan::tied(draft_.names.ties, plan_.architecture,
                    top != nullptr && top->is_boolean() ? top->get<bool>() : config.tied(),
                    head != nullptr)) {
      return false;
    }
    if (embedding == nullptr || head == nullptr) return true;
    if (embedding->model != head->model || embedding->effects || head->effects) return false;
    const Checkpoint& checkpoint = plan_.models[head->model].checkpoint;
    const Entry &one = checkpoint.entries()[embedding->entry],
                &other = checkpoint.entries()[head->entry];
    if (measuring_ != nullptr) return same_values(checkpoint, one, checkpoint, other);
    const std::optional<bool> told = told_same(checkpoint, one, checkpoint, other);
    if (told) return *told;
    plan_.open.push_back(
        fmt::format("whether {} of {} equals its embedding, to which its configuration ties it: "
                    "counted as equal here",
                    head->info.name, draft_.shown(view)));
    return true;
  }

  void pair_up() {
    const Named base = named(base_), tuned = named(tuned_);
    tied_ = tied(base_, base);
    const bool stays = tied_ && tied(tuned_, tuned);
    for (const auto& [name, found] : base) {
      const Shape& shape = found.first->info.shape;
      const std::string_view path = parent(name);
      if (of_experts(name, shape)) experts_.emplace(parent(path), shape[0]);
      if (const auto expert = expert_layer(path)) {
        std::uint64_t& count = experts_[std::string(parent(parent(parent(path))))];
        count = std::max(count, std::uint64_t{expert->number} + 1);
        if (last_component(path) == "gate_proj" || last_component(path) == "w1") {
          gated_.insert(std::string(parent(parent(path))));
        }
      }
    }
    for (const auto& [name, found] : tuned) {
      for (std::string_view path = parent(parent(name)); !path.empty(); path = parent(path)) {
        if (!owners_.emplace(path).second) break;
      }
    }
    for (const auto& [name, found] : base) {
      if (tuned.contains(name) || found.second == Role::buffer) continue;
      if (found.second == Role::head && speaks(plan_.architecture)) {
        // Tied in the tuned model: its head is its embedding.
        const Item* embedding = find(tuned, Role::embedding);
        if (!tied_ && embedding != nullptr && embedding->info.shape == found.first->info.shape) {
          add_whole({name, place(*found.first), place(*embedding), true, Role::head, Form::module});
          continue;
        }
      }
      problems_.warn_like("gone", Code::missing,
                          fmt::format("{}: {} is only in {}, so the adapter does not change it",
                                      draft_.shown(base_), name, draft_.shown(base_)));
      unused(place(*found.first), "not in the tuned model");
    }
    for (const auto& [name, found] : tuned) {
      const auto& [item, role] = found;
      if (role == Role::buffer || !is_float(item->info.dtype)) {
        const auto at = base.find(name);
        // PEFT loads all that a saved module has: the counter of a batch norm too.
        if (role != Role::buffer && at != base.end() && reader_.whole &&
            wishes_.whole_tensors != "skip") {
          add_whole(
              {name, place(*at->second.first), place(*item), true, role, Form::parameter, false});
        } else {
          unused(place(*item), "no parameter");
        }
        continue;
      }
      if (stays && role == Role::head) {
        unused(place(*item), "the tied embedding again");
        continue;
      }
      const auto at = base.find(name);
      if (at == base.end()) {
        add_new(name, *item, role);
      } else {
        sort(name, *at->second.first, *item, role);
      }
    }
  }

  // Whether PEFT has to be told of the parameter and not of its module. Under transformers 5, which
  // fuses experts, routers are no linear layers, and other layers with the names that experts had
  // before would be taken for experts.
  [[nodiscard]] bool by_parameter(const std::string& path, const Shape& shape) const {
    if (experts_.empty() || shape.rank() != 2 || expert_layer(path)) return false;
    return is_router(path, shape) || place_of(last_component(path)) < kExperts;
  }
  [[nodiscard]] bool is_router(const std::string& path, const Shape& shape) const {
    if (experts_.empty() || shape.rank() != 2 || expert_layer(path)) return false;
    const std::string_view leaf = last_component(path);
    const auto beside = experts_.find(parent(path));
    return (beside != experts_.end() && beside->second == shape[0]) || leaf == "gate" ||
           leaf == "router";
  }

  // Height and width follow from the shape and from how it is stored.
  [[nodiscard]] Module made(Module module) const {
    const Shape& shape = module.shape;
    adapter::Difference& d = module.difference;
    const bool experts = shape.rank() == 3 && !module.parameter.empty();
    d.experts = experts ? shape[0] : 1;
    d.turned = experts ? d.pieces.size() == 1 && transposed_parameters(plan_.architecture)
                       : shape.rank() == 2 && transposed_layer(plan_.architecture, module.path);
    const std::uint64_t rows = shape[experts ? 1 : 0];
    if (shape.count() == 0) return module;
    const std::uint64_t rest = shape.count() / d.experts / rows;
    d.height = d.turned ? rest : rows;
    d.width = d.turned ? rows : rest;
    return module;
  }

  void add(Module module) {
    if (module.shape.count() == 0) return;
    module = made(std::move(module));
    if (!module.parameter.empty()) parameters_[module.path].insert(place_of(module.parameter));
    modules_.push_back(std::move(module));
  }

  void add_whole(Whole whole) { whole_.push_back(std::move(whole)); }

  // A head for another task, or one of its own where the base's was tied.
  void add_new(const std::string& name, const Item& tuned, Role role) {
    const Whole whole{name, {}, place(tuned), false, role, form_of(name, role)};
    if (!reader_.whole) return leave("new tensors", nullptr, tuned, not_for_reader());
    if (wishes_.whole_tensors == "skip") {
      return leave("new tensors", nullptr, tuned, "whole tensors are skipped");
    }
    add_whole(whole);
  }

  [[nodiscard]] Form form_of(const std::string& name, Role role) const {
    if (role == Role::embedding && tied_) return Form::embedding;
    if (name.ends_with(".bias")) return Form::bias;
    return name.ends_with(".weight") && !owners_.contains(parent(name)) ? Form::module
                                                                        : Form::parameter;
  }

  // The name in reports for a tensor that cannot be a LoRA.
  [[nodiscard]] static const char* kind_of(const std::string& name, const Shape& shape, Role role,
                                           Form form) {
    if (vocabulary(role) || (form == Form::module && shape.rank() == 2)) {
      return "embeddings and heads";
    }
    if (form == Form::bias) return "biases";
    if (form == Form::parameter) return "other parameters";
    return shape.rank() > 2                         ? "convolutions"
           : name.find("norm") != std::string::npos ? "norms"
                                                    : "other weights";
  }

  void sort(const std::string& name, const Item& base, const Item& tuned, Role role) {
    const adapter::Difference::Piece both{place(base), place(tuned)};
    const Shape& shape = base.info.shape;
    const std::string path(parent(name));
    const bool same = shape == tuned.info.shape;
    if (!vocabulary(role) && !same) {
      problems_.error_like("shape", Code::shape,
                           fmt::format("{}: {} has the shape {}, but {} has the shape {}: an "
                                       "adapter cannot change the shape of a tensor",
                                       name, draft_.shown(base_), shape.text(),
                                       draft_.shown(tuned_), tuned.info.shape.text()));
      return;
    }
    const bool experts = of_experts(name, shape);
    const bool layer = name.ends_with(".weight") && shape.rank() >= 2 && !owners_.contains(path) &&
                       !vocabulary(role) && !is_table(path) && !is_plain_convolution(shape) &&
                       !reads_weight(plan_.architecture, path);
    const Form form = form_of(name, role);
    const char* what = kind_of(name, shape, role, form);
    const std::vector<std::string> parts =
        reader_.whole ? divided(plan_.architecture, path) : std::vector<std::string>();
    const bool even = layer && !parts.empty() && shape[0] % parts.size() == 0;
    if (reader_.whole && (remade(plan_.architecture, name) || (!parts.empty() && !even))) {
      problems_.warn_like(
          "apart", Code::usage,
          fmt::format("{}: transformers {}, so the adapter leaves its change out", name,
                      parts.empty() ? "loads its elements in another order or tensor"
                                    : fmt::format("divides it among {}", fmt::join(parts, ", "))));
      return leave(what, same ? &base : nullptr, tuned, "the loaded model has no such tensor");
    }
    if (even) {
      const Shape part{shape[0] / parts.size(), shape[1]};
      for (std::size_t i = 0; i < parts.size(); ++i) {
        Module module{parts[i], {}, part, {{both}}};
        module.difference.first = i * part.count();
        add(std::move(module));
      }
      return;
    }
    if (experts || layer) {
      Module module{path, {}, shape, {{both}}};
      if (!reader_.whole) {
        const char* unread = experts                  ? "experts in one tensor"
                             : is_router(path, shape) ? "routers"
                             : shape.rank() > 2       ? "convolutions"
                             : plan::module(name, false) != "text_decoder"
                                 ? "parts beside the text model"
                                 : nullptr;
        if (unread != nullptr) return leave(unread, &base, tuned, not_for_reader());
        return add(std::move(module));
      }
      if (experts || by_parameter(path, shape)) module.parameter = last_component(name);
      const auto part = fuses_experts(plan_.architecture)
                            ? fused_part(name, gated_.contains(parent(parent(path))))
                            : std::nullopt;
      if (!part) return add(std::move(module));
      Pieces& pieces = pieces_[part->parameter];
      pieces.even = pieces.even && (pieces.all.empty() || pieces.shape == shape);
      pieces.shape = shape;
      pieces.all[{part->expert, part->second}] = both;
      pieces.apart.push_back(std::move(module));
      return;
    }
    if (!reader_.whole) return leave(what, same ? &base : nullptr, tuned, not_for_reader());
    if (wishes_.whole_tensors == "skip") {
      ++skipped_;
      return leave(what, same ? &base : nullptr, tuned, "whole tensors are skipped");
    }
    add_whole({name, both.base, both.tuned, true, role, form});
  }

  // Experts with tensors of their own become one parameter, as the loaded model has them. Sets with
  // holes stay as they are.
  void join_experts() {
    for (auto& [name, pieces] : pieces_) {
      const std::uint64_t halves = pieces.all.contains({0, true}) ? 2 : 1;
      const std::uint64_t count = pieces.all.size() / halves;
      const bool whole = pieces.even && pieces.all.size() == count * halves &&
                         pieces.all.contains({count - 1, halves == 2}) &&
                         pieces.all.contains({count - 1, false});
      if (!whole) {
        for (Module& module : pieces.apart) add(std::move(module));
        continue;
      }
      Module module{std::string(parent(name)),
                    std::string(last_component(name)),
                    {count, halves * pieces.shape[0], pieces.shape[1]},
                    {}};
      for (const auto& [at, piece] : pieces.all) module.difference.pieces.push_back(piece);
      add(std::move(module));
    }
    // As the output will have them: the campaign solves ahead in this order.
    std::sort(modules_.begin(), modules_.end(), [](const Module& a, const Module& b) {
      if (a.path != b.path) return natural_less(a.path, b.path);
      return place_of(a.parameter) < place_of(b.parameter);
    });
  }

  [[nodiscard]] const Entry& entry(const Ingredient& at) const {
    return plan_.models[at.model].checkpoint.entries()[at.entry];
  }

  // The sum of the squares of what `tuned` has over `base`; without one, of its own elements. Reads
  // both. `changed` says whether any element differs.
  [[nodiscard]] double distance(const Ingredient* base, const Ingredient& tuned,
                                bool& changed) const {
    const Entry& other = entry(tuned);
    constexpr std::uint64_t kPiece = std::uint64_t{1} << 18;
    std::vector<float> a, b;
    double sum = 0;
    changed = base == nullptr;
    for (std::uint64_t at = 0; at < other.info.count(); at += kPiece) {
      b.resize(std::min(kPiece, other.info.count() - at));
      a.assign(b.size(), 0.0F);
      if (base != nullptr) read_values(plan_.models[base->model].checkpoint, entry(*base), at, a);
      read_values(plan_.models[tuned.model].checkpoint, other, at, b);
      changed = changed || a != b;
      for (std::size_t i = 0; i < a.size(); ++i) {
        const double x = static_cast<double>(b[i]) - static_cast<double>(a[i]);
        sum += x * x;
      }
    }
    return sum;
  }

  // Bytes that a distance() reads.
  [[nodiscard]] std::uint64_t compared(const Ingredient* base, const Ingredient& tuned) const {
    return entry(tuned).info.bytes() + (base != nullptr ? entry(*base).info.bytes() : 0);
  }

  // Says how much is read to decide what is open.
  void expect(const std::vector<Measured>& modules) {
    // A budget for one rank is divided without looking.
    const bool divided = wishes_.bytes > 0 && reader_.one_rank;
    std::uint64_t sum = !divided && plan::measured(wishes_) ? bytes_of(plan_, modules) : 0;
    for (const Whole& whole : whole_) {
      if (is_float(entry(whole.tuned).info.dtype)) {
        sum += compared(alike(whole) ? &whole.base : nullptr, whole.tuned);
      }
    }
    for (const Left& left : left_) sum += compared(left.in_base ? &left.base : nullptr, left.tuned);
    measuring_->expect(sum);
  }

  // True if the base has the tensor in the same shape.
  [[nodiscard]] bool alike(const Whole& whole) const {
    return whole.in_base && entry(whole.base).info.shape == entry(whole.tuned).info.shape;
  }

  // Which whole tensors changed, and how much is left out.
  void compare() {
    if (measuring_ == nullptr) {  // all count as changed, but where that could break a budget
      for (Whole& whole : whole_) {
        if (!whole.in_base || !is_float(entry(whole.tuned).info.dtype)) continue;
        whole.changed = wishes_.bytes == 0;
        ++compared_;
      }
      return;
    }
    double kept = 0;
    for (Whole& whole : whole_) {
      if (!is_float(entry(whole.tuned).info.dtype)) continue;
      const Ingredient* base = alike(whole) ? &whole.base : nullptr;
      kept += distance(base, whole.tuned, whole.changed);
      measuring_->done(compared(base, whole.tuned), whole.name);
    }
    plan_.whole_change = std::sqrt(kept);
    std::map<std::string, std::size_t> places;
    for (const Left& left : left_) {
      bool changed = false;
      const Ingredient* base = left.in_base ? &left.base : nullptr;
      const double squares = distance(base, left.tuned, changed);
      measuring_->done(compared(base, left.tuned), entry(left.tuned).info.name);
      if (!changed) continue;
      const auto [at, fresh] = places.emplace(left.what, plan_.omissions.size());
      if (fresh) plan_.omissions.push_back({left.what, 0, 0});
      Omission& omission = plan_.omissions[at->second];
      ++omission.tensors;
      omission.norm += squares;
    }
    for (Omission& omission : plan_.omissions) omission.norm = std::sqrt(omission.norm);
  }

  // Of the weight file, beside the factors' own bytes.
  [[nodiscard]] std::uint64_t fixed_bytes() const {
    std::vector<TensorInfo> infos;
    std::uint64_t bytes = 0;
    std::set<std::string> saved;
    for (const Whole& whole : whole_) {
      if (whole.changed && whole.form == Form::module) saved.emplace(parent(whole.name));
    }
    for (const Whole& whole : whole_) {
      if (!whole.changed && !saved.contains(std::string(parent(whole.name)))) continue;
      const TensorInfo& info = entry(whole.tuned).info;
      bytes += info.bytes();
      infos.push_back({name_of(whole), info.dtype, info.shape});
    }
    for (const Module& module : modules_) {
      for (const Side side : {Side::a, Side::b})
        infos.push_back(factor_of(module, side, kLongRank));
    }
    return bytes + print_header(infos, {{"format", "pt"}}).size();
  }

  // The modules, whose ranks are to be chosen.
  [[nodiscard]] std::vector<Measured> measurable() const {
    std::vector<Measured> all;
    for (const Module& module : modules_) {
      const adapter::Difference& d = module.difference;
      all.push_back({module.name(), std::min(d.height, d.width), d.experts, d.height + d.width,
                     [&d] { return adapter::difference(d); }});
    }
    return all;
  }

  void choose_ranks(const std::vector<Measured>& measured) {
    std::uint64_t per_rank = 0;
    for (const Measured& module : measured) {
      per_rank += module.experts * module.length * bits(dtype_) / 8;
    }
    Adaptation wishes = wishes_;
    if (wishes.bytes > 0) {
      const std::uint64_t fixed = fixed_bytes();
      if (wishes.bytes < fixed || wishes.bytes - fixed < per_rank) {
        problems_.error(
            Code::usage,
            fmt::format("{}: {} bytes are too few for the weight file: its header and the tensors "
                        "saved in full take {}, factors of rank 1 for {} modules take {}; give "
                        "more bytes{}",
                        plan_.recipe.file, wishes.bytes, fixed, modules_.size(), per_rank,
                        whole_.empty() ? "" : ", or skip whole tensors (--whole-tensors skip)"));
        return;
      }
      wishes.bytes -= fixed;
      if (reader_.one_rank && per_rank > 0) {  // one rank for all leaves nothing to choose
        wishes.rank = std::min<std::uint64_t>(wishes.bytes / per_rank, kLongRank);
        wishes.bytes = 0;
      }
    }
    ranks_ =
        ranks_of(plan_, wishes, wishes.rank, bits(dtype_) / 8, measured, problems_, measuring_);
    if (problems_.fatal()) return;
    std::set<std::uint64_t> ranks;  // of experts with tensors of their own
    for (const Module& module : modules_) {
      const auto at = ranks_.find(module.name());
      const bool expert = expert_layer(module.path).has_value();
      // PEFT fuses experts of one rank alone, and says of patterns for parameters that it ignores
      // them: these all have one rank, with zeros where a side is shorter.
      if (wishes.rank > 0 && (expert || !module.parameter.empty())) at->second = wishes.rank;
      if (reader_.most > 0) at->second = std::min(at->second, reader_.most);
      if (expert) ranks.insert(at->second);
    }
    // A budget has no bytes to waste.
    const bool equal =
        (wishes.bytes == 0 || reader_.one_rank) && level(ranks_, measured, reader_.one_rank);
    if (equal || ranks.size() < 2) return;
    problems_.warn(Code::usage,
                   "experts get different ranks, but PEFT with transformers 5 fuses experts and "
                   "loads only equal ranks: use --rank N for equal ranks");
  }

  // How many of its module's parameters are wrapped around this one.
  [[nodiscard]] std::ptrdiff_t nesting(const Module& module) const {
    if (module.parameter.empty()) return 0;
    const std::set<std::ptrdiff_t>& all = parameters_.at(module.path);
    return std::distance(all.upper_bound(place_of(module.parameter)), all.end());
  }

  [[nodiscard]] TensorInfo factor_of(const Module& module, Side side, std::uint64_t rank) const {
    const adapter::Difference& d = module.difference;
    Shape a = module.shape, b = module.shape;
    if (d.turned || !module.parameter.empty()) {
      a = {rank * d.experts, d.width};
      b = {d.height, rank * d.experts};
    } else {
      a.set(0, rank);
      b.set(1, rank);
      for (int axis = 2; axis < b.rank(); ++axis) b.set(axis, 1);
    }
    std::string name = "base_model.model." + module.path;
    for (std::ptrdiff_t level = nesting(module); level > 0; --level) name += ".base_layer";
    name += side == Side::a ? ".lora_A.weight" : ".lora_B.weight";
    return {std::move(name), dtype_, side == Side::a ? a : b};
  }

  void factorise(const Module& module) {
    const adapter::Difference& d = module.difference;
    const std::uint64_t rank = ranks_.at(module.name());
    if (!campaign_) campaign_ = std::make_shared<Campaign>();
    const std::size_t index =
        campaign_->add({adapter::difference(d), rank, factor_of(module, Side::a, rank).name,
                        factor_of(module, Side::b, rank).name, dtype_, module.name(),
                        measuring_ != nullptr ? measuring_->kept : nullptr});
    for (const Side side : {Side::a, Side::b}) {
      const Ingredient& tuned = d.pieces.front().tuned;
      Job job;
      job.output = factor_of(module, side, rank);
      job.work = {plain(job.output.count()), {Dtype::f32}, dtype_, plan_.options.overflow};
      job.operands.push_back(
          {tuned.model, tuned.entry, nullptr, adapter::factor(campaign_, index, side)});
      plan_.jobs.push_back(std::move(job));
    }
    // PEFT warns of Conv1D without it.
    if (d.turned && module.parameter.empty()) folder_.fan_in_fan_out = true;
    folder_.modules.push_back(
        {module.name(), rank, static_cast<double>(rank), module.parameter.empty(), false});
    if (!module.parameter.empty()) folder_.parameters.push_back(module.name());
  }

  // How many layers of PEFT are around a module of the base.
  [[nodiscard]] std::size_t wraps(std::string_view path) const {
    const auto parameters = parameters_.find(std::string(path));
    if (parameters != parameters_.end()) return parameters->second.size();
    return std::any_of(modules_.begin(), modules_.end(),
                       [&](const Module& module) { return module.path == path; })
               ? 1
               : 0;
  }

  // The name of a whole tensor in the folder.
  [[nodiscard]] std::string name_of(const Whole& whole) const {
    const std::string_view path = parent(whole.name);
    std::string name = fmt::format("base_model.model.{}", path);
    const bool inside = whole.form == Form::bias || whole.form == Form::parameter;
    for (std::size_t level = inside ? wraps(path) : 0; level > 0; --level) name += ".base_layer";
    return path.empty() ? "base_model.model." + whole.name
                        : fmt::format("{}.{}", name, last_component(whole.name));
  }

  void copy(const Whole& whole, const char* reason) {
    const Entry& from = entry(whole.tuned);
    Job job;
    job.output = {name_of(whole), from.info.dtype, from.info.shape};
    job.action = Action::copy;
    job.operands.push_back({whole.tuned.model, whole.tuned.entry, nullptr, nullptr});
    job.reason = reason;
    plan_.jobs.push_back(std::move(job));
  }

  // The tuned tensor, byte for byte, where it is another than the base's.
  void keep(const Whole& whole) {
    if (!whole.changed) return;
    switch (whole.form) {
      case Form::module:
        saved_.emplace(parent(whole.name));
        break;
      case Form::bias:
        folder_.bias = "all";
        break;
      case Form::parameter:
        folder_.modules_to_save.push_back(whole.name);
        break;
      case Form::embedding:
        break;
    }
    copy(whole, vocabulary(whole.role) ? "the vocabulary's, in full" : "no matrix, so in full");
  }

  void note() {
    if (compared_ > 0) {
      plan_.open.push_back(
          fmt::format("which of {} embeddings, heads, norms and biases changed: the run compares "
                      "them, {} counted here",
                      compared_, wishes_.bytes == 0 ? "all are" : "none is"));
    }
    if (measuring_ == nullptr && !left_.empty()) {
      plan_.open.push_back(
          fmt::format("how much of the change is left out with {} tensors: the run compares them",
                      left_.size()));
    }
    if (skipped_ > 0) {
      problems_.warn(
          Code::usage,
          fmt::format("{} tensors that are not matrices of layers (embeddings, heads, norms, "
                      "biases) are skipped as asked: the adapter does not have their changes",
                      skipped_));
    }
    const auto rows = [&](std::uint32_t view) {
      for (const auto& [name, found] : named(view)) {
        if (found.second == Role::embedding) return found.first->info.shape[0];
      }
      return std::uint64_t{0};
    };
    if (rows(base_) != rows(tuned_) && (skipped_ > 0 || !reader_.whole)) {
      problems_.warn(Code::usage, fmt::format("{} has {} tokens, {} has {}: without whole tensors "
                                              "the adapter works only with the base's vocabulary",
                                              draft_.shown(base_), rows(base_),
                                              draft_.shown(tuned_), rows(tuned_)));
    }
  }

  void finish() {
    // PEFT takes all tensors of a module that is saved.
    for (const Whole& whole : whole_) {
      if (whole.changed) continue;
      if (saved_.contains(std::string(parent(whole.name)))) {
        copy(whole, "beside a parameter of its module that changed");
      } else {
        unused(whole.tuned,
               is_float(entry(whole.tuned).info.dtype) ? "equal to the base's" : "no parameter");
      }
    }
    for (const std::uint32_t view : {base_, tuned_}) {
      for (const Item& item : draft_.views[view].items) plan_.bytes_in += item.info.bytes();
    }
    folder_.base = plan_.recipe.base_model->path;
    folder_.revision = plan_.recipe.base_model->revision;
    if (plan_.architecture.ends_with("ForCausalLM")) folder_.task = "CAUSAL_LM";
    // Readers go by it where the shapes of experts do not tell inputs from outputs.
    if (!folder_.parameters.empty()) folder_.version = "0.21.2";
    folder_.modules_to_save.insert(folder_.modules_to_save.end(), saved_.begin(), saved_.end());
    std::sort(folder_.modules_to_save.begin(), folder_.modules_to_save.end());
    plan_.waived.tokenizer =
        !plan_.options.copy_tokenizer && has_tokenizer(disk_, draft_.folder(tuned_));
    if (plan_.options.copy_tokenizer) {
      take_over(disk_, problems_, draft_.folder(tuned_), Share::tokenizer, plan_.companions);
      for (Companion& file : plan_.companions)
        file.model = draft_.plan.models[draft_.views[tuned_].model].ref.text;
    }
    write_peft(disk_, plan_, problems_, folder_, "Extracted adapter",
               fmt::format("What {} has over {}, as a LoRA made by `ingot extract`.",
                           cell(public_name(plan_.recipe.models.front().model)),
                           cell(public_name(*plan_.recipe.base_model))));
  }

  Disk& disk_;
  Plan& plan_;
  Problems& problems_;
  const Adaptation& wishes_;  // the recipe's, whose ranks are found here
  const Reader& reader_;
  Measuring* const measuring_;  // null: what only numbers decide stays open
  Draft draft_;
  std::uint32_t base_ = 0, tuned_ = 0;  // views
  bool tied_ = false;                   // the base's vocabulary
  Dtype dtype_ = Dtype::f32;
  std::vector<Module> modules_;
  std::map<std::string, Pieces> pieces_;  // by the parameter that they make
  std::vector<Whole> whole_;
  std::vector<Left> left_;
  std::map<std::string, std::uint64_t> ranks_;
  std::map<std::string, std::uint64_t, std::less<>> experts_;   // how many, by what holds them
  std::set<std::string, std::less<>> gated_;                    // experts with gate projections
  std::set<std::string, std::less<>> owners_;                   // modules that hold modules
  std::map<std::string, std::set<std::ptrdiff_t>> parameters_;  // places of them, by module
  std::set<std::string> saved_;                                 // modules
  std::shared_ptr<Campaign> campaign_;                          // shared by the factors of the plan
  PeftFolder folder_;
  std::size_t skipped_ = 0, compared_ = 0;
};

}  // namespace

void extract(Disk& disk, Plan& plan, Problems& problems, bool whole, Measuring* measuring) {
  Extraction(disk, plan, problems, measuring).run(whole);
}

}  // namespace ingot::plan
