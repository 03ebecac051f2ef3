// The candidates of a selection in the order of their indices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ingot/backend.hpp"
#include "job.hpp"

namespace ingot::gpu {

class Stream;

// What verify() left of a chunk, in device memory. Segments that it does not write are zeros.
struct Candidates {
  const Candidate* found = nullptr;
  const Segment* segments = nullptr;
  const Census* census = nullptr;
  std::uint64_t brackets = 0, spans = 0;
  std::uint32_t limit = 0;  // places of each bracket in `found`
};

// Bytes of device memory that order() works in: 4 for the first place of every span of every
// bracket, one more for Thrust's scan of these (it needs 16 for every 128 or more, and 1 KiB).
[[nodiscard]] constexpr std::uint64_t order_bytes(std::uint64_t brackets, std::uint64_t spans) {
  return 5 * brackets * spans + 4096;
}

// Writes the candidates of all brackets one behind the other to `ordered`, which has places for
// brackets * limit, fewer than 2^31: each bracket's by rising index, none of one that found more
// than `limit`. Works in `memory`, order_bytes() of it. Does not wait. Throws Error{device}, and
// Error{internal} for more places.
void order(const Candidates& candidates, Candidate* ordered, std::byte* memory,
           const Stream& stream);

}  // namespace ingot::gpu
