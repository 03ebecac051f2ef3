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

// A run of rows and columns of one matrix of a tensor.
struct Box {
  std::uint64_t plane = 0;  // index on the first axis
  std::uint64_t top = 0, bottom = 0, left = 0, right = 0;
};

// The elements of a patch's axis within [low, high): the first and how many.
std::pair<std::uint64_t, std::uint64_t> within(const Patch::Axis& axis, std::uint64_t low,
                                               std::uint64_t high) {
  const auto below = [&](std::uint64_t limit) {  // how many lie before `limit`
    if (limit <= axis.begin) return std::uint64_t{0};
    return std::min(axis.count, (limit - axis.begin + axis.pace - 1) / axis.pace);
  };
  const std::uint64_t first = below(low);
  return {first, below(high) - first};
}

// Copies what a patch has of a box. `out` is the element `origin` of the tensor's matrix, whose
// rows have `width` elements of `size` bytes.
void copy_box(const Checkpoint& checkpoint, const Patch& patch, const Box& box, std::uint64_t size,
              std::uint64_t width, std::uint64_t origin, std::byte* out) {
  const auto [plane, planes] = within(patch.axes[0], box.plane, box.plane + 1);
  const auto [row, rows] = within(patch.axes[1], box.top, box.bottom);
  const auto [column, columns] = within(patch.axes[2], box.left, box.right);
  if (planes == 0 || rows == 0 || columns == 0) return;
  File& file = checkpoint.file(patch.file);
  const Patch::Axis& down = patch.axes[1];
  const Patch::Axis& along = patch.axes[2];
  const std::uint64_t start =
      patch.offset +
      (plane * patch.axes[0].stride + row * down.stride + column * along.stride) * size;
  std::byte* const target =
      out +
      ((down.begin + row * down.pace) * width + along.begin + column * along.pace - origin) * size;
  const bool packed = along.stride == 1 && along.pace == 1;
  if (packed && columns == width && down.pace == 1 && down.stride == width) {
    read_exact(file, start, {target, rows * columns * size});
    return;
  }
  // Strips along the axis whose elements lie nearest in the file.
  const bool by_rows = columns > 1 && (rows == 1 || along.stride <= down.stride);
  const std::uint64_t strips = by_rows ? rows : columns, count = by_rows ? columns : rows;
  const Patch::Axis& outer = by_rows ? down : along;
  const Patch::Axis& inner = by_rows ? along : down;
  const std::uint64_t outer_step = (by_rows ? down.pace * width : along.pace) * size;
  const std::uint64_t inner_step = (by_rows ? along.pace : down.pace * width) * size;
  std::vector<std::byte> strip;
  for (std::uint64_t s = 0; s < strips; ++s) {
    const std::uint64_t at = start + s * outer.stride * size;
    std::byte* to = target + s * outer_step;
    if (inner.stride == 1 && inner_step == size) {
      read_exact(file, at, {to, count * size});
      continue;
    }
    const std::uint64_t part =
        std::max<std::uint64_t>(1, kPiece / size / std::max<std::uint64_t>(1, inner.stride));
    for (std::uint64_t done = 0; done < count; done += part) {
      const std::uint64_t here = std::min(part, count - done);
      strip.resize(((here - 1) * inner.stride + 1) * size);
      read_exact(file, at + done * inner.stride * size, strip);
      for (std::uint64_t i = 0; i < here; ++i, to += inner_step) {
        std::memcpy(to, strip.data() + i * inner.stride * size, size);
      }
    }
  }
}

// Elements [first, first + out.size() / width) of a tensor that is made of patches.
void read_patches(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                  std::span<std::byte> out) {
  const Shape& shape = entry.info.shape;
  const int rank = shape.rank();
  const std::uint64_t width = shape[rank - 1], height = rank > 1 ? shape[rank - 2] : 1;
  const std::uint64_t size = bits(entry.info.dtype) / 8;
  const std::uint64_t end = first + out.size() / size;
  while (first < end) {
    const std::uint64_t plane = first / (width * height);
    const std::uint64_t low = first - plane * width * height;
    const std::uint64_t high = std::min(end - plane * width * height, width * height);
    // What is left of a row, whole rows, and the beginning of one.
    Box box{plane, low / width, low / width + 1, low % width, width};
    if (low % width == 0 && high - low >= width) {
      box.bottom = high / width;
    } else {
      box.right = std::min(width, box.left + high - low);
    }
    for (const Patch& patch : entry.patches) {
      copy_box(checkpoint, patch, box, size, width, low, out.data());
    }
    const std::uint64_t done = (box.bottom - box.top - 1) * width + box.right - box.left;
    out = out.subspan(done * size);
    first += done;
  }
}

}  // namespace

void read_elements(const Checkpoint& checkpoint, const Entry& entry, std::uint64_t first,
                   std::span<std::byte> out) {
  if (out.empty()) return;
  File& file = checkpoint.file(entry.file);
  const std::uint64_t width = bits(entry.info.dtype) / 8;
  if (!entry.patches.empty()) return read_patches(checkpoint, entry, first, out);
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
