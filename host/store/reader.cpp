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
  std::vector<std::string> warnings;
  bool pickled = false;
  bool chosen = false;
};

namespace {

constexpr std::string_view kIndex = ".index.json";
constexpr std::string_view kSafetensors = ".safetensors";
constexpr std::string_view kPickle = ".bin";

// Endings of files that PyTorch's own `torch.save` wrote.
constexpr std::array<std::string_view, 3> kPickles{kPickle, ".pt", ".pth"};

// In the order in which they are looked for.
constexpr std::array<std::string_view, 4> kNames{
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json",
    "pytorch_model.bin"};

// For the error: files in a folder without weights that look like weights.
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
  return count == 0 ? "no weight files" : found;
}

bool there(Disk& disk, const std::string& folder, std::string_view name) {
  return disk.kind(fmt::format("{}/{}", folder, name)) != Disk::Kind::absent;
}

// The name in the folder of the weights or of their index.
std::string find_weights(Disk& disk, const std::string& folder) {
  for (const std::string_view name : kNames) {
    if (there(disk, folder, name)) return std::string(name);
  }
  fail(Code::missing, fmt::format("{} has no weights: none of {} is there, found {}", folder,
                                  fmt::join(kNames, ", "), lookalikes(disk, folder)));
}

// The name in the folder of what counts: `index`, or the single file of its name that lies beside
// it. transformers reads the single file.
std::string choose(Disk& disk, const std::string& folder, const std::string& index, Prefer prefer,
                   std::vector<std::string>& warnings, bool& chosen) {
  const std::string single = index.substr(0, index.size() - kIndex.size());
  if (!there(disk, folder, single)) return index;
  const std::string_view suffix = single.ends_with(kPickle) ? kPickle : kSafetensors;
  if (prefer == Prefer::neither) {
    const Index read = read_index(disk, member(disk, folder, index), suffix);
    if (read.files.size() == 1 && read.files.front() == single) return index;
    for (const std::string& file : read.files) {
      if (there(disk, folder, file)) continue;
      warnings.push_back(
          fmt::format("{}/{} lists {}, which is not there: {} was read instead of the index, as "
                      "transformers does",
                      folder, index, cite(file), single));
      return single;
    }
    fail(Code::format,
         fmt::format(
             "{} has both {} and {}, which may be different weights (transformers reads "
             "{}): choose with --prefer index or --prefer file, or name one of the two as the "
             "model: {}/{}",
             folder, index, single, single, folder, single));
  }
  chosen = true;
  const bool file = prefer == Prefer::file;
  warnings.push_back(fmt::format("{} has both {} and {}: {} was read, as --prefer {} asks", folder,
                                 index, single, file ? single : index, file ? "file" : "index"));
  return file ? single : index;
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

// Tensors of shards that the index places in another shard were left behind by an earlier save:
// the index decides, and the same name elsewhere is passed over.
void drop_stale(const std::string& path, const Index& index, std::vector<Entry>& entries,
                std::vector<std::string>& warnings) {
  const auto before = [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; };
  std::size_t stale = 0;
  std::string first;
  std::vector<Entry> kept;
  kept.reserve(entries.size());
  for (auto begin = entries.begin(); begin != entries.end();) {
    const auto end = std::upper_bound(begin, entries.end(), *begin, before);
    const auto listed = std::lower_bound(
        index.tensors.begin(), index.tensors.end(), begin->info.name,
        [](const auto& tensor, const std::string& name) { return tensor.first < name; });
    const bool known = listed != index.tensors.end() && listed->first == begin->info.name;
    const auto right = std::find_if(
        begin, end, [&](const Entry& entry) { return known && entry.file == listed->second; });
    if (end - begin > 1 && right == end) {
      fail(Code::format,
           fmt::format("{}: tensor {} is both in {} and in {}, and the index does not say which",
                       path, cite(begin->info.name), index.files[begin->file],
                       index.files[std::next(begin)->file]));
    }
    for (auto entry = begin; entry != end; ++entry) {
      if (end - begin == 1 || entry == right) {
        kept.push_back(std::move(*entry));
      } else if (stale++ == 0) {
        first = fmt::format("{} in {}, which the index places in {}", cite(listed->first),
                            index.files[entry->file], index.files[listed->second]);
      }
    }
    begin = end;
  }
  entries = std::move(kept);
  if (stale == 0) return;
  warnings.push_back(fmt::format("{}: {} stale tensor{} skipped: {}{}", path, stale,
                                 stale == 1 ? " was" : "s were", first,
                                 stale == 1 ? "" : ", and others"));
}

// A shard beside the listed ones that the index leaves out would be a part of the model lost in
// silence.
void check_shards(Disk& disk, const std::string& folder, const std::string& path,
                  const std::vector<std::string>& listed) {
  std::set<std::string> all, below;
  for (const std::string& file : listed) {
    all.insert(series(file));
    const std::size_t slash = file.rfind('/');
    below.insert(slash == file.npos ? "" : file.substr(0, slash + 1));
  }
  all.erase("");
  std::vector<std::string> names;
  for (const std::string& part : below) {
    for (const std::string& name : disk.list(folder + "/" + part)) names.push_back(part + name);
  }
  for (const std::string& name : names) {
    if (all.contains(series(name)) &&
        std::find(listed.begin(), listed.end(), name) == listed.end()) {
      fail(Code::format,
           fmt::format("{}: shard {} is in the same folder but not in the index; fetch the index "
                       "again, or remove that file if it is not part of the model",
                       path, cite(name)));
    }
  }
}

}  // namespace

Checkpoint Checkpoint::open(Disk& disk, const std::string& path, std::string shown, Prefer prefer) {
  auto body = std::make_unique<Body>();
  body->shown = std::move(shown);
  const Disk::Kind kind = disk.kind(path);
  std::string weights;  // the file of weights or the index
  if (kind == Disk::Kind::folder) {
    body->path = path;
    while (body->path.size() > 1 && body->path.ends_with('/')) body->path.pop_back();
    std::string found = find_weights(disk, body->path);
    if (found.ends_with(kIndex)) {
      found = choose(disk, body->path, found, prefer, body->warnings, body->chosen);
    }
    weights = member(disk, body->path, found);
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
  const auto* const pickle =
      std::find_if(kPickles.begin(), kPickles.end(),
                   [&](std::string_view ending) { return stem.ends_with(ending); });
  body->pickled = pickle != kPickles.end();
  if (!body->pickled && !stem.ends_with(kSafetensors)) {
    fail(Code::format,
         fmt::format("{} is not a weight file that ingot reads; the names of these end with {}, {}",
                     weights, kSafetensors, fmt::join(kPickles, ", ")));
  }

  Index index;
  std::vector<std::string> paths{weights};
  if (sharded) {
    index = read_index(disk, weights, body->pickled ? *pickle : kSafetensors);
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
    drop_stale(weights, index, body->entries, body->warnings);
    check_index(weights, index, body->entries);
  }
  if (const auto config = seek_member(disk, body->path, "config.json")) {
    body->config = read_text(disk, *config);
    // A model without the file has an empty text.
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
void Checkpoint::arrange(std::vector<Entry> entries) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.info.name < b.info.name; });
  body_->entries = std::move(entries);
}
File& Checkpoint::file(std::uint32_t index) const { return *body_->files.at(index); }
const std::string& Checkpoint::config() const noexcept { return body_->config; }
bool Checkpoint::pickled() const noexcept { return body_->pickled; }
bool Checkpoint::chosen() const noexcept { return body_->chosen; }
const std::vector<std::string>& Checkpoint::warnings() const noexcept { return body_->warnings; }
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
