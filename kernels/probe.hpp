// Which devices this machine has, or why none can be used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ingot::gpu {

struct Card {
  int index = 0;
  std::string name;          // "NVIDIA H200"
  std::uint64_t memory = 0;  // bytes in all
  int processors = 0;        // multiprocessors
};

// The devices that `wish` names: "cuda" the first, "cuda:1" the second, "cuda:0,1" both. Throws
// Error{usage} for any other text and Error{device} with one sentence for the user: no driver, a
// driver too old, no device, no such device, a device too old.
[[nodiscard]] std::vector<Card> probe(const std::string& wish);

}  // namespace ingot::gpu
