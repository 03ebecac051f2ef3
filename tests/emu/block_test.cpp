// The emulator itself: CUDA's rules hold, and each kind of wrong kernel is found out.
#include "emu.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

namespace {

constexpr std::uint64_t kSeeds[] = {0, 1, 2, 3, 7};

__global__ void index_kernel(std::uint64_t* out) {
  const std::uint64_t block =
      blockIdx.x + std::uint64_t{gridDim.x} * (blockIdx.y + std::uint64_t{gridDim.y} * blockIdx.z);
  const std::uint64_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const std::uint64_t i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  out[i] += i + 1;
}

TEST(Emulator, EveryThreadRunsOnceWithItsOwnIndices) {
  for (const std::uint64_t seed : kSeeds) {
    std::vector<std::uint64_t> out(3 * 5 * 2 * 4 * 3 * 7, 0);
    emu::execute(dim3(3, 5, 2), dim3(4, 3, 7), seed, index_kernel, out.data());
    for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], i + 1);
  }
}

__global__ void rotate_kernel(const int* in, int* out, int rounds) {
  INGOT_SHARED(int[256], box);
  int mine = in[threadIdx.x];
  for (int r = 0; r < rounds; ++r) {
    box[threadIdx.x] = mine;
    __syncthreads();
    mine = box[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = mine;
}

TEST(Emulator, BarriersOrderSharedMemory) {
  for (const std::uint64_t seed : kSeeds)
    for (const unsigned size : {1U, 7U, 31U, 32U, 33U, 255U, 256U}) {
      std::vector<int> in(size), out(2 * size);
      std::iota(in.begin(), in.end(), 0);
      emu::execute(2, size, seed, rotate_kernel, in.data(), out.data(), 5);
      for (unsigned i = 0; i < 2 * size; ++i) ASSERT_EQ(out[i], static_cast<int>((i + 5) % size));
    }
}

__global__ void count_kernel(unsigned* counts) {
  for (unsigned k = 0; k < 4; ++k) {
    const int c = __syncthreads_count(threadIdx.x % 4 <= k);
    if (threadIdx.x == blockDim.x - 1) counts[k] = static_cast<unsigned>(c);
  }
  if (__syncthreads_or(threadIdx.x == 5) == 0) counts[0] = 77;
  if (__syncthreads_or(threadIdx.x == 999) != 0) counts[0] = 78;
}

TEST(Emulator, BarriersCountPredicates) {
  for (const std::uint64_t seed : kSeeds) {
    unsigned counts[4] = {};
    emu::execute(1, 64, seed, count_kernel, &counts[0]);
    for (unsigned k = 0; k < 4; ++k) EXPECT_EQ(counts[k], 16 * (k + 1));
  }
}

__global__ void early_kernel(int* out) {
  if (threadIdx.x >= 40) return;  // CUDA's barrier waits for threads that have not returned
  INGOT_SHARED(int[64], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = box[39 - threadIdx.x];
}

TEST(Emulator, ReturnedThreadsDoNotHoldABarrier) {
  for (const std::uint64_t seed : kSeeds) {
    int out[40] = {};
    emu::execute(1, 64, seed, early_kernel, &out[0]);
    for (int i = 0; i < 40; ++i) EXPECT_EQ(out[i], 39 - i);
  }
}

struct Lanes {
  unsigned shuffle, exchange, up, down, narrow, ballot, match, sum, most, least;
  double wide;
  int any, all;
};

__global__ void warp_kernel(Lanes* out) {
  const unsigned i = threadIdx.x, lane = i % 32, full = 0xffffffffU;
  Lanes& o = out[i];
  o.shuffle = __shfl_sync(full, i, 3);
  o.exchange = __shfl_xor_sync(full, i, 5);
  o.up = __shfl_up_sync(full, i, 2);
  o.down = __shfl_down_sync(full, i, 2);
  o.narrow = __shfl_sync(full, i, 9, 8);
  o.wide = __shfl_xor_sync(full, 0.5 * i, 1);
  o.ballot = __ballot_sync(full, lane % 3 == 0);
  o.match = __match_any_sync(full, i % 4);
  o.sum = __reduce_add_sync(full, i);
  o.most = __reduce_max_sync(full, i * 7 % 32);
  o.least = __reduce_min_sync(full, i * 7 % 32 + 2);
  o.any = __any_sync(full, lane == 30);
  o.all = __all_sync(full, lane != 30);
}

TEST(Emulator, WarpOperationsGiveWhatTheManualSays) {
  for (const std::uint64_t seed : kSeeds) {
    std::vector<Lanes> out(64);
    emu::execute(1, 64, seed, warp_kernel, out.data());
    for (unsigned i = 0; i < 64; ++i) {
      const unsigned base = i / 32 * 32, lane = i % 32;
      const Lanes& o = out[i];
      EXPECT_EQ(o.shuffle, base + 3);
      EXPECT_EQ(o.exchange, base + (lane ^ 5));
      EXPECT_EQ(o.up, lane >= 2 ? i - 2 : i);
      EXPECT_EQ(o.down, lane < 30 ? i + 2 : i);
      EXPECT_EQ(o.narrow, base + lane / 8 * 8 + 1);
      EXPECT_EQ(o.wide, 0.5 * (i ^ 1));
      EXPECT_EQ(o.ballot, 0x49249249U);
      EXPECT_EQ(o.match, 0x11111111U << lane % 4);
      EXPECT_EQ(o.sum, 32 * base + 496);
      EXPECT_EQ(o.most, 31U);
      EXPECT_EQ(o.least, 2U);
      EXPECT_EQ(o.any, 1);
      EXPECT_EQ(o.all, 0);
    }
  }
}

__global__ void partial_kernel(unsigned* out) {
  const unsigned i = threadIdx.x;
  if (i % 2 == 0)
    out[i] = __reduce_add_sync(0x55555555U, i);
  else
    out[i] = __reduce_add_sync(0xaaaaaaaaU, i);
  __syncwarp();
  if (i >= 16) return;
  out[i] += __shfl_down_sync(0xffffffffU, 100U, 1, 16);  // the upper half has returned
}

TEST(Emulator, MasksMeetSeparatelyAndReturnedLanesAreNotAwaited) {
  for (const std::uint64_t seed : kSeeds)
    for (const unsigned size : {32U, 20U}) {
      std::vector<unsigned> out(size);
      emu::execute(1, size, seed, partial_kernel, out.data());
      unsigned even = 0, odd = 0;
      for (unsigned i = 0; i < size; ++i) (i % 2 == 0 ? even : odd) += i;
      for (unsigned i = 0; i < size; ++i)
        EXPECT_EQ(out[i], (i % 2 == 0 ? even : odd) + (i < 16 ? 100 : 0)) << i;
    }
}

__global__ void atomic_kernel(unsigned* u, unsigned long long* sum, int* least) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&u[i % 4], 1U);
  atomicMax(&u[4], i);
  atomicOr(&u[5], 1U << i % 32);
  atomicAdd(sum, i);
  atomicMin(least, -static_cast<int>(i));
  unsigned seen = atomicAdd(&u[6], 0U), next = 0;
  do {
    next = seen;
    seen = atomicCAS(&u[6], next, next + 2);
  } while (seen != next);
}

TEST(Emulator, AtomicsLoseNothing) {
  for (const std::uint64_t seed : kSeeds) {
    unsigned u[7] = {};
    unsigned long long sum = 0;
    int least = 0;
    emu::execute(5, 96, seed, atomic_kernel, &u[0], &sum, &least);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(u[i], 120U);
    EXPECT_EQ(u[4], 479U);
    EXPECT_EQ(u[5], 0xffffffffU);
    EXPECT_EQ(u[6], 960U);
    EXPECT_EQ(sum, 479ULL * 480 / 2);
    EXPECT_EQ(least, -479);
  }
}

__global__ void stale_kernel(int* out) {
  INGOT_SHARED(int[32], box);
  if (blockIdx.x == 0) box[threadIdx.x] = 1234;
  out[blockIdx.x * 32 + threadIdx.x] = box[threadIdx.x];
}

TEST(Emulator, SharedMemoryIsRubbishInEveryBlock) {
  std::vector<int> out(64);
  emu::execute(2, 32, 0, stale_kernel, out.data());
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(out[static_cast<std::size_t>(i)], 1234);
    EXPECT_NE(out[static_cast<std::size_t>(32 + i)], 1234);
    EXPECT_NE(out[static_cast<std::size_t>(32 + i)], 0);
  }
}

__global__ void last_kernel(const int* in, int* partial, unsigned* tickets, int* total) {
  INGOT_SHARED(unsigned, ticket);
  const int sum = __reduce_add_sync(0xffffffffU, in[blockIdx.x * 32 + threadIdx.x]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    ticket = atomicAdd(tickets, 1U);
  }
  __syncthreads();
  if (ticket != gridDim.x - 1) return;
  __threadfence();
  if (threadIdx.x == 0)
    for (unsigned b = 0; b < gridDim.x; ++b) *total += partial[b];
}

TEST(Emulator, TheLastBlockSeesWhatTheOthersPublished) {
  for (const std::uint64_t seed : kSeeds) {
    std::vector<int> in(32 * 9, 1), partial(9);
    unsigned tickets = 0;
    int total = 0;
    emu::execute(9, 32, seed, last_kernel, in.data(), partial.data(), &tickets, &total);
    EXPECT_EQ(total, 32 * 9);
  }
}

// What ThreadSanitizer would stop: kernels that show their order, and wrong ones.

#if !defined(__SANITIZE_THREAD__)

__global__ void order_kernel(std::vector<unsigned>* order) {
  order->push_back(blockIdx.x * blockDim.x + threadIdx.x);
}

TEST(Emulator, SeedsOrderThreadsAndBlocksUpDownAndAtRandom) {
  std::set<std::vector<unsigned>> orders;
  for (const std::uint64_t seed : kSeeds) {
    std::vector<unsigned> order, again;
    emu::execute(3, 8, seed, order_kernel, &order);
    emu::execute(3, 8, seed, order_kernel, &again);
    EXPECT_EQ(order, again);
    EXPECT_EQ(std::is_sorted(order.begin(), order.end()), seed == 0);
    EXPECT_EQ(std::is_sorted(order.rbegin(), order.rend()), seed == 1);
    orders.insert(order);
  }
  EXPECT_EQ(orders.size(), std::size(kSeeds));
}

__global__ void no_barrier_kernel(int* out) {
  INGOT_SHARED(int[64], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = box[63 - threadIdx.x];
}

TEST(WrongKernel, AMissingBarrierGivesWrongResultsInSomeOrder) {
  int wrong = 0;
  for (const std::uint64_t seed : kSeeds) {
    int out[64];
    emu::execute(1, 64, seed, no_barrier_kernel, &out[0]);
    for (int i = 0; i < 64; ++i) wrong += out[i] != 63 - i;
  }
  EXPECT_GT(wrong, 0);
}

__global__ void torn_kernel(unsigned* count) {
  const unsigned seen = atomicAdd(count, 0U);  // read and write apart: updates get lost
  atomicExch(count, seen + 1);
}

TEST(WrongKernel, AnUpdateInTwoAtomicStepsLosesCounts) {
  unsigned count = 0;
  emu::execute(4, 64, 2, torn_kernel, &count);
  EXPECT_LT(count, 256U);
}

__global__ void split_kernel() {
  if (threadIdx.x < 16)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void skipped_kernel() {
  if (threadIdx.x == 0)
    __shfl_sync(0xffffffffU, 1, 0);
  else
    __syncthreads();
}
__global__ void stranger_kernel() { __ballot_sync(0x1U, 1); }
__global__ void mixed_kernel() {
  if (threadIdx.x == 0)
    __ballot_sync(0x3U, 1);
  else
    __shfl_sync(0x3U, 1, 0);
}
__global__ void absent_kernel() { __shfl_sync(0xffffffffU, 1, 31); }
__global__ void throwing_kernel() { throw 1; }
__global__ void greedy_kernel() {
  INGOT_SHARED(char[40 << 10], one);
  INGOT_SHARED(char[40 << 10], two);
  one[0] = two[0];
}
__global__ void nested_kernel() { emu::execute(1, 1, 0, throwing_kernel); }

TEST(WrongKernelDeathTest, BrokenSynchronisationIsNamed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(emu::execute(1, 32, 0, split_kernel),
               "wait for each other(.|\n)*threads 0-15 at __syncthreads in .*block_test"
               "(.|\n)*threads 16-31 at __syncthreads");
  EXPECT_DEATH(emu::execute(1, 32, 0, skipped_kernel),
               "threads 0-0 at __shfl_sync(.|\n)*threads 1-31 at __syncthreads");
  EXPECT_DEATH(emu::execute(1, 2, 0, stranger_kernel), "mask does not name it");
  EXPECT_DEATH(emu::execute(1, 2, 0, mixed_kernel), "different warp operations");
  EXPECT_DEATH(emu::execute(1, 20, 0, absent_kernel), "lane that does not take part");
  EXPECT_DEATH(emu::execute(1, 1, 0, throwing_kernel), "exception left a kernel");
  EXPECT_DEATH(emu::execute(1, 1, 0, greedy_kernel), "48 KiB");
  EXPECT_DEATH(emu::execute(1, 1, 0, nested_kernel), "launched a kernel");
  EXPECT_DEATH(emu::execute(1, 1025, 0, throwing_kernel), "1 to 1024");
}

#endif

}  // namespace
