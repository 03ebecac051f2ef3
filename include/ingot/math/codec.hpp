// Storage formats: exact decoding to f32, encoding with one rounding to nearest, ties to even.
//
// Integer arithmetic, one exact subtraction (decode) and one magic addition (encode) for
// subnormals; no branches, so loops over these functions vectorise. Conversion instructions are not
// used: they disagree about NaN between machines. Written at encode, the only NaN of a format is
// the quiet one with its sign clear: 7fc00000, 7e00, 7fc0, 7f, 7f.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

enum class Format : std::uint8_t { f32, f16, bf16, e4m3, e5m2 };

inline constexpr int kFormats = 5;

// A format's stored word and its codec.
//   Word   unsigned integer of the element's width
//   decode(Word) -> float, exact (NaN stays NaN, its payload is not kept)
//   encode(float, Overflow) -> Word
template <Format>
struct Codec;

template <>
struct Codec<Format::f32> {
  using Word = std::uint32_t;
  INGOT_HD static float decode(Word w) { return from_bits(w); }
  INGOT_HD static Word encode(float x, Overflow) {
    const std::uint32_t u = bits(x);
    return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : u;
  }
};

template <>
struct Codec<Format::bf16> {
  using Word = std::uint16_t;
  INGOT_HD static float decode(Word w) { return from_bits(std::uint32_t{w} << 16); }
  INGOT_HD static Word encode(float x, Overflow) {
    const std::uint32_t u = bits(x);
    const std::uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return static_cast<Word>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : r);
  }
};

namespace detail {

// A small binary format: `mantissa` stored bits, smallest normal exponent 1 - bias. `code` is the
// word without its sign, at most 15 bits.

// Adding and taking away the smallest normal number turns the subnormal codes into exact multiples
// of the smallest subnormal one, without a subnormal f32 operand.
template <int mantissa, int bias>
INGOT_HD std::uint32_t widen(std::uint32_t code) {
  constexpr std::uint32_t shift = 23 - mantissa;
  constexpr std::uint32_t least = std::uint32_t{127 - bias + 1} << 23;
  const std::uint32_t normal = (code << shift) + (std::uint32_t{127 - bias} << 23);
  const std::uint32_t small = bits(from_bits((code << shift) + least) - from_bits(least));
  return code < (1u << mantissa) ? small : normal;
}

// `magnitude` is the f32 without its sign. Rounds to the code; results beyond the format's largest
// are left to the caller, who has the overflow rule. Below the smallest normal number the addition
// of a power of two whose last place is the smallest subnormal does the rounding.
template <int mantissa, int bias>
INGOT_HD std::uint32_t narrow(std::uint32_t magnitude) {
  constexpr std::uint32_t shift = 23 - mantissa;
  constexpr std::uint32_t least = std::uint32_t{127 - bias + 1} << 23;
  constexpr std::uint32_t magic = std::uint32_t{127 - bias + 1 + 23 - mantissa} << 23;
  const std::uint32_t normal = (magnitude - (std::uint32_t{127 - bias} << 23) +
                                ((1u << (shift - 1)) - 1u) + ((magnitude >> shift) & 1u)) >>
                               shift;
  const std::uint32_t small = bits(from_bits(magnitude) + from_bits(magic)) - magic;
  return magnitude < least ? small : normal;
}

}  // namespace detail

template <>
struct Codec<Format::f16> {
  using Word = std::uint16_t;
  INGOT_HD static float decode(Word w) {
    const std::uint32_t code = w & 0x7fffu;
    const std::uint32_t finite = detail::widen<10, 15>(code);
    const std::uint32_t u = code >= 0x7c00u ? (code << 13) | 0x7f800000u : finite;
    return from_bits(u | (std::uint32_t{w} & 0x8000u) << 16);
  }
  INGOT_HD static Word encode(float x, Overflow) {
    const std::uint32_t u = bits(x);
    const std::uint32_t a = u & 0x7fffffffu;
    std::uint32_t r = detail::narrow<10, 15>(a);
    r = r > 0x7c00u ? 0x7c00u : r;  // 65520 and more is infinity
    r |= (u >> 16) & 0x8000u;
    return static_cast<Word>(a > 0x7f800000u ? 0x7e00u : r);
  }
};

template <>
struct Codec<Format::e4m3> {  // e4m3fn: no infinity, largest 448
  using Word = std::uint8_t;
  INGOT_HD static float decode(Word w) {
    const std::uint32_t code = w & 0x7fu;
    const std::uint32_t finite = detail::widen<3, 7>(code);
    const std::uint32_t u = code == 0x7fu ? 0x7fc00000u : finite;
    return from_bits(u | (std::uint32_t{w} & 0x80u) << 24);
  }
  INGOT_HD static Word encode(float x, Overflow overflow) {
    const std::uint32_t u = bits(x);
    const std::uint32_t a = u & 0x7fffffffu;
    const std::uint32_t beyond = overflow == Overflow::saturate ? 0x7eu : 0x7fu;
    std::uint32_t r = detail::narrow<3, 7>(a);
    r = r > 0x7eu ? beyond : r;
    // A NaN by overflow is the canonical one: no sign.
    r |= r == 0x7fu ? 0u : (u >> 24) & 0x80u;
    return static_cast<Word>(a > 0x7f800000u ? 0x7fu : r);
  }
};

template <>
struct Codec<Format::e5m2> {  // the upper byte of an f16; largest 57344
  using Word = std::uint8_t;
  INGOT_HD static float decode(Word w) {
    return Codec<Format::f16>::decode(static_cast<std::uint16_t>(std::uint32_t{w} << 8));
  }
  INGOT_HD static Word encode(float x, Overflow overflow) {
    const std::uint32_t u = bits(x);
    const std::uint32_t a = u & 0x7fffffffu;
    const std::uint32_t beyond = overflow == Overflow::saturate ? 0x7bu : 0x7cu;
    std::uint32_t r = detail::narrow<2, 15>(a);
    r = r > 0x7bu ? beyond : r;
    r |= (u >> 24) & 0x80u;
    return static_cast<Word>(a > 0x7f800000u ? 0x7fu : r);
  }
};

// Bytes of one element.
INGOT_HD constexpr std::size_t width(Format format) {
  return format == Format::f32 ? 4u : format == Format::f16 || format == Format::bf16 ? 2u : 1u;
}

}  // namespace ingot::math
