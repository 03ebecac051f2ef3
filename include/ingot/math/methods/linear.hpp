// linear: the weighted mean of the inputs.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Linear {
  static constexpr Card kCard{
      "linear",
      Base::ignored,
      1,
      kSources,
      "weighted mean of the models",
      "out = (w1 x1 + w2 x2 + ...) / (w1 + w2 + ...)\n"
      "With normalize: false the sum is not divided.",
      "",
      "Fine-tunes of one base on the same task with other seeds or settings (a model soup), or any "
      "models of one shape as a first try. No base model is needed.",
      "Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without "
      "Increasing Inference Time (2022)",
      "https://arxiv.org/abs/2203.05482",
      "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.7}\n"
      "  - model: b\n    parameters: {weight: 0.3}"};
  static constexpr Parameter kParameters[] = {normalize(true), of_every_input(kWeight)};
  using Lens = Value;
  using Combine = Mean;
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    for (int s = 0; s < rule.sources; ++s) {
      facts.source[s].weight = static_cast<float>(Given<Linear>(rule).at<"weight">(s));
    }
    if (!Given<Linear>(rule).on<"normalize">()) return;
    facts.whole->divisor = sum_of_weights<Linear>(rule);
    facts.whole->divided = facts.whole->divisor != 1.0F ? 1 : 0;
  }

  static const char* invalid(const Rule& rule) {
    if (!Given<Linear>(rule).on<"normalize">()) return nullptr;
    const Weights w = weights<Linear>(rule);
    if (const char* why = divisors(w, w.most)) return why;
    // The inputs of a normalized merge would be amplified a millionfold, errors included.
    if (w.sum > 1e-6 * w.size || -w.sum > 1e-6 * w.size) return nullptr;
    return "the weights sum to zero or nearly so and normalize is on; change them or set "
           "normalize: false";
  }
};

}  // namespace ingot::math
