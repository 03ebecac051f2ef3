// How a run shares the memory under its ceiling. What the run takes and what is promised of it
// (docs/architecture.md, "The run") meet here.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "engine/arena.hpp"
#include "ingot/merge.hpp"

namespace ingot {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Reads in flight: 2 MiB each, eight saturate the disk; twice that hides the gaps between chunks.
// As many again wait their turn.
inline constexpr unsigned kReadDepth = 16;

struct Staging {
  std::uint64_t inputs = 0;   // inputs, and outputs of what passes chunk by chunk
  std::uint64_t outputs = 0;  // of tensors whose inputs are all there before the first is done
  std::uint64_t windows = 0;  // of `inputs`, those of mapped tensors that are measured first
  std::vector<std::pair<Joint*, std::uint64_t>> joints;  // results that wait for their jobs
  Crowd crowd;
};

// The pages that enclose `bytes`, wherever they start.
[[nodiscard]] constexpr std::uint64_t slot_bytes(std::uint64_t bytes) noexcept {
  return round_up(bytes, kPage) + kPage;
}

// Throws as crowd() does.
[[nodiscard]] Staging divide(const Plan& plan, const MergeOptions& options, int available = 0);

// Bytes that a plan takes: models' headers, jobs, texts.
[[nodiscard]] std::uint64_t metadata_bytes(const Plan& plan);

}  // namespace ingot
