// Magnitude selection: counting and collecting keys. What follows from the counts is the engine's.
#pragma once

#include <cstdint>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// Elements whose candidates one block puts in order.
inline constexpr unsigned kSpan = 8192;

// All pointers are device memory; nothing here waits.

// keys[s * runs * kSampled + run * kSampled + i]: element i of the run in every `stride` elements.
void sample(const Tensor* tensor, std::uint64_t count, unsigned sources, std::uint32_t stride,
            std::uint32_t* keys, const Shape& shape, const Stream& stream);

// census[s], added to, for every active source; candidates strictly inside its window at
// found[s * limit + ...] as long as they fit, span by span as segments[s * ceil(count / kSpan) +
// span] says, which is written for every span of a source with low < high.
void verify(const Tensor* tensor, std::uint64_t count, unsigned sources, const Window* windows,
            std::uint32_t limit, Census* census, Found* found, Segment* segments,
            const Shape& shape, const Stream& stream);

// Adds to bins[key >> 16], or, of the keys whose upper bits are `prefix`, to bins[key & 0xffff].
void histogram(const Tensor* tensor, std::uint64_t count, unsigned source, bool fine,
               std::uint32_t prefix, unsigned* bins, const Shape& shape, const Stream& stream);

// Sets bit i of `bits` (ceil(count / 8) bytes) if the key of element i equals `key`.
void match(const Tensor* tensor, std::uint64_t count, unsigned source, std::uint32_t key,
           std::uint8_t* bits, const Shape& shape, const Stream& stream);

}  // namespace ingot::gpu
