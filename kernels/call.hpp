// One call's way through a device.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <mutex>
#include <string>

#include "device.hpp"

namespace ingot::gpu {

// One call's way through a device. If it is left by an exception, what was enqueued is waited for:
// nothing may still copy from or to memory that others use again.
class Call {
 public:
  explicit Call(Lane& lane) : lane_(lane), slot_(enter(lane)) {}
  ~Call() {
    if (turn_.owns_lock()) turn_.unlock();
    if (!settled_) {
      forgive(cudaStreamSynchronize(lane_.in.get()));
      forgive(cudaStreamSynchronize(lane_.compute.get()));
      forgive(cudaStreamSynchronize(lane_.out.get()));
    }
    if (memory_ != nullptr) lane_.work().give(memory_, bytes_);
    lane_.give(slot_);
    --lane_.calls;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  [[nodiscard]] Lane& lane() const { return lane_; }
  // The halves of the pinned window: what goes to the device, what comes back.
  [[nodiscard]] std::byte* sent() const { return slot_.window; }
  [[nodiscard]] std::byte* received() const { return slot_.window + kWindow / 2; }

  // Device memory for the call, waited for if others have it.
  std::byte* room(std::uint64_t bytes) {
    if (bytes == 0) return nullptr;
    memory_ = lane_.work().take(bytes);
    if (memory_ == nullptr)
      fail(Code::memory, "one chunk of this merge needs " + std::to_string(bytes) +
                             " bytes of device memory and the ceiling leaves " +
                             std::to_string(lane_.work().capacity()) + "; raise --device-memory");
    bytes_ = bytes;
    return memory_;
  }

  // Enqueues a copy to the device.
  void copy_in(std::byte* to, const void* from, std::uint64_t bytes) {
    if (bytes == 0) return;
    begin(kIn, lane_.in);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, lane_.in.get()),
          "copying to it");
    activity_.bytes_in += bytes;
  }
  // The same, and zeros behind it up to `all` bytes.
  void copy_in(std::byte* to, const void* from, std::uint64_t bytes, std::uint64_t all) {
    copy_in(to, from, bytes);
    if (all != bytes)
      check(cudaMemsetAsync(to + bytes, 0, all - bytes, lane_.in.get()), "clearing its memory");
  }
  // So many bytes of tensors are read and written by the kernels to come.
  void moves(std::uint64_t bytes) { activity_.kernel_bytes += bytes; }
  // The stream for kernels, behind the copies of this call.
  const Stream& kernels() {
    if (!begun_[kCompute] && begun_[kIn]) hand_over(kIn, lane_.in, lane_.compute);
    begin(kCompute, lane_.compute);
    return lane_.compute;
  }
  void clear(std::byte* memory, std::uint64_t bytes) {
    check(cudaMemsetAsync(memory, 0, bytes, kernels().get()), "clearing its memory");
  }
  // Enqueues a copy from the device, behind the kernels of this call.
  void copy_out(void* to, const std::byte* from, std::uint64_t bytes) {
    if (bytes == 0) return;
    if (!begun_[kOut] && begun_[kCompute]) hand_over(kCompute, lane_.compute, lane_.out);
    begin(kOut, lane_.out);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, lane_.out.get()),
          "copying from it");
    activity_.bytes_out += bytes;
  }

  // Waits for everything enqueued so far.
  void wait() {
    const auto start = std::chrono::steady_clock::now();
    Event& last = slot_.mark[begun_[kOut] ? 5 : 1];
    last.record(begun_[kOut] ? lane_.out : lane_.in);
    turn_.unlock();
    last.wait();
    settled_ = true;
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    activity_.waiting += waited.count();
  }
  // The call is over: records its times and bytes.
  void done() {
    if (begun_[kIn]) activity_.copy_in = seconds(kIn);
    if (begun_[kCompute]) activity_.kernels = seconds(kCompute);
    if (begun_[kOut]) activity_.copy_out = seconds(kOut);
    lane_.note(activity_);
  }

  // Copies results of any size to the host, a window at a time; wait() is included.
  template <class Take>
  void bring(const std::byte* from, std::uint64_t bytes, Take&& take) {
    constexpr std::uint64_t half = kWindow / 2;
    for (std::uint64_t at = 0; at < bytes; at += half) {
      const std::uint64_t n = std::min(half, bytes - at);
      copy_out(received(), from + at, n);
      wait();
      take(received(), n);
    }
  }

 private:
  static Slot& enter(Lane& lane) {
    lane.use();
    Slot& slot = lane.take();
    ++lane.calls;
    return slot;
  }
  // Before anything is enqueued in one of the three streams: its part of the call begins.
  void begin(std::size_t part, const Stream& stream) {
    settled_ = false;
    if (!turn_.owns_lock()) turn_.lock();
    if (begun_[part]) return;
    begun_[part] = true;
    slot_.mark[2 * part].record(stream);
  }
  // A part ends; the next one's stream waits for it.
  void hand_over(std::size_t part, const Stream& from, const Stream& to) {
    slot_.mark[2 * part + 1].record(from);
    slot_.mark[2 * part + 1].hold(to);
  }
  [[nodiscard]] double seconds(std::size_t part) const {
    return slot_.mark[2 * part + 1].seconds_since(slot_.mark[2 * part]);
  }

  static constexpr std::size_t kIn = 0, kCompute = 1, kOut = 2;

  Lane& lane_;
  Slot& slot_;
  std::unique_lock<std::mutex> turn_{lane_.turn, std::defer_lock};
  std::byte* memory_ = nullptr;
  std::uint64_t bytes_ = 0;
  bool begun_[3] = {};
  bool settled_ = true;
  Activity activity_;
};

}  // namespace ingot::gpu
