// task_arithmetic: the weighted sum of the task vectors on top of the base.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct TaskArithmetic {
  static constexpr Card kCard{
      "task_arithmetic",
      Base::origin,
      0,
      kSources,
      "weighted sum of the changes against a base",
      "out = b + lambda (w1 d1 + w2 d2 + ...)     with d = x - b",
      "",
      "To add what fine-tunes of one base have learnt, or to take it away with a negative weight. "
      "The changes of three or more models often contradict each other: try ties.",
      "Editing Models with Task Arithmetic (2022)",
      "https://arxiv.org/abs/2212.04089",
      "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.6}\n  - model: b\n    parameters: {weight: 0.4}"};
  static constexpr Parameter kParameters[] = {normalize(false), kLambda, kInt8Mask, kWeight};
  using Lens = Weighted;
  using Combine = Sum;
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_sum<TaskArithmetic>(rule, facts);
    for (int s = 0; s < rule.sources; ++s) {
      facts.lens[s].gain = {static_cast<float>(Given<TaskArithmetic>(rule).at<"weight">(s)), 0.0F};
    }
  }
  static const char* invalid(const Rule& rule) { return invalid_sum<TaskArithmetic>(rule); }
};

}  // namespace ingot::math
