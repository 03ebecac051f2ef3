// One block of staging memory, lent out in extents. The ceiling of `--memory` is its size: lent
// extents and mapped bytes (Arena::try_count) together are never more than that in memory.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

#include "ingot/backend.hpp"
#include "store/ring.hpp"

namespace ingot {

[[nodiscard]] constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) noexcept {
  return (n + to - 1) / to * to;
}

class Arena;

// A piece of an arena, or room in it that is only counted; gives itself back. Moves only.
class Extent {
 public:
  Extent() = default;
  Extent(Extent&& other) noexcept;
  Extent& operator=(Extent&& other) noexcept;
  ~Extent();

  // Null where room is only counted.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] explicit operator bool() const noexcept { return size_ > 0; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // Takes the first `bytes` (a multiple of kPage, at most size()) off as a separate extent.
  [[nodiscard]] Extent split(std::size_t bytes) noexcept;

 private:
  friend class Arena;
  Arena* arena_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Thread-safe. First fit by address, neighbours joined on return, so that low pages are reused and
// the resident size stays what is really needed. Outlives its extents. Pages stay resident when an
// extent comes back; they go back to the system where counted room needs it, not before.
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
  // comes back, so any request up to size() succeeds at some time.
  [[nodiscard]] Extent take(std::size_t bytes);
  // The same for bytes that are resident elsewhere, as pages of mapped files are: they count as
  // lent, and no memory goes with them. Not for pinned memory (Backend::staged), which is resident
  // from the beginning.
  [[nodiscard]] Extent try_count(std::size_t bytes);
  [[nodiscard]] Extent count(std::size_t bytes);
  // Bytes of the block that may be resident, and bytes that are counted.
  [[nodiscard]] std::size_t resident() const;
  [[nodiscard]] std::size_t counted() const;

  // Makes every take() and count() return empty: the run is over.
  void stop();

 private:
  friend class Extent;
  // Resident pages are counted by units of this size, which may become one huge page.
  static constexpr std::size_t kUnit = std::size_t{2} << 20;

  void give(std::byte* data, std::size_t bytes) noexcept;
  template <class Try>
  Extent wait(Try attempt);
  Extent cut(std::size_t bytes);
  void join(std::size_t offset, std::size_t bytes);
  Extent mark(std::size_t bytes);
  // Makes room for `more` bytes beside what is resident and counted; pages in [begin, end) stay.
  [[nodiscard]] bool fits(std::size_t more, std::size_t begin, std::size_t end);

  Backend& backend_;
  std::size_t size_;
  std::byte* base_;
  mutable std::mutex mutex_;
  std::condition_variable room_;
  std::map<std::size_t, std::size_t> free_;  // offset -> length
  // Extents that came back while there was no memory to note it: a list in the extents themselves.
  struct Lost {
    Lost* next;
    std::size_t bytes;
  };
  Lost* lost_ = nullptr;
  std::vector<bool> touched_;  // by unit: lent since its pages last went back
  std::size_t units_ = 0;      // of those, how many
  std::size_t counted_ = 0;
  bool stopped_ = false;
};

}  // namespace ingot
