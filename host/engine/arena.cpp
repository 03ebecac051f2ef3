#include "engine/arena.hpp"

#include <new>
#include <utility>

namespace ingot {

Extent::Extent(Extent&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Extent& Extent::operator=(Extent&& other) noexcept {
  if (this != &other) {
    if (arena_ != nullptr) arena_->give(data_, size_);
    arena_ = std::exchange(other.arena_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Extent::~Extent() {
  if (arena_ != nullptr) arena_->give(data_, size_);
}

Extent Extent::split(std::size_t bytes) noexcept {
  Extent front;
  front.arena_ = arena_;
  front.data_ = data_;
  front.size_ = bytes;
  data_ += bytes;
  size_ -= bytes;
  if (size_ == 0) arena_ = nullptr;
  return front;
}

Arena::Arena(Backend& backend, std::size_t bytes)
    : backend_(backend), size_(round_up(bytes, kPage)), base_(backend.allocate(size_)) {
  free_.emplace(0, size_);
}

Arena::~Arena() { backend_.release(base_, size_); }

Extent Arena::cut(std::size_t bytes) {
  const std::size_t need = round_up(bytes == 0 ? 1 : bytes, kPage);
  for (; lost_ != nullptr;) {
    const Lost found = *lost_;
    join(static_cast<std::size_t>(reinterpret_cast<std::byte*>(lost_) - base_), found.bytes);
    lost_ = found.next;
  }
  for (auto at = free_.begin(); at != free_.end(); ++at) {
    if (at->second < need) continue;
    const auto [offset, length] = *at;
    if (length > need) free_.emplace(offset + need, length - need);
    free_.erase(at);
    Extent extent;
    extent.arena_ = this;
    extent.data_ = base_ + offset;
    extent.size_ = need;
    return extent;
  }
  return {};
}

Extent Arena::try_take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return stopped_ ? Extent{} : cut(bytes);
}

Extent Arena::take(std::size_t bytes) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopped_) return {};
    Extent extent = cut(bytes);
    if (extent.data() != nullptr) return extent;
    room_.wait(lock);
  }
}

void Arena::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  room_.notify_all();
}

void Arena::give(std::byte* data, std::size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  try {
    join(static_cast<std::size_t>(data - base_), bytes);
  } catch (const std::bad_alloc&) {  // its first bytes remember it until there is memory
    lost_ = new (data) Lost{lost_, bytes};
  }
  room_.notify_all();
}

void Arena::join(std::size_t offset, std::size_t bytes) {
  auto at = free_.emplace(offset, bytes).first;
  if (auto next = std::next(at); next != free_.end() && at->first + at->second == next->first) {
    at->second += next->second;
    free_.erase(next);
  }
  if (at != free_.begin()) {
    if (auto before = std::prev(at); before->first + before->second == at->first) {
      before->second += at->second;
      free_.erase(at);
    }
  }
}

}  // namespace ingot
