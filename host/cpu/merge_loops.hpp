// The loops of apply(): what lenses show of a step, and what combines make of it. No method is
// named here. Compiled once per instruction set.
#pragma once

#include "cpu/lines.hpp"
#include "cpu/mask.hpp"
#include "cpu/states.hpp"
#include "ingot/math/list.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

// A step of a merge, for a method with so many line facts.
template <int facts>
struct Step {
  alignas(64) float base[kStep];
  alignas(64) float out[kStep];
  alignas(64) float seen[math::kSources][kStep];  // what the lens shows of each source
  LineFacts<facts> lines;
  std::uint64_t first = 0;  // index of the first element in the whole tensor

  INGOT_HD math::At<float> at(std::uint32_t e) const {
    math::At<float> at;
    at.base = base[e];
    at.index = first + e;
    lines.put(e, at.line);
    return at;
  }
};

// Calls body<form>() with the form that the facts ask for.
template <class Combine, class Body>
void each_form(const typename Combine::Facts& whole, Body body) {
  [&]<int... form>(std::integer_sequence<int, form...>) {
    ((form == Combine::form(whole) ? body.template operator()<form>() : void()), ...);
  }
  (std::make_integer_sequence<int, Combine::kForms>{});
}

// ---- combines

// K sources in registers. Returns conflicts.
template <class Combine, int form, int K, int facts>
std::uint32_t merge_unrolled(const typename Combine::Facts& facts_of_tensor,
                             const typename Combine::Source* source, const Step<facts>& step,
                             std::uint32_t n, float* __restrict out) {
  // Copies, which no store can change.
  const typename Combine::Facts whole = facts_of_tensor;
  typename Combine::Source own[static_cast<std::size_t>(K)];
  for (int s = 0; s < K; ++s) own[s] = source[s];
  typename Combine::template State<float> start;
  // Of a single source the compiler knows so much that it makes branches, which are slower: it must
  // not know how a state begins.
  if constexpr (K == 1) asm("" : "+m"(start));
  std::uint32_t conflicts = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const math::At<float> at = step.at(e);
    typename Combine::template State<float> state = start;
    [&]<int... stage>(std::integer_sequence<int, stage...>) __attribute__((always_inline)) {
      const auto walk = [&]<int now>() __attribute__((always_inline)) {
        INGOT_UNROLL
        for (int s = 0; s < K; ++s) {
          const float x = step.seen[s][e];
          Combine::template meet<form, now, float>(state, whole, own[s], x, x, at);
        }
      };
      (walk.template operator()<stage>(), ...);
    }
    (std::make_integer_sequence<int, Combine::kStages>{});
    math::Note note;
    out[e] = Combine::template finish<form, float>(state, whole, at, note);
    if (K > 1) conflicts += note.conflict ? 1u : 0u;  // one source is not in conflict
  }
  return conflicts;
}

// Results from the states of a step.
template <class Combine, int form, int facts>
std::uint32_t finish_states(const typename Combine::Facts& facts_of_tensor,
                            const States<typename Combine::template State<float>>& states,
                            const Step<facts>& step, std::uint32_t n, float* __restrict out) {
  const typename Combine::Facts whole = facts_of_tensor;
  std::uint32_t conflicts = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    math::Note note;
    out[e] = Combine::template finish<form, float>(states.load(e), whole, step.at(e), note);
    conflicts += note.conflict ? 1u : 0u;
  }
  return conflicts;
}

// Any number of sources, one after the other.
template <class Combine, int form, int facts>
std::uint32_t merge_streamed(const typename Combine::Facts& facts_of_tensor,
                             const typename Combine::Source* source, int sources,
                             const Step<facts>& step, std::uint32_t n, float* __restrict out) {
  using State = typename Combine::template State<float>;
  const typename Combine::Facts whole = facts_of_tensor;
  States<State> states;
  for (std::uint32_t e = 0; e < n; ++e) states.store(e, State{});
  const auto walk = [&]<int stage>() {
    for (int s = 0; s < sources; ++s) {
      const typename Combine::Source own = source[s];
      const float* seen = step.seen[s];
      for (std::uint32_t e = 0; e < n; ++e) {
        State state = states.load(e);
        Combine::template meet<form, stage, float>(state, whole, own, seen[e], seen[e], step.at(e));
        states.store(e, state);
      }
    }
  };
  [&]<int... stage>(std::integer_sequence<int, stage...>) {
    (walk.template operator()<stage>(), ...);
  }
  (std::make_integer_sequence<int, Combine::kStages>{});
  return finish_states<Combine, form, facts>(whole, states, step, n, out);
}

template <class Combine, int form, int K, int facts>
std::uint32_t merge(const typename Combine::Facts& whole, const typename Combine::Source* source,
                    int sources, const Step<facts>& step, std::uint32_t n, float* out) {
  if constexpr (K == 0) {
    return merge_streamed<Combine, form, facts>(whole, source, sources, step, n, out);
  } else {
    return merge_unrolled<Combine, form, K, facts>(whole, source, step, n, out);
  }
}

template <class Combine, int facts>
using Merge = std::uint32_t (*)(const typename Combine::Facts&, const typename Combine::Source*,
                                int, const Step<facts>&, std::uint32_t, float*);

// merge() for a form and a number of sources: 0 is any.
template <class Combine, int facts>
Merge<Combine, facts> merge_of(int form, int sources) {
  constexpr int kCounts = Combine::kUnrolled + 1;
  struct Table {
    Merge<Combine, facts> at[Combine::kForms * kCounts];
  };
  static constexpr Table table = []<int... n>(std::integer_sequence<int, n...>) {
    return Table{{merge<Combine, n / kCounts, n % kCounts, facts>...}};
  }
  (std::make_integer_sequence<int, Combine::kForms * kCounts>{});
  return table.at[form * kCounts + (sources < kCounts ? sources : 0)];
}

// ---- decoding and combining in one, source by source, where the state is one number

template <class Lens, class Combine>
inline constexpr bool kWalkable = Lens::kMask == Mask::none && !Lens::kGain &&
                                  Combine::kStages == 1 && Combine::kUnrolled > 1 &&
                                  sizeof(typename Combine::template State<float>) == sizeof(float);

template <class Lens, class Combine, Format f, int form, int facts>
void walk_words(const typename Combine::Facts& facts_of_tensor,
                const typename Combine::Source& source, const Word<f>* __restrict x,
                const Step<facts>& step, std::uint32_t n,
                States<typename Combine::template State<float>>& __restrict states) {
  const typename Combine::Facts whole = facts_of_tensor;
  const typename Combine::Source own = source;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float seen = Lens::kDelta ? math::delta(value, step.base[e]) : value;
    auto state = states.load(e);
    Combine::template meet<form, 0, float>(state, whole, own, seen, seen, step.at(e));
    states.store(e, state);
  }
}

template <class Lens, class Combine, int form, int facts>
std::uint32_t walk_all(const Run& run, const math::Known<Lens, Combine>& known, std::uint32_t from,
                       std::uint32_t n, Step<facts>& step) {
  using State = typename Combine::template State<float>;
  States<State> states;
  for (std::uint32_t e = 0; e < n; ++e) states.store(e, State{});
  for (int s = 0; s < run.sources; ++s) {
    const Input& input = source_of(run, s);
    prefetch(input, from, n);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      walk_words<Lens, Combine, f, form, facts>(*known.whole, known.source[s],
                                                words<f>(input, from), step, n, states);
    });
  }
  return finish_states<Combine, form, facts>(*known.whole, states, step, n, step.out);
}

// ---- decoding and combining in one, for combines of one source and lenses that show all of it

template <class Lens, class Combine, Format f, int form, int facts>
void merge_words(const typename Combine::Facts& facts_of_tensor,
                 const typename Combine::Source& source, const Word<f>* __restrict x,
                 const Step<facts>& step, std::uint32_t n, float* __restrict out) {
  const typename Combine::Facts whole = facts_of_tensor;
  const typename Combine::Source own = source;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float seen = Lens::kDelta ? math::delta(value, step.base[e]) : value;
    const math::At<float> at = step.at(e);
    typename Combine::template State<float> state;
    [&]<int... stage>(std::integer_sequence<int, stage...>) __attribute__((always_inline)) {
      (Combine::template meet<form, stage, float>(state, whole, own, seen, seen, at), ...);
    }
    (std::make_integer_sequence<int, Combine::kStages>{});
    math::Note note;  // one source is not in conflict
    out[e] = Combine::template finish<form, float>(state, whole, at, note);
  }
}

template <class Lens, class Combine, int facts>
void merge_single(const Run& run, const math::Known<Lens, Combine>& known, std::uint32_t from,
                  std::uint32_t n, Step<facts>& step) {
  const Input& input = source_of(run, 0);
  prefetch(input, from, n);
  dispatch(input.format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    each_form<Combine>(*known.whole, [&]<int form>() {
      merge_words<Lens, Combine, f, form, facts>(*known.whole, known.source[0],
                                                 words<f>(input, from), step, n, step.out);
    });
  });
}

// ---- a step

// What the lens shows of all sources, combined. Counts what it keeps.
template <class Lens, class Combine, int facts>
std::uint32_t merge_step(const Run& run, const math::Known<Lens, Combine>& known,
                         std::uint32_t from, std::uint32_t n, Step<facts>& step,
                         std::uint64_t* kept) {
  constexpr bool kWhole = Lens::kMask == Mask::none && !Lens::kGain;
  if constexpr (kWhole && Combine::kUnrolled == 1) {
    if (run.sources == 1) {
      kept[0] += n;
      merge_single(run, known, from, n, step);
      return 0;
    }
  }
  if constexpr (kWalkable<Lens, Combine>) {
    std::uint32_t conflicts = 0;
    each_form<Combine>(*known.whole, [&]<int form>() {
      conflicts = walk_all<Lens, Combine, form, facts>(run, known, from, n, step);
    });
    for (int s = 0; s < run.sources; ++s) kept[s] += n;
    return conflicts;
  } else {
    for (int s = 0; s < run.sources; ++s) {
      kept[s] += look<Lens>(source_of(run, s), known.lens[s], Lens::gain(known.lens[s]), step.first,
                            from, n, step.base, step.seen[s]);
    }
    const auto loop = merge_of<Combine, facts>(Combine::form(*known.whole), run.sources);
    return loop(*known.whole, known.source, run.sources, step, n, step.out);
  }
}

// ---- decoding, combining and encoding in one, where one format goes in and out

template <class Combine, Format f, int form, int K>
void fuse_words(const Run& run, const typename Combine::Facts& facts,
                const typename Combine::Source* source, Overflow overflow, std::byte* output) {
  static_assert(Combine::kStages == 1);
  using State = typename Combine::template State<float>;
  const typename Combine::Facts whole = facts;
  typename Combine::Source own[static_cast<std::size_t>(K)];
  const Word<f>* x[static_cast<std::size_t>(K)];
  for (int s = 0; s < K; ++s) {
    own[s] = source[s];
    x[s] = words<f>(run.inputs[s], 0);
  }
  Word<f>* __restrict out = reinterpret_cast<Word<f>*>(output);
  const auto finish = [&](const State& state, const math::At<float>& at)
      __attribute__((always_inline)) {
    math::Note note;
    return Combine::template finish<form, float>(state, whole, at, note);
  };
  constexpr std::uint32_t block = (K <= 4 ? 256 : 128) / math::width(f);
  for (std::uint32_t begin = 0; begin < run.count; begin += block) {
    const std::uint32_t end = smaller(begin + block, run.count);
    for (int s = 0; s < K; ++s) prefetch(run.inputs[s], begin, block);
    std::uint32_t e = begin;
    if constexpr (f == Format::bf16) {
      Pair* joined = reinterpret_cast<Pair*>(out + begin);
      for (std::uint32_t p = 0; p < (end - begin) / 2; ++p) {
        State a, b;
        math::At<float> at, next;
        at.index = run.first + begin + 2 * p;
        next.index = at.index + 1;
        INGOT_UNROLL
        for (int s = 0; s < K; ++s) {
          const std::uint32_t pair = reinterpret_cast<const Pair*>(x[s] + begin)[p];
          const float low = first(pair), high = second(pair);
          Combine::template meet<form, 0, float>(a, whole, own[s], low, low, at);
          Combine::template meet<form, 0, float>(b, whole, own[s], high, high, next);
        }
        joined[p] = join(finish(a, at), finish(b, next), overflow);
      }
      e = begin + (end - begin) / 2 * 2;
    }
    for (; e < end; ++e) {
      State state;
      math::At<float> at;
      at.index = run.first + e;
      INGOT_UNROLL
      for (int s = 0; s < K; ++s) {
        const float value = math::Codec<f>::decode(x[s][e]);
        Combine::template meet<form, 0, float>(state, whole, own[s], value, value, at);
      }
      out[e] = math::Codec<f>::encode(finish(state, at), overflow);
    }
  }
}

// True if one format goes in and out and the sources fit in registers.
template <class Combine>
bool uniform(const Run& run, Format format) {
  bool same = !run.base && run.sources >= 1 && run.sources <= Combine::kUnrolled;
  for (int s = 0; s < run.sources; ++s) same = same && run.inputs[s].format == format;
  return same;
}

template <class Combine, Format f>
void fuse_all(const Run& run, const typename Combine::Facts& facts,
              const typename Combine::Source* source, Overflow overflow, std::byte* output) {
  const int form = Combine::form(facts);
  [&]<int... n>(std::integer_sequence<int, n...>) {
    ((n / Combine::kUnrolled == form && n % Combine::kUnrolled + 1 == run.sources
          ? fuse_words<Combine, f, n / Combine::kUnrolled, n % Combine::kUnrolled + 1>(
                run, facts, source, overflow, output)
          : void()),
     ...);
  }
  (std::make_integer_sequence<int, Combine::kForms * Combine::kUnrolled>{});
}

// Formats whose codecs take more than a shift are faster source by source: their loop over all
// sources has too much in it to be vectorised (f16, four inputs: 0.14 against 0.8 Gelem/s).
template <class Combine>
bool fused(const Run& run, const typename Combine::Facts& facts,
           const typename Combine::Source* source, Format format, Overflow overflow,
           std::byte* output) {
  if (!uniform<Combine>(run, format)) return false;
  if (format == Format::bf16) {
    fuse_all<Combine, Format::bf16>(run, facts, source, overflow, output);
  } else if (format == Format::f32) {
    fuse_all<Combine, Format::f32>(run, facts, source, overflow, output);
  } else {
    return false;
  }
  return true;
}

// ---- a run

// Bits of the largest |out - base|; any NaN as the canonical one.
inline std::uint32_t largest_change(const float* __restrict out, const float* __restrict base,
                                    std::uint32_t n) {
  std::int32_t largest = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const auto change = static_cast<std::int32_t>(math::bits(out[e] - base[e]) & 0x7fffffffu);
    largest = change > largest ? change : largest;
  }
  return largest > 0x7f800000 ? 0x7fc00000u : static_cast<std::uint32_t>(largest);
}

template <class Lens, class Combine, int facts>
void apply(const Run& run, Format format, Overflow overflow, std::byte* output, Counts& counts) {
  const auto known = math::known<Lens, Combine>(run.facts, run.sources);
  if constexpr (Combine::kFused && !Lens::kDelta && !Lens::kGain && Lens::kMask == Mask::none &&
                facts == 0) {
    if (fused<Combine>(run, *known.whole, known.source, format, overflow, output)) {
      for (int s = 0; s < run.sources; ++s) counts.kept[s] += run.count;
      return;
    }
  }
  Step<facts> step;
  if (!run.base) decode_base(run, 0, kStep, step.base);
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    step.first = run.first + from;
    if (run.base) decode_base(run, from, n, step.base);
    step.lines.fill(run, from, n);
    counts.conflicts += merge_step(run, known, from, n, step, counts.kept);
    if (run.base) {
      const std::uint32_t change = largest_change(step.out, step.base, n);
      counts.change = change > counts.change ? change : counts.change;
    }
    encode(step.out, n, format, overflow, output, from);
  }
}

// apply() of each method of a list.
template <class List>
struct Merges;
template <class... M>
struct Merges<math::List<M...>> {
  static constexpr Apply table[] = {
      apply<typename M::Lens, typename M::Combine, math::line_facts<M>()>...};
};

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
