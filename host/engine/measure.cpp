#include "engine/measure.hpp"

#include <mutex>
#include <utility>

#include <fmt/format.h>

#include "engine/snapshot.hpp"
#include "plan/measure.hpp"

namespace ingot {

Digests::Map measure(Disk& disk, Backend& backend, Plan& plan, Target& target,
                     const MergeOptions& options, const Watcher& watcher) {
  const Snapshot before(disk, plan);
  std::mutex mutex;  // guards `digests`
  Digests::Map digests;
  plan::Measuring measuring;
  measuring.backend = &backend;
  measuring.watcher = watcher;
  measuring.kept = std::make_shared<adapter::Kept>([&target] { return target.scratch(); });
  if (options.hash) {
    measuring.read = [&](const Plan& of, std::span<const Ingredient> tensors) {
      for (const Ingredient& tensor : tensors) {
        {
          const std::lock_guard lock(mutex);  // modules may share a tensor
          if (digests.contains(tensor)) continue;
        }
        const Digests::Known known = Digests::read(of, tensor);
        const std::lock_guard lock(mutex);
        digests.emplace(tensor, known);
      }
    };
  }
  PlanOptions planning = plan.options;
  planning.threads = options.threads;
  planning.memory = options.memory;
  plan = plan::build(disk, plan.recipe, std::move(planning), measuring);
  if (!plan.sound()) return {};
  if (const std::string path = before.changed(Snapshot(disk, plan)); !path.empty()) {
    fail(Code::io,
         fmt::format("{} changed while it was measured, so the result would be a mixture: "
                     "nothing was written; run the merge again",
                     path));
  }
  return digests;
}

}  // namespace ingot
