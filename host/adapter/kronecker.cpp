// LoKr: a Kronecker product of two factors, each of which may be a product itself.
#include "ingot/math/kronecker.hpp"

#include <optional>
#include <utility>

#include <fmt/format.h>

#include "adapter/step.hpp"

namespace ingot {
namespace {

// A factor's extents, and those of what it is made of. With `kernel` (CP form or a convolution's
// own) the width counts inputs times taps.
struct Shapes {
  std::uint64_t height = 0, inputs = 0, taps = 1;
  bool padded = false;  // three dimensions: see below
};

Shapes shapes(const Located& base, const Effect& effect, Piece full, Piece pa, Piece pb, Piece pt) {
  Shapes s;
  if (effect.find(full) != nullptr) {
    const Located& whole = part(base, effect, full);
    const Shape& shape = whole.info.shape;
    if (shape.rank() < 2 || whole.info.count() == 0) misfit(base, effect, whole, "a matrix");
    s.height = shape[0];
    s.inputs = shape[1];
    s.taps = matrix(shape).width / shape[1];
    s.padded = shape.rank() == 3;
    return s;
  }
  const Located &a = part(base, effect, pa), &b = part(base, effect, pb);
  const Shape &as = a.info.shape, &bs = b.info.shape;
  if (as.rank() != 2 || a.info.count() == 0) misfit(base, effect, a, "a matrix");
  if (bs.rank() != 2 || b.info.count() == 0) misfit(base, effect, b, "a matrix");
  s.inputs = bs[1];
  if (pt == full || effect.find(pt) == nullptr) {
    if (bs[0] != as[1]) misfit(base, effect, b, fmt::format("{} rows", as[1]));
    s.height = as[0];
    return s;
  }
  const Located& t = part(base, effect, pt);
  const Shape& ts = t.info.shape;
  if (ts.rank() < 3 || ts[0] != as[0] || ts[1] != bs[0] || t.info.count() == 0) {
    misfit(base, effect, t, fmt::format("{} x {} kernels", as[0], bs[0]));
  }
  s.height = as[1];
  s.taps = t.info.count() / (ts[0] * ts[1]);
  s.padded = ts.rank() == 3;
  return s;
}

struct Fit {
  Shapes outer, inner;
};

Fit fit(const Located& base, const Effect& effect) {
  const Fit f{shapes(base, effect, Piece::w1, Piece::w1_a, Piece::w1_b, Piece::w1),
              shapes(base, effect, Piece::w2, Piece::w2_a, Piece::w2_b, Piece::t2)};
  Matrix m = matrix(base.info.shape);
  if (effect.layout != Layout::linear) std::swap(m.height, m.width);
  const bool padded = f.inner.padded;
  const bool fits =
      padded ? f.outer.height * f.outer.inputs * f.inner.height * f.inner.inputs * f.inner.taps ==
                   base.info.count()
             : f.outer.height * f.inner.height == m.height &&
                   f.outer.inputs * f.inner.inputs * f.inner.taps == m.width;
  if (base.info.shape.rank() < 2 || !fits || f.outer.taps != 1 ||
      (padded && effect.layout != Layout::linear)) {
    fail(Code::shape,
         fmt::format("{}: factors of {} x {} and {} x {} do not make the {} of {}", effect.adapter,
                     f.outer.height, f.outer.inputs, f.inner.height, f.inner.inputs * f.inner.taps,
                     base.info.shape.text(), base.info.name));
  }
  return f;
}

void check(const Located& base, const Effect& effect) { static_cast<void>(fit(base, effect)); }

std::uint64_t memory(const Located& base, const Effect& effect) {
  const Fit f = fit(base, effect);
  std::uint64_t bytes = 0;
  for (const Effect::Part& p : effect.parts) bytes += p.tensor.info.count() * sizeof(float);
  return bytes + sizeof(double) * (f.outer.height * f.outer.inputs +
                                   f.inner.height * f.inner.inputs * f.inner.taps);
}

// A factor in double, by rows.
std::vector<double> factor(const Scene& scene, const Effect& effect, const Shapes& s, Piece full,
                           Piece pa, Piece pb, Piece pt) {
  const auto get = [&](Piece piece) {
    return load(*scene.plan, effect, part(*scene.base, effect, piece));
  };
  const auto wide = [](float v) { return static_cast<double>(v); };
  if (effect.find(full) != nullptr) {
    const std::vector<float> values = get(full);
    return {values.begin(), values.end()};
  }
  const std::vector<float> a = get(pa), b = get(pb);
  const std::uint64_t width = s.inputs * s.taps;
  std::vector<double> product(s.height * width);
  if (pt == full || effect.find(pt) == nullptr) {
    const std::uint64_t rank = a.size() / s.height;
    for (std::uint64_t y = 0; y < s.height; ++y) {
      for (std::uint64_t k = 0; k < rank; ++k) {
        for (std::uint64_t x = 0; x < width; ++x) {
          product[y * width + x] += wide(a[y * rank + k]) * wide(b[k * width + x]);
        }
      }
    }
    return product;
  }
  const std::vector<float> t = get(pt);
  const std::uint64_t rank = a.size() / s.height, inner = b.size() / s.inputs;
  for (std::uint64_t y = 0; y < s.height; ++y) {
    for (std::uint64_t j = 0; j < inner; ++j) {
      for (std::uint64_t tap = 0; tap < s.taps; ++tap) {
        double kernel = 0;
        for (std::uint64_t k = 0; k < rank; ++k) {
          kernel += wide(a[k * s.height + y]) * wide(t[(k * inner + j) * s.taps + tap]);
        }
        for (std::uint64_t q = 0; q < s.inputs; ++q) {
          product[y * width + q * s.taps + tap] += kernel * wide(b[j * s.inputs + q]);
        }
      }
    }
  }
  return product;
}

class Kronecker final : public Formula<Kronecker> {
 public:
  Kronecker(const Scene& scene, const Effect& effect)
      : fit_(fit(*scene.base, effect)),
        outer_(factor(scene, effect, fit_.outer, Piece::w1, Piece::w1_a, Piece::w1_b, Piece::w1)),
        inner_(factor(scene, effect, fit_.inner, Piece::w2, Piece::w2_a, Piece::w2_b, Piece::t2)),
        scale_(effect.weight * effect.scaling * effect.times),
        width_(matrix(scene.base->info.shape).width),
        transposed_(effect.layout != Layout::linear) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    for (std::uint64_t i = 0; i < panel.values.size(); ++i) {
      const auto [outer, inner] = at(panel.first + i);
      T& value = panel.values[i];
      value = math::kronecker(W(widen(value)), W(scale_), W(outer_[outer]), W(inner_[inner]));
    }
  }

 private:
  // Which element of each factor meets in an element of the base.
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> at(std::uint64_t index) const {
    const Shapes &o = fit_.outer, &n = fit_.inner;
    if (n.padded) {
      // PyTorch's kron of (h, w) with (c, d, taps) takes the first for (1, h, w): the result is
      // (c, h * d, w * taps), and its elements fill the base in that order.
      const std::uint64_t line = o.inputs * n.taps, plane = o.height * n.inputs * line;
      const std::uint64_t c = index / plane, y = index % plane / line, x = index % line;
      return {y / n.inputs * o.inputs + x / n.taps,
              (c * n.inputs + y % n.inputs) * n.taps + x % n.taps};
    }
    std::uint64_t y = index / width_, x = index % width_;
    if (transposed_) std::swap(y, x);
    const std::uint64_t line = n.inputs * n.taps;
    return {y / n.height * o.inputs + x / line, y % n.height * line + x % line};
  }

  const Fit fit_;
  const std::vector<double> outer_, inner_;
  const double scale_;
  const std::uint64_t width_;
  const bool transposed_;
};

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  return std::make_unique<Kronecker>(scene, effect);
}

}  // namespace

const Kit kKronecker{check, memory, make, false, false};

}  // namespace ingot
