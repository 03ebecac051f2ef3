// Randomness as a pure function: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", 2011) and the keep decision of random masks. The layout is fixed by docs/numbers.md.
#pragma once

#include "ingot/math/target.hpp"

namespace ingot::math {

struct Block {
  std::uint32_t word[4];
};

// One or several counters side by side: words are the low halves of 64-bit lanes, what stands above
// them is ignored.
template <class Lane>
struct Counter {
  Lane word[4];
};

// A lane is one number here; the CPU's loops bring vectors and their own product.
struct Scalar {
  using Lane = std::uint64_t;
  INGOT_HD static Lane splat(std::uint32_t x) { return x; }
  INGOT_HD static Lane product(Lane a, Lane b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
};

// Ten rounds under the key `seed`.
template <class Machine>
INGOT_HD void scramble(Counter<typename Machine::Lane>& c, std::uint64_t seed) {
  using Lane = typename Machine::Lane;
  std::uint32_t k0 = static_cast<std::uint32_t>(seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(seed >> 32);
  INGOT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const Lane p0 = Machine::product(c.word[0], Machine::splat(0xd2511f53u));
    const Lane p1 = Machine::product(c.word[2], Machine::splat(0xcd9e8d57u));
    c.word[0] = (p1 >> 32) ^ c.word[1] ^ Machine::splat(k0);
    c.word[1] = p1;
    c.word[2] = (p0 >> 32) ^ c.word[3] ^ Machine::splat(k1);
    c.word[3] = p0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
}

// Key = seed, counter = (block low, block high, stream low, stream high).
INGOT_HD Block philox(std::uint64_t seed, std::uint64_t stream, std::uint64_t block) {
  Counter<std::uint64_t> c = {{block, block >> 32, stream, stream >> 32}};
  scramble<Scalar>(c, seed);
  return {{static_cast<std::uint32_t>(c.word[0]), static_cast<std::uint32_t>(c.word[1]),
           static_cast<std::uint32_t>(c.word[2]), static_cast<std::uint32_t>(c.word[3])}};
}

// First draw of an element: 16 bits, eight per block, the low half of a word before the high half.
INGOT_HD std::uint32_t draw(const Block& block, std::uint32_t element_mod_8) {
  return (block.word[element_mod_8 >> 1] >> ((element_mod_8 & 1u) * 16u)) & 0xffffu;
}

// Second draw, for the one element in 65,536 whose first draw equals the threshold's upper bits.
INGOT_HD std::uint32_t second_draw(std::uint64_t seed, std::uint64_t stream,
                                   std::uint64_t element) {
  const Block block = philox(seed, stream, (element / 4) | (std::uint64_t{1} << 63));
  const std::uint32_t j = static_cast<std::uint32_t>(element % 4);
  // Selected, not indexed: a GPU would put the block in memory for an index it does not know.
  const std::uint32_t low = (j & 1u) == 0 ? block.word[0] : block.word[1];
  const std::uint32_t high = (j & 1u) == 0 ? block.word[2] : block.word[3];
  return j < 2 ? low : high;
}

INGOT_HD bool keep(std::uint32_t first, std::uint64_t threshold, std::uint64_t seed,
                   std::uint64_t stream, std::uint64_t element) {
  const std::uint32_t upper = static_cast<std::uint32_t>(threshold >> 32);
  if (first != upper) return first < upper;
  return second_draw(seed, stream, element) < static_cast<std::uint32_t>(threshold);
}

// Whether the mask keeps an element: true with probability threshold / 2^48.
INGOT_HD bool keep(std::uint64_t seed, std::uint64_t stream, std::uint64_t element,
                   std::uint64_t threshold) {
  const Block block = philox(seed, stream, element / 8);
  return keep(draw(block, static_cast<std::uint32_t>(element % 8)), threshold, seed, stream,
              element);
}

// The same for eight elements from `first`, a multiple of 8: bit j belongs to first + j.
INGOT_HD std::uint32_t keep8(std::uint64_t seed, std::uint64_t stream, std::uint64_t first,
                             std::uint64_t threshold) {
  const Block block = philox(seed, stream, first / 8);
  const std::uint32_t upper = static_cast<std::uint32_t>(threshold >> 32);
  std::uint32_t mask = 0, ties = 0;
  for (std::uint32_t j = 0; j < 8; ++j) {
    mask |= (draw(block, j) < upper ? 1u : 0u) << j;
    ties |= (draw(block, j) == upper ? 1u : 0u) << j;
  }
  // Behind a branch that is seldom taken: one copy of the second generator, not eight.
  for (std::uint32_t j = 0; ties != 0; ++j, ties >>= 1) {
    const bool kept = (ties & 1u) != 0 &&
                      second_draw(seed, stream, first + j) < static_cast<std::uint32_t>(threshold);
    mask |= (kept ? 1u : 0u) << j;
  }
  return mask;
}

}  // namespace ingot::math
