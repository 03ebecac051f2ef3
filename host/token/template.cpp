#include "token/template.hpp"

#include <algorithm>
#include <map>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/clip.hpp"
#include "ingot/error.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

using json = nlohmann::ordered_json;

constexpr std::size_t kShortest = 20;  // bytes of a literal template, as mergekit has it

struct Builtin {
  const char* name;
  const char* text;
};

// Instruction and response headings; without a system message, the usual opening line.
constexpr const char* kAlpaca =
    R"({%- if messages and messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] + '\n\n' }}
{%- else -%}
{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ '### Instruction:\n' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\n' }}
{%- endif -%})";

constexpr const char* kChatml =
    R"({%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%})";

// A conversation opens with a system turn, empty if none is given; only user turns end without a
// mark.
constexpr const char* kExaone =
    R"({%- if messages and messages[0]['role'] != 'system' -%}
{{ '[|system|][|endofturn|]\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{%- if message['role'] == 'user' -%}
{{ '\n' }}
{%- else -%}
{{ '[|endofturn|]\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%})";

constexpr const char* kLlama3 =
    R"({{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + (message['content'] | trim) + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%})";

// There is no system turn: its text goes before the first instruction.
constexpr const char* kMistral =
    R"({{- bos_token -}}
{%- set state = namespace(preface='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set state.preface = message['content'] + '\n\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST] ' + state.preface + message['content'] + ' [/INST]' }}
{%- set state.preface = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%})";

constexpr Builtin kBuiltins[] = {{"alpaca", kAlpaca},
                                 {"chatml", kChatml},
                                 {"exaone", kExaone},
                                 {"llama3", kLlama3},
                                 {"mistral", kMistral}};

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

json read_object(const std::string& text, const std::string& file) {
  json tree = json_of(text, file);
  if (!tree.is_object()) fail(Code::format, fmt::format("{} is not a JSON object", file));
  return tree;
}

// End of the JSON value that starts at `at`, in text that is known to be JSON.
std::size_t value_end(std::string_view text, std::size_t at) {
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t i = at; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        quoted = false;
        if (depth == 0) return i + 1;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth == 0) return i;
      if (--depth == 0) return i + 1;
    } else if (depth == 0 && (c == ',' || c == ' ' || c == '\t' || c == '\r' || c == '\n')) {
      return i;
    }
  }
  return text.size();
}

}  // namespace

std::optional<std::string> read_template(Disk& disk, const std::string& folder) {
  if (const auto file = seek_member(disk, folder, "chat_template.jinja")) {
    return read_text(disk, *file);
  }
  const auto file = seek_member(disk, folder, "tokenizer_config.json");
  if (!file) return std::nullopt;
  const json config = read_object(read_text(disk, *file), *file);
  const auto found = config.find("chat_template");
  if (found == config.end()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const json& named : *found) {
      if (named.is_object() && named.value("name", json()) == "default" &&
          named.value("template", json()).is_string()) {
        return named["template"].get<std::string>();
      }
    }
  }
  return std::nullopt;
}

std::optional<std::string> chat_template(const Recipe& recipe,
                                         std::span<const std::optional<std::string>> models) {
  const std::string& wish = recipe.chat_template;
  if (wish.empty()) return std::nullopt;
  if (wish == "auto") {
    std::map<std::string_view, int> votes;
    for (const auto& text : models) {
      if (text) ++votes[trim(*text)];
    }
    std::optional<std::string> best;
    int most = 0;
    for (const auto& text : models) {
      if (text && votes[trim(*text)] > most) {
        most = votes[trim(*text)];
        best = trim(*text);
      }
    }
    return best;
  }
  std::vector<std::string> names{"auto"};
  for (const Builtin& builtin : kBuiltins) {
    if (wish == builtin.name) return builtin.text;
    names.emplace_back(builtin.name);
  }
  if (wish.size() >= kShortest && wish.find('{') != std::string::npos) return wish;
  fail(Code::usage,
       fmt::format(
           "{}: chat_template '{}' is neither a name ({}) nor a template, which has at least {} "
           "bytes and a '{{'{}",
           position(recipe.file, recipe.chat_template_mark), clip(wish), fmt::join(names, ", "),
           kShortest, suggestion(wish, names)));
}

std::string with_template(const std::string& config, const std::string& file,
                          const std::string& chat) {
  if (!read_object(config, file).contains("chat_template")) return config;
  std::string quoted;
  try {
    quoted = json(chat).dump();
  } catch (const json::exception&) {
    fail(Code::format, fmt::format("the chat template for {} is not UTF-8", file));
  }
  // The members of the one object, each `"key" : value`; the values of chat_template are replaced.
  std::string out;
  std::size_t at = config.find('{') + 1;
  std::size_t copied = 0;
  while (true) {
    const std::size_t key = config.find_first_of("\"}", at);
    if (key == std::string::npos || config[key] == '}') break;
    const std::size_t after = value_end(config, key);
    const std::size_t value = config.find_first_not_of(" \t\r\n", config.find(':', after) + 1);
    const std::size_t end = value_end(config, value);
    if (config.compare(key, after - key, "\"chat_template\"") == 0) {
      out.append(config, copied, value - copied).append(quoted);
      copied = end;
    }
    at = end;
  }
  return out.append(config, copied, std::string::npos);
}

}  // namespace ingot
