#include "adapter/measure.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "ingot/backend.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/fold.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

template <math::Format format>
float rounded_as(float x) {
  using Codec = math::Codec<format>;
  return Codec::decode(Codec::encode(x, math::Overflow::saturate));
}

template <float (*round)(float)>
void sum(const float* before, const float* after, std::size_t count, double* weight, double* change,
         double* kept, float* largest) {
  constexpr std::size_t kLanes = math::kLanes;
  for (std::size_t i = 0; i < count; i += kLanes) {
    const std::size_t most = std::min(kLanes, count - i);
    for (std::size_t l = 0; l < most; ++l) {
      const float w = before[i + l], v = after[i + l];
      const double delta = static_cast<double>(v) - static_cast<double>(w);
      const double left = static_cast<double>(round(v)) - static_cast<double>(w);
      weight[l] += static_cast<double>(w) * static_cast<double>(w);
      change[l] += delta * delta;
      kept[l] += delta * left;
      const float size = math::magnitude(static_cast<float>(delta));
      largest[l] = size > largest[l] ? size : largest[l];
    }
  }
}

using Sum = void (*)(const float*, const float*, std::size_t, double*, double*, double*, float*);

Sum sum_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f16:
      return sum<rounded_as<math::Format::f16>>;
    case Dtype::bf16:
      return sum<rounded_as<math::Format::bf16>>;
    case Dtype::f8_e4m3:
      return sum<rounded_as<math::Format::e4m3>>;
    case Dtype::f8_e5m2:
      return sum<rounded_as<math::Format::e5m2>>;
    default:
      return sum<rounded_as<math::Format::f32>>;
  }
}

constexpr std::uint64_t kTiles = 64;  // measured at least, where there are as many

std::uint64_t tiles_of(std::uint64_t count) { return (count + math::kTile - 1) / math::kTile; }
std::uint64_t stride_of(std::uint64_t count) {
  return std::max(tiles_of(count) / kTiles, std::uint64_t{1});
}
std::uint64_t measured_of(std::uint64_t count) {
  return (tiles_of(count) + stride_of(count) - 1) / stride_of(count);
}

}  // namespace

Measure::Measure(std::uint64_t count, std::optional<Dtype> output)
    : count_(count),
      stride_(stride_of(count)),
      output_(output),
      tiles_(output ? measured_of(count) : 0) {}

std::uint64_t Measure::memory(std::uint64_t count) { return measured_of(count) * sizeof(Tile); }

void Measure::add(Dtype dtype, std::uint64_t first, std::span<const std::byte> own,
                  std::span<const float> values) {
  if (!output_) return;
  const Sum sum = sum_of(*output_);
  const std::uint64_t bytes = bits(dtype) / 8, end = first + values.size();
  const std::uint64_t span = stride_ * math::kTile;
  for (std::uint64_t tile = (first + span - 1) / span; tile < tiles_.size(); ++tile) {
    const std::uint64_t begin = tile * span, stop = std::min(begin + math::kTile, count_);
    if (stop > end) return;
    const std::uint64_t at = begin - first, count = stop - begin;
    std::vector<float> before(count);
    to_floats(dtype, own.subspan(at * bytes, count * bytes), before);
    std::array<double, math::kLanes> weight{}, change{}, kept{};
    std::array<float, math::kLanes> largest{};
    sum(before.data(), values.data() + at, count, weight.data(), change.data(), kept.data(),
        largest.data());
    const auto folded = [](auto& lanes) { return math::fold_lanes<math::Adding>(lanes.data()); };
    tiles_[tile] = {count, folded(weight), folded(change), folded(kept),
                    static_cast<double>(*std::max_element(largest.begin(), largest.end()))};
  }
}

Measure::Result Measure::result() const {
  std::vector<double> weight, change, kept;
  Result result;
  std::uint64_t measured = 0;
  for (const Tile& tile : tiles_) {
    measured += tile.count;
    weight.push_back(tile.weight);
    change.push_back(tile.change);
    kept.push_back(tile.kept);
    result.largest = std::max(result.largest, tile.largest);
  }
  if (measured == 0) return result;
  const double scale = static_cast<double>(count_) / static_cast<double>(measured);
  const double squares = math::combine(change.data(), change.size());
  result.weight = std::sqrt(scale * math::combine(weight.data(), weight.size()));
  result.change = std::sqrt(scale * squares);
  // Rounding may as well lengthen a change by a hair.
  const double along = math::combine(kept.data(), kept.size());
  if (squares > 0) result.survived = std::min(along / squares, 1.0);
  return result;
}

}  // namespace ingot
