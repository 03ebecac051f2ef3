// How long a run computes and how much memory it takes, from its plan.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/memory.hpp"
#include "engine/staging.hpp"
#include "engine/supply.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/methods.hpp"
#include "ingot/merge.hpp"
#include "store/window.hpp"

namespace ingot {
namespace {

// Nanoseconds of one thread for an element of one operand: read, converted, hashed, merged; and for
// what a method adds because it measures first. Measured by `ingot bench` on a core of 2024 with
// AVX2; older ones take up to twice as long.
constexpr double kElement = 0.6;
constexpr double kPass = 0.8;
constexpr double kDraw = 1.0;

// Operations per second of a product of matrices on one thread: the best of some, each of about a
// millisecond, because other programs take turns of several.
double product_rate() {
  constexpr std::size_t kSide = 192;
  linalg::Matrix a(kSide, kSide), b(kSide, kSide);
  for (std::size_t i = 0; i < a.data.size(); ++i) {
    a.data[i] = static_cast<double>(i % 7);
    b.data[i] = static_cast<double>(i % 5);
  }
  double best = 1;  // seconds
  for (int i = 0; i < 8; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    const linalg::Matrix c = linalg::multiply(a, linalg::As::is, b, linalg::As::is);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (c.data.back() >= 0) best = std::min(best, took.count());
  }
  return 2.0 * kSide * kSide * kSide / std::max(best, 1e-9);
}

// Nanoseconds on one thread.
double elements_of(const Plan& plan, const Job& job) {
  const auto n = static_cast<double>(job.output.count());
  double sum = 0;
  for (const Operand& operand : job.operands) {
    if (lands(operand)) sum += n * kElement;
    if (!operand.derived || operand.derived->joint() != nullptr) continue;
    // A product of thin factors has about 2 sqrt(n) elements for each rank, and n for each to add.
    double factors = 0;
    for (const Ingredient& at : operand.derived->ingredients()) {
      factors +=
          static_cast<double>(plan.models[at.model].checkpoint.entries()[at.entry].info.count());
    }
    sum += std::sqrt(n) * factors * 0.1;
  }
  if (job.action != Action::merge) return sum;
  const math::Needs needs = math::needs(job.work.rule);
  const auto operands = static_cast<double>(job.operands.size());
  if (needs.select) sum += n * operands * 3 * kPass;
  sum += n * operands * needs.folds * kPass;
  if (math::draws(job.work.rule)) sum += n * operands * kDraw;
  return sum;
}

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
// Of each thread: its stack, the allocator's, what hashing and selection hold.
constexpr std::uint64_t kThread = 3 * kMiB / 2;
// Reads that are under way at a time.
constexpr std::uint64_t kReads = 32;
constexpr std::uint64_t kReading = 2 * kMiB;  // each, at most

// Bytes of a tensor in memory while it is processed.
struct Load {
  std::uint64_t staged = 0;  // all its inputs
  std::uint64_t chunk = 0;   // those of one chunk
  std::uint64_t chunks = 0;
  std::uint64_t operands = 0;  // that are read
  std::uint64_t working = 0;   // of what derives them
  bool once = true;            // in one pass
  double cached = 0;           // share of the inputs that is in the page cache
};

Load load_of(const Plan& plan, const Job& job) {
  Load load;
  const bool merge = job.action == Action::merge;
  const std::uint64_t n = merge ? job.work.rule.elements : job.output.bytes();
  const math::Needs needs = merge ? math::needs(job.work.rule) : math::Needs{};
  load.once = !needs.select && needs.folds == 0;
  load.chunks = n / kChunk + 1;
  double cached = 0, all = 0;
  for (const Operand& operand : job.operands) {
    if (operand.derived) {
      load.working += operand.derived->memory();
      if (!load.once) load.staged += n * sizeof(float);
    }
    if (!lands(operand)) continue;
    const Checkpoint& checkpoint = plan.models[operand.model].checkpoint;
    const Entry& entry = checkpoint.entries()[operand.entry];
    ++load.operands;
    load.staged += n * (merge ? bits(staged_dtype(plan, operand)) / 8 : 1);
    const auto bytes = static_cast<double>(entry.info.bytes());
    cached += bytes * resident(checkpoint.file(entry.file), entry.offset, entry.info.bytes());
    all += bytes;
  }
  load.cached = all > 0 ? cached / all : 1;
  load.chunk = load.staged / load.chunks;
  return load;
}

// The most that inputs take at a time. From the page cache a tensor's pages stay until it is done,
// and threads begin the next ones meanwhile. From the disk the reads that are under way come
// beside it.
std::uint64_t inputs_of(const Plan& plan, const Staging& staging) {
  std::vector<Load> loads;
  loads.reserve(plan.jobs.size());
  std::uint64_t all = 0;
  for (const Job& job : plan.jobs) {
    loads.push_back(load_of(plan, job));
    all += loads.back().staged + loads.back().working;
  }
  const auto threads = static_cast<std::uint64_t>(staging.crowd.threads);
  std::uint64_t most = 0;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    const Load& first = loads[i];
    const bool hot = first.cached > 0.95;
    // Reads of less than a chunk each count as much as they are.
    const std::uint64_t reads =
        kReads * std::min(kReading, first.chunk / std::max<std::uint64_t>(first.operands, 1));
    const bool whole =
        first.once ? hot && first.staged <= staging.inputs / 2 : first.staged <= staging.inputs;
    std::uint64_t sum = first.working;
    std::uint64_t chunks = first.chunks;
    sum += whole ? first.staged : std::min(chunks, threads + 1) * first.chunk;
    for (std::size_t next = i + 1; next < loads.size() && chunks <= threads; ++next) {
      const std::uint64_t more = std::min(threads + 1 - chunks, loads[next].chunks);
      sum += more * loads[next].chunk + loads[next].working;
      chunks += more;
    }
    // Whole tensors are read ahead of long work on them.
    if (!first.once && i + 1 < loads.size()) sum += first.staged;
    most = std::max(most, hot ? sum : sum + reads);
  }
  return std::min({most, all, staging.inputs});
}

}  // namespace

Estimate estimate(const Plan& plan, const MergeOptions& options) {
  const Staging staging = divide(plan, options);
  Estimate result;
  result.crowd = staging.crowd;
  const auto threads =
      static_cast<double>(std::min(staging.crowd.threads, staging.crowd.available));
  double seconds = 0;
  for (const Job& job : plan.jobs) seconds += elements_of(plan, job) * 1e-9;
  double work = 0;
  for (const Joint* joint : plan.joints()) work += joint->work();
  if (work > 0) seconds += work / product_rate();
  result.compute = seconds / std::max(threads, 1.0);
  const std::uint64_t written = std::min(plan.bytes_out, staging.outputs);
  std::uint64_t results = 0;
  for (const auto& [joint, bytes] : staging.joints) results += bytes;
  result.memory =
      std::max(peak_memory(), resident_memory() + inputs_of(plan, staging) + results +
                                  (staging.crowd.threads > 2 ? written : written / 2) +
                                  static_cast<std::uint64_t>(staging.crowd.threads) * kThread);
  return result;
}

}  // namespace ingot
