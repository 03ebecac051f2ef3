// Any configuration and any tensor names as an adapter: every tensor is accounted for once, or an
// Error says why not. An input is a configuration, a line of two dashes, and a line "name extent
// extent..." for each tensor.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "adapter/keys.hpp"
#include "fuzz/check.hpp"
#include "fuzz/memory.hpp"
#include "ingot/adapter.hpp"
#include "ingot/error.hpp"
#include "store/header.hpp"

using ingot::test::check;

namespace {

constexpr std::uint64_t kLargest = 64;     // of an extent
constexpr std::size_t kMost = 128;         // tensors
constexpr std::uint64_t kBytes = 1 << 16;  // of all tensors

std::vector<ingot::TensorInfo> tensors_of(std::string_view text) {
  std::map<std::string, ingot::TensorInfo> tensors;
  std::uint64_t bytes = 0;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line) && tensors.size() < kMost;) {
    std::istringstream words(line);
    ingot::TensorInfo info;
    words >> info.name;
    for (std::uint64_t extent = 0; words >> extent;) {
      if (!info.shape.push(std::min(extent, kLargest))) break;
    }
    if (info.name.empty() || info.name == "__metadata__") continue;  // no file has such a tensor
    if (info.shape.count() * 4 > kBytes - bytes) continue;
    if (tensors.emplace(info.name, info).second) bytes += info.bytes();
  }
  std::vector<ingot::TensorInfo> list;
  for (const auto& [name, info] : tensors) list.push_back(info);
  return list;
}

void check_account(const ingot::Adapter& adapter) {
  std::vector<int> seen(adapter.checkpoint.entries().size());
  for (const ingot::Adapted& module : adapter.modules) {
    check(!module.path.empty() && !module.factors.empty() && module.experts > 0);
    for (const ingot::Factor& factor : module.factors) {
      ++seen.at(factor.entry);
      check(module.find(factor.piece) == factor.entry);
    }
  }
  for (const ingot::Factor& factor : adapter.shared) ++seen.at(factor.entry);
  for (const ingot::Saved& saved : adapter.saved) ++seen.at(saved.entry);
  for (const ingot::Idle& idle : adapter.idle) ++seen.at(idle.entry);
  for (const ingot::Tokens& tokens : adapter.tokens) {
    ++seen.at(tokens.entry);
    check(adapter.checkpoint.entries()[tokens.entry].info.shape[0] == tokens.rows.size());
  }
  check(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = text.find("\n--\n");
  const std::string_view config = text.substr(0, cut);
  const auto tensors = tensors_of(cut == text.npos ? std::string_view() : text.substr(cut + 4));
  for (const ingot::TensorInfo& info : tensors) {
    for (int family = 0; family <= static_cast<int>(ingot::Family::none); ++family) {
      const auto key = ingot::adapter::parse_key(info.name, static_cast<ingot::Family>(family));
      check(key.kind != ingot::adapter::Key::Kind::factor || !key.path.empty());
    }
  }
  std::uint64_t bytes = 0;
  for (const ingot::TensorInfo& info : tensors) bytes += info.bytes();
  try {
    ingot::test::MemoryDisk disk({{"/a/adapter_config.json", std::string(config)},
                                  {"/a/adapter_model.safetensors",
                                   ingot::print_header(tensors, {}) + std::string(bytes, '\0')}});
    ingot::AdapterOptions options;
    options.allow_unknown = size % 2 == 0;
    check_account(ingot::open_adapter(disk, "/a", "a", options));
  } catch (const ingot::Error& e) {
    check(e.code() != ingot::Code::internal && e.code() != ingot::Code::io);
  }
  return 0;
}
