// Merged tensors from their inputs: the launcher of every formula.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "job.hpp"

namespace ingot::gpu {

class Stream;

// Jobs of one kind() in device memory, in the order of their spans.
struct Batch {
  const Job* jobs = nullptr;
  unsigned count = 0;
  unsigned packs = 0;        // of a span; see span_packs()
  std::uint64_t spans = 0;   // of all jobs
  Counts* counts = nullptr;  // one per job, added to; or null
};

// Which kernel a job of this method and so many sources needs; jobs of one batch agree in it.
[[nodiscard]] unsigned kind(int method, int sources);

// Packs of a span so that `elements` in all keep `processors` busy.
[[nodiscard]] unsigned span_packs(std::uint64_t elements, unsigned processors);

// Spans of a job of so many elements.
[[nodiscard]] constexpr std::uint64_t spans(std::uint64_t elements, unsigned packs) {
  const std::uint64_t span = std::uint64_t{packs} * kPack;
  return (elements + span - 1) / span;
}

// Enqueues a batch. Does not wait.
void apply(unsigned kind, const Batch& batch, const Shape& shape, const Stream& stream);

}  // namespace ingot::gpu
