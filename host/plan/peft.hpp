// The folder of an adapter that is written: its configuration and its card.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ingot/adapter.hpp"
#include "ingot/math/rule.hpp"
#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// A program that loads adapters, and the parts that it accepts.
struct Reader {
  std::string_view word;   // of recipes: "vllm"
  std::string_view name;   // of messages: "vLLM"
  bool whole = true;       // tensors in full, and parameters that are no linear layer's weight
  bool one_rank = false;   // knows one alpha: all modules need one rank
  std::uint64_t most = 0;  // ranks; 0: any
};
[[nodiscard]] const Reader& reader(const Adaptation& wishes);

// The contents of adapter_config.json. Targets are listed one by one, without filters.
struct PeftFolder {
  struct Module {
    std::string path;        // of the module, or of the module and its parameter
    std::uint64_t rank = 0;  // 0 for families without one
    double alpha = 0;
    bool named = true;  // false: something else targets it (a parameter, an outer module)
    bool feedforward = false;
  };
  ingot::Family family = ingot::Family::lora;
  std::string base, revision, task, version;
  bool fan_in_fan_out = false;
  bool dora = false;
  bool lora_bias = false;
  std::string bias = "none";
  std::vector<Module> modules;
  std::vector<std::string> parameters;
  std::vector<std::string> modules_to_save;
  std::vector<std::pair<std::string, std::vector<std::uint64_t>>> tokens;
  std::vector<std::pair<std::int64_t, std::int64_t>> replication;
  std::vector<std::uint64_t> parts;  // ranks of sources that add up to the largest rank; or empty
};

[[nodiscard]] std::string print(const PeftFolder& folder);

// The rule of a tensor that is written as it was computed.
[[nodiscard]] math::Rule plain(std::uint64_t elements);

// Lays out the one weight file, notes ranks and what loads the folder, and adds
// adapter_config.json, recipe.yml and, where asked for, the card, to the companions that are there.
void write_peft(Disk& disk, Plan& plan, Problems& problems, const PeftFolder& folder,
                const std::string& title, const std::string& about);

}  // namespace ingot::plan
