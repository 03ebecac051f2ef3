#include "store/values.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/math/codec.hpp"

namespace ingot {
namespace {

// Windows into a view out of row-major order: a transposed matrix of any size passes in this much.
constexpr std::uint64_t kWindow = std::uint64_t{64} << 20;
constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;  // bytes decoded at a time

template <math::Format format>
void decode_as(std::span<const std::byte> stored, std::span<float> values) {
  using Codec = math::Codec<format>;
  for (std::size_t i = 0; i < values.size(); ++i) {
    typename Codec::Word word;
    std::memcpy(&word, stored.data() + i * sizeof word, sizeof word);
    values[i] = Codec::decode(word);
  }
}

// Where elements [first, first + count) of a strided view lie, in elements from its first.
std::vector<std::uint64_t> places(const Entry& entry, std::uint64_t first, std::uint64_t count) {
  const Shape& shape = entry.info.shape;
  std::vector<std::uint64_t> at(static_cast<std::size_t>(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    at[static_cast<std::size_t>(axis)] = first % shape[axis];
    first /= shape[axis];
  }
  std::vector<std::uint64_t> places(count);
  for (std::uint64_t& place : places) {
    for (std::size_t axis = 0; axis < at.size(); ++axis) place += at[axis] * entry.strides[axis];
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      if (++at[static_cast<std::size_t>(axis)] < shape[axis]) break;
      at[static_cast<std::size_t>(axis)] = 0;
    }
  }
  return places;
}

}  // namespace

void read_elements(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                   std::span<std::byte> out) {
  if (out.empty()) return;
  File& file = checkpoint.file(entry.file);
  const std::uint64_t width = bits(entry.info.dtype) / 8;
  if (entry.strides.empty()) {
    read_exact(file, entry.offset + first * width, out);
    return;
  }
  const std::vector<std::uint64_t> place = places(entry, first, out.size() / width);
  const auto [low, high] = std::minmax_element(place.begin(), place.end());
  std::vector<std::byte> window;
  for (std::uint64_t begin = *low; begin <= *high; begin += kWindow / width) {
    const std::uint64_t end = std::min(*high + 1, begin + kWindow / width);
    window.resize((end - begin) * width);
    read_exact(file, entry.offset + begin * width, window);
    for (std::size_t i = 0; i < place.size(); ++i) {
      if (place[i] < begin || place[i] >= end) continue;
      std::memcpy(out.data() + i * width, window.data() + (place[i] - begin) * width, width);
    }
  }
}

void read_values(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                 std::span<float> values) {
  const std::uint64_t width = std::max<std::uint64_t>(1, bits(entry.info.dtype) / 8);
  std::vector<std::byte> stored;
  for (std::uint64_t done = 0; done < values.size();) {
    const std::uint64_t count = std::min<std::uint64_t>(kPiece / width, values.size() - done);
    stored.resize(count * width);
    read_elements(checkpoint, entry, first + done, stored);
    to_floats(entry.info.dtype, stored, values.subspan(done, count));
    done += count;
  }
}

void to_floats(Dtype dtype, std::span<const std::byte> stored, std::span<float> values) {
  switch (dtype) {
    case Dtype::f32:
      return decode_as<math::Format::f32>(stored, values);
    case Dtype::f16:
      return decode_as<math::Format::f16>(stored, values);
    case Dtype::bf16:
      return decode_as<math::Format::bf16>(stored, values);
    case Dtype::f8_e4m3:
      return decode_as<math::Format::e4m3>(stored, values);
    case Dtype::f8_e5m2:
      return decode_as<math::Format::e5m2>(stored, values);
    case Dtype::f64:
      for (std::size_t i = 0; i < values.size(); ++i) {
        double x;
        std::memcpy(&x, stored.data() + i * sizeof x, sizeof x);
        values[i] = static_cast<float>(x);
      }
      return;
    default:
      fail(Code::dtype, fmt::format("{} elements have no value as a float", name(dtype)));
  }
}

}  // namespace ingot
