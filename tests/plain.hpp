// What is measured of one tensor, and its merge, by the definitions: whole in memory, one element
// after the other, orders by sorting. Nothing of the engine's or the backends' loops is used, and
// no method is named.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "ingot/math/fold.hpp"
#include "ingot/methods.hpp"

namespace ingot::test {

// The base first if the rule has one, then the sources in file order.
using Inputs = std::vector<std::vector<float>>;

struct Plain {
  math::Facts facts;
  std::vector<double> lines;      // fact i of line l at [i * count + l]; empty: the method has none
  const char* refused = nullptr;  // why the tensor cannot be merged
};

namespace detail {

// One tensor under the method M.
template <class M>
class Measuring {
 public:
  Measuring(const math::Rule& rule, const Inputs& inputs, Plain& plain)
      : rule_(rule),
        inputs_(inputs),
        plain_(plain),
        shape_(math::line_shape(rule, math::method(rule.method).lines(rule))) {}

  void run() {
    plain_.facts = math::begin(rule_);
    constexpr int kFacts = math::line_facts<M>();
    plain_.lines.assign(static_cast<std::size_t>(kFacts) * shape_.count, 0.0);
    every(typename M::Passes{});
  }

 private:
  [[nodiscard]] auto known() const { return math::detail::known<M>(plain_.facts); }
  [[nodiscard]] float base(std::uint64_t e) const { return rule_.base ? inputs_[0][e] : 0.0F; }
  [[nodiscard]] float value(int s, std::uint64_t e) const {
    return inputs_[static_cast<std::size_t>(s) + (rule_.base ? 1 : 0)][e];
  }
  [[nodiscard]] float difference(int s, std::uint64_t e) const { return value(s, e) - base(e); }

  [[nodiscard]] float read(math::Column column, std::uint64_t e) const {
    switch (column.stream) {
      case math::Stream::value:
        return inputs_[column.index][e];
      case math::Stream::delta:
        return difference(column.index, e);
      case math::Stream::survivor: {
        const float d = difference(column.index, e);
        return M::Lens::keeps(known().lens[column.index], d, e) ? d : 0.0F;
      }
      default:
        return 0.0F;
    }
  }

  void line_facts(std::uint64_t e, double* facts) const {
    for (std::size_t i = 0; shape_.count > 0 && i * shape_.count < plain_.lines.size(); ++i) {
      facts[i] = plain_.lines[i * shape_.count + shape_.line(e)];
    }
  }

  template <class... P>
  void every(math::List<P...>) {
    (one<P>(), ...);
  }
  template <class P>
  void one() {
    if (plain_.refused != nullptr || !P::wanted(rule_, known())) return;
    if constexpr (P::kPass == math::Pass::order) {
      order<P>();
    } else {
      sum<P>();
    }
  }

  // ---- order statistics

  template <class P>
  std::int32_t key(int stream, std::uint64_t e) const {
    using Key = typename P::Key;
    math::At<float> at;
    at.base = base(e);
    at.index = e;
    line_facts(e, at.line);
    const auto& whole = *known().whole;
    const auto seen = [&](int s) { return Key::Lens::kDelta ? difference(s, e) : value(s, e); };
    if constexpr (Key::kSingle) {
      return Key::key(whole, seen(P::source(stream)), at);
    } else {
      typename Key::State state;
      [&]<int... stage>(std::integer_sequence<int, stage...>) {
        const auto walk = [&]<int now>() {
          for (int s = 0; s < rule_.sources; ++s) {
            Key::template meet<now>(state, whole, seen(s), at);
          }
        };
        (walk.template operator()<stage>(), ...);
      }
      (std::make_integer_sequence<int, Key::kStages>{});
      return Key::finish(state, whole, at);
    }
  }

  template <class P>
  void order() {
    for (int stream = 0; stream < P::streams(rule_); ++stream) {
      std::uint64_t ranks[math::kRanks] = {};
      const int wanted = P::ranks(rule_, known(), stream, ranks);
      if (wanted == 0) continue;
      std::vector<std::int32_t> keys(rule_.elements);
      for (std::uint64_t e = 0; e < rule_.elements; ++e) keys[e] = key<P>(stream, e);
      std::vector<std::uint64_t> order(rule_.elements);
      std::iota(order.begin(), order.end(), std::uint64_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](std::uint64_t a, std::uint64_t b) { return keys[a] > keys[b]; });
      math::Selection found[math::kRanks];
      for (int r = 0; r < wanted; ++r) {
        if (ranks[r] < 1 || ranks[r] > rule_.elements || (r > 0 && ranks[r] < ranks[r - 1])) {
          throw std::logic_error("a pass asks for a rank that the tensor does not have");
        }
        found[r] = {keys[order[ranks[r] - 1]], order[ranks[r] - 1]};
      }
      P::take(rule_, stream, found, math::detail::view<M>(plain_.facts));
    }
  }

  // ---- sums

  template <class P>
  void here(std::uint64_t e, math::Here& here) const {
    line_facts(e, here.line);
    here.index = e;
    using Common = typename P::Common;
    if constexpr (Common::kUsed) {
      const auto& whole = *known().whole;
      typename Common::State state;
      [&]<int... stage>(std::integer_sequence<int, stage...>) {
        const auto walk = [&]<int now>() {
          for (int s = 0; s < rule_.sources; ++s) {
            const float x = Common::kStream == math::Stream::value ? value(s, e) : difference(s, e);
            Common::template meet<now>(state, whole, x, here);
          }
        };
        (walk.template operator()<stage>(), ...);
      }
      (std::make_integer_sequence<int, Common::kStages>{});
      here.common = Common::finish(state, whole, here);
    }
  }

  // Sums that grow together: of a stretch of elements, lane by lane, or of a column's run.
  template <class P, int count>
  struct Lanes {
    std::vector<double> sums;
    explicit Lanes(std::size_t lanes) : sums(lanes * static_cast<std::size_t>(count), P::kStart) {}
    double* lane(std::size_t l) { return &sums[l * static_cast<std::size_t>(count)]; }
    // Halves onto each other until one lane is left.
    double* folded() {
      const auto width = static_cast<std::size_t>(count);
      for (std::size_t half = sums.size() / width / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half * width; ++i) {
          sums[i] = P::join(sums[i], sums[i + half * width]);
        }
      }
      return sums.data();
    }
  };

  // The sums of one group, of each line (or of the tensor): found[n][line].
  template <class P, class Term>
  void group(const math::Group& g, std::vector<std::vector<double>>& found) const {
    constexpr int kSums = Term::kSums;
    const auto& whole = *known().whole;
    const bool lines = P::kPass == math::Pass::lines;
    const auto add = [&](double* lane, std::uint64_t e) {
      math::Here around;
      here<P>(e, around);
      Term::add(lane, read(g.a, e), read(g.b, e), whole, around);
    };
    if (lines && shape_.lines == math::Lines::columns) {
      for (std::uint64_t first = 0; first < rule_.elements; first += math::kColumnRun) {
        const std::uint64_t end = std::min(first + math::kColumnRun, rule_.elements);
        Lanes<P, kSums> columns(shape_.count);
        for (std::uint64_t e = first; e < end; ++e) add(columns.lane(e % shape_.count), e);
        for (std::uint64_t c = 0; c < shape_.count; ++c) {
          for (int n = 0; n < kSums; ++n) {
            double& sum = found[static_cast<std::size_t>(g.first + n)][c];
            sum = first == 0 ? columns.lane(c)[n] : P::join(sum, columns.lane(c)[n]);
          }
        }
      }
      return;
    }
    const std::uint64_t width = lines ? shape_.width : rule_.elements;
    for (std::uint64_t line = 0; line * width < rule_.elements; ++line) {
      std::vector<std::vector<double>> pieces(static_cast<std::size_t>(kSums));
      const std::uint64_t end = (line + 1) * width;
      for (std::uint64_t at = line * width; at < end;) {
        const std::uint64_t stop = std::min(end, (at / math::kTile + 1) * math::kTile);
        Lanes<P, kSums> lanes(math::kLanes);
        for (std::uint64_t e = at; e < stop; ++e) add(lanes.lane((e - at) % math::kLanes), e);
        const double* sums = lanes.folded();
        for (int n = 0; n < kSums; ++n) pieces[static_cast<std::size_t>(n)].push_back(sums[n]);
        at = stop;
      }
      for (int n = 0; n < kSums; ++n) {
        found[static_cast<std::size_t>(g.first + n)][line] =
            paired<P>(pieces[static_cast<std::size_t>(n)]);
      }
    }
  }

  // Neighbours joined, level by level; an odd last one moves up.
  template <class P>
  static double paired(std::vector<double> level) {
    while (level.size() > 1) {
      std::vector<double> next;
      for (std::size_t i = 0; i + 1 < level.size(); i += 2) {
        next.push_back(P::join(level[i], level[i + 1]));
      }
      if (level.size() % 2 == 1) next.push_back(level.back());
      level = next;
    }
    return level[0];
  }

  template <class P, class... Term>
  void group(const math::Group& g, std::vector<std::vector<double>>& found,
             math::List<Term...>) const {
    int at = 0;
    ((at++ == g.term ? group<P, Term>(g, found) : void()), ...);
  }

  template <class P>
  void sum() {
    const bool lines = P::kPass == math::Pass::lines;
    const std::uint64_t count = lines ? shape_.count : 1;
    const int sums = P::sums(rule_);
    std::vector<std::vector<double>> found(static_cast<std::size_t>(sums),
                                           std::vector<double>(count, P::kStart));
    if (rule_.elements > 0) {
      for (int n = 0; n < P::groups(rule_); ++n) {
        group<P>(P::group(rule_, n), found, typename P::Terms{});
      }
    }
    std::vector<double> of_line(static_cast<std::size_t>(sums));
    for (std::uint64_t line = 0; line < count; ++line) {
      for (std::size_t n = 0; n < of_line.size(); ++n) of_line[n] = found[n][line];
      if constexpr (P::kPass == math::Pass::lines) {
        double facts[math::kLineFacts] = {};
        P::take(rule_, of_line.data(), facts);
        for (int i = 0; i < P::kFacts; ++i) {
          plain_.lines[static_cast<std::size_t>(P::kFirstFact + i) * count + line] = facts[i];
        }
      } else {
        plain_.refused = P::take(rule_, of_line.data(), math::detail::view<M>(plain_.facts));
      }
    }
  }

  const math::Rule& rule_;
  const Inputs& inputs_;
  Plain& plain_;
  math::LineShape shape_;
};

}  // namespace detail

// Runs the passes of a rule's method in order.
inline Plain measure(const math::Rule& rule, const Inputs& inputs) {
  Plain plain;
  math::with_method(rule.method,
                    [&]<class M>() { detail::Measuring<M>(rule, inputs, plain).run(); });
  return plain;
}

// Every element through math::evaluate().
template <class T>
std::vector<math::Outcome<T>> outcomes(const math::Rule& rule, const Plain& plain,
                                       const Inputs& inputs) {
  const math::Method& method = math::method(rule.method);
  const math::LineShape shape = math::line_shape(rule, method.lines(rule));
  std::vector<math::Outcome<T>> all;
  all.reserve(rule.elements);
  for (std::uint64_t e = 0; e < rule.elements; ++e) {
    float x[math::kSources] = {};
    for (int s = 0; s < rule.sources; ++s) {
      x[s] = inputs[static_cast<std::size_t>(s) + (rule.base ? 1 : 0)][e];
    }
    double line[math::kLineFacts] = {};
    for (int i = 0; shape.count > 0 && i < method.line_facts; ++i) {
      line[i] = plain.lines[static_cast<std::size_t>(i) * shape.count + shape.line(e)];
    }
    all.push_back(
        math::evaluate<T>(rule, plain.facts, x, rule.base ? inputs[0][e] : 0.0F, e, line));
  }
  return all;
}

}  // namespace ingot::test
