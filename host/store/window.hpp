// Files seen as memory, for bytes that are in the page cache already (ring.hpp's resident()).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ingot/store.hpp"

namespace ingot {

// A read-only view of a range of a file, gone with the object. Only while a Guard lives: losing
// bytes underneath (the file shrinks, the disk fails) then gives zeros and sets torn(), where it
// would otherwise kill the process.
//
// Any number of threads may read one window. A thread that used its bytes calls torn() afterwards
// and throws the results away if it says so.
class Window {
 public:
  // Whether windows of this file can be made: it has a descriptor, and a Guard lives.
  [[nodiscard]] static bool possible(const File& file) noexcept;

  // Maps `bytes` bytes at `offset`; the file must outlive the window. Error{io} if the file ends
  // before, Error{memory} if there is no room for another mapping, Error{internal} if not
  // possible().
  Window(File& file, std::uint64_t offset, std::uint64_t bytes);
  ~Window();
  Window(Window&& other) noexcept;
  Window& operator=(Window&& other) noexcept;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

  // Ends the residence of bytes [offset, offset + count) in this process: they stay in the page
  // cache and are there again when they are read again. What lies within 64 KiB of them, which the
  // kernel may have mapped with them, goes too.
  void leave(std::uint64_t offset, std::uint64_t count) const noexcept;

  // True if some of the bytes may not be the file's.
  [[nodiscard]] bool torn() const noexcept;

 private:
  void close() noexcept;

  std::span<const std::byte> bytes_;
  std::byte* base_ = nullptr;  // of the mapping, which is wider; null: moved from, or empty
  std::size_t length_ = 0;
  std::size_t slot_ = 0;
  std::uint64_t end_ = 0;  // in the file
  int descriptor_ = -1;
};

}  // namespace ingot
