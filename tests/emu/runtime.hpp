// A simulated CUDA runtime: the slice of the API that ingot uses, over simulated devices.
//
// Work waits in its stream until the device's own thread takes it. The device may be lazy (nothing
// happens before somebody waits for it), may take the streams in any legal order, may run out of
// memory, may fail the n-th call or the n-th piece of work. Misuse that real drivers forgive (the
// default stream, a freed event, a host pointer in a kernel's memory) ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emu.hpp"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorIllegalAddress = 700,
  cudaErrorNotReady = 600,
  cudaErrorLaunchFailure = 719,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
};

using cudaStream_t = struct emu_stream*;
using cudaEvent_t = struct emu_event*;

inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventBlockingSync = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;
inline constexpr unsigned cudaHostAllocPortable = 1;

struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor;
  int multiProcessorCount;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);

namespace emu {

// The machine that the runtime pretends to run on.
struct Setup {
  int devices = 1;
  std::uint64_t memory = std::uint64_t{8} << 30;  // of each device
  int multiprocessors = 3;
  int driver = 13000;                // version the driver reports
  cudaError_t absent = cudaSuccess;  // what counting devices answers instead
  std::uint64_t seed = 0;            // order of streams, blocks and threads; 0 as enqueued
  bool lazy = true;                  // nothing runs before somebody waits
  std::uint64_t fail_call = 0;       // the n-th call that can fail (from 1) fails ...
  std::uint64_t fail_work = 0;  // the n-th copy, fill or kernel (from 1) fails when it runs ...
  cudaError_t failure = cudaErrorLaunchFailure;  // ... so
  bool lost = false;                             // and every call after it
};

// What was done since plug().
struct Traffic {
  std::uint64_t calls = 0, work = 0, kernels = 0;
  std::uint64_t bytes_in = 0, bytes_out = 0;
  std::uint64_t unpinned = 0;     // copies whose host side was not pinned memory
  std::uint64_t peak = 0;         // most device memory held at once, one device
  std::uint64_t allocations = 0;  // of device and pinned memory
  std::uint64_t live = 0;         // streams, events and allocations not given back
};

// Replaces the machine. Nothing of the old one may be in use; `seed` also comes from the
// environment (EMU_SEED, EMU_DEVICES) before the first plug().
void plug(const Setup& setup);
[[nodiscard]] Traffic traffic();

cudaError_t enqueue(cudaStream_t stream, dim3 grid, dim3 block, std::function<void()> body);

}  // namespace emu

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... arguments) {
  std::tuple<std::decay_t<P>...> copy(static_cast<P>(std::forward<A>(arguments))...);
  return emu::enqueue(config->stream, config->gridDim, config->blockDim,
                      [kernel, copy] { std::apply(kernel, copy); });
}
