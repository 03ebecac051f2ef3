// Exact top-k thresholds of one tensor's task vectors: sample, bracket, verify, resolve.
//
// The algorithm is that of docs/numbers.md ("Selection"); the counting itself is the backend's.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/math/methods.hpp"

namespace ingot {

// Drives the passes over a tensor until every source's threshold and cut index are known. The
// result is a function of the elements alone: the sample decides only how soon it is found.
class Selector {
 public:
  enum class Step : std::uint8_t { sample, verify, coarse, fine, locate, done };

  // `sparse`: chunks cost a read each (the tensor is re-streamed), so sample few of them.
  Selector(const Work& work, bool sparse);

  [[nodiscard]] Step step() const noexcept { return step_; }
  // Chunks the current step must visit.
  [[nodiscard]] const std::vector<std::uint32_t>& chunks() const noexcept { return chunks_; }

  // Runs the current step on a chunk. Thread-safe; each chunk of chunks() once per step.
  void visit(Backend& backend, const Chunk& chunk);

  // All chunks of the step were visited: draws the conclusions and goes to the next step.
  void advance();

  // After Step::done, one per source.
  [[nodiscard]] const std::vector<math::Selection>& result() const noexcept { return result_; }

 private:
  struct Count {
    std::uint32_t above = 0, at_high = 0, at_low = 0;
    std::vector<Candidate> between;
    bool overflowed = false;
  };
  struct State {
    std::uint64_t keep = 0;  // k, between 1 and n - 1 while open
    bool open = false;
    Bracket bracket;
    bool by_histogram = false;  // the sample misled: find the key by counting
    std::vector<std::uint64_t> counts;
    std::uint32_t prefix = 0;  // upper 15 bits of the threshold
    std::uint64_t beyond = 0;  // elements with a larger prefix
    std::vector<std::uint32_t> sample;
    std::vector<Count> chunk;                   // by chunk index
    std::uint32_t tie_chunk = 0, tie_rank = 0;  // where the cut is to be located
    bool locating = false;
  };

  void bracket_from_sample(State& state);
  void conclude_verify(std::size_t source);
  struct Ranked {
    std::uint32_t key = 0;
    std::uint64_t index = 0;
    bool last = false;  // no candidate of this key ranks behind it
  };
  // The candidate of a rank, from 1: larger keys first, then lower indices.
  [[nodiscard]] static Ranked ranked(const State& state, std::uint64_t rank);
  void go(Step step);
  [[nodiscard]] std::vector<std::uint32_t> every_chunk() const;

  const Work& work_;
  std::uint32_t chunk_count_;
  std::uint32_t stride_ = 0;
  std::vector<State> sources_;
  std::vector<std::uint8_t> active_;
  std::vector<math::Selection> result_;
  std::vector<std::uint32_t> chunks_;
  Step step_ = Step::done;
  std::mutex mutex_;
};

}  // namespace ingot
