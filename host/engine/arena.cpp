#include "engine/arena.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include <sys/mman.h>

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
  if (data_ != nullptr) data_ += bytes;
  size_ -= bytes;
  if (size_ == 0) arena_ = nullptr;
  return front;
}

Arena::Arena(Backend& backend, std::size_t bytes)
    : backend_(backend),
      size_(round_up(bytes, kPage)),
      base_(backend.allocate(size_)),
      touched_((size_ + kUnit - 1) / kUnit) {
  free_.emplace(0, size_);
}

Arena::~Arena() { backend_.release(base_, size_); }

bool Arena::fits(std::size_t more, std::size_t begin, std::size_t end) {
  // An extent touches up to two units more than it has bytes for: a request of up to the arena's
  // size must succeed at some time.
  const std::size_t limit = size_ + 2 * kUnit;
  const auto over = [&] { return units_ * kUnit + counted_ + more > limit; };
  for (auto at = free_.rbegin(); over() && at != free_.rend(); ++at) {
    const std::size_t low = (at->first + kUnit - 1) / kUnit, stop = at->first + at->second;
    for (std::size_t u = stop == size_ ? touched_.size() : stop / kUnit; over() && u-- > low;) {
      const std::size_t from = u * kUnit, to = std::min(size_, from + kUnit);
      if (!touched_[u] || (from < end && to > begin)) continue;
      ::madvise(base_ + from, to - from, MADV_DONTNEED);
      touched_[u] = false;
      --units_;
    }
  }
  return !over();
}

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
    const std::size_t first = offset / kUnit, last = (offset + need - 1) / kUnit;
    std::size_t fresh = 0;
    for (std::size_t u = first; u <= last; ++u) fresh += touched_[u] ? 0U : 1U;
    if (counted_ > 0 && !fits(fresh * kUnit, offset, offset + need)) return {};
    if (length > need) free_.emplace(offset + need, length - need);
    free_.erase(at);
    for (std::size_t u = first; u <= last; ++u) touched_[u] = true;
    units_ += fresh;
    Extent extent;
    extent.arena_ = this;
    extent.data_ = base_ + offset;
    extent.size_ = need;
    return extent;
  }
  return {};
}

Extent Arena::mark(std::size_t bytes) {
  const std::size_t need = round_up(bytes == 0 ? 1 : bytes, kPage);
  if (counted_ + need > size_ || !fits(need, 0, 0)) return {};
  counted_ += need;
  Extent extent;
  extent.arena_ = this;
  extent.size_ = need;
  return extent;
}

template <class Try>
Extent Arena::wait(Try attempt) {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopped_) return {};
    Extent extent = attempt();
    if (extent) return extent;
    room_.wait(lock);
  }
}

Extent Arena::try_take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return stopped_ ? Extent{} : cut(bytes);
}

Extent Arena::take(std::size_t bytes) {
  return wait([&] { return cut(bytes); });
}

Extent Arena::try_count(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return stopped_ ? Extent{} : mark(bytes);
}

Extent Arena::count(std::size_t bytes) {
  return wait([&] { return mark(bytes); });
}

std::size_t Arena::resident() const {
  const std::lock_guard lock(mutex_);
  return std::min(size_, units_ * kUnit);
}

std::size_t Arena::counted() const {
  const std::lock_guard lock(mutex_);
  return counted_;
}

void Arena::stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  room_.notify_all();
}

void Arena::give(std::byte* data, std::size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  if (data == nullptr) {
    counted_ -= bytes;
    room_.notify_all();
    return;
  }
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
