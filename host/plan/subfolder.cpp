#include "plan/subfolder.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "store/json.hpp"

namespace ingot::plan {
namespace {

// Code and lists larger than this name nothing.
constexpr std::uint64_t kText = std::uint64_t{4} << 20;

// A path that stays below its folder: a few names with `/` between.
bool stays_below(std::string_view path) {
  for (int depth = 0; depth < 6; ++depth) {
    const std::size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    if (name.empty() || name.front() == '.' || name.find('\\') != name.npos) return false;
    if (slash == path.npos) return true;
    path.remove_prefix(slash + 1);
  }
  return false;
}

class Namer {
 public:
  Namer(Disk& disk, Problems& problems, const std::string& folder)
      : disk_(disk), problems_(problems), folder_(folder) {}

  void add(const std::string& path) {
    if (!stays_below(path) || disk_.kind(folder_ + "/" + path) != Disk::Kind::folder) return;
    if (found_.insert(path).second) follow(path + "/");
  }

  // The `path` of every entry of modules.json.
  void read_modules() {
    const auto file = seek_member(disk_, folder_, "modules.json");
    if (!file) return;
    try {
      const auto list = json_of(read_text(disk_, *file, kText), *file);
      for (const auto& entry : list) {
        if (!entry.is_object() || !entry.contains("path") || !entry["path"].is_string()) continue;
        std::string path = entry["path"].get<std::string>();
        while (path.ends_with('/')) path.pop_back();
        add(path);
      }
    } catch (const Error& error) {
      problems_.warn(error.code(),
                     fmt::format("{}; the folders it may name were not looked for", error.what()));
    }
  }

  // Adds what the Python files of `prefix` (a folder with its `/`, or empty) import relatively.
  void follow(const std::string& prefix) {
    const std::string home = prefix.empty() ? folder_ : folder_ + "/" + prefix;
    for (const std::string& name : disk_.list(home)) {
      const std::string path = prefix + name;
      if (!name.ends_with(".py") || disk_.kind(folder_ + "/" + path) != Disk::Kind::file) continue;
      try {
        imports(read_text(disk_, member(disk_, folder_, path), kText), prefix);
      } catch (const Error&) {  // said where it is copied
      }
    }
  }

  std::set<std::string> found() { return std::move(found_); }

 private:
  // Lines `from .a.b import c`, `from . import a` and `from ..a import b`.
  void imports(std::string_view text, const std::string& prefix) {
    while (!text.empty()) {
      std::string_view line = text.substr(0, text.find('\n'));
      text.remove_prefix(std::min(line.size() + 1, text.size()));
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
      if (!line.starts_with("from ") && !line.starts_with("from\t")) continue;
      line.remove_prefix(4);
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
      std::string home = prefix;
      bool inside = line.starts_with('.');
      while (inside && line.size() > 1 && line[1] == '.') {
        inside = !home.empty();
        if (!inside) break;
        home.erase(home.rfind('/', home.size() - 2) + 1);  // npos + 1 is 0
        line.remove_prefix(1);
      }
      if (!inside) continue;
      line.remove_prefix(1);
      const std::string_view module = line.substr(0, line.find_first_of(" \t"));
      if (!module.empty()) {
        packages(home, module);
        continue;
      }
      line.remove_prefix(std::min(line.find("import"), line.size()));
      line.remove_prefix(std::min<std::size_t>(6, line.size()));
      while (!line.empty()) {
        line.remove_prefix(std::min(line.find_first_not_of(" \t,("), line.size()));
        const std::string_view name = line.substr(0, line.find_first_of(" \t,)\r#"));
        if (!name.empty()) packages(home, name);
        line.remove_prefix(std::min(name.size() + 1, line.size()));
      }
    }
  }

  // The folders of "a.b.c" below `home`.
  void packages(const std::string& home, std::string_view dotted) {
    for (std::size_t dot = 0; dot != dotted.npos;) {
      dot = dotted.find('.', dot + 1);
      std::string path = home;
      for (const char c : dotted.substr(0, dot)) path += c == '.' ? '/' : c;
      add(path);
    }
  }

  Disk& disk_;
  Problems& problems_;
  const std::string& folder_;
  std::set<std::string> found_;
};

}  // namespace

std::set<std::string> named_folders(Disk& disk, Problems& problems, const std::string& folder,
                                    Share share) {
  Namer namer(disk, problems, folder);
  if (share == Share::tokenizer) {
    namer.add("additional_chat_templates");
    return namer.found();
  }
  namer.add("processor");
  namer.add("custom_generate");
  namer.read_modules();
  namer.follow("");
  return namer.found();
}

}  // namespace ingot::plan
