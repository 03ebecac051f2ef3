// What tests ask of the libraries that stand for cuBLAS and cuSOLVER beside their own functions,
// which each of the two has under these names.
#pragma once

#include <cstdint>

struct FakeCalls {
  std::uint64_t all = 0;       // calls that can fail
  std::uint64_t products = 0;  // batched products in f64, and of f32
  std::uint64_t eigen = 0;     // batched eigenproblems ...
  std::uint64_t matrices = 0;  // ... and the matrices in them
  std::uint64_t qr = 0;
  std::int64_t live = 0;  // handles not given back
};

// Forgets what was counted; from now the n-th call (from 1) fails, if n is not 0.
using FakeReset = void(std::uint64_t n);
inline constexpr char kFakeReset[] = "fake_reset";
using FakeCounted = FakeCalls();
inline constexpr char kFakeCounted[] = "fake_counted";
