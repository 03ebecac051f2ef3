// The header of a safetensors file: read with every rule of the format, written canonically.
//
// Read liberally: tensors in any order, any JSON white space after the object, any length of
// padding. Written strictly: as print_header says.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

struct Header {
  std::vector<Entry> entries;  // sorted by name; offsets count from the start of the file
  std::map<std::string, std::string> metadata;
  std::uint64_t data_start = 0;
};

// The longest header the format allows, in bytes.
inline constexpr std::uint64_t kHeaderLimit = 100'000'000;

// Reads and checks a file's header; `index` becomes Entry::file. Memory is bounded by the size of
// the file, not by what it claims. Throws Error{format} naming file, tensor, expected and found.
//
// Stricter than the format: a tensor's fields are dtype, shape and data_offsets and nothing else,
// at most 8 axes, and no control characters in its name.
[[nodiscard]] Header read_header(File& file, std::uint32_t index = 0);

// The first bytes of a file that holds these tensors in this order without gaps: length, JSON, and
// spaces up to a multiple of 4,096 bytes, so that data can be written around the page cache.
// Metadata comes first, sorted. Throws Error{format} if the header would exceed kHeaderLimit or a
// name is not UTF-8.
[[nodiscard]] std::string print_header(std::span<const TensorInfo> tensors,
                                       const std::map<std::string, std::string>& metadata);

// A name from a file as it may stand in a message: quoted, control characters replaced, long ones
// cut.
[[nodiscard]] std::string cite(std::string_view name);

}  // namespace ingot
