// Deciding what headers leave open (Plan::open) by reading the models' numbers: a pass of the run,
// and of verify().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "adapter/kept.hpp"
#include "ingot/plan.hpp"
#include "ingot/progress.hpp"

namespace ingot::plan {

class Measuring {
 public:
  // Null: LAPACK decomposes, and nothing is kept.
  Backend* backend = nullptr;
  std::shared_ptr<adapter::Kept> kept;  // shared with the modules of the plan that it makes
  // Is told of tensors that were read whole a moment ago; called from several threads.
  std::function<void(const Plan&, std::span<const Ingredient>)> read;
  Watcher watcher;

  // How many bytes will be read: before the first done().
  void expect(std::uint64_t bytes);
  // So many of them were. Thread-safe.
  void done(std::uint64_t bytes, const std::string& tensor);

 private:
  std::mutex mutex_;  // guards progress_
  Progress progress_{Phase::measure, 0, 0, {}};
};

// As ingot::build(), of a plan in which nothing stays open.
[[nodiscard]] Plan build(Disk& disk, Recipe recipe, PlanOptions options, Measuring& measuring);

}  // namespace ingot::plan
