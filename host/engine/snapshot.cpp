#include "engine/snapshot.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "ingot/text.hpp"
#include "ingot/version.hpp"

namespace ingot {
namespace {

// Headers of real models have up to 10 MB.
constexpr std::uint64_t kHead = std::uint64_t{100} << 20;

// One path for every spelling of it; links stay, since what they lead to is told by the identity.
std::string real(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

}  // namespace

Snapshot::Snapshot(Disk& disk, const Plan& plan) {
  std::set<std::string> paths(plan.read.begin(), plan.read.end());
  for (const Companion& companion : plan.companions) {
    if (!companion.from.empty()) paths.insert(companion.from);
  }
  std::map<std::string, std::string> heads;
  for (const Model& model : plan.models) {
    const Checkpoint& checkpoint = model.checkpoint;
    std::vector<std::uint64_t> first(checkpoint.file_count());
    for (std::uint32_t f = 0; f < checkpoint.file_count(); ++f) {
      first[f] = std::min(checkpoint.file(f).size(), kHead);
    }
    for (const Entry& entry : checkpoint.entries()) {
      first[entry.file] = std::min(first[entry.file], entry.offset);
    }
    for (std::uint32_t f = 0; f < checkpoint.file_count(); ++f) {
      const std::string& path = checkpoint.file(f).path();
      paths.insert(path);
      // From the path and not from the open file: that one stays what it was.
      if (disk.identity(path)) heads[path] = hash_part(*disk.open(path), 0, first[f]).text();
    }
  }
  for (const std::string& path : paths) {
    const std::optional<Identity> now = disk.identity(path);
    // Not the device: many file systems get another number with every mount.
    items_.push_back({real(path), !now ? "absent"
                                       : fmt::format("inode {}, {} bytes, modified {}, changed {}, "
                                                     "header {}",
                                                     now->inode, now->size, now->modified,
                                                     now->changed, heads[path])});
  }
}

std::map<std::string, std::string> Snapshot::states() const {
  std::map<std::string, std::string> states;
  for (const Item& item : items_) states[printable(item.path)] = item.state;
  return states;
}

std::string Snapshot::changed(const Snapshot& later) const {
  const auto [mine, theirs] =
      std::mismatch(items_.begin(), items_.end(), later.items_.begin(), later.items_.end());
  if (mine == items_.end() && theirs == later.items_.end()) return "";
  return mine == items_.end() ? theirs->path : mine->path;
}

std::string fingerprint(const Plan& plan, bool hashed) {
  std::string text;
  // Every part with its length, so that no two lists of parts give one text.
  const auto add = [&](std::string_view part) {
    text += fmt::format("{} ", part.size());
    text += part;
  };
  add(kReceiptFormat);
  add(version());
  add(hashed ? "hashed" : "not hashed");
  add(plan.recipe.text);
  add(describe_options(plan.options).dump());
  add(plan.architecture);
  for (const Shard& shard : plan.shards) {
    add(shard.file);
    add(shard.header);
  }
  for (const Companion& companion : plan.companions) {
    add(companion.name);
    add(real(companion.from));
    add(companion.text);
  }
  return hash_block(std::as_bytes(std::span(text.data(), text.size()))).text();
}

}  // namespace ingot
