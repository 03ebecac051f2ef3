// What tests of adapter merges share: small adapters with given values, and reading results back.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ingot/merge.hpp"
#include "store/header.hpp"
#include "store/values.hpp"
#include "support.hpp"

namespace ingot::test {

struct Values {
  Shape shape;
  std::vector<float> values;
};
// By tensor name, without the prefix of PEFT.
using Factors = std::map<std::string, Values>;

// Writes a PEFT folder; `config` are the fields that differ from a LoRA of rank 2 on `fc`.
inline void write_adapter(const std::string& folder, const Factors& factors,
                          const std::string& config = R"("r": 2, "lora_alpha": 2)") {
  std::vector<TensorInfo> infos;
  std::string data;
  for (const auto& [name, tensor] : factors) {
    infos.push_back({"base_model.model." + name, Dtype::f32, tensor.shape});
    data.append(reinterpret_cast<const char*>(tensor.values.data()),
                tensor.values.size() * sizeof(float));
  }
  write_file(folder + "/adapter_model.safetensors", print_header(infos, {{"format", "pt"}}) + data);
  std::string text = config;
  if (text.find("peft_type") == std::string::npos) text += R"(, "peft_type": "LORA")";
  if (text.find("target_modules") == std::string::npos) text += R"(, "target_modules": ["fc"])";
  write_file(folder + "/adapter_config.json", "{" + text + "}");
}

// The tensors of a folder that a run wrote, by full name; zeros for those that hold no floats.
inline std::map<std::string, Values> read_adapter_values(const std::string& folder) {
  const auto disk = system_disk();
  const Checkpoint checkpoint =
      Checkpoint::open(*disk, folder + "/adapter_model.safetensors", folder);
  std::map<std::string, Values> all;
  for (const Entry& entry : checkpoint.entries()) {
    Values tensor{entry.info.shape, std::vector<float>(entry.info.count())};
    if (is_float(entry.info.dtype)) read_values(checkpoint, entry, 0, tensor.values);
    all.emplace(entry.info.name, std::move(tensor));
  }
  return all;
}

}  // namespace ingot::test
