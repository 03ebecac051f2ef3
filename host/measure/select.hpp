// Exact order statistics of the keys of one tensor: sample, bracket, verify, resolve.
//
// The algorithm is that of docs/numbers.md ("Selection"); the counting itself is the backend's.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/methods.hpp"

namespace ingot {

// Drives the steps of one order pass over a tensor until the threshold and the cut index of every
// rank are known. The result is a function of the elements alone: the sample decides only how soon
// it is found.
class Selector {
 public:
  enum class Step : std::uint8_t { sample, verify, coarse, fine, locate, done };

  // Pass `pass` of the rule's method. `sparse`: chunks cost a read each (the tensor is
  // re-streamed), so sample few of them.
  Selector(const math::Rule& rule, int pass, const math::Facts& facts, bool sparse);

  [[nodiscard]] Step step() const noexcept { return step_; }
  // Chunks the current step must visit.
  [[nodiscard]] const std::vector<std::uint32_t>& chunks() const noexcept { return chunks_; }

  // Runs the current step on a chunk. Thread-safe; each chunk of chunks() once per step.
  void visit(Backend& backend, const Chunk& chunk);

  // All chunks of the step were visited: draws the conclusions and goes to the next step.
  void advance();

  // After Step::done: gives the pass what was found of each stream that has ranks.
  void conclude(math::Facts& facts) const;

 private:
  struct Count {
    std::uint32_t above = 0, at_high = 0, at_low = 0;
    std::vector<Candidate> between;
    bool overflowed = false;
  };
  // The search for one rank of one stream.
  struct Search {
    int stream = 0;
    std::uint64_t rank = 0;  // from 1
    bool open = true;
    Bracket bracket;
    bool by_histogram = false;  // the sample misled: find the key by counting
    std::vector<std::uint64_t> counts;
    std::int32_t prefix = 0;                    // upper 16 bits of the threshold
    std::uint64_t beyond = 0;                   // elements with a larger prefix
    std::vector<Count> chunk;                   // by chunk index
    std::uint32_t tie_chunk = 0, tie_rank = 0;  // where the cut is to be located
    bool locating = false;
    math::Selection found;
  };

  void bracket_from_sample(Search& search, std::vector<std::int32_t>& keys,
                           double unevenness) const;
  void conclude_verify(Search& search);
  struct Ranked {
    std::int32_t key = 0;
    std::uint64_t index = 0;
    bool last = false;  // no candidate of this key ranks behind it
  };
  // The candidate of a rank, from 1: larger keys first, then lower indices.
  [[nodiscard]] static Ranked ranked(const Search& search, std::uint64_t rank);
  void go(Step step);
  [[nodiscard]] std::vector<std::uint32_t> every_chunk() const;

  const math::Rule& rule_;
  int pass_;
  std::uint32_t chunk_count_;
  std::uint32_t stride_ = 0;
  std::vector<Search> searches_;                     // those of one stream stand together
  std::vector<int> streams_;                         // that have searches, ascending
  std::map<int, std::vector<std::int32_t>> sample_;  // by stream
  std::vector<std::uint32_t> chunks_;
  Step step_ = Step::done;
  std::mutex mutex_;
};

}  // namespace ingot
