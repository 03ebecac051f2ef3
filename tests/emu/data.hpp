// What the kernel tests merge: tensors of every dtype with every kind of value, and rules over
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/methods.hpp"
#include "support.hpp"

namespace ingot::test {

inline constexpr Dtype kDtypes5[] = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8_e4m3,
                                     Dtype::f8_e5m2};

inline math::Format format_of(Dtype dtype) {
  for (std::size_t i = 0; i < 5; ++i)
    if (kDtypes5[i] == dtype)
      return std::vector{math::Format::f32, math::Format::f16, math::Format::bf16,
                         math::Format::e4m3, math::Format::e5m2}[i];
  return math::Format::f32;
}

inline std::uint32_t encode(float x, Dtype dtype) {
  const math::Overflow o = math::Overflow::propagate;
  switch (format_of(dtype)) {
    case math::Format::f32:
      return math::Codec<math::Format::f32>::encode(x, o);
    case math::Format::f16:
      return math::Codec<math::Format::f16>::encode(x, o);
    case math::Format::bf16:
      return math::Codec<math::Format::bf16>::encode(x, o);
    case math::Format::e4m3:
      return math::Codec<math::Format::e4m3>::encode(x, o);
    default:
      return math::Codec<math::Format::e5m2>::encode(x, o);
  }
}

inline float decode(const std::byte* data, std::uint64_t i, Dtype dtype) {
  std::uint32_t w = 0;
  const std::size_t width = bits(dtype) / 8;
  std::memcpy(&w, data + i * width, width);
  switch (format_of(dtype)) {
    case math::Format::f32:
      return math::Codec<math::Format::f32>::decode(w);
    case math::Format::f16:
      return math::Codec<math::Format::f16>::decode(static_cast<std::uint16_t>(w));
    case math::Format::bf16:
      return math::Codec<math::Format::bf16>::decode(static_cast<std::uint16_t>(w));
    case math::Format::e4m3:
      return math::Codec<math::Format::e4m3>::decode(static_cast<std::uint8_t>(w));
    default:
      return math::Codec<math::Format::e5m2>::decode(static_cast<std::uint8_t>(w));
  }
}

// `count` stored elements: weights like a model's; one in `odd` any bit pattern at all, NaN,
// infinities and subnormals among them. `near` gives values that a fine-tune would have: many equal
// the base.
inline std::vector<std::byte> elements(Random& random, std::uint64_t count, Dtype dtype,
                                       std::uint64_t odd,
                                       const std::vector<float>* near = nullptr) {
  const std::size_t width = bits(dtype) / 8;
  std::vector<std::byte> bytes(count * width);
  for (std::uint64_t i = 0; i < count; ++i) {
    double x = (random.uniform() + random.uniform() + random.uniform() - 1.5) * 0.04;
    if (near != nullptr) {
      const double step = (random.uniform() - 0.5) * 0.004;
      x = random.below(4) == 0 ? (*near)[i] : (*near)[i] + step;
    }
    std::uint32_t word = encode(static_cast<float>(x), dtype);
    if (odd != 0 && random.below(odd) == 0) word = static_cast<std::uint32_t>(random.next());
    std::memcpy(&bytes[i * width], &word, width);
  }
  return bytes;
}

// One tensor to merge, whole in memory.
struct Case {
  Work work;
  math::Facts facts;
  std::vector<std::vector<std::byte>> inputs;
  std::string name;

  [[nodiscard]] std::uint64_t count() const { return work.rule.elements; }
  [[nodiscard]] std::size_t output_width() const { return bits(work.output) / 8; }
  [[nodiscard]] std::vector<const std::byte*> pointers(std::uint64_t first) const {
    std::vector<const std::byte*> p;
    for (std::size_t i = 0; i < inputs.size(); ++i)
      p.push_back(inputs[i].data() + first * (bits(work.inputs[i]) / 8));
    return p;
  }
};

struct Recipe {
  const char* method = "linear";
  int sources = 3;
  double density = 0.35;
  bool normalize = true;
  bool rescale = true;
  math::Vote vote = math::Vote::none;  // other than the method's own
  bool base = true;                    // where the method takes one; adapters merge without
};

// Selections by sorting, folds by walking: none of the code under test.
inline Case make(const Recipe& recipe, std::uint64_t count, const std::vector<Dtype>& dtypes,
                 Dtype output, std::uint64_t seed, std::uint64_t odd = 64,
                 math::Overflow overflow = math::Overflow::saturate) {
  Case c;
  Random random(seed);
  math::Rule& rule = c.work.rule;
  rule.method = math::find(recipe.method);
  const math::Method& method = math::method(rule.method);
  rule.sources = recipe.sources;
  rule.base = method.base != math::Base::ignored && recipe.base;
  rule.elements = count;
  rule.seed = random.next();
  if (method.formula == math::Formula::slerp) {
    rule.globals[math::kTGlobal] = 0.3;
  } else if (method.formula != math::Formula::scale) {
    rule.globals[math::kNormalizeGlobal] = recipe.normalize ? 1 : 0;
    rule.globals[math::kLambdaGlobal] = method.base == math::Base::origin ? 0.7 : 0;
    rule.globals[math::kRescaleGlobal] = recipe.rescale ? 1 : 0;
  }
  for (int s = 0; s < recipe.sources; ++s) {
    rule.locals[s][math::kWeightLocal] = s % 3 == 1 ? -0.4 : 0.9 - 0.1 * s;
    rule.locals[s][math::kDensityLocal] = s == 4 ? 1.0 : s == 5 ? 0.0 : recipe.density;
    rule.stream[s] = random.next();
  }
  c.work.output = output;
  c.work.overflow = overflow;
  const std::size_t operands = static_cast<std::size_t>(recipe.sources) + (rule.base ? 1U : 0U);
  std::vector<float> base;
  for (std::size_t i = 0; i < operands; ++i) {
    const Dtype dtype = dtypes[i % dtypes.size()];
    c.work.inputs.push_back(dtype);
    c.inputs.push_back(elements(random, count, dtype, odd, rule.base && i > 0 ? &base : nullptr));
    if (i == 0)
      for (std::uint64_t e = 0; e < count; ++e)
        base.push_back(decode(c.inputs[0].data(), e, dtype));
  }
  if (!rule.base) base.assign(count, 0.0F);
  c.name = std::string(recipe.method) + (recipe.base ? "" : " without a base") + " of " +
           std::to_string(recipe.sources) + ", " + std::to_string(count) +
           " elements, first input " +
           std::string(name(c.work.inputs.empty() ? output : c.work.inputs[0])) + ", output " +
           std::string(name(output));

  const std::size_t shift = rule.base ? 1 : 0;
  const auto x = [&](int s, std::uint64_t e) {
    const std::size_t i = static_cast<std::size_t>(s) + shift;
    return decode(c.inputs[i].data(), e, c.work.inputs[i]);
  };
  std::vector<math::Selection> selections(math::kSources);
  for (int s = 0; s < recipe.sources; ++s) {
    const std::uint64_t k = math::kept(rule, s);
    if (k == 0 || k == count) continue;
    std::vector<std::pair<std::uint32_t, std::uint64_t>> keys;
    for (std::uint64_t e = 0; e < count; ++e)
      keys.emplace_back(math::key(math::delta(x(s, e), base[e])), e);
    const auto better = [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    const auto nth = keys.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(keys.begin(), nth, keys.end(), better);
    selections[static_cast<std::size_t>(s)] = {nth->first, nth->second, false};
  }
  c.facts = math::prepare(rule, selections.data());
  if (recipe.vote != math::Vote::none) {
    c.facts.vote = recipe.vote;
    c.facts.divisor = math::Divisor::count;
  }
  // Any sums do: what they should be is another test's question.
  std::vector<double> folds;
  for (int f = 0; f < math::needs(rule).folds; ++f) folds.push_back(1.0 + 0.25 * f);
  if (!folds.empty()) math::conclude(rule, folds.data(), c.facts);
  return c;
}

}  // namespace ingot::test
