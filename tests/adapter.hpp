// Adapters for tests: a configuration and tensors of zeros, on a disk in memory.
#pragma once

#include <string>
#include <vector>

#include "fuzz/memory.hpp"
#include "ingot/adapter.hpp"
#include "model.hpp"

namespace ingot::test {

// The bytes of a safetensors file of zeros.
inline std::string zeros(const Tensors& tensors) {
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors) bytes += tensor.bytes();
  return print_header(tensors, {{"format", "pt"}}) + std::string(bytes, '\0');
}

// A LoRA's configuration; `more` goes on after a comma.
inline std::string lora_config(const std::string& more = "") {
  return R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4)" + (more.empty() ? "" : ", " + more) +
         "}";
}

// The factors of one linear module, as PEFT names them.
inline Tensors lora_pair(const std::string& path, std::uint64_t rank = 2, std::uint64_t in = 4,
                         std::uint64_t out = 6) {
  return {{"base_model.model." + path + ".lora_A.weight", Dtype::f32, {rank, in}},
          {"base_model.model." + path + ".lora_B.weight", Dtype::f32, {out, rank}}};
}

inline Tensors operator+(Tensors a, const Tensors& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline Adapter read_adapter_of(const std::string& config, Tensors tensors,
                               const AdapterOptions& options = {}) {
  MemoryDisk disk(
      {{"/a/adapter_config.json", config}, {"/a/adapter_model.safetensors", zeros(tensors)}});
  return open_adapter(disk, "/a", "a", options);
}

}  // namespace ingot::test
