// MiSS: a shard that repeats along the weight, in three forms.
#include "ingot/math/miss.hpp"

#include <utility>

#include <fmt/format.h>

#include "adapter/step.hpp"
#include "ingot/math/product.hpp"

namespace ingot {
namespace {

using Tiling = AdapterConfig::Tiling;

void check(const Located& base, const Effect& effect) {
  const Located& block = part(base, effect, Piece::block);
  const Shape &shape = base.info.shape, &bs = block.info.shape;
  if (shape.rank() != 2) {
    fail(Code::shape, fmt::format("{}: {} has shape {}, MiSS needs a matrix", effect.adapter,
                                  base.info.name, shape.text()));
  }
  const bool transposed = effect.layout != Layout::linear;
  const std::uint64_t out = shape[transposed ? 1 : 0], in = shape[transposed ? 0 : 1];
  if (effect.tiling == Tiling::bat) {
    if (transposed) {
      fail(Code::usage,
           fmt::format("{}: {} is stored by inputs, which MiSS in blocks cannot change",
                       effect.adapter, base.info.name));
    }
    if (bs.rank() != 3 || bs[1] != bs[2] || bs[1] == 0 || bs[0] * bs[1] != out || in % bs[1] != 0) {
      misfit(base, effect, block, fmt::format("square blocks that divide [{}, {}]", out, in));
    }
    return;
  }
  const bool mini = effect.tiling == Tiling::mini;
  if (bs.rank() != 2 || bs[0] == 0 || bs[0] > in || bs[1] == 0 ||
      (mini ? out % bs[1] != 0 : bs[1] != out)) {
    misfit(
        base, effect, block,
        fmt::format("at most {} rows of {} elements{}", in, out, mini ? " or a part of it" : ""));
  }
}

std::uint64_t memory(const Located& base, const Effect& effect) {
  return part(base, effect, Piece::block).info.count() * sizeof(float);
}

class Shard final : public Formula<Shard> {
 public:
  Shard(const Scene& scene, const Effect& effect)
      : width_(matrix(scene.base->info.shape).width),
        weight_(static_cast<float>(effect.weight)),
        transposed_(effect.layout != Layout::linear),
        shard_(load(*scene.plan, effect, part(*scene.base, effect, Piece::block))) {
    const Shape& shape = part(*scene.base, effect, Piece::block).info.shape;
    rows_ = shape[0];
    columns_ = shape[1];
  }

  template <class T>
  void apply(const Panel<T>& panel) const {
    for (std::uint64_t n = 0; n < panel.values.size(); ++n) {
      std::uint64_t o = (panel.first + n) / width_, i = (panel.first + n) % width_;
      if (transposed_) std::swap(o, i);
      const float added = shard_[i % rows_ * columns_ + o % columns_];
      panel.values[n] = math::amend(panel.values[n], T(weight_), T(added));
    }
  }

 private:
  const std::uint64_t width_;
  const float weight_;
  const bool transposed_;
  const std::vector<float> shard_;
  std::uint64_t rows_ = 0, columns_ = 0;
};

// `bat`: each block of a row is turned by the shard of its block row.
class Bat final : public Formula<Bat> {
 public:
  Bat(const Scene& scene, const Effect& effect)
      : width_(matrix(scene.base->info.shape).width),
        size_(part(*scene.base, effect, Piece::block).info.shape[1]),
        weight_(static_cast<float>(effect.weight)),
        full_(effect.weight == 1),
        shards_(load(*scene.plan, effect, part(*scene.base, effect, Piece::block))) {}

  template <class T>
  void apply(const Panel<T>& panel) const {
    using W = Wide<T>;
    std::vector<W> row(size_);
    for (std::uint64_t at = 0; at < panel.values.size(); at += size_) {
      const std::uint64_t o = (panel.first + at) / width_;
      const float* shard = shards_.data() + o / size_ * size_ * size_;
      const std::span<T> values = panel.values.subspan(at, size_);
      for (std::uint64_t b = 0; b < size_; ++b) row[b] = W(widen(values[b]));
      for (std::uint64_t b = 0; b < size_; ++b) {
        const T after = narrow(math::blocked(row.data(), shard, size_, o % size_, b));
        values[b] = math::blend(T(weight_), full_, values[b], after);
      }
    }
  }

 private:
  const std::uint64_t width_, size_;
  const float weight_;
  const bool full_;
  const std::vector<float> shards_;
};

std::unique_ptr<Step> make(const Scene& scene, const Effect& effect) {
  return std::make_unique<Shard>(scene, effect);
}
std::unique_ptr<Step> make_bat(const Scene& scene, const Effect& effect) {
  return std::make_unique<Bat>(scene, effect);
}

}  // namespace

const Kit kMiss{check, memory, make, false, false};
const Kit kBat{check, memory, make_bat, true, false};

}  // namespace ingot
