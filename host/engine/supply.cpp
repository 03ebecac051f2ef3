#include "engine/supply.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ingot/methods.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

const Checkpoint& checkpoint_of(const Plan& plan, std::uint32_t model) {
  return plan.models[model].checkpoint;
}

// One row of the rearranged matrix: zeros, a row of some model, or the mean of several, summed in
// double in the order listed and rounded once.
void read_row(const Plan& plan, const RowMap& map, std::uint64_t row, std::span<float> values) {
  const std::uint64_t begin = map.first[row], end = map.first[row + 1];
  if (begin == end) {
    std::fill(values.begin(), values.end(), 0.0F);
    return;
  }
  std::vector<double> sum(end - begin > 1 ? values.size() : 0);
  for (std::uint64_t p = begin; p < end; ++p) {
    const RowMap::Pick& pick = map.picks[p];
    read_values(checkpoint_of(plan, pick.model), entry_of(plan, pick.model, pick.entry),
                pick.row * map.width, values);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
  }
  for (std::size_t i = 0; i < sum.size(); ++i) {
    values[i] = static_cast<float>(sum[i] / static_cast<double>(end - begin));
  }
}

// The row that stands for padding: the mean of all rows that are not padding themselves.
std::vector<float> read_average(const Plan& plan, const RowMap& map) {
  std::vector<double> sum(map.width);
  std::vector<float> values(map.width);
  auto padding = map.averaged.begin();
  for (std::uint64_t row = 0; row < map.rows; ++row) {
    if (padding != map.averaged.end() && *padding == row) {
      ++padding;
      continue;
    }
    read_row(plan, map, row, values);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
  }
  const auto rows = static_cast<double>(map.rows - map.averaged.size());
  for (std::size_t i = 0; i < sum.size(); ++i) {
    values[i] = rows == 0 ? 0.0F : static_cast<float>(sum[i] / rows);
  }
  return values;
}

}  // namespace

const Entry& entry_of(const Plan& plan, std::uint32_t model, std::uint32_t entry) {
  return checkpoint_of(plan, model).entries()[entry];
}

const Entry& entry_of(const Plan& plan, const Operand& operand) {
  return entry_of(plan, operand.model, operand.entry);
}

File& file_of(const Plan& plan, const Operand& operand) {
  return checkpoint_of(plan, operand.model).file(entry_of(plan, operand).file);
}

bool measured_first(const Job& job) {
  return job.action == Action::merge && math::measured(job.work.rule);
}

std::uint64_t input_bytes(const Plan& plan, const Job& job) {
  const bool merge = job.action == Action::merge;
  const std::uint64_t n = merge ? job.work.rule.elements : job.output.bytes();
  std::uint64_t sum = 0;
  for (const Operand& operand : job.operands) {
    if (operand.derived) sum += operand.derived->memory() + n * sizeof(float);
    if (lands(operand)) sum += n * (merge ? bits(staged_dtype(plan, operand)) / 8 : 1);
  }
  return sum;
}

Dtype staged_dtype(const Plan& plan, const Operand& operand) {
  const Dtype stored = entry_of(plan, operand).info.dtype;
  return operand.rows || stored == Dtype::f64 ? Dtype::f32 : stored;
}

bool dense(const Plan& plan, const Operand& operand, bool merging) {
  const Entry& entry = entry_of(plan, operand);
  if (!merging) return entry.dense();
  // The header of a safetensors file may have any length, and elements are read where they lie:
  // a device traps at an address that is no multiple of their size.
  const bool aligned = entry.offset % (bits(entry.info.dtype) / 8) == 0;
  return entry.dense() && aligned && !operand.rows && entry.info.dtype != Dtype::f64;
}

void supply(const Plan& plan, const Operand& operand, bool merging, std::uint64_t first,
            std::span<std::byte> out) {
  const Checkpoint& checkpoint = checkpoint_of(plan, operand.model);
  const Entry& entry = entry_of(plan, operand);
  if (!merging) {
    read_elements(checkpoint, entry, first / (bits(entry.info.dtype) / 8), out);
    return;
  }
  if (!operand.rows && entry.info.dtype != Dtype::f64) {
    read_elements(checkpoint, entry, first, out);
    return;
  }
  const std::uint64_t count = out.size() / sizeof(float);
  std::vector<float> values;
  if (!operand.rows) {
    values.resize(count);
    read_values(checkpoint, entry, first, values);
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
    if (padding && average.empty()) average = read_average(plan, map);
    if (!padding) read_row(plan, map, row, values);
    std::memcpy(out.data() + done * sizeof(float), (padding ? average : values).data() + column,
                here * sizeof(float));
    done += here;
  }
}

Digest hash_part(File& file, std::uint64_t offset, std::uint64_t bytes,
                 const std::function<void(std::uint64_t, std::span<const std::byte>)>& each) {
  std::vector<std::byte> block(std::min<std::uint64_t>(kHashBlock, bytes));
  std::vector<Digest> digests;
  for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
    const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, bytes - at));
    read_exact(file, offset + at, piece);
    digests.push_back(hash_block(piece));
    if (each) each(at, piece);
  }
  return hash_digests(digests);
}

Digests::Known Digests::read(const Plan& plan, const Ingredient& tensor) {
  const Entry& entry = entry_of(plan, tensor.model, tensor.entry);
  const std::uint64_t width = bits(entry.info.dtype) / 8, bytes = entry.info.bytes();
  std::vector<std::byte> block(kHashBlock);
  std::vector<Digest> digests;
  Known known;
  for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
    const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, bytes - at));
    read_elements(checkpoint_of(plan, tensor.model), entry, at / width, piece);
    digests.push_back(hash_block(piece));
    known.nonfinite.add(count_nonfinite(entry.info.dtype, piece, at / width));
  }
  known.digest = hash_digests(digests);
  return known;
}

Digests::Known Digests::know(const Ingredient& tensor) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto at = known_.find(tensor); at != known_.end()) return at->second;
  }
  const Known known = read(plan_, tensor);
  const std::lock_guard lock(mutex_);
  if (known_.emplace(tensor, known).second) {
    bytes_ += entry_of(plan_, tensor.model, tensor.entry).info.bytes();
  }
  return known;
}

bool Digests::knows(const Ingredient& tensor) const {
  const std::lock_guard lock(mutex_);
  return known_.contains(tensor);
}

std::uint64_t Digests::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace ingot
