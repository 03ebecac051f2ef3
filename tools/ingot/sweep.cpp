#include "sweep.hpp"

#include <algorithm>
#include <cstring>

#include "ingot/error.hpp"
#include "ingot/math/codec.hpp"

namespace ingot::tool {
namespace {

// Bytes read at once to pick strided elements from.
constexpr std::uint64_t kStretch = std::uint64_t{64} << 20;

template <class Word, class Convert>
void convert(std::span<const std::byte> bytes, std::span<double> values, Convert one) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    Word word;
    std::memcpy(&word, bytes.data() + i * sizeof word, sizeof word);
    values[i] = static_cast<double>(one(word));
  }
}

template <math::Format format>
void decode(std::span<const std::byte> bytes, std::span<double> values) {
  using Codec = math::Codec<format>;
  convert<typename Codec::Word>(bytes, values, [](auto word) { return Codec::decode(word); });
}

template <class Number>
void widen(std::span<const std::byte> bytes, std::span<double> values) {
  convert<Number>(bytes, values, [](Number number) { return number; });
}

}  // namespace

bool has_values(Dtype dtype) noexcept { return dtype <= Dtype::boolean; }

Sweep::Sweep(const Checkpoint& model, const Entry& entry) : model_(model), entry_(entry) {}

bool Sweep::next() {
  first_ += count_;
  count_ = std::min(kPiece, entry_.info.count() - first_);
  if (count_ == 0) return false;
  const std::uint64_t width = bits(entry_.info.dtype);
  bytes_.resize(static_cast<std::size_t>((count_ * width + 7) / 8));
  if (entry_.strides.empty()) {
    read_exact(model_.file(entry_.file), entry_.offset + first_ * width / 8, bytes_);
  } else {
    gather();
  }
  return true;
}

// A strided view in row-major order: the places of the piece's elements first, then the stretch of
// the file that holds them, window by window. A large transposed matrix is so read once per piece,
// which is slow but bounded; such views are rare.
void Sweep::gather() {
  const Shape& shape = entry_.info.shape;
  const std::uint64_t width = bits(entry_.info.dtype) / 8;
  std::vector<std::uint64_t> at(static_cast<std::size_t>(shape.rank()));
  std::uint64_t rest = first_;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    at[static_cast<std::size_t>(axis)] = rest % shape[axis];
    rest /= shape[axis];
  }
  std::vector<std::uint64_t> places(static_cast<std::size_t>(count_));
  for (std::uint64_t& place : places) {
    place = entry_.offset;
    for (std::size_t axis = 0; axis < at.size(); ++axis)
      place += at[axis] * entry_.strides[axis] * width;
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      if (++at[static_cast<std::size_t>(axis)] < shape[axis]) break;
      at[static_cast<std::size_t>(axis)] = 0;
    }
  }
  const auto [low, high] = std::minmax_element(places.begin(), places.end());
  std::vector<std::byte> window;
  for (std::uint64_t begin = *low; begin <= *high; begin += kStretch) {
    // An element that starts in the window may end behind it.
    window.resize(static_cast<std::size_t>(std::min(kStretch - 1, *high - begin) + width));
    read_exact(model_.file(entry_.file), begin, window);
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (places[i] < begin || places[i] - begin >= kStretch) continue;
      std::memcpy(bytes_.data() + i * width, window.data() + (places[i] - begin), width);
    }
  }
}

std::span<const double> Sweep::values() {
  values_.resize(static_cast<std::size_t>(count_));
  switch (entry_.info.dtype) {
    case Dtype::f64:
      widen<double>(bytes_, values_);
      break;
    case Dtype::f32:
      decode<math::Format::f32>(bytes_, values_);
      break;
    case Dtype::f16:
      decode<math::Format::f16>(bytes_, values_);
      break;
    case Dtype::bf16:
      decode<math::Format::bf16>(bytes_, values_);
      break;
    case Dtype::f8_e4m3:
      decode<math::Format::e4m3>(bytes_, values_);
      break;
    case Dtype::f8_e5m2:
      decode<math::Format::e5m2>(bytes_, values_);
      break;
    case Dtype::i64:
      widen<std::int64_t>(bytes_, values_);
      break;
    case Dtype::i32:
      widen<std::int32_t>(bytes_, values_);
      break;
    case Dtype::i16:
      widen<std::int16_t>(bytes_, values_);
      break;
    case Dtype::i8:
      widen<std::int8_t>(bytes_, values_);
      break;
    case Dtype::u64:
      widen<std::uint64_t>(bytes_, values_);
      break;
    case Dtype::u32:
      widen<std::uint32_t>(bytes_, values_);
      break;
    case Dtype::u16:
      widen<std::uint16_t>(bytes_, values_);
      break;
    case Dtype::u8:
    case Dtype::boolean:
      widen<std::uint8_t>(bytes_, values_);
      break;
    case Dtype::c64:
    case Dtype::f8_e8m0:
    case Dtype::f8_e4m3fnuz:
    case Dtype::f8_e5m2fnuz:
    case Dtype::f6_e2m3:
    case Dtype::f6_e3m2:
    case Dtype::f4:
      fail(Code::internal, "values of a type that has none");
  }
  return values_;
}

}  // namespace ingot::tool
