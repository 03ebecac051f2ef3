// What the kernel tests stand on: simulated devices in emulated builds, a real one otherwise. The
// same tests on both are what checks the emulator itself.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "probe.hpp"

#if defined(INGOT_EMULATED)
#include "runtime.hpp"
#endif

namespace ingot::test {

// Why there is no device to test on; empty if there is one.
inline std::string no_device() {
#if defined(INGOT_EMULATED)
  return "";
#else
  try {
    (void)gpu::probe("cuda");
    return "";
  } catch (const Error& e) {
    return e.what();
  }
#endif
}

// The seeds of the orders that a test tries: all, or under a sanitizer, which looks at what the
// code does with memory and threads and not at what an order yields, the first and the last.
inline std::vector<std::uint64_t> orders(std::vector<std::uint64_t> seeds) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  seeds.erase(seeds.begin() + 1, seeds.end() - 1);
#endif
  return seeds;
}

// Takes a fresh simulated machine, where machines are simulated.
inline void fresh([[maybe_unused]] std::uint64_t seed, [[maybe_unused]] bool lazy = true,
                  [[maybe_unused]] int devices = 1) {
#if defined(INGOT_EMULATED)
  emu::Setup setup;
  setup.seed = seed;
  setup.lazy = lazy;
  setup.devices = devices;
  emu::plug(setup);
#endif
}

// Two devices, where they are simulated; a machine with one card tests what one can.
#if defined(INGOT_EMULATED)
inline constexpr char kTwoDevices[] = "cuda:0,1";
#else
inline constexpr char kTwoDevices[] = "cuda";
#endif

}  // namespace ingot::test

// First line of a test that needs a device: without one it is skipped, or, with
// INGOT_REQUIRE_DEVICE=1, fails.
#define INGOT_NEEDS_DEVICE()                                              \
  if (const std::string why = ::ingot::test::no_device(); !why.empty()) { \
    if (std::getenv("INGOT_REQUIRE_DEVICE") != nullptr) FAIL() << why;    \
    GTEST_SKIP() << why;                                                  \
  }                                                                       \
  static_assert(true)
