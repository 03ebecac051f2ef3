// One block of staging memory, lent out in extents. The ceiling of `--memory` is its size.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>

#include "ingot/backend.hpp"

namespace ingot {

inline constexpr std::size_t kPage = 4096;  // alignment of direct I/O and of every extent

[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept {
  return (n + to - 1) / to * to;
}

class Arena;

// A piece of an arena; gives itself back. Moves only.
class Extent {
 public:
  Extent() = default;
  Extent(Extent&& other) noexcept;
  Extent& operator=(Extent&& other) noexcept;
  ~Extent();

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // Takes the first `bytes` (a multiple of kPage, at most size()) off as an extent of their own.
  [[nodiscard]] Extent split(std::size_t bytes) noexcept;

 private:
  friend class Arena;
  Arena* arena_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Thread-safe. First fit by address, neighbours joined on return, so that low pages are reused and
// the resident size stays what is really needed. Outlives its extents.
class Arena {
 public:
  // Takes `bytes` (rounded up to pages) from the backend. Throws Error{memory}.
  Arena(Backend& backend, std::size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // An extent at once, or an empty one if there is no room now.
  [[nodiscard]] Extent try_take(std::size_t bytes);
  // Waits for room. Empty once stop() was called. `bytes` must not exceed size(): every extent
  // comes back, so a request that fits the whole is met in the end.
  [[nodiscard]] Extent take(std::size_t bytes);
  // Makes every take() return empty: the run is over.
  void stop();

 private:
  friend class Extent;
  void give(std::byte* data, std::size_t bytes) noexcept;
  Extent cut(std::size_t bytes);
  void join(std::size_t offset, std::size_t bytes);

  Backend& backend_;
  std::size_t size_;
  std::byte* base_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::map<std::size_t, std::size_t> free_;  // offset -> length
  // Extents that came back while there was no memory to note it: a list in the extents themselves.
  struct Lost {
    Lost* next;
    std::size_t bytes;
  };
  Lost* lost_ = nullptr;
  bool stopped_ = false;
};

}  // namespace ingot
