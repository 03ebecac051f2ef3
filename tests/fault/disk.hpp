// A disk that fails on demand: the n-th operation errs, comes up short, or finds the disk full.
// Syncs are counted but not made: what a test's files survive is the process, not the power.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "ingot/error.hpp"
#include "ingot/store.hpp"

namespace ingot::test {

// What happens at the chosen operation, and from then on.
enum class Fault {
  none,
  error,     // this operation fails; the next ones work
  dead,      // this and every later operation fails: the disk is gone
  shorten,   // transfers move one byte; nothing fails
  full,      // writes and reservations fail from here on
  unsynced,  // this sync and all later ones fail
};

// Counts operations of all files and of itself; shared by the files it opened, which it outlives.
struct Script {
  Fault fault = Fault::none;
  std::int64_t at = -1;  // number of the operation, from 0; shorten: every operation from it on
  std::atomic<std::int64_t> count = 0;

  enum class Sort { read, write, sync, other };
  // Throws if this operation is to fail; true if a transfer is to be short.
  bool step(Sort sort, const std::string& path) {
    const std::int64_t n = count++;
    if (at < 0 || n < at) return false;
    switch (fault) {
      case Fault::none:
        return false;
      case Fault::error:
        if (n == at) fail(Code::io, path + ": injected fault");
        return false;
      case Fault::dead:
        fail(Code::io, path + ": injected fault");
      case Fault::shorten:
        return true;
      case Fault::full:
        if (sort == Sort::write) fail(Code::io, path + ": injected: no space left on device");
        return false;
      case Fault::unsynced:
        if (sort == Sort::sync) fail(Code::io, path + ": injected: sync failed");
        return false;
    }
    return false;
  }
};

class FaultyFile : public File {
 public:
  FaultyFile(std::unique_ptr<File> file, Script& script)
      : file_(std::move(file)), script_(script) {}

  const std::string& path() const noexcept override { return file_->path(); }
  std::uint64_t size() override { return file_->size(); }
  std::size_t read(std::uint64_t offset, std::span<std::byte> data) override {
    const bool brief = script_.step(Script::Sort::read, path());
    return file_->read(offset, brief && data.size() > 1 ? data.first(data.size() / 2) : data);
  }
  std::size_t write(std::uint64_t offset, std::span<const std::byte> data) override {
    const bool brief = script_.step(Script::Sort::write, path());
    return file_->write(offset, brief && data.size() > 1 ? data.first(data.size() / 2) : data);
  }
  void reserve(std::uint64_t bytes) override {
    script_.step(Script::Sort::write, path());
    file_->reserve(bytes);
  }
  void sync() override { script_.step(Script::Sort::sync, path()); }

 private:
  std::unique_ptr<File> file_;
  Script& script_;
};

class FaultyDisk : public Disk {
 public:
  explicit FaultyDisk(Script& script) : disk_(system_disk()), script_(script) {}

  std::unique_ptr<File> open(const std::string& path) override {
    script_.step(Script::Sort::other, path);
    return std::make_unique<FaultyFile>(disk_->open(path), script_);
  }
  std::unique_ptr<File> create(const std::string& path) override {
    script_.step(Script::Sort::write, path);
    return std::make_unique<FaultyFile>(disk_->create(path), script_);
  }
  std::unique_ptr<File> update(const std::string& path) override {
    script_.step(Script::Sort::other, path);
    return std::make_unique<FaultyFile>(disk_->update(path), script_);
  }
  Kind kind(const std::string& path) override { return disk_->kind(path); }
  std::vector<std::string> list(const std::string& folder) override {
    script_.step(Script::Sort::other, folder);
    return disk_->list(folder);
  }
  void make_folder(const std::string& path) override {
    script_.step(Script::Sort::write, path);
    disk_->make_folder(path);
  }
  bool rename(const std::string& from, const std::string& to) override {
    script_.step(Script::Sort::other, from);
    return disk_->rename(from, to);
  }
  bool rename_new(const std::string& from, const std::string& to) override {
    script_.step(Script::Sort::other, from);
    return disk_->rename_new(from, to);
  }
  bool exchange(const std::string& a, const std::string& b) override {
    script_.step(Script::Sort::other, a);
    return disk_->exchange(a, b);
  }
  std::optional<Identity> identity(const std::string& path) override {
    return disk_->identity(path);
  }
  std::unique_ptr<Lock> lock(const std::string& path, const std::string& text,
                             std::string& holder) override {
    script_.step(Script::Sort::write, path);
    return disk_->lock(path, text, holder);
  }
  void remove(const std::string& path) override {
    script_.step(Script::Sort::other, path);
    disk_->remove(path);
  }
  void sync_folder(const std::string& path) override { script_.step(Script::Sort::sync, path); }
  std::uint64_t free_bytes(const std::string& path) override { return disk_->free_bytes(path); }

 private:
  std::unique_ptr<Disk> disk_;
  Script& script_;
};

}  // namespace ingot::test
