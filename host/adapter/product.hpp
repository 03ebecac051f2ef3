// A low-rank product over rows of the base: factors brought into the base's layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "adapter/step.hpp"
#include "ingot/math/product.hpp"

namespace ingot {

// value(y, x) += scale * sum over k of left[y][k] * right[k][x], for rows [top, top + height).
class Low {
 public:
  // The products of an effect: one, or one for each expert, by rising rows. `scale` in place of
  // weight * scaling * times.
  [[nodiscard]] static std::vector<Low> load(const Scene& scene, const Effect& effect,
                                             double scale);

  template <class T>
  void add(std::uint64_t first, std::span<T> values) const;

  [[nodiscard]] const Factors* factors() const { return factors_.get(); }
  // True if it changes all of a tensor of `count` elements.
  [[nodiscard]] bool covers(std::uint64_t count) const {
    return top_ == 0 && height_ * width_ == count;
  }

 private:
  void add_staged(std::uint64_t first, std::span<float> values) const;

  Backend* backend_ = nullptr;
  std::uint64_t top_ = 0, height_ = 0, width_ = 0;
  std::uint32_t rank_ = 0;
  float scale_ = 1;
  bool fast_ = false;
  std::vector<float> left_, right_;
  std::unique_ptr<Factors> factors_;  // refers to left_ and right_, whose memory moves with them
};

// Elements of `first + values` that lie in [low, high), as a subspan and its first index.
template <class T>
Panel<T> within(std::uint64_t first, std::span<T> values, std::uint64_t low, std::uint64_t high) {
  const std::uint64_t begin = std::max(first, low);
  const std::uint64_t end = std::min<std::uint64_t>(first + values.size(), high);
  if (begin >= end) return {};
  return {begin, values.subspan(begin - first, end - begin), {}};
}

template <class T>
void Low::add(std::uint64_t first, std::span<T> values) const {
  const Panel<T> panel = within(first, values, top_ * width_, (top_ + height_) * width_);
  if (panel.values.empty()) return;
  const std::uint64_t offset = panel.first - top_ * width_;
  if constexpr (std::is_same_v<T, float>) {
    if (factors_) return add_staged(offset, panel.values);
  }
  std::vector<T> sums;
  for (std::uint64_t done = 0; done < panel.values.size();) {
    const std::uint64_t y = (offset + done) / width_, x = (offset + done) % width_;
    const std::uint64_t count = std::min<std::uint64_t>(width_ - x, panel.values.size() - done);
    sums.assign(count, T(0.0F));
    for (std::uint32_t k = 0; k < rank_; ++k) {
      const T b(left_[y * rank_ + k]);
      const float* a = right_.data() + k * width_ + x;
      for (std::uint64_t i = 0; i < count; ++i) sums[i] = math::extend(sums[i], b, T(a[i]));
    }
    if constexpr (!std::is_same_v<T, float>) {
      for (std::uint64_t i = 0; fast_ && i < count; ++i) {
        double mass = 0;
        for (std::uint32_t k = 0; k < rank_; ++k) {
          mass += std::fabs(static_cast<double>(left_[y * rank_ + k]) *
                            static_cast<double>(right_[k * width_ + x + i]));
        }
        sums[i] = T::any_order(sums[i].value, mass, rank_);
      }
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      T& value = panel.values[done + i];
      value = math::amend(value, T(scale_), sums[i]);
    }
    done += count;
  }
}

}  // namespace ingot
