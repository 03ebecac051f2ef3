// The whole library in three calls: merge a plan into a folder, verify a folder, report on either.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ingot/plan.hpp"
#include "ingot/progress.hpp"

namespace ingot {

struct MergeOptions {
  std::uint64_t memory = std::uint64_t{1} << 30;  // ceiling on the process's resident memory
  int threads = 0;                                // 0: as many as there are and memory allows
  std::string isa;                                // "", "v2", "v3", "v4"
  bool force = false;                             // replace an existing OUT
  bool resume = false;  // continue a partial one; a finished one of the same job is left as it is
  bool sync = true;     // wait for stable storage before the rename
  bool hash = true;     // receipts; off only for measurements
  enum class Storage { automatic, mapped, direct, buffered };
  Storage storage = Storage::automatic;
};

// The threads of a run.
struct Crowd {
  int threads = 0;    // that work
  int available = 0;  // that the machine, the container's quota and the affinity allow
};

// Whether a sound plan can be merged under options.memory, and by how many threads; the automatic
// number fits the ceiling. Throws Error{usage} that names a ceiling which would do. `available`: 0
// for what this machine has.
[[nodiscard]] Crowd crowd(const Plan& plan, const MergeOptions& options, int available = 0);

// What a run will take, from the plan alone.
struct Estimate {
  Crowd crowd;
  double compute = 0;  // seconds of arithmetic, on all threads at once, by the CPU
  // About the most bytes that the process has resident, mapped files included; docs/progress.md
  // says how near that was.
  std::uint64_t memory = 0;
};

// Throws as crowd() does. Counts this process's memory so far as the run's own beginning, and times
// a small product of matrices.
[[nodiscard]] Estimate estimate(const Plan& plan, const MergeOptions& options);

// What a run did and what it cost. Depends on the machine; never written into the folder.
struct Report {
  std::string out;
  std::string backend;
  std::string solver;   // what decomposed, with its version; empty: nothing was decomposed
  std::string storage;  // which path the bytes took
  std::uint64_t tensors = 0, merged = 0, copied = 0, unused = 0, resumed = 0;
  bool complete = false;  // OUT was finished before this run, and was verified: nothing was written
  std::uint64_t bytes_read = 0, bytes_written = 0;  // by this run: without what was resumed
  double seconds = 0;
  double storage_rate = 0;  // bytes/s the storage was measured at; 0: not measured
  std::uint64_t peak_memory =
      0;            // most resident bytes of the process so far, mapped files included
  int threads = 0;  // that compute and hash
  double busy = 0;  // share of those threads' time that they spent on a core: near 1, the
                    // arithmetic bounds the run, not the storage
  std::vector<std::string> warnings;
  std::string receipt;  // path of ingot.json
  // Its entries of tensors that were derived (by adapters, by decompositions), a line of JSON each.
  std::vector<std::string> derived;
};

// Runs a sound plan and puts the folder `out` in place by rename. All or nothing; see
// docs/architecture.md. Of a plan with something open the run first decides that by reading the
// models; `plan` is the decided one afterwards, whose sizes, warnings and recipe may be others.
[[nodiscard]] Report merge(Disk& disk, Backend& backend, Plan& plan, const std::string& out,
                           const MergeOptions& options, const Watcher& watcher = {});
// Of a plan in which nothing is open.
[[nodiscard]] Report merge(Disk& disk, Backend& backend, const Plan& plan, const std::string& out,
                           const MergeOptions& options, const Watcher& watcher = {});

// Throws the Error{usage} that a merge to OUT would end in because of what is there: a folder that
// ingot did not write, one that holds an input, a mount point, an OUT that exists or was begun
// (without options.force or options.resume), one begun by another job. Writes nothing.
void check_target(Disk& disk, const Plan& plan, const std::string& out,
                  const MergeOptions& options);

struct VerifyOptions {
  bool all = false;           // recompute every element instead of a sample
  bool outputs_only = false;  // do not look at the inputs
  bool allow_unchanged = false;
  std::string root;  // where the recipe's relative paths start
  int threads = 0;
};

struct Finding {
  std::string text;  // one sentence: what, where, expected, found
};

struct Verdicts {
  std::uint64_t tensors = 0, hashed_bytes = 0;
  std::uint64_t elements = 0;    // of tensors that a formula makes
  std::uint64_t recomputed = 0;  // of those
  std::uint64_t exact = 0;       // of those, equal bit for bit; the others within their bound
  std::uint64_t judged = 0;      // tensors judged as a whole (decompositions)
  // Tensors too large to be recomputed whole without `all`: the number of which a sample was
  // recomputed, the number of which nothing was, and the elements of each sample.
  std::uint64_t sampled = 0, passed = 0, sample = 0;
  // The sampled tensors whose thresholds, cuts, factors or coefficients were taken from the
  // receipt, since measuring them takes several passes.
  std::uint64_t taken = 0;
  // Entries of the receipt whose counts (kept, conflicts, ...) were not counted again for that
  // reason.
  std::uint64_t uncounted = 0;
  // Empty: the folder matches its recipe. Of many of one kind the first five, then one
  // sentence that counts the rest.
  std::vector<Finding> findings;
  std::uint64_t shortfalls = 0;  // all of them

  // How probable it is that one wrong element in `one_in` of a large tensor would have been found,
  // if each lies at a place of its own.
  [[nodiscard]] double detection(std::uint64_t one_in) const;
  // The share of a large tensor that a run of wrong neighbours has to be to be found with this
  // probability.
  [[nodiscard]] double run(double probability) const;
};

// Checks a folder that merge() wrote. What cannot be checked is an Error: no receipt there, inputs
// that are missing or cannot be read (unless something else is wrong already).
[[nodiscard]] Verdicts verify(Disk& disk, const std::string& out, const VerifyOptions& options,
                              const Watcher& watcher = {});

}  // namespace ingot
