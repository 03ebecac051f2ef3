// Index files (`*.index.json`).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// Which shard holds which tensor, as an index file says. Nothing else in the file is read.
struct Index {
  std::vector<std::string> files;                              // distinct, in natural order
  std::vector<std::pair<std::string, std::uint32_t>> tensors;  // name, index into files; by name
};

// Reads an index file whose shards end in `suffix`. Shards must be plain names: a path is
// Error{format}, as is a tensor that is listed twice. The shards themselves are not looked at.
[[nodiscard]] Index read_index(Disk& disk, const std::string& path, std::string_view suffix);

}  // namespace ingot
