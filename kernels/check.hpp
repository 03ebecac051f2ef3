// CUDA errors as ingot's: every call is checked, the pending error is cleared, the text says which
// call.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "ingot/error.hpp"

namespace ingot::gpu {

// "cudaErrorNoDevice: no CUDA-capable device is detected".
[[nodiscard]] inline std::string words(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

// Throws Error{device} if a call failed. `call` is what was attempted, in words that follow "while
// ".
inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  fail(Code::device, std::string("the device failed while ") + call + " (" + words(error) + ")");
}

// For destructors, which cannot throw: an error of the past must not surface in the next call.
inline void forgive(cudaError_t error) noexcept {
  if (error != cudaSuccess) (void)cudaGetLastError();
}

}  // namespace ingot::gpu
