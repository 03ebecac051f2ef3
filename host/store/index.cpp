#include "store/index.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

bool is_control(char c) noexcept { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// A file name, or a path of them with `/` between, that cannot leave its folder on any system.
bool is_below(std::string_view path) noexcept {
  if (path.find_first_of("\\:") != path.npos || std::any_of(path.begin(), path.end(), is_control)) {
    return false;
  }
  for (;;) {
    const std::size_t slash = path.find('/');
    const std::string_view name = path.substr(0, slash);
    if (name.empty() || name == "." || name == "..") return false;
    if (slash == path.npos) return true;
    path.remove_prefix(slash + 1);
  }
}

// Collects weight_map; passes over everything else, however deep.
class Sax {
 public:
  Sax(const std::string& path, std::string_view suffix) : path_(path), suffix_(suffix) {}

  std::map<std::string, std::vector<std::string>> shards;  // file -> tensors
  bool found = false;

  bool null() { return value("null"); }
  bool boolean(bool) { return value("a boolean"); }
  bool number_integer(std::int64_t) { return value("a number"); }
  bool number_unsigned(std::uint64_t) { return value("a number"); }
  bool number_float(double, const std::string&) { return value("a number"); }
  bool binary(nlohmann::json::binary_t&) { return value("binary"); }

  bool string(std::string& text) {
    if (!inside_) return value("a text");
    if (!is_below(text)) {
      stop(fmt::format("tensor {} is placed in {}, which is not a file in this folder or below it",
                       cite(key_), cite(text)));
    }
    if (!text.ends_with(suffix_)) {
      stop(fmt::format("tensor {} is placed in {}, which is not a {} file", cite(key_), cite(text),
                       suffix_));
    }
    shards[text].push_back(std::move(key_));
    return true;
  }

  bool key(std::string& text) {
    if (depth_ == 1 || inside_) key_ = std::move(text);
    if (inside_ && std::any_of(key_.begin(), key_.end(), is_control)) {
      stop(fmt::format("the tensor name {} has control characters", cite(key_)));
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (inside_) return value("an object");
    inside_ = depth_ == 1 && key_ == kMap;
    if (inside_ && std::exchange(found, true)) stop(fmt::format("{} is given twice", kMap));
    ++depth_;
    return true;
  }
  bool start_array(std::size_t) {
    value("a list");
    ++depth_;
    return true;
  }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    stop(fmt::format("the index is not valid JSON at its byte {}", position));
  }

 private:
  static constexpr std::string_view kMap = "weight_map";

  [[noreturn]] void stop(const std::string& what) const {
    fail(Code::format, fmt::format("{}: {}", path_, what));
  }

  bool leave() {
    --depth_;
    inside_ = false;  // nothing nests inside weight_map
    return true;
  }

  bool value(std::string_view found_kind) const {
    if (depth_ == 0) stop(fmt::format("the index must be an object, found {}", found_kind));
    if (inside_) {
      stop(fmt::format("tensor {} must be placed in a file, found {}", cite(key_), found_kind));
    }
    if (depth_ == 1 && key_ == kMap) {
      stop(fmt::format("{} must be an object, found {}", kMap, found_kind));
    }
    return true;
  }

  const std::string& path_;
  std::string_view suffix_;
  std::string key_;  // of the top level, or of weight_map
  std::size_t depth_ = 0;
  bool inside_ = false;
};

}  // namespace

Index read_index(Disk& disk, const std::string& path, std::string_view suffix) {
  Sax sax(path, suffix);
  parse_json(read_text(disk, path), sax);
  if (sax.shards.empty()) {
    fail(Code::format,
         fmt::format("{}: the index has {} weight_map", path, sax.found ? "an empty" : "no"));
  }
  Index index;
  for (const auto& [file, names] : sax.shards) index.files.push_back(file);
  std::sort(index.files.begin(), index.files.end(), natural_less);
  for (std::uint32_t file = 0; file < index.files.size(); ++file) {
    for (std::string& name : sax.shards[index.files[file]]) {
      index.tensors.emplace_back(std::move(name), file);
    }
  }
  std::sort(index.tensors.begin(), index.tensors.end());
  const auto twin =
      std::adjacent_find(index.tensors.begin(), index.tensors.end(),
                         [](const auto& a, const auto& b) { return a.first == b.first; });
  if (twin != index.tensors.end()) {
    fail(Code::format, fmt::format("{}: tensor {} is listed twice", path, cite(twin->first)));
  }
  return index;
}

std::optional<std::string> seek_member(Disk& disk, const std::string& folder,
                                       const std::string& name) {
  if (disk.kind(folder + "/" + name) == Disk::Kind::absent) return std::nullopt;
  return member(disk, folder, name);
}

std::string member(Disk& disk, const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  if (const Disk::Kind kind = disk.kind(path); kind != Disk::Kind::file) {
    fail(Code::missing,
         fmt::format("{} is {}; fetch the model again", path,
                     kind == Disk::Kind::absent   ? "missing"
                     : kind == Disk::Kind::folder ? "a folder, not a file"
                                                  : "not a file, or a link to a missing file"));
  }
  const std::string home = disk.resolve(folder);
  const std::string real = disk.resolve(path);
  const auto below = [&](const std::string& root) {
    return real.starts_with(root.ends_with('/') ? root : root + "/");
  };
  if (below(home)) return path;
  // .../models--org--name/snapshots/revision, whose files are links into .../blobs.
  const std::size_t cut = home.rfind("/snapshots/");
  if (cut != home.npos) {
    const std::string repository = home.substr(0, cut);
    if (repository.substr(repository.rfind('/') + 1).starts_with("models--") &&
        below(repository + "/blobs")) {
      return path;
    }
  }
  fail(Code::format, fmt::format("{} is a link to {}, which is outside the model's folder; put the "
                                 "file itself there",
                                 path, real));
}

}  // namespace ingot
