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
#include "ingot/methods.hpp"
#include "plain.hpp"
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
// infinities and subnormals among them, and the NaN of the largest pattern. `near` gives values
// that a fine-tune would have: many equal the base.
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
    if (odd != 0 && random.below(odd) == 0) {
      word = random.below(8) == 0 ? 0x7fffffffU >> (32 - 8 * width)
                                  : static_cast<std::uint32_t>(random.next());
    }
    std::memcpy(&bytes[i * width], &word, width);
  }
  return bytes;
}

// One tensor to merge, whole in memory.
struct Case {
  Work work;
  math::Facts facts;
  std::vector<double> lines;
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
  // All of it, with what was measured, or elements that lie elsewhere in a larger tensor.
  [[nodiscard]] Chunk chunk(const std::vector<const std::byte*>& bytes,
                            std::uint64_t first = 0) const {
    return {&work,   first,  static_cast<std::uint32_t>(count()),   bytes.data(),
            nullptr, &facts, lines.empty() ? nullptr : lines.data()};
  }
};

// What to merge, and with which parameters: names, since methods say themselves what they have.
struct Recipe {
  std::string method = "linear";
  int sources = 3;
  double density = 0.35;
  bool flipped = false;  // flags the other way round than by default
  bool base = true;      // where the method leaves it to the recipe
};

// How many sources a method takes beside the base.
inline int least_sources(const math::Method& method) {
  return method.card.least - (method.card.base == math::Base::pivot ? 1 : 0);
}
inline int most_sources(const math::Method& method) {
  return method.card.most - (method.card.base == math::Base::pivot ? 1 : 0);
}

// False for a pass over lines where the rule has none.
inline bool has_places(const math::Rule& rule, int pass) {
  const math::Method& method = math::method(rule.method);
  return method.passes[static_cast<std::size_t>(pass)].kind != math::Pass::lines ||
         method.lines(rule) != math::Lines::none;
}

// Every method of the list, over every number of sources that kernels or loops tell apart, with
// flags either way and with and without a base.
inline std::vector<Recipe> all_recipes() {
  std::vector<Recipe> list;
  std::size_t n = 0;
  for (const math::Method& method : math::kMethods)
    for (const int sources : {1, 2, 3, 4, 5, 7}) {
      if (sources < least_sources(method) || sources > most_sources(method)) continue;
      for (const bool flipped : {false, true}) {
        const double density = std::vector{0.35, 0.5, 0.8, 0.2, 0.01}[n++ % 5];
        list.push_back({method.card.name, sources, density, flipped, true});
        if (method.card.base == math::Base::optional)
          list.push_back({method.card.name, sources, density, flipped, false});
      }
    }
  return list;
}

// A value for a parameter of the tensor or of a source: within its range, seldom its default.
inline double value_of(const math::Parameter& p, const Recipe& recipe, int source) {
  const std::string name = p.name;
  if (p.kind == math::Kind::boolean) return (p.fallback != 0) != recipe.flipped ? 1 : 0;
  if (name == "density") return source == 4 ? 1.0 : source == 5 ? 0.0 : recipe.density;
  if (p.kind != math::Kind::real || p.low > -math::kLargest) return p.fallback;
  if (p.scope != math::Scope::global) return source % 3 == 1 ? -0.4 : 0.9 - 0.1 * source;
  return p.required ? 0.3 : 0.7 * p.fallback;
}

inline void set_parameters(math::Rule& rule, const Recipe& recipe) {
  math::set_defaults(rule);
  for (const math::Parameter& p : math::method(rule.method).parameters) {
    if (p.scope == math::Scope::global) {
      math::set_global(rule, p.name, value_of(p, recipe, 0));
      continue;
    }
    for (int s = 0; s < rule.sources; ++s) math::set_local(rule, s, p.name, value_of(p, recipe, s));
  }
}

// A length of the last dimension that divides a tensor: any of them, 0 for one dimension.
inline std::uint64_t width_of(Random& random, std::uint64_t count) {
  std::vector<std::uint64_t> divisors = {0};
  for (std::uint64_t d = 1; d <= count; ++d)
    if (count % d == 0) divisors.push_back(d);
  return divisors[random.below(divisors.size())];
}

// Facts by plain.hpp: none of the code under test.
inline Case make(const Recipe& recipe, std::uint64_t count, const std::vector<Dtype>& dtypes,
                 Dtype output, std::uint64_t seed, std::uint64_t odd = 64,
                 math::Overflow overflow = math::Overflow::saturate) {
  Case c;
  Random random(seed);
  math::Rule& rule = c.work.rule;
  rule.method = math::find(recipe.method.c_str());
  const math::Method& method = math::method(rule.method);
  rule.sources = recipe.sources;
  rule.base = method.card.base == math::Base::origin || method.card.base == math::Base::pivot ||
              (method.card.base == math::Base::optional && recipe.base);
  rule.elements = count;
  rule.seed = random.next();
  rule.width = width_of(random, count);
  rule.height = rule.width == 0 ? 0 : count / rule.width;
  for (int s = 0; s < recipe.sources; ++s) rule.stream[s] = random.next();
  set_parameters(rule, recipe);
  // Values that do not go together: the defaults of all but what has none.
  if (math::invalid(rule) != nullptr) {
    Recipe plain = recipe;
    plain.density = 0.5;
    plain.flipped = false;
    set_parameters(rule, plain);
  }
  c.work.output = output;
  c.work.overflow = overflow;
  const std::size_t operands = static_cast<std::size_t>(recipe.sources) + (rule.base ? 1U : 0U);
  Inputs numbers(operands);
  for (std::size_t i = 0; i < operands; ++i) {
    const Dtype dtype = dtypes[i % dtypes.size()];
    c.work.inputs.push_back(dtype);
    c.inputs.push_back(
        elements(random, count, dtype, odd, rule.base && i > 0 ? numbers.data() : nullptr));
    for (std::uint64_t e = 0; e < count; ++e)
      numbers[i].push_back(decode(c.inputs[i].data(), e, dtype));
  }
  c.name = recipe.method + (rule.base ? " with a base" : "") + " of " +
           std::to_string(recipe.sources) + ", " + std::to_string(count) + " elements in rows of " +
           std::to_string(rule.width) + (recipe.flipped ? ", flags flipped" : "") +
           ", first input " + std::string(name(c.work.inputs.empty() ? output : c.work.inputs[0])) +
           ", output " + std::string(name(output));
  Plain measured = measure(rule, numbers);
  c.facts = std::move(measured.facts);
  c.lines = std::move(measured.lines);
  return c;
}

}  // namespace ingot::test
