// The one way to launch a kernel, and the one way to declare a block's memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "check.hpp"
#include "job.hpp"
#include "stream.hpp"

// Static shared memory of a block: INGOT_SHARED(float[256], name). The emulator brings its own.
#if !defined(INGOT_SHARED)
#include <type_traits>
#define INGOT_SHARED(T, name) __shared__ std::type_identity_t<T> name
#endif

namespace ingot::gpu {

// Blocks for so many tasks; 1 at least, so that an error shows in the launch and not in a count.
[[nodiscard]] inline unsigned blocks_for(std::uint64_t tasks, const Shape& shape) {
  return tasks < shape.blocks ? static_cast<unsigned>(tasks) : shape.blocks;
}

// Enqueues a kernel and checks the launch. Nothing is launched for an empty grid. Does not wait.
template <class... P, class... A>
void launch(const char* what, void (*kernel)(P...), dim3 grid, unsigned threads,
            const Stream& stream, A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.stream = stream.get();
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(arguments))...), what);
  check(cudaGetLastError(), what);
}

}  // namespace ingot::gpu
