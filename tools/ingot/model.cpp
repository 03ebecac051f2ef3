#include "model.hpp"

#include <set>

#include <fmt/format.h>

#include "ingot/adapter.hpp"
#include "ingot/plan.hpp"
#include "json.hpp"

namespace ingot::tool {
namespace {

bool number(std::string_view part) {
  return !part.empty() && part.size() <= 9 &&
         part.find_first_not_of("0123456789") == std::string_view::npos;
}

// Calls body(part) for each component between dots.
template <class Body>
void components(std::string_view name, Body body) {
  while (true) {
    const std::size_t dot = name.find('.');
    body(name.substr(0, dot));
    if (dot == std::string_view::npos) return;
    name.remove_prefix(dot + 1);
  }
}

}  // namespace

std::string locate(Disk& disk, const std::string& name, const std::string& root) {
  ModelRef ref;
  ref.text = ref.path = name;
  const std::size_t at = name.rfind('@');
  if (at != std::string::npos) {  // resolve() knows a folder that has the whole name
    ref.path = name.substr(0, at);
    ref.revision = name.substr(at + 1);
  }
  return resolve(disk, ref, root);
}

void add_root(CLI::App& command, std::string& root) {
  command.add_option("--root", root, "Where relative paths start (default: here)")
      ->type_name("DIR");
}

bool is_adapter(Disk& disk, const std::string& folder) {
  return disk.kind(folder + "/adapter_config.json") == Disk::Kind::file;
}

Checkpoint open_any(Disk& disk, const std::string& name, const std::string& folder) {
  return with_advice(disk, folder, [&] {
    return is_adapter(disk, folder)
               ? open_adapter(disk, folder, name, {.allow_extra = true}).checkpoint
               : Checkpoint::open(disk, folder, name);
  });
}

std::string pattern(std::string_view name) {
  std::string result;
  components(name, [&](std::string_view part) {
    if (!result.empty()) result += '.';
    result += number(part) ? "*" : part;
  });
  return result;
}

std::optional<std::uint64_t> layer(std::string_view name) {
  std::optional<std::uint64_t> found;
  components(name, [&](std::string_view part) {
    if (!found && number(part)) found = std::stoull(std::string(part));
  });
  return found;
}

std::optional<std::uint64_t> count_tokens(Disk& disk, const Checkpoint& model) {
  const auto member = seek_member(disk, model.path(), "tokenizer.json");
  if (!member) return std::nullopt;
  const std::string& path = *member;
  const nlohmann::json json = json_of(read_text(disk, path), path);
  const auto fail_here = [&](const char* expected) {
    fail(Code::format, fmt::format("{}: expected {}", path, expected));
  };
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object() ||
      !json["model"].contains("vocab")) {
    fail_here("a JSON object with model.vocab");
  }
  const nlohmann::json& vocabulary = json["model"]["vocab"];
  if (!vocabulary.is_object() && !vocabulary.is_array())
    fail_here("model.vocab to be a map or list");
  std::uint64_t count = vocabulary.size();
  if (!json.contains("added_tokens") || !json["added_tokens"].is_array()) return count;
  // Added tokens may stand in the vocabulary as well; a list (Unigram) is searched by content.
  std::set<std::string> known;
  if (vocabulary.is_array()) {
    for (const nlohmann::json& entry : vocabulary) {
      if (entry.is_array() && !entry.empty() && entry[0].is_string()) {
        known.insert(entry[0].get<std::string>());
      }
    }
  }
  for (const nlohmann::json& token : json["added_tokens"]) {
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string()) {
      fail_here("every added token to have its content");
    }
    const auto content = token["content"].get<std::string>();
    const bool present =
        vocabulary.is_object() ? vocabulary.contains(content) : known.contains(content);
    if (!present) ++count;
  }
  return count;
}

}  // namespace ingot::tool
