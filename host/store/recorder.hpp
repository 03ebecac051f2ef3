// A disk that notes what is read from it.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// Passes every call on to `disk`, which must outlive it, and keeps the paths that were opened to
// read.
class Recorder final : public Disk {
 public:
  explicit Recorder(Disk& disk) : disk_(disk) {}

  [[nodiscard]] std::vector<std::string> opened() const { return {opened_.begin(), opened_.end()}; }

  [[nodiscard]] std::unique_ptr<File> open(const std::string& path) override {
    {
      const std::lock_guard lock(mutex_);
      opened_.insert(path);
    }
    return disk_.open(path);
  }
  [[nodiscard]] std::unique_ptr<File> create(const std::string& path) override {
    return disk_.create(path);
  }
  [[nodiscard]] std::unique_ptr<File> update(const std::string& path) override {
    return disk_.update(path);
  }
  [[nodiscard]] Kind kind(const std::string& path) override { return disk_.kind(path); }
  [[nodiscard]] std::string resolve(const std::string& path) override {
    return disk_.resolve(path);
  }
  [[nodiscard]] std::vector<std::string> list(const std::string& folder) override {
    return disk_.list(folder);
  }
  void make_folder(const std::string& path) override { disk_.make_folder(path); }
  [[nodiscard]] bool rename(const std::string& from, const std::string& to) override {
    return disk_.rename(from, to);
  }
  [[nodiscard]] bool rename_new(const std::string& from, const std::string& to) override {
    return disk_.rename_new(from, to);
  }
  [[nodiscard]] bool exchange(const std::string& a, const std::string& b) override {
    return disk_.exchange(a, b);
  }
  void remove(const std::string& path) override { disk_.remove(path); }
  void sync_folder(const std::string& path) override { disk_.sync_folder(path); }
  [[nodiscard]] std::optional<Identity> identity(const std::string& path) override {
    return disk_.identity(path);
  }
  [[nodiscard]] bool mount_point(const std::string& path) override {
    return disk_.mount_point(path);
  }
  [[nodiscard]] std::unique_ptr<Lock> lock(const std::string& path, const std::string& text,
                                           std::string& holder) override {
    return disk_.lock(path, text, holder);
  }
  [[nodiscard]] bool writable(const std::string& folder) override { return disk_.writable(folder); }
  [[nodiscard]] std::uint64_t free_bytes(const std::string& path) override {
    return disk_.free_bytes(path);
  }

 private:
  Disk& disk_;
  std::mutex mutex_;
  std::set<std::string> opened_;
};

}  // namespace ingot
