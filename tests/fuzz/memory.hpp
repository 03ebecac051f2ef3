// Files and a disk in memory: what tests and fuzz targets give to parsers in place of the
// machine's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ingot/error.hpp"
#include "ingot/store.hpp"

namespace ingot::test {

// A read-only file over bytes that outlive it. Counts what was read.
class MemoryFile : public File {
 public:
  MemoryFile(std::string path, std::string_view bytes) : path_(std::move(path)), bytes_(bytes) {}

  const std::string& path() const noexcept override { return path_; }
  std::uint64_t size() override { return bytes_.size(); }
  std::size_t read(std::uint64_t offset, std::span<std::byte> data) override {
    if (offset >= bytes_.size() || data.empty()) return 0;
    const std::size_t count = std::min(data.size(), bytes_.size() - offset);
    std::memcpy(data.data(), bytes_.data() + offset, count);
    bytes_read_ += count;
    return count;
  }
  std::size_t write(std::uint64_t, std::span<const std::byte>) override { refuse(); }
  void reserve(std::uint64_t) override { refuse(); }
  void sync() override { refuse(); }

  [[nodiscard]] std::uint64_t bytes_read() const { return bytes_read_; }

 private:
  [[noreturn]] void refuse() const { fail(Code::io, path_ + " is read-only"); }

  std::string path_;
  std::string_view bytes_;
  std::atomic<std::uint64_t> bytes_read_ = 0;
};

// A read-only disk: paths to bytes, and the folders that those paths imply.
class MemoryDisk : public Disk {
 public:
  explicit MemoryDisk(std::map<std::string, std::string> files) : files_(std::move(files)) {}

  std::unique_ptr<File> open(const std::string& path) override {
    const auto at = files_.find(path);
    if (at == files_.end()) fail(Code::missing, "cannot open " + path + ": no such file");
    return std::make_unique<MemoryFile>(path, at->second);
  }
  std::unique_ptr<File> create(const std::string& path) override { refuse(path); }
  std::unique_ptr<File> update(const std::string& path) override { refuse(path); }

  Kind kind(const std::string& path) override {
    if (files_.contains(path)) return Kind::file;
    return list(path).empty() ? Kind::absent : Kind::folder;
  }
  std::vector<std::string> list(const std::string& folder) override {
    std::set<std::string> names;
    for (const auto& [path, bytes] : files_) {
      if (!path.starts_with(folder + "/")) continue;
      const std::string rest = path.substr(folder.size() + 1);
      names.insert(rest.substr(0, rest.find('/')));
    }
    return {names.begin(), names.end()};
  }
  void make_folder(const std::string& path) override { refuse(path); }
  bool rename(const std::string& from, const std::string&) override { refuse(from); }
  bool rename_new(const std::string& from, const std::string&) override { refuse(from); }
  bool exchange(const std::string& a, const std::string&) override { refuse(a); }
  void remove(const std::string& path) override { refuse(path); }
  void sync_folder(const std::string& path) override { refuse(path); }
  std::optional<Identity> identity(const std::string& path) override {
    const auto at = files_.find(path);
    if (at == files_.end()) return std::nullopt;
    return Identity{0, 0, at->second.size(), 0, 0};
  }
  std::unique_ptr<Lock> lock(const std::string& path, const std::string&, std::string&) override {
    refuse(path);
  }
  std::uint64_t free_bytes(const std::string&) override { return 0; }

 private:
  [[noreturn]] static void refuse(const std::string& path) {
    fail(Code::io, path + " is on a read-only disk");
  }

  std::map<std::string, std::string> files_;
};

}  // namespace ingot::test
