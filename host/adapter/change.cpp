#include "adapter/change.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "adapter/measure.hpp"
#include "adapter/step.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

// Elements that run together where steps need whole rows: bounds the memory of a call.
constexpr std::uint64_t kPanel = std::uint64_t{1} << 18;

using Steps = std::vector<std::unique_ptr<Step>>;

const Entry& entry_of(const Plan& plan, const Located& tensor) {
  return plan.models[tensor.place.model].checkpoint.entries()[tensor.place.entry];
}

void read_base(const Plan& plan, const Located& base, std::uint64_t first,
               std::span<float> values) {
  read_values(plan.models[base.place.model].checkpoint, entry_of(plan, base), first, values);
}

// Elements as stored, or f32 where the engine narrowed or rearranged them.
Dtype dtype_of(const Located& base, std::size_t bytes, std::size_t count) {
  return bytes == count * bits(base.info.dtype) / 8 ? base.info.dtype : Dtype::f32;
}

// Runs all steps over elements whose values stand in `values`; only whole rows where they need it.
template <class T>
void run(const Steps& steps, std::size_t from, std::uint64_t first, std::span<T> values,
         std::span<const T> base) {
  for (std::size_t i = from; i < steps.size(); ++i) steps[i]->run(Panel<T>{first, values, base});
}

// The receipt's account of an effect: what its numbers depend on beside the tensors.
nlohmann::ordered_json account(const Effect& effect) {
  nlohmann::ordered_json json{{"adapter", effect.adapter},
                              {"family", name(effect.family)},
                              {"weight", effect.weight},
                              {"scaling", effect.scaling}};
  if (effect.residual != AdapterConfig::Residual::none) {
    json["residual"] = effect.residual == AdapterConfig::Residual::pissa ? "pissa" : "olora";
    json["class"] = "bounded";
  }
  if (effect.times != 1) json["times"] = effect.times;
  if (effect.layout != Layout::linear) {
    json["layout"] = effect.layout == Layout::transposed ? "transposed" : "embedding";
  }
  const Cut& cut = effect.cut;
  if (cut.experts != 1) json["experts"] = cut.experts;
  if (cut.expert) json["expert"] = *cut.expert;
  if (cut.block) json["block"] = *cut.block;
  if (cut.from != 0 || cut.step != 1 || cut.at != 0 || cut.pace != 1 || cut.count != 0) {
    json["outputs"] = {{"from", cut.from},
                       {"step", cut.step},
                       {"at", cut.at},
                       {"pace", cut.pace},
                       {"count", cut.count}};
  }
  switch (effect.family) {
    case Family::oft:
      json["terms"] = effect.cayley_neumann ? effect.terms : 0;
      if (effect.constrained) json["eps"] = effect.eps;
      break;
    case Family::ia3:
      json["feedforward"] = effect.feedforward;
      break;
    case Family::hra:
      json["orthonormal"] = effect.orthonormal;
      break;
    case Family::miss:
      json["tiling"] = static_cast<int>(effect.tiling);
      break;
    default:
      break;
  }
  nlohmann::ordered_json parts = nlohmann::ordered_json::object();
  for (const Effect::Part& p : effect.parts) parts[std::string(word(p.piece))] = p.tensor.info.name;
  json["parts"] = std::move(parts);
  return json;
}

class Change;

class Changing final : public Working {
 public:
  Changing(const Change& change, const Plan& plan, Backend* backend,
           std::shared_ptr<const Steps> steps);
  void fill(std::uint64_t first, std::span<const std::byte> own, std::span<float> values) override;

  [[nodiscard]] const Steps& steps() const { return *steps_; }
  [[nodiscard]] const Measure& measure() const { return measure_; }

 private:
  void compute(std::uint64_t first, std::span<const std::byte> own, std::span<float> values) const;
  void edge(std::uint64_t first, std::span<float> values) const;
  void panel(std::uint64_t first, Dtype dtype, std::span<const std::byte> own,
             std::span<float> values) const;

  const Change& change_;
  const Plan& plan_;
  Backend* const backend_;
  const std::shared_ptr<const Steps> steps_;  // with recompute(), while this lives
  std::vector<const Factors*> leading_;       // products of the first steps, added in one sweep
  Measure measure_;
};

class Change final : public Derived {
 public:
  Change(Located base, std::vector<Effect> effects, std::optional<Dtype> output)
      : base_(std::move(base)), effects_(std::move(effects)), output_(output) {
    const Dtype dtype = base_.info.dtype;
    if (!has_codec(dtype) && dtype != Dtype::f64) {
      fail(Code::dtype, fmt::format("{} is {}, but an adapter can change only float tensors",
                                    base_.info.name, name(dtype)));
    }
    if (base_.info.count() == 0) {
      fail(Code::shape, fmt::format("{} has no elements to change", base_.info.name));
    }
    for (const Effect& effect : effects_) {
      if (effect.residual == AdapterConfig::Residual::none) continue;
      if (!stages_.empty()) {
        fail(Code::usage,
             fmt::format("{} and {} both subtract a part of {} when they are loaded, so they "
                         "cannot be used on one model together; convert one of them with PEFT",
                         stages_[0].effect->adapter, effect.adapter, base_.info.name));
      }
      stages_.push_back({&kResidual, &effect});
    }
    for (const Effect& effect : effects_) stages_.push_back({&kit_of(base_, effect), &effect});
    for (const Stage& stage : stages_) {
      const Kit& kit = *stage.kit;
      kit.check(base_, *stage.effect);
      whole_ = whole_ || kit.whole;
      looks_back_ = looks_back_ || (kit.looks_back && &stage != stages_.data());
      memory_ += kit.memory(base_, *stage.effect);
    }
    for (const Effect& effect : effects_) {
      for (const Effect::Part& p : effect.parts) ingredients_.push_back(p.tensor.place);
      if (effect.find(Piece::magnitude) != nullptr && stages_.size() > effects_.size()) {
        fail(Code::usage,
             fmt::format("{}: DoRA needs the norms of the base, but {} changes the base first",
                         effect.adapter, stages_[0].effect->adapter));
      }
    }
    std::sort(ingredients_.begin(), ingredients_.end());
    ingredients_.erase(std::unique(ingredients_.begin(), ingredients_.end()), ingredients_.end());
    if (output_) memory_ += Measure::memory(base_.info.count());
  }

  [[nodiscard]] bool own() const override { return true; }
  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return ingredients_; }
  [[nodiscard]] std::string describe() const override;
  [[nodiscard]] std::uint64_t memory() const override { return memory_; }

  [[nodiscard]] std::unique_ptr<Working> begin(const Plan& plan, Backend* backend) const override {
    auto steps = assemble(plan, backend);
    {
      const std::lock_guard lock(mutex_);
      alive_ = steps;
    }
    return std::make_unique<Changing>(*this, plan, backend, std::move(steps));
  }
  [[nodiscard]] std::vector<Truth> recompute(const Plan& plan, std::uint64_t first,
                                             std::uint64_t count,
                                             std::span<const float> own) const override;
  [[nodiscard]] std::string found(const Working& working) const override;
  // What an initialisation left of the base comes from a decomposition.
  [[nodiscard]] bool exact() const override { return stages_.size() == effects_.size(); }
  [[nodiscard]] bool products() const override {
    return std::any_of(stages_.begin(), stages_.end(), [](const Stage& stage) {
      return stage.kit == &kProduct || stage.kit == &kDora || stage.kit == &kDoraColumns;
    });
  }

  [[nodiscard]] const Located& base() const { return base_; }
  [[nodiscard]] std::uint64_t width() const { return matrix(base_.info.shape).width; }
  [[nodiscard]] bool whole() const { return whole_; }
  [[nodiscard]] bool looks_back() const { return looks_back_; }
  [[nodiscard]] std::optional<Dtype> output() const { return output_; }

 private:
  [[nodiscard]] std::shared_ptr<const Steps> assemble(const Plan& plan, Backend* backend) const {
    auto steps = std::make_shared<Steps>();
    for (const Stage& stage : stages_) {
      const bool fresh = &stage == stages_.data();
      steps->push_back(stage.kit->make({&plan, backend, &base_, fresh}, *stage.effect));
    }
    return steps;
  }

  struct Stage {
    const Kit* kit = nullptr;
    const Effect* effect = nullptr;
  };
  const Located base_;
  const std::vector<Effect> effects_;
  const std::optional<Dtype> output_;
  std::vector<Stage> stages_;
  std::vector<Ingredient> ingredients_;
  std::uint64_t memory_ = 0;
  bool whole_ = false, looks_back_ = false;
  mutable std::mutex mutex_;
  mutable std::weak_ptr<const Steps> alive_;  // of the last Working
};

Changing::Changing(const Change& change, const Plan& plan, Backend* backend,
                   std::shared_ptr<const Steps> steps)
    : change_(change),
      plan_(plan),
      backend_(backend),
      steps_(std::move(steps)),
      measure_(change.base().info.count(), change.output()) {
  for (const auto& step : *steps_) {
    if (step->factors() == nullptr) break;
    leading_.push_back(step->factors());
  }
}

void Changing::fill(std::uint64_t first, std::span<const std::byte> own, std::span<float> values) {
  if (values.empty()) return;
  const TensorInfo& base = change_.base().info;
  if (first > base.count() || values.size() > base.count() - first) {
    fail(Code::internal, fmt::format("{} has {} elements, its change was asked for {} from {} on",
                                     base.name, base.count(), values.size(), first));
  }
  compute(first, own, values);
  measure_.add(dtype_of(change_.base(), own.size(), values.size()), first, own, values);
}

void Changing::compute(std::uint64_t first, std::span<const std::byte> own,
                       std::span<float> values) const {
  const Dtype dtype = dtype_of(change_.base(), own.size(), values.size());
  const std::uint64_t bytes = bits(dtype) / 8;
  if (!change_.whole()) return panel(first, dtype, own, values);
  // Whole rows are computed where they lie, parts of rows from the row as its file has it.
  const std::uint64_t width = change_.width(), end = first + values.size();
  std::uint64_t at = first;
  if (at % width != 0) {
    const std::uint64_t stop = std::min(end, (at / width + 1) * width);
    edge(at, values.first(stop - at));
    at = stop;
  }
  const std::uint64_t most = std::max(kPanel / width, std::uint64_t{1}) * width;
  while (end - at >= width) {
    const std::uint64_t count = std::min(most, (end - at) / width * width);
    panel(at, dtype, own.subspan((at - first) * bytes, count * bytes),
          values.subspan(at - first, count));
    at += count;
  }
  if (at < end) edge(at, values.subspan(at - first));
}

void Changing::edge(std::uint64_t first, std::span<float> values) const {
  const std::uint64_t width = change_.width(), row = first / width * width;
  std::vector<float> own(width), whole(width);
  read_base(plan_, change_.base(), row, own);
  panel(row, Dtype::f32, std::as_bytes(std::span(own)), whole);
  std::copy_n(whole.begin() + static_cast<std::ptrdiff_t>(first - row), values.size(),
              values.begin());
}

void Changing::panel(std::uint64_t first, Dtype dtype, std::span<const std::byte> own,
                     std::span<float> values) const {
  std::vector<float> base;
  if (change_.looks_back()) {
    base.resize(values.size());
    to_floats(dtype, own, base);
  }
  if (leading_.empty()) {
    to_floats(dtype, own, values);
  } else if (has_codec(dtype)) {
    backend_->amend(dtype, own.data(), leading_, first, values);
  } else {
    std::vector<float> narrowed(values.size());
    to_floats(dtype, own, narrowed);
    backend_->amend(Dtype::f32, std::as_bytes(std::span(narrowed)).data(), leading_, first, values);
  }
  run<float>(*steps_, leading_.size(), first, values, base);
}

std::vector<Truth> Change::recompute(const Plan& plan, std::uint64_t first, std::uint64_t count,
                                     std::span<const float> own) const {
  std::shared_ptr<const Steps> steps;
  {
    const std::lock_guard lock(mutex_);
    steps = alive_.lock();
  }
  if (!steps) steps = assemble(plan, nullptr);
  // Whole rows around the elements, where steps need them.
  std::uint64_t low = first, high = first + count;
  std::vector<float> stored(own.begin(), own.end());
  if (whole_) {
    low = first / width() * width();
    high = (high + width() - 1) / width() * width();
    stored.resize(high - low);
    read_base(plan, base_, low, stored);
  }
  std::vector<Single> base(stored.begin(), stored.end());
  std::vector<Single> values = base;
  std::vector<bool> open(values.size(), plan.options.fast_product && products());
  if (exact()) {
    run<Single>(*steps, 0, low, values, base);
  } else {
    // What the first step, a decomposition, leaves is one number but near the middle between two.
    // Steps on whole rows carry that to all of a row.
    steps->front()->run(Panel<Single>{low, values, base});
    for (std::uint64_t i = 0; i < values.size(); ++i) {
      if (!(values[i].slack > 0)) continue;
      const std::uint64_t begin = whole_ ? i / width() * width() : i;
      std::fill_n(open.begin() + static_cast<std::ptrdiff_t>(begin), whole_ ? width() : 1, true);
    }
    run<Single>(*steps, 1, low, values, base);
  }
  std::vector<Truth> truths(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t at = first - low + i;
    truths[i] = {values[at].value, values[at].slack, !open[at]};
  }
  return truths;
}

std::string Change::found(const Working& working) const {
  const auto& changing = static_cast<const Changing&>(working);
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  std::uint64_t skipped = 0;
  for (const auto& step : changing.steps()) skipped += step->skipped();
  if (skipped != 0) json["skipped"] = skipped;
  if (output_) {
    const Measure::Result result = changing.measure().result();
    // NaN or infinity in the base: no figure means anything, and JSON could not say it.
    const bool finite = std::isfinite(result.weight) && std::isfinite(result.change) &&
                        std::isfinite(result.largest) && std::isfinite(result.survived);
    if (!finite) return json.empty() ? std::string() : json.dump();
    json["change"] = result.change;
    json["largest"] = result.largest;
    json["weight"] = result.weight;
    json["survived"] = result.survived;
  }
  return json.empty() ? std::string() : json.dump();
}

std::string Change::describe() const {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Effect& effect : effects_) list.push_back(account(effect));
  return nlohmann::ordered_json{{"effects", std::move(list)}}.dump();
}

}  // namespace

const Located* Effect::find(Piece piece) const noexcept {
  for (const Part& p : parts) {
    if (p.piece == piece) return &p.tensor;
  }
  return nullptr;
}

std::shared_ptr<const Derived> change(const Located& base, std::vector<Effect> effects,
                                      std::optional<Dtype> output) {
  // The forward pass turns the input by one OFT adapter after the other, so the weight meets the
  // last one first. An embedding's rows are what it gives, and they are turned in the order given.
  const auto turns = [](const Effect& effect) {
    return effect.family == Family::oft && effect.layout != Layout::embedding;
  };
  for (auto i = effects.begin(); i != effects.end();) {
    i = std::find_if(i, effects.end(), turns);
    const auto end = std::find_if_not(i, effects.end(), turns);
    std::reverse(i, end);
    i = end;
  }
  return std::make_shared<Change>(base, std::move(effects), output);
}

}  // namespace ingot
