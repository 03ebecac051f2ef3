// One device as the backend has it: its memory, its streams, the resources of calls under way, and
// what stays in its memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "blas.hpp"
#include "check.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "memory.hpp"
#include "probe.hpp"
#include "solver.hpp"
#include "stream.hpp"

namespace ingot::gpu {

inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Calls under way per device; more wait. Enough for copy in, kernels and copy out of several
// threads.
inline constexpr std::size_t kSlots = 16;
// A slot's pinned window: descriptions and small tensors in one half, results in the other.
inline constexpr std::uint64_t kWindow = kMiB;
// Inputs and outputs up to this size travel in the window, many in one copy.
inline constexpr std::uint64_t kSmall = std::uint64_t{32} << 10;
// One chunk of the most inputs of the widest type, the candidates of so many brackets twice (as
// found, in order), its output, and change.
inline constexpr std::uint64_t kLargestCall =
    (math::kSources + 2) * 4 * kMiB + math::kSources * 2 * kMiB + 8 * kMiB;

// Sizes of parts that will lie behind each other.
class Layout {
 public:
  // The offset of a part of `bytes` bytes.
  std::uint64_t add(std::uint64_t bytes) {
    const std::uint64_t at = bytes_;
    bytes_ += aligned(bytes);
    return at;
  }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t bytes_ = 0;
};

// The resources of one call on a device, beside its part of the memory.
struct Slot {
  std::byte* window = nullptr;
  std::array<Event, 6> mark;  // begin and end of copy in, kernels, copy out
};

// One device.
class Lane {
 public:
  // If it decomposes, the solver has the memory that tensors would stay in.
  Lane(const Card& card, std::uint64_t memory, bool decomposes)
      : card_(card),
        block_(take(card, memory)),
        bytes_(memory),
        windows_(kSlots * kWindow),
        work_(block_.data(), work_bytes(memory)),
        stay_(rest(), decomposes ? 0 : rest_bytes()) {
    for (std::size_t i = 0; i < kSlots; ++i) {
      slots_.push_back(std::make_unique<Slot>());
      slots_.back()->window = windows_.data() + i * kWindow;
      idle_.push_back(slots_.back().get());
    }
  }

  [[nodiscard]] Site site() const { return {card_.index, rest(), rest_bytes()}; }

  // Makes this device the calling thread's.
  void use() const { check(cudaSetDevice(card_.index), "choosing a device"); }

  [[nodiscard]] const Card& card() const { return card_; }
  [[nodiscard]] Arena& work() { return work_; }
  [[nodiscard]] Arena& stay() { return stay_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::string name() const {
    return "cuda:" + std::to_string(card_.index) + " " + card_.name;
  }

  [[nodiscard]] Slot& take() {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return !idle_.empty(); });
    Slot& slot = *idle_.back();
    idle_.pop_back();
    return slot;
  }
  void give(Slot& slot) {
    {
      const std::lock_guard lock(mutex_);
      idle_.push_back(&slot);
    }
    returned_.notify_one();
  }

  void note(const Activity& more) {
    const std::lock_guard lock(mutex_);
    activity_.copy_in += more.copy_in;
    activity_.kernels += more.kernels;
    activity_.copy_out += more.copy_out;
    activity_.waiting += more.waiting;
    activity_.bytes_in += more.bytes_in;
    activity_.bytes_out += more.bytes_out;
    activity_.kernel_bytes += more.kernel_bytes;
  }
  [[nodiscard]] Activity activity() {
    const std::lock_guard lock(mutex_);
    try {
      if (activity_.copy == 0) measure();
    } catch (const Error&) {
      activity_.copy = 0;  // what was done stands, whatever becomes of the device now
    }
    Activity a = activity_;
    a.device = name();
    a.memory = bytes_;
    return a;
  }

  // Opens cuBLAS for products that may be fast.
  void add_blas(const std::string& folder) {
    use();
    blas_ = std::make_unique<Blas>(folder, compute);
  }
  [[nodiscard]] Blas& blas() {
    if (blas_ == nullptr) fail(Code::internal, "a fast product came to a device without cuBLAS");
    return *blas_;
  }

  std::atomic<int> calls{0};  // under way
  // Held while a call enqueues, so that its copies and kernels lie together in their streams.
  std::mutex turn;

 private:
  static Device take(const Card& card, std::uint64_t memory) {
    check(cudaSetDevice(card.index), "choosing a device");
    return Device(memory);
  }
  // The rates of bare copies, on a device that has nothing else to do.
  void measure() {
    use();
    const std::uint64_t half = aligned(std::min(bytes_ / 2 - kAlign, 128 * kMiB));
    const std::uint64_t piece = std::min(half, 16 * kMiB);
    const Pinned host(piece);
    Event start, stop;
    const auto rate = [&](const Stream& stream, void* to, const void* from, std::uint64_t bytes,
                          cudaMemcpyKind kind) {
      double best = 0;
      for (int round = 0; round < 3; ++round) {
        start.record(stream);
        check(cudaMemcpyAsync(to, from, bytes, kind, stream.get()), "measuring its copies");
        stop.record(stream);
        stop.wait();
        best =
            std::max(best, static_cast<double>(bytes) / std::max(stop.seconds_since(start), 1e-9));
      }
      return best;
    };
    activity_.link_in = rate(in, block_.data(), host.data(), piece, cudaMemcpyHostToDevice);
    activity_.link_out = rate(out, host.data(), block_.data(), piece, cudaMemcpyDeviceToHost);
    activity_.copy = 2 * rate(compute, block_.data() + bytes_ - half, block_.data(), half,
                              cudaMemcpyDeviceToDevice);
  }
  // A quarter for chunks under way, unless the largest call needs more.
  static std::uint64_t work_bytes(std::uint64_t memory) {
    return aligned(std::min(memory, std::max(memory / 4, kLargestCall)));
  }

  [[nodiscard]] std::byte* rest() const { return block_.data() + work_bytes(bytes_); }
  [[nodiscard]] std::uint64_t rest_bytes() const { return bytes_ - work_bytes(bytes_); }

  Card card_;
  Device block_;
  std::uint64_t bytes_;
  Pinned windows_;
  std::unique_ptr<Blas> blas_;

 public:
  const Stream in, compute, out;

 private:
  Arena work_, stay_;
  std::vector<std::unique_ptr<Slot>> slots_;
  mutable std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<Slot*> idle_;
  Activity activity_;
};

// A product's factors in a device's memory for as long as they are needed; where there is no room
// for them, in the host's, and they are copied with every call.
class Staged final : public Factors {
 public:
  Staged(const Product& product, Lane& lane) : product_(product), lane_(lane) {
    memory_ = lane.stay().try_take(bytes());
    if (memory_ == nullptr) return;
    try {
      lane.use();
      check(cudaMemcpyAsync(memory_, product.a.data(), product.a.size_bytes(),
                            cudaMemcpyHostToDevice, lane.in.get()),
            "copying to it");
      check(cudaMemcpyAsync(memory_ + aligned(product.a.size_bytes()), product.b.data(),
                            product.b.size_bytes(), cudaMemcpyHostToDevice, lane.in.get()),
            "copying to it");
      check(cudaStreamSynchronize(lane.in.get()), "copying to it");
    } catch (...) {
      forgive(cudaStreamSynchronize(lane.in.get()));
      lane.stay().give(memory_, bytes());
      throw;
    }
  }
  ~Staged() override {
    if (memory_ != nullptr) lane_.stay().give(memory_, bytes());
  }
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  [[nodiscard]] const Product& product() const { return product_; }
  [[nodiscard]] Lane& lane() const { return lane_; }
  // On its device: A, and B from its first row; null if they are not there.
  [[nodiscard]] const float* a() const { return reinterpret_cast<const float*>(memory_); }
  [[nodiscard]] const float* b() const {
    return reinterpret_cast<const float*>(memory_ + aligned(product_.a.size_bytes()));
  }

 private:
  [[nodiscard]] std::uint64_t bytes() const {
    return aligned(product_.a.size_bytes()) + aligned(product_.b.size_bytes());
  }

  Product product_;
  Lane& lane_;
  std::byte* memory_ = nullptr;
};

}  // namespace ingot::gpu
