// Magnitude selection: integer keys that order |x|, and the test that keeps exactly k of them.
#pragma once

#include "ingot/math/target.hpp"

namespace ingot::math {

// Above infinity: the key of every NaN, whatever its payload (which differs between machines).
inline constexpr std::uint32_t kNanKey = 0x7f800001u;

// Above every key: as a threshold, with the largest index as the cut, it keeps nothing.
inline constexpr std::uint32_t kNoKey = 0x7fffffffu;

// Larger |x|, larger key; zeros of either sign are 0; 31 bits.
INGOT_HD std::uint32_t key(float x) {
  const std::uint32_t u = bits(x) & 0x7fffffffu;
  return u < kNanKey ? u : kNanKey;
}

// True for the k largest keys of a tensor, ties to the lowest index: `threshold` is the k-th
// largest key and `cut` the index of the last element with that key that is kept.
INGOT_HD bool selected(std::uint32_t key, std::uint32_t threshold, std::uint64_t index,
                       std::uint64_t cut) {
  return key > threshold || (key == threshold && index <= cut);
}

// The same test for a run of elements that lies wholly at or before the cut, or wholly behind it:
// selected(key, ...) == (key >= bound(...)).
INGOT_HD std::uint32_t bound(std::uint32_t threshold, std::uint64_t first, std::uint64_t cut) {
  return first <= cut ? threshold : threshold + 1u;
}

// Elements of one run of a sample.
inline constexpr std::uint32_t kSampled = 64;

// Where in a window of `length` elements that begins at `first` in the tensor its sampled run of
// `run` elements begins: hashed, so that no pattern of the tensor's own is met (SplitMix64's
// finisher).
INGOT_HD std::uint32_t sampled(std::uint64_t first, std::uint32_t length, std::uint32_t run) {
  std::uint64_t z = first + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z = z ^ (z >> 31);
  return static_cast<std::uint32_t>(z % (length - run + 1u));
}

}  // namespace ingot::math
