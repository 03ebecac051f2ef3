// Small checkpoints for tests: named tensors and a config, written as safetensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ingot/store.hpp"
#include "store/header.hpp"
#include "support.hpp"

namespace ingot::test {

using Tensors = std::vector<TensorInfo>;

// Writes the tensors, all zeros, and config.json (unless it is empty) into a folder.
inline void write_model(const std::string& folder, const Tensors& tensors,
                        const std::string& config) {
  std::uint64_t bytes = 0;
  for (const TensorInfo& tensor : tensors) bytes += tensor.bytes();
  write_file(folder + "/model.safetensors",
             print_header(tensors, {{"format", "pt"}}) + std::string(bytes, '\0'));
  if (!config.empty()) write_file(folder + "/config.json", config);
}

// A Llama of `layers` layers, two tensors each, with a head of its own.
inline Tensors llama(int layers, Dtype dtype = Dtype::bf16, std::uint64_t rows = 10) {
  Tensors tensors = {{"model.embed_tokens.weight", dtype, {rows, 4}}};
  for (int i = 0; i < layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i);
    tensors.push_back({layer + ".mlp.up_proj.weight", dtype, {8, 4}});
    tensors.push_back({layer + ".self_attn.q_proj.weight", dtype, {4, 4}});
  }
  tensors.push_back({"model.norm.weight", dtype, {4}});
  tensors.push_back({"lm_head.weight", dtype, {rows, 4}});
  return tensors;
}

inline std::string llama_config(int layers, const std::string& more = "") {
  return "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"num_hidden_layers\": " +
         std::to_string(layers) + ",\n  \"tie_word_embeddings\": false,\n  \"vocab_size\": 10" +
         more + "\n}\n";
}

}  // namespace ingot::test
