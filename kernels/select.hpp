// Order passes: counting and collecting keys. What follows from the counts is the engine's.
#pragma once

#include <cstdint>

#include "ingot/backend.hpp"
#include "job.hpp"

namespace ingot::gpu {

class Stream;

// Elements whose candidates one block puts in order.
inline constexpr unsigned kSpan = 8192;

// The kernels of an order pass, `pass` being its number among its method's. Streams are named by
// the source whose key they are; of a stream of all sources any number does. All pointers are
// device memory; nothing here waits.
struct Ordering {
  int method = 0, pass = 0;
  const Tensor* tensor = nullptr;
  std::uint64_t count = 0;  // of its elements
};

// keys[n * runs * kSampled + run * kSampled + i], for stream sources[n]: element i of the run in
// every `stride` elements.
void sample(const Ordering& of, const int* sources, unsigned streams, std::uint32_t stride,
            std::int32_t* keys, const Shape& shape, const Stream& stream);

// census[n], added to, for each bracket; candidates strictly inside it at found[n * limit + ...] as
// long as they fit, span by span as segments[n * ceil(count / kSpan) + span] says, which is written
// for every span of a bracket with low < high. Brackets of one stream stand together.
void verify(const Ordering& of, const Bracket* brackets, unsigned bracket_count,
            std::uint32_t limit, Census* census, Candidate* found, Segment* segments,
            const Shape& shape, const Stream& stream);

// Adds to bins[(key >> 16) + 32768], or, of the keys with key >> 16 == prefix, to
// bins[key & 0xffff].
inline constexpr std::size_t kBins = 65536;
void histogram(const Ordering& of, int source, bool fine, std::int32_t prefix, unsigned* bins,
               const Shape& shape, const Stream& stream);

// Sets bit i of `bits` (ceil(count / 8) bytes) if the key of element i equals `key`.
void match(const Ordering& of, int source, std::int32_t key, std::uint8_t* bits, const Shape& shape,
           const Stream& stream);

}  // namespace ingot::gpu
