#include "engine/proof.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include <fmt/format.h>

#include "adapter/tracked.hpp"
#include "base/hash.hpp"
#include "engine/finite.hpp"
#include "engine/supply.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/methods.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kBlock = 1 << 16;  // elements decoded at a time
constexpr std::uint64_t kTileSize = 16384;

// The operands of a job as rows of floats. Derived operands are computed here without a backend.
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
        return fmt::format(
            "{}: element {} of operand {} is computed as {} in float32 and as {} in double",
            job_.output.name, first_ + k, i + 1, found, truths[k].value);
      }
    }
    return {};
  }
  // Elements of a derived operand from those of its own tensor.
  void fill(std::size_t operand, std::uint64_t first, std::span<const std::byte> own,
            std::span<float> values) const {
    working_[operand]->fill(first, own, values);
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
  // Operands whose value of an element is of the bounded class, each with the lowest and the
  // highest that it may be. After doubt().
  struct Range {
    std::size_t operand = 0;
    float low = 0, high = 0;
  };
  [[nodiscard]] std::vector<Range> ranges(std::uint64_t at) const {
    std::vector<Range> all;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      if (truths_[i].empty() || truths_[i][at].exact) continue;
      const Truth& truth = truths_[i][at];
      all.push_back({i, static_cast<float>(truth.value - truth.slack),
                     static_cast<float>(truth.value + truth.slack)});
    }
    return all;
  }
  // What the work on each operand brought to light, after every element was read.
  [[nodiscard]] std::vector<std::string> found() const {
    std::vector<std::string> all(rows_.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (working_[i]) all[i] = job_.operands[i].derived->found(*working_[i]);
    }
    return all;
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
void walk(Inputs& inputs, std::uint64_t elements, Each&& each) {
  for (std::uint64_t at = 0; at < elements; at += kBlock) {
    const std::uint64_t count = std::min(kBlock, elements - at);
    inputs.read(at, count);
    for (std::uint64_t i = 0; i < count; ++i) each(i, at + i);
  }
}

// Thresholds and cuts: all keys in order, largest first, the lower index first among equals. A
// counting sort by the upper and then the lower half of a key, so that memory does not grow with
// the tensor; only what lies at a threshold is ever put in order.
std::vector<math::Selection> select_by_sorting(Inputs& inputs, const math::Rule& rule) {
  struct Order {
    std::size_t source = 0;
    std::uint64_t rank = 0;  // from 1, among what is left to tell apart
    std::uint32_t high = 0;
    std::vector<std::uint64_t> upper, lower;
  };
  std::vector<Order> orders;
  for (int s = 0; s < rule.sources; ++s) {
    const std::uint64_t keep = math::kept(rule, s);
    if (keep == 0 || keep >= rule.elements) continue;
    orders.push_back({static_cast<std::size_t>(s), keep, 0, std::vector<std::uint64_t>(1 << 16),
                      std::vector<std::uint64_t>(1 << 16)});
  }
  const auto each = [&](auto&& take) {
    walk(inputs, rule.elements, [&](std::uint64_t i, std::uint64_t index) {
      for (Order& order : orders) {
        const float x = inputs.value(order.source + (rule.base ? 1 : 0), i);
        take(order, math::key(math::delta(x, inputs.base(i))), index);
      }
    });
  };
  // Places the rank among the counts, from the highest; what is left of it is its rank there.
  const auto place = [](const std::vector<std::uint64_t>& counts, std::uint64_t& rank) {
    std::uint32_t at = 0xffff;
    for (; counts[at] < rank; --at) rank -= counts[at];
    return at;
  };
  each([](Order& order, std::uint32_t key, std::uint64_t) { ++order.upper[key >> 16]; });
  for (Order& order : orders) order.high = place(order.upper, order.rank);
  each([](Order& order, std::uint32_t key, std::uint64_t) {
    if (key >> 16 == order.high) ++order.lower[key & 0xffff];
  });
  std::vector<math::Selection> selections(math::kSources);
  for (Order& order : orders) {
    const std::uint32_t low = place(order.lower, order.rank);
    // Where every tie is kept, the cut is the end.
    if (order.rank == order.lower[low]) order.rank = 0;
    selections[order.source] = {order.high << 16 | low, rule.elements - 1, false};
  }
  each([&](Order& order, std::uint32_t key, std::uint64_t index) {
    math::Selection& selection = selections[order.source];
    if (order.rank > 0 && key == selection.threshold && order.rank-- == 1) selection.cut = index;
  });
  return selections;
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

math::Facts measure(Inputs& inputs, const math::Rule& rule) {
  const math::Needs needs = math::needs(rule);
  std::vector<math::Selection> selections(math::kSources);
  if (needs.select) selections = select_by_sorting(inputs, rule);
  math::Facts facts = math::prepare(rule, selections.data());
  if (needs.folds == 0) return facts;
  std::vector<Sum> sums(static_cast<std::size_t>(needs.folds));
  std::vector<math::Term> terms;
  for (int f = 0; f < needs.folds; ++f) terms.push_back(math::term(rule, f));
  walk(inputs, rule.elements, [&](std::uint64_t i, std::uint64_t index) {
    for (std::size_t f = 0; f < sums.size(); ++f) {
      const double a = column(terms[f].a, facts, rule, inputs, i, index);
      sums[f].add(terms[f].kind == math::Term::Kind::absolute
                      ? std::fabs(a)
                      : a * column(terms[f].b, facts, rule, inputs, i, index));
    }
  });
  std::vector<double> totals;
  for (Sum& sum : sums) totals.push_back(sum.total());
  math::conclude(rule, totals.data(), facts);
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

// Compares the elements of one tensor with the results of its rule.
class Checker {
 public:
  Checker(const Plan& plan, const Job& job, File& file, std::uint64_t place,
          const std::vector<math::Facts>& told)
      : plan_(plan),
        job_(job),
        rule_(job.work.rule),
        file_(file),
        place_(place),
        width_(bits(job.output.dtype)),
        inputs_(plan, job),
        facts_(told) {
    if (facts_.empty()) facts_.push_back(measure(inputs_, rule_));
    proof_.facts = facts_.front();
  }

  void check(std::uint64_t first, std::uint64_t count) {
    inputs_.read(first, count);
    if (const std::string doubt = inputs_.doubt(); proof_.finding.empty()) proof_.finding = doubt;
    stored_.resize(count * width_ / 8);
    read_exact(file_, place_ + first * width_ / 8, stored_);
    for (std::uint64_t i = 0; i < count; ++i) element(first + i, i);
    proof_.findings.add(
        examine(plan_, job_, proof_.facts, first, stored_,
                [this](std::size_t operand, std::uint64_t at, std::span<const std::byte> own,
                       std::span<float> values) { inputs_.fill(operand, at, own, values); }));
    proof_.elements += count;
  }

  [[nodiscard]] Proof finish(bool whole) {
    proof_.whole = whole;
    if (whole) proof_.found = inputs_.found();
    return std::move(proof_);
  }

 private:
  void element(std::uint64_t index, std::uint64_t i) {
    inputs_.gather(i, x_.data());
    const float base = inputs_.base(i);
    const auto single = math::evaluate<float>(rule_, proof_.facts, x_.data(), base, index);
    note(single);
    std::uint64_t found = 0;
    std::memcpy(&found, stored_.data() + i * width_ / 8, width_ / 8);
    const std::uint64_t expected = code(single.value);
    const auto truth = math::evaluate<double>(rule_, proof_.facts, x_.data(), base, index);
    const bool near = std::abs(ordered(found, width_) -
                               ordered(code(static_cast<float>(truth.value)), width_)) <= 1;
    if (found == expected) {
      ++proof_.exact;
      if (near || !std::isfinite(single.value)) return;
      // Where large terms cancel, f32 arithmetic is the contract, within what its roundings
      // explain.
      const auto bound = math::evaluate<Single>(rule_, proof_.facts, x_.data(), base, index);
      const double off = std::fabs(static_cast<double>(single.value) - bound.value.value);
      if (!(off > bound.value.slack)) return;
    } else if (within(found, index, i)) {
      return;
    }
    if (!proof_.finding.empty()) return;
    float value = 0;
    to_floats(job_.output.dtype, std::span(stored_).subspan(i * width_ / 8, width_ / 8),
              {&value, 1});
    proof_.finding =
        found == expected
            ? fmt::format("{}: element {} is {}, which its rule gives in f32, and {} in double",
                          job_.output.name, index, value, truth.value)
            : fmt::format("{}: element {} is {}, its rule gives {}", job_.output.name, index, value,
                          single.value);
  }

  [[nodiscard]] std::uint64_t code(float value) const {
    return encode(job_.output.dtype, value, job_.work.overflow);
  }

  // True if values of the bounded class, or facts that are known but for their rounding, explain
  // the element: it lies between what the formula makes of the ends of their ranges. Each result is
  // monotone in each value, and so is rounding.
  [[nodiscard]] bool within(std::uint64_t found, std::uint64_t index, std::uint64_t i) {
    const std::vector<Inputs::Range> ranges = inputs_.ranges(i);
    constexpr std::size_t kMost = 10;  // beyond, no chance brought them together
    if ((ranges.empty() && facts_.size() == 1) || ranges.size() > kMost) return false;
    const std::size_t skip = rule_.base ? 1 : 0;
    std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = -least;
    for (std::size_t ends = 0; ends < std::size_t{1} << ranges.size(); ++ends) {
      inputs_.gather(i, x_.data());
      float base = inputs_.base(i);
      for (std::size_t r = 0; r < ranges.size(); ++r) {
        const float value = (ends >> r & 1) != 0 ? ranges[r].high : ranges[r].low;
        (ranges[r].operand < skip ? base : x_[ranges[r].operand - skip]) = value;
      }
      for (const math::Facts& facts : facts_) {
        const auto end = math::evaluate<float>(rule_, facts, x_.data(), base, index);
        if (std::isnan(end.value)) return false;
        const std::int64_t place = ordered(code(end.value), width_);
        least = std::min(least, place);
        most = std::max(most, place);
      }
    }
    const std::int64_t place = ordered(found, width_);
    return place >= least && place <= most;
  }

  void note(const math::Outcome<float>& outcome) {
    for (int s = 0; s < rule_.sources; ++s) proof_.tally.kept[s] += outcome.kept >> s & 1;
    proof_.tally.conflicts += outcome.conflict ? 1 : 0;
    if (!rule_.base) return;
    // Any NaN as the canonical one.
    const std::uint32_t change =
        std::isnan(outcome.change) ? 0x7fc00000U : math::bits(outcome.change);
    proof_.tally.change = std::max(proof_.tally.change, change);
  }

  const Plan& plan_;
  const Job& job_;
  const math::Rule& rule_;
  File& file_;
  std::uint64_t place_;
  std::uint32_t width_;
  Inputs inputs_;
  std::vector<math::Facts> facts_;
  std::vector<std::byte> stored_;
  std::vector<float> x_ = std::vector<float>(math::kSources);
  Proof proof_;
};

}  // namespace

void Sum::add(double x) {
  lanes_[count_ % lanes_.size()] += x;
  if (++count_ == kTileSize) close();
}

// Lanes fold by halves; a tile waits for its neighbour, and both for theirs.
void Sum::close() {
  for (std::size_t half = lanes_.size() / 2; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lanes_[l] += lanes_[l + half];
  }
  double carry = lanes_[0];
  std::fill(lanes_.begin(), lanes_.end(), 0.0);
  count_ = 0;
  std::size_t level = 0;
  for (; level < levels_.size() && levels_[level]; ++level) {
    carry = *levels_[level] + carry;
    levels_[level].reset();
  }
  if (level == levels_.size()) levels_.emplace_back();
  levels_[level] = carry;
}

// Odd ones at the end move up until they meet somebody.
double Sum::total() {
  if (count_ > 0) close();
  std::optional<double> sum;
  for (const auto& level : levels_) {
    if (level) sum = sum ? *level + *sum : *level;
  }
  levels_.clear();
  return sum.value_or(0.0);
}

bool exact(const Plan& plan, const Job& job) {
  return std::all_of(job.operands.begin(), job.operands.end(), [&](const Operand& operand) {
    return !operand.derived || (operand.derived->exact() &&
                                !(plan.options.fast_product && operand.derived->products()));
  });
}

std::vector<math::Facts> facts_told(const math::Rule& rule, const Json& entry) {
  const auto number = [](const Json& from, const auto& key) -> std::optional<float> {
    if (!from.is_object() || !from.contains(key) || !from.at(key).is_string()) return std::nullopt;
    const float x =
        std::strtof(from.at(key).template get_ref<const std::string&>().c_str(), nullptr);
    return std::isfinite(x) ? std::optional(x) : std::nullopt;
  };
  // What rounds to x lies between these, and a little further out.
  const auto ends = [](float x) {
    const auto far = [x](float to) {
      const double y = static_cast<double>(x);
      return y + 0.51 * (static_cast<double>(std::nextafter(x, to)) - y);
    };
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    return std::pair(far(-kInfinity), far(kInfinity));
  };
  const math::Method& method = math::method(rule.method);
  const std::size_t skip = rule.base ? 1 : 0;
  if (!entry.contains("sources") || !entry.at("sources").is_array() ||
      entry.at("sources").size() != static_cast<std::size_t>(rule.sources) + skip) {
    return {};
  }
  std::vector<math::Selection> selections(math::kSources);
  std::vector<float> factors(math::kSources, 1.0F);
  std::vector<std::size_t> open;  // sources whose factor is rounded
  const bool rescaled = method.rescale == math::Rescale::norm && math::detail::rescales(rule);
  for (std::size_t s = 0; s < static_cast<std::size_t>(rule.sources); ++s) {
    const Json& source = entry.at("sources").at(s + skip);
    const std::uint64_t keep = math::kept(rule, static_cast<int>(s));
    if (math::needs(rule).select && keep > 0 && keep < rule.elements) {
      const auto threshold = number(source, "threshold");
      if (!threshold || !source.contains("cut") || !source.at("cut").is_number_unsigned())
        return {};
      selections[s] = {math::key(*threshold), source.at("cut").get<std::uint64_t>(), false};
    }
    const double density = math::detail::density(rule, static_cast<int>(s));
    if (!rescaled || !(density > 0.0 && density < 1.0)) continue;
    const auto factor = number(source, "factor");
    if (!factor) return {};
    factors[s] = *factor;
    open.push_back(s);
  }
  math::Facts facts = math::prepare(rule, selections.data());
  if (rescaled) facts.rescaled = true;
  for (const std::size_t s : open) {
    math::detail::rescale(method, static_cast<double>(factors[s]), facts.source[s]);
  }
  std::vector<math::Facts> all{facts};
  constexpr std::size_t kMost = 6;
  if (open.size() > kMost) return {};
  for (std::size_t corner = 0; !open.empty() && corner < std::size_t{1} << open.size(); ++corner) {
    for (std::size_t i = 0; i < open.size(); ++i) {
      const auto [low, high] = ends(factors[open[i]]);
      math::detail::rescale(method, (corner >> i & 1) != 0 ? high : low, facts.source[open[i]]);
    }
    all.push_back(facts);
  }
  if (method.formula != math::Formula::slerp) return all;
  if (!entry.contains("coefficients") || !entry.at("coefficients").is_array() ||
      entry.at("coefficients").size() != 2) {
    return {};
  }
  float told[2];
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}}) {
    const auto x = number(Json{{"x", entry.at("coefficients").at(i)}}, "x");
    if (!x) return {};
    told[i] = *x;
  }
  math::bend(all[0], static_cast<double>(told[0]), static_cast<double>(told[1]));
  // What the rounding left off is at most half a place; the coefficients themselves stay, so that
  // results are monotone in it.
  const auto half = [](float x) {
    const float size = std::fabs(x);
    const float next = std::nextafter(size, std::numeric_limits<float>::infinity());
    return static_cast<float>((static_cast<double>(next) - static_cast<double>(size)) / 2);
  };
  for (const float near : {-half(told[0]), half(told[0])}) {
    for (const float far : {-half(told[1]), half(told[1])}) {
      math::Facts end = all[0];
      end.scalar[math::kNearRest] = near;
      end.scalar[math::kFarRest] = far;
      all.push_back(end);
    }
  }
  return all;
}

Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place, bool all,
            std::uint64_t salt, const std::vector<math::Facts>& told) {
  const std::uint64_t n = job.work.rule.elements;
  if (n == 0) {  // a run measures nothing either
    Proof none;
    none.whole = true;
    none.found.resize(job.operands.size());
    return none;
  }
  Checker checker(plan, job, file, place, told);
  if (all || n <= kWhole) {
    for (std::uint64_t at = 0; at < n; at += kBlock) checker.check(at, std::min(kBlock, n - at));
    return checker.finish(true);
  }
  checker.check(0, kRun);
  checker.check(n - kRun, kRun);
  for (std::uint64_t p = 0; p < kPlaces; ++p) {
    checker.check((stream_key(job.output.name, "verify", p) ^ salt) % (n - kRun), kRun);
  }
  return checker.finish(false);
}

}  // namespace ingot
