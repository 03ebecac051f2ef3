// Wrong kernels that a sanitizer must report: `bugs NAME` runs one, `bugs none` the right ones.
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "emu.hpp"
#include "runtime.hpp"

namespace {

__global__ void barrier_kernel(int* out, bool wait) {
  INGOT_SHARED(int[64], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (wait) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = box[63 - threadIdx.x];
}
__global__ void warp_kernel(int* out, bool wait) {
  INGOT_SHARED(int[32], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (wait)
    __syncwarp();
  else
    __ballot_sync(0xffffffffU, 1);  // a meeting that orders no memory
  out[threadIdx.x] = box[31 - threadIdx.x];
}
__global__ void count_kernel(unsigned* counts, bool atomic) {
  INGOT_SHARED(unsigned[4], bins);
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  if (atomic)
    atomicAdd(&bins[threadIdx.x % 4], 1U);
  else
    ++bins[threadIdx.x % 4];
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);
}
__global__ void blocks_kernel(int* out, unsigned stride) {
  out[blockIdx.x * stride + threadIdx.x] = static_cast<int>(blockIdx.x);
  __syncthreads();
}
__global__ void publish_kernel(int* data, unsigned* tickets, int* out, bool publish) {
  if (threadIdx.x != 0) return;
  data[blockIdx.x] = 1;
  if (publish) __threadfence();
  if (atomicAdd(tickets, 1U) + 1 != gridDim.x) return;
  if (publish) __threadfence();
  for (unsigned b = 0; b < gridDim.x; ++b) *out += data[b];
}
__global__ void store_kernel(int* out, unsigned count) {
  if (threadIdx.x < count) out[threadIdx.x] = 1;
}
__global__ void shared_kernel(int* out, unsigned index) {
  INGOT_SHARED(int[32], box);
  INGOT_SHARED(int[32], other);
  box[threadIdx.x] = other[threadIdx.x] = 1;
  __syncthreads();
  int* p = box;
  out[threadIdx.x] = p[index];
}
__global__ void wide_kernel(const unsigned char* in, uint4* out) {
  *out = *reinterpret_cast<const uint4*>(in);
}

void check(cudaError_t e) {
  if (e != cudaSuccess) std::printf("%s\n", cudaGetErrorName(e));
}

// Two streams over one buffer; the second waits for the first, or forgets to.
void streams(bool wait) {
  emu::Setup setup;
  setup.seed = 1;
  emu::plug(setup);
  cudaStream_t in = nullptr, compute = nullptr;
  cudaEvent_t copied = nullptr;
  void *host = nullptr, *device = nullptr;
  check(cudaStreamCreateWithFlags(&in, cudaStreamNonBlocking));
  check(cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking));
  check(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming));
  check(cudaHostAlloc(&host, 256, 0));
  check(cudaMalloc(&device, 256));
  std::memset(host, 1, 256);
  check(cudaMemcpyAsync(device, host, 256, cudaMemcpyHostToDevice, in));
  check(cudaEventRecord(copied, in));
  if (wait) check(cudaStreamWaitEvent(compute, copied, 0));
  cudaLaunchConfig_t config;
  config.gridDim = 1;
  config.blockDim = 64;
  config.stream = compute;
  check(cudaLaunchKernelEx(&config, store_kernel, static_cast<int*>(device), 64U));
  check(cudaStreamSynchronize(in));
  check(cudaStreamSynchronize(compute));
  check(cudaFree(device));
  check(cudaFreeHost(host));
  check(cudaEventDestroy(copied));
  check(cudaStreamDestroy(in));
  check(cudaStreamDestroy(compute));
}

// The host writes into a buffer that a copy still reads, or waits before it does.
void host(bool wait) {
  emu::Setup setup;
  setup.lazy = false;
  emu::plug(setup);
  cudaStream_t in = nullptr;
  void *memory = nullptr, *device = nullptr;
  check(cudaStreamCreateWithFlags(&in, cudaStreamNonBlocking));
  check(cudaHostAlloc(&memory, 256, 0));
  check(cudaMalloc(&device, 256));
  check(cudaMemcpyAsync(device, memory, 256, cudaMemcpyHostToDevice, in));
  if (wait) check(cudaStreamSynchronize(in));
  static_cast<volatile char*>(memory)[0] = 2;
  check(cudaStreamSynchronize(in));
  check(cudaFree(device));
  check(cudaFreeHost(memory));
  check(cudaStreamDestroy(in));
}

}  // namespace

int main(int count, char** arguments) {
  const char* name = count > 1 ? arguments[1] : "none";
  const auto is = [&](const char* bug) { return std::strcmp(name, bug) == 0; };
  for (const std::uint64_t seed : {0ULL, 1ULL, 5ULL}) {
    std::vector<int> out(512), data(16);
    std::vector<unsigned> counts(4);
    unsigned tickets = 0;
    emu::execute(2, 64, seed, barrier_kernel, out.data(), !is("barrier"));
    emu::execute(1, 32, seed, warp_kernel, out.data(), !is("warp"));
    emu::execute(3, 64, seed, count_kernel, counts.data(), !is("count"));
    emu::execute(4, 64, seed, blocks_kernel, out.data(), is("blocks") ? 63U : 64U);
    emu::execute(4, 32, seed, publish_kernel, data.data(), &tickets, out.data(), !is("publish"));
    const auto exact = std::make_unique<int[]>(40);
    emu::execute(1, 64, seed, store_kernel, exact.get(), is("store") ? 41U : 40U);
    emu::execute(1, 32, seed, shared_kernel, out.data(), is("shared") ? 32U : 31U);
    alignas(16) unsigned char bytes[32] = {};
    uint4 word{};
    emu::execute(1, 1, seed, wide_kernel, bytes + (is("wide") ? 4 : 0), &word);
  }
  streams(!is("streams"));
  host(!is("host"));
  std::puts("nothing found");
  return 0;
}
