// Owners of streams and events. They belong to the device that was current when they were made.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "check.hpp"

namespace ingot::gpu {

// A stream that never waits for the default stream. Its work must be done when it is destroyed.
class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "making a stream"); }
  ~Stream() {
    if (handle_ != nullptr) forgive(cudaStreamDestroy(handle_));
  }
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  Stream& operator=(Stream&&) = delete;

  [[nodiscard]] cudaStream_t get() const noexcept { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

// A point in a stream's work that other streams and the host can wait for.
class Event {
 public:
  // Waiting threads sleep; the time between two events can be asked for.
  Event() { check(cudaEventCreateWithFlags(&handle_, cudaEventBlockingSync), "making an event"); }
  ~Event() {
    if (handle_ != nullptr) forgive(cudaEventDestroy(handle_));
  }
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  Event& operator=(Event&&) = delete;

  [[nodiscard]] cudaEvent_t get() const noexcept { return handle_; }

  // Marks the work enqueued so far. Does not wait.
  void record(const Stream& stream) {
    check(cudaEventRecord(handle_, stream.get()), "recording an event");
  }
  // Holds back what is enqueued in `stream` from now on until the mark is passed. Does not wait.
  void hold(const Stream& stream) const {
    check(cudaStreamWaitEvent(stream.get(), handle_, 0), "ordering two streams");
  }
  // Waits until the mark is passed; reports what failed before it.
  void wait() const { check(cudaEventSynchronize(handle_), "waiting for the device"); }

  [[nodiscard]] double seconds_since(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.handle_, handle_), "timing");
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t handle_ = nullptr;
};

}  // namespace ingot::gpu
