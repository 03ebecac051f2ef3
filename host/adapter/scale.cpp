// What changes elements one by one: (IA)3, biases of lora_B, trained tokens.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "adapter/step.hpp"
#include "ingot/math/product.hpp"
#include "ingot/math/scale.hpp"

namespace ingot {
namespace {

// (IA)3. An element's number within the vector is (index / stride) mod period, and in a grouped
// convolution's inputs one period further for each group of outputs.
struct Scales {
  std::uint64_t stride = 1, period = 1, group = 0;  // group: elements of one group of outputs
};

Scales scales(const Located& base, const Effect& effect) {
  const Located& l = part(base, effect, Piece::l);
  const Shape& shape = base.info.shape;
  const std::uint64_t count = base.info.count();
  const auto stop = [&](std::uint64_t expected) {
    if (l.info.count() != expected || expected == 0) {
      misfit(base, effect, l, fmt::format("{} elements", expected));
    }
  };
  if (shape.rank() < 2) {
    if (effect.feedforward) {
      fail(Code::usage, fmt::format("{}: scales of inputs do not change the bias {}",
                                    effect.adapter, base.info.name));
    }
    stop(count);
    return {1, count, 0};
  }
  const Matrix m = matrix(shape);
  const bool rows = effect.feedforward == (effect.layout != Layout::linear);
  if (rows) {
    stop(m.height);
    return {m.width, m.height, 0};
  }
  // A grouped convolution has inputs / groups columns, and its vector all inputs.
  const std::uint64_t inputs = shape[1], found = l.info.count();
  const std::uint64_t groups = shape.rank() > 2 ? std::max(found / inputs, std::uint64_t{1}) : 1;
  stop(inputs * groups);
  const std::uint64_t taps = m.width / inputs;
  if (groups == 1) return {taps, inputs, 0};
  if (m.height % groups != 0) {
    misfit(base, effect, l, fmt::format("groups that divide {} outputs", m.height));
  }
  return {taps, inputs, count / groups};
}

void check_scales(const Located& base, const Effect& effect) {
  static_cast<void>(scales(base, effect));
}

class Scaling final : public Formula<Scaling> {
 public:
  Scaling(Scales scales, std::vector<float> gains) : scales_(scales), gains_(std::move(gains)) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    std::uint64_t run = 0, at = 0;  // elements left that share a gain
    for (std::uint64_t i = 0; i < panel.values.size(); ++i, --run) {
      if (run == 0) {
        const std::uint64_t index = panel.first + i;
        at = index / scales_.stride % scales_.period;
        if (scales_.group != 0) at += index / scales_.group * scales_.period;
        run = scales_.stride - index % scales_.stride;
      }
      panel.values[i] = math::scale(panel.values[i], T(gains_[at]));
    }
  }

 private:
  const Scales scales_;
  const std::vector<float> gains_;
};

std::unique_ptr<Step> make_scales(const Scene& scene, const Effect& effect) {
  std::vector<float> gains = load(*scene.plan, effect, part(*scene.base, effect, Piece::l));
  for (float& g : gains) g = math::gain(static_cast<double>(g), effect.weight);
  return std::make_unique<Scaling>(scales(*scene.base, effect), std::move(gains));
}

std::uint64_t memory_of_parts(const Located&, const Effect& effect) {
  std::uint64_t count = effect.rows.size() * 4;
  for (const Effect::Part& p : effect.parts) count += p.tensor.info.count();
  return count * sizeof(float);
}

void check_bias(const Located& base, const Effect& effect) {
  const Located& bias = part(base, effect, Piece::bias);
  if (bias.info.count() != base.info.count() || base.info.count() == 0) {
    misfit(base, effect, bias, fmt::format("{} elements", base.info.count()));
  }
}

class Bias final : public Formula<Bias> {
 public:
  Bias(float scale, std::vector<float> added) : scale_(scale), added_(std::move(added)) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    for (std::uint64_t i = 0; i < panel.values.size(); ++i) {
      T& value = panel.values[i];
      value = math::amend(value, T(scale_), T(added_[panel.first + i]));
    }
  }

 private:
  const float scale_;
  const std::vector<float> added_;
};

std::unique_ptr<Step> make_bias(const Scene& scene, const Effect& effect) {
  return std::make_unique<Bias>(static_cast<float>(effect.weight * effect.scaling * effect.times),
                                load(*scene.plan, effect, part(*scene.base, effect, Piece::bias)));
}

void check_tokens(const Located& base, const Effect& effect) {
  const Located& block = part(base, effect, Piece::block);
  const Shape &shape = base.info.shape, &rows = block.info.shape;
  if (shape.rank() != 2 || rows.rank() != 2 || rows[1] != shape[1] || shape[1] == 0 ||
      rows[0] != effect.rows.size()) {
    misfit(base, effect, block,
           fmt::format("{} rows of {} elements", effect.rows.size(), matrix(shape).width));
  }
  std::vector<std::uint64_t> sorted = effect.rows;
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty() && sorted.back() >= shape[0]) {
    fail(Code::shape, fmt::format("{}: token {} was trained, {} has {} rows", effect.adapter,
                                  sorted.back(), base.info.name, shape[0]));
  }
  const auto twin = std::adjacent_find(sorted.begin(), sorted.end());
  if (twin != sorted.end()) {
    fail(Code::format,
         fmt::format("{}: token {} is listed twice for {}", effect.adapter, *twin, base.info.name));
  }
}

class Tokens final : public Formula<Tokens> {
 public:
  Tokens(const Effect& effect, std::uint64_t width, std::vector<float> values)
      : width_(width),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1),
        values_(std::move(values)) {
    for (std::uint64_t i = 0; i < effect.rows.size(); ++i) places_.emplace_back(effect.rows[i], i);
    std::sort(places_.begin(), places_.end());
  }

  template <class T>
  void apply(const Panel<T>& panel) const {
    const std::uint64_t end = panel.first + panel.values.size();
    auto place = std::lower_bound(places_.begin(), places_.end(),
                                  std::pair(panel.first / width_, std::uint64_t{0}));
    for (; place != places_.end() && place->first * width_ < end; ++place) {
      const std::uint64_t row = place->first * width_;
      const std::uint64_t low = std::max(row, panel.first), high = std::min(row + width_, end);
      for (std::uint64_t i = low; i < high; ++i) {
        T& value = panel.values[i - panel.first];
        value = math::blend(T(weight_), full_, value, T(values_[place->second * width_ + i - row]));
      }
    }
  }

 private:
  const std::uint64_t width_;
  const float weight_;
  const bool full_;
  const std::vector<float> values_;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> places_;  // row of the base, row of values_
};

std::unique_ptr<Step> make_tokens(const Scene& scene, const Effect& effect) {
  return std::make_unique<Tokens>(
      effect, scene.base->info.shape[1],
      load(*scene.plan, effect, part(*scene.base, effect, Piece::block)));
}

}  // namespace

const Kit kScale{check_scales, memory_of_parts, make_scales, false, false};
const Kit kBias{check_bias, memory_of_parts, make_bias, false, false};
const Kit kTokens{check_tokens, memory_of_parts, make_tokens, false, false};

}  // namespace ingot
