// The loops of fold and lines passes, in the shapes of math/fold.hpp. No method is named here.
// Compiled once per instruction set.
#pragma once

#include <utility>

#include "cpu/lines.hpp"
#include "cpu/mask.hpp"
#include "cpu/states.hpp"
#include "ingot/math/list.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

inline constexpr int kSums = 128;                        // of one sweep over the inputs
inline constexpr int kColumns = 2 * math::kSources + 1;  // most columns of a sweep

// Rows of 256 lanes per step: each lane is loaded and stored once per step.
inline constexpr std::uint32_t kRows = kStep / math::kLanes;

// The columns that a sweep's terms read, each once; `n` elements of them at a time.
template <int facts>
struct Columns {
  math::Column column[kColumns];
  int count = 0;
  std::uint64_t first = 0;  // index of the first element in the whole tensor
  alignas(64) float base[kStep];
  alignas(64) float number[kColumns][kStep];
  alignas(64) float common[kStep];
  LineFacts<facts> lines;

  // Where a column is held.
  int place(math::Column wanted) {
    for (int c = 0; c < count; ++c) {
      if (column[c].stream == wanted.stream && column[c].index == wanted.index) return c;
    }
    column[count] = wanted;
    return count++;
  }
};

// Decodes one column of a step.
template <class Lens>
void fill(const Run& run, const typename Lens::Facts* lens, math::Column column,
          std::uint64_t first, std::uint32_t from, std::uint32_t n, const float* base, float* out) {
  if (column.stream == math::Stream::value) {
    decode(run.inputs[column.index], from, n, out);
  } else if (column.stream == math::Stream::survivor) {
    (void)look<Lens, false>(source_of(run, column.index), lens[column.index], {}, first, from, n,
                            base, out);
  } else {
    (void)look<math::Delta, false>(source_of(run, column.index), {}, {}, first, from, n, base, out);
  }
}

// What surrounds an element of a step.
template <bool common, int facts>
INGOT_HD math::Here around(const Columns<facts>& columns, std::uint32_t e) {
  math::Here here;
  here.index = columns.first + e;
  if (common) here.common = columns.common[e];
  columns.lines.put(e, here.line);
  return here;
}

// Adds one element to the sums of a term: lane `l` of each.
template <class Term, class Whole, std::size_t... sum>
INGOT_HD void add(double* __restrict lanes, std::size_t stride, std::size_t l, float a, float b,
                  const Whole& whole, const math::Here& here, std::index_sequence<sum...>) {
  double own[] = {lanes[sum * stride + l]...};
  Term::add(own, a, b, whole, here);
  ((lanes[sum * stride + l] = own[sum]), ...);
}

// A whole step of a tile: both elements of each lane.
template <class Term, bool common, int facts, class Whole>
void fold_step(const Columns<facts>& columns, const float* __restrict a, const float* __restrict b,
               const Whole& facts_of_tensor, double* __restrict lanes) {
  const Whole whole = facts_of_tensor;
  [&]<std::size_t... sum>(std::index_sequence<sum...>) __attribute__((always_inline)) {
    for (std::uint32_t l = 0; l < math::kLanes; ++l) {
      double own[] = {lanes[sum * math::kLanes + l]...};
      INGOT_UNROLL
      for (std::uint32_t row = 0; row < kRows; ++row) {
        const std::uint32_t e = row * math::kLanes + l;
        Term::add(own, a[e], b[e], whole, around<common>(columns, e));
      }
      ((lanes[sum * math::kLanes + l] = own[sum]), ...);
    }
  }
  (std::make_index_sequence<Term::kSums>{});
}

// Elements [begin, begin + n) of a step, to as many neighbouring lanes. Sum i of the term begins at
// lanes[i * stride].
template <class Term, bool common, int facts, class Whole>
void fold_stretch(const Columns<facts>& columns, const float* __restrict a,
                  const float* __restrict b, const Whole& facts_of_tensor, std::uint32_t begin,
                  std::uint32_t n, std::size_t stride, double* __restrict lanes) {
  const Whole whole = facts_of_tensor;
  for (std::uint32_t i = 0; i < n; ++i) {
    add<Term>(lanes, stride, i, a[begin + i], b[begin + i], whole,
              around<common>(columns, begin + i), std::make_index_sequence<Term::kSums>{});
  }
}

// Some groups of a pass in one sweep over a run.
template <class M, class P>
class Sweep {
 public:
  Sweep(const Run& run, const math::Group* groups, int count)
      : run_(run),
        known_(math::known<typename M::Lens, typename M::Combine>(run.facts, run.sources)),
        groups_(groups),
        count_(count) {
    for (int g = 0, lanes = 0; g < count; ++g) {
      lanes_at_[g] = lanes;
      lanes += sums_of(groups[g].term);
      a_[g] = groups[g].a.stream == math::Stream::none ? 0 : columns_.place(groups[g].a);
      b_[g] = groups[g].b.stream == math::Stream::none ? a_[g] : columns_.place(groups[g].b);
    }
    if constexpr (Common::kUsed) {
      for (int s = 0; s < run.sources; ++s) all_[s] = columns_.place(of_source(s));
    }
  }

  // How many of the groups one sweep takes, beginning with the first.
  static int fitting(const Run& run, const math::Group* groups, int count) {
    bool known[4][kColumns] = {};
    int sums = 0, columns = Common::kUsed ? run.sources : 0, taken = 0;
    const auto meet = [&](math::Column column) {
      bool& met = known[static_cast<int>(column.stream)][column.index];
      columns += met || column.stream == math::Stream::none ? 0 : 1;
      met = true;
    };
    for (; taken < count; ++taken) {
      sums += sums_of(groups[taken].term);
      meet(groups[taken].a);
      meet(groups[taken].b);
      if (sums > kSums || columns > kColumns) break;
    }
    return taken;
  }

  // Tiles of the tensor.
  void tiles(std::size_t stride, double* sums) {
    std::size_t tile = 0;
    for (std::uint32_t begin = 0; begin < run_.count; begin += math::kTile, ++tile) {
      restart(math::kLanes);
      const std::uint32_t end = smaller(begin + math::kTile, run_.count);
      for (std::uint32_t from = begin; from < end; from += kStep) {
        const std::uint32_t n = smaller(kStep, end - from);
        decode_all(from, n);
        each([&]<class Term>(int g, const float* a, const float* b) {
          if (n == kStep) {
            fold_step<Term, Common::kUsed>(columns_, a, b, *known_.whole, lanes_of(g));
            return;
          }
          stretches(0, n, 0, [&](std::uint32_t at, std::uint32_t some, std::uint32_t lane) {
            fold_stretch<Term, Common::kUsed>(columns_, a, b, *known_.whole, at, some, math::kLanes,
                                              lanes_of(g) + lane);
          });
        });
      }
      finish(math::kLanes, stride, sums + tile);
    }
  }

  // Segments of rows.
  void rows(std::size_t stride, double* sums) {
    std::size_t segment = 0;
    std::uint32_t held = 0, known = 0;  // the elements that are decoded
    math::each_segment(
        run_.first, run_.count, run_.shape.width,
        [&](std::uint64_t, std::uint64_t begin, std::uint32_t length) {
          const std::uint32_t lanes = math::lanes_of(length);
          restart(lanes);
          const auto start = static_cast<std::uint32_t>(begin - run_.first);
          for (std::uint32_t at = start; at < start + length;) {
            if (at >= held + known) {
              held = at / kStep * kStep;
              known = smaller(kStep, run_.count - held);
              decode_all(held, known);
            }
            const std::uint32_t n = smaller(held + known, start + length) - at;
            const bool whole = n == kStep && (at - start) % math::kLanes == 0;
            each([&]<class Term>(int g, const float* a, const float* b) {
              if (whole) {
                fold_step<Term, Common::kUsed>(columns_, a, b, *known_.whole, lanes_of(g));
                return;
              }
              stretches(at - held, n, at - start,
                        [&](std::uint32_t from, std::uint32_t some, std::uint32_t lane) {
                          fold_stretch<Term, Common::kUsed>(columns_, a, b, *known_.whole, from,
                                                            some, math::kLanes, lanes_of(g) + lane);
                        });
            });
            at += n;
          }
          finish(lanes, stride, sums + segment++);
        });
  }

  // Columns: a lane for each of them, in `sums` itself.
  void columns(std::size_t stride, double* sums) {
    for (int g = 0; g < count_; ++g) {
      for (int i = 0; i < sums_of(groups_[g].term); ++i) {
        double* sum = sums + static_cast<std::size_t>(groups_[g].first + i) * stride;
        for (std::uint64_t c = 0; c < run_.shape.count; ++c) sum[c] = P::kStart;
      }
    }
    for (std::uint32_t from = 0; from < run_.count; from += kStep) {
      const std::uint32_t n = smaller(kStep, run_.count - from);
      decode_all(from, n);
      each([&]<class Term>(int g, const float* a, const float* b) {
        double* sum = sums + static_cast<std::size_t>(groups_[g].first) * stride;
        for (std::uint32_t at = 0; at < n;) {
          const std::uint64_t column = (run_.first + from + at) % run_.shape.width;
          const std::uint64_t left = run_.shape.width - column;
          const std::uint32_t some = left < n - at ? static_cast<std::uint32_t>(left) : n - at;
          fold_stretch<Term, Common::kUsed>(columns_, a, b, *known_.whole, at, some, stride,
                                            sum + column);
          at += some;
        }
      });
    }
  }

 private:
  using Common = typename P::Common;
  static constexpr int kFacts = math::line_facts<M>();

  template <class... Term>
  static constexpr int sums_of(int term, math::List<Term...>) {
    int at = 0, sums = 0;
    ((sums = at++ == term ? Term::kSums : sums), ...);
    return sums;
  }
  static constexpr int sums_of(int term) { return sums_of(term, typename P::Terms{}); }

  double* lanes_of(int g) { return lanes_[lanes_at_[g]]; }

  // What a Common sees of a source: the number of a value counts the base.
  math::Column of_source(int s) const {
    const bool skip = Common::kStream == math::Stream::value && run_.base;
    return {Common::kStream, static_cast<std::uint8_t>(s + (skip ? 1 : 0))};
  }

  // Calls body(from, n, lane) for the stretches of [from, from + n) between multiples of 256 lanes,
  // `place` being the place of the first element in its tile or segment.
  template <class Body>
  static void stretches(std::uint32_t from, std::uint32_t n, std::uint32_t place, Body body) {
    while (n > 0) {
      const std::uint32_t lane = place % math::kLanes;
      const std::uint32_t some = smaller(n, math::kLanes - lane);
      body(from, some, lane);
      from += some;
      place += some;
      n -= some;
    }
  }

  template <class Body, class... Term>
  void each_term(int g, Body& body, math::List<Term...>) {
    int at = 0;
    ((at++ == groups_[g].term
          ? body.template operator()<Term>(g, columns_.number[a_[g]], columns_.number[b_[g]])
          : void()),
     ...);
  }
  // Calls body<Term>(group, a, b) for each group.
  template <class Body>
  void each(Body body) {
    for (int g = 0; g < count_; ++g) each_term(g, body, typename P::Terms{});
  }

  void decode_all(std::uint32_t from, std::uint32_t n) {
    columns_.first = run_.first + from;
    decode_base(run_, from, n, columns_.base);
    columns_.lines.fill(run_, from, n);
    for (int c = 0; c < columns_.count; ++c) {
      fill<typename M::Lens>(run_, known_.lens, columns_.column[c], columns_.first, from, n,
                             columns_.base, columns_.number[c]);
    }
    if constexpr (Common::kUsed) {
      walk<Common>(
          *known_.whole, run_.sources, [&](int s) { return columns_.number[all_[s]]; },
          [&](std::uint32_t e)
              __attribute__((always_inline)) { return around<false>(columns_, e); },
          n, columns_.common);
    }
  }

  // Lanes of all sums as they begin.
  void restart(std::uint32_t lanes) {
    for (int g = 0; g < count_; ++g) {
      for (int i = 0; i < sums_of(groups_[g].term); ++i) {
        double* lane = lanes_of(g) + static_cast<std::size_t>(i) * math::kLanes;
        for (std::uint32_t l = 0; l < lanes; ++l) lane[l] = P::kStart;
      }
    }
  }
  void finish(std::uint32_t lanes, std::size_t stride, double* sums) {
    for (int g = 0; g < count_; ++g) {
      for (int i = 0; i < sums_of(groups_[g].term); ++i) {
        sums[static_cast<std::size_t>(groups_[g].first + i) * stride] =
            math::fold_lanes<P>(lanes_of(g) + static_cast<std::size_t>(i) * math::kLanes, lanes);
      }
    }
  }

  const Run& run_;
  const math::Known<typename M::Lens, typename M::Combine> known_;
  const math::Group* groups_;
  int count_;
  int lanes_at_[kSums], a_[kSums], b_[kSums], all_[math::kSources];
  Columns<kFacts> columns_;
  alignas(64) double lanes_[kSums][math::kLanes];
};

template <class M, class P>
void fold(const Run& run, const math::Group* groups, int count, std::size_t stride, double* sums) {
  for (int at = 0; at < count;) {
    const int some = Sweep<M, P>::fitting(run, groups + at, count - at);
    Sweep<M, P> sweep(run, groups + at, some);
    if (P::kPass != math::Pass::lines || run.shape.lines == math::Lines::none) {
      sweep.tiles(stride, sums);
    } else if (run.shape.lines == math::Lines::rows) {
      sweep.rows(stride, sums);
    } else {
      sweep.columns(stride, sums);
    }
    at += some;
  }
}

template <class M, class... P>
Fold fold_of_method(math::List<P...>, int pass) {
  Fold found = nullptr;
  [[maybe_unused]] int at = 0;
  [[maybe_unused]] const auto one = [&]<class Some>() {
    if constexpr (Some::kPass != math::Pass::order) {
      if (at == pass) found = fold<M, Some>;
    }
    ++at;
  };
  (one.template operator()<P>(), ...);
  return found;
}
template <class... M>
Fold fold_of(math::List<M...>, int method, int pass) {
  Fold found = nullptr;
  int at = 0;
  ((at++ == method ? void(found = fold_of_method<M>(typename M::Passes{}, pass)) : void()), ...);
  return found;
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
