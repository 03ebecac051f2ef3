// What lenses show of a source: masks as loops evaluate them. Compiled once per instruction set.
#pragma once

#include <immintrin.h>

#include "cpu/decode.hpp"
#include "ingot/math/parts/lens.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

using math::Mask;

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
inline void draw_blocks(std::uint64_t seed, std::uint64_t stream, std::uint64_t block,
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
inline void draw_mask(const math::Chance& chance, std::uint64_t first, std::uint32_t n,
                      std::uint16_t* __restrict keep) {
  alignas(64) std::uint64_t draws[kStep / 4];
  draw_blocks(chance.seed, chance.stream, first / 8, (n + 7) / 8, draws);
  const Word16* half = reinterpret_cast<const Word16*>(draws);
  const std::uint16_t upper = static_cast<std::uint16_t>(chance.keep >> 32);
  std::uint16_t ties = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    keep[e] = half[e] < upper ? 1 : 0;
    ties = static_cast<std::uint16_t>(ties | (half[e] == upper ? 1 : 0));
  }
  if (ties == 0) return;
  for (std::uint32_t e = 0; e < n; ++e) {
    if (half[e] != upper) continue;
    keep[e] = math::keep(half[e], chance.keep, chance.seed, chance.stream, first + e) ? 1 : 0;
  }
}

// What a lens without a mask, or one that keeps all, makes of stored elements.
template <Format f, bool difference, bool weighted, bool split>
void look_at_all(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t n,
                 math::Gain gain, float* __restrict out) {
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float d = difference ? math::delta(value, base[e]) : value;
    out[e] = weighted ? math::survivor<split>(d, true, gain) : d;
  }
}

template <class Lens, Format f, bool split>
std::uint32_t look_bounded(const Word<f>* __restrict x, const float* __restrict base,
                           std::uint32_t n, typename Lens::Piece piece, math::Gain gain,
                           float* __restrict out) {
  std::uint32_t kept = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float d = Lens::kDelta ? math::delta(value, base[e]) : value;
    const bool keep = Lens::passes(piece, d);
    out[e] = math::seen<Lens, split>(d, keep, gain);
    kept += keep ? 1u : 0u;
  }
  return kept;
}

template <class Lens, Format f, bool split>
std::uint32_t look_drawn(const Word<f>* __restrict x, const float* __restrict base, std::uint32_t n,
                         const std::uint16_t* __restrict keep, math::Gain gain,
                         float* __restrict out) {
  std::uint32_t kept = 0;
  for (std::uint32_t e = 0; e < n; ++e) {
    const float value = math::Codec<f>::decode(x[e]);
    const float d = Lens::kDelta ? math::delta(value, base[e]) : value;
    const std::uint32_t k = keep[e];
    out[e] = math::seen<Lens, split>(d, k != 0, gain);
    kept += k;
  }
  return kept;
}

template <class Lens, bool split>
std::uint32_t look(const Input& input, const typename Lens::Facts& facts, math::Gain gain,
                   std::uint64_t first, std::uint32_t from, std::uint32_t n, const float* base,
                   float* out) {
  prefetch(input, from, n);
  if (Lens::kMask == Mask::none || Lens::all(facts)) {
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      look_at_all<f, Lens::kDelta, Lens::kGain, split>(words<f>(input, from), base, n, gain, out);
    });
    return n;
  }
  std::uint32_t kept = 0;
  if constexpr (Lens::kMask == Mask::random) {
    alignas(64) std::uint16_t keep[kStep];
    draw_mask(Lens::chance(facts), first, n, keep);
    dispatch(input.format, [&](auto tag) {
      constexpr Format f = decltype(tag)::format;
      kept = look_drawn<Lens, f, split>(words<f>(input, from), base, n, keep, gain, out);
    });
  } else if constexpr (Lens::kMask == Mask::bound) {
    for (std::uint32_t at = 0; at < n;) {
      std::uint32_t some = n - at;
      const typename Lens::Piece piece = Lens::piece(facts, first + at, some);
      if (Lens::empty(piece)) {
        for (std::uint32_t e = at; e < at + some; ++e) out[e] = 0.0F;
      } else {
        dispatch(input.format, [&](auto tag) {
          constexpr Format f = decltype(tag)::format;
          kept += look_bounded<Lens, f, split>(words<f>(input, from + at), base + at, some, piece,
                                               gain, out + at);
        });
      }
      at += some;
    }
  }
  return kept;
}

// What a lens shows of `n` elements of an input, the first of them number `first` of the tensor and
// `from` of the input; returns how many its mask let through. `base` is the base of these elements.
template <class Lens>
std::uint32_t look(const Input& input, const typename Lens::Facts& facts, math::Gain gain,
                   std::uint64_t first, std::uint32_t from, std::uint32_t n, const float* base,
                   float* out) {
  if constexpr (Lens::kGain) {
    if (gain.split()) return look<Lens, true>(input, facts, gain, first, from, n, base, out);
  }
  return look<Lens, false>(input, facts, gain, first, from, n, base, out);
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
