// The CPU's hot loops. tile.cpp is compiled once per instruction set, into a namespace of its name;
// nothing but raw pointers and plain data passes this line.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ingot/math/codec.hpp"
#include "ingot/math/fold.hpp"
#include "ingot/math/rule.hpp"

namespace ingot::cpu {

// Consecutive elements of one input. Any element-aligned address.
struct Input {
  const std::byte* data = nullptr;
  math::Format format = math::Format::f32;
};

// A run of elements of one tensor.
struct Run {
  const Input* inputs = nullptr;  // the base first if `base`, then the sources
  bool base = false;
  int sources = 0;
  std::uint64_t first = 0;  // index in the whole tensor, multiple of 16,384
  std::uint32_t count = 0;
};

// The counts of apply(); added to the present values.
struct Counts {
  std::uint64_t kept[math::kSources] = {};
  std::uint64_t conflicts = 0;
  std::uint32_t change = 0;
};

// Where the keys of one source lie: low <= high.
struct Window {
  std::uint32_t low = 0, high = 0;
};

struct Found {
  std::uint32_t key, index;
};

// Output of verify(): counts, and up to `room` elements strictly inside the window.
struct Census {
  std::uint32_t above = 0, at_high = 0, at_low = 0, between = 0;
  Found* found = nullptr;
  std::uint32_t room = 0;  // what comes after is counted in `between` and not stored
};

struct Tiles {
  // The formula of `facts` over a run, encoded.
  void (*apply)(const Run& run, const math::Facts& facts, math::Format format,
                math::Overflow overflow, std::byte* output, Counts& counts);
  // Magnitude keys of elements [from, from + count) of the run, count at most kStep.
  void (*keys)(const Run& run, int source, std::uint32_t from, std::uint32_t count,
               std::uint32_t* keys);
  // One sweep for all sources with a census; windows[s] and census[s] by source, active[s] != 0.
  void (*verify)(const Run& run, const Window* windows, const std::uint8_t* active, Census* census);
  // Terms over each tile of 16,384: sums[term * ceil(count / 16384) + tile].
  void (*fold)(const Run& run, const math::Facts& facts, const math::Term* terms, int count,
               double* sums);
  // x * x - (1 + 2^-11), subnormal * 1, 1 / 3 and sqrt(2) as this instruction set computes them.
  void (*canary)(const float* in, float* out);
};

// Elements that the loops hold decoded at a time: with a base and three sources they stay in L1.
inline constexpr std::uint32_t kStep = 512;

namespace v2 {
extern const Tiles tiles;
}
namespace v3 {
extern const Tiles tiles;
}
namespace v4 {
extern const Tiles tiles;
}

}  // namespace ingot::cpu
