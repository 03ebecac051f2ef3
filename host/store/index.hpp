// Index files (`*.index.json`) and the names of files inside a model's folder.
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

// `folder`/`name`. The file may be a link to another file of the folder or, in a Hub cache, to a
// blob of the same repository; a link that leads elsewhere is Error{format}, so that a downloaded
// folder cannot name files of its user. An absent file is Error{missing}.
[[nodiscard]] std::string member(Disk& disk, const std::string& folder, const std::string& name);

}  // namespace ingot
