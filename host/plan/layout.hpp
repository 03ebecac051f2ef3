// Where every output tensor lies: shards, offsets, headers, index.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ingot/plan.hpp"

namespace ingot::plan {

// Puts jobs in their final order and gives each its shard and offset. Tensors go to shards in
// natural order of their names, a shard is closed before it would exceed `shard_bytes` of data, and
// inside a shard wider elements come first, so that every tensor is aligned to its element.
[[nodiscard]] std::vector<Shard> lay_out(std::vector<Job>& jobs, std::uint64_t shard_bytes);

// model.safetensors.index.json of a layout, empty for a single shard.
[[nodiscard]] std::string index_of(const std::vector<Job>& jobs, const std::vector<Shard>& shards);

}  // namespace ingot::plan
