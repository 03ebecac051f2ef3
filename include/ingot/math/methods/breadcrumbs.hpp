// breadcrumbs, breadcrumbs_ties: the largest elements of the task vectors are dropped as outliers,
// and the smallest; then the sum or the election of task vectors.
#pragma once

#include "ingot/math/parts/band.hpp"

namespace ingot::math {

inline constexpr char kBreadcrumbsPaper[] =
    "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks (2023)";
inline constexpr char kBreadcrumbsLink[] = "https://arxiv.org/abs/2312.06795";
inline constexpr Parameter kGamma =
    each("gamma", 0.01, "share of the elements of the change that are dropped as outliers", 0, 1);

// How many elements stay, and how many larger ones are dropped.
template <class M>
struct BreadcrumbsMask {
  static std::uint64_t kept(const Rule& rule, int s) { return top<M>(rule, s, 0); }
  static std::uint64_t outliers(const Rule& rule, int s) {
    if (!thinned<M>(rule, s)) return 0;
    const double gamma = Given<M>(rule).template at<"gamma">(s);
    const auto most = static_cast<std::uint64_t>(gamma * static_cast<double>(rule.elements));
    const std::uint64_t room = rule.elements - kept(rule, s);
    return most < room ? most : room;
  }
};

struct Breadcrumbs : BreadcrumbsMask<Breadcrumbs> {
  static constexpr Card kCard{
      "breadcrumbs",
      Base::origin,
      0,
      kSources,
      "changes without the largest and the smallest ones, then added",
      "1. d = x - b; of each model the share `gamma` of the elements with the largest\n"
      "   |d| is dropped; of the others the share `density` (of all elements) with\n"
      "   the largest |d| is kept\n"
      "2. out = b + lambda (w1 d1 + w2 d2 + ...)\n"
      "With density: 1 nothing is dropped.",
      "exact thresholds",
      "Several fine-tunes of one base for different tasks, where a few very large changes disturb "
      "the others. Start with density 0.9 and gamma 0.01.",
      kBreadcrumbsPaper,
      kBreadcrumbsLink,
      "merge_method: breadcrumbs\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}\n  - model: b\n"
      "    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}"};
  static constexpr Parameter kParameters[] = {normalize(false), kLambda,  kInt8Mask, rescale(false),
                                              kWeight,          kDensity, kGamma};
  using Lens = Band;
  using Combine = Sum;
  using Passes = List<Edges<Breadcrumbs>, Norms<Breadcrumbs>>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_sum<Breadcrumbs>(rule, facts);
    begin_survivors<Breadcrumbs>(rule, facts);
    Edges<Breadcrumbs>::begin(rule, facts);
  }
  static const char* invalid(const Rule& rule) { return invalid_sum<Breadcrumbs>(rule); }
};

struct BreadcrumbsTies : BreadcrumbsMask<BreadcrumbsTies> {
  static constexpr Card kCard{
      "breadcrumbs_ties",
      Base::origin,
      0,
      kSources,
      "changes without the largest and the smallest ones, then as ties",
      "1. d = x - b; of each model the share `gamma` of the elements with the largest\n"
      "   |d| is dropped; of the others the share `density` (of all elements) with\n"
      "   the largest |d| is kept\n"
      "2. the sign of w1 d1 + w2 d2 + ... is elected\n"
      "3. out = b + lambda (sum of w d), over the models whose d has that sign. With\n"
      "   normalize: true the sum is divided by the sum of their w.\n"
      "With density: 1 nothing is dropped.",
      "exact thresholds",
      "As breadcrumbs, where the changes contradict each other.",
      kBreadcrumbsPaper,
      kBreadcrumbsLink,
      "merge_method: breadcrumbs_ties\nbase_model: base\nmodels:\n  - model: a\n"
      "    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}\n  - model: b\n"
      "    parameters: {weight: 0.5, density: 0.9, gamma: 0.01}"};
  static constexpr Parameter kParameters[] = {normalize(false), kLambda,  kInt8Mask, rescale(false),
                                              kWeight,          kDensity, kGamma};
  using Lens = Band;
  using Combine = Elect<Vote::weighted>;
  using Passes = List<Edges<BreadcrumbsTies>, Norms<BreadcrumbsTies>>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    begin_election<BreadcrumbsTies>(rule, facts);
    begin_survivors<BreadcrumbsTies>(rule, facts);
    Edges<BreadcrumbsTies>::begin(rule, facts);
  }
  static const char* invalid(const Rule& rule) { return invalid_election<BreadcrumbsTies>(rule); }
};

}  // namespace ingot::math
