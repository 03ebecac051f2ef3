// ties: keep the largest task vectors, elect a sign, average what agrees.
#pragma once

#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Ties {
  static constexpr Card kCard{
      "ties",
      Base::origin,
      0,
      kSources,
      "largest changes only, one sign for each element, mean of those that agree",
      "1. d = x - b; of each model the share `density` of the elements with the\n"
      "   largest |d| is kept, the others become 0\n"
      "2. the sign of w1 d1 + w2 d2 + ... is elected\n"
      "3. out = b + lambda (sum of w d) / (sum of w), over the models whose d has\n"
      "   that sign. With normalize: false the sum is not divided.",
      "exact thresholds",
      "Three or more fine-tunes of one base whose changes contradict each other. Start with "
      "density "
      "0.5 and equal weights.",
      kTiesPaper,
      kTiesLink,
      "merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
      "    parameters: {weight: 0.3, density: 0.5}"};
  static constexpr Parameter kParameters[] = {normalize(true), kLambda, kInt8Mask,
                                              rescale(false),  kWeight, kDensity};
  using Lens = Trim;
  using Combine = Elect<Vote::weighted>;
  using Passes = List<Thresholds<Ties>, Norms<Ties>>;

  static std::uint64_t kept(const Rule& rule, int s) { return top<Ties>(rule, s); }
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_election<Ties>(rule, facts);
    begin_survivors<Ties>(rule, facts);
    begin_trim<Ties>(rule, facts);
  }
  static const char* invalid(const Rule& rule) { return invalid_election<Ties>(rule); }
};

}  // namespace ingot::math
