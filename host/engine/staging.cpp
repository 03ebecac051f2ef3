#include "engine/staging.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/threads.hpp"
#include "engine/supply.hpp"
#include "ingot/methods.hpp"

namespace ingot {
namespace {

// Memory that the process needs beside staging: code, stacks, buffers, and the plan of an ordinary
// model.
constexpr std::uint64_t kOverhead = 48 * kMiB;
// A plan that is larger than this counts against the ceiling with the rest. 16 MiB of the 96 that a
// process may have beyond its ceiling are left to code and libraries.
constexpr std::uint64_t kPlan = 80 * kMiB;
// Workers that write through the page cache hold one piece of output each.
constexpr std::uint64_t kWorker = 4 * kMiB;
// Memory that is worth keeping for outputs on their way to the disk: with 64 MiB, merges of three
// models of 200 MB and 1.2 GB took 0.9 to 1.15 times as long as with this.
constexpr std::uint64_t kOutputs = 24 * kMiB;

// Reads under way, of 2 MiB each.
constexpr std::uint64_t kReads = kReadDepth * 2 * kMiB;

// A string in memory of its own, and what the allocator adds.
std::uint64_t text_bytes(const std::string& text) {
  return text.capacity() <= 15 ? 0 : (text.capacity() + 1 + 8 + 15) / 16 * 16;
}

std::uint64_t mib(std::uint64_t bytes) { return bytes / kMiB + 1; }

std::string show_ceiling(std::uint64_t bytes) {
  return bytes < kMiB ? fmt::format("{} bytes", bytes) : fmt::format("{} MiB", bytes / kMiB);
}

// The needs of a plan, which do not depend on the ceiling.
struct Demand {
  std::uint64_t least = 0;     // the largest single chunk any job stages
  std::uint64_t useful = 0;    // more than everything is never needed
  std::uint64_t largest = 0;   // of that, what the largest tensor takes that is measured first
  std::uint64_t windows = 0;   // its inputs alone
  std::uint64_t slot = 0;      // the largest chunk of output
  std::uint64_t written = 0;   // all output
  std::uint64_t waiting = 0;   // the least that results of joints take
  std::uint64_t plan = 0;      // of the plan itself, what counts against the ceiling
  std::uint64_t planning = 0;  // the ceiling above which what planning took was allowed
};

Demand demand_of(const Plan& plan, const std::vector<Joint*>& joints) {
  Demand all;
  for (const Job& job : plan.jobs) {
    const bool merge = job.action == Action::merge;
    std::uint64_t chunk = 0;
    const std::uint64_t n = merge ? job.work.rule.elements : job.output.bytes();
    const std::uint64_t part = merge ? std::min(n, kChunk) : std::min(n, 4 * kMiB);
    for (const Operand& operand : job.operands) {
      if (operand.derived) {
        chunk += operand.derived->memory() + slot_bytes(part * sizeof(float));
      }
      if (!lands(operand)) continue;
      const std::uint64_t width = merge ? bits(staged_dtype(plan, operand)) / 8 : 1;
      chunk += slot_bytes(part * width);
    }
    const std::uint64_t width = merge ? bits(job.output.dtype) / 8 : 1;
    all.least = std::max(all.least, chunk + slot_bytes(part * width));
    all.slot = std::max(all.slot, slot_bytes(part * width));
    all.written += n * width + 2 * kPage * (n / kChunk + 1);
    const std::uint64_t whole = input_bytes(plan, job) + n * width +
                                2 * kPage * (2 * job.operands.size() + 1) * (n / kChunk + 1);
    all.useful += whole;
    if (measured_first(job)) {
      all.largest = std::max(all.largest, whole);
      all.windows = std::max(all.windows, whole - n * width);
    }
  }
  for (const Joint* joint : joints) all.waiting += joint->least();
  const std::uint64_t metadata = metadata_bytes(plan);
  all.plan = metadata - std::min(metadata, kPlan);
  // Models' tensors are listed twice for a while.
  all.planning = metadata * 3 / 2 - std::min(metadata * 3 / 2, kPlan);
  return all;
}

}  // namespace

std::uint64_t metadata_bytes(const Plan& plan) {
  std::uint64_t sum = 0;
  const auto info = [](const TensorInfo& tensor) { return text_bytes(tensor.name); };
  for (const Model& model : plan.models) {
    const auto& entries = model.checkpoint.entries();
    sum += entries.capacity() * sizeof(Entry);
    for (const Entry& entry : entries) {
      sum += info(entry.info) + entry.strides.capacity() * sizeof(entry.strides[0]) +
             entry.patches.capacity() * sizeof(Patch) + text_bytes(entry.origin);
    }
  }
  sum += plan.jobs.capacity() * sizeof(Job);
  std::set<const RowMap*> maps;  // operands share them
  for (const Job& job : plan.jobs) {
    for (const Operand& operand : job.operands) {
      if (!operand.rows || !maps.insert(operand.rows.get()).second) continue;
      const RowMap& map = *operand.rows;
      sum += map.first.capacity() * sizeof(map.first[0]) +
             map.picks.capacity() * sizeof(map.picks[0]) +
             map.averaged.capacity() * sizeof(map.averaged[0]);
    }
    sum += info(job.output) + text_bytes(job.reason) + job.operands.capacity() * sizeof(Operand);
    sum += static_cast<std::uint64_t>(job.work.rule.sources) *
               (sizeof(math::Locals) + sizeof(std::uint64_t)) +
           64;
  }
  sum += plan.unused.capacity() * sizeof(Unused);
  for (const Unused& unused : plan.unused) sum += text_bytes(unused.reason);
  for (const Shard& shard : plan.shards) sum += shard.header.size();
  for (const Companion& companion : plan.companions) sum += companion.text.size();
  // Where each entry of the receipt is in the journal.
  return sum + plan.jobs.size() * 16;
}

Staging divide(const Plan& plan, const MergeOptions& options, int available) {
  const std::vector<Joint*> joints = plan.joints();
  const Demand need = demand_of(plan, joints);
  Staging staging;
  staging.crowd.available = available > 0 ? available : thread_count(0);
  const std::uint64_t fixed = kOverhead + need.plan + need.waiting + need.least + need.slot;
  const bool chosen = options.threads > 0;
  const std::uint64_t wanted =
      static_cast<std::uint64_t>(chosen ? options.threads : staging.crowd.available);
  const std::uint64_t least = chosen ? wanted : 1;
  if (options.memory < std::max(fixed + least * kWorker, need.planning)) {
    std::string why = "its tensors";
    if (need.plan > 0) {
      why = fmt::format(
          "the plan of its {} tensors takes {} MiB, of which {} MiB count as part of --memory; "
          "with their data the plan",
          plan.jobs.size(), mib(need.plan + kPlan), mib(need.plan));
    }
    std::string threads;
    if (chosen && options.memory >= fixed + kWorker) {
      threads = fmt::format(" with {} threads (--threads {} fits)", wanted,
                            (options.memory - fixed) / kWorker);
    } else if (chosen && wanted > 1) {
      threads = fmt::format(" with {} threads", wanted);
    }
    fail(Code::usage,
         fmt::format("--memory {} is too small for this merge: {} need{} at least {} MiB{}",
                     show_ceiling(options.memory), why, need.plan > 0 ? "s" : "",
                     mib(std::max(fixed + least * kWorker, need.planning)), threads));
  }
  // Threads that nobody asked for leave half of the rest to the tensors.
  const std::uint64_t room = (options.memory - fixed - least * kWorker) / 2 / kWorker + 1;
  staging.crowd.threads = static_cast<int>(chosen ? wanted : std::min(wanted, room));
  std::uint64_t free = options.memory - kOverhead - need.plan - need.waiting -
                       static_cast<std::uint64_t>(staging.crowd.threads) * kWorker;
  // Half of the rest may hold results that wait.
  for (Joint* joint : joints) {
    const std::uint64_t more =
        std::min((free - need.least - need.slot) / 2, joint->most() - joint->least());
    staging.joints.emplace_back(joint, joint->least() + more);
    free -= more;
  }
  const std::uint64_t most = std::max(need.slot, std::min(need.written, kOutputs));
  staging.outputs = std::clamp((free - need.least) / 8, need.slot, most);
  // Of tensors that are measured first, the largest is worked on while others are read (room for
  // two of it made no run faster); of others each thread has a chunk, and as many wait as are under
  // way. Reads that run further ahead only take memory.
  const std::uint64_t ahead = std::max(need.largest, kReads) + kReads;
  const std::uint64_t enough =
      std::min(need.useful, ahead + static_cast<std::uint64_t>(staging.crowd.threads) * need.least);
  staging.inputs = std::min(free - staging.outputs, std::max(enough, need.least));
  // Nothing is read ahead of them: threads begin the next ones while others finish the last.
  staging.windows = std::max(need.windows, kReads);
  return staging;
}

Crowd crowd(const Plan& plan, const MergeOptions& options, int available) {
  return divide(plan, options, available).crowd;
}

}  // namespace ingot
