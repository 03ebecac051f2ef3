// LoHa: products of two low-rank halves, element by element.
#include "ingot/math/hadamard.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "adapter/step.hpp"

namespace ingot {
namespace {

constexpr std::array kHalves{std::array{Piece::w1_a, Piece::w1_b, Piece::t1},
                             std::array{Piece::w2_a, Piece::w2_b, Piece::t2}};

void check(const Located& base, const Effect& effect) {
  const Shape& shape = base.info.shape;
  Matrix m = matrix(shape);
  if (shape.rank() < 2) {
    fail(Code::shape, fmt::format("{}: {} has shape {}, a low-rank change needs a matrix",
                                  effect.adapter, base.info.name, shape.text()));
  }
  if (effect.layout != Layout::linear) std::swap(m.height, m.width);
  for (const auto& [pa, pb, pt] : kHalves) {
    const Located &a = part(base, effect, pa), &b = part(base, effect, pb);
    const Shape &as = a.info.shape, &bs = b.info.shape;
    if (as.rank() != 2 || a.info.count() == 0) misfit(base, effect, a, "a matrix with elements");
    if (effect.find(pt) == nullptr) {
      if (as[0] != m.height) misfit(base, effect, a, fmt::format("{} rows", m.height));
      if (bs.rank() != 2 || bs[0] != as[1] || bs[1] != m.width) {
        misfit(base, effect, b, fmt::format("[{}, {}]", as[1], m.width));
      }
      continue;
    }
    const Located& t = part(base, effect, pt);
    if (shape.rank() < 3 || effect.layout != Layout::linear) {
      misfit(base, effect, t, "a convolution");
    }
    if (as[1] != m.height) misfit(base, effect, a, fmt::format("{} columns", m.height));
    if (bs.rank() != 2 || bs[1] != shape[1]) {
      misfit(base, effect, b, fmt::format("{} columns", shape[1]));
    }
    const std::uint64_t taps = m.width / shape[1];
    const Shape& ts = t.info.shape;
    if (ts.rank() < 2 || ts[0] != as[0] || ts[1] != bs[0] ||
        t.info.count() != ts[0] * ts[1] * taps) {
      misfit(base, effect, t, fmt::format("{} x {} kernels of {} elements", as[0], bs[0], taps));
    }
  }
}

std::uint64_t memory(const Located&, const Effect& effect) {
  std::uint64_t count = 0;
  for (const Effect::Part& p : effect.parts) count += p.tensor.info.count();
  return 2 * count * sizeof(float);
}

// One half as rows of the base: sum over k of left(row, k) * right(k, column).
class Half {
 public:
  Half(const Scene& scene, const Effect& effect, const std::array<Piece, 3>& pieces) {
    const auto get = [&](Piece piece) {
      return load(*scene.plan, effect, part(*scene.base, effect, piece));
    };
    const Matrix m = matrix(scene.base->info.shape);
    left_ = get(pieces[0]);
    right_ = get(pieces[1]);
    width_ = m.width;
    if (effect.find(pieces[2]) != nullptr) {
      kernels_ = get(pieces[2]);
      height_ = m.height;
      taps_ = m.width / scene.base->info.shape[1];
      rank_ = left_.size() / m.height;
      inner_ = right_.size() * taps_ / m.width;
      return;
    }
    if (effect.layout == Layout::linear) {
      rank_ = left_.size() / m.height;
      return;
    }
    rank_ = left_.size() / m.width;
    std::vector<float> left(m.height * rank_), right(rank_ * m.width);
    for (std::uint64_t k = 0; k < rank_; ++k) {
      for (std::uint64_t y = 0; y < m.height; ++y) left[y * rank_ + k] = right_[k * m.height + y];
      for (std::uint64_t x = 0; x < m.width; ++x) right[k * m.width + x] = left_[x * rank_ + k];
    }
    left_ = std::move(left);
    right_ = std::move(right);
  }

  // Elements [x, x + out.size()) of a row.
  template <class W>
  void row(std::uint64_t y, std::uint64_t x, std::span<W> out) const {
    std::fill(out.begin(), out.end(), W(0.0));
    const auto wide = [](float v) { return W(static_cast<double>(v)); };
    if (kernels_.empty()) {
      for (std::uint64_t k = 0; k < rank_; ++k) {
        const W b = wide(left_[y * rank_ + k]);
        const float* a = right_.data() + k * width_ + x;
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = math::term(out[i], b, wide(a[i]));
      }
      return;
    }
    const std::uint64_t inputs = width_ / taps_;
    std::vector<W> kernel(taps_, W(0.0));
    for (std::uint64_t j = 0; j < inner_; ++j) {
      std::fill(kernel.begin(), kernel.end(), W(0.0));
      for (std::uint64_t k = 0; k < rank_; ++k) {
        const W a = wide(left_[k * height_ + y]);
        const float* t = kernels_.data() + (k * inner_ + j) * taps_;
        for (std::uint64_t s = 0; s < taps_; ++s) kernel[s] = math::term(kernel[s], a, wide(t[s]));
      }
      for (std::size_t i = 0; i < out.size(); ++i) {
        const std::uint64_t q = (x + i) / taps_, s = (x + i) % taps_;
        out[i] = math::term(out[i], kernel[s], wide(right_[j * inputs + q]));
      }
    }
  }

 private:
  std::vector<float> left_, right_, kernels_;
  std::uint64_t height_ = 0, width_ = 0, rank_ = 0, inner_ = 0, taps_ = 1;
};

class Hadamard final : public Formula<Hadamard> {
 public:
  Hadamard(const Scene& scene, const Effect& effect)
      : first_(scene, effect, kHalves[0]),
        second_(scene, effect, kHalves[1]),
        scale_(effect.weight * effect.scaling * effect.times),
        width_(matrix(scene.base->info.shape).width) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    std::vector<W> one, two;
    for (std::uint64_t done = 0; done < panel.values.size();) {
      const std::uint64_t y = (panel.first + done) / width_, x = (panel.first + done) % width_;
      const std::uint64_t count = std::min<std::uint64_t>(width_ - x, panel.values.size() - done);
      one.resize(count);
      two.resize(count);
      first_.row<W>(y, x, one);
      second_.row<W>(y, x, two);
      for (std::uint64_t i = 0; i < count; ++i) {
        T& value = panel.values[done + i];
        value = math::hadamard(W(widen(value)), W(scale_), one[i], two[i]);
      }
      done += count;
    }
  }

 private:
  const Half first_, second_;
  const double scale_;
  const std::uint64_t width_;
};

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  return std::make_unique<Hadamard>(scene, effect);
}

}  // namespace

const Kit kHadamard{check, memory, make, false, false};

}  // namespace ingot
