// A disk that counts what is read of tensors, or forbids it.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "fault/disk.hpp"

namespace ingot::test {

struct Scripted {
  Script script;
};

// A disk on which the tensors of .safetensors files are counted, or cannot be read at all.
class Watched final : private Scripted, public FaultyDisk {
 public:
  explicit Watched(bool sealed) : FaultyDisk(script), sealed_(sealed) {}

  // Bytes of tensors that were read, by file.
  [[nodiscard]] std::map<std::string, std::uint64_t> read() const {
    std::map<std::string, std::uint64_t> all;
    for (const auto& [path, bytes] : counts_) all[path] = *bytes;
    return all;
  }

  std::unique_ptr<File> open(const std::string& path) override {
    auto file = FaultyDisk::open(path);
    if (!path.ends_with(".safetensors")) return file;
    std::uint64_t header = 0;
    read_exact(*file, 0, std::as_writable_bytes(std::span(&header, 1)));
    const std::lock_guard lock(mutex_);
    auto& count = counts_[path];
    if (!count) count = std::make_shared<std::atomic<std::uint64_t>>(0);
    return std::make_unique<Counted>(std::move(file), header + 8, count, sealed_);
  }

 private:
  class Counted final : public File {
   public:
    Counted(std::unique_ptr<File> file, std::uint64_t data,
            std::shared_ptr<std::atomic<std::uint64_t>> count, bool sealed)
        : file_(std::move(file)), data_(data), count_(std::move(count)), sealed_(sealed) {}
    const std::string& path() const noexcept override { return file_->path(); }
    std::uint64_t size() override { return file_->size(); }
    std::size_t read(std::uint64_t offset, std::span<std::byte> bytes) override {
      if (offset + bytes.size() > data_) {
        if (sealed_) fail(Code::io, path() + ": a tensor was read");
        *count_ += bytes.size();
      }
      return file_->read(offset, bytes);
    }
    std::size_t write(std::uint64_t offset, std::span<const std::byte> bytes) override {
      return file_->write(offset, bytes);
    }
    void reserve(std::uint64_t bytes) override { file_->reserve(bytes); }
    void sync() override { file_->sync(); }

   private:
    std::unique_ptr<File> file_;
    const std::uint64_t data_;
    std::shared_ptr<std::atomic<std::uint64_t>> count_;  // shared by all that open the file
    const bool sealed_;
  };

  const bool sealed_;
  std::mutex mutex_;  // guards counts_
  std::map<std::string, std::shared_ptr<std::atomic<std::uint64_t>>> counts_;
};

}  // namespace ingot::test
