// DoRA: a low-rank change whose rows, or columns, get trained lengths.
#include <algorithm>

#include <fmt/format.h>

#include "adapter/product.hpp"
#include "base/once.hpp"
#include "ingot/math/dora.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kPanel = std::uint64_t{1} << 18;  // elements of a pass over the base

bool by_column(const Effect& effect) { return effect.layout != Layout::linear; }

std::uint64_t lines(const Located& base, const Effect& effect) {
  const Matrix m = matrix(base.info.shape);
  return by_column(effect) ? m.width : m.height;
}

void check(const Located& base, const Effect& effect) {
  kProduct.check(base, effect);
  const Located& magnitude = part(base, effect, Piece::magnitude);
  if (base.info.shape.rank() == 3 && part(base, effect, Piece::a).info.shape.rank() == 2) {
    fail(Code::usage, fmt::format("{}: {} holds experts, which have no magnitudes", effect.adapter,
                                  base.info.name));
  }
  if (magnitude.info.count() != lines(base, effect)) {
    misfit(base, effect, magnitude, fmt::format("{} elements", lines(base, effect)));
  }
}

std::uint64_t memory(const Located& base, const Effect& effect) {
  return kProduct.memory(base, effect) + lines(base, effect) * (sizeof(double) + sizeof(float));
}

class Direction final : public Formula<Direction> {
 public:
  Direction(const Scene& scene, const Effect& effect)
      : scene_(scene),
        base_(*scene.base),
        low_(std::move(Low::load(scene, effect, effect.scaling * effect.times)[0])),
        magnitude_(load(*scene.plan, effect, part(base_, effect, Piece::magnitude))),
        width_(matrix(base_.info.shape).width),
        column_(by_column(effect)),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1),
        kept_(magnitude_.size()) {
    if (column_) columns_ = stretches<float>();
  }

  template <class T>
  void apply(const Panel<T>& panel) const {
    std::vector<T> after(panel.values.begin(), panel.values.end());
    low_.add(panel.first, std::span(after));
    std::vector<T> alone;  // the base under this change alone, whose lengths count
    if (!column_ && !scene_.fresh) {
      alone.assign(panel.base.begin(), panel.base.end());
      low_.add(panel.first, std::span(alone));
    }
    const std::vector<T>& measured = scene_.fresh ? after : alone;
    std::uint64_t row = ~std::uint64_t{0};
    T factor(0.0F);
    for (std::uint64_t i = 0; i < after.size(); ++i) {
      const std::uint64_t y = (panel.first + i) / width_;
      if (column_) {
        factor = columns<T>()[(panel.first + i) % width_];
      } else if (y != row) {
        row = y;
        const auto squares = math::dot<Wide<T>>(&measured[i], &measured[i], width_);
        factor = stretch<T>(y, squares);
      }
      T& value = panel.values[i];
      value = math::blend(T(weight_), full_, value, factor * after[i]);
    }
  }

  [[nodiscard]] std::uint64_t skipped() const override {
    return static_cast<std::uint64_t>(
        std::count_if(kept_.begin(), kept_.end(), [](const auto& k) { return k.load() != 0; }));
  }

 private:
  // A line of zeros has no direction: it stays as it is.
  template <class T>
  T stretch(std::uint64_t line, Wide<T> squares) const {
    if (squares == Wide<T>(0.0)) {
      kept_[line].store(1, std::memory_order_relaxed);
      return T(1.0F);
    }
    return math::stretch(Wide<T>(static_cast<double>(magnitude_[line])), squares);
  }

  // The factor of every column: one pass over the base, rows in order.
  template <class T>
  std::vector<T> stretches() const {
    std::vector<Wide<T>> squares(width_, Wide<T>(0.0));
    const Checkpoint& checkpoint = scene_.plan->models[base_.place.model].checkpoint;
    const Entry& entry = checkpoint.entries()[base_.place.entry];
    const std::uint64_t count = base_.info.count();
    const std::uint64_t step = std::max(kPanel / width_, std::uint64_t{1}) * width_;
    std::vector<float> stored;
    for (std::uint64_t first = 0; first < count; first += step) {
      stored.resize(std::min(step, count - first));
      read_values(checkpoint, entry, first, stored);
      std::vector<T> values(stored.begin(), stored.end());
      low_.add(first, std::span(values));
      for (std::uint64_t i = 0; i < values.size(); i += width_) {
        for (std::uint64_t x = 0; x < width_; ++x) {
          squares[x] = math::square(squares[x], values[i + x]);
        }
      }
    }
    std::vector<T> factors(width_);
    for (std::uint64_t x = 0; x < width_; ++x) factors[x] = stretch<T>(x, squares[x]);
    return factors;
  }

  template <class T>
  const std::vector<T>& columns() const {
    if constexpr (std::is_same_v<T, float>) {
      return columns_;
    } else {
      once_.call([&] { truths_ = stretches<Single>(); });
      return truths_;
    }
  }

  const Scene scene_;
  const Located base_;
  const Low low_;
  const std::vector<float> magnitude_;
  const std::uint64_t width_;
  const bool column_;
  const float weight_;
  const bool full_;
  mutable std::vector<std::atomic<std::uint8_t>> kept_;  // by line: 1 if it has no direction
  std::vector<float> columns_;
  mutable Once once_;
  mutable std::vector<Single> truths_;  // columns_ for recompute(), when it is first called
};

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  return std::make_unique<Direction>(scene, effect);
}

}  // namespace

const Kit kDora{check, memory, make, true, true};
const Kit kDoraColumns{check, memory, make, false, false};

}  // namespace ingot
