// Any bytes as a safetensors file: a header in which every byte of data belongs to one tensor and
// which, written again, reads as the same tensors; or Error{format}.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "fuzz/memory.hpp"
#include "ingot/error.hpp"
#include "store/header.hpp"

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void round_trip(const ingot::Header& header) {
  std::vector<ingot::TensorInfo> tensors;
  std::uint64_t bytes = 0;
  for (const ingot::Entry& entry : header.entries) {
    tensors.push_back(entry.info);
    bytes += entry.info.bytes();
  }
  const std::string printed = ingot::print_header(tensors, header.metadata);
  check(printed.size() % 4096 == 0);
  const std::string file = printed + std::string(bytes, '\0');
  ingot::test::MemoryFile memory("again", file);
  const ingot::Header again = ingot::read_header(memory);
  check(again.metadata == header.metadata && again.data_start == printed.size());
  check(std::equal(again.entries.begin(), again.entries.end(), header.entries.begin(),
                   header.entries.end(), [](const ingot::Entry& a, const ingot::Entry& b) {
                     return a.info.name == b.info.name && a.info.dtype == b.info.dtype &&
                            a.info.shape == b.info.shape;
                   }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  ingot::test::MemoryFile file("f", bytes);
  ingot::Header header;
  try {
    header = ingot::read_header(file);
  } catch (const ingot::Error& error) {
    check(error.code() == ingot::Code::format);
    return 0;
  }
  std::uint64_t total = 0;
  for (const ingot::Entry& entry : header.entries) {
    check(entry.offset >= header.data_start && entry.offset + entry.info.bytes() <= size);
    total += entry.info.bytes();
  }
  check(header.data_start + total == size);
  round_trip(header);
  return 0;
}
