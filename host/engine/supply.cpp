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
  // A view out of row-major order: walk it in order, read the stored window that a run of rows
  // spans.
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

template <math::Format format>
void decode_as(std::span<const std::byte> stored, std::span<float> values) {
  using Codec = math::Codec<format>;
  for (std::size_t i = 0; i < values.size(); ++i) {
    typename Codec::Word word;
    std::memcpy(&word, stored.data() + i * sizeof word, sizeof word);
    values[i] = Codec::decode(word);
  }
}

void read_values(const Plan& plan, std::uint32_t model, const Entry& entry, std::uint64_t first,
                 std::span<float> values, std::vector<std::byte>& stored) {
  stored.resize(values.size() * bits(entry.info.dtype) / 8);
  read_elements(plan, model, entry, first, stored);
  decode(entry.info.dtype, stored, values);
}

// One row of the rearranged matrix: zeros, a row of some model, or the mean of several, summed in
// double in the order listed and rounded once.
void read_row(const Plan& plan, const RowMap& map, std::uint64_t row, std::span<float> values,
              std::vector<std::byte>& stored) {
  const std::uint64_t begin = map.first[row], end = map.first[row + 1];
  if (begin == end) {
    std::fill(values.begin(), values.end(), 0.0F);
    return;
  }
  std::vector<double> sum(end - begin > 1 ? values.size() : 0);
  for (std::uint64_t p = begin; p < end; ++p) {
    const RowMap::Pick& pick = map.picks[p];
    read_values(plan, pick.model, entry_of(plan, pick.model, pick.entry), pick.row * map.width,
                values, stored);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
  }
  for (std::size_t i = 0; i < sum.size(); ++i) {
    values[i] = static_cast<float>(sum[i] / static_cast<double>(end - begin));
  }
}

// The row that stands for padding: the mean of all rows that are not padding themselves.
std::vector<float> read_average(const Plan& plan, const RowMap& map,
                                std::vector<std::byte>& stored) {
  std::vector<double> sum(map.width);
  std::vector<float> values(map.width);
  auto padding = map.averaged.begin();
  for (std::uint64_t row = 0; row < map.rows; ++row) {
    if (padding != map.averaged.end() && *padding == row) {
      ++padding;
      continue;
    }
    read_row(plan, map, row, values, stored);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
  }
  const auto rows = static_cast<double>(map.rows - map.averaged.size());
  for (std::size_t i = 0; i < sum.size(); ++i) {
    values[i] = rows == 0 ? 0.0F : static_cast<float>(sum[i] / rows);
  }
  return values;
}

}  // namespace

void decode(Dtype dtype, std::span<const std::byte> stored, std::span<float> values) {
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

Dtype staged_dtype(const Plan& plan, const Operand& operand) {
  const Dtype stored = entry_of(plan, operand.model, operand.entry).info.dtype;
  return operand.rows || stored == Dtype::f64 ? Dtype::f32 : stored;
}

bool dense(const Plan& plan, const Operand& operand, bool merging) {
  const Entry& entry = entry_of(plan, operand.model, operand.entry);
  return entry.strides.empty() && !(merging && (operand.rows || entry.info.dtype == Dtype::f64));
}

void supply(const Plan& plan, const Operand& operand, bool merging, std::uint64_t first,
            std::span<std::byte> out) {
  const Entry& entry = entry_of(plan, operand.model, operand.entry);
  std::vector<std::byte> stored;
  if (!merging) {
    read_elements(plan, operand.model, entry, first / (bits(entry.info.dtype) / 8), out);
    return;
  }
  if (!operand.rows && entry.info.dtype != Dtype::f64) {
    read_elements(plan, operand.model, entry, first, out);
    return;
  }
  const std::uint64_t count = out.size() / sizeof(float);
  std::vector<float> values;
  if (!operand.rows) {
    values.resize(count);
    read_values(plan, operand.model, entry, first, values, stored);
    std::memcpy(out.data(), values.data(), out.size());
    return;
  }
  const RowMap& map = *operand.rows;
  values.resize(map.width);
  std::vector<float> average;
  for (std::uint64_t done = 0; done < count;) {
    const std::uint64_t row = (first + done) / map.width, column = (first + done) % map.width;
    const std::uint64_t here = std::min(map.width - column, count - done);
    const bool padding = std::binary_search(map.averaged.begin(), map.averaged.end(), row);
    if (padding && average.empty()) average = read_average(plan, map, stored);
    if (!padding) read_row(plan, map, row, values, stored);
    std::memcpy(out.data() + done * sizeof(float), (padding ? average : values).data() + column,
                here * sizeof(float));
    done += here;
  }
}

Digest Digests::of(const Ingredient& tensor) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = known_.find(tensor); at != known_.end()) return at->second;
  }
  const Entry& entry = entry_of(plan_, tensor.model, tensor.entry);
  const std::uint64_t width = bits(entry.info.dtype) / 8, bytes = entry.info.bytes();
  std::vector<std::byte> block(kHashBlock);
  std::vector<Digest> digests;
  for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
    const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, bytes - at));
    read_elements(plan_, tensor.model, entry, at / width, piece);
    digests.push_back(hash_block(piece));
  }
  const Digest digest = hash_digests(digests);
  const std::lock_guard lock(mutex_);
  if (known_.emplace(tensor, digest).second) bytes_ += bytes;
  return digest;
}

std::uint64_t Digests::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace ingot
