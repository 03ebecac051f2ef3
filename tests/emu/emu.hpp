// Executes CUDA kernels on a CPU: what a kernel sees in place of the CUDA headers.
//
// Each CUDA thread of a block is a fiber of one OS thread; blocks run one after the other. Order is
// chosen by a seed. Wrong synchronisation ends the process with a sentence; AddressSanitizer finds
// stray accesses; under ThreadSanitizer only CUDA's own synchronisation orders two threads, within
// a block and across blocks, so a missing barrier is a reported race whatever the order was.
//
// Not here: cooperative groups, textures, inline PTX, __activemask, float atomics, plain __shared__
// (use INGOT_SHARED), spin-waits between blocks.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "annotate.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline constexpr int warpSize = 32;

// The indices of the running CUDA thread.
extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

namespace emu {

// Where a kernel called a synchronising function.
struct Place {
  const char* file = "";
  int line = 0;
  static constexpr Place here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) {
    return {f, l};
  }
  friend bool operator==(const Place& a, const Place& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
  }
};

// Ends the process with "emu: <text>" and the place in the grid.
[[noreturn]] void die(const char* text);

// Runs `body` once for every thread of the grid, on the calling OS thread. `seed` orders threads
// and blocks: 0 ascending, 1 descending, any other at random, with random pauses at atomics.
void run(dim3 grid, dim3 block, std::uint64_t seed, const std::function<void()>& body);

// The same for a kernel and its arguments, which are copied as a launch copies them.
template <class... P, class... A>
void execute(dim3 grid, dim3 block, std::uint64_t seed, void (*kernel)(P...), A&&... arguments) {
  std::tuple<std::decay_t<P>...> copy(static_cast<P>(arguments)...);
  run(grid, block, seed, [&] { std::apply(kernel, copy); });
}

// The values that lanes of one warp brought to a collective operation.
struct Meeting {
  const char* operation = nullptr;
  Place place;
  std::uint32_t mask = 0, arrived = 0, left = 0;
  bool closed = false;
  mutable unsigned joined = 0;  // of a reduction: the first lane to read it makes it
  alignas(16) unsigned char value[32][16];

  template <class T>
  [[nodiscard]] T at(int lane) const {
    if ((arrived >> lane & 1U) == 0) die("a shuffle reads a lane that does not take part");
    T result;
    std::memcpy(&result, value[lane], sizeof result);
    return result;
  }
};

int barrier(int predicate, Place place);  // returns how many predicates were non-zero
const Meeting& meet(const char* operation, unsigned mask, const void* value, std::size_t bytes,
                    bool fence, Place place);
void leave(const Meeting& meeting, bool fence);
void fence();
void pause();  // lets other threads go first, now and then, if the seed is random
void* shared(const void* site, std::size_t bytes, std::size_t alignment);
template <class T>
T& shared(const void* site) {
  return *static_cast<T*>(shared(site, sizeof(T), alignof(T)));
}
int lane();

template <class T, class F>
auto collect(const char* operation, unsigned mask, const T& value, Place place, F&& read) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 16);
  const Meeting& meeting = meet(operation, mask, &value, sizeof value, false, place);
  auto result = read(meeting);
  leave(meeting, false);
  return result;
}

template <class T>
concept Shuffled = std::is_arithmetic_v<T> &&(sizeof(T) == 4 || sizeof(T) == 8);
template <class T>
concept Reduced = std::is_same_v<T, unsigned> || std::is_same_v<T, int>;
// The integer types CUDA's atomics take: std::uint64_t is not one of them on Linux.
template <class T>
concept Atomic =
    std::is_same_v<T, unsigned> || std::is_same_v<T, int> || std::is_same_v<T, unsigned long long>;

template <Reduced T, class F>
T reduce(const char* operation, unsigned mask, T value, Place place, F&& join) {
  return collect(operation, mask, value, place, [&](const Meeting& m) {
    const Backstage quiet;
    if (m.left == 0) {
      T sum{};
      bool first = true;
      for (int l = 0; l < 32; ++l) {
        if ((m.arrived >> l & 1U) == 0) continue;
        sum = first ? m.at<T>(l) : join(sum, m.at<T>(l));
        first = false;
      }
      m.joined = static_cast<unsigned>(sum);
    }
    return static_cast<T>(m.joined);
  });
}

template <Atomic T, class F>
T update(T* target, F&& next) {
  pause();
  T old = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(target, &old, next(old), false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace emu

// Memory of the block, filled with rubbish when the block starts, fenced by redzones under ASan.
#define INGOT_SHARED(T, name)        \
  static const char name##_site = 0; \
  std::type_identity_t<T>& name = ::emu::shared<T>(&name##_site)

inline void __syncthreads(emu::Place p = emu::Place::here()) { emu::barrier(0, p); }
inline int __syncthreads_count(int x, emu::Place p = emu::Place::here()) {
  return emu::barrier(x != 0, p);
}
inline int __syncthreads_or(int x, emu::Place p = emu::Place::here()) {
  return emu::barrier(x != 0, p) != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffU, emu::Place p = emu::Place::here()) {
  const int none = 0;
  emu::leave(emu::meet("__syncwarp", mask, &none, sizeof none, true, p), true);
}
inline void __threadfence() { emu::fence(); }

template <emu::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              emu::Place p = emu::Place::here()) {
  return emu::collect("__shfl_sync", mask, value, p, [&](const emu::Meeting& m) {
    return m.at<T>((emu::lane() & ~(width - 1)) | (source & (width - 1)));
  });
}
template <emu::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  emu::Place p = emu::Place::here()) {
  return emu::collect("__shfl_xor_sync", mask, value, p, [&](const emu::Meeting& m) {
    const int other = emu::lane() ^ flip;
    return other <= (emu::lane() | (width - 1)) ? m.at<T>(other) : value;
  });
}
template <emu::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emu::Place p = emu::Place::here()) {
  return emu::collect("__shfl_up_sync", mask, value, p, [&](const emu::Meeting& m) {
    const int other = emu::lane() - static_cast<int>(delta);
    return other >= (emu::lane() & ~(width - 1)) ? m.at<T>(other) : value;
  });
}
template <emu::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emu::Place p = emu::Place::here()) {
  return emu::collect("__shfl_down_sync", mask, value, p, [&](const emu::Meeting& m) {
    const int other = emu::lane() + static_cast<int>(delta);
    return other <= (emu::lane() | (width - 1)) ? m.at<T>(other) : value;
  });
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emu::Place p = emu::Place::here()) {
  const unsigned mine = predicate != 0 ? 1U << emu::lane() : 0U;
  return emu::reduce("__ballot_sync", mask, mine, p, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate, emu::Place p = emu::Place::here()) {
  return __ballot_sync(mask, predicate, p) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emu::Place p = emu::Place::here()) {
  return __ballot_sync(mask, predicate == 0, p) == 0;
}
template <emu::Shuffled T>
unsigned __match_any_sync(unsigned mask, T value, emu::Place p = emu::Place::here()) {
  return emu::collect("__match_any_sync", mask, value, p, [&](const emu::Meeting& m) {
    unsigned same = 0;
    for (int l = 0; l < 32; ++l)
      if ((m.arrived >> l & 1U) != 0 && std::memcmp(m.value[l], &value, sizeof value) == 0)
        same |= 1U << l;
    return same;
  });
}
template <emu::Reduced T>
T __reduce_add_sync(unsigned mask, T value, emu::Place p = emu::Place::here()) {
  return emu::reduce("__reduce_add_sync", mask, value, p, [](T a, T b) { return a + b; });
}
template <emu::Reduced T>
T __reduce_max_sync(unsigned mask, T value, emu::Place p = emu::Place::here()) {
  return emu::reduce("__reduce_max_sync", mask, value, p, [](T a, T b) { return a > b ? a : b; });
}
template <emu::Reduced T>
T __reduce_min_sync(unsigned mask, T value, emu::Place p = emu::Place::here()) {
  return emu::reduce("__reduce_min_sync", mask, value, p, [](T a, T b) { return a < b ? a : b; });
}

template <emu::Atomic T>
T atomicAdd(T* target, std::type_identity_t<T> x) {
  return emu::update(target, [=](T old) { return static_cast<T>(old + x); });
}
template <emu::Atomic T>
T atomicMax(T* target, std::type_identity_t<T> x) {
  return emu::update(target, [=](T old) { return old > x ? old : x; });
}
template <emu::Atomic T>
T atomicMin(T* target, std::type_identity_t<T> x) {
  return emu::update(target, [=](T old) { return old < x ? old : x; });
}
template <emu::Atomic T>
T atomicOr(T* target, std::type_identity_t<T> x) {
  return emu::update(target, [=](T old) { return old | x; });
}
template <emu::Atomic T>
T atomicExch(T* target, std::type_identity_t<T> x) {
  return emu::update(target, [=](T) { return x; });
}
template <emu::Atomic T>
T atomicCAS(T* target, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return emu::update(target, [=](T old) { return old == expected ? x : old; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
