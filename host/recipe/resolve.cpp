#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/plan.hpp"

namespace ingot {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string under(const std::string& folder, const std::string& path) {
  if (folder.empty() || path.starts_with('/')) return path;
  return folder.ends_with('/') ? folder + path : folder + "/" + path;
}

bool exists(Disk& disk, const std::string& path) {
  const Disk::Kind kind = disk.kind(path);
  return kind == Disk::Kind::file || kind == Disk::Kind::folder;
}

// One component of a Hub name or a revision: what huggingface_hub allows, so nothing that could
// leave the cache folder.
bool component(std::string_view part) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.' || c == '+' || c == '=';
  };
  return !part.empty() && part.size() <= 200 && part.front() != '.' && part.back() != '.' &&
         part.find("..") == std::string_view::npos &&
         std::all_of(part.begin(), part.end(), allowed);
}

// Components between slashes, at most `most`.
bool components(std::string_view text, int most) {
  for (int n = 1;; ++n) {
    const std::size_t slash = text.find('/');
    if (n > most || !component(text.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    text.remove_prefix(slash + 1);
  }
}

bool hexadecimal(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// The commit a revision stands for in a repository's cache folder, or empty: a branch or tag
// through refs/, else a commit, whole or abbreviated, among the snapshots.
std::string commit_of(Disk& disk, const std::string& repository, const std::string& revision) {
  const std::string ref = repository + "/refs/" + revision;
  if (disk.kind(ref) == Disk::Kind::file) {
    std::string commit = read_text(disk, ref, 1000);
    commit.erase(
        std::find_if(commit.begin(), commit.end(), [](char c) { return c == '\n' || c == '\r'; }),
        commit.end());
    if (commit.size() < 7 || !hexadecimal(commit)) {
      fail(Code::format,
           fmt::format("{} does not hold a commit; remove the file and download the model "
                       "again",
                       ref));
    }
    return commit;
  }
  constexpr std::size_t kShortest = 4;
  if (revision.size() < kShortest || !hexadecimal(revision)) return "";
  const std::string snapshots = repository + "/snapshots";
  if (disk.kind(snapshots) != Disk::Kind::folder) return "";
  std::string found;
  for (const std::string& name : disk.list(snapshots)) {
    if (!name.starts_with(revision)) continue;
    if (!found.empty()) {
      fail(Code::usage, fmt::format("revision '{}' is ambiguous in {}: {} and {}; give more digits",
                                    revision, snapshots, found, name));
    }
    found = name;
  }
  return found;
}

// The folder that relative paths start from, in full.
std::string start_of(const std::string& root) {
  std::error_code error;
  const std::filesystem::path here = std::filesystem::current_path(error);
  if (error) return root.empty() ? "." : root;
  std::string start = (here / root).lexically_normal().string();
  if (start.size() > 1 && start.ends_with('/')) start.pop_back();
  return start;
}

// The path with each component that is not there replaced by the nearest name beside it; empty if
// one has none.
std::string mended(Disk& disk, const std::string& root, const std::string& path) {
  constexpr std::size_t kMostNames = 10'000;
  std::string result;
  std::string folder = path.starts_with('/') ? "/" : root.empty() ? "." : root;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t slash = std::min(path.find('/', at), path.size());
    std::string part = path.substr(at, slash - at);
    if (!part.empty() && disk.kind(under(folder, part)) == Disk::Kind::absent) {
      if (disk.kind(folder) != Disk::Kind::folder) return "";
      const std::vector<std::string> names = disk.list(folder);
      part = names.size() > kMostNames ? "" : nearest(part, names);
      if (part.empty()) return "";
    }
    if (!part.empty()) folder = under(folder, part);
    result += part;
    if (slash < path.size()) result += '/';
    at = slash + 1;
  }
  return result == path ? "" : result;
}

}  // namespace

std::string path_advice(Disk& disk, const std::string& root, const std::string& path) {
  const std::string home = variable("HOME");
  if (path.starts_with("~/") && !home.empty()) {
    return fmt::format("; only shells know '~': write '{}'", under(home, path.substr(2)));
  }
  try {
    const std::string near = mended(disk, root, path);
    return near.empty() ? "" : fmt::format("; did you mean '{}'?", near);
  } catch (const Error&) {  // a folder that cannot be read has no names to offer
    return "";
  }
}

std::string checkpoint_advice(Disk& disk, const std::string& folder) {
  constexpr std::string_view kPrefix = "checkpoint-";
  std::string last;
  if (disk.kind(folder) != Disk::Kind::folder) return "";
  for (const std::string& name : disk.list(folder)) {
    if (!name.starts_with(kPrefix) || name.size() > 30 ||
        name.find_first_not_of("0123456789", kPrefix.size()) != std::string::npos ||
        disk.kind(fmt::format("{}/{}", folder, name)) != Disk::Kind::folder) {
      continue;
    }
    if (std::pair(name.size(), name) > std::pair(last.size(), last)) last = name;
  }
  if (last.empty()) return "";
  return fmt::format("; {} holds checkpoints of a training run: name one, as in {}/{}", folder,
                     folder, last);
}

std::string hub_cache() {
  const std::string home = variable("HOME");
  const auto expand = [&](const std::string& path) {
    return path.starts_with("~/") ? under(home, path.substr(2)) : path;
  };
  if (const std::string cache = variable("HF_HUB_CACHE"); !cache.empty()) return expand(cache);
  if (const std::string hub = variable("HF_HOME"); !hub.empty()) return under(expand(hub), "hub");
  const std::string cache = variable("XDG_CACHE_HOME");
  return under(cache.empty() ? under(home, ".cache") : expand(cache), "huggingface/hub");
}

ModelRef settle(Disk& disk, ModelRef ref, const std::string& root) {
  if (!ref.mapped && (!ref.revision.empty() || !ref.adapters.empty() || ref.path != ref.text) &&
      exists(disk, under(root, ref.text))) {
    ref.path = ref.text;
    ref.revision.clear();
    ref.adapters.clear();
  }
  return ref;
}

std::string resolve(Disk& disk, const ModelRef& given, const std::string& root) {
  const ModelRef ref = settle(disk, given, root);
  if (ref.path.empty())
    fail(Code::usage, fmt::format("the model '{}' has no path or name", ref.text));
  const std::string local = under(root, ref.path);
  if (exists(disk, local)) {
    if (!ref.revision.empty()) {
      fail(Code::usage,
           fmt::format("'{}' names a revision of {}, and what is on disk has none; remove "
                       "'@{}'",
                       ref.text, local, ref.revision));
    }
    return local;
  }
  // A Hub name has no folder of this machine in front and nothing like it beside it.
  const std::string hint = path_advice(disk, root, ref.path);
  const std::size_t front = ref.path.find('/');
  const bool hub = components(ref.path, 2) &&
                   (front == std::string::npos ||
                    disk.kind(under(root, ref.path.substr(0, front))) == Disk::Kind::absent);
  const auto absent = [&] {
    fail(Code::missing,
         fmt::format("there is no folder or file {} for the model '{}'{}{}", local, ref.text,
                     ref.path.starts_with('/') || ref.path.starts_with('~')
                         ? ""
                         : fmt::format("; relative paths start in {} (--root names another folder)",
                                       start_of(root)),
                     hint));
  };
  if (!components(ref.path, 2)) absent();
  const std::string revision = ref.revision.empty() ? "main" : ref.revision;
  if (!components(revision, 8)) {
    fail(Code::usage,
         fmt::format("'{}' is not a branch, tag or commit in the model '{}'", revision, ref.text));
  }
  const std::string cache = hub_cache();
  std::string name = "models--" + ref.path;
  if (const std::size_t slash = name.find('/'); slash != std::string::npos)
    name.replace(slash, 1, "--");
  const std::string repository = under(cache, name);
  if (const std::string commit = commit_of(disk, repository, revision); !commit.empty()) {
    const std::string snapshot = repository + "/snapshots/" + commit;
    if (disk.kind(snapshot) == Disk::Kind::folder) return snapshot;
  }
  if (!hub || !hint.empty()) absent();
  fail(Code::missing,
       fmt::format("the model '{}' is not a folder or file in {} (--root names another folder), "
                   "nor in the Hub cache {} at revision '{}'; download it with: hf download {}{}",
                   ref.text, start_of(root), cache, revision, ref.path,
                   ref.revision.empty() ? "" : " --revision " + ref.revision));
}

}  // namespace ingot
