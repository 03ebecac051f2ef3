// The loops of order passes: keys, and how they are counted against a window. No method is named
// here. Compiled once per instruction set.
#pragma once

#include "cpu/lines.hpp"
#include "cpu/mask.hpp"
#include "cpu/states.hpp"
#include "ingot/math/list.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

// ---- keys

// What surrounds the elements of a step, for a method with so many line facts.
template <int facts>
struct Around {
  alignas(64) float base[kStep];
  LineFacts<facts> lines;
  std::uint64_t first = 0;  // index of the first element in the whole tensor

  void fill(const Run& run, std::uint32_t from, std::uint32_t n) {
    first = run.first + from;
    decode_base(run, from, n, base);
    lines.fill(run, from, n);
  }
  INGOT_HD math::At<float> at(std::uint32_t e) const {
    math::At<float> at;
    at.base = base[e];
    at.index = first + e;
    lines.put(e, at.line);
    return at;
  }
};

template <class Key, class Whole, Format f, int facts>
void key_words(const Whole& facts_of_tensor, const Word<f>* __restrict x,
               const Around<facts>& around, std::uint32_t n, std::int32_t* __restrict keys) {
  const Whole whole = facts_of_tensor;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float d = Key::Lens::kDelta ? math::delta(value, around.base[e]) : value;
    keys[e] = Key::key(whole, d, around.at(e));
  }
}

// The keys of a step, `n` elements from `from` on, whose surroundings are known.
template <class M, class P, int facts>
void key_step(const Run& run, const typename M::Combine::Facts& whole, int source,
              const Around<facts>& around, std::uint32_t from, std::uint32_t n,
              std::int32_t* out) {
  using Key = typename P::Key;
  using Lens = typename Key::Lens;
  static_assert(Lens::kMask == Mask::none && !Lens::kGain, "keys are of values or differences");
  if constexpr (Key::kSingle) {
    const Input& input = source_of(run, source);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      key_words<Key, typename M::Combine::Facts, f>(whole, words<f>(input, from), around, n, out);
    });
  } else {
    alignas(64) float seen[math::kSources][kStep];
    for (int s = 0; s < run.sources; ++s) {
      (void)look<Lens>(source_of(run, s), {}, {}, around.first, from, n, around.base, seen[s]);
    }
    walk<Key>(
        whole, run.sources, [&](int s) { return seen[s]; },
        [&](std::uint32_t e) __attribute__((always_inline)) { return around.at(e); }, n, out);
  }
}

template <class M>
const typename M::Combine::Facts& whole_of(const Run& run) {
  return *math::known<typename M::Lens, typename M::Combine>(run.facts, run.sources).whole;
}

// The keys of an order pass P of the method M.
template <class M, class P>
void keys(const Run& run, int source, std::uint32_t from, std::uint32_t n, std::int32_t* out) {
  Around<math::line_facts<M>()> around;
  around.fill(run, from, n);
  key_step<M, P>(run, whole_of<M>(run), source, around, from, n, out);
}

// ---- counting

// A window of one key: what is above it and what is at it.
inline void count_point(const std::int32_t* __restrict keys, std::uint32_t n, std::int32_t point,
                        Census& census) {
  std::uint32_t above = 0, reached = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    above += keys[e] > point ? 1u : 0u;
    reached += keys[e] >= point ? 1u : 0u;
  }
  census.above += above;
  census.at_high += reached - above;
}

inline void count_window(const std::int32_t* __restrict keys, std::uint32_t from, std::uint32_t n,
                         const Window& window, Census& census) {
  const std::int32_t low = window.low, high = window.high;
  alignas(64) std::uint8_t mark[kStep];
  std::uint32_t above = 0, at_high = 0, at_low = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const std::int32_t k = keys[e];
    above += k > high ? 1u : 0u;
    at_high += k == high ? 1u : 0u;
    at_low += k == low ? 1u : 0u;
    mark[e] = k > low && k < high ? 0x80 : 0;
  }
  census.above += above;
  census.at_high += at_high;
  census.at_low += at_low;
  for (std::uint32_t e = n; e % kMarks != 0; ++e) mark[e] = 0;
  // Candidates are one or two in a hundred, at random: of every 64 marks the first is taken down
  // without asking whether there is one (a branch would be guessed wrong for half of them: 20 ns
  // each).
  std::uint32_t place[kStep];
  std::uint32_t count = 0;
  for (std::uint32_t begin = 0; begin < n; begin += kMarks) {
    std::uint64_t left = Vector::marks(mark + begin);
    place[count] =
        begin + static_cast<std::uint32_t>(__builtin_ctzll(left | std::uint64_t{1} << 63));
    count += left != 0 ? 1u : 0u;
    for (left &= left - 1; left != 0; left &= left - 1) {
      place[count++] = begin + static_cast<std::uint32_t>(__builtin_ctzll(left));
    }
  }
  const std::uint32_t room = census.between < census.room ? census.room - census.between : 0;
  Found* found = census.found + census.between;
  for (std::uint32_t i = 0; i < smaller(count, room); ++i) {
    found[i] = {keys[place[i]], from + place[i]};
  }
  census.between += count;
}


template <class M, class P>
void count(const Run& run, const Window* windows, int number, Census* census) {
  const auto& whole = whole_of<M>(run);
  Around<math::line_facts<M>()> around;
  alignas(64) std::int32_t keys[kStep];
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    around.fill(run, from, n);
    for (int w = 0; w < number; ++w) {
      if (w == 0 || windows[w].stream != windows[w - 1].stream) {
        key_step<M, P>(run, whole, windows[w].source, around, from, n, keys);
      }
      if (windows[w].low == windows[w].high) {
        count_point(keys, n, windows[w].high, census[w]);
      } else {
        count_window(keys, from, n, windows[w], census[w]);
      }
    }
  }
}

// ---- all methods of a list

struct Orders {
  Keys keys = nullptr;
  Count count = nullptr;
};

template <class M, class... P>
Orders orders_of_method(math::List<P...>, int pass) {
  Orders found;
  [[maybe_unused]] int at = 0;
  [[maybe_unused]] const auto one = [&]<class Some>() {
    if constexpr (Some::kPass == math::Pass::order) {
      if (at == pass) found = {keys<M, Some>, count<M, Some>};
    }
    ++at;
  };
  (one.template operator()<P>(), ...);
  return found;
}
template <class... M>
Orders orders_of(math::List<M...>, int method, int pass) {
  Orders found;
  int at = 0;
  ((at++ == method ? void(found = orders_of_method<M>(typename M::Passes{}, pass)) : void()), ...);
  return found;
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
