// nuslerp: spherical interpolation of two models or of their task vectors, of whole tensors or of
// each row or column.
//
// The angles and the coefficients come from exact-product sums in double on the host.
#pragma once

#include <cmath>

#include "ingot/math/methods/slerp.hpp"

namespace ingot::math {

struct Nuslerp {
  static constexpr Card kCard{
      "nuslerp",
      Base::optional,
      2,
      2,
      "interpolation of two models, or of their changes, along an arc",
      "out = sin((1-t) p) / sin(p) * x0 + sin(t p) / sin(p) * x1,  t = w1 / (w0 + w1)\n"
      "p is the angle between the two tensors, taken as vectors. With\n"
      "nuslerp_flatten: false each row is a vector; with nuslerp_row_wise: true as\n"
      "well, each column. With a base x0 and x1 are the changes x - b, and the\n"
      "result is added to b.\n"
      "Vectors that are nearly parallel, or nearly opposite, are mixed as\n"
      "(1-t) x0 + t x1.",
      "norms, dot product (of each line with nuslerp_flatten: false)",
      "Exactly two models, as slerp, with weights instead of t; with a base the changes of two "
      "fine-tunes are turned into each other.",
      "Animating Rotation with Quaternion Curves (1985)",
      "",
      "merge_method: nuslerp\nmodels:\n  - model: a\n    parameters: {weight: 0.6}\n"
      "  - model: b\n    parameters: {weight: 0.4}"};
  static constexpr Parameter kParameters[] = {
      flag("nuslerp_row_wise", false,
           "vectors run along the first axis, not the last (where not flattened)"),
      flag("nuslerp_flatten", true, "the whole tensor is one vector"), kWeight};
  static constexpr int kLineFacts = 2;  // the coefficients of a line
  using Lens = Value;

  //   y_i = x_i - b, or x_i where there is no base
  //   fuse(s1, y1, fuse(s0, y0, fuse(s1', y1, s0' * y0))) + b
  //
  // s and s' are the upper and the lower half of a coefficient, of the tensor or of the line.
  struct Combine {
    static constexpr int kForms = 2, kStages = 1, kUnrolled = 2, kHeld = 2;
    static constexpr bool kPropagates = true, kFused = false;
    struct Facts {
      Gain gain[2];
      double coefficient[2] = {};
      std::uint8_t lines = 0;

      void bend(double of_first, double of_second) {
        coefficient[0] = of_first;
        coefficient[1] = of_second;
        gain[0] = math::gain(of_first);
        gain[1] = math::gain(of_second);
      }
    };
    struct Source {};
    template <class T>
    struct State {
      T first{0}, second{0};
      template <class Visit>
      INGOT_HD void each(Visit visit) {
        visit(first);
        visit(second);
      }
    };
    INGOT_HD static int form(const Facts& f) { return f.lines; }
    // The second source pushes the first one on.
    template <int form, int stage, class T>
    INGOT_HD static void meet(State<T>& s, const Facts&, const Source&, T x, float,
                              const At<T>& at) {
      s.first = s.second;
      s.second = delta(x, at.base);
    }
    template <int form, class T>
    INGOT_HD static T finish(const State<T>& s, const Facts& f, const At<T>& at, Note&) {
      const Gain a = form == 1 ? math::gain(at.line[0]) : f.gain[0];
      const Gain b = form == 1 ? math::gain(at.line[1]) : f.gain[1];
      const T rest = fuse(static_cast<T>(b.rest), s.second, static_cast<T>(a.rest) * s.first);
      return fuse(static_cast<T>(b.whole), s.second, fuse(static_cast<T>(a.whole), s.first, rest)) +
             at.base;
    }
    static bool tell(const Rule&, Facts& f, Source*, Teller& teller) {
      if (f.lines != 0) return true;
      const bool told = teller.number("coefficients", -1, 0, f.coefficient[0]) &&
                        teller.number("coefficients", -1, 1, f.coefficient[1]);
      f.bend(f.coefficient[0], f.coefficient[1]);
      return told;
    }
  };

  // Coefficients from the products aa, bb, ab. Straight where the arc's length says nothing:
  // parallel vectors, and nearly opposite ones, whose plane is noise.
  static Interpolation arc(const Rule& rule, const double* products) {
    const double w0 = Given<Nuslerp>(rule).at<"weight">(0);
    const double w1 = Given<Nuslerp>(rule).at<"weight">(1);
    const double t = std::fabs(w0 + w1) < 1e-6 ? 0.5 : w1 / (w0 + w1);
    const double norm0 = std::sqrt(products[0]), norm1 = std::sqrt(products[1]);
    double cosine = norm0 == 0.0 || norm1 == 0.0 ? 0.0 : products[2] / norm0 / norm1;
    cosine = cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
    if (1.0 - cosine * cosine <= 1e-16 || cosine < -0.9995) return {1.0 - t, t};
    const double angle = std::acos(cosine);
    return {std::sin((1.0 - t) * angle) / std::sin(angle), std::sin(t * angle) / std::sin(angle)};
  }

  struct Whole : Gram<Stream::delta> {
    static constexpr Pass kPass = Pass::fold;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return facts.whole->lines == 0;
    }
    static const char* take(const Rule& rule, const double* sums, View<Lens, Combine> facts) {
      const Interpolation i = arc(rule, sums);
      facts.whole->bend(i.near, i.far);
      return nullptr;
    }
  };
  struct OfLines : Gram<Stream::delta> {
    static constexpr Pass kPass = Pass::lines;
    static constexpr int kFirstFact = 0, kFacts = 2;
    template <class V>
    static bool wanted(const Rule&, const V& facts) {
      return facts.whole->lines != 0;
    }
    static void take(const Rule& rule, const double* sums, double* facts) {
      const Interpolation i = arc(rule, sums);
      facts[0] = i.near;
      facts[1] = i.far;
    }
  };
  using Passes = List<Whole, OfLines>;

  static Lines lines(const Rule& rule) {
    const Given<Nuslerp> given(rule);
    if (given.on<"nuslerp_flatten">()) return Lines::none;
    return given.on<"nuslerp_row_wise">() ? Lines::columns : Lines::rows;
  }
  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    facts.whole->lines = lines(rule) == Lines::none ? 0 : 1;
  }
};

}  // namespace ingot::math
