// The simulated runtime: order, laziness, limits and failures.
#include "runtime.hpp"

#include <cstring>
#include <vector>

#include <gtest/gtest.h>

namespace {

__global__ void add_kernel(int* data, unsigned count, int x) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) data[i] += x;
}

cudaError_t add(cudaStream_t stream, int* data, unsigned count, int x) {
  cudaLaunchConfig_t config;
  config.gridDim = (count + 63) / 64;
  config.blockDim = 64;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, add_kernel, data, count, x);
}

// Two streams, an event, a buffer on each side.
struct Bench {
  static constexpr unsigned kCount = 100;
  cudaStream_t one = nullptr, two = nullptr;
  cudaEvent_t event = nullptr;
  int *host = nullptr, *device = nullptr;

  explicit Bench(const emu::Setup& setup) {
    emu::plug(setup);
    void* p = nullptr;
    EXPECT_EQ(cudaHostAlloc(&p, kCount * sizeof(int), 0), cudaSuccess);
    host = static_cast<int*>(p);
    EXPECT_EQ(cudaMalloc(&p, kCount * sizeof(int)), cudaSuccess);
    device = static_cast<int*>(p);
    EXPECT_EQ(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&two, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    for (unsigned i = 0; i < kCount; ++i) host[i] = static_cast<int>(i);
  }
  ~Bench() {
    EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
    EXPECT_EQ(cudaFree(device), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(one), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(two), cudaSuccess);
    EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
    EXPECT_EQ(emu::traffic().live, 0U);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  cudaError_t in() { return cudaMemcpyAsync(device, host, bytes(), cudaMemcpyHostToDevice, one); }
  cudaError_t out(cudaStream_t s) {
    return cudaMemcpyAsync(host, device, bytes(), cudaMemcpyDeviceToHost, s);
  }
  static std::size_t bytes() { return kCount * sizeof(int); }
};

TEST(Runtime, AStreamKeepsItsOrderAndEventsOrderTwoStreams) {
  for (const std::uint64_t seed : {0U, 1U, 2U, 3U, 4U, 5U})
    for (const bool lazy : {false, true}) {
      emu::Setup setup;
      setup.seed = seed;
      setup.lazy = lazy;
      Bench b(setup);
      ASSERT_EQ(b.in(), cudaSuccess);
      ASSERT_EQ(add(b.one, b.device, Bench::kCount, 5), cudaSuccess);
      ASSERT_EQ(cudaEventRecord(b.event, b.one), cudaSuccess);
      ASSERT_EQ(cudaStreamWaitEvent(b.two, b.event, 0), cudaSuccess);
      ASSERT_EQ(b.out(b.two), cudaSuccess);
      ASSERT_EQ(cudaEventRecord(b.event, b.two), cudaSuccess);
      ASSERT_EQ(cudaEventSynchronize(b.event), cudaSuccess);
      for (unsigned i = 0; i < Bench::kCount; ++i) ASSERT_EQ(b.host[i], static_cast<int>(i) + 5);
      const emu::Traffic t = emu::traffic();
      EXPECT_EQ(t.bytes_in, Bench::bytes());
      EXPECT_EQ(t.bytes_out, Bench::bytes());
      EXPECT_EQ(t.kernels, 1U);
      EXPECT_EQ(t.unpinned, 0U);
      EXPECT_EQ(t.peak, Bench::bytes());
    }
}

TEST(Runtime, TheNthCallFailsOnceOrForGood) {
  for (const bool lost : {false, true}) {
    emu::Setup setup;
    setup.fail_call = 3;
    setup.lost = lost;
    setup.failure = cudaErrorECCUncorrectable;
    emu::plug(setup);
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorECCUncorrectable);
    EXPECT_EQ(cudaStreamSynchronize(stream), lost ? cudaErrorECCUncorrectable : cudaSuccess);
    EXPECT_EQ(cudaGetLastError(), cudaErrorECCUncorrectable);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(cudaStreamDestroy(stream), lost ? cudaErrorECCUncorrectable : cudaSuccess);
    EXPECT_EQ(emu::traffic().live, 0U);
  }
}

TEST(Runtime, FailedWorkIsReportedByTheNextWaitAndLeavesItsTargetAlone) {
  for (const bool lost : {false, true}) {
    emu::Setup setup;
    setup.fail_work = 2;
    setup.lost = lost;
    emu::plug(setup);
    void *host = nullptr, *device = nullptr;
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    ASSERT_EQ(cudaHostAlloc(&host, 64, 0), cudaSuccess);
    ASSERT_EQ(cudaMalloc(&device, 64), cudaSuccess);
    std::memset(host, 7, 64);
    ASSERT_EQ(cudaMemsetAsync(device, 3, 64, stream), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(host, device, 64, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    EXPECT_EQ(static_cast<char*>(host)[0], 7);
    EXPECT_EQ(cudaStreamSynchronize(stream), lost ? cudaErrorLaunchFailure : cudaSuccess);
    (void)cudaFree(device);
    (void)cudaFreeHost(host);
    (void)cudaStreamDestroy(stream);
    EXPECT_EQ(emu::traffic().live, 0U);
  }
}

TEST(Runtime, DeviceMemoryEndsWhereTheSetupSays) {
  emu::Setup setup;
  setup.memory = 1 << 20;
  setup.devices = 2;
  emu::plug(setup);
  void *one = nullptr, *two = nullptr;
  std::size_t free = 0, total = 0;
  ASSERT_EQ(cudaMalloc(&one, 700 << 10), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&two, 400 << 10), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, 324U << 10);
  EXPECT_EQ(total, 1024U << 10);
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&two, 400 << 10), cudaSuccess);
  EXPECT_EQ(cudaFree(two), cudaSuccess);
  EXPECT_EQ(cudaFree(one), cudaSuccess);
  EXPECT_EQ(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_EQ(emu::traffic().peak, 700U << 10);
}

TEST(Runtime, AMachineWithoutDevicesSaysSo) {
  emu::Setup setup;
  setup.absent = cudaErrorInsufficientDriver;
  emu::plug(setup);
  int count = 7;
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(count, 7);
  setup.absent = cudaSuccess;
  setup.devices = 0;
  emu::plug(setup);
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
}

TEST(Runtime, EmptyGridsAreRefused) {
  Bench b({});
  EXPECT_EQ(add(b.one, b.device, 0, 1), cudaErrorInvalidConfiguration);
}

// What ThreadSanitizer would rightly stop: the host looks without waiting.

#if !defined(__SANITIZE_THREAD__)

TEST(Runtime, ALazyDeviceDoesNothingBeforeSomebodyWaits) {
  Bench b({});
  ASSERT_EQ(b.in(), cudaSuccess);
  ASSERT_EQ(add(b.one, b.device, Bench::kCount, 5), cudaSuccess);
  ASSERT_EQ(b.out(b.one), cudaSuccess);
  EXPECT_EQ(emu::traffic().work, 0U);
  EXPECT_EQ(b.host[1], 1);
  ASSERT_EQ(cudaStreamSynchronize(b.one), cudaSuccess);
  EXPECT_EQ(b.host[1], 6);
}

TEST(Runtime, UnorderedStreamsAreReorderedBySomeSeed) {
  bool early = false, late = false;
  for (const std::uint64_t seed : {0U, 1U, 2U, 3U}) {
    emu::Setup setup;
    setup.seed = seed;
    Bench b(setup);
    ASSERT_EQ(b.in(), cudaSuccess);
    ASSERT_EQ(b.out(b.two), cudaSuccess);  // forgot to wait
    ASSERT_EQ(cudaStreamSynchronize(b.two), cudaSuccess);
    (b.host[1] == 1 ? late : early) = true;
    ASSERT_EQ(cudaStreamSynchronize(b.one), cudaSuccess);
  }
  EXPECT_TRUE(early);
  EXPECT_TRUE(late);
}

TEST(RuntimeDeathTest, MisuseIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Bench b({});
        (void)b.out(nullptr);
      },
      "default stream");
  EXPECT_DEATH(
      {
        Bench b({});
        (void)cudaMemcpyAsync(b.host, b.device, 404, cudaMemcpyDeviceToHost, b.one);
      },
      "past the end");
  EXPECT_DEATH(
      {
        Bench b({});
        (void)cudaMemcpyAsync(b.host, b.device, 4, cudaMemcpyHostToDevice, b.one);
      },
      "do not lie");
  EXPECT_DEATH(
      {
        Bench b({});
        (void)cudaEventDestroy(b.event);
        (void)cudaEventRecord(b.event, b.one);
      },
      "destroyed event");
  EXPECT_DEATH(
      {
        Bench b({});
        (void)cudaFree(b.host);
      },
      "not allocated so");
}
#endif

}  // namespace
