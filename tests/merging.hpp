// What tests of whole merges share: recipes as text, runs in a folder, the hash of a folder.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "base/hash.hpp"
#include "ingot/merge.hpp"
#include "support.hpp"

namespace ingot::test {

// Syncs are off unless asked for: tests run thousands of merges.
struct Settings {
  Settings() { merge.sync = false; }
  PlanOptions plan;
  MergeOptions merge;
  std::string isa;
};

// Merges with the models of examples/ and returns the report.
inline Report run_merge(const std::string& recipe, const std::string& out, Settings settings = {},
                        Disk* disk = nullptr) {
  const auto own = system_disk();
  Disk& used = disk != nullptr ? *disk : *own;
  if (settings.plan.root.empty()) settings.plan.root = example("");
  Plan plan =
      build(used, parse(recipe, "recipe.yml", {settings.plan.allow_unknown_keys}), settings.plan);
  const auto backend = cpu_backend(settings.isa);
  return merge(used, *backend, plan, out, settings.merge);
}

// Every file of a folder with its content's hash.
inline std::map<std::string, std::string> fingerprint(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string bytes = read_file(entry.path().string());
    files[entry.path().lexically_relative(folder).string()] =
        hash_block(std::as_bytes(std::span(bytes.data(), bytes.size()))).text();
  }
  return files;
}

// Recipes over the example models that between them use every method.
inline const std::map<std::string, std::string>& recipes() {
  static const std::map<std::string, std::string> all = {
      {"linear", R"(
models:
  - {model: ./models/python, parameters: {weight: 0.4}}
  - {model: ./models/c, parameters: {weight: 0.3}}
  - {model: ./models/prose, parameters: {weight: 0.3}}
merge_method: linear
dtype: bfloat16
)"},
      {"slerp", R"(
slices:
  - sources:
      - {model: ./models/python, layer_range: [0, 2]}
      - {model: ./models/c, layer_range: [0, 2]}
merge_method: slerp
base_model: ./models/python
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
dtype: bfloat16
)"},
      {"ties", R"(
models:
  - model: ./models/base
  - {model: ./models/python, parameters: {density: 0.5, weight: 0.5}}
  - {model: ./models/c, parameters: {density: 0.5, weight: 0.3}}
  - {model: ./models/prose, parameters: {density: [1, 0.7, 0.1], weight: 0.2}}
merge_method: ties
base_model: ./models/base
parameters: {normalize: true, rescale: true}
dtype: float16
)"},
      {"dare_ties", R"(
models:
  - {model: ./models/python-sharded, parameters: {density: 0.53, weight: 0.4}}
  - {model: ./models/c, parameters: {density: 0.53, weight: 0.3}}
merge_method: dare_ties
base_model: ./models/base
dtype: bfloat16
)"},
      {"dare_linear", R"(
models:
  - {model: ./models/python-bin, parameters: {density: 0.3, weight: 0.6}}
  - {model: ./models/prose, parameters: {density: 0.7, weight: 0.4}}
merge_method: dare_linear
base_model: ./models/base
parameters: {rescale: false}
dtype: float32
)"},
      {"task_arithmetic", R"(
models:
  - {model: ./models/python, parameters: {weight: 1.0}}
  - {model: ./models/prose, parameters: {weight: -0.3}}
merge_method: task_arithmetic
base_model: ./models/base
parameters: {lambda: 0.9}
dtype: float32
)"},
      {"passthrough", R"(
slices:
  - sources: [{model: ./models/python, layer_range: [0, 2]}]
  - sources:
      - model: ./models/c
        layer_range: [0, 2]
        parameters:
          scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]
merge_method: passthrough
dtype: bfloat16
)"},
      {"adapters", R"(
models:
  - model: ./models/base+./adapters/c-lora
    parameters: {weight: 0.6}
  - model:
      path: ./models/python
      adapters: [{path: ./adapters/python-dora, weight: 0.7}, ./adapters/c-ia3]
    parameters: {weight: 0.4}
merge_method: linear
dtype: bfloat16
)"},
      {"bake", R"(
models:
  - model:
      path: ./models/base
      adapters: [./adapters/c-lora, {path: ./adapters/prose-lora-patterns, weight: -0.5}]
merge_method: passthrough
)"},
  };
  return all;
}

}  // namespace ingot::test
