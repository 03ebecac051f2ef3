// karcher: the point of the sphere from which the directions of all models are least far (the
// Karcher or Riemannian mean), at their mean length.
//
// Every step stays in the span of the inputs: the mean is kept as coefficients of the unit vectors,
// and all angles follow from the products of the inputs.
#pragma once

#include <cmath>

#include "ingot/math/parts/blend.hpp"
#include "ingot/math/parts/task.hpp"

namespace ingot::math {

struct Karcher {
  static constexpr Card kCard{
      "karcher",
      Base::ignored,
      1,
      kSources,
      "centre of the models on the sphere, at their mean length",
      "out = (mean of |x|) m;  m, of length 1, has the least sum of squared angles to\n"
      "x1 / |x1|, x2 / |x2|, ... It is found step by step: m moves by the mean of the\n"
      "arcs to all of them, until it moves by less than `tol`.\n"
      "Tensors of length `tol` and less take no part.",
      "norms, dot products of all pairs",
      "Two or more models that are of equal weight. A base_model is one more input.",
      "Riemannian Center of Mass and Mollifier Smoothing (1977)",
      "https://doi.org/10.1002/cpa.3160300502",
      "merge_method: karcher\nmodels:\n  - model: a\n  - model: b\n  - model: c"};
  static constexpr Parameter kParameters[] = {
      integer("max_iter", 10, "most steps of the search", 0, 100000),
      number("tol", 1e-5, "step, angle and length that count as zero", 0)};
  using Lens = Value;
  using Combine = Blend;

  struct Mean : Gram<Stream::value> {
    static constexpr Pass kPass = Pass::fold;
    template <class V>
    static bool wanted(const Rule& rule, const V&) {
      return rule.sources > 1;
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      const int n = rule.sources;
      const double tol = Given<Karcher>(rule).at<"tol">();
      const int steps = static_cast<int>(Given<Karcher>(rule).at<"max_iter">());
      // The vectors that take part, by number, and their lengths.
      int of[kSources], kept = 0;
      double norm[kSources], length = 0.0;
      for (int s = 0; s < n; ++s) {
        norm[s] = std::sqrt(sums[at(n, s, s)]);
        length += norm[s] / n;
        facts.source[s].set(0.0);
        if (!(norm[s] <= tol)) of[kept++] = s;
      }
      if (kept == 0) return nullptr;
      // The mean is sum mean[i] u_i. Its product with u_j, and its own length:
      const auto cosine = [&](int i, int j) {
        const int a = of[i], b = of[j];
        return a == b ? 1.0 : sums[at(n, a, b)] / (norm[a] * norm[b]);
      };
      double mean[kSources], move[kSources];
      const auto along = [&](const double* v, int j) {
        double sum = 0.0;
        for (int i = 0; i < kept; ++i) sum += v[i] * cosine(i, j);
        return sum;
      };
      const auto size = [&](const double* v) {
        double sum = 0.0;
        for (int j = 0; j < kept; ++j) sum += v[j] * along(v, j);
        return std::sqrt(sum < 0.0 ? 0.0 : sum);
      };
      const double share = 1.0 / kept;
      for (int i = 0; i < kept; ++i) mean[i] = share;
      const double first = size(mean);
      for (int i = 0; i < kept; ++i) {
        mean[i] = first < tol ? (i == 0 ? 1.0 : 0.0) : mean[i] / first;
      }
      for (int step = 0; step < steps; ++step) {
        for (int i = 0; i < kept; ++i) move[i] = 0.0;
        double back = 0.0;  // of the mean in the step
        for (int i = 0; i < kept; ++i) {
          double d = along(mean, i);
          d = d > 1.0 ? 1.0 : d < -1.0 ? -1.0 : d;
          const double angle = std::acos(d);
          // Opposite the mean no arc is the shortest.
          if (angle < tol || kPi - angle < tol) continue;
          const double factor = angle == 0.0 ? share : share * angle / std::sin(angle);
          move[i] += factor;
          back += factor * d;
        }
        for (int i = 0; i < kept; ++i) move[i] -= back * mean[i];
        const double far = size(move);
        if (!(far >= tol) || far == 0.0) break;
        for (int i = 0; i < kept; ++i) {
          mean[i] = std::cos(far) * mean[i] + std::sin(far) * (move[i] / far);
        }
        const double now = size(mean);
        for (int i = 0; i < kept && now > tol; ++i) mean[i] /= now;
      }
      for (int i = 0; i < kept; ++i) facts.source[of[i]].set(length * mean[i] / norm[of[i]]);
      return nullptr;
    }

   private:
    static constexpr double kPi = 3.141592653589793;
  };
  using Passes = List<Mean>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->copies = rule.sources == 1 ? 1 : 0;
  }
};

}  // namespace ingot::math
