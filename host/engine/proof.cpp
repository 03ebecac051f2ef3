#include "engine/proof.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "engine/supply.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/methods.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kRun = 64;         // elements recomputed at one place
constexpr std::uint64_t kPlaces = 64;      // places of a sample, beside both ends
constexpr std::uint64_t kBlock = 1 << 16;  // elements decoded at a time

// The operands of a job as rows of floats. What is derived is made here without a backend.
class Inputs {
 public:
  Inputs(const Plan& plan, const Job& job) : plan_(plan), job_(job), rows_(job.operands.size()) {
    for (const Operand& operand : job.operands) {
      working_.push_back(operand.derived ? operand.derived->begin(plan, nullptr) : nullptr);
    }
    own_.resize(rows_.size());
  }

  void read(std::uint64_t first, std::uint64_t count) {
    first_ = first;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Operand& operand = job_.operands[i];
      std::vector<float>& values = operand.derived ? own_[i] : rows_[i];
      stored_.clear();
      if (lands(operand)) {
        const Dtype dtype = staged_dtype(plan_, operand);
        stored_.resize(count * bits(dtype) / 8);
        supply(plan_, operand, true, first, stored_);
        values.resize(count);
        to_floats(dtype, stored_, values);
      }
      if (!operand.derived) continue;
      rows_[i].resize(count);
      working_[i]->fill(first, stored_, rows_[i]);
    }
  }
  // The first of the elements read whose derived value is not what double precision gives, in
  // words.
  [[nodiscard]] std::string doubt() {
    truths_.assign(rows_.size(), {});
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Operand& operand = job_.operands[i];
      if (!operand.derived) continue;
      std::vector<Truth>& truths = truths_[i];
      truths = operand.derived->recompute(plan_, first_, rows_[i].size(), own_[i]);
      for (std::size_t k = 0; k < truths.size(); ++k) {
        const double found = static_cast<double>(rows_[i][k]);
        if (std::abs(found - truths[k].value) <= truths[k].slack) continue;
        if (std::isnan(found) && std::isnan(truths[k].value)) continue;
        // Sums of f32 may overflow on their way where double does not; the output is still held
        // against them.
        if (!std::isfinite(found) && plan_.options.allow_nonfinite) continue;
        if (found == truths[k].value) continue;  // infinities
        return fmt::format("{}: element {} of operand {} derives as {} in f32, {} in double",
                           job_.output.name, first_ + k, i + 1, found, truths[k].value);
      }
    }
    return {};
  }
  [[nodiscard]] float base(std::uint64_t at) const {
    return job_.work.rule.base ? rows_[0][at] : 0.0F;
  }
  // The sources' values of one element, and the base's.
  void gather(std::uint64_t at, float* x) const {
    const std::size_t skip = job_.work.rule.base ? 1 : 0;
    for (std::size_t s = skip; s < rows_.size(); ++s) x[s - skip] = rows_[s][at];
  }
  [[nodiscard]] float value(std::size_t operand, std::uint64_t at) const {
    return rows_[operand][at];
  }
  // The lowest and the highest value that the one source of a passthrough may have where sums are
  // of the bounded class. After doubt().
  [[nodiscard]] std::pair<float, float> range(std::uint64_t at) const {
    if (truths_[0].empty()) return {rows_[0][at], rows_[0][at]};
    const Truth& truth = truths_[0][at];
    return {static_cast<float>(truth.value - truth.slack),
            static_cast<float>(truth.value + truth.slack)};
  }

 private:
  const Plan& plan_;
  const Job& job_;
  std::vector<std::vector<float>> rows_, own_;
  std::vector<std::vector<Truth>> truths_;
  std::vector<std::unique_ptr<Working>> working_;
  std::vector<std::byte> stored_;
  std::uint64_t first_ = 0;
};

template <class Each>
void walk(const Plan& plan, const Job& job, Each&& each) {
  Inputs inputs(plan, job);
  const std::uint64_t n = job.work.rule.elements;
  for (std::uint64_t at = 0; at < n; at += kBlock) {
    const std::uint64_t count = std::min(kBlock, n - at);
    inputs.read(at, count);
    for (std::uint64_t i = 0; i < count; ++i) each(inputs, i, at + i);
  }
}

// Threshold and cut of one source: all keys in order, largest first, the lower index first among
// equals. A counting sort by the upper and then the lower half of a key, so that memory does not
// grow with the tensor; only what lies at the threshold is ever put in order.
math::Selection select_by_sorting(const Plan& plan, const Job& job, int source,
                                  std::uint64_t keep) {
  const std::size_t operand = static_cast<std::size_t>(source) + (job.work.rule.base ? 1 : 0);
  const auto each = [&](auto&& take) {
    walk(plan, job, [&](const Inputs& in, std::uint64_t i, std::uint64_t index) {
      take(math::key(math::delta(in.value(operand, i), in.base(i))), index);
    });
  };
  // Places `rank` (from 1) among the counts, from the highest; what is left of it is its rank
  // there.
  const auto place = [](const std::vector<std::uint64_t>& counts, std::uint64_t& rank) {
    std::uint32_t at = 0xffff;
    for (; counts[at] < rank; --at) rank -= counts[at];
    return at;
  };
  std::vector<std::uint64_t> upper(1 << 16), lower(1 << 16);
  each([&](std::uint32_t key, std::uint64_t) { ++upper[key >> 16]; });
  std::uint64_t rank = keep;
  const std::uint32_t high = place(upper, rank);
  each([&](std::uint32_t key, std::uint64_t) {
    if (key >> 16 == high) ++lower[key & 0xffff];
  });
  math::Selection selection;
  selection.all = false;
  selection.threshold = high << 16 | place(lower, rank);
  each([&](std::uint32_t key, std::uint64_t index) {
    if (key == selection.threshold && rank-- == 1) selection.cut = index;
  });
  return selection;
}

double column(const math::Column& column, const math::Facts& facts, const math::Rule& rule,
              const Inputs& in, std::uint64_t i, std::uint64_t index) {
  if (column.stream == math::Stream::value) return static_cast<double>(in.value(column.index, i));
  const std::size_t operand = static_cast<std::size_t>(column.index) + (rule.base ? 1 : 0);
  const float d = math::delta(in.value(operand, i), in.base(i));
  if (column.stream == math::Stream::delta) return static_cast<double>(d);
  const math::Source& source = facts.source[column.index];
  bool keeps = source.all != 0;
  if (!keeps && facts.mask == math::Mask::select) {
    keeps = math::selected(math::key(d), source.threshold, index, source.cut);
  } else if (!keeps) {
    keeps = math::keep(facts.seed, source.stream, index, source.keep);
  }
  return keeps ? static_cast<double>(d) : 0.0;
}

math::Facts measure(const Plan& plan, const Job& job) {
  const math::Rule& rule = job.work.rule;
  const math::Needs needs = math::needs(rule);
  std::vector<math::Selection> selections(math::kSources);
  if (needs.select) {
    for (int s = 0; s < rule.sources; ++s) {
      const std::uint64_t keep = math::kept(rule, s);
      if (keep == 0 || keep >= rule.elements) continue;
      selections[static_cast<std::size_t>(s)] = select_by_sorting(plan, job, s, keep);
    }
  }
  math::Facts facts = math::prepare(rule, selections.data());
  if (needs.folds == 0) return facts;
  std::vector<double> sums(static_cast<std::size_t>(needs.folds));
  std::vector<math::Term> terms;
  for (int f = 0; f < needs.folds; ++f) terms.push_back(math::term(rule, f));
  walk(plan, job, [&](const Inputs& in, std::uint64_t i, std::uint64_t index) {
    for (std::size_t f = 0; f < sums.size(); ++f) {
      const double a = column(terms[f].a, facts, rule, in, i, index);
      sums[f] += terms[f].kind == math::Term::Kind::absolute
                     ? std::fabs(a)
                     : a * column(terms[f].b, facts, rule, in, i, index);
    }
  });
  math::conclude(rule, sums.data(), facts);
  return facts;
}

template <math::Format format>
std::uint64_t encode_as(float value, math::Overflow overflow) {
  return math::Codec<format>::encode(value, overflow);
}

std::uint64_t encode(Dtype dtype, float value, math::Overflow overflow) {
  switch (dtype) {
    case Dtype::f32:
      return encode_as<math::Format::f32>(value, overflow);
    case Dtype::f16:
      return encode_as<math::Format::f16>(value, overflow);
    case Dtype::bf16:
      return encode_as<math::Format::bf16>(value, overflow);
    case Dtype::f8_e4m3:
      return encode_as<math::Format::e4m3>(value, overflow);
    case Dtype::f8_e5m2:
      return encode_as<math::Format::e5m2>(value, overflow);
    default:
      fail(Code::internal, fmt::format("no codec for {}", name(dtype)));
  }
}

// Codes as integers in the order of their values, so that neighbours differ by one.
std::int64_t ordered(std::uint64_t code, std::uint32_t width) {
  const std::uint64_t sign = std::uint64_t{1} << (width - 1);
  const auto size = static_cast<std::int64_t>(code & (sign - 1));
  return (code & sign) != 0 ? -size : size;
}

}  // namespace

Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place, bool all) {
  Proof proof;
  const math::Rule& rule = job.work.rule;
  const std::uint64_t n = rule.elements;
  const math::Facts facts = measure(plan, job);
  const Dtype dtype = job.output.dtype;
  const std::uint32_t width = bits(dtype);
  Inputs inputs(plan, job);
  std::vector<std::byte> stored;
  std::vector<float> values, x(math::kSources);

  const auto check = [&](std::uint64_t first, std::uint64_t count) {
    inputs.read(first, count);
    if (const std::string doubt = inputs.doubt(); proof.finding.empty()) proof.finding = doubt;
    stored.resize(count * width / 8);
    read_exact(file, place + first * width / 8, stored);
    values.resize(count);
    to_floats(dtype, stored, values);
    for (std::uint64_t i = 0; i < count; ++i) {
      inputs.gather(i, x.data());
      const float base = inputs.base(i);
      const auto truth = math::evaluate<double>(rule, facts, x.data(), base, first + i);
      const std::uint64_t expected =
          encode(dtype, static_cast<float>(truth.value), job.work.overflow);
      std::uint64_t found = 0;
      std::memcpy(&found, stored.data() + i * width / 8, width / 8);
      ++proof.elements;
      if (found == expected) {
        ++proof.exact;
        continue;
      }
      if (std::abs(ordered(found, width) - ordered(expected, width)) <= 1) continue;
      // Where large terms cancel, f32 arithmetic is the contract and double only its reference.
      const auto single = math::evaluate<float>(rule, facts, x.data(), base, first + i);
      if (found == encode(dtype, single.value, job.work.overflow)) continue;
      if (plan.options.fast_product) {  // passthrough of one source, by the plan
        const auto end = [&](float value) {
          const auto at = math::evaluate<double>(rule, facts, &value, base, first + i);
          return ordered(encode(dtype, static_cast<float>(at.value), job.work.overflow), width);
        };
        const auto [low, high] = inputs.range(i);
        const auto [least, most] = std::minmax({end(low), end(high)});
        const std::int64_t code = ordered(found, width);
        if (code >= least - 1 && code <= most + 1) continue;
      }
      if (proof.finding.empty()) {
        proof.finding = fmt::format("{}: element {} is {}, its rule gives {}", job.output.name,
                                    first + i, values[i], truth.value);
      }
    }
  };
  if (all || n <= 2 * kPlaces * kRun) {
    for (std::uint64_t at = 0; at < n; at += kBlock) check(at, std::min(kBlock, n - at));
    return proof;
  }
  check(0, kRun);
  check(n - kRun, kRun);
  for (std::uint64_t p = 0; p < kPlaces; ++p) {
    const std::uint64_t at = stream_key(job.output.name, "verify", p) % (n - kRun);
    check(at, kRun);
  }
  return proof;
}

}  // namespace ingot
