#include "store/window.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "store/file.hpp"

namespace ingot {
namespace {

// The data that the signal handler can read. It gets no argument of ours, so this is the one place
// in the library with process-wide state; all of it is lock-free.
struct Slot {
  std::atomic<std::uintptr_t> begin{0};  // 0: free, 1: taken, else the first address of the window
  std::atomic<std::uintptr_t> end{0};
  std::atomic<bool> torn{false};
};

constexpr std::size_t kSlots = 4096;
constinit std::array<Slot, kSlots> slots;
constinit std::atomic<bool> guarded{false};
struct sigaction previous;  // set before the handler is

// Mappings start and end at multiples of this in the file, whatever the window, so that the kernel
// can map huge pages: summing a file through windows of 1 MiB takes 0.045 s per GB, with mappings
// of just that 0.085 s, with pread 0.065 s.
constexpr std::uint64_t kUnit = std::uint64_t{2} << 20;

// A fault maps the pages around it that are in the page cache, within addresses of this alignment
// (the kernel's fault_around_bytes).
constexpr std::uintptr_t kAround = std::uintptr_t{64} << 10;

static_assert(std::atomic<std::uintptr_t>::is_always_lock_free);

// Puts zeros under a window that lost its bytes and marks it. A window's address cannot be matched
// by a slot that is being reused: its slot stays as it is while anybody may read the window, and
// `end` is set before the `begin` it belongs to.
bool mend(std::uintptr_t address) noexcept {
  for (Slot& slot : slots) {
    const std::uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    const std::uintptr_t end = slot.end.load(std::memory_order_relaxed);
    if (begin <= 1 || address < begin || address >= end) continue;
    slot.torn.store(true);
    // The call itself: the thread sanitizer takes mmap() for a write of this thread, where others
    // may read just then.
    return ::syscall(SYS_mmap, begin, end - begin, PROT_READ,
                     MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != -1;
  }
  return false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  // Only a fault of this thread carries an address; a signal somebody sent does not.
  const bool mended = info->si_code > 0 && mend(reinterpret_cast<std::uintptr_t>(info->si_addr));
  errno = error;
  if (mended) return;
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    return previous.sa_handler(signal);
  }
  struct sigaction standard {};
  standard.sa_handler = SIG_DFL;
  ::sigaction(signal, &standard, nullptr);
  (void)::raise(signal);  // arrives when this handler returns
}

std::size_t take_slot() {
  for (std::size_t i = 0; i < kSlots; ++i) {
    std::uintptr_t free = 0;
    if (slots[i].begin.compare_exchange_strong(free, 1)) return i;
  }
  fail(Code::memory, fmt::format("more than {} mapped windows at the same time", kSlots));
}

}  // namespace

Guard::Guard() {
  if (guarded.exchange(true)) fail(Code::internal, "a second Guard was made while one is alive");
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, nullptr, &previous);
  ::sigaction(SIGBUS, &action, nullptr);
}

Guard::~Guard() {
  ::sigaction(SIGBUS, &previous, nullptr);
  guarded = false;
}

bool Window::possible(const File& file) noexcept { return guarded && file.descriptor() >= 0; }

Window::Window(File& file, std::uint64_t offset, std::uint64_t bytes)
    : end_(offset + bytes), descriptor_(file.descriptor()) {
  if (!possible(file)) fail(Code::internal, file.path() + " cannot be mapped: no Guard is alive");
  const std::uint64_t size = file.size();
  if (offset > size || bytes > size - offset) {
    throw end_of_file(file.path(), size, bytes - (size - std::min(offset, size)));
  }
  if (bytes == 0) return;
  const std::uint64_t start = offset / kUnit * kUnit;
  length_ = (end_ - start + kUnit - 1) / kUnit * kUnit;
  slot_ = take_slot();
  void* base =
      ::mmap(nullptr, length_, PROT_READ, MAP_SHARED, descriptor_, static_cast<off_t>(start));
  if (base == MAP_FAILED) {
    const int error = errno;
    slots[slot_].begin = 0;
    fail(Code::memory,
         system_error(fmt::format("map {} bytes of {} at byte {}", bytes, file.path(), offset),
                      error)
             .message());
  }
  base_ = static_cast<std::byte*>(base);
  bytes_ = {base_ + (offset - start), bytes};
  const auto begin = reinterpret_cast<std::uintptr_t>(base);
  slots[slot_].torn = false;
  slots[slot_].end.store(begin + length_, std::memory_order_relaxed);
  slots[slot_].begin.store(begin, std::memory_order_release);
}

Window::~Window() { close(); }

Window::Window(Window&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})),
      base_(std::exchange(other.base_, nullptr)),
      length_(other.length_),
      slot_(other.slot_),
      end_(other.end_),
      descriptor_(other.descriptor_) {}

Window& Window::operator=(Window&& other) noexcept {
  if (this != &other) {
    close();
    bytes_ = std::exchange(other.bytes_, {});
    base_ = std::exchange(other.base_, nullptr);
    length_ = other.length_;
    slot_ = other.slot_;
    end_ = other.end_;
    descriptor_ = other.descriptor_;
  }
  return *this;
}

bool Window::torn() const noexcept {
  if (base_ == nullptr) return false;
  // Within the last page of a file that shrank there is no fault, only zeros.
  struct stat info {};
  return slots[slot_].torn || ::fstat(descriptor_, &info) != 0 ||
         static_cast<std::uint64_t>(info.st_size) < end_;
}

void Window::leave(std::uint64_t offset, std::uint64_t count) const noexcept {
  if (base_ == nullptr || count == 0) return;
  const auto base = reinterpret_cast<std::uintptr_t>(base_);
  const auto first = reinterpret_cast<std::uintptr_t>(bytes_.data()) + offset;
  const std::uintptr_t begin = std::max(base, first / kAround * kAround);
  const std::uintptr_t end =
      std::min(base + length_, (first + count + kAround - 1) / kAround * kAround);
  ::madvise(base_ + (begin - base), end - begin, MADV_DONTNEED);
}

void Window::close() noexcept {
  if (base_ == nullptr) return;
  slots[slot_].begin = 0;  // before the addresses can belong to anything else
  ::munmap(base_, length_);
  base_ = nullptr;
}

}  // namespace ingot
