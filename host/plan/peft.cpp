#include "plan/peft.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "ingot/methods.hpp"
#include "plan/card.hpp"
#include "plan/folder.hpp"
#include "plan/layout.hpp"

namespace ingot::plan {
namespace {

using Json = nlohmann::json;  // sorted keys, as PEFT writes them

Json number(double value) {
  if (value == std::trunc(value) && std::fabs(value) < 0x1p53) {
    return static_cast<std::int64_t>(value);
  }
  return value;
}

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

// PEFT's patterns are regular expressions that may match any tail of a path: these match one path,
// and whatever order a later save puts them in.
std::string anchored(const std::string& path) {
  std::string pattern = "^";
  for (const char c : path) {
    if (std::string_view(R"(\.+*?()[]{}|^$)").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

template <class Value>
Value commonest(const std::map<Value, std::size_t>& counts, Value none) {
  const auto most =
      std::max_element(counts.begin(), counts.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == counts.end() ? none : most->first;
}

void add_lora(Json& json, const PeftFolder& folder) {
  std::set<std::uint64_t> ranks;
  std::map<double, std::size_t> scalings;
  for (const PeftFolder::Module& module : folder.modules) {
    ranks.insert(module.rank);
    ++scalings[module.alpha / static_cast<double>(module.rank)];
  }
  // The largest: servers make room for `r` ranks.
  const std::uint64_t rank = ranks.empty() ? 8 : *ranks.rbegin();
  const double alpha = commonest(scalings, 1.0) * static_cast<double>(rank);
  json["r"] = rank;
  json["lora_alpha"] = number(alpha);
  json["rank_pattern"] = json["alpha_pattern"] = Json::object();
  for (const PeftFolder::Module& module : folder.modules) {
    if (module.rank != rank) json["rank_pattern"][anchored(module.path)] = module.rank;
    if (module.alpha != alpha) json["alpha_pattern"][anchored(module.path)] = number(module.alpha);
  }
  json["bias"] = folder.bias;
  json["init_lora_weights"] = true;
  json["layer_replication"] = Json();
  if (!folder.replication.empty()) json["layer_replication"] = folder.replication;
  json["layers_pattern"] = json["layers_to_transform"] = Json();
  json["lora_bias"] = folder.lora_bias;
  json["lora_dropout"] = 0.0;
  json["target_parameters"] = Json();
  if (!folder.parameters.empty()) json["target_parameters"] = folder.parameters;
  json["trainable_token_indices"] = Json();
  if (!folder.tokens.empty()) json["trainable_token_indices"] = Json::object();
  for (const auto& [name, rows] : folder.tokens) {
    if (name.empty()) {
      json["trainable_token_indices"] = rows;
    } else {
      json["trainable_token_indices"][name] = rows;
    }
  }
  json["use_dora"] = folder.dora;
  json["use_rslora"] = false;
}

// vLLM's --max-lora-rank, its default first.
constexpr std::uint64_t kServed[] = {16, 32, 64, 128, 256, 320, 512};

// Notes about ranks, and about the programs that can load the folder.
void note_ranks(Plan& plan, Problems& problems, const PeftFolder& folder) {
  std::set<std::uint64_t> ranks;
  for (const PeftFolder::Module& module : folder.modules) {
    if (module.rank > 0) ranks.insert(module.rank);
  }
  const Reader& target = reader(plan.recipe.adaptation);
  if (!ranks.empty()) {
    const std::uint64_t most = *ranks.rbegin();
    std::string text = ranks.size() == 1 ? fmt::format("rank {}", most)
                                         : fmt::format("ranks {} to {}", *ranks.begin(), most);
    if (folder.parts.size() > 1) text += fmt::format(" ({})", fmt::join(folder.parts, " + "));
    plan.notes.push_back(std::move(text));
    const auto* served = std::find_if(std::begin(kServed), std::end(kServed),
                                      [&](std::uint64_t room) { return most <= room; });
    if (served == std::end(kServed)) {
      if (target.most > 0) {
        problems.error(Code::usage,
                       fmt::format("{}: the adapter has rank {}, and {} loads ranks up to {}; "
                                   "choose a smaller rank (--type svd --rank {})",
                                   plan.recipe.file, most, target.name, target.most, target.most));
      }
      plan.notes.push_back(
          fmt::format("vLLM loads ranks up to {} only", kServed[std::size(kServed) - 1]));
    } else if (served != std::begin(kServed) && folder.family == ingot::Family::lora) {
      plan.notes.push_back(
          fmt::format("vLLM loads ranks up to {} unless it is started with "
                      "--max-lora-rank {}",
                      kServed[0], *served));
    }
    if (ranks.size() > 1) {
      plan.notes.push_back(
          "llama.cpp needs one rank for all modules: --for llama.cpp gives it to them");
    }
  }
  const bool whole = std::any_of(plan.jobs.begin(), plan.jobs.end(), [](const Job& job) {
    return job.output.name.find(".lora_") == std::string::npos;
  });
  if (folder.family == ingot::Family::lora && (whole || !folder.parameters.empty())) {
    plan.notes.push_back(
        fmt::format("for PEFT: vLLM and llama.cpp load no {}{}",
                    !folder.modules_to_save.empty() ? "modules_to_save"
                    : whole                         ? "tensors in full"
                                                    : "target_parameters",
                    plan.recipe.kind == Recipe::Kind::extraction
                        ? "; --for vllm or --for llama.cpp makes an adapter for them"
                        : ""));
  }
}

}  // namespace

const Reader& reader(const Adaptation& wishes) {
  // vLLM's largest --max-lora-rank is 512.
  static constexpr Reader kReaders[] = {{"peft", "PEFT", true, false, 0},
                                        {"vllm", "vLLM", false, false, 512},
                                        {"llama.cpp", "llama.cpp", false, true, 0}};
  for (const Reader& one : kReaders) {
    if (one.word == wishes.reader) return one;
  }
  return kReaders[0];
}

std::string print(const PeftFolder& folder) {
  Json json = Json::object();
  json["auto_mapping"] = Json();
  json["base_model_name_or_path"] = text_or_null(folder.base);
  json["exclude_modules"] = Json();
  json["fan_in_fan_out"] = folder.fan_in_fan_out;
  json["inference_mode"] = true;
  json["modules_to_save"] = Json();
  if (!folder.modules_to_save.empty()) json["modules_to_save"] = folder.modules_to_save;
  json["peft_type"] = std::string(name(folder.family));
  if (!folder.version.empty()) json["peft_version"] = folder.version;
  json["revision"] = text_or_null(folder.revision);
  json["task_type"] = text_or_null(folder.task);
  std::set<std::string> targets, feedforward;
  for (const PeftFolder::Module& module : folder.modules) {
    if (module.named) targets.insert(module.path);
    if (module.feedforward) feedforward.insert(module.path);
  }
  json["target_modules"] = targets;
  if (folder.family == ingot::Family::ia3) {
    json["feedforward_modules"] = feedforward;
    json["init_ia3_weights"] = true;
  } else {
    add_lora(json, folder);
  }
  return json.dump(2) + "\n";
}

math::Rule plain(std::uint64_t elements) {
  math::Rule rule;
  rule.method = math::kIndex<math::Passthrough>;
  rule.sources = 1;
  rule.elements = elements;
  math::set_defaults(rule);
  return rule;
}

void write_peft(Disk& disk, Plan& plan, Problems& problems, const PeftFolder& folder,
                const std::string& title, const std::string& about) {
  note_ranks(plan, problems, folder);
  plan.shards = lay_out(plan.jobs, std::numeric_limits<std::uint64_t>::max());
  plan.shards.front().file = "adapter_model.safetensors";
  for (const Shard& shard : plan.shards) plan.bytes_out += shard.header.size() + shard.data_bytes;
  note_code(disk, plan, problems);
  plan.companions.push_back({"adapter_config.json", {}, print(folder), {}});
  if (plan.options.model_card) {
    const char* const kind = folder.family == ingot::Family::ia3 ? "ia3" : "lora";
    plan.companions.push_back(
        {"README.md", {}, adapter_card(disk, plan, kind, folder.base, title, about, problems), {}});
  }
  plan.companions.push_back({"recipe.yml", {}, plan.recipe.text, {}});
  std::sort(plan.companions.begin(), plan.companions.end(),
            [](const Companion& a, const Companion& b) { return a.name < b.name; });
}

}  // namespace ingot::plan
