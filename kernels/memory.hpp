// Owners of pinned and device memory, and the arena that divides a block of either.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"

namespace ingot::gpu {

// Every part of an arena begins at a multiple of this.
inline constexpr std::uint64_t kAlign = 256;

[[nodiscard]] constexpr std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Throws Error{memory} if an allocation failed, with the bytes that were requested and the bytes
// that are free.
inline void check_memory(cudaError_t error, const char* kind, std::uint64_t bytes,
                         const char* remedy) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  if (error != cudaErrorMemoryAllocation) check(error, "allocating memory");
  std::size_t free = 0, total = 0;
  forgive(cudaMemGetInfo(&free, &total));
  throw Error(Code::memory, "cannot allocate " + std::to_string(bytes) + " bytes of " + kind +
                                " memory (the device has " + std::to_string(free) + " of " +
                                std::to_string(total) + " bytes free); " + remedy);
}

// Host memory that the device copies from and to by itself.
class Pinned {
 public:
  explicit Pinned(std::size_t bytes) {
    void* memory = nullptr;
    check_memory(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), "pinned host", bytes,
                 "lower --memory");
    data_ = static_cast<std::byte*>(memory);
  }
  ~Pinned() {
    if (data_ != nullptr) forgive(cudaFreeHost(data_));
  }
  Pinned(Pinned&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  Pinned& operator=(Pinned&&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  // Leaves the memory to the caller, who gives it back with cudaFreeHost.
  [[nodiscard]] std::byte* release() noexcept { return std::exchange(data_, nullptr); }

 private:
  std::byte* data_ = nullptr;
};

// Memory of the current device.
class Device {
 public:
  explicit Device(std::size_t bytes) {
    void* memory = nullptr;
    check_memory(cudaMalloc(&memory, bytes), "device", bytes,
                 "lower --device-memory, or free memory on the device");
    data_ = static_cast<std::byte*>(memory);
  }
  ~Device() {
    if (data_ != nullptr) forgive(cudaFree(data_));
  }
  Device(Device&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  Device& operator=(Device&&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
};

// Divides a block of memory that somebody else owns. Thread-safe.
//
// Waiting callers are served in order, so that a large request is not starved by small ones. A
// caller that waits must not hold a part of the same arena.
class Arena {
 public:
  Arena(std::byte* memory, std::uint64_t bytes) : memory_(memory), bytes_(bytes / kAlign * kAlign) {
    free_.reserve(256);
    if (bytes_ > 0) free_.push_back({0, bytes_});
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] std::uint64_t capacity() const noexcept { return bytes_; }

  // A part of `bytes` bytes, as soon as one is free; null if the whole arena is too small.
  [[nodiscard]] std::byte* take(std::uint64_t bytes) {
    bytes = aligned(bytes);
    if (bytes > bytes_) return nullptr;
    std::unique_lock lock(mutex_);
    const std::uint64_t ticket = next_++;
    std::optional<std::uint64_t> at;
    freed_.wait(lock, [&] { return ticket == serving_ && (at = cut(bytes)); });
    ++serving_;
    freed_.notify_all();
    return memory_ + *at;
  }

  // The same without waiting: null if there is none now.
  [[nodiscard]] std::byte* try_take(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::optional<std::uint64_t> at = cut(aligned(bytes));
    return at ? memory_ + *at : nullptr;
  }

  void give(std::byte* part, std::uint64_t bytes) noexcept {
    bytes = aligned(bytes);
    if (bytes == 0) return;
    {
      const std::lock_guard lock(mutex_);
      const auto offset = static_cast<std::uint64_t>(part - memory_);
      auto at = std::lower_bound(free_.begin(), free_.end(), offset,
                                 [](const Part& p, std::uint64_t o) { return p.offset < o; });
      at = free_.insert(at, {offset, bytes});
      if (at + 1 != free_.end() && at->offset + at->bytes == (at + 1)->offset) {
        at->bytes += (at + 1)->bytes;
        free_.erase(at + 1);
      }
      if (at != free_.begin() && (at - 1)->offset + (at - 1)->bytes == at->offset) {
        (at - 1)->bytes += at->bytes;
        free_.erase(at);
      }
    }
    freed_.notify_all();
  }

 private:
  struct Part {
    std::uint64_t offset, bytes;
  };

  // First fit.
  std::optional<std::uint64_t> cut(std::uint64_t bytes) {
    for (auto at = free_.begin(); at != free_.end(); ++at) {
      if (at->bytes < bytes) continue;
      const std::uint64_t offset = at->offset;
      at->offset += bytes;
      at->bytes -= bytes;
      if (at->bytes == 0) free_.erase(at);
      return offset;
    }
    return std::nullopt;
  }

  std::byte* memory_;
  std::uint64_t bytes_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Part> free_;  // by offset, never adjacent
  std::uint64_t next_ = 0, serving_ = 0;
};

}  // namespace ingot::gpu
