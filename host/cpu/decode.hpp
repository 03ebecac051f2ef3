// Stored elements to f32 and back, a step at a time. Compiled once per instruction set: everything
// has internal linkage, so that no code of one can stand in for another's.
#pragma once

#include "cpu/tile.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

using math::Format;
using math::Overflow;

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

inline float first(std::uint32_t pair) { return Brain::decode(static_cast<std::uint16_t>(pair)); }
inline float second(std::uint32_t pair) {
  return Brain::decode(static_cast<std::uint16_t>(pair >> 16));
}
inline std::uint32_t join(float first, float second, Overflow overflow) {
  return static_cast<std::uint32_t>(Brain::encode(first, overflow)) |
         static_cast<std::uint32_t>(Brain::encode(second, overflow)) << 16;
}

template <Format f>
struct Tag {
  static constexpr Format format = f;
};

// Calls body(Tag<format>): one instantiation of its loop per stored format. Calls cost as much as a
// few elements: loops of a step must not meet many of them.
template <class Body>
INGOT_HD void dispatch(Format format, Body body) {
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

inline std::uint32_t smaller(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

inline const Input& source_of(const Run& run, int source) {
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

__attribute__((noinline, unused)) void decode(const Input& input, std::uint32_t from,
                                              std::uint32_t n, float* out) {
  prefetch(input, from, n);
  dispatch(input.format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    decode_words<f>(words<f>(input, from), n, out);
  });
}

// The base of a step, or zeros.
inline void decode_base(const Run& run, std::uint32_t from, std::uint32_t n, float* out) {
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

__attribute__((noinline, unused)) void encode(const float* in, std::uint32_t n, Format format,
                                              Overflow overflow, std::byte* output,
                                              std::uint32_t from) {
  dispatch(format, [&](auto tag) {
    constexpr Format f = decltype(tag)::format;
    encode_words<f>(in, n, overflow, reinterpret_cast<Word<f>*>(output) + from);
  });
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
