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
  // Of element e, whose base is `own`.
  INGOT_HD math::At<float> at(std::uint32_t e, float own) const {
    math::At<float> at;
    at.base = own;
    at.index = first + e;
    lines.put(e, at.line);
    return at;
  }
};

// True for keys that take facts of any type: they read none.
template <class Key>
constexpr bool reads_none() {
  if constexpr (Key::kSingle) {
    return requires(const math::At<float>& at) { Key::key(math::None{}, 0.0F, at); };
  } else {
    return false;
  }
}

// The key of an element of a source whose stored elements are `x`.
template <class Key, Format f, class Whole, int facts>
INGOT_HD std::int32_t key_at(const Whole& whole, const Word<f>* x, const float* base,
                             const Around<facts>& around, std::uint32_t e) {
  const float value = math::Codec<f>::decode(x[e]);
  const float d = Key::Lens::kDelta ? math::delta(value, base[e]) : value;
  return Key::key(whole, d, around.at(e, base[e]));
}

template <class Key, Format f, class Whole, int facts>
void key_words(const Whole& facts_of_tensor, const Word<f>* __restrict x,
               const float* __restrict base, const Around<facts>& around, std::uint32_t n,
               std::int32_t* __restrict keys) {
  const Whole whole = facts_of_tensor;
  for (std::uint32_t e = 0; e < n; ++e) keys[e] = key_at<Key, f>(whole, x, base, around, e);
}

// The keys of a step, `n` elements from `from` on, whose surroundings are known.
template <class Key, class Whole, int facts>
void key_step(const Run& run, const Whole& whole, int source, const Around<facts>& around,
              std::uint32_t from, std::uint32_t n, std::int32_t* out) {
  using Lens = typename Key::Lens;
  static_assert(Lens::kMask == Mask::none && !Lens::kGain, "keys are of values or differences");
  if constexpr (Key::kSingle) {
    const Input& input = source_of(run, source);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      key_words<Key, f>(whole, words<f>(input, from), around.base, around, n, out);
    });
  } else {
    alignas(64) float seen[math::kSources][kStep];
    for (int s = 0; s < run.sources; ++s) {
      (void)look<Lens, false>(source_of(run, s), {}, {}, around.first, from, n, around.base,
                              seen[s]);
    }
    walk<Key>(
        whole, run.sources, [&](int s) { return seen[s]; },
        [&](std::uint32_t e)
            __attribute__((always_inline)) { return around.at(e, around.base[e]); },
        n, out);
  }
}

template <class Key, class Whole, int facts>
void keys(const Run& run, const Whole& whole, int source, std::uint32_t from, std::uint32_t n,
          std::int32_t* out) {
  Around<facts> around;
  around.fill(run, from, n);
  key_step<Key>(run, whole, source, around, from, n, out);
}

// Calls body with the facts of the whole tensor that the keys of pass P read: nothing for keys that
// take facts of any type, so that methods share their loops.
template <class M, class P, class Body>
void with_facts(const Run& run, Body body) {
  if constexpr (reads_none<typename P::Key>()) {
    body(math::None{});
  } else {
    body(*math::known<typename M::Lens, typename M::Combine>(run.facts, run.sources).whole);
  }
}

// ---- counting

// A window of one key: what is above it and what is at it. `key` gives an element's key.
template <class Key>
INGOT_HD void count_point(Key key, std::uint32_t n, std::int32_t point, Census& census) {
  std::uint32_t above = 0, reached = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const std::int32_t k = key(e);
    above += k > point ? 1u : 0u;
    reached += k >= point ? 1u : 0u;
  }
  census.above += above;
  census.at_high += reached - above;
}

template <class Key>
INGOT_HD void count_window(Key key, std::uint32_t from, std::uint32_t n, const Window& window,
                           Census& census) {
  const std::int32_t low = window.low, high = window.high;
  alignas(64) std::int32_t keys[kStep];
  alignas(64) std::uint8_t mark[kStep];
  std::uint32_t above = 0, at_high = 0, at_low = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const std::int32_t k = key(e);
    keys[e] = k;
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

template <class Key>
INGOT_HD void count_step(Key key, std::uint32_t from, std::uint32_t n, const Window& window,
                         Census& census) {
  if (window.low == window.high) {
    count_point(key, n, window.high, census);
  } else {
    count_window(key, from, n, window, census);
  }
}

// The keys of a source against one window: they need not be kept.
template <class Key, Format f, class Whole, int facts>
void count_words(const Whole& facts_of_tensor, const Word<f>* __restrict x,
                 const float* __restrict base, const Around<facts>& around, std::uint32_t from,
                 std::uint32_t n, const Window& window, Census& census) {
  const Whole whole = facts_of_tensor;
  count_step(
      [&](std::uint32_t e)
          __attribute__((always_inline)) { return key_at<Key, f>(whole, x, base, around, e); },
      from, n, window, census);
}

inline void count_keys(const std::int32_t* __restrict keys, std::uint32_t from, std::uint32_t n,
                       const Window& window, Census& census) {
  count_step(
      [&](std::uint32_t e) __attribute__((always_inline)) { return keys[e]; }, from, n, window,
      census);
}

template <class Key, class Whole, int facts>
void count(const Run& run, const Whole& whole, const Window* windows, int number, Census* census) {
  Around<facts> around;
  alignas(64) std::int32_t keys[kStep];
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    around.fill(run, from, n);
    for (int w = 0; w < number;) {
      int end = w + 1;
      while (end < number && windows[end].stream == windows[w].stream) ++end;
      if constexpr (Key::kSingle) {
        if (end == w + 1) {
          const Input& input = source_of(run, windows[w].source);
          dispatch(input.format, [&](auto tag) {
            constexpr Format f = decltype(tag)::format;
            count_words<Key, f>(whole, words<f>(input, from), around.base, around, from, n,
                                windows[w], census[w]);
          });
          w = end;
          continue;
        }
      }
      key_step<Key>(run, whole, windows[w].source, around, from, n, keys);
      for (; w < end; ++w) count_keys(keys, from, n, windows[w], census[w]);
    }
  }
}

// ---- all methods of a list

template <class M, class P>
void keys_of(const Run& run, int source, std::uint32_t from, std::uint32_t n, std::int32_t* out) {
  with_facts<M, P>(run, [&]<class Whole>(const Whole& whole) {
    keys<typename P::Key, Whole, math::line_facts<M>()>(run, whole, source, from, n, out);
  });
}
template <class M, class P>
void count_of(const Run& run, const Window* windows, int number, Census* census) {
  with_facts<M, P>(run, [&]<class Whole>(const Whole& whole) {
    count<typename P::Key, Whole, math::line_facts<M>()>(run, whole, windows, number, census);
  });
}

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
      if (at == pass) found = {keys_of<M, Some>, count_of<M, Some>};
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
