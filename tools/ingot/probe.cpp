#include "probe.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

namespace ingot::tool {

double probe(const Plan& plan) {
  constexpr std::uint64_t kBlock = std::uint64_t{4} << 20;
  constexpr std::size_t kBlocks = 8;  // 32 MiB: 10 ms on a fast disk, a third of a second on a slow

  struct Place {
    File* file;
    std::uint64_t offset;
  };
  std::vector<Place> places;
  for (const Model& model : plan.models) {
    for (std::uint32_t i = 0; i < model.checkpoint.file_count(); ++i) {
      File& file = model.checkpoint.file(i);
      for (std::uint64_t at = 0; at + kBlock <= file.size(); at += kBlock)
        places.push_back({&file, at});
    }
  }
  const std::size_t count = std::min(kBlocks, places.size());
  if (count == 0) return 0;
  std::vector<std::byte> buffer(kBlock);
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < count; ++i) {
    // The middle of each of `count` equal stretches of all the bytes.
    const Place& place = places[(2 * i + 1) * places.size() / (2 * count)];
    read_exact(*place.file, place.offset, buffer);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return static_cast<double>(count * kBlock) / std::max(elapsed.count(), 1e-9);
}

double seconds_of(const Plan& plan, const Estimate& run, double storage_rate) {
  if (storage_rate <= 0) return run.compute;
  return std::max(run.compute, static_cast<double>(plan.bytes_in + plan.bytes_out) / storage_rate);
}

}  // namespace ingot::tool
