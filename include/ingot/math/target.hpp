// What host and device share: the function marker, exact bit casts, the explicit fused product.
//
// Every file of math/ compiles under g++ (any ISA) and nvcc and gives the same bits: only + - * /,
// square root, comparisons, integers and fuse() are used (docs/numbers.md).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__FAST_MATH__)
#error "ingot's results are exact by contract: build without -ffast-math"
#endif

// Marks a function that runs on host and device.
#if defined(__CUDACC__)
#define INGOT_HD __host__ __device__ __forceinline__
#else
#define INGOT_HD inline __attribute__((always_inline))
#endif

// Before a short loop that must be unrolled for the loop around it to become vectors: g++ leaves
// it as it is below -O3. nvcc decides for itself.
#if defined(__CUDACC__)
#define INGOT_UNROLL
#else
#define INGOT_UNROLL _Pragma("GCC unroll 16")
#endif

namespace ingot::math {

INGOT_HD std::uint32_t bits(float x) {
  std::uint32_t u;
  __builtin_memcpy(&u, &x, sizeof u);
  return u;
}
INGOT_HD float from_bits(std::uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, sizeof x);
  return x;
}

// a * b + c with one rounding. The only place where a product and a sum are fused.
INGOT_HD float fuse(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
INGOT_HD double fuse(double a, double b, double c) { return __builtin_fma(a, b, c); }

INGOT_HD float magnitude(float x) { return from_bits(bits(x) & 0x7fffffffu); }
INGOT_HD double magnitude(double x) { return x < 0 ? -x : x; }

}  // namespace ingot::math
