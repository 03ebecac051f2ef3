// Small checkpoints for tests: named tensors, a config, written as safetensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ingot/store.hpp"
#include "store/header.hpp"
#include "support.hpp"

namespace ingot::test {

struct Tensor {
  std::string name;
  Shape shape;
  Dtype dtype = Dtype::bf16;
};

// Writes the tensors, all zeros, and config.json (unless it is empty) into a folder.
inline void write_model(const std::string& folder, const std::vector<Tensor>& tensors,
                        const std::string& config) {
  std::vector<TensorInfo> infos;
  std::uint64_t bytes = 0;
  for (const Tensor& t : tensors) {
    infos.push_back({t.name, t.dtype, t.shape});
    bytes += infos.back().bytes();
  }
  write_file(folder + "/model.safetensors", print_header(infos, {}) + std::string(bytes, '\0'));
  if (!config.empty()) write_file(folder + "/config.json", config);
}

}  // namespace ingot::test
