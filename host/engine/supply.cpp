#include "engine/supply.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "ingot/math/codec.hpp"

namespace ingot {
namespace {

const Entry& entry_of(const Plan& plan, std::uint32_t model, std::uint32_t entry) {
  return plan.models[model].checkpoint.entries()[entry];
}

File& file_of(const Plan& plan, std::uint32_t model, const Entry& entry) {
  return plan.models[model].checkpoint.file(entry.file);
}

// Elements [first, first + count) of a tensor, in row-major order, as stored.
void read_elements(const Plan& plan, std::uint32_t model, const Entry& entry, std::uint64_t first,
                   std::span<std::byte> out) {
  File& file = file_of(plan, model, entry);
  const std::uint64_t width = bits(entry.info.dtype) / 8;
  if (entry.strides.empty()) {
    read_exact(file, entry.offset + first * width, out);
    return;
  }
  // A view out of row-major order: walk it in order, read the stored window that a run of rows spans.
  const Shape& shape = entry.info.shape;
  const int rank = shape.rank();
  const std::uint64_t count = out.size() / width;
  std::vector<std::uint64_t> at(static_cast<std::size_t>(rank));
  std::uint64_t rest = first;
  for (int axis = rank - 1; axis >= 0; --axis) {
    at[static_cast<std::size_t>(axis)] = rest % shape[axis];
    rest /= shape[axis];
  }
  std::vector<std::uint64_t> place(count);
  std::uint64_t low = ~std::uint64_t{0}, high = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t p = 0;
    for (std::size_t axis = 0; axis < at.size(); ++axis) p += at[axis] * entry.strides[axis];
    place[i] = p;
    low = std::min(low, p);
    high = std::max(high, p);
    for (int axis = rank - 1; axis >= 0; --axis) {
      if (++at[static_cast<std::size_t>(axis)] < shape[axis]) break;
      at[static_cast<std::size_t>(axis)] = 0;
    }
  }
  // Windows of at most 64 MiB at a time: a transposed matrix of any size passes in bounded memory.
  constexpr std::uint64_t kWindow = std::uint64_t{64} << 20;
  std::vector<std::byte> window;
  for (std::uint64_t begin = low; begin <= high; begin += kWindow / width) {
    const std::uint64_t end = std::min(high + 1, begin + kWindow / width);
    window.resize((end - begin) * width);
    read_exact(file, entry.offset + begin * width, window);
    for (std::uint64_t i = 0; i < count; ++i) {
      if (place[i] < begin || place[i] >= end) continue;
      std::memcpy(out.data() + i * width, window.data() + (place[i] - begin) * width, width);
    }
  }
}

// Decodes stored elements to f32: exactly, f64 with one rounding.
void decode(Dtype dtype, std::span<const std::byte> stored, std::span<float> values) {
  if (dtype == Dtype::f64) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      double x;
      std::memcpy(&x, stored.data() + i * sizeof x, sizeof x);
      values[i] = static_cast<float>(x);
    }
    return;
  }
  math::decode(dtype, stored.data(), values.data(), values.size());
}

void read_values(const Plan& plan, std::uint32_t model, const Entry& entry, std::uint64_t first,
                 std::span<float> values, std::vector<std::byte>& stored) {
  stored.resize(values.size() * bits(entry.info.dtype) / 8);
  read_elements(plan, model, entry, first, stored);
  decode(entry.info.dtype, stored, values);
}

}  // namespace
}  // namespace ingot
