// multislerp: the weighted mean direction of the models, or of their task vectors, at their
// weighted mean length.
//
// mergekit takes a step in the tangent space from the normalised mean M / |M|. The step vanishes:
// its length is that of sum w_i (u_i - (u_i . m) m), which is M less its part along m = M / |M|.
// What stays of it is a factor cos(eps). So the result is one linear combination of the inputs, and
// its coefficients follow from their products.
#pragma once

#include <cmath>

#include "ingot/math/parts/blend.hpp"
#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Multislerp {
  static constexpr Card kCard{
      "multislerp",
      Base::optional,
      1,
      kSources,
      "mean direction of the models at their mean length",
      "out = (sum of w |x|) M / |M|,  M = w1 x1 / |x1| + w2 x2 / |x2| + ...\n"
      "|x| is the length of a tensor, taken as a vector; the w are divided by their\n"
      "sum unless normalize_weights: false. With a base the x are the changes x - b,\n"
      "and b is added. Where the directions cancel (M is next to nothing):\n"
      "out = w1 x1 + w2 x2 + ...",
      "norms, dot products of all pairs",
      "Two or more models, where a plain mean would shrink the weights. With a base, the changes "
      "keep their length.",
      "",
      "",
      "merge_method: multislerp\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\n"
      "  - model: b\n    parameters: {weight: 0.3}\n  - model: c\n"
      "    parameters: {weight: 0.2}"};
  static constexpr Parameter kParameters[] = {
      flag("normalize_weights", true, "divide the weights by their sum"),
      number("eps", 1e-8, "added to lengths before they divide", 0), kWeight};
  using Lens = Value;
  using Combine = Blend;

  struct Mean : Gram<Stream::delta> {
    static constexpr Pass kPass = Pass::fold;
    template <class V>
    static bool wanted(const Rule& rule, const V&) {
      return rule.sources > 1;
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      const int n = rule.sources;
      const double eps = Given<Multislerp>(rule).at<"eps">();
      double weight[kSources], length[kSources], all = 0.0, size = 0.0, mean = 0.0, square = 0.0;
      for (int s = 0; s < n; ++s) all += Given<Multislerp>(rule).at<"weight">(s);
      if (!Given<Multislerp>(rule).on<"normalize_weights">()) all = 1.0;
      for (int s = 0; s < n; ++s) {
        weight[s] = Given<Multislerp>(rule).at<"weight">(s) / all;
        const double norm = std::sqrt(sums[at(n, s, s)]);
        length[s] = norm + eps;
        size += std::fabs(weight[s]);
        mean += norm * weight[s];
      }
      // What a vector is multiplied by in M; nothing of one without a length.
      const auto share = [&](int s) { return length[s] == 0.0 ? 0.0 : weight[s] / length[s]; };
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) square += share(i) * share(j) * sums[at(n, i, j)];
      }
      const double norm = std::sqrt(square > 0.0 || square != square ? square : 0.0);
      // Below this the direction is the rounding of the products.
      const double least = eps > 0x1p-20 * size ? eps : 0x1p-20 * size;
      for (int s = 0; s < n; ++s) {
        facts.source[s].set(norm < least ? weight[s] : std::cos(eps) * mean / norm * share(s));
      }
      return nullptr;
    }
  };
  using Passes = List<Mean>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->copies = rule.sources == 1 ? 1 : 0;
  }
  static const char* invalid(const Rule& rule) {
    if (rule.sources < 2 || !Given<Multislerp>(rule).on<"normalize_weights">()) return nullptr;
    const Weights w = weights<Multislerp>(rule);
    if (w.sum > 1e-6 * w.size || -w.sum > 1e-6 * w.size) return nullptr;
    return "the weights sum to zero or nearly so and normalize_weights is on; change them or set "
           "normalize_weights: false";
  }
};

}  // namespace ingot::math
