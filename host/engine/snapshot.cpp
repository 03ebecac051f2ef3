#include "engine/snapshot.hpp"

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "engine/receipt.hpp"
#include "ingot/version.hpp"

namespace ingot {
namespace {

// Headers of real models have up to 10 MB.
constexpr std::uint64_t kHead = std::uint64_t{100} << 20;
constexpr std::uint64_t kBlock = std::uint64_t{1} << 20;

// The hash of the file's bytes before its first tensor.
std::string head_of(File& file, std::uint64_t bytes) {
  std::vector<Digest> digests;
  std::vector<std::byte> block(std::min(bytes, kBlock));
  for (std::uint64_t at = 0; at < bytes; at += kBlock) {
    const std::span piece(block.data(), std::min(kBlock, bytes - at));
    read_exact(file, at, piece);
    digests.push_back(hash_block(piece));
  }
  return hash_digests(digests).text();
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
      if (disk.identity(path)) heads[path] = head_of(*disk.open(path), first[f]);
    }
  }
  for (const std::string& path : paths) {
    const std::optional<Identity> now = disk.identity(path);
    items_.push_back(
        {path, !now ? "absent"
                    : fmt::format("{} {} {} {} {} {}", now->device, now->inode, now->size,
                                  now->modified, now->changed, heads[path])});
  }
}

std::string Snapshot::text() const {
  std::string text;
  for (const Item& item : items_) text += fmt::format("{}\t{}\n", item.path, item.state);
  return text;
}

std::string Snapshot::changed(const Snapshot& later) const {
  const auto [mine, theirs] =
      std::mismatch(items_.begin(), items_.end(), later.items_.begin(), later.items_.end());
  if (mine == items_.end() && theirs == later.items_.end()) return "";
  return mine == items_.end() ? theirs->path : mine->path;
}

std::string fingerprint(const Plan& plan, bool hashed, const Snapshot& inputs) {
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
    add(companion.from);
    add(companion.text);
  }
  add(inputs.text());
  return hash_block(std::as_bytes(std::span(text.data(), text.size()))).text();
}

}  // namespace ingot
