// From two models to the adapter that leads from one to the other.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "adapter/keys.hpp"
#include "adapter/solve.hpp"
#include "adapter/stack.hpp"
#include "ingot/math/methods.hpp"
#include "plan/adapt.hpp"
#include "plan/card.hpp"
#include "plan/draft.hpp"
#include "plan/folder.hpp"
#include "plan/fuse.hpp"
#include "plan/peft.hpp"
#include "plan/ranks.hpp"
#include "plan/roles.hpp"
#include "plan/types.hpp"
#include "store/values.hpp"

namespace ingot::plan {
namespace {

using adapter::Campaign;
using adapter::kExperts;
using adapter::place_of;
using adapter::Side;

// What Mixtral's layers of experts are called in files; transformers 5 has them as `mlp`.
constexpr std::string_view kOldMoe = ".block_sparse_moe.";

// Tensors of (experts, ...): parameters of fused experts, and weights of JetMoE's like.
bool of_experts(std::string_view name, const Shape& shape) {
  if (shape.rank() != 3) return false;
  if (place_of(last_component(name)) < kExperts) return true;
  const std::string_view module = last_component(parent(name));
  return name.ends_with(".weight") && (module == "input_linear" || module == "output_linear");
}

// Of "layers.3.mlp.experts.7.w1": 7. nullopt unless the path names one expert's layer.
std::optional<std::uint64_t> expert_number(std::string_view path) {
  const std::string_view owner = parent(path), digits = last_component(owner);
  if (last_component(parent(owner)) != "experts") return std::nullopt;
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

class Extraction {
 public:
  Extraction(Disk& disk, Plan& plan, Problems& problems)
      : disk_(disk), plan_(plan), problems_(problems), draft_{plan, problems, {}, {}, {},
                                                              {},   0,        {}, {}, {}} {}

  void run() {
    check_wishes();
    if (problems_.fatal() || !open_models(disk_, draft_)) return;
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
    if (problems_.fatal()) return;
    choose_ranks();
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
    Shape shape;            // of the base's tensor
    adapter::Difference difference;

    [[nodiscard]] std::string name() const {
      return parameter.empty() ? path : path + "." + parameter;
    }
  };
  // A tensor that only a copy can bring.
  struct Whole {
    std::string name;
    Ingredient base, tuned;
    bool in_base = false;
    Role role = Role::other;
  };

  void check_wishes() {
    const Adaptation& a = plan_.recipe.adaptation;
    const int wishes = (a.rank > 0 ? 1 : 0) + (a.automatic ? 1 : 0) + (a.bytes > 0 ? 1 : 0);
    if (wishes != 1) {
      problems_.error(Code::usage,
                      fmt::format("{}: give one of rank: N, rank: auto with energy, and bytes",
                                  plan_.recipe.file));
    }
    if (a.automatic != (a.energy > 0)) {
      problems_.error(Code::usage, fmt::format("{}: rank: auto and energy go together, for example "
                                               "energy: 0.9",
                                               plan_.recipe.file));
    }
    dtype_ = wanted_dtype(plan_.recipe, plan_.options, problems_).value_or(Dtype::f32);
  }

  // The two models' tensors by the name that the model has in memory.
  [[nodiscard]] std::map<std::string, std::pair<const Item*, Role>> named(
      std::uint32_t view) const {
    std::map<std::string, std::pair<const Item*, Role>> all;
    for (const Spot& spot : draft_.names.listings[view].spots) {
      const Template& part = draft_.names.templates[spot.part];
      all[part.name(spot.layer)] = {&draft_.item(view, spot.entry), part.role};
    }
    return all;
  }

  void leave(const Item& item, std::string reason) {
    plan_.unused.push_back({item.model, item.entry, std::move(reason)});
  }

  void pair_up() {
    const auto base = named(base_), tuned = named(tuned_);
    for (const auto& [name, found] : base) {
      const Shape& shape = found.first->info.shape;
      const std::string_view path = parent(name);
      if (of_experts(name, shape)) experts_.emplace(parent(path), shape[0]);
      if (const auto number = expert_number(path)) {
        std::uint64_t& count = experts_[std::string(parent(parent(parent(path))))];
        count = std::max(count, *number + 1);
      }
    }
    for (const auto& [name, found] : base) {
      if (tuned.contains(name) || found.second == Role::buffer) continue;
      // A head that is tied in one of the two is the embedding there.
      problems_.warn_like("gone", Code::missing,
                          fmt::format("{}: {} is in {} alone, so the adapter does not touch it",
                                      draft_.shown(base_), name, draft_.shown(base_)));
      leave(*found.first, "not in the tuned model");
    }
    for (const auto& [name, found] : tuned) {
      const auto& [item, role] = found;
      if (role == Role::buffer || !is_float(item->info.dtype)) {
        leave(*item, "no parameter");
        continue;
      }
      const auto at = base.find(name);
      if (at == base.end()) {
        whole_.push_back({name, {}, {item->model, item->entry}, false, role});
        continue;
      }
      sort(name, *at->second.first, *item, role);
    }
    // As the output will have them: the campaign solves ahead in this order.
    std::sort(modules_.begin(), modules_.end(), [](const Module& a, const Module& b) {
      if (a.path != b.path) return natural_less(a.path, b.path);
      return place_of(a.parameter) < place_of(b.parameter);
    });
  }

  // Whether PEFT has to be told of the parameter and not of its module. Under transformers 5, which
  // fuses experts, routers are no linear layers, and other layers with the names that experts had
  // before would be taken for experts.
  [[nodiscard]] bool by_parameter(const std::string& path, const Shape& shape) const {
    if (experts_.empty() || shape.rank() != 2 || expert_number(path)) return false;
    const std::string_view leaf = last_component(path);
    const auto beside = experts_.find(parent(path));
    return (beside != experts_.end() && beside->second == shape[0]) || place_of(leaf) < kExperts ||
           leaf == "gate" || leaf == "router";
  }

  void add(Module module) {
    const Shape& shape = module.shape;
    adapter::Difference& d = module.difference;
    const bool experts = shape.rank() == 3 && !module.parameter.empty();
    d.experts = experts ? shape[0] : 1;
    d.turned = experts ? transposed_parameters(plan_.architecture)
                       : shape.rank() == 2 && transposed_layer(plan_.architecture, module.path);
    const std::uint64_t rows = shape[experts ? 1 : 0];
    if (shape.count() == 0) return;
    const std::uint64_t rest = shape.count() / d.experts / rows;
    d.height = d.turned ? rest : rows;
    d.width = d.turned ? rows : rest;
    if (!module.parameter.empty()) parameters_[module.path].insert(place_of(module.parameter));
    modules_.push_back(std::move(module));
  }

  void sort(const std::string& name, const Item& base, const Item& tuned, Role role) {
    const Ingredient from{base.model, base.entry}, to{tuned.model, tuned.entry};
    const bool weight = name.ends_with(".weight");
    const Shape& shape = base.info.shape;
    const bool table = vocabulary(role) || name.find("embed") != std::string::npos ||
                       name.ends_with("wpe.weight") || name.ends_with("wte.weight");
    const bool experts = of_experts(name, shape);
    if ((weight || experts) && !table && shape.rank() >= 2 && shape == tuned.info.shape) {
      Module module{std::string(parent(name)), {}, shape, {from, to}};
      if (experts || by_parameter(module.path, shape)) module.parameter = last_component(name);
      add(std::move(module));
      return;
    }
    if (!vocabulary(role) && !(shape == tuned.info.shape)) {
      problems_.error_like("shape", Code::shape,
                           fmt::format("{}: {} has {}, {} has {}: no adapter leads from one to the "
                                       "other",
                                       name, draft_.shown(base_), shape.text(),
                                       draft_.shown(tuned_), tuned.info.shape.text()));
      return;
    }
    if (!weight && !name.ends_with(".bias")) {
      problems_.warn_like("parameter", Code::usage,
                          fmt::format("{}: a parameter that is neither weight nor bias of a module "
                                      "cannot stand in an adapter; its change is left out",
                                      name));
      leave(tuned, "neither weight nor bias of a module");
      return;
    }
    whole_.push_back({name, from, to, true, role});
  }

  // True if the two hold the same numbers: then nothing needs to be kept. Reads both.
  [[nodiscard]] bool equal(const Whole& whole) const {
    const auto entry = [&](const Ingredient& at) -> const Entry& {
      return plan_.models[at.model].checkpoint.entries()[at.entry];
    };
    const Entry &one = entry(whole.base), &other = entry(whole.tuned);
    if (!(one.info.shape == other.info.shape)) return false;
    constexpr std::uint64_t kPiece = std::uint64_t{1} << 18;
    std::vector<float> a, b;
    for (std::uint64_t at = 0; at < one.info.count(); at += kPiece) {
      a.resize(std::min(kPiece, one.info.count() - at));
      b.resize(a.size());
      read_values(plan_.models[whole.base.model].checkpoint, one, at, a);
      read_values(plan_.models[whole.tuned.model].checkpoint, other, at, b);
      if (a != b) return false;
    }
    return true;
  }

  void choose_ranks() {
    const Adaptation& wishes = plan_.recipe.adaptation;
    std::vector<Measured> measured;
    for (const Module& module : modules_) {
      const adapter::Difference& d = module.difference;
      measured.push_back({module.name(), std::min(d.height, d.width), d.experts, d.height + d.width,
                          [&d] { return adapter::difference(d); }});
    }
    ranks_ = ranks_of(plan_, wishes, wishes.rank, bits(dtype_) / 8, measured, problems_);
    std::set<std::uint64_t> ranks;  // of experts with tensors of their own
    for (const Module& module : modules_) {
      const auto at = ranks_.find(module.name());
      if (at == ranks_.end()) continue;  // refused
      const bool expert = expert_number(module.path).has_value();
      // PEFT fuses experts of one rank alone, and says of patterns for parameters that it ignores
      // them: these all have one rank, with zeros where a side is shorter.
      if (wishes.rank > 0 && (expert || !module.parameter.empty())) at->second = wishes.rank;
      if (expert) ranks.insert(at->second);
    }
    if (ranks.size() < 2) return;
    problems_.warn(
        Code::usage,
        "experts get different ranks, and PEFT with transformers 5, which fuses experts, "
        "loads them with equal ranks alone: --rank N gives that");
  }

  // How many of its module's parameters are wrapped around this one.
  [[nodiscard]] std::ptrdiff_t nesting(const Module& module) const {
    if (module.parameter.empty()) return 0;
    const std::set<std::ptrdiff_t>& all = parameters_.at(module.path);
    return std::distance(all.upper_bound(place_of(module.parameter)), all.end());
  }

  void factorise(const Module& module) {
    const adapter::Difference& d = module.difference;
    const std::uint64_t rank = ranks_.at(module.name());
    Shape a = module.shape, b = module.shape;
    if (d.turned || !module.parameter.empty()) {
      a = {rank * d.experts, d.width};
      b = {d.height, rank * d.experts};
    } else {
      a.set(0, rank);
      b.set(1, rank);
      for (int axis = 2; axis < b.rank(); ++axis) b.set(axis, 1);
    }
    std::string prefix = "base_model.model." + module.path;
    for (std::ptrdiff_t level = nesting(module); level > 0; --level) prefix += ".base_layer";
    if (!campaign_) campaign_ = std::make_shared<Campaign>();
    const std::size_t index =
        campaign_->add({adapter::difference(d), rank, prefix + ".lora_A.weight",
                        prefix + ".lora_B.weight", dtype_, module.name()});
    for (const Side side : {Side::a, Side::b}) {
      Job job;
      job.output = {prefix + (side == Side::a ? ".lora_A.weight" : ".lora_B.weight"), dtype_,
                    side == Side::a ? a : b};
      job.work = {plain(job.output.count()), {Dtype::f32}, dtype_, plan_.options.overflow};
      job.operands.push_back(
          {d.tuned.model, d.tuned.entry, nullptr, adapter::factor(campaign_, index, side)});
      plan_.jobs.push_back(std::move(job));
    }
    // PEFT warns of Conv1D without it.
    if (d.turned && module.parameter.empty()) folder_.fan_in_fan_out = true;
    folder_.modules.push_back(
        {module.name(), rank, static_cast<double>(rank), module.parameter.empty(), false});
    if (!module.parameter.empty()) {
      folder_.parameters.push_back(module.name());
      // Mixtral's, as transformers 5 has them: PEFT renames the tensors, not these.
      if (const std::size_t at = module.name().find(kOldMoe); at != std::string::npos) {
        std::string name = module.name();
        folder_.parameters.push_back(name.replace(at, kOldMoe.size(), ".mlp."));
      }
    }
    paths_.insert(module.path);
  }

  // The tuned tensor, byte for byte, where it is another than the base's.
  void keep(const Whole& whole) {
    const Entry& entry = plan_.models[whole.tuned.model].checkpoint.entries()[whole.tuned.entry];
    if (plan_.recipe.adaptation.whole_tensors == "skip") {
      ++skipped_;
      plan_.unused.push_back({whole.tuned.model, whole.tuned.entry, "whole tensors are skipped"});
      return;
    }
    if (whole.in_base && equal(whole)) {
      plan_.unused.push_back({whole.tuned.model, whole.tuned.entry, "equal to the base's"});
      return;
    }
    const std::size_t dot = whole.name.rfind('.');
    const std::string module = whole.name.substr(0, dot), leaf = whole.name.substr(dot);
    std::string name = "base_model.model." + whole.name;
    if (leaf == ".bias" && paths_.contains(module)) {
      // A trained bias of an adapted layer.
      name = "base_model.model." + module + ".base_layer.bias";
      folder_.bias = "all";
    } else {
      saved_.insert(module);
    }
    Job job;
    job.output = {std::move(name), entry.info.dtype, entry.info.shape};
    job.action = Action::copy;
    job.operands.push_back({whole.tuned.model, whole.tuned.entry, nullptr, nullptr});
    job.reason = vocabulary(whole.role) ? "the vocabulary's, in full" : "no matrix, so in full";
    plan_.jobs.push_back(std::move(job));
  }

  void note() {
    if (skipped_ > 0) {
      problems_.warn(
          Code::usage,
          fmt::format("{} tensors that are no matrices of layers (embeddings, heads, norms, "
                      "biases) are skipped as asked: what the tuning did to them is lost",
                      skipped_));
    }
    const auto rows = [&](std::uint32_t view) {
      for (const auto& [name, found] : named(view)) {
        if (found.second == Role::embedding) return found.first->info.shape[0];
      }
      return std::uint64_t{0};
    };
    if (rows(base_) != rows(tuned_) && skipped_ > 0) {
      problems_.warn(
          Code::usage,
          fmt::format("{} has {} tokens, {} has {}: without whole tensors the "
                      "adapter fits the base's vocabulary alone",
                      draft_.shown(base_), rows(base_), draft_.shown(tuned_), rows(tuned_)));
    }
  }

  void finish() {
    // A module that is saved brings all its parameters.
    for (const Whole& whole : whole_) {
      const std::string module = whole.name.substr(0, whole.name.rfind('.'));
      const std::string name = "base_model.model." + whole.name;
      if (!saved_.contains(module)) continue;
      if (std::any_of(plan_.jobs.begin(), plan_.jobs.end(),
                      [&](const Job& job) { return job.output.name == name; })) {
        continue;
      }
      const Entry& entry = plan_.models[whole.tuned.model].checkpoint.entries()[whole.tuned.entry];
      Job job;
      job.output = {name, entry.info.dtype, entry.info.shape};
      job.action = Action::copy;
      job.operands.push_back({whole.tuned.model, whole.tuned.entry, nullptr, nullptr});
      job.reason = "beside a parameter of its module that changed";
      plan_.jobs.push_back(std::move(job));
      std::erase_if(plan_.unused, [&](const Unused& unused) {
        return unused.model == whole.tuned.model && unused.entry == whole.tuned.entry;
      });
    }
    for (const std::uint32_t view : {base_, tuned_}) {
      for (const Item& item : draft_.views[view].items) plan_.bytes_in += item.info.bytes();
    }
    folder_.base = plan_.recipe.base_model->path;
    folder_.revision = plan_.recipe.base_model->revision;
    if (plan_.architecture.ends_with("ForCausalLM")) folder_.task = "CAUSAL_LM";
    // Readers go by it where the shapes of experts do not tell inputs from outputs.
    if (!folder_.parameters.empty()) folder_.version = "0.21.2";
    folder_.modules_to_save.assign(saved_.begin(), saved_.end());
    plan_.waived.tokenizer =
        !plan_.options.copy_tokenizer && has_tokenizer(disk_, draft_.folder(tuned_));
    if (plan_.options.copy_tokenizer) {
      take_over(disk_, problems_, draft_.folder(tuned_), Share::tokenizer, plan_.companions);
      for (Companion& file : plan_.companions)
        file.model = draft_.plan.models[draft_.views[tuned_].model].ref.text;
    }
    write_peft(disk_, plan_, problems_, folder_, "Extracted adapter",
               fmt::format("What {} has over {}, as a LoRA made by `ingot extract`.",
                           cell(draft_.shown(tuned_)), cell(draft_.shown(base_))));
  }

  Disk& disk_;
  Plan& plan_;
  Problems& problems_;
  Draft draft_;
  std::uint32_t base_ = 0, tuned_ = 0;  // views
  Dtype dtype_ = Dtype::f32;
  std::vector<Module> modules_;
  std::vector<Whole> whole_;
  std::map<std::string, std::uint64_t> ranks_;
  std::map<std::string, std::uint64_t, std::less<>> experts_;   // how many, by what holds them
  std::map<std::string, std::set<std::ptrdiff_t>> parameters_;  // places of them, by module
  std::set<std::string> paths_, saved_;
  std::shared_ptr<Campaign> campaign_;  // shared by the factors of the plan
  PeftFolder folder_;
  std::size_t skipped_ = 0;
};

}  // namespace

void extract(Disk& disk, Plan& plan, Problems& problems) { Extraction(disk, plan, problems).run(); }

}  // namespace ingot::plan
