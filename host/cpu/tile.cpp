// See tile.hpp. Only loops over raw pointers: no containers, no std templates, everything with
// internal linkage, so that no code of one instruction set can stand in for another's.
#include "cpu/tile.hpp"

#include <immintrin.h>

#include "ingot/math/key.hpp"
#include "ingot/math/linear.hpp"
#include "ingot/math/philox.hpp"
#include "ingot/math/slerp.hpp"
#include "ingot/math/ties.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

using math::Divisor;
using math::Facts;
using math::Format;
using math::Formula;
using math::Mask;
using math::Overflow;
using math::Vote;

// Stored words: bytes that may be read as the element type they hold.
typedef std::uint32_t Word32 __attribute__((may_alias));
typedef std::uint16_t Word16 __attribute__((may_alias));
typedef std::uint8_t Word8 __attribute__((may_alias));

template <Format f>
struct Stored;
template <>
struct Stored<Format::f32> {
  using Word = Word32;
};
template <>
struct Stored<Format::f16> {
  using Word = Word16;
};
template <>
struct Stored<Format::bf16> {
  using Word = Word16;
};
template <>
struct Stored<Format::e4m3> {
  using Word = Word8;
};
template <>
struct Stored<Format::e5m2> {
  using Word = Word8;
};
template <Format f>
using Word = typename Stored<f>::Word;

template <Format f>
const Word<f>* words(const Input& input, std::uint32_t from) {
  return reinterpret_cast<const Word<f>*>(input.data) + from;
}

// Two neighbouring bf16 elements in one word: the lower half comes first. Splitting them takes a
// shift and a mask where widening single elements takes shuffles.
typedef std::uint32_t Pair __attribute__((may_alias, aligned(2)));

using Brain = math::Codec<Format::bf16>;

float first(std::uint32_t pair) { return Brain::decode(static_cast<std::uint16_t>(pair)); }
float second(std::uint32_t pair) { return Brain::decode(static_cast<std::uint16_t>(pair >> 16)); }
std::uint32_t join(float first, float second, Overflow overflow) {
  return static_cast<std::uint32_t>(Brain::encode(first, overflow)) |
         static_cast<std::uint32_t>(Brain::encode(second, overflow)) << 16;
}

template <Format f>
struct Tag {
  static constexpr Format format = f;
};

// Calls body(Tag<format>): one instantiation of its loop per stored format.
template <class Body>
void dispatch(Format format, Body body) {
  switch (format) {
    case Format::f32:
      body(Tag<Format::f32>{});
      break;
    case Format::f16:
      body(Tag<Format::f16>{});
      break;
    case Format::bf16:
      body(Tag<Format::bf16>{});
      break;
    case Format::e4m3:
      body(Tag<Format::e4m3>{});
      break;
    case Format::e5m2:
      body(Tag<Format::e5m2>{});
      break;
  }
}

// Calls body(Count<k>) for k = 1 to kUnrolled: one instantiation per number of sources.
inline constexpr int kUnrolled = 8;

template <int k>
struct Count {
  static constexpr int value = k;
};

template <class Body>
void dispatch_count(int k, Body body) {
  switch (k) {
    case 1:
      body(Count<1>{});
      break;
    case 2:
      body(Count<2>{});
      break;
    case 3:
      body(Count<3>{});
      break;
    case 4:
      body(Count<4>{});
      break;
    case 5:
      body(Count<5>{});
      break;
    case 6:
      body(Count<6>{});
      break;
    case 7:
      body(Count<7>{});
      break;
    default:
      body(Count<8>{});
      break;
  }
}

std::uint32_t smaller(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

const Input& source_of(const Run& run, int source) {
  return run.inputs[source + (run.base ? 1 : 0)];
}

// Asks for what a loop over elements [from, from + n) will want kAhead bytes later. Every loop asks
// for its own input and for little at a time: more requests than the core can keep open (32 and up)
// stall it, none at all leaves a fifth of the memory's rate unused (bench/README.md).
inline constexpr std::size_t kAhead = 1024;

INGOT_HD void prefetch(const Input& input, std::uint32_t from, std::uint32_t n) {
  const std::size_t width = math::width(input.format);
  const std::byte* at = input.data + from * width + kAhead;
  for (std::size_t b = 0; b < n * width; b += 64) __builtin_prefetch(at + b);
}

// ---- decode, encode

template <Format f>
void decode_words(const Word<f>* __restrict in, std::uint32_t n, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) out[e] = math::Codec<f>::decode(in[e]);
}

void decode(const Input& input, std::uint32_t from, std::uint32_t n, float* out) {
  prefetch(input, from, n);
  dispatch(input.format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    decode_words<f>(words<f>(input, from), n, out);
  });
}

// The base of a step, or zeros.
void decode_base(const Run& run, std::uint32_t from, std::uint32_t n, float* out) {
  if (run.base) {
    decode(run.inputs[0], from, n, out);
  } else {
    for (std::uint32_t e = 0; e < n; ++e) out[e] = 0.0F;
  }
}

template <Format f>
void encode_words(const float* __restrict in, std::uint32_t n, Overflow overflow,
                  Word<f>* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) out[e] = math::Codec<f>::encode(in[e], overflow);
}

void encode(const float* in, std::uint32_t n, Format format, Overflow overflow, std::byte* output,
            std::uint32_t from) {
  dispatch(format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    encode_words<f>(in, n, overflow, reinterpret_cast<Word<f>*>(output) + from);
  });
}

// ---- masks

// Counters in the 64-bit lanes of a vector. The compiler finds no widening product for them by
// itself: its own code for a loop over blocks is 1.5 (AVX-512) to 3 times slower (bench/README.md).
// head() and tail() are a 0, b 0, a 1, b 1 and so on, of the first and the second half of the
// lanes.
struct Vector {
#if defined(__AVX512F__)
  typedef std::uint64_t Lane __attribute__((vector_size(64)));
  INGOT_HD static Lane product(Lane a, Lane b) {
    return reinterpret_cast<Lane>(
        _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
  }
  INGOT_HD static Lane head(Lane a, Lane b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  }
  INGOT_HD static Lane tail(Lane a, Lane b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
  static std::uint64_t marks(const std::uint8_t* mark) {
    return _mm512_movepi8_mask(_mm512_load_si512(mark));
  }
#elif defined(__AVX2__)
  typedef std::uint64_t Lane __attribute__((vector_size(32)));
  INGOT_HD static Lane product(Lane a, Lane b) {
    return reinterpret_cast<Lane>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
  }
  INGOT_HD static Lane head(Lane a, Lane b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
  INGOT_HD static Lane tail(Lane a, Lane b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
  static std::uint64_t marks(const std::uint8_t* mark) {
    const auto half = [&](int at) {
      const auto bytes = _mm256_load_si256(reinterpret_cast<const __m256i*>(mark) + at);
      return std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes))};
    };
    return half(0) | half(1) << 32;
  }
#else
  typedef std::uint64_t Lane __attribute__((vector_size(16)));
  INGOT_HD static Lane product(Lane a, Lane b) {
    return reinterpret_cast<Lane>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
  }
  INGOT_HD static Lane head(Lane a, Lane b) { return __builtin_shufflevector(a, b, 0, 2); }
  INGOT_HD static Lane tail(Lane a, Lane b) { return __builtin_shufflevector(a, b, 1, 3); }
  static std::uint64_t marks(const std::uint8_t* mark) {
    const auto quarter = [&](int at) {
      const auto bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(mark) + at);
      return std::uint64_t{static_cast<std::uint32_t>(_mm_movemask_epi8(bytes))};
    };
    return quarter(0) | quarter(1) << 16 | quarter(2) << 32 | quarter(3) << 48;
  }
#endif
  INGOT_HD static Lane splat(std::uint32_t x) { return Lane{} + x; }
};

inline constexpr std::uint32_t kAbreast = sizeof(Vector::Lane) / 8;  // blocks at a time
inline constexpr std::uint32_t kMarks = 64;                          // bytes of marks at a time

// First draws of `blocks` blocks, eight per block, in memory order. `out` has room for kStep draws.
void draw_blocks(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
                 std::uint32_t blocks, std::uint64_t* __restrict out) {
  Vector::Lane place;
  for (std::uint32_t l = 0; l < kAbreast; ++l) place[l] = block + l;
  const Vector::Lane low = Vector::splat(0xffffffffu);
  const Vector::Lane s0 = Vector::splat(static_cast<std::uint32_t>(stream));
  const Vector::Lane s1 = Vector::splat(static_cast<std::uint32_t>(stream >> 32));
  for (std::uint32_t i = 0; i < blocks; i += kAbreast) {
    math::Counter<Vector::Lane> c = {{place + i, (place + i) >> 32, s0, s1}};
    math::scramble<Vector>(c, seed);
    const Vector::Lane front = (c.word[0] & low) | (c.word[1] << 32);
    const Vector::Lane back = (c.word[2] & low) | (c.word[3] << 32);
    const Vector::Lane head = Vector::head(front, back);
    const Vector::Lane tail = Vector::tail(front, back);
    __builtin_memcpy(out + 2 * i, &head, sizeof head);
    __builtin_memcpy(out + 2 * i + kAbreast, &tail, sizeof tail);
  }
}

// keep[e] = 1 or 0 for the elements first + e, `first` a multiple of 8.
void draw_mask(const Facts& facts, const math::Source& source, std::uint64_t first, std::uint32_t n,
               std::uint16_t* __restrict keep) {
  alignas(64) std::uint64_t draws[kStep / 4];
  draw_blocks(facts.seed, source.stream, first / 8, (n + 7) / 8, draws);
  const Word16* half = reinterpret_cast<const Word16*>(draws);
  const std::uint16_t upper = static_cast<std::uint16_t>(source.keep >> 32);
  std::uint16_t ties = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    keep[e] = half[e] < upper ? 1 : 0;
    ties = static_cast<std::uint16_t>(ties | (half[e] == upper ? 1 : 0));
  }
  if (ties == 0) return;
  for (std::uint32_t e = 0; e < n; ++e) {
    if (half[e] != upper) continue;
    keep[e] = math::keep(half[e], source.keep, facts.seed, source.stream, first + e) ? 1 : 0;
  }
}

template <Format f, bool split>
void thin_none(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t n,
               math::Gain gain, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) {
    out[e] = math::survivor<split>(math::delta(math::Codec<f>::decode(x[e]), base[e]), true, gain);
  }
}

// Keys and bounds have 31 bits; signed comparison is the cheap one. The bound is at most kNanKey,
// so a NaN reaches it whatever its payload, and its key need not be made canonical.
template <Format f, bool split>
std::uint32_t thin_select(const Word<f>* __restrict x, const float* __restrict base,
                          std::uint32_t n, std::int32_t bound, math::Gain gain,
                          float* __restrict out) {
  std::uint32_t kept = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float d = math::delta(math::Codec<f>::decode(x[e]), base[e]);
    const bool keep = static_cast<std::int32_t>(math::bits(d) & 0x7fffffffu) >= bound;
    out[e] = math::survivor<split>(d, keep, gain);
    kept += keep ? 1u : 0u;
  }
  return kept;
}

template <Format f, bool split>
std::uint32_t thin_random(const Word<f>* __restrict x, const float* __restrict base,
                          std::uint32_t n, const std::uint16_t* __restrict keep, math::Gain gain,
                          float* __restrict out) {
  std::uint32_t kept = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float d = math::delta(math::Codec<f>::decode(x[e]), base[e]);
    const std::uint32_t k = keep[e];
    out[e] = math::survivor<split>(d, k != 0, gain);
    kept += k;
  }
  return kept;
}

// What the mask leaves of one source in a step, times `gain`; returns how many elements it let
// through.
template <bool split>
std::uint32_t thin(const Run& run, const Facts& facts, int s, math::Gain gain, std::uint32_t from,
                   std::uint32_t n, const float* base, float* out) {
  const math::Source& source = facts.source[s];
  const Input& input = source_of(run, s);
  const std::uint64_t first = run.first + from;
  prefetch(input, from, n);
  if (source.all != 0 || facts.mask == Mask::none) {
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      thin_none<f, split>(words<f>(input, from), base, n, gain, out);
    });
    return n;
  }
  std::uint32_t kept = 0;
  if (facts.mask == Mask::random) {
    alignas(64) std::uint16_t keep[kStep];
    draw_mask(facts, source, first, n, keep);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      kept = thin_random<f, split>(words<f>(input, from), base, n, keep, gain, out);
    });
    return kept;
  }
  // One comparison decides for elements up to the cut, another behind it.
  std::uint32_t edge = n;
  if (source.cut >= first && source.cut - first < n) {
    edge = static_cast<std::uint32_t>(source.cut - first) + 1;
  }
  for (std::uint32_t at = 0; at < n;) {
    const std::uint32_t end = at < edge ? edge : n;
    const std::uint32_t bound = math::bound(source.threshold, first + at, source.cut);
    if (bound > math::kNanKey) {
      for (; at < end; ++at) out[at] = 0.0F;
      continue;
    }
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      kept += thin_select<f, split>(words<f>(input, from + at), base + at, end - at,
                                    static_cast<std::int32_t>(bound), gain, out + at);
    });
    at = end;
  }
  return kept;
}

std::uint32_t thin(const Run& run, const Facts& facts, int s, math::Gain gain, std::uint32_t from,
                   std::uint32_t n, const float* base, float* out) {
  return gain.split() ? thin<true>(run, facts, s, gain, from, n, base, out)
                      : thin<false>(run, facts, s, gain, from, n, base, out);
}

// ---- formulas

struct Step {
  alignas(64) float base[kStep];
  alignas(64) float out[kStep];
  alignas(64) float alive[math::kSources][kStep];  // what thin() left of each source
};

// The weighted mean of inputs that all have one format, with K of them in registers, encoded.
template <Format f, int K, bool divided>
void linear_words(const Input* inputs, const Facts& facts, std::uint32_t n, Overflow overflow,
                  Word<f>* __restrict out) {
  float weight[static_cast<std::size_t>(K)];
  const Word<f>* x[static_cast<std::size_t>(K)];
  const float divisor = facts.scalar[math::kDivisor];
  for (int s = 0; s < K; ++s) {
    weight[s] = facts.source[s].weight;
    x[s] = words<f>(inputs[s], 0);
  }
  constexpr std::uint32_t block = (K <= 4 ? 256 : 128) / math::width(f);
  for (std::uint32_t begin = 0; begin < n; begin += block) {
    const std::uint32_t end = smaller(begin + block, n);
    for (int s = 0; s < K; ++s) prefetch(inputs[s], begin, block);
    std::uint32_t e = begin;
    if constexpr (f == Format::bf16) {
      Pair* joined = reinterpret_cast<Pair*>(out + begin);
      for (std::uint32_t p = 0; p < (end - begin) / 2; ++p) {
        float a = 0.0F, b = 0.0F;
        INGOT_UNROLL
        for (int s = 0; s < K; ++s) {
          const std::uint32_t pair = reinterpret_cast<const Pair*>(x[s] + begin)[p];
          a = math::weigh(a, weight[s], first(pair));
          b = math::weigh(b, weight[s], second(pair));
        }
        if (divided) a = math::share_out(a, divisor);
        if (divided) b = math::share_out(b, divisor);
        joined[p] = join(a, b, overflow);
      }
      e = begin + (end - begin) / 2 * 2;
    }
    for (; e < end; ++e) {
      float sum = 0.0F;
      INGOT_UNROLL
      for (int s = 0; s < K; ++s) {
        sum = math::weigh(sum, weight[s], math::Codec<f>::decode(x[s][e]));
      }
      if (divided) sum = math::share_out(sum, divisor);
      out[e] = math::Codec<f>::encode(sum, overflow);
    }
  }
}

template <Format f>
void linear_word(const Word<f>* __restrict x, float weight, std::uint32_t n,
                 float* __restrict sum) {
  for (std::uint32_t e = 0; e < n; ++e) {
    sum[e] = math::weigh(sum[e], weight, math::Codec<f>::decode(x[e]));
  }
}

void share_out(float* __restrict sum, float divisor, std::uint32_t n) {
  for (std::uint32_t e = 0; e < n; ++e) sum[e] = math::share_out(sum[e], divisor);
}

// True if one format goes in and out and the sources fit in registers.
bool uniform(const Run& run, Format format) {
  bool same = run.sources <= kUnrolled;
  for (int s = 0; s < run.sources; ++s) same = same && run.inputs[s].format == format;
  return same;
}

template <Format f>
void linear_uniform(const Run& run, const Facts& facts, bool divided, Overflow overflow,
                    std::byte* output) {
  Word<f>* to = reinterpret_cast<Word<f>*>(output);
  dispatch_count(run.sources, [&](auto count) {
    constexpr int k = decltype(count)::value;
    if (divided) {
      linear_words<f, k, true>(run.inputs, facts, run.count, overflow, to);
    } else {
      linear_words<f, k, false>(run.inputs, facts, run.count, overflow, to);
    }
  });
}

void linear(const Run& run, const Facts& facts, Format format, Overflow overflow,
            std::byte* output) {
  // Weights that sum to one need no division.
  const bool divided = facts.divisor != Divisor::none && facts.scalar[math::kDivisor] != 1.0F;
  // Formats whose codecs take more than a shift are faster source by source: their loop over all
  // sources has too much in it to be vectorised (f16, four inputs: 0.14 against 0.8 Gelem/s).
  if (format == Format::bf16 && uniform(run, format)) {
    return linear_uniform<Format::bf16>(run, facts, divided, overflow, output);
  }
  if (format == Format::f32 && uniform(run, format)) {
    return linear_uniform<Format::f32>(run, facts, divided, overflow, output);
  }
  alignas(64) float sum[kStep];
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    for (std::uint32_t e = 0; e < n; ++e) sum[e] = 0.0F;
    for (int s = 0; s < run.sources; ++s) {
      dispatch(run.inputs[s].format, [&](auto tag) {
        constexpr Format f = decltype(tag)::format;
        linear_word<f>(words<f>(run.inputs[s], from), facts.source[s].weight, n, sum);
      });
    }
    if (divided) share_out(sum, facts.scalar[math::kDivisor], n);
    encode(sum, n, format, overflow, output, from);
  }
}

template <Format f>
void scale_words(const Word<f>* __restrict x, float scale, std::uint32_t n, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) out[e] = math::Codec<f>::decode(x[e]) * scale;
}

void scale(const Run& run, const Facts& facts, std::uint32_t from, std::uint32_t n, float* out) {
  dispatch(run.inputs[0].format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    scale_words<f>(words<f>(run.inputs[0], from), facts.source[0].weight, n, out);
  });
}

template <Format f>
void slerp_words(const float* __restrict v0, const Word<f>* __restrict v1, math::Arc arc,
                 std::uint32_t n, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) out[e] = arc(v0[e], math::Codec<f>::decode(v1[e]));
}

void slerp(const Run& run, const Facts& facts, std::uint32_t from, std::uint32_t n,
           const float* base, float* out) {
  const Input& other = source_of(run, 0);
  prefetch(other, from, n);
  dispatch(other.format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    slerp_words<f>(base, words<f>(other, from), math::Arc(facts), n, out);
  });
}

// Sum of task vectors, K sources in registers. Leaves M in `out`; returns conflicts.
template <int K>
std::uint32_t sum_unrolled(const float (*__restrict alive)[kStep], std::uint32_t n,
                           float* __restrict out) {
  std::uint32_t conflicts = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    float merged = 0.0F;
    math::Spread spread;
    INGOT_UNROLL
    for (int s = 0; s < K; ++s) {
      merged += alive[s][e];
      if (K > 1) spread.add(alive[s][e]);
    }
    out[e] = merged;
    if (K > 1) conflicts += spread.conflict() ? 1u : 0u;
  }
  return conflicts;
}

void sum_source(const float* __restrict alive, std::uint32_t n, float* __restrict merged,
                math::Spread* __restrict spread) {
  for (std::uint32_t e = 0; e < n; ++e) {
    merged[e] += alive[e];
    spread[e].add(alive[e]);
  }
}

void land(const float* __restrict base, float lambda, std::uint32_t n, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) out[e] = math::land(out[e], lambda, base[e]);
}

std::uint32_t sum(const Step& step, const Facts& facts, std::uint32_t n, float* out) {
  std::uint32_t conflicts = 0;
  if (facts.sources >= 1 && facts.sources <= kUnrolled) {
    dispatch_count(facts.sources, [&](auto count) {
      conflicts = sum_unrolled<decltype(count)::value>(step.alive, n, out);
    });
  } else {
    alignas(64) math::Spread spread[kStep];
    for (std::uint32_t e = 0; e < n; ++e) out[e] = 0.0F;
    for (int s = 0; s < facts.sources; ++s) sum_source(step.alive[s], n, out, spread);
    for (std::uint32_t e = 0; e < n; ++e) conflicts += spread[e].conflict() ? 1u : 0u;
  }
  if (facts.divisor != Divisor::none) share_out(out, facts.scalar[math::kDivisor], n);
  land(step.base, facts.scalar[math::kLambda], n, out);
  return conflicts;
}

template <Vote vote, Divisor divisor, int K>
std::uint32_t consensus_unrolled(const Step& step, const Facts& facts, std::uint32_t n,
                                 float* __restrict out) {
  float weight[static_cast<std::size_t>(K)];
  for (int s = 0; s < K; ++s) weight[s] = facts.source[s].weight;
  const float* base = step.base;
  const math::Consensus<vote, divisor, float, K> formula{weight, K, facts.scalar[math::kLambda]};
  std::uint32_t conflicts = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    float alive[static_cast<std::size_t>(K)];
    INGOT_UNROLL
    for (int s = 0; s < K; ++s) alive[s] = step.alive[s][e];
    bool conflict = false;
    out[e] = formula(alive, alive, base[e], conflict);
    conflicts += conflict ? 1u : 0u;
  }
  return conflicts;
}

// The same source by source, with the running sums of a step in memory.
template <Vote vote, Divisor divisor>
std::uint32_t consensus_stepwise(const Step& step, const Facts& facts, std::uint32_t n,
                                 float* __restrict out) {
  alignas(64) float votes[kStep];
  alignas(64) float shares[kStep];
  alignas(64) float least[kStep];
  for (std::uint32_t e = 0; e < n; ++e) votes[e] = shares[e] = least[e] = out[e] = 0.0F;
  for (int s = 0; s < facts.sources; ++s) {
    const float* alive = step.alive[s];
    for (std::uint32_t e = 0; e < n; ++e) votes[e] += math::ballot<vote>(alive[e]);
  }
  for (int s = 0; s < facts.sources; ++s) {
    const float* alive = step.alive[s];
    const float weight = facts.source[s].weight;
    for (std::uint32_t e = 0; e < n; ++e) {
      const float opinion = math::heard(alive[e], math::majority(votes[e]));
      out[e] += math::agrees(opinion) ? math::term<vote>(alive[e], weight) : 0.0F;
      shares[e] += math::agrees(opinion) ? math::share<divisor>(weight) : 0.0F;
      least[e] = opinion < least[e] ? opinion : least[e];
    }
  }
  std::uint32_t conflicts = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    out[e] = math::land(math::mean<divisor>(out[e], shares[e]), facts.scalar[math::kLambda],
                        step.base[e]);
    conflicts += math::opposes(least[e]) ? 1u : 0u;
  }
  return conflicts;
}

template <Vote vote, Divisor divisor>
std::uint32_t consensus(const Step& step, const Facts& facts, std::uint32_t n, float* out) {
  std::uint32_t conflicts = 0;
  // With one source the compiler emits branches, which is slower: use the general loop.
  if (facts.sources >= 2 && facts.sources <= kUnrolled) {
    dispatch_count(facts.sources, [&](auto count) {
      conflicts = consensus_unrolled<vote, divisor, decltype(count)::value>(step, facts, n, out);
    });
  } else {
    conflicts = consensus_stepwise<vote, divisor>(step, facts, n, out);
  }
  return conflicts;
}

std::uint32_t consensus(const Step& step, const Facts& facts, std::uint32_t n, float* out) {
  if (facts.vote == Vote::total) return consensus<Vote::total, Divisor::count>(step, facts, n, out);
  if (facts.vote == Vote::frequency) {
    return consensus<Vote::frequency, Divisor::count>(step, facts, n, out);
  }
  if (facts.divisor == Divisor::none) {
    return consensus<Vote::weighted, Divisor::none>(step, facts, n, out);
  }
  return consensus<Vote::weighted, Divisor::weight>(step, facts, n, out);
}

// Bits of the largest |out - base|; any NaN as the canonical one.
std::uint32_t largest_change(const float* __restrict out, const float* __restrict base,
                             std::uint32_t n) {
  std::int32_t largest = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const auto change = static_cast<std::int32_t>(math::bits(out[e] - base[e]) & 0x7fffffffu);
    largest = change > largest ? change : largest;
  }
  return largest > 0x7f800000 ? 0x7fc00000u : static_cast<std::uint32_t>(largest);
}

void apply(const Run& run, const Facts& facts, Format format, Overflow overflow, std::byte* output,
           Counts& counts) {
  if (facts.formula == Formula::linear) return linear(run, facts, format, overflow, output);
  Step step;
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    decode_base(run, from, n, step.base);
    if (facts.formula == Formula::scale) {
      scale(run, facts, from, n, step.out);
    } else if (facts.formula == Formula::slerp) {
      slerp(run, facts, from, n, step.base, step.out);
    } else {
      for (int s = 0; s < facts.sources; ++s) {
        counts.kept[s] +=
            thin(run, facts, s, facts.source[s].gain, from, n, step.base, step.alive[s]);
      }
      counts.conflicts += facts.formula == Formula::sum ? sum(step, facts, n, step.out)
                                                        : consensus(step, facts, n, step.out);
    }
    if (run.base) {
      const std::uint32_t change = largest_change(step.out, step.base, n);
      counts.change = change > counts.change ? change : counts.change;
    }
    encode(step.out, n, format, overflow, output, from);
  }
}

// ---- selection

template <Format f>
void key_words(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t n,
               std::uint32_t* __restrict keys) {
  for (std::uint32_t e = 0; e < n; ++e) {
    keys[e] = math::key(math::delta(math::Codec<f>::decode(x[e]), base[e]));
  }
}

void keys(const Run& run, int source, std::uint32_t from, std::uint32_t count, std::uint32_t* out) {
  alignas(64) float base[kStep];
  decode_base(run, from, count, base);
  const Input& input = source_of(run, source);
  dispatch(input.format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    key_words<f>(words<f>(input, from), base, count, out);
  });
}

// A window of one key: what is above it and what is at it.
template <Format f>
void count_point(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t n,
                 std::int32_t point, Census& census) {
  std::uint32_t above = 0, reached = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const auto k =
        static_cast<std::int32_t>(math::key(math::delta(math::Codec<f>::decode(x[e]), base[e])));
    above += k > point ? 1u : 0u;
    reached += k >= point ? 1u : 0u;
  }
  census.above += above;
  census.at_high += reached - above;
}

template <Format f>
void count_window(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t from,
                  std::uint32_t n, std::int32_t low, std::int32_t high, Census& census) {
  alignas(64) std::uint32_t key[kStep];
  alignas(64) std::uint8_t mark[kStep];
  std::uint32_t above = 0, at_high = 0, at_low = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    key[e] = math::key(math::delta(math::Codec<f>::decode(x[e]), base[e]));
    const auto k = static_cast<std::int32_t>(key[e]);
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
    found[i] = {key[place[i]], from + place[i]};
  }
  census.between += count;
}

void verify(const Run& run, const Window* windows, const std::uint8_t* active, Census* census) {
  alignas(64) float base[kStep];
  for (std::uint32_t from = 0; from < run.count; from += kStep) {
    const std::uint32_t n = smaller(kStep, run.count - from);
    decode_base(run, from, n, base);
    for (int s = 0; s < run.sources; ++s) {
      if (active[s] == 0) continue;
      const Input& input = source_of(run, s);
      const auto low = static_cast<std::int32_t>(windows[s].low);
      const auto high = static_cast<std::int32_t>(windows[s].high);
      dispatch(input.format, [&](auto tag) {
        constexpr Format f = decltype(tag)::format;
        const Word<f>* x = words<f>(input, from);
        if (low == high) {
          count_point<f>(x, base, n, high, census[s]);
        } else {
          count_window<f>(x, base, from, n, low, high, census[s]);
        }
      });
    }
  }
}

// ---- folds

inline constexpr int kTerms = 128;  // of one pass over the inputs

// Rows of 256 lanes per step: each lane is loaded and stored once per step.
inline constexpr std::uint32_t kRows = kStep / math::kLanes;

void fold_products(const float* __restrict a, const float* __restrict b, double* __restrict lanes) {
  for (std::uint32_t l = 0; l < math::kLanes; ++l) {
    double lane = lanes[l];
    INGOT_UNROLL
    for (std::uint32_t row = 0; row < kRows; ++row) {
      lane = math::add_product(lane, a[row * math::kLanes + l], b[row * math::kLanes + l]);
    }
    lanes[l] = lane;
  }
}

// The three products of two columns, each loaded and widened once.
void fold_products(const float* __restrict a, const float* __restrict b, double* __restrict aa,
                   double* __restrict bb, double* __restrict ab) {
  for (std::uint32_t l = 0; l < math::kLanes; ++l) {
    double lane_aa = aa[l], lane_bb = bb[l], lane_ab = ab[l];
    INGOT_UNROLL
    for (std::uint32_t row = 0; row < kRows; ++row) {
      const float x = a[row * math::kLanes + l], y = b[row * math::kLanes + l];
      lane_aa = math::add_product(lane_aa, x, x);
      lane_bb = math::add_product(lane_bb, y, y);
      lane_ab = math::add_product(lane_ab, x, y);
    }
    aa[l] = lane_aa;
    bb[l] = lane_bb;
    ab[l] = lane_ab;
  }
}

void fold_absolutes(const float* __restrict a, double* __restrict lanes) {
  for (std::uint32_t l = 0; l < math::kLanes; ++l) {
    double lane = lanes[l];
    INGOT_UNROLL
    for (std::uint32_t row = 0; row < kRows; ++row) {
      lane = math::add_absolute(lane, a[row * math::kLanes + l]);
    }
    lanes[l] = lane;
  }
}

// The columns that a step's terms read, each once.
struct Columns {
  math::Column column[2 * math::kSources + 1];
  int count = 0;
  alignas(64) float base[kStep];
  alignas(64) float number[2 * math::kSources + 1][kStep];
};

int place(Columns& columns, math::Column column) {
  for (int c = 0; c < columns.count; ++c) {
    if (columns.column[c].stream == column.stream && columns.column[c].index == column.index) {
      return c;
    }
  }
  columns.column[columns.count] = column;
  return columns.count++;
}

// Decodes one column of a step; elements behind the end are +0.
void fill(const Run& run, const Facts& facts, math::Column column, std::uint32_t from,
          std::uint32_t n, const float* base, float* out) {
  if (column.stream == math::Stream::value) {
    decode(run.inputs[column.index], from, n, out);
  } else if (column.stream == math::Stream::survivor) {
    (void)thin(run, facts, column.index, {}, from, n, base, out);
  } else {
    const Input& input = source_of(run, column.index);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      thin_none<f, false>(words<f>(input, from), base, n, {}, out);
    });
  }
  for (std::uint32_t e = n; e < kStep; ++e) out[e] = 0.0F;
}

bool products(const math::Term* three) {
  constexpr auto product = math::Term::Kind::product;
  return three[0].kind == product && three[1].kind == product && three[2].kind == product;
}

void fold_some(const Run& run, const Facts& facts, const math::Term* terms, int count,
               std::uint32_t tiles, double* sums) {
  Columns columns;
  int a[kTerms], b[kTerms];
  for (int t = 0; t < count; ++t) {
    a[t] = place(columns, terms[t].a);
    b[t] = place(columns, terms[t].b);
  }
  alignas(64) double lanes[kTerms][math::kLanes];
  for (std::uint32_t tile = 0; tile < tiles; ++tile) {
    for (int t = 0; t < count; ++t) {
      for (std::uint32_t l = 0; l < math::kLanes; ++l) lanes[t][l] = 0.0;
    }
    const std::uint32_t begin = tile * math::kTile;
    const std::uint32_t end = smaller(begin + math::kTile, run.count);
    for (std::uint32_t from = begin; from < end; from += kStep) {
      const std::uint32_t n = smaller(kStep, end - from);
      decode_base(run, from, n, columns.base);
      for (int c = 0; c < columns.count; ++c) {
        fill(run, facts, columns.column[c], from, n, columns.base, columns.number[c]);
      }
      for (int t = 0; t < count; ++t) {
        if (t + 2 < count && a[t] == b[t] && a[t + 1] == b[t + 1] && a[t + 2] == a[t] &&
            b[t + 2] == a[t + 1] && products(terms + t)) {
          fold_products(columns.number[a[t]], columns.number[a[t + 1]], lanes[t], lanes[t + 1],
                        lanes[t + 2]);
          t += 2;
        } else if (terms[t].kind == math::Term::Kind::product) {
          fold_products(columns.number[a[t]], columns.number[b[t]], lanes[t]);
        } else {
          fold_absolutes(columns.number[a[t]], lanes[t]);
        }
      }
    }
    for (int t = 0; t < count; ++t) {
      sums[static_cast<std::size_t>(t) * tiles + tile] = math::fold_lanes(lanes[t]);
    }
  }
}

void fold(const Run& run, const Facts& facts, const math::Term* terms, int count, double* sums) {
  const std::uint32_t tiles = (run.count + math::kTile - 1) / math::kTile;
  for (int first = 0; first < count; first += kTerms) {
    const int some = count - first < kTerms ? count - first : kTerms;
    fold_some(run, facts, terms + first, some, tiles,
              sums + static_cast<std::size_t>(first) * tiles);
  }
}

// ---- canaries

void canary(const float* in, float* out) {
  out[0] = in[0] * in[0] - in[1];
  out[1] = in[2] * in[3];
  out[2] = in[3] / in[4];
  out[3] = __builtin_sqrtf(in[5]);
  out[4] = math::fuse(in[0], in[0], -in[1]);
}

}  // namespace

const Tiles tiles = {apply, keys, verify, fold, canary};

}  // namespace ingot::cpu::INGOT_ISA
