// passthrough: one input, times a number.
#pragma once

#include "ingot/math/parts/combine.hpp"
#include "ingot/math/parts/lens.hpp"

namespace ingot::math {

struct Passthrough {
  static constexpr Card kCard{
      "passthrough",
      Base::ignored,
      1,
      1,
      "tensors as they are: layers taken from models and stacked",
      "out = scale * x",
      "",
      "To build a deeper or shallower model from the layers of others (a frankenmerge), or to put "
      "adapters into a model. The result usually needs training.",
      "",
      "",
      "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 16]}]\n"
      "  - sources: [{model: b, layer_range: [8, 24]}]"};
  static constexpr Parameter kParameters[] = {
      {"scale", "factor of the tensor", Kind::real, Scope::every, false, 1, -kLargest, kLargest}};
  using Lens = Value;
  using Combine = Scale;
  using Passes = List<>;

  static void begin(const Rule& rule, View<Lens, Combine> facts) {
    for (int s = 0; s < rule.sources; ++s) {
      facts.source[s].scale = static_cast<float>(Given<Passthrough>(rule).at<"scale">(s));
    }
  }
  // True where the result is the input itself: the tensor can be copied.
  static bool identity(const Rule& rule) { return Given<Passthrough>(rule).at<"scale">(0) == 1.0; }
};

}  // namespace ingot::math
