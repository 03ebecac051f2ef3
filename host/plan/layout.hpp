// Where every output tensor lies: shards, offsets, headers, index.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/plan.hpp"

namespace ingot::plan {

// Puts jobs in their final order and gives each its shard and offset. Tensors go to shards in
// natural order of their names, a shard is closed before it would exceed `shard_bytes` of data, and
// inside a shard wider elements come first, so that every tensor is aligned to its element.
[[nodiscard]] std::vector<Shard> lay_out(std::vector<Job>& jobs, std::uint64_t shard_bytes);

// The text of model.safetensors.index.json for these (tensor, shard) pairs; `bytes` is the size of
// all data.
[[nodiscard]] std::string print_index(
    std::vector<std::pair<std::string_view, std::string_view>> tensors, std::uint64_t bytes);

// The index of a layout, empty for a single shard.
[[nodiscard]] std::string index_of(const std::vector<Job>& jobs, const std::vector<Shard>& shards);

}  // namespace ingot::plan
