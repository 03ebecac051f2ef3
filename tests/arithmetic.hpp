// What tests of the arithmetic share: seeded tensors with awkward values, stored words of any
// format, one tensor's merge driven through a Backend, and the same merge element by element.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "cpu/isa.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/methods.hpp"
#include "measure/measure.hpp"
#include "plain.hpp"
#include "support.hpp"

namespace ingot::test {

inline constexpr Dtype kFloats[] = {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8_e4m3,
                                    Dtype::f8_e5m2};

inline std::size_t bytes_of(Dtype dtype) { return bits(dtype) / 8; }

template <math::Format f>
float load(const std::byte* at) {
  typename math::Codec<f>::Word word;
  std::memcpy(&word, at, sizeof word);
  return math::Codec<f>::decode(word);
}

template <math::Format f>
void store(std::byte* at, float x, math::Overflow overflow) {
  const typename math::Codec<f>::Word word = math::Codec<f>::encode(x, overflow);
  std::memcpy(at, &word, sizeof word);
}

inline float load(Dtype dtype, const std::byte* at) {
  switch (dtype) {
    case Dtype::f32:
      return load<math::Format::f32>(at);
    case Dtype::f16:
      return load<math::Format::f16>(at);
    case Dtype::bf16:
      return load<math::Format::bf16>(at);
    case Dtype::f8_e4m3:
      return load<math::Format::e4m3>(at);
    default:
      return load<math::Format::e5m2>(at);
  }
}

inline void store(Dtype dtype, std::byte* at, float x,
                  math::Overflow overflow = math::Overflow::saturate) {
  switch (dtype) {
    case Dtype::f32:
      return store<math::Format::f32>(at, x, overflow);
    case Dtype::f16:
      return store<math::Format::f16>(at, x, overflow);
    case Dtype::bf16:
      return store<math::Format::bf16>(at, x, overflow);
    case Dtype::f8_e4m3:
      return store<math::Format::e4m3>(at, x, overflow);
    default:
      return store<math::Format::e5m2>(at, x, overflow);
  }
}

// Stored elements of one dtype.
struct Column {
  Dtype dtype = Dtype::f32;
  std::vector<std::byte> bytes;

  Column() = default;
  Column(Dtype type, std::uint64_t count) : dtype(type), bytes(count * bytes_of(type)) {}
  Column(Dtype type, const std::vector<float>& values) : Column(type, values.size()) {
    for (std::size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }

  [[nodiscard]] std::uint64_t count() const { return bytes.size() / bytes_of(dtype); }
  [[nodiscard]] float at(std::uint64_t i) const {
    return load(dtype, bytes.data() + i * bytes_of(dtype));
  }
  void set(std::uint64_t i, float x) { store(dtype, bytes.data() + i * bytes_of(dtype), x); }
};

// The sum of twelve uniforms less six: near enough to a normal number, the same everywhere.
inline float normal(Random& random) {
  double sum = -6.0;
  for (int i = 0; i < 12; ++i) sum += random.uniform();
  return static_cast<float>(sum);
}

enum class Flavour {
  plain,    // what weights look like
  special,  // with NaN, infinities, subnormals, signed zeros, the largest finite numbers
};

// A base like trained weights and fine-tunes close to it, so that many differences are equal.
inline std::vector<Column> family(Dtype dtype, std::uint64_t count, int models, std::uint64_t seed,
                                  Flavour flavour) {
  Random random(seed);
  std::vector<Column> out(static_cast<std::size_t>(models), Column(dtype, count));
  static const float kOdd[] = {NAN,           -NAN,     INFINITY, -INFINITY,      0.0F,
                               -0.0F,         1e-45F,   -1e-45F,  1.1754944e-38F, -5.9e-39F,
                               3.4028235e38F, -3.4e38F, 65504.F,  -65520.F,       5.9604645e-8F,
                               -3.0e-8F,      448.F,    -464.F,   57344.F,        0.001953125F,
                               1.0F,          -1.0F};
  for (std::uint64_t i = 0; i < count; ++i) {
    const float centre = normal(random) * 0.5F;
    for (int m = 0; m < models; ++m) {
      float x = m == 0 ? centre : centre + normal(random) * 0.02F;
      if (flavour == Flavour::special && random.below(8) == 0)
        x = kOdd[random.below(std::size(kOdd))];
      out[static_cast<std::size_t>(m)].set(i, x);
    }
  }
  return out;
}

// One tensor to merge. Inputs in the order of Work::inputs.
struct Merge {
  Work work;
  std::vector<Column> inputs;

  [[nodiscard]] std::uint64_t count() const { return inputs.at(0).count(); }
  [[nodiscard]] float base(std::uint64_t i) const {
    return work.rule.base ? inputs[0].at(i) : 0.0F;
  }
  [[nodiscard]] float source(int s, std::uint64_t i) const {
    return inputs[static_cast<std::size_t>(s) + (work.rule.base ? 1 : 0)].at(i);
  }
};

// A method over these inputs: its defaults, and of what a recipe must say 0.35 for the tensor and
// 0.6, 0.4, 0.5, then 0.1 more for each further source. The base is the first input where the
// method has one, or may have one and `base`. The tensor has rows of `width` elements, or one
// dimension.
inline Merge merge_of(const std::string& method, std::vector<Column> inputs,
                      std::uint64_t width = 0, bool base = true) {
  Merge merge;
  math::Rule& rule = merge.work.rule;
  rule.method = math::find(method.c_str());
  if (rule.method < 0) throw std::runtime_error("no method " + method);
  const math::Method& m = math::method(rule.method);
  rule.base = m.card.base == math::Base::origin || m.card.base == math::Base::pivot ||
              (m.card.base == math::Base::optional && base);
  rule.sources = static_cast<std::int32_t>(inputs.size()) - (rule.base ? 1 : 0);
  rule.elements = inputs.at(0).count();
  rule.width = width;
  rule.height = width == 0 ? 0 : rule.elements / width;
  rule.seed = 0x0123456789abcdefULL;
  math::set_defaults(rule);
  static constexpr double kWeights[] = {0.6, 0.4, 0.5};
  for (const math::Parameter& p : m.parameters) {
    if (p.required && p.scope == math::Scope::global) (void)math::set_global(rule, p.name, 0.35);
    if (std::string(p.name) != "weight") continue;
    for (int s = 0; s < rule.sources; ++s) {
      (void)math::set_local(rule, s, p.name, s < 3 ? kWeights[s] : 0.5 + 0.1 * (s - 2));
    }
  }
  for (int s = 0; s < rule.sources; ++s) {
    rule.stream[s] = Random(static_cast<std::uint64_t>(s)).next();
  }
  for (const Column& column : inputs) merge.work.inputs.push_back(column.dtype);
  merge.work.output = inputs[0].dtype;
  merge.inputs = std::move(inputs);
  return merge;
}

inline void set_density(Merge& merge, double density) {
  for (int s = 0; s < merge.work.rule.sources; ++s) {
    (void)math::set_local(merge.work.rule, s, "density", density);
  }
}

// Chunks of a merge, their addresses `skew` elements past an aligned buffer.
class Chunks {
 public:
  Chunks(const Merge& merge, std::size_t skew) : merge_(merge), skew_(skew) {
    for (const Column& column : merge.inputs) {
      const std::size_t width = bytes_of(column.dtype);
      storage_.emplace_back(column.bytes.size() + skew * width + 64);
      std::copy(column.bytes.begin(), column.bytes.end(), aligned(storage_.back()) + skew * width);
    }
  }

  // Calls body(chunk) for each chunk in order.
  template <class Body>
  void each(Body body) {
    for (std::uint64_t c = 0; c * kChunk < merge_.count(); ++c) one(c, body);
  }
  // The same for one chunk.
  template <class Body>
  void one(std::uint64_t index, Body body) {
    const std::uint64_t first = index * kChunk;
    std::vector<const std::byte*> addresses;
    for (std::size_t i = 0; i < storage_.size(); ++i) {
      addresses.push_back(aligned(storage_[i]) +
                          (skew_ + first) * bytes_of(merge_.inputs[i].dtype));
    }
    Chunk chunk;
    chunk.work = &merge_.work;
    chunk.first = first;
    chunk.count = static_cast<std::uint32_t>(std::min(kChunk, merge_.count() - first));
    chunk.inputs = addresses.data();
    body(chunk);
  }

 private:
  static std::byte* aligned(std::vector<std::byte>& bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
    return bytes.data() + (64 - address % 64) % 64;
  }

  const Merge& merge_;
  std::size_t skew_;
  std::vector<std::vector<std::byte>> storage_;
};

// All that is measured of a merge, as the engine measures it with this backend. Throws
// Error{usage} where the method refuses the tensor.
inline Measurements settle(Backend& backend, const Merge& merge, std::size_t skew = 0) {
  static const std::string kName = "tensor";
  Chunks chunks(merge, skew);
  Measuring measuring(merge.work.rule, kName, false);
  while (!measuring.done()) {
    for (const std::uint32_t c : std::vector<std::uint32_t>(measuring.chunks())) {
      chunks.one(c, [&](const Chunk& chunk) { measuring.visit(backend, chunk); });
    }
    measuring.advance();
  }
  return measuring.known();
}

// The same by the definitions; nothing where the method refuses the tensor.
inline std::optional<Measurements> by_definition(const Merge& merge) {
  Inputs inputs;
  for (const Column& column : merge.inputs) {
    std::vector<float>& values = inputs.emplace_back(column.count());
    for (std::uint64_t i = 0; i < column.count(); ++i) values[i] = column.at(i);
  }
  Plain plain = measure(merge.work.rule, inputs);
  if (plain.refused != nullptr) return std::nullopt;
  return Measurements{std::move(plain.facts), std::move(plain.lines)};
}

struct Merged {
  Column output;
  Tally tally;
};

// Through the backend, chunk by chunk.
inline Merged apply(Backend& backend, const Merge& merge, const Measurements& known,
                    std::size_t skew = 0) {
  Merged merged;
  merged.output = Column(merge.work.output, merge.count());
  const std::size_t width = bytes_of(merge.work.output);
  std::vector<std::byte> out(merged.output.bytes.size() + skew * width);
  Chunks(merge, skew).each([&](Chunk chunk) {
    chunk.facts = &known.facts;
    chunk.lines = known.lines.empty() ? nullptr : known.lines.data();
    Backend::Item item{chunk, out.data() + (skew + chunk.first) * width, &merged.tally};
    backend.apply({&item, 1});
  });
  std::copy(out.begin() + static_cast<std::ptrdiff_t>(skew * width), out.end(),
            merged.output.bytes.begin());
  return merged;
}

// Element by element through evaluate().
inline Merged evaluate_all(const Merge& merge, const Measurements& known) {
  Merged merged;
  merged.output = Column(merge.work.output, merge.count());
  const math::Rule& rule = merge.work.rule;
  for (std::uint64_t i = 0; i < merge.count(); ++i) {
    float x[math::kSources];
    for (int s = 0; s < rule.sources; ++s) x[s] = merge.source(s, i);
    double line[math::kLineFacts] = {};
    known.line(rule, i, line);
    const math::Outcome<float> outcome =
        math::evaluate<float>(rule, known.facts, x, merge.base(i), i, line);
    store(merge.work.output, merged.output.bytes.data() + i * bytes_of(merge.work.output),
          outcome.value, merge.work.overflow);
    for (int s = 0; s < rule.sources; ++s) {
      merged.tally.kept[s] += (outcome.kept >> s) & 1u;
    }
    merged.tally.conflicts += outcome.conflict ? 1 : 0;
    if (rule.base) {
      std::uint32_t change = math::bits(outcome.change) & 0x7fffffffu;
      if (change > 0x7f800000u) change = 0x7fc00000u;
      merged.tally.change = std::max(merged.tally.change, change);
    }
  }
  return merged;
}

// Same bytes, or the first difference with both bit patterns.
inline testing::AssertionResult same(const Column& found, const Column& expected) {
  if (found.bytes == expected.bytes) return testing::AssertionSuccess();
  std::uint64_t differing = 0, first = 0;
  const std::size_t width = bytes_of(expected.dtype);
  for (std::uint64_t i = expected.count(); i-- > 0;) {
    if (std::memcmp(&found.bytes[i * width], &expected.bytes[i * width], width) != 0) {
      ++differing;
      first = i;
    }
  }
  std::uint32_t a = 0, b = 0;
  std::memcpy(&a, &found.bytes[first * width], width);
  std::memcpy(&b, &expected.bytes[first * width], width);
  return testing::AssertionFailure()
         << differing << " of " << expected.count() << " elements differ; first at " << first
         << ": found " << std::hex << a << " (" << found.at(first) << "), expected " << b << " ("
         << expected.at(first) << ")";
}

inline testing::AssertionResult same(const Tally& found, const Tally& expected) {
  for (int s = 0; s < math::kSources; ++s) {
    if (found.kept[s] != expected.kept[s]) {
      return testing::AssertionFailure()
             << "source " << s << " kept " << found.kept[s] << ", expected " << expected.kept[s];
    }
  }
  if (found.conflicts != expected.conflicts) {
    return testing::AssertionFailure()
           << found.conflicts << " conflicts, expected " << expected.conflicts;
  }
  if (found.change != expected.change) {
    return testing::AssertionFailure()
           << std::hex << "largest change " << found.change << ", expected " << expected.change;
  }
  return testing::AssertionSuccess();
}

// A test for each instruction set; one that this machine lacks is skipped by name.
class EveryIsa : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!cpu::has_isa(GetParam())) GTEST_SKIP() << "this machine has no " << GetParam();
    backend_ = cpu_backend(GetParam());
  }

  std::unique_ptr<Backend> backend_;
};

#define INGOT_EVERY_ISA(suite)                                            \
  INSTANTIATE_TEST_SUITE_P(isa, suite, testing::Values("v2", "v3", "v4"), \
                           [](const auto& tested) { return std::string(tested.param); })

}  // namespace ingot::test
