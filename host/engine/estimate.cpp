// How long a run computes and how much memory it takes, from its plan.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/flight.hpp"
#include "engine/memory.hpp"
#include "engine/staging.hpp"
#include "engine/supply.hpp"
#include "ingot/linalg.hpp"
#include "ingot/merge.hpp"
#include "ingot/methods.hpp"

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
  const math::Rule& rule = job.work.rule;
  const auto operands = static_cast<double>(job.operands.size());
  const math::Facts facts = math::begin(rule);
  for (const math::PassInfo& pass : math::method(rule.method).passes) {
    if (!pass.wanted(rule, facts)) continue;
    const int sweeps = pass.kind == math::Pass::order ? 3 : pass.sums(rule);
    sum += n * operands * sweeps * kPass;
  }
  if (math::draws(job.work.rule)) sum += n * operands * kDraw;
  return sum;
}

// Of each thread: its stack, the allocator's, what hashing and selection hold.
constexpr std::uint64_t kThread = 5 * kMiB / 4;
// Of the library that decomposes.
constexpr std::uint64_t kSolver = 16 * kMiB;

// Bytes of tensors that are measured first: all inputs of one are there before its first output,
// which has memory of its own.
struct Measured {
  const Job* largest = nullptr;  // the one with the most bytes of inputs; null: there is none
  std::uint64_t inputs = 0;      // its inputs
  std::uint64_t held = 0;        // inputs and outputs of all that cannot be mapped
};

Measured measured(const Plan& plan, MergeOptions::Storage storage) {
  Measured all;
  for (const Job& job : plan.jobs) {
    if (!measured_first(job)) continue;
    const std::uint64_t bytes = input_bytes(plan, job);
    if (!mappable(plan, job, storage)) all.held += bytes + job.output.bytes();
    if (all.largest && bytes <= all.inputs) continue;
    all.largest = &job;
    all.inputs = bytes;
  }
  return all;
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
  // All that divide() lends may be resident at a time, and is where reading is faster than the
  // rest; of mapped tensors about as much as the largest has, and of those between them that are
  // copied half are written when the others are read. Where there is room for all data, a fifth of
  // them are written before the last are read.
  std::uint64_t lent = staging.inputs;
  if (const Measured first = measured(plan, options.storage); first.largest) {
    if (hot(plan, *first.largest, options.storage)) {
      lent = std::min(lent, first.inputs + first.held / 2);
    }
    lent += std::min(plan.bytes_out, staging.outputs);
  }
  lent = std::min(lent, (plan.bytes_in + plan.bytes_out) / 5 * 4);
  for (const auto& [joint, bytes] : staging.joints) lent += bytes;
  if (!staging.joints.empty()) lent += kSolver;
  result.memory =
      std::max(peak_memory(), resident_memory() + lent +
                                  static_cast<std::uint64_t>(staging.crowd.threads) * kThread);
  return result;
}

}  // namespace ingot
