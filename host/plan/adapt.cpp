#include "plan/adapt.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "adapter/pattern.hpp"
#include "base/clip.hpp"
#include "ingot/math/rule.hpp"
#include "plan/aliases.hpp"
#include "plan/folder.hpp"
#include "plan/loaded.hpp"
#include "plan/roles.hpp"
#include "plan/ties.hpp"
#include "token/vocab.hpp"

namespace ingot::plan {
namespace {

constexpr std::size_t kItems = 300'000;     // as many as an output may have
constexpr std::uint64_t kLayers = 100'000;  // a larger number in a name is not a layer
constexpr std::size_t kShown = 3;

// Old names of the linear layers that newer models fuse into parameters of all experts.
struct Fused {
  std::string_view old_name, fused;
  bool second = false;  // the upper half of the outputs
};
constexpr Fused kFused[] = {
    {"gate_proj", "gate_up_proj", false}, {"w1", "gate_up_proj", false},
    {"up_proj", "gate_up_proj", true},    {"w3", "gate_up_proj", true},
    {"down_proj", "down_proj", false},    {"w2", "down_proj", false},
    {"up_proj", "up_proj", false},  // experts without gates
};

// Experts of these keep their parameters as (experts, in, out).
bool transposed_experts(std::string_view architecture) {
  return architecture.starts_with("GptOss") || architecture.starts_with("Llama4");
}

// Orders "0.9.1" and "0.19.0" as versions.
bool older(std::string_view version, std::string_view than) {
  return version.empty() || natural_less(version, than);
}

class Overlay {
 public:
  Overlay(Disk& disk, Draft& draft, std::uint32_t view)
      : disk_(disk),
        draft_(draft),
        view_(draft.views[view]),
        config_(draft.configs[view]),
        base_(draft.plan.models[view_.model]),
        architecture_(base_.ref.override_architecture.empty() ? config_.architecture()
                                                              : base_.ref.override_architecture),
        family_(family(architecture_)) {}

  void run(const std::vector<Applied>& applied) {
    replicate(applied);
    find_vocabulary();
    for (const Applied& each : applied) {
      try {
        apply(draft_.adapters[each.adapter], each.weight);
      } catch (Error& e) {
        e.add(fmt::format("putting adapter {} on {}",
                          draft_.plan.models[draft_.adapters[each.adapter].model].ref.text,
                          base_.ref.text));
        throw;
      }
    }
    settle_vocabulary();
    grow_along();
    for (auto& [item, effects] : effects_) {
      view_.items[item].effects = std::make_shared<const std::vector<Effect>>(std::move(effects));
    }
    std::sort(view_.items.begin(), view_.items.end(),
              [](const Item& a, const Item& b) { return a.info.name < b.info.name; });
  }

 private:
  using Index = std::size_t;  // into View::items, which grows but does not move until the end

  // The changes of an adapter to one use of the vocabulary.
  struct Waiting {
    Effect effect;
    bool mirrored = false;  // the adapter does the same to all uses
    bool tokens = false;    // rows that all uses follow
  };
  // The tied vocabulary under one of its names. The first is the embedding.
  struct Use {
    std::string name;
    std::optional<Index> item;  // where the checkpoint, or an adapter, has a tensor of this name
    std::optional<Saved::Why> saved;
    std::vector<Waiting> waiting;
  };

  [[nodiscard]] const Entry& entry(std::uint32_t model, std::uint32_t index) const {
    return draft_.plan.models[model].checkpoint.entries()[index];
  }

  // --- layers that the adapter's configuration stacks in a new order

  void replicate(const std::vector<Applied>& applied) {
    const auto& first = draft_.adapters[applied.front().adapter].adapter.config.replication;
    for (const Applied& each : applied) {
      if (draft_.adapters[each.adapter].adapter.config.replication == first) continue;
      fail(Code::usage,
           fmt::format("{}: its adapters stack the layers differently (layer_replication), so they "
                       "cannot be used on one model together",
                       view_.text));
    }
    if (!first.empty()) restack(first);
    by_name_.reserve(view_.items.size());
    for (Index i = 0; i < view_.items.size(); ++i) {
      const std::string& name = view_.items[i].info.name;
      by_name_.emplace(name, i);
      std::string loaded = loaded_name(architecture_, name);
      if (loaded != name) by_loaded_.emplace(std::move(loaded), i);
    }
  }

  // The name of a layer's tensor around its number.
  struct Layered {
    std::string before, after;
    std::uint64_t number = 0;
  };

  static std::optional<Layered> layered(std::string_view name) {
    for (std::size_t dot = name.find('.'); dot != std::string_view::npos;
         dot = name.find('.', dot + 1)) {
      const std::size_t end = name.find('.', dot + 1);
      if (end == std::string_view::npos) break;
      const std::string_view before = name.substr(0, dot);
      const std::string_view last = last_component(before);
      if (last != "layers" && last != "h" && last != "layer" && last != "blocks") continue;
      Layered out{std::string(before), std::string(name.substr(end)), 0};
      const char* stop = name.data() + end;
      const auto [at, error] = std::from_chars(name.data() + dot + 1, stop, out.number);
      if (error == std::errc() && at == stop && out.number < kLayers) return out;
    }
    return std::nullopt;
  }

  void restack(const std::vector<std::pair<std::int64_t, std::int64_t>>& ranges) {
    std::map<std::string, std::uint64_t> depths;
    for (const Item& item : view_.items) {
      if (const auto name = layered(item.info.name)) {
        std::uint64_t& depth = depths[name->before];
        depth = std::max(depth, name->number + 1);
      }
    }
    const auto deepest =
        std::max_element(depths.begin(), depths.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (deepest == depths.end()) {
      fail(Code::format,
           fmt::format("{} has no layers that layer_replication could stack", base_.ref.text));
    }
    const auto& [prefix, depth] = *deepest;
    Restacked stack;
    std::vector<std::vector<std::uint64_t>> copies(depth);  // new numbers of each layer
    for (const auto& [begin, end] : ranges) {
      for (std::int64_t n = begin; n < end; ++n) {
        if (static_cast<std::uint64_t>(n) >= depth) {
          fail(Code::usage, fmt::format("layer_replication names layer {}, while {} has {}", n,
                                        base_.ref.text, depth));
        }
        copies[static_cast<std::size_t>(n)].push_back(stack.order.layers.size());
        stack.order.layers.push_back({0, static_cast<std::uint64_t>(n)});
      }
    }
    std::vector<Item> items;
    for (const Item& item : view_.items) {
      const auto name = layered(item.info.name);
      if (!name || name->before != prefix) {
        items.push_back(item);
        continue;
      }
      if (copies[name->number].empty()) {
        spare(item.model, item.entry, "a layer that the adapter's layer_replication leaves out");
      }
      for (const std::uint64_t number : copies[name->number]) {
        items.push_back(item);
        items.back().info.name = fmt::format("{}.{}{}", prefix, number, name->after);
      }
      if (items.size() > kItems) {
        fail(Code::usage, fmt::format("layer_replication would give more than {} tensors", kItems));
      }
    }
    view_.items = std::move(items);
    const auto count = config_.layers("", family_, depth);
    stack.old_count = depth;
    if (count) {
      stack.count = count->place;
      stack.order.counter = count->place.key;
    }
    Edits edits;
    edits.stacks.push_back(std::move(stack));
    edits.models = std::span(&config_, 1);
    edits.shown = base_.ref.text;
    edits.allow_mismatch = draft_.plan.options.allow_layer_mismatch;
    edits.mismatched = &draft_.plan.waived.layers;
    if (config_.present()) {
      config_ = Config(config_.edited(edits, draft_.problems), base_.ref.text);
    }
  }

  // --- names

  [[nodiscard]] std::optional<Index> find(const std::string& name) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) return std::nullopt;
    return found->second;
  }

  // The base's tensor for a name as the adapter has it.
  [[nodiscard]] std::optional<Index> locate(const std::string& name) const {
    for (const std::string& own : {rename(name, renames_), name}) {
      if (const auto found = find(own)) return found;
      const auto loaded = by_loaded_.find(own);
      if (loaded != by_loaded_.end()) return loaded->second;
      for (const std::string& other : aliases(own)) {
        if (const auto found = find(other)) return found;
      }
    }
    return std::nullopt;
  }

  // How the adapter's names differ from the base's as a whole: with or without the outer module.
  void match(const Adapter& adapter) {
    std::vector<std::string> names;
    for (const Adapted& module : adapter.modules) {
      if (module.parameters.empty()) {
        names.push_back(module.path + ".weight");
      } else {
        names.push_back(module.path + "." + module.parameters.front());
      }
    }
    for (const Saved& saved : adapter.saved) names.push_back(saved.name);
    for (const Tokens& tokens : adapter.tokens) names.push_back(tokens.path + ".weight");
    if (known_.empty()) {
      for (const Item& item : view_.items) known_.insert(rename(item.info.name, {}));
      for (const auto& [name, index] : by_loaded_) known_.insert(rename(name, {}));
    }
    renames_ = match_names(names, known_);
  }

  // --- one adapter

  void apply(const Opened& opened, double weight) {
    adapter_ = &opened.adapter;
    model_ = opened.model;
    shown_ = draft_.plan.models[opened.model].ref.text;
    weight_ = weight;
    match(*adapter_);
    mirrored_ = mirrors();
    touched_.clear();
    for (const Idle& idle : adapter_->idle) spare(model_, idle.entry, idle.reason);
    const std::optional<std::uint64_t> before = view_.rows;
    for (const Saved* saved : embedding_first(adapter_->saved)) place(*saved);
    const bool resized = view_.rows != before;
    for (const Tokens* tokens : embedding_first(adapter_->tokens)) place(*tokens);
    taken_.clear();
    for (const Adapted& module : adapter_->modules) place(module);
    if (missing_ > 0) {
      fail(Code::missing,
           fmt::format("{} of the {} modules of adapter {} have no tensor in {}: {}{}; is this the "
                       "model it was trained on{}?",
                       missing_, adapter_->modules.size(), shown_, base_.ref.text,
                       fmt::join(missing_names_, ", "), missing_ > kShown ? ", ..." : "",
                       adapter_->config.base.empty()
                           ? ""
                           : fmt::format(" (it says {})", clip(adapter_->config.base))));
    }
    report_untouched();
    take_tokenizer();
    if (resized) check_vocabulary();
  }

  void spare(std::uint32_t model, std::uint32_t index, const std::string& reason) {
    draft_.spared.try_emplace({model, index}, reason);
  }

  [[nodiscard]] Located located(std::uint32_t index) const {
    return {{model_, index}, entry(model_, index).info};
  }

  [[nodiscard]] Effect effect(const Adapted& module) const {
    const AdapterConfig& config = adapter_->config;
    Effect out;
    out.adapter = shown_;
    out.family = config.family;
    out.weight = weight_;
    out.scaling = module.scaling;
    out.times = module.inner ? 2 : 1;
    if (!math::single(out.weight * out.scaling * out.times)) {
      fail(Code::usage, fmt::format("{}: the weight {} times the scaling {} of module {} is beyond "
                                    "the numbers of single precision; choose another weight",
                                    shown_, out.weight, out.scaling, clip(module.path, 120)));
    }
    out.cayley_neumann = config.cayley_neumann;
    out.terms = config.terms;
    out.constrained = config.constrained;
    out.eps = config.eps;
    out.block_share = config.block_share;
    out.orthonormal = config.orthonormal;
    out.tiling = config.tiling;
    // Embeddings start like any other LoRA's.
    if (!module.embedding) out.residual = config.residual;
    for (const Factor& factor : module.factors) {
      if (factor.piece != Piece::bias) out.parts.push_back({factor.piece, located(factor.entry)});
    }
    for (const Factor& factor : adapter_->shared) {
      out.parts.push_back({factor.piece, located(factor.entry)});
    }
    return out;
  }

  void change(Index item, Effect made) {
    touched_.insert(item);
    effects_[item].push_back(std::move(made));
  }

  // --- modules

  void place(const Adapted& module) {
    if (module.groups > 1) {
      fail(Code::usage,
           fmt::format("{} is a convolution of {} groups: its update works on all inputs, and the "
                       "weight has only those of each output's own group, so it cannot be baked; "
                       "keep it as an adapter",
                       clip(module.path, 120), module.groups));
    }
    if (!module.parameters.empty()) return place_parameter(module);
    const std::string name = module.path + ".weight";
    if (const auto item = locate(name)) return place_weight(module, *item);
    if (const auto item = locate(module.path + ".in_proj_weight")) {
      return place_weight(module, *item);
    }
    if (Use* const use = use_of(name)) return place_use(module, *use);
    if (place_expert(module) || place_portion(module)) return;
    ++missing_;
    if (missing_names_.size() < kShown) missing_names_.push_back(clip(module.path, 120));
  }

  void place_weight(const Adapted& module, Index item) {
    Effect made = effect(module);
    made.layout = layout(module, view_.items[item].info.shape);
    if (made.family == ingot::Family::ia3) made.feedforward = feedforward(module);
    place_bias(module, made);
    add_to(item, std::move(made));
  }

  // The uses of a tied vocabulary wait until all adapters are known.
  void add_to(Index item, Effect made) {
    touched_.insert(item);
    if (Use* const use = use_of(view_.items[item].info.name)) {
      use->waiting.push_back({std::move(made), mirrored_, false});
    } else {
      change(item, std::move(made));
    }
  }

  void place_use(const Adapted& module, Use& use) {
    Effect made = effect(module);
    made.layout = module.embedding ? Layout::embedding : Layout::linear;
    if (made.family == ingot::Family::ia3) made.feedforward = false;
    place_bias(module, made);
    use.waiting.push_back({std::move(made), mirrored_, false});
  }

  // Biases that change along: lora_B's own, and IA3's scaling of outputs.
  void place_bias(const Adapted& module, const Effect& weight) {
    const auto trained = module.find(Piece::bias);
    const bool scaled = weight.family == ingot::Family::ia3 && !weight.feedforward;
    if (!trained && !scaled) return;
    auto bias = locate(module.path + ".bias");
    if (!bias) bias = stored_bias(module.path + ".bias");
    if (!bias) {
      if (!trained) return;
      fail(Code::missing,
           fmt::format("tensor {} of adapter {} is a bias, and {} has no {}.bias to add it to",
                       clip(entry(model_, *trained).info.name, 160), shown_, base_.ref.text,
                       clip(module.path, 120)));
    }
    Effect made = weight;
    made.layout = Layout::linear;
    if (trained) made.parts = {{Piece::bias, located(*trained)}};
    change(*bias, std::move(made));
  }

  // Where outputs and inputs lie is told by the shapes; by the architecture where they are equal.
  [[nodiscard]] Layout layout(const Adapted& module, const Shape& base) const {
    if (module.embedding) return Layout::embedding;
    if (base.rank() != 2) return Layout::linear;
    const auto shape = [&](Piece piece) { return entry(model_, *module.find(piece)).info.shape; };
    std::optional<std::uint64_t> in, out;
    if (adapter_->config.family == ingot::Family::lora ||
        adapter_->config.family == ingot::Family::adalora) {
      in = shape(Piece::a)[1];
      out = shape(Piece::b)[0];
    } else if (adapter_->config.family == ingot::Family::ia3 && shape(Piece::l).rank() == 2) {
      const Shape l = shape(Piece::l);
      if (l[1] != 1) in = l[1];
      if (l[0] != 1) out = l[0];
    }
    const bool linear = (!out || base[0] == *out) && (!in || base[1] == *in);
    const bool transposed = (!in || base[0] == *in) && (!out || base[1] == *out);
    if (linear != transposed) return linear ? Layout::linear : Layout::transposed;
    const bool known = family_ != nullptr || transposed_layer(architecture_, module.path);
    return (known ? transposed_layer(architecture_, module.path) : adapter_->config.fan_in_fan_out)
               ? Layout::transposed
               : Layout::linear;
  }

  // IA3 scales inputs where the vector lies in a row; of convolutions only the configuration knows.
  [[nodiscard]] bool feedforward(const Adapted& module) const {
    const Shape& l = entry(model_, *module.find(Piece::l)).info.shape;
    if (l.rank() == 2 && (l[0] != 1 || l[1] != 1)) return l[0] == 1;
    const AdapterConfig& config = adapter_->config;
    adapter::Effort effort;
    return adapter::Choice(config.feedforward, config.feedforward_pattern,
                           fmt::format("feedforward_modules of {}", shown_))
        .fits(module.path, effort);
  }

  // --- parameters and experts

  void place_parameter(const Adapted& module) {
    for (const std::string& name : module.parameters) {
      const std::string full = module.path + "." + name;
      if (taken_.contains(full)) continue;
      if (const auto item = locate(full)) {
        const auto layout = experts_layout(module, view_.items[*item].info.shape, full);
        if (!layout) continue;
        Effect made = effect(module);
        made.layout = *layout;
        made.cut.experts = static_cast<std::uint32_t>(module.experts);
        taken_.insert(full);
        return add_to(*item, std::move(made));
      }
      if (split_experts(module, name)) {
        taken_.insert(full);
        return;
      }
    }
    ++missing_;
    if (missing_names_.size() < kShown) {
      missing_names_.push_back(
          fmt::format("{}.{}", clip(module.path, 120), module.parameters.front()));
    }
  }

  // How a parameter of all experts lies, or nothing where the factors do not fit it.
  [[nodiscard]] std::optional<Layout> experts_layout(const Adapted& module, const Shape& base,
                                                     const std::string& name) const {
    const std::uint64_t in = entry(model_, *module.find(Piece::a)).info.shape[1];
    const std::uint64_t out = entry(model_, *module.find(Piece::b)).info.shape[0];
    const int rank = base.rank();
    if (rank != 2 && rank != 3) return std::nullopt;
    const std::uint64_t experts = rank == 3 ? base[0] : 1;
    if (module.experts != experts) return std::nullopt;
    const bool linear = base[rank - 2] == out && base[rank - 1] == in;
    const bool transposed = rank == 3 && base[1] == in && base[2] == out;
    if (!linear && !transposed) return std::nullopt;
    if (linear != transposed || rank == 2) return linear ? Layout::linear : Layout::transposed;
    // Square: what PEFT took for inputs changed from release to release.
    const std::string& version = adapter_->config.version;
    const bool turned = transposed_parameters(architecture_);
    bool across = turned;
    if (older(version, "0.19.0")) {
      across = true;
    } else if (version == "0.19.0") {
      across = !turned;
    }
    if (version.empty() || version == "0.19.0") {
      draft_.problems.warn_like(
          "square experts", Code::format,
          fmt::format("{}: experts of {} are square, so their shapes do not show which axis is the "
                      "input; ingot reads them as PEFT {} does",
                      shown_, clip(name, 120),
                      version.empty() ? "0.17, which wrote no version," : version));
    }
    return across ? Layout::transposed : Layout::linear;
  }

  // Factors of all experts on a base whose experts are tensors of their own.
  bool split_experts(const Adapted& module, const std::string& name) {
    std::vector<std::pair<Index, Effect>> made;
    for (const Fused& fused : kFused) {
      if (fused.fused != name) continue;
      for (std::uint32_t e = 0; e < module.experts; ++e) {
        const auto item = locate(fmt::format("{}.{}.{}.weight", module.path, e, fused.old_name));
        if (!item) break;
        Effect each = effect(module);
        const Shape& shape = view_.items[*item].info.shape;
        each.cut.experts = static_cast<std::uint32_t>(module.experts);
        each.cut.expert = e;
        if (fused.fused == "gate_up_proj" && shape.rank() == 2) {
          each.cut.from = fused.second ? shape[0] : 0;
          each.cut.count = shape[0];
        }
        made.emplace_back(*item, std::move(each));
      }
    }
    const std::size_t wanted = module.experts * (name == "gate_up_proj" ? 2 : 1);
    if (made.size() != wanted) return false;
    for (auto& [item, each] : made) change(item, std::move(each));
    return true;
  }

  // Factors of one expert's layer on a base that holds all experts in one tensor.
  bool place_expert(const Adapted& module) {
    const auto expert = expert_layer(module.path);
    if (!expert || adapter_->config.family != ingot::Family::lora || adapter_->config.dora)
      return false;
    for (const Fused& fused : kFused) {
      if (fused.old_name != expert->leaf) continue;
      auto item = locate(fmt::format("{}.{}", expert->owner, fused.fused));
      if (!item) item = locate(fmt::format("{}.{}.weight", expert->owner, fused.fused));
      if (!item) continue;
      const Shape& base = view_.items[*item].info.shape;
      const std::uint64_t in = entry(model_, *module.find(Piece::a)).info.shape[1];
      const std::uint64_t out = entry(model_, *module.find(Piece::b)).info.shape[0];
      const std::uint64_t all = fused.fused == "gate_up_proj" ? 2 * out : out;
      if (base.rank() != 3 || expert->number >= base[0]) return false;
      const bool linear = base[1] == all && base[2] == in;
      const bool transposed = base[1] == in && base[2] == all;
      if (!linear && !transposed) return false;
      Effect made = effect(module);
      made.layout = linear && !(transposed && transposed_experts(architecture_))
                        ? Layout::linear
                        : Layout::transposed;
      made.cut.block = expert->number;
      made.cut.at = fused.second ? out : 0;
      made.cut.count = out;
      change(*item, std::move(made));
      return true;
    }
    return false;
  }

  // Factors of a layer that is some rows of a layer of files.
  bool place_portion(const Adapted& module) {
    const auto part = portion(architecture_, module.path);
    if (!part) return false;
    const auto item = locate(part->path + ".weight");
    if (!item) return false;
    const TensorInfo& info = view_.items[*item].info;
    const bool simple = adapter_->config.family == ingot::Family::lora && !adapter_->config.dora &&
                        !module.find(Piece::bias);
    if (!simple || info.shape.rank() != 2) {
      fail(Code::usage,
           fmt::format("module {} of adapter {} is one of {} parts of {} of {}: ingot bakes only "
                       "LoRA without DoRA and without lora_bias into such a part",
                       clip(module.path, 120), shown_, part->count, info.name, base_.ref.text));
    }
    Effect made = effect(module);
    made.layout = Layout::linear;
    made.cut.count = info.shape[0] / part->count;
    made.cut.at = part->index * made.cut.count;
    const std::uint64_t out = entry(model_, *module.find(Piece::b)).info.shape[0];
    if (out != made.cut.count) {
      fail(Code::shape,
           fmt::format(
               "module {} of adapter {} has {} outputs, but as one of {} parts of {} of {} it "
               "has {}; is this the model it was trained on?",
               clip(module.path, 120), shown_, out, part->count, info.name, base_.ref.text,
               made.cut.count));
    }
    change(*item, std::move(made));
    return true;
  }

  // --- whole tensors

  static std::string name_of(const Saved& saved) { return saved.name; }
  static std::string name_of(const Tokens& tokens) { return tokens.path + ".weight"; }

  // Items for the tied embedding come before items for its other uses, which may repeat it.
  template <class Each>
  std::vector<const Each*> embedding_first(const std::vector<Each>& all) {
    std::vector<const Each*> out;
    for (const Each& each : all) out.push_back(&each);
    std::stable_partition(out.begin(), out.end(), [&](const Each* each) {
      const Use* const use = use_of(name_of(*each));
      return use != nullptr && use == uses_.data();
    });
    return out;
  }

  // A tensor of the adapter at hand.
  [[nodiscard]] Item brought(std::uint32_t index) const {
    Item item;
    item.model = model_;
    item.entry = index;
    return item;
  }

  void place(const Saved& saved) {
    const TensorInfo& info = entry(model_, saved.entry).info;
    auto item = locate(saved.name);
    Use* const use = item ? use_of(view_.items[*item].info.name) : use_of(saved.name);
    if (use != nullptr && use != uses_.data() && mirrored_ && saved.why != Saved::Why::bias) {
      return spare(model_, saved.entry, "the tied embedding again (ensure_weight_tying)");
    }
    if (use != nullptr && use != uses_.data() && repeats(saved)) {
      saved_everywhere_ = true;
      return spare(model_, saved.entry, "the tied embedding again, with the same values");
    }
    if (!item && use != nullptr) {
      item = add(saved, view_.items[*embedding_].type);
      view_.items[*item].info.name = use->name;
      use->item = item;
    }
    if (!item) {
      item = stored_bias(saved.name);
      // A head of its own reads its bias under its own name.
      if (item && !tied_) item = add(saved, view_.items[*item].type);
    }
    if (!item) item = add_saved(saved);
    Item& target = view_.items[*item];
    const std::string by = fmt::format("{} of adapter {}", clip(info.name, 160), shown_);
    const auto [owner, fresh] = owners_.emplace(target.info.name, shown_);
    if (!fresh && owner->second == shown_) {
      return spare(model_, saved.entry, fmt::format("another name of {}", target.info.name));
    }
    const auto before = replaced_.find(*item);
    if (!fresh) {
      if (same(target, brought(saved.entry))) {
        return spare(
            model_, saved.entry,
            fmt::format("the same values as {} of adapter {}", target.info.name, owner->second));
      }
      if (before != replaced_.end() && same(before->second, brought(saved.entry))) {
        return spare(model_, saved.entry, fmt::format("the base's {}", target.info.name));
      }
      if (before == replaced_.end() || !same(before->second, target)) {
        fail(Code::usage, fmt::format("adapters {} and {} both replace {}; only one can be used: "
                                      "leave one out, or merge the models that they make",
                                      owner->second, shown_, target.info.name));
      }
      spare(target.model, target.entry, fmt::format("the base's {}", target.info.name));
      owner->second = shown_;
    }
    const bool vocabulary = is_vocabulary(target.info.name);
    const bool rows = vocabulary && info.shape.rank() == 2 && target.info.shape.rank() == 2 &&
                      info.shape[1] == target.info.shape[1];
    const bool bias = vocabulary && info.shape.rank() == 1 && target.info.shape.rank() == 1;
    if (info.shape != target.info.shape && !rows && !bias) {
      fail(Code::shape,
           fmt::format("tensor {} has shape {}, and {} of {} has {}", by, info.shape.text(),
                       target.info.name, base_.ref.text, target.info.shape.text()));
    }
    touched_.insert(*item);
    if (weight_ != 1) return blend(saved, *item);
    if (use != nullptr) use->saved = saved.why;
    if (use != nullptr && use == uses_.data()) saved_everywhere_ = mirrored_;
    if (embedding_ && *item == *embedding_ && info.shape != target.info.shape) {
      view_.rows = target.info.shape[0];
    }
    if (added_.contains(*item)) return;
    if (fresh) {
      spare(target.model, target.entry, fmt::format("replaced by tensor {}", by));
      replaced_.emplace(*item, target);
      if (use != nullptr && use == uses_.data()) original_ = target;
    }
    take(target, model_, saved.entry);
  }

  // A tensor's values in place of those that an item had.
  void take(Item& target, std::uint32_t model, std::uint32_t index) const {
    const TensorInfo& info = entry(model, index).info;
    target.info.shape = info.shape;
    target.info.dtype = info.dtype;
    target.model = model;
    target.entry = index;
  }

  // True for a use of the tied embedding for which the adapter brings what it brings for the
  // embedding.
  [[nodiscard]] bool repeats(const Saved& saved) const {
    if (uses_.front().saved == std::nullopt) return false;
    const Item& embedding = view_.items[*embedding_];
    return embedding.model == model_ && same(embedding, brought(saved.entry));
  }

  // The head's bias under the name that checkpoints with tied vocabularies have for it.
  [[nodiscard]] std::optional<Index> stored_bias(const std::string& name) const {
    const std::string own = rename(name, renames_);
    for (const auto& [copy, stored] : ties_.biases) {
      if (copy == own) return find(stored);
    }
    return std::nullopt;
  }

  // A saved module at another weight than 1 lies between the base's and the adapter's.
  void blend(const Saved& saved, Index item) {
    const TensorInfo& info = entry(model_, saved.entry).info;
    const Shape& shape = view_.items[item].info.shape;
    if (added_.contains(item) || info.shape != shape || shape.rank() != 2) {
      fail(
          Code::usage,
          fmt::format("adapter {} has the weight {}, but it replaces {} as a whole, which is "
                      "possible only with weight 1: only matrices of the base's shape are blended; "
                      "leave the weight out, or use an adapter without this tensor (extract "
                      "--whole-tensors skip makes one)",
                      shown_, weight_, view_.items[item].info.name));
    }
    Effect made;
    made.adapter = shown_;
    made.family = ingot::Family::none;
    made.weight = weight_;
    made.parts.push_back({Piece::block, located(saved.entry)});
    for (std::uint64_t r = 0; r < shape[0]; ++r) made.rows.push_back(r);
    add_to(item, std::move(made));
  }

  // A tensor that the base does not have: a head for another task.
  Index add_saved(const Saved& saved) {
    if (saved.why != Saved::Why::module) {
      fail(Code::missing,
           fmt::format("tensor {} of adapter {} would replace {}, which {} does not have",
                       clip(entry(model_, saved.entry).info.name, 160), shown_,
                       clip(saved.name, 120), base_.ref.text));
    }
    const std::string_view first = first_component(saved.name);
    if (first != "score" && first != "classifier" && first != "qa_outputs" && first != "lm_head" &&
        first != "v_head") {
      fail(Code::missing,
           fmt::format("tensor {} of adapter {} belongs to module {}, which {} does not have",
                       clip(entry(model_, saved.entry).info.name, 160), shown_,
                       clip(saved.name, 120), base_.ref.text));
    }
    const Shape& shape = entry(model_, saved.entry).info.shape;
    const std::string_view last = last_component(parent(saved.name));
    const bool labels = shape.rank() == 2 && (last == "score" || last == "classifier" ||
                                              (first == "classifier" && last == "out_proj"));
    draft_.problems.warn(
        Code::missing,
        fmt::format("adapter {} has {}, which {} does not have: it was added, and 'architectures' "
                    "in config.json must name the class that has it{}",
                    shown_, clip(saved.name, 120), base_.ref.text,
                    labels ? fmt::format(", 'num_labels' must be {}", shape[0]) : ""));
    const Item* any = nullptr;
    for (const Item& item : view_.items) {
      if (any == nullptr && is_float(item.type)) any = &item;
    }
    return add(saved, any != nullptr ? any->type : entry(model_, saved.entry).info.dtype);
  }

  Index add(const Saved& saved, Dtype type) {
    Item item;
    item.info = entry(model_, saved.entry).info;
    item.info.name = rename(saved.name, renames_);
    item.model = model_;
    item.entry = saved.entry;
    item.type = type;
    return append(std::move(item));
  }

  Index append(Item item) {
    const Index index = view_.items.size();
    by_name_.emplace(item.info.name, index);
    view_.items.push_back(std::move(item));
    added_.insert(index);
    return index;
  }

  void place(const Tokens& tokens) {
    const std::string name = tokens.path + ".weight";
    auto item = locate(name);
    Use* use = item ? use_of(view_.items[*item].info.name) : use_of(name);
    // PEFT ties tokens of the class's input embedding to all uses, under whatever name it has.
    if (use != nullptr && use->name == ties_.input) use = uses_.data();
    if (use != nullptr && (!item || use == uses_.data())) item = embedding_;
    if (!item) {
      fail(Code::missing, fmt::format("adapter {} has trained tokens of {}, which {} does not have",
                                      shown_, clip(tokens.path, 120), base_.ref.text));
    }
    const TensorInfo& info = entry(model_, tokens.entry).info;
    const Shape& shape = view_.items[*item].info.shape;
    const auto most = std::max_element(tokens.rows.begin(), tokens.rows.end());
    if (shape.rank() != 2 || shape[1] != info.shape[1] || *most >= shape[0]) {
      fail(Code::shape,
           fmt::format("tensor {} of adapter {} has shape {} for tokens up to {}, and {} has {}",
                       clip(info.name, 160), shown_, info.shape.text(), *most,
                       view_.items[*item].info.name, shape.text()));
    }
    if (use != nullptr && use != uses_.data()) {
      for (const Waiting& w : uses_.front().waiting) {
        if (!w.tokens || w.effect.adapter != shown_ || w.effect.rows != tokens.rows) continue;
        const Effect::Part& part = w.effect.parts.front();
        Item first;
        first.model = part.tensor.place.model;
        first.entry = part.tensor.place.entry;
        if (first.model != model_ || !same(first, brought(tokens.entry))) continue;
        return spare(model_, tokens.entry, "the tokens of the tied embedding again");
      }
    }
    const std::string& owned = use != nullptr ? use->name : view_.items[*item].info.name;
    for (const std::uint64_t row : tokens.rows) {
      const auto [owner, fresh] = token_owners_.emplace(std::pair(owned, row), shown_);
      if (fresh || owner->second == shown_) continue;
      fail(Code::usage,
           fmt::format("adapters {} and {} both trained token {}: only one can be used",
                       owner->second, shown_, row));
    }
    Effect made;
    made.adapter = shown_;
    made.family = ingot::Family::none;
    made.weight = weight_;
    made.parts.push_back({Piece::block, located(tokens.entry)});
    made.rows = tokens.rows;
    touched_.insert(*item);
    if (use != nullptr) {
      use->waiting.push_back({std::move(made), false, true});
    } else {
      change(*item, std::move(made));
    }
  }

  // --- vocabulary

  // The use that a name means, as adapters or the base spell it; null where nothing is tied.
  [[nodiscard]] Use* use_of(const std::string& name) {
    Use* const found = named_use(name);
    if (found == nullptr || compared_) return found;
    compare_copies();
    return named_use(name);
  }

  [[nodiscard]] Use* named_use(const std::string& name) {
    if (!tied_) return nullptr;
    const std::string own = rename(name, renames_);
    const auto called = [&](const std::string& word) {
      return std::find_if(uses_.begin(), uses_.end(),
                          [&](const Use& use) { return use.name == word; });
    };
    auto found = called(own);
    for (const std::string& other : aliases(own)) {
      if (found != uses_.end()) break;
      found = called(other);
    }
    if (found == uses_.end() && headed_ && role(own, Shape{2, 2}, family_, &ties_) == Role::head) {
      found = uses_.begin() + 1;
    }
    return found == uses_.end() ? nullptr : &*found;
  }

  // Copies of the tied tensor that the checkpoint has are uses of it where they hold the same
  // bytes; transformers 5 takes others for tensors of their own, and so does this.
  void compare_copies() {
    compared_ = true;
    const Item& embedding = view_.items[*embedding_];
    std::vector<std::string> apart;
    for (std::size_t u = uses_.size(); u-- > 1;) {
      if (!uses_[u].item || same(embedding, view_.items[*uses_[u].item])) continue;
      apart.push_back(uses_[u].name);
      headed_ = headed_ && u != 1;
      uses_.erase(uses_.begin() + static_cast<std::ptrdiff_t>(u));
    }
    tied_ = uses_.size() > 1;
    if (apart.empty()) return;
    draft_.problems.warn(
        Code::usage,
        fmt::format("{}: its configuration ties {} to {}, but the values of these tensors differ, "
                    "so each changes by itself; transformers 5 loads all of them, older releases "
                    "only the first",
                    view_.text, fmt::join(apart, ", "), embedding.info.name));
  }

  [[nodiscard]] bool same(const Item& a, const Item& b) const {
    return same_values(draft_.plan.models[a.model].checkpoint, entry(a.model, a.entry),
                       draft_.plan.models[b.model].checkpoint, entry(b.model, b.entry));
  }

  // Matrices and biases with a row or an element for each token.
  [[nodiscard]] bool is_vocabulary(std::string_view name) const {
    if (embedding_ && name == view_.items[*embedding_].info.name) return true;
    if (head_ && name == view_.items[*head_].info.name) return true;
    if (std::any_of(uses_.begin(), uses_.end(), [&](const Use& u) { return u.name == name; }) ||
        ties_.bias(name)) {
      return true;
    }
    if (!ties_.head.empty() && last_component(name) == "bias" &&
        parent(name) == parent(ties_.head)) {
      return true;
    }
    const Role played = role(name, Shape{2, 2}, family_, &ties_);
    return played == Role::head || played == Role::head_bias;
  }

  // The input embedding, the head, and whether they are one tensor.
  void find_vocabulary() {
    ties_ = ties(
        architecture_, [&](const std::string& name) { return find(name).has_value(); }, family_);
    for (Index i = 0; i < view_.items.size(); ++i) {
      const TensorInfo& info = view_.items[i].info;
      const Role played = role(info.name, info.shape, family_, &ties_);
      const bool best =
          family_ != nullptr && (info.name == family_->embedding || info.name == family_->head ||
                                 std::string(family_->prefix) + info.name == family_->embedding);
      if (played == Role::embedding && (!embedding_ || best)) embedding_ = i;
      if (played == Role::head && info.shape.rank() == 2 && (!head_ || best)) head_ = i;
    }
    if (const auto known = find(ties_.embedding)) embedding_ = known;
    if (const auto known = find(ties_.head); known || ties_.tying != Tying::unknown) head_ = known;
    headed_ = head_.has_value() || !ties_.head.empty();
    tied_ = embedding_ && (headed_ || !ties_.uses.empty()) &&
            tied(ties_, architecture_, config_.tied(), head_.has_value());
    if (!tied_) return;
    uses_.push_back({view_.items[*embedding_].info.name, embedding_, {}, {}});
    if (headed_) {
      uses_.push_back({head_ ? view_.items[*head_].info.name : ties_.head, head_, {}, {}});
    }
    for (const std::string& name : ties_.uses) uses_.push_back({name, find(name), {}, {}});
  }

  // True if the flag ensure_weight_tying did what it says when PEFT made the adapter: it looks for
  // two names only, among saved modules and targets.
  [[nodiscard]] bool mirrors() {
    const AdapterConfig& config = adapter_->config;
    if (!tied_ || !config.tying) return false;
    const auto named = [](const std::string& name) {
      const std::string_view last = last_component(name);
      return last == "embed_tokens" || last == "lm_head";
    };
    if (std::any_of(config.modules_to_save.begin(), config.modules_to_save.end(), named) ||
        std::any_of(config.targets.begin(), config.targets.end(), named)) {
      return true;
    }
    adapter::Effort effort;
    const adapter::Choice targets(config.targets, config.target_pattern,
                                  fmt::format("target_modules of {}", shown_));
    if (!config.target_pattern.empty() &&
        (targets.fits("embed_tokens", effort) || targets.fits("lm_head", effort))) {
      return true;
    }
    // PEFT removes the names of tied ends from its lists: if the file still has them, they are
    // mirrors.
    const auto other = [&](const std::string& name) {
      const Use* const use = use_of(name);
      return use != nullptr && use != uses_.data();
    };
    const bool embedding =
        std::any_of(adapter_->saved.begin(), adapter_->saved.end(), [&](const Saved& saved) {
          return saved.why == Saved::Why::module && use_of(saved.name) == uses_.data();
        });
    return std::any_of(adapter_->saved.begin(), adapter_->saved.end(),
                       [&](const Saved& saved) {
                         return embedding && saved.why == Saved::Why::embedding &&
                                other(saved.name);
                       }) ||
           std::any_of(
               adapter_->modules.begin(), adapter_->modules.end(), [&](const Adapted& module) {
                 return other(module.path + ".weight") && !targets.fits(module.path, effort);
               });
  }

  // A tensor with several uses stays one tensor if all uses change in the same way; otherwise each
  // use gets a tensor.
  void settle_vocabulary() {
    if (!tied_) {
      for (const auto& [copy, stored] : ties_.biases) {
        const auto from = find(stored);
        if (head_ && from && effects_.contains(*from)) repeat(stored, copy);
      }
      return check_rows();
    }
    Use& embedding = uses_.front();
    const std::span<Use> others = std::span(uses_).subspan(1);
    const bool touched = std::any_of(uses_.begin(), uses_.end(), [](const Use& use) {
      return use.saved || !use.waiting.empty();
    });
    if (!touched) return;
    const auto everywhere = [](const Waiting& w) { return w.mirrored || w.tokens; };
    // Rows that an adapter brings because the vocabulary grew are those of the tied tensor.
    const bool whole = saved_everywhere_ || embedding.saved == Saved::Why::embedding;
    const bool alike =
        (!embedding.saved || whole) &&
        std::all_of(embedding.waiting.begin(), embedding.waiting.end(), everywhere) &&
        std::all_of(others.begin(), others.end(), [&](const Use& use) {
          return !use.saved && std::all_of(use.waiting.begin(), use.waiting.end(),
                                           [](const Waiting& w) { return w.mirrored; });
        });
    for (Use& use : others) {
      for (const Waiting& w : use.waiting) {
        if (w.mirrored) spare_mirror(w.effect);
      }
      std::erase_if(use.waiting, [](const Waiting& w) { return w.mirrored; });
      if (use.item && use.saved) continue;  // an adapter's own
      if (!use.item && alike) continue;
      const bool fresh = !use.item.has_value();
      Item item = original_ && !whole ? *original_ : view_.items[*embedding_];
      item.info.name = use.name;
      if (fresh) {
        use.item = append(std::move(item));
      } else if (whole && embedding.saved) {
        take(view_.items[*use.item], item.model, item.entry);
      }
      for (const Waiting& w : embedding.waiting) {
        if (everywhere(w)) change(*use.item, w.effect);
      }
    }
    for (Use& use : uses_) {
      for (Waiting& w : use.waiting) change(*use.item, std::move(w.effect));
    }
    if (headed_) embedding_now_ = uses_[1].item;
    view_.untied = !alike;
    if (alike) return check_rows();
    if (headed_) {
      for (const auto& [copy, stored] : ties_.biases) repeat(stored, copy);
    }
    draft_.problems.warn(
        Code::usage,
        fmt::format("{}: {} and {} were one tied tensor and change differently, so the output has "
                    "both{}",
                    view_.text, embedding.name, uses_[1].name,
                    means_more(ties_.tying)
                        ? "; transformers 5 loads both because they differ"
                        : " and its config.json says tie_word_embeddings: false"));
    check_rows();
  }

  void spare_mirror(const Effect& effect) {
    for (const Effect::Part& part : effect.parts) {
      spare(part.tensor.place.model, part.tensor.place.entry,
            "mirrors the factors of the tied embedding, whose change is added once");
    }
  }

  // A bias that is stored once and has another name besides, under that name too.
  void repeat(const std::string& stored, const std::string& copy) {
    const auto from = find(stored);
    if (!from || find(copy)) return;
    Item item = view_.items[*from];
    item.info.name = copy;
    const Index index = append(std::move(item));
    const auto effects = effects_.find(*from);
    if (effects != effects_.end()) effects_[index] = std::vector<Effect>(effects->second);
  }

  // A vocabulary that grew has to have grown at all ends.
  void check_rows() const {
    if (!embedding_) return;
    const Item& in = view_.items[*embedding_];
    std::vector<std::optional<Index>> others = {embedding_now_ ? embedding_now_ : head_};
    for (const std::string& name : ties_.uses) others.push_back(find(name));
    for (const auto& other : others) {
      if (!other) continue;
      const Item& out = view_.items[*other];
      if (in.info.shape[0] == out.info.shape[0]) continue;
      const bool own = in.model == view_.model && out.model == view_.model;
      if (own) continue;  // as the base has it
      fail(Code::shape,
           fmt::format("{}: an adapter has {} rows for one of {} and {}, but the other has {}: "
                       "both must have the same number of rows",
                       view_.text, std::max(in.info.shape[0], out.info.shape[0]), in.info.name,
                       out.info.name, std::min(in.info.shape[0], out.info.shape[0])));
    }
  }

  // Biases of the vocabulary that no adapter brings follow its rows: new tokens have 0, as
  // transformers gives them when it resizes a model.
  void grow_along() {
    if (!view_.rows || !embedding_) return;
    const std::uint64_t before = *view_.rows, now = view_.items[*embedding_].info.shape[0];
    for (Item& item : view_.items) {
      const Shape& shape = item.info.shape;
      const bool flat = shape.rank() == 1
                            ? shape[0] == before
                            : shape.rank() == 2 && shape[0] == 1 && shape[1] == before;
      if (!flat || item.model != view_.model || layered(item.info.name)) continue;
      if (!is_vocabulary(item.info.name) || now == before) continue;
      RowMap map;
      map.rows = now;
      map.width = 1;
      for (std::uint64_t row = 0; row <= now; ++row) map.first.push_back(std::min(row, before));
      for (std::uint64_t row = 0; row < std::min(before, now); ++row) {
        map.picks.push_back({item.model, item.entry, row});
      }
      item.rows = std::make_shared<const RowMap>(std::move(map));
      item.info.shape = shape.rank() == 1 ? Shape{now} : Shape{1, now};
    }
  }

  // The tokenizer goes with the rows: the last adapter that brings one has it.
  void take_tokenizer() {
    const std::string& folder = adapter_->folder;
    for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"}) {
      if (seek_member(disk_, folder, name)) view_.tokenizer = folder;
    }
  }

  // Rows that an adapter brings in place of the base's have to be there for every token.
  void check_vocabulary() const {
    const std::uint64_t rows = view_.items[*embedding_].info.shape[0];
    std::optional<Vocab> vocab;
    try {
      vocab = read_vocab(disk_, view_.tokenizer);
    } catch (const Error& error) {
      if (error.code() != Code::format) throw;
      draft_.problems.warn(error.code(),
                           fmt::format("{}: the {} rows of adapter {} cannot be compared with it",
                                       error.what(), rows, shown_));
      return;
    }
    if (vocab && vocab->rows() > rows) {
      fail(Code::shape,
           fmt::format("adapter {} has {} rows for {}, but the tokenizer of {} has ids up to {}: "
                       "the model could not read its own tokens; is a part of the adapter missing?",
                       shown_, rows, view_.items[*embedding_].info.name, view_.tokenizer,
                       vocab->rows() - 1));
    }
    if (!vocab && rows < *view_.rows) {
      draft_.problems.warn(
          Code::shape,
          fmt::format("adapter {} has {} rows for {}, but {} has {}: the output loses the last "
                      "rows, and there is no tokenizer that shows whether their tokens are used",
                      shown_, rows, view_.items[*embedding_].info.name, base_.ref.text,
                      *view_.rows));
    }
  }

  // Modules that the configuration selects and the file lacks: PEFT leaves them as they were, which
  // may not be what training did. Experts are modules only where the adapter has some of them:
  // transformers 5 holds them as parameters of all, which no name of a module selects.
  void report_untouched() {
    const AdapterConfig& config = adapter_->config;
    if (config.targets.empty() || !config.layers.empty() || !config.replication.empty()) return;
    const adapter::Choice targets(config.targets, {}, {});
    const adapter::Choice excluded(config.excluded, config.excluded_pattern,
                                   fmt::format("exclude_modules of {}", shown_));
    adapter::Effort effort;
    const auto path_of = [&](Index i) { return parent(view_.items[i].info.name); };
    const bool experts = std::any_of(touched_.begin(), touched_.end(),
                                     [&](Index i) { return expert_layer(path_of(i)).has_value(); });
    std::size_t count = 0;
    std::string first;
    for (Index i = 0; i < view_.items.size(); ++i) {
      const Item& item = view_.items[i];
      if (!item.info.name.ends_with(".weight") || item.info.shape.rank() < 2) continue;
      const std::string path(path_of(i));
      if (touched_.contains(i) || !targets.fits(path, effort) || excluded.fits(path, effort))
        continue;
      if (!experts && expert_layer(path)) continue;
      if (++count == 1) first = path;
    }
    if (count == 0) return;
    draft_.problems.warn(
        Code::missing,
        fmt::format("adapter {}: its configuration selects {} modules of {} for which it has no "
                    "tensors ({}{}): they stay as they are",
                    shown_, count, base_.ref.text, clip(first, 120), count > 1 ? ", ..." : ""));
  }

  Disk& disk_;
  Draft& draft_;
  View& view_;
  Config& config_;
  const Model& base_;
  const std::string architecture_;
  const Family* family_;  // plan::Family, of the architecture

  // The adapter that is being applied.
  const Adapter* adapter_ = nullptr;
  std::uint32_t model_ = 0;
  std::string shown_;
  double weight_ = 1;
  bool mirrored_ = false;  // what it does to one use of a tied vocabulary it does to all
  Renames renames_;
  std::unordered_set<std::string> taken_;  // parameters that have their factors
  std::unordered_set<Index> touched_;      // items that it changes or replaces
  std::size_t missing_ = 0;
  std::vector<std::string> missing_names_;

  std::unordered_map<std::string, Index> by_name_;
  std::unordered_map<std::string, Index> by_loaded_;  // by names that only the loaded model has
  std::unordered_set<std::string> known_;
  std::map<Index, std::vector<Effect>> effects_;
  std::set<Index> added_;
  std::unordered_map<std::string, std::string> owners_;  // of replaced tensors: the adapter
  std::map<Index, Item> replaced_;                       // and what the base has
  std::map<std::pair<std::string, std::uint64_t>, std::string> token_owners_;

  Ties ties_;
  std::optional<Index> embedding_, head_, embedding_now_;
  bool tied_ = false;
  bool headed_ = false;            // the second of uses_ is the head
  bool compared_ = false;          // the copies that the checkpoint has
  std::vector<Use> uses_;          // where it is tied
  std::optional<Item> original_;   // the embedding before an adapter replaced it
  bool saved_everywhere_ = false;  // the embedding that an adapter brings is that of all uses
};

}  // namespace

bool transposed_parameters(std::string_view architecture) {
  return architecture.starts_with("GptOss") || architecture.starts_with("Aria");
}

bool transposed_layer(std::string_view architecture, std::string_view path) {
  const bool gpt2 = architecture.starts_with("GPT2") || architecture.starts_with("OpenAIGPT") ||
                    architecture.starts_with("ImageGPT") ||
                    architecture.starts_with("DecisionTransformerGPT2");
  const std::string_view leaf = last_component(path);
  return gpt2 && (leaf == "c_attn" || leaf == "c_proj" || leaf == "c_fc" || leaf == "q_attn");
}

View plain_view(const Plan& plan, std::uint32_t model, std::string text) {
  View view;
  view.text = std::move(text);
  view.model = model;
  const Checkpoint& checkpoint = plan.models[model].checkpoint;
  view.tokenizer = checkpoint.path();
  view.items.reserve(checkpoint.entries().size());
  for (std::uint32_t e = 0; e < checkpoint.entries().size(); ++e) {
    const TensorInfo& info = checkpoint.entries()[e].info;
    view.items.push_back({info, model, e, info.dtype, nullptr, nullptr});
  }
  return view;
}

bool adapt(Disk& disk, Draft& draft, std::uint32_t view, const std::vector<Applied>& applied) {
  try {
    Overlay(disk, draft, view).run(applied);
    return true;
  } catch (const Error& e) {
    draft.problems.error(e.code(), e.what());
    return false;
  }
}

}  // namespace ingot::plan
