// Any bytes as the index of a model of two shards: every tensor of the shards it lists where it is,
// or an Error{format} or {missing}.
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

std::string weights(const std::vector<ingot::TensorInfo>& tensors) {
  return ingot::print_header(tensors, {}) + std::string(tensors.size(), 'w');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ingot::test::MemoryDisk disk({
      {"m/model.safetensors.index.json", std::string(text)},
      {"m/x.safetensors", weights({{"a", ingot::Dtype::u8, {1}}, {"b", ingot::Dtype::u8, {1}}})},
      {"m/y.safetensors", weights({{"c", ingot::Dtype::u8, {1}}})},
  });
  try {
    const auto model = ingot::Checkpoint::open(disk, "m", "m");
    const bool x = model.find("a") != nullptr, y = model.find("c") != nullptr;
    check((x || y) && (model.find("b") != nullptr) == x);
    check(model.entries().size() == (x ? 2U : 0U) + (y ? 1U : 0U));
    check(model.file_count() == (x ? 1U : 0U) + (y ? 1U : 0U));
    if (x) {
      check(model.file(model.find("a")->file).path() == "m/x.safetensors");
      check(model.file(model.find("b")->file).path() == "m/x.safetensors");
    }
    if (y) check(model.file(model.find("c")->file).path() == "m/y.safetensors");
  } catch (const ingot::Error& error) {
    check(error.code() == ingot::Code::format || error.code() == ingot::Code::missing);
  }
  return 0;
}
