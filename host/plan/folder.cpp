#include "plan/folder.hpp"

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "ingot/text.hpp"
#include "plan/subfolder.hpp"
#include "store/json.hpp"
#include "token/template.hpp"

namespace ingot::plan {
namespace {

// The largest tokenizers have 40 MB; larger files are not companions.
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

// True if a name begins or ends as those of a tokenizer's files do.
bool is_kind_of_tokenizer(std::string_view name) {
  for (const char* start :
       {"tokenizer", "chat_template", "vocab", "spiece", "sentencepiece", "spm"}) {
    if (name.starts_with(start)) return true;
  }
  return name.ends_with("vocab.json") || name.ends_with("vocab.txt") ||
         is_one_of(extension(name), {".tiktoken", ".model", ".spm", ".tokenizer"}) ||
         is_one_of(name, {"special_tokens_map.json", "added_tokens.json", "merges.txt", "dict.txt",
                          "normalizer.json", "tekken.json", "bpe.codes", "emoji.json",
                          "byte_maps.json", "word_shape.json", "word_pronunciation.json"});
}

// True for the names of files that loaders read for settings beside config.json.
bool is_setting(std::string_view low) {
  return is_one_of(
             low, {"generation_config.json", "preprocessor_config.json", "processor_config.json",
                   "video_preprocessor_config.json", "image_preprocessor_config.json",
                   "audio_tokenizer_config.json", "feature_extractor_config.json",
                   "quantize_config.json", "quantization_config.json", "hf_quant_config.json",
                   "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
                   "configuration.json", "modelcard.json"}) ||
         low.ends_with(".jinja");
}

bool is_code(std::string_view low) { return is_one_of(extension(low), {".py", ".pyc", ".so"}); }

// True if a folder has a file that a tokenizer's vocabulary can be in.
bool has_vocabulary(Disk& disk, const std::string& folder) {
  for (const std::string& name : disk.list(folder)) {
    if (extension(name) == ".tiktoken" ||
        is_one_of(name, {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt",
                         "spiece.model", "sentencepiece.bpe.model", "tekken.json"})) {
      return true;
    }
  }
  return false;
}

// True if a name is that of a model's file: a folder with such a name is not a folder of files.
bool of_file(std::string_view name) {
  const std::string low = lower(name);
  return is_one_of(extension(low), {".py", ".json", ".jinja", ".model", ".txt", ".md", ".yml"}) ||
         is_one_of(low, {"license", "notice"});
}

// True if a folder in a model's folder looks like a part of the model, and not like what trainers,
// converters and people leave: it has code or settings.
bool belongs(Disk& disk, const std::string& path) {
  const std::string low = lower(path.substr(path.rfind('/') + 1));
  for (const char* start : {".", "__pycache__", "checkpoint", "global_step", "runs", "log", "onnx",
                            "openvino", "coreml", "original", "wandb", "tensorboard", "eval"}) {
    if (low.starts_with(start)) return false;
  }
  try {
    const std::vector<std::string> names = disk.list(path);
    return std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return is_one_of(extension(name), {".py", ".json", ".model", ".jinja"}) &&
             fate(name) != Fate::passed_over;
    });
  } catch (const Error&) {  // it cannot even be listed
    return true;
  }
}

// That the tokenizer's files are JSON, also where they are only copied.
void check_companion(Disk& disk, Problems& problems, const std::string& name,
                     const std::string& path) {
  if (!is_one_of(name, {"tokenizer.json", "tokenizer_config.json"})) return;
  const std::string text = read_text(disk, path, kLargest);
  if (text.empty()) fail(Code::format, fmt::format("{} is empty", path));
  try {
    check_json(text, path);
  } catch (const Error& error) {
    // Python's JSON is wider than ours, so the copy may serve.
    problems.warn(error.code(), fmt::format("{}; it was copied as it is", error.what()));
  }
}

// The names of `wanted` that occur in the text of code or settings among the files `names` of a
// folder.
std::set<std::string> mentioned(Disk& disk, const std::string& folder,
                                const std::vector<std::string>& names,
                                std::set<std::string> wanted) {
  constexpr std::uint64_t kText = std::uint64_t{4} << 20;
  std::set<std::string> found;
  for (const std::string& name : names) {
    if (wanted.empty()) break;
    const std::string low = lower(name);
    if (low != "config.json" && extension(low) != ".py" && !is_setting(low)) continue;
    try {
      const std::string text = read_text(disk, member(disk, folder, name), kText);
      std::erase_if(wanted, [&](const std::string& word) {
        return text.find(word) != text.npos && found.insert(word).second;
      });
    } catch (const Error&) {  // said where it is copied
    }
  }
  return found;
}

std::string unknown(const std::string& path) {
  return fmt::format(
      "{} was left out: it is not a kind of file that loaders read with a model; copy "
      "it if the model needs it",
      path);
}

// Files of a folder that the model names: those that would be taken beside the weights, and weights
// of small modules, which are copied, never merged.
class Subfolder {
 public:
  Subfolder(Disk& disk, Problems& problems, const std::string& folder,
            std::vector<Companion>& files)
      : disk_(disk), problems_(problems), folder_(folder), files_(files) {}

  void take(const std::string& path) {
    if (disk_.is_link(folder_ + "/" + path)) {
      fail(Code::format,
           fmt::format("{}/{} is a link to a folder; put the folder itself there", folder_, path));
    }
    for (const std::string& name : disk_.list(folder_ + "/" + path)) {
      const std::string inner = fmt::format("{}/{}", path, name);
      const std::string from = fmt::format("{}/{}", folder_, inner);
      const bool weights = is_one_of(extension(name), {".safetensors", ".bin", ".pt", ".pth"});
      if (disk_.kind(from) == Disk::Kind::folder) continue;  // one that is named comes by itself
      const Fate met = name == "config.json" || weights ? Fate::taken : fate(name);
      if (met == Fate::passed_over || printable(inner) != inner) continue;
      if (met == Fate::unknown) {
        problems_.warn_like("unknown in " + folder_, Code::usage, unknown(from));
        continue;
      }
      const std::uint64_t bytes = disk_.open(member(disk_, folder_, inner))->size();
      if (bytes > kLargest) {
        problems_.warn(Code::io,
                       fmt::format("{} was left out: a companion file of {} bytes", from, bytes));
        continue;
      }
      if (weights) {
        problems_.warn(Code::usage, fmt::format("{} is copied as it is: weights of modules in "
                                                "folders are not merged",
                                                from));
      }
      files_.push_back({inner, from, {}, {}});
    }
  }

 private:
  Disk& disk_;
  Problems& problems_;
  const std::string& folder_;
  std::vector<Companion>& files_;
};

// Puts the chat template that the recipe asks for where readers look for it.
void set_template(Disk& disk, Draft& draft, std::vector<Companion>& files) {
  if (draft.recipe().chat_template.empty()) return;
  std::vector<std::optional<std::string>> models;
  for (const View& view : draft.views) models.push_back(read_template(disk, view.tokenizer));
  const auto chat = chat_template(draft.recipe(), models);
  if (!chat) return;
  std::erase_if(files,
                [](const Companion& file) { return file.name.starts_with("chat_template"); });
  files.push_back({"chat_template.jinja", {}, *chat, {}});
  for (Companion& file : files) {
    if (file.name != "tokenizer_config.json") continue;
    file.text = with_template(read_text(disk, file.from), file.from, *chat);
    file.from.clear();
  }
}

}  // namespace

bool of_tokenizer(const std::string& name) {
  if (name == "additional_chat_templates") return true;
  return is_kind_of_tokenizer(name) &&
         is_one_of(extension(name), {".json", ".jinja", ".model", ".txt", ".tiktoken", ".codes",
                                     ".spm", ".tokenizer"});
}

Fate fate(const std::string& name) {
  const std::string low = lower(name);
  if (name.empty() || name.front() == '.') return Fate::passed_over;
  if (is_one_of(
          low, {"config.json", "readme.md", "recipe.yml", "ingot.json", "mergekit_config.yml",
                "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
                "adapter_config.json", "dataset_infos.json", "params.json"})) {
    return Fate::passed_over;
  }
  for (const char* start : {"optimizer", "scheduler", "training_args", "rng_state", "events.out",
                            "global_step", "latest", "zero_to_fp32", "adapter_model"}) {
    if (low.starts_with(start)) return Fate::passed_over;
  }
  if (low.ends_with(".index.json")) return Fate::passed_over;  // of sharded weights
  if (is_one_of(extension(low),
                {".safetensors", ".bin",   ".pt",     ".pth",  ".ckpt",       ".gguf",    ".ggml",
                 ".onnx",        ".h5",    ".ot",     ".npz",  ".onnx_data",  ".msgpack", ".npy",
                 ".tflite",      ".pdf",   ".png",    ".jpg",  ".jpeg",       ".gif",     ".svg",
                 ".webp",        ".mp4",   ".log",    ".lock", ".incomplete", ".zip",     ".tar",
                 ".gz",          ".ipynb", ".parquet"})) {
    return Fate::passed_over;
  }
  for (const char* start : {"license", "licence", "notice", "copying", "use_policy"}) {
    if (low.starts_with(start)) return Fate::taken;
  }
  const bool known = of_tokenizer(name) || is_code(low) || is_setting(low);
  return known ? Fate::taken : Fate::unknown;
}

std::optional<std::uint64_t> rows_of(const Draft& draft, std::uint32_t view) {
  if (view < draft.rows.size()) return draft.rows[view];
  for (std::uint32_t p = 0; p < draft.names.templates.size(); ++p) {
    if (draft.names.templates[p].role != Role::embedding) continue;
    const Spot* spot = draft.names.listings[view].find(p);
    if (spot != nullptr) return draft.item(view, spot->entry).info.shape[0];
  }
  return std::nullopt;
}

std::string tokenizer_folder(Disk& disk, const Draft& draft) {
  const Vocabulary& setting = draft.recipe().vocabulary;
  if (setting.kind != Vocabulary::Kind::model) {
    const std::string& own = draft.views[draft.donor].tokenizer;
    if (setting.kind == Vocabulary::Kind::base || has_vocabulary(disk, own)) return own;
    std::vector<std::string> others;
    for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
      if (!has_vocabulary(disk, draft.views[v].tokenizer)) continue;
      if (rows_of(draft, v) == rows_of(draft, draft.donor)) {
        draft.problems.warn(Code::missing,
                            fmt::format("{} has no tokenizer: the output gets the tokenizer of {}, "
                                        "whose embedding has the same number of rows",
                                        draft.shown(draft.donor), draft.shown(v)));
        return draft.views[v].tokenizer;
      }
      others.push_back(draft.shown(v));
    }
    if (!others.empty()) {
      draft.problems.warn(
          Code::missing,
          fmt::format("{} has no tokenizer, and the tokenizer of {} is for another number of rows: "
                      "the output has no tokenizer; name one with tokenizer_source",
                      draft.shown(draft.donor), others.front()));
    }
    return own;
  }
  const auto known = draft.by_text.find(setting.model.text);
  if (known != draft.by_text.end()) return draft.views[known->second].tokenizer;
  const std::string& root = draft.plan.options.root;
  return resolve(disk, settle(disk, setting.model, root), root);
}

void take_over(Disk& disk, Problems& problems, const std::string& folder, Share share,
               std::vector<Companion>& files) {
  const auto leave_out = [&](Code code, const std::string& path, std::string_view why) {
    problems.warn_like(fmt::format("left out {} {}", folder, why), code,
                       fmt::format("{} was left out: {}", path, why));
  };
  const std::set<std::string> named = named_folders(disk, problems, folder, share);
  for (const std::string& path : named) {
    try {
      Subfolder(disk, problems, folder, files).take(path);
    } catch (const Error& error) {
      problems.error(error.code(), error.what());
    }
  }
  const std::vector<std::string> names = disk.list(folder);
  const bool loads = std::find(names.begin(), names.end(), "config.json") != names.end();
  std::set<std::string> strange;
  for (const std::string& name : names) {
    if (loads && share == Share::rest && fate(name) == Fate::unknown) strange.insert(name);
  }
  strange = mentioned(disk, folder, names, std::move(strange));
  for (const std::string& name : names) {
    const Fate met = fate(name);
    if (met == Fate::passed_over || of_tokenizer(name) != (share == Share::tokenizer)) continue;
    const std::string path = folder + "/" + name;
    // Its own files are taken, or those of a folder in it.
    const auto below = named.lower_bound(name);
    if (below != named.end() && (*below == name || below->starts_with(name + "/"))) continue;
    if (printable(name) != name) {
      leave_out(Code::format, path, "its name is not UTF-8, or has characters that cannot be seen");
      continue;
    }
    const Disk::Kind kind = disk.kind(path);
    if (kind == Disk::Kind::folder && share == Share::rest && !of_file(name)) {
      if (belongs(disk, path)) {
        leave_out(Code::missing, path,
                  "the model's files do not name this folder; copy it if the model needs it");
      }
      continue;
    }
    // Code without a configuration belongs to whatever else is in the folder.
    const bool known = met == Fate::taken && (loads || !is_code(lower(name)));
    if (!known && !strange.contains(name)) {
      problems.warn_like("unknown in " + folder, Code::usage, unknown(path));
      continue;
    }
    try {
      const std::uint64_t bytes = disk.open(member(disk, folder, name))->size();
      if (bytes > kLargest) {
        leave_out(Code::io, path, fmt::format("a companion file of {} bytes", bytes));
        continue;
      }
      check_companion(disk, problems, name, path);
      files.push_back({name, path, {}, {}});
    } catch (const Error& error) {
      problems.error(error.code(), error.what());
    }
  }
}

bool has_tokenizer(Disk& disk, const std::string& folder) {
  Problems problems;
  std::vector<Companion> files;
  take_over(disk, problems, folder, Share::tokenizer, files);
  return !files.empty() || !problems.finish().empty();
}

std::vector<Companion> donated(Disk& disk, Draft& draft, const std::string& tokenizer) {
  std::vector<Companion> files;
  take_over(disk, draft.problems, draft.folder(draft.donor), Share::rest, files);
  if (draft.plan.options.copy_tokenizer) {
    take_over(disk, draft.problems, tokenizer, Share::tokenizer, files);
    set_template(disk, draft, files);
  } else {
    draft.plan.waived.tokenizer =
        has_tokenizer(disk, tokenizer) || !draft.recipe().chat_template.empty();
  }
  if (!draft.plan.options.copy_tokenizer && !draft.recipe().chat_template.empty()) {
    draft.problems.warn(Code::usage,
                        fmt::format("{}: chat_template goes with a tokenizer, and none is copied",
                                    draft.place(draft.recipe().chat_template_mark)));
  }
  std::sort(files.begin(), files.end(),
            [](const Companion& a, const Companion& b) { return a.name < b.name; });
  return files;
}

void attribute(const Draft& draft, const std::string& tokenizer, std::vector<Companion>& files) {
  const auto model_at = [&](const std::string& folder) -> std::string {
    for (const Model& model : draft.plan.models) {
      if (model.checkpoint.path() == folder || model.folder == folder) return model.ref.text;
    }
    return draft.recipe().vocabulary.model.text;  // of which nothing but the tokenizer is read
  };
  for (Companion& file : files) {
    if (!file.from.empty()) {
      file.model = model_at(file.from.substr(0, file.from.size() - file.name.size() - 1));
    }
    if (file.from.empty() && file.name == "tokenizer_config.json") file.model = model_at(tokenizer);
  }
}

namespace {

// The text of the string whose quote is at `at`, which moves behind it; of escapes those of ASCII.
std::string string_at(std::string_view text, std::size_t& at) {
  std::string out;
  for (++at; at < text.size() && text[at] != '"'; ++at) {
    if (text[at] != '\\' || at + 1 == text.size()) {
      out += text[at];
      continue;
    }
    unsigned code = 0;
    const char* digits = text.data() + at + 2;
    if (text[at + 1] == 'u' && at + 6 <= text.size() &&
        std::from_chars(digits, digits + 4, code, 16).ptr == digits + 4) {
      out += code < 0x80 ? static_cast<char>(code) : '?';
      at += 5;
    } else {
      out += text[++at];
    }
  }
  ++at;
  return out;
}

// True if a configuration names code that is run with the model: a key of the kind at any depth.
// Keys are looked for in the text, since Python reads more than JSON (NaN, lone surrogates).
bool names_code(std::string_view text) {
  const auto skip_space = [&](std::size_t at) {
    return std::min(text.find_first_not_of(" \t\r\n", at), text.size());
  };
  for (std::size_t at = text.find('"'); at < text.size(); at = text.find('"', at)) {
    const std::string word = string_at(text, at);
    at = skip_space(std::min(at, text.size()));
    if (at == text.size() || text[at] != ':') continue;
    at = skip_space(at + 1);
    if (word == "auto_map" || word == "custom_pipelines") return true;
    if (word == "trust_remote_code" && text.substr(at).starts_with("true")) return true;
  }
  return false;
}

}  // namespace

void note_code(Disk& disk, Plan& plan, Problems& problems) {
  std::string list;
  const auto note = [&](const Companion& file, const char* what) {
    plan.code.push_back(file.name);
    list += fmt::format("{}{}{}{}", list.empty() ? "" : ", ", file.name, what,
                        file.model.empty() ? "" : fmt::format(" of {}", file.model));
  };
  for (const Companion& file : plan.companions) {
    if (is_one_of(lower(extension(file.name)), {".py", ".pyc", ".so"})) {
      note(file, "");
    } else if (file.name.ends_with("config.json")) {
      const std::string text = file.from.empty() ? file.text : read_text(disk, file.from, kLargest);
      if (names_code(text)) note(file, " (auto_map)");
    }
  }
  if (list.empty()) return;
  problems.warn(Code::usage,
                fmt::format("the output has remote code, which programs run where they are told to "
                            "trust it: {}; read it first",
                            list));
}

}  // namespace ingot::plan
