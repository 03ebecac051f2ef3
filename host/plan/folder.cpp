#include "plan/folder.hpp"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "token/template.hpp"

namespace ingot::plan {
namespace {

// The largest tokenizers have 40 MB; more is no companion.
constexpr std::uint64_t kLargest = std::uint64_t{256} << 20;

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

std::string_view extension(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  return dot == std::string_view::npos ? std::string_view() : name.substr(dot);
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

// True for `owner/name` of the Hub, which a card can link to, rather than a folder.
bool on_hub(const Model& model) {
  const std::string& path = model.ref.path;
  return model.folder.find("/models--") != std::string::npos && path.find('/') == path.rfind('/') &&
         path.find('/') != std::string::npos;
}

// A YAML scalar in double quotes.
std::string yaml_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

// Puts the chat template that the recipe asks for where readers look for it.
void set_template(Disk& disk, Draft& draft, std::vector<Companion>& files) {
  if (draft.recipe().chat_template.empty()) return;
  std::vector<std::optional<std::string>> models;
  for (const View& view : draft.views) models.push_back(read_template(disk, view.tokenizer));
  const auto chat = chat_template(draft.recipe(), models);
  if (!chat) return;
  std::erase_if(files,
                [](const Companion& file) { return file.name.starts_with("chat_template"); });
  files.push_back({"chat_template.jinja", {}, *chat});
  for (Companion& file : files) {
    if (file.name != "tokenizer_config.json") continue;
    file.text = with_template(read_text(disk, file.from), file.from, *chat);
    file.from.clear();
  }
}

}  // namespace

bool of_tokenizer(const std::string& name) {
  return name.starts_with("tokenizer") || name.starts_with("chat_template") ||
         name.starts_with("vocab.") || extension(name) == ".tiktoken" ||
         is_one_of(name,
                   {"special_tokens_map.json", "added_tokens.json", "merges.txt", "spiece.model",
                    "sentencepiece.bpe.model", "normalizer.json", "tekken.json", "bpe.codes"});
}

bool taken_over(const std::string& name) {
  const std::string low = lower(name);
  if (name.empty() || name.front() == '.') return false;
  if (is_one_of(low, {"config.json", "readme.md", "recipe.yml", "ingot.json", "mergekit_config.yml",
                      "trainer_state.json", "all_results.json", "train_results.json",
                      "eval_results.json", "adapter_config.json", "dataset_infos.json"})) {
    return false;
  }
  for (const char* start : {"optimizer", "scheduler", "training_args", "rng_state", "events.out",
                            "global_step", "latest", "zero_to_fp32", "adapter_model"}) {
    if (low.starts_with(start)) return false;
  }
  if (low.ends_with(".index.json")) return false;  // of sharded weights
  return !is_one_of(
      extension(low),
      {".safetensors", ".bin",     ".pt",   ".pth", ".ckpt", ".gguf",    ".ggml",      ".onnx",
       ".onnx_data",   ".msgpack", ".h5",   ".ot",  ".npz",  ".npy",     ".tflite",    ".pdf",
       ".png",         ".jpg",     ".jpeg", ".gif", ".svg",  ".webp",    ".mp4",       ".ipynb",
       ".log",         ".lock",    ".zip",  ".tar", ".gz",   ".parquet", ".incomplete"});
}

std::string tokenizer_folder(Disk& disk, const Draft& draft) {
  const Vocabulary& setting = draft.recipe().vocabulary;
  if (setting.kind != Vocabulary::Kind::model) {
    return draft.views[draft.donor].tokenizer;
  }
  const auto known = draft.by_text.find(setting.model.text);
  if (known != draft.by_text.end()) return draft.views[known->second].tokenizer;
  const std::string& root = draft.plan.options.root;
  return resolve(disk, settle(disk, setting.model, root), root);
}

std::vector<Companion> donated(Disk& disk, Draft& draft, const std::string& tokenizer) {
  std::vector<Companion> files;
  const auto take = [&](const std::string& folder, bool wants_tokenizer) {
    for (const std::string& name : disk.list(folder)) {
      if (!taken_over(name) || of_tokenizer(name) != wants_tokenizer) continue;
      const std::string path = folder + "/" + name;
      if (disk.kind(path) != Disk::Kind::file) continue;
      const std::uint64_t bytes = disk.open(path)->size();
      if (bytes > kLargest) {
        draft.problems.warn(
            Code::io, fmt::format("{} was left out: a companion file of {} bytes", path, bytes));
        continue;
      }
      files.push_back({name, path, {}});
    }
  };
  take(draft.folder(draft.donor), false);
  if (draft.plan.options.copy_tokenizer) {
    take(tokenizer, true);
    set_template(disk, draft, files);
  } else if (!draft.recipe().chat_template.empty()) {
    draft.problems.warn(Code::usage,
                        fmt::format("{}: chat_template goes with a tokenizer, and none is copied",
                                    draft.place(draft.recipe().chat_template_mark)));
  }
  std::sort(files.begin(), files.end(),
            [](const Companion& a, const Companion& b) { return a.name < b.name; });
  return files;
}

std::string cell(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '`') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out;
}

std::string card_end(const Plan& plan) {
  // A fence longer than any in the recipe keeps the block whole.
  std::string fence = "```";
  while (plan.recipe.text.find(fence) != std::string::npos) fence += '`';
  return fmt::format(
      "\n## Recipe\n\n{}yaml\n{}{}{}\n"
      "\nThe file `ingot.json` holds, for every tensor, its rule, its sources and their hashes; "
      "`ingot verify` checks it.\n",
      fence, plan.recipe.text, plan.recipe.text.ends_with('\n') ? "" : "\n", fence);
}

std::string card(const Plan& plan, const math::Method& method) {
  std::string text = "---\n";
  std::string bases;
  for (const Model& model : plan.models) {
    if (on_hub(model)) bases += fmt::format("- {}\n", yaml_string(model.ref.path));
  }
  if (!bases.empty()) text += "base_model:\n" + bases;
  text += "library_name: transformers\ntags:\n- ingot\n- merge\n---\n";
  text += fmt::format("# Merged model\n\nMade by ingot with the method `{}`", method.name);
  if (method.paper[0] != '\0') text += fmt::format(" (*{}*)", method.paper);
  text += ".\n\n## Models\n\n| model | part |\n|---|---|\n";
  const std::string base = plan.recipe.base_model ? plan.recipe.base_model->text : "";
  for (const Model& model : plan.models) {
    text += fmt::format("| {} | {} |\n", cell(model.ref.text),
                        model.adapter            ? "adapter"
                        : model.ref.text == base ? "base"
                                                 : "merged");
  }
  return text + card_end(plan);
}

}  // namespace ingot::plan
