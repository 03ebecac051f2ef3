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
#include "ingot/methods.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kBlock = 1 << 16;  // elements decoded at a time
constexpr std::uint64_t kTileSize = 16384;
constexpr std::uint64_t kColumnRun = 1 << 20;

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

// Measures one tensor by the passes of method M, one element after the other.
template <class M>
class Measurer {
 public:
  Measurer(Inputs& inputs, const math::Rule& rule, Measurements& known)
      : inputs_(inputs),
        rule_(rule),
        known_(known),
        shape_(math::line_shape(rule, math::method(rule.method).lines(rule))) {}

  void run() { passes(typename M::Passes{}); }

 private:
  using View = math::ViewOf<M>;

  [[nodiscard]] View view() {
    return known_.facts.template view<typename M::Lens, typename M::Combine>();
  }

  template <class... P>
  void passes(math::List<P...>) {
    (pass<P>(), ...);
  }

  template <class P>
  void pass() {
    if (!P::wanted(rule_, view())) return;
    if constexpr (P::kPass == math::Pass::order) {
      order<P>();
    } else if constexpr (P::kPass == math::Pass::fold) {
      std::vector<Sum> sums(static_cast<std::size_t>(P::sums(rule_)), Sum(P::kStart, join<P>));
      walk(inputs_, rule_.elements, [&](std::uint64_t i, std::uint64_t index) {
        add<P>(i, index, [&](std::size_t n) -> double& { return sums[n].lane(); });
        for (Sum& sum : sums) sum.next();
      });
      std::vector<double> totals;
      for (Sum& sum : sums) totals.push_back(sum.total());
      if (const char* why = P::take(rule_, totals.data(), view())) fail(Code::usage, why);
    } else {
      known_.lines.resize(static_cast<std::size_t>(M::kLineFacts) * shape_.count);
      if (shape_.lines == math::Lines::rows) {
        rows<P>();
      } else {
        columns<P>();
      }
    }
  }

  template <class P>
  static double join(double a, double b) {
    return P::join(a, b);
  }

  void line(std::uint64_t index, double* facts) const { known_.line(rule_, index, facts); }

  // What one source shows of an element: its value, its task vector, or what the mask leaves of it.
  [[nodiscard]] float column(const math::Column& column, std::uint64_t i, std::uint64_t index) {
    if (column.stream == math::Stream::none) return 0.0F;
    if (column.stream == math::Stream::value) return inputs_.value(column.index, i);
    const float d = math::delta(source(column.index, i), inputs_.base(i));
    if (column.stream == math::Stream::delta) return d;
    return M::Lens::keeps(view().lens[column.index], d, index) ? d : 0.0F;
  }
  [[nodiscard]] float source(int s, std::uint64_t i) const {
    return inputs_.value(static_cast<std::size_t>(s) + (rule_.base ? 1 : 0), i);
  }

  // Adds an element to every sum of a pass, `lane` being the place of a sum.
  template <class P, class Lane>
  void add(std::uint64_t i, std::uint64_t index, Lane lane) {
    math::Here here;
    line(index, here.line);
    const auto& whole = *view().whole;
    if constexpr (P::Common::kUsed) {
      using Common = typename P::Common;
      typename Common::State state;
      [&]<int... stage>(std::integer_sequence<int, stage...>) {
        const auto meet = [&]<int now>() {
          for (int s = 0; s < rule_.sources; ++s) {
            float x = source(s, i);
            if (Common::kStream == math::Stream::delta) x = math::delta(x, inputs_.base(i));
            Common::template meet<now>(state, whole, x, here);
          }
        };
        (meet.template operator()<stage>(), ...);
      }
      (std::make_integer_sequence<int, Common::kStages>{});
      here.common = Common::finish(state, whole, here);
    }
    for (int g = 0; g < P::groups(rule_); ++g) {
      const math::Group group = P::group(rule_, g);
      const float a = column(group.a, i, index), b = column(group.b, i, index);
      terms(typename P::Terms{}, group, a, b, whole, here, lane);
    }
  }
  template <class... Term, class F, class Lane>
  static void terms(math::List<Term...>, const math::Group& group, float a, float b, const F& whole,
                    const math::Here& here, Lane lane) {
    int at = 0;
    ((at++ == group.term ? term<Term>(group.first, a, b, whole, here, lane) : void()), ...);
  }
  template <class Term, class F, class Lane>
  static void term(std::size_t first, float a, float b, const F& whole, const math::Here& here,
                   Lane lane) {
    double lanes[Term::kSums];
    for (std::size_t n = 0; n < Term::kSums; ++n) lanes[n] = lane(first + n);
    Term::add(lanes, a, b, whole, here);
    for (std::size_t n = 0; n < Term::kSums; ++n) lane(first + n) = lanes[n];
  }

  template <class P>
  void take_line(std::uint64_t at, const std::vector<double>& totals) {
    double facts[math::kLineFacts] = {};
    P::take(rule_, totals.data(), facts);
    for (int f = 0; f < P::kFacts; ++f) {
      known_.lines[static_cast<std::size_t>(P::kFirstFact + f) * shape_.count + at] = facts[f];
    }
  }

  template <class P>
  void rows() {
    std::vector<Sum> sums(static_cast<std::size_t>(P::sums(rule_)), Sum(P::kStart, join<P>));
    walk(inputs_, rule_.elements, [&](std::uint64_t i, std::uint64_t index) {
      add<P>(i, index, [&](std::size_t n) -> double& { return sums[n].lane(); });
      for (Sum& sum : sums) sum.next();
      if ((index + 1) % shape_.width == 0) {
        std::vector<double> totals;
        for (Sum& sum : sums) totals.push_back(sum.total());
        take_line<P>(index / shape_.width, totals);
      } else if ((index + 1) % kTileSize == 0) {
        for (Sum& sum : sums) sum.cut();
      }
    });
  }

  template <class P>
  void columns() {
    const auto count = static_cast<std::size_t>(P::sums(rule_));
    std::vector<double> totals(count * shape_.count, P::kStart), run = totals;
    walk(inputs_, rule_.elements, [&](std::uint64_t i, std::uint64_t index) {
      const std::uint64_t at = index % shape_.width;
      add<P>(i, index, [&](std::size_t n) -> double& { return run[n * shape_.count + at]; });
      if ((index + 1) % kColumnRun != 0 && index + 1 != rule_.elements) return;
      for (std::size_t n = 0; n < totals.size(); ++n) totals[n] = P::join(totals[n], run[n]);
      std::fill(run.begin(), run.end(), P::kStart);
    });
    for (std::uint64_t at = 0; at < shape_.count; ++at) {
      std::vector<double> one;
      for (std::size_t n = 0; n < count; ++n) one.push_back(totals[n * shape_.count + at]);
      take_line<P>(at, one);
    }
  }

  // The key of an element in a stream, as a number that orders as keys do.
  template <class P>
  [[nodiscard]] std::uint32_t key(int stream, std::uint64_t i, std::uint64_t index) {
    using Key = typename P::Key;
    math::At<float> at;
    at.base = inputs_.base(i);
    at.index = index;
    line(index, at.line);
    const auto seen = [&](int s) {
      const float x = source(s, i);
      return Key::Lens::kDelta ? math::delta(x, at.base) : x;
    };
    const auto& whole = *view().whole;
    std::int32_t found = 0;
    if constexpr (Key::kSingle) {
      found = Key::key(whole, seen(P::source(stream)), at);
    } else {
      typename Key::State state;
      [&]<int... stage>(std::integer_sequence<int, stage...>) {
        const auto meet = [&]<int now>() {
          for (int s = 0; s < rule_.sources; ++s) {
            Key::template meet<now>(state, whole, seen(s), at);
          }
        };
        (meet.template operator()<stage>(), ...);
      }
      (std::make_integer_sequence<int, Key::kStages>{});
      found = Key::finish(state, whole, at);
    }
    return static_cast<std::uint32_t>(found) ^ 0x80000000u;
  }

  // Thresholds and cuts: all keys in order, largest first, the lower index first among equals. A
  // counting sort by the upper and then the lower half of a key, so that memory does not grow with
  // the tensor; only what lies at a threshold is ever put in order.
  template <class P>
  void order() {
    struct Order {
      int stream = 0;
      std::uint64_t rank = 0;  // from 1, among what is left to tell apart
      std::uint32_t high = 0, key = 0;
      std::uint64_t cut = 0;
      std::vector<std::uint64_t> upper = std::vector<std::uint64_t>(1 << 16);
      std::vector<std::uint64_t> lower = std::vector<std::uint64_t>(1 << 16);
    };
    std::vector<Order> orders;
    for (int stream = 0; stream < P::streams(rule_); ++stream) {
      std::uint64_t ranks[math::kRanks];
      const int count = P::ranks(rule_, view(), stream, ranks);
      for (int r = 0; r < count; ++r) {
        orders.emplace_back();
        orders.back().stream = stream;
        orders.back().rank = ranks[r];
      }
    }
    const auto each = [&](auto&& take) {
      walk(inputs_, rule_.elements, [&](std::uint64_t i, std::uint64_t index) {
        for (Order& order : orders) take(order, key<P>(order.stream, i, index), index);
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
    for (Order& order : orders) {
      const std::uint32_t low = place(order.lower, order.rank);
      // Where every tie is kept, the cut is the end.
      if (order.rank == order.lower[low]) order.rank = 0;
      order.key = order.high << 16 | low;
      order.cut = rule_.elements - 1;
    }
    each([](Order& order, std::uint32_t key, std::uint64_t index) {
      if (order.rank > 0 && key == order.key && order.rank-- == 1) order.cut = index;
    });
    for (std::size_t i = 0; i < orders.size();) {
      math::Selection found[math::kRanks];
      const int stream = orders[i].stream;
      for (int n = 0; i < orders.size() && orders[i].stream == stream; ++i) {
        found[n++] = {static_cast<std::int32_t>(orders[i].key ^ 0x80000000u), orders[i].cut};
      }
      P::take(rule_, stream, found, view());
    }
  }

  Inputs& inputs_;
  const math::Rule& rule_;
  Measurements& known_;
  const math::LineShape shape_;
};

Measurements measure(Inputs& inputs, const math::Rule& rule) {
  Measurements known{math::begin(rule), {}};
  if (rule.elements == 0) return known;
  math::with_method(rule.method, [&]<class M>() { Measurer<M>(inputs, rule, known).run(); });
  return known;
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
          const std::optional<math::Facts>& told)
      : plan_(plan),
        job_(job),
        rule_(job.work.rule),
        file_(file),
        place_(place),
        width_(bits(job.output.dtype)),
        inputs_(plan, job) {
    proof_.known = told ? Measurements{*told, {}} : measure(inputs_, rule_);
  }

  void check(std::uint64_t first, std::uint64_t count) {
    inputs_.read(first, count);
    if (const std::string doubt = inputs_.doubt(); proof_.finding.empty()) proof_.finding = doubt;
    stored_.resize(count * width_ / 8);
    read_exact(file_, place_ + first * width_ / 8, stored_);
    for (std::uint64_t i = 0; i < count; ++i) element(first + i, i);
    proof_.findings.add(
        examine(plan_, job_, proof_.known, first, stored_,
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
    const auto single = evaluated<float>(base, index);
    note(single);
    std::uint64_t found = 0;
    std::memcpy(&found, stored_.data() + i * width_ / 8, width_ / 8);
    const std::uint64_t expected = code(single.value);
    const auto truth = evaluated<double>(base, index);
    const bool near = std::abs(ordered(found, width_) -
                               ordered(code(static_cast<float>(truth.value)), width_)) <= 1;
    if (found == expected) {
      ++proof_.exact;
      if (near || !std::isfinite(single.value)) return;
      // Where large terms cancel, f32 arithmetic is the contract, within what its roundings
      // explain.
      const auto bound = evaluated<Single>(base, index);
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

  // The rule for the element whose sources are gathered.
  template <class T>
  [[nodiscard]] math::Outcome<T> evaluated(float base, std::uint64_t index) const {
    double line[math::kLineFacts] = {};
    proof_.known.line(rule_, index, line);
    return math::evaluate<T>(rule_, proof_.known.facts, x_.data(), base, index, line);
  }

  [[nodiscard]] std::uint64_t code(float value) const {
    return encode(job_.output.dtype, value, job_.work.overflow);
  }

  // True if values of the bounded class explain the element: it lies between what the formula makes
  // of the ends of their ranges. Each result is monotone in each value, and so is rounding.
  [[nodiscard]] bool within(std::uint64_t found, std::uint64_t index, std::uint64_t i) {
    const std::vector<Inputs::Range> ranges = inputs_.ranges(i);
    constexpr std::size_t kMost = 10;  // beyond, no chance brought them together
    if (ranges.empty() || ranges.size() > kMost) return false;
    const std::size_t skip = rule_.base ? 1 : 0;
    std::int64_t least = std::numeric_limits<std::int64_t>::max(), most = -least;
    for (std::size_t ends = 0; ends < std::size_t{1} << ranges.size(); ++ends) {
      inputs_.gather(i, x_.data());
      float base = inputs_.base(i);
      for (std::size_t r = 0; r < ranges.size(); ++r) {
        const float value = (ends >> r & 1) != 0 ? ranges[r].high : ranges[r].low;
        (ranges[r].operand < skip ? base : x_[ranges[r].operand - skip]) = value;
      }
      const auto end = evaluated<float>(base, index);
      if (std::isnan(end.value)) return false;
      const std::int64_t place = ordered(code(end.value), width_);
      least = std::min(least, place);
      most = std::max(most, place);
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
  std::vector<std::byte> stored_;
  std::vector<float> x_ = std::vector<float>(math::kSources);
  Proof proof_;
};

}  // namespace

void Sum::add(double x) {
  lane() = joined(lane(), x);
  next();
}

void Sum::next() {
  if (++count_ == kTileSize) close();
}

void Sum::cut() {
  if (count_ > 0) close();
}

// Lanes fold by halves; a tile waits for its neighbour, and both for theirs.
void Sum::close() {
  for (std::size_t half = lanes_.size() / 2; half > 0; half /= 2) {
    for (std::size_t l = 0; l < half; ++l) lanes_[l] = joined(lanes_[l], lanes_[l + half]);
  }
  double carry = lanes_[0];
  std::fill(lanes_.begin(), lanes_.end(), start_);
  count_ = 0;
  std::size_t level = 0;
  for (; level < levels_.size() && levels_[level]; ++level) {
    carry = joined(*levels_[level], carry);
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
    if (level) sum = sum ? joined(*level, *sum) : *level;
  }
  levels_.clear();
  return sum.value_or(start_);
}

bool exact(const Plan& plan, const Job& job) {
  return std::all_of(job.operands.begin(), job.operands.end(), [&](const Operand& operand) {
    return !operand.derived || (operand.derived->exact() &&
                                !(plan.options.fast_product && operand.derived->products()));
  });
}

namespace {

// Takes facts back from an entry of the receipt.
class Reading final : public math::Teller {
 public:
  Reading(const Json& entry, std::size_t skip) : entry_(entry), skip_(skip) {}

  bool number(const char* name, int source, int place, double& value) override {
    const Json* at = find(name, source);
    if (at != nullptr && place >= 0) {
      const auto index = static_cast<std::size_t>(place);
      at = at->is_array() && index < at->size() ? &at->at(index) : nullptr;
    }
    return read(at, value);
  }
  bool key(const char* name, int source, std::int32_t& key) override {
    double value = 0;
    if (!read(find(name, source), value)) return false;
    key = static_cast<std::int32_t>(math::key(static_cast<float>(value)));
    return true;
  }
  bool count(const char* name, int source, std::uint64_t& value) override {
    const Json* at = find(name, source);
    if (at == nullptr || !at->is_number_unsigned()) return false;
    value = at->get<std::uint64_t>();
    return true;
  }

 private:
  [[nodiscard]] const Json* find(const char* name, int source) const {
    const Json* of = &entry_;
    if (source >= 0) {
      const std::size_t at = static_cast<std::size_t>(source) + skip_;
      if (!entry_.contains("sources") || !entry_.at("sources").is_array() ||
          at >= entry_.at("sources").size()) {
        return nullptr;
      }
      of = &entry_.at("sources").at(at);
    }
    if (!of->is_object() || !of->contains("measured")) return nullptr;
    const Json& measured = of->at("measured");
    return measured.is_object() && measured.contains(name) ? &measured.at(name) : nullptr;
  }
  static bool read(const Json* at, double& value) {
    if (at == nullptr || !at->is_string()) return false;
    const double x = std::strtod(at->get_ref<const std::string&>().c_str(), nullptr);
    if (!std::isfinite(x)) return false;
    value = x;
    return true;
  }

  const Json& entry_;
  std::size_t skip_;
};

}  // namespace

std::optional<math::Facts> facts_told(const math::Rule& rule, const Json& entry) {
  const math::Method& method = math::method(rule.method);
  math::Facts facts = math::begin(rule);
  for (const math::PassInfo& pass : method.passes) {
    if (pass.kind == math::Pass::lines && pass.wanted(rule, facts)) return std::nullopt;
  }
  Reading reading(entry, rule.base ? 1 : 0);
  if (!method.tell(rule, facts, reading)) return std::nullopt;
  return facts;
}

Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place, bool all,
            std::uint64_t salt, const std::optional<math::Facts>& told) {
  const std::uint64_t n = job.work.rule.elements;
  if (n == 0) {  // a run measures nothing either
    Proof none;
    none.whole = true;
    none.known.facts = math::begin(job.work.rule);
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
