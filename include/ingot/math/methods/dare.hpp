// dare_linear, dare_ties: elements of the task vectors dropped at random, the rest enlarged (Yu et
// al., 2023); then the sum or the election of task vectors. Survivors are multiplied by the ratio
// of the L1 norms before and after, as mergekit has it; the paper divides by the density.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct DareLinear {
  static constexpr Card kCard{
      "dare_linear",
      Base::origin,
      0,
      kSources,
      "changes dropped at random, the rest enlarged, then added",
      "1. d = x - b; each element of d is kept with probability `density`\n"
      "2. with rescale, what is kept is enlarged so that the sum of |d| is as before\n"
      "3. out = b + lambda (w1 d1 + w2 d2 + ...)",
      "L1 norms",
      "Many fine-tunes whose changes are small. The same --seed gives the same bytes. Start with "
      "density 0.5; the smaller it is, the more is dropped.",
      kDarePaper,
      kDareLink,
      "merge_method: dare_linear\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
      "    parameters: {weight: 0.5, density: 0.5}"};
  static constexpr Parameter kParameters[] = {normalize(false), kLambda, kInt8Mask,
                                              rescale(true),    kWeight, kDensity};
  using Lens = Drop;
  using Combine = Sum;
  using Passes = List<Norms<DareLinear>>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_sum<DareLinear>(rule, facts);
    begin_survivors<DareLinear>(rule, facts);
    begin_drop<DareLinear>(rule, facts);
  }
  static const char* invalid(const Rule& rule) {
    if (const char* why = drawable<DareLinear>(rule)) return why;
    return invalid_sum<DareLinear>(rule);
  }
};

struct DareTies {
  static constexpr Card kCard{
      "dare_ties",
      Base::origin,
      0,
      kSources,
      "changes dropped at random, the rest enlarged, then as ties",
      "1. d = x - b; each element of d is kept with probability `density`\n"
      "2. with rescale, what is kept is enlarged so that the sum of |d| is as before\n"
      "3. the sign of w1 d1 + w2 d2 + ... is elected\n"
      "4. out = b + lambda (sum of w d), over the models whose d has that sign. With\n"
      "   normalize: true the sum is divided by the sum of their w.",
      "L1 norms",
      "As dare_linear, where the changes contradict each other.",
      kDarePaper,
      kDareLink,
      "merge_method: dare_ties\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
      "    parameters: {weight: 0.5, density: 0.5}"};
  static constexpr Parameter kParameters[] = {normalize(false), kLambda, kInt8Mask,
                                              rescale(true),    kWeight, kDensity};
  using Lens = Drop;
  using Combine = Elect<Vote::weighted>;
  using Passes = List<Norms<DareTies>>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_election<DareTies>(rule, facts);
    begin_survivors<DareTies>(rule, facts);
    begin_drop<DareTies>(rule, facts);
  }
  static const char* invalid(const Rule& rule) {
    if (const char* why = drawable<DareTies>(rule)) return why;
    return invalid_election<DareTies>(rule);
  }
};

}  // namespace ingot::math
