#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/store.hpp"
#include "store/header.hpp"
#include "store/index.hpp"
#include "store/pickle.hpp"

namespace ingot {

struct Checkpoint::Body {
  std::string path;
  std::string shown;
  std::vector<std::unique_ptr<File>> files;
  std::vector<Entry> entries;
  std::string config;
  bool pickled = false;
};

namespace {

constexpr std::string_view kIndex = ".index.json";
constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::string_view kPickle = ".bin";

// In the order in which they are looked for.
constexpr std::array<std::string_view, 4> kNames{
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
    "pytorch_model.bin"};

// What a folder without weights has that looks like some, to say so.
std::string lookalikes(Disk& disk, const std::string& folder) {
  constexpr std::array<std::string_view, 8> kSuffixes{
      ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"};
  std::string found;
  std::size_t count = 0;
  for (const std::string& name : disk.list(folder)) {
    const bool like = std::any_of(kSuffixes.begin(), kSuffixes.end(),
                                  [&](std::string_view suffix) { return name.ends_with(suffix); });
    if (like && ++count <= 3) found += (count == 1 ? "" : ", ") + cite(name);
  }
  if (count > 3) found += fmt::format(" and {} more", count - 3);
  return count == 0 ? "nothing like it" : found;
}

std::string find_weights(Disk& disk, const std::string& folder) {
  const auto there = [&](std::string_view name) {
    return disk.kind(fmt::format("{}/{}", folder, name)) != Disk::Kind::absent;
  };
  for (const std::string_view name : kNames) {
    if (!there(name)) continue;
    // Two sets of weights, of which transformers reads the single file.
    const std::string_view single = name.substr(0, name.size() - kIndex.size());
    if (name.ends_with(kIndex) && there(single)) {
      fail(Code::format,
           fmt::format("{} has both {} and {}, which may be different weights (transformers reads "
                       "{}): remove one, or name the file to read as the model, as in {}/{}",
                       folder, name, single, single, folder, single));
    }
    return std::string(name);
  }
  fail(Code::missing, fmt::format("{} has no weights: none of {} is there, found {}", folder,
                                  fmt::join(kNames, ", "), lookalikes(disk, folder)));
}

std::vector<Entry> read_entries(File& file, std::uint32_t index, bool pickled) {
  return pickled ? read_pickle(file, index) : read_header(file, index).entries;
}

// Both lists are sorted by name, without twins, and must say the same.
void check_index(const std::string& path, const Index& index, const std::vector<Entry>& entries) {
  const auto stop = [&](const std::string& name, const std::string& what) {
    fail(Code::format, fmt::format("{}: tensor {} is {}", path, cite(name), what));
  };
  auto entry = entries.begin();
  for (const auto& [name, file] : index.tensors) {
    if (entry == entries.end() || name < entry->info.name) {
      stop(name, fmt::format("placed in {} but is in no shard", index.files[file]));
    }
    if (entry->info.name < name) break;
    if (entry->file != file) {
      stop(name,
           fmt::format("placed in {} but is in {}", index.files[file], index.files[entry->file]));
    }
    ++entry;
  }
  if (entry != entries.end()) {
    stop(entry->info.name, fmt::format("in {} but not in the index", index.files[entry->file]));
  }
}

// What the names of one model's shards share: model-00002-of-00003.safetensors without its 00002.
// Empty for other names.
std::string series(std::string_view name) {
  const std::size_t of = name.rfind("-of-");
  if (of == name.npos || of == 0) return "";
  const std::size_t dash = name.find_last_not_of("0123456789", of - 1);
  if (dash == name.npos || dash + 1 == of || name[dash] != '-') return "";
  return fmt::format("{}{}", name.substr(0, dash), name.substr(of));
}

// A shard beside the listed ones that the index leaves out would be a part of the model lost in
// silence.
void check_shards(Disk& disk, const std::string& folder, const std::string& path,
                  const std::vector<std::string>& listed) {
  std::set<std::string> all;
  for (const std::string& file : listed) all.insert(series(file));
  all.erase("");
  for (const std::string& name : disk.list(folder)) {
    if (all.contains(series(name)) &&
        std::find(listed.begin(), listed.end(), name) == listed.end()) {
      fail(Code::format,
           fmt::format("{}: shard {} lies beside it but is not in the index; fetch the "
                       "index again, or remove that file if it is no part of the model",
                       path, cite(name)));
    }
  }
}

}  // namespace

Checkpoint Checkpoint::open(Disk& disk, const std::string& path, std::string shown) {
  auto body = std::make_unique<Body>();
  body->shown = std::move(shown);
  const Disk::Kind kind = disk.kind(path);
  std::string weights;  // the file of weights or the index
  if (kind == Disk::Kind::folder) {
    body->path = path;
    while (body->path.size() > 1 && body->path.ends_with('/')) body->path.pop_back();
    weights = member(disk, body->path, find_weights(disk, body->path));
  } else if (kind == Disk::Kind::file) {
    const std::size_t slash = path.rfind('/');
    body->path = slash == path.npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    weights = path;
  } else {
    fail(Code::missing, fmt::format("{}: there is no file or folder {}", body->shown, path));
  }

  const bool sharded = weights.ends_with(kIndex);
  std::string_view stem = weights;
  if (sharded) stem.remove_suffix(kIndex.size());
  body->pickled = stem.ends_with(kPickle);
  if (!body->pickled && !stem.ends_with(kSafetensors)) {
    fail(Code::format, fmt::format("{} is neither {} nor {}", weights, kSafetensors, kPickle));
  }

  Index index;
  std::vector<std::string> paths{weights};
  if (sharded) {
    index = read_index(disk, weights, body->pickled ? kPickle : kSafetensors);
    check_shards(disk, body->path, weights, index.files);
    paths.clear();
    for (const std::string& file : index.files) {
      try {
        paths.push_back(member(disk, body->path, file));
      } catch (Error& error) {
        error.add("looking for a shard that " + weights + " lists");
        throw;
      }
    }
  }
  for (std::uint32_t i = 0; i < paths.size(); ++i) {
    body->files.push_back(disk.open(paths[i]));
    std::vector<Entry> entries = read_entries(*body->files.back(), i, body->pickled);
    body->entries.insert(body->entries.end(), std::make_move_iterator(entries.begin()),
                         std::make_move_iterator(entries.end()));
  }
  if (sharded) {
    std::sort(body->entries.begin(), body->entries.end(),
              [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
    const auto twin = std::adjacent_find(
        body->entries.begin(), body->entries.end(),
        [](const Entry& a, const Entry& b) { return a.info.name == b.info.name; });
    if (twin != body->entries.end()) {
      fail(Code::format,
           fmt::format("{}: tensor {} is both in {} and in {}", weights, cite(twin->info.name),
                       index.files[twin->file], index.files[std::next(twin)->file]));
    }
    check_index(weights, index, body->entries);
  }
  if (const auto config = seek_member(disk, body->path, "config.json")) {
    body->config = read_text(disk, *config);
    // No text is what a model without the file has.
    if (body->config.empty()) fail(Code::format, fmt::format("{} is empty", *config));
  }
  return Checkpoint(std::move(body));
}

Checkpoint::Checkpoint(std::unique_ptr<Body> body) : body_(std::move(body)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::string& Checkpoint::path() const noexcept { return body_->path; }
const std::string& Checkpoint::shown() const noexcept { return body_->shown; }
const std::vector<Entry>& Checkpoint::entries() const noexcept { return body_->entries; }
File& Checkpoint::file(std::uint32_t index) const { return *body_->files.at(index); }
const std::string& Checkpoint::config() const noexcept { return body_->config; }
bool Checkpoint::pickled() const noexcept { return body_->pickled; }
std::uint32_t Checkpoint::file_count() const noexcept {
  return static_cast<std::uint32_t>(body_->files.size());
}

const Entry* Checkpoint::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(
      body_->entries.begin(), body_->entries.end(), name,
      [](const Entry& entry, std::string_view key) { return entry.info.name < key; });
  return at != body_->entries.end() && at->info.name == name ? &*at : nullptr;
}

}  // namespace ingot
