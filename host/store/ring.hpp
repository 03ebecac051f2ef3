// Transfers between files and memory that run while the caller does something else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>

#include "ingot/store.hpp"

namespace ingot {

inline constexpr std::size_t kPage = 4096;  // alignment of direct transfers

// One read or write. File and memory must live until its completion has been taken.
struct Transfer {
  File* file = nullptr;
  std::uint64_t offset = 0;
  std::span<std::byte> data;  // only read from if `write`
  bool write = false;
  // Around the page cache, if the file can and offset, size and address are multiples of kPage;
  // else through it. Such a read may reach past the end of the file by less than kPage bytes, so
  // that the aligned range around some bytes can be asked for; what lies there is unspecified.
  bool direct = false;
  std::uint64_t token = 0;  // the caller's; comes back with the completion
};

// All bytes of a transfer have moved, or `error` says why not. A file that ends too early is an
// error.
struct Completion {
  std::uint64_t token = 0;
  std::exception_ptr error;
};

// Moves bytes for one thread: all calls on one object come from the same thread. Transfers complete
// in any order. Large ones travel in pieces of 4 MiB. Destruction waits for what is in flight.
//
// Memory in huge pages (aligned to 2 MiB, MADV_HUGEPAGE) doubles the rate of direct transfers,
// from 1.3 to 2.7 GB/s for reads, and takes a fifth of the processor time: 0.009 s per GB.
class Ring {
 public:
  virtual ~Ring() = default;
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Starts a transfer. Waits only while `depth` pieces are in flight.
  virtual void submit(const Transfer& transfer) = 0;
  // Waits for one completion. There must be one pending.
  [[nodiscard]] virtual Completion wait() = 0;
  // Transfers submitted whose completion has not been taken.
  [[nodiscard]] virtual std::size_t pending() const noexcept = 0;
  // How bytes travel, for reports: "io_uring, 8 in flight".
  [[nodiscard]] virtual std::string describe() const = 0;
};

// A ring with up to `depth` pieces in flight: io_uring if allowed and the kernel lets us, else as
// many threads. Files without a descriptor are served by plain File::read and File::write.
[[nodiscard]] std::unique_ptr<Ring> make_ring(unsigned depth, bool allow_uring);

// How much of a byte range is in the page cache: a share in [0, 1]. 0 where the system does not
// say.
[[nodiscard]] double resident(File& file, std::uint64_t offset, std::uint64_t bytes);

// The same by trying to read a few bytes without waiting, for kernels before 6.5.
[[nodiscard]] double resident_sampled(File& file, std::uint64_t offset, std::uint64_t bytes);

}  // namespace ingot
