// The CPU's hot loops. merge_loops.cpp, select_loops.cpp, fold_loops.cpp and tile.cpp are compiled
// once per instruction set, into a namespace of its name; nothing but raw pointers and plain data
// passes this line.
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

// A run of elements of one tensor, and what is known of the tensor.
struct Run {
  const Input* inputs = nullptr;  // the base first if `base`, then the sources
  bool base = false;
  int sources = 0;
  std::uint64_t first = 0;  // index in the whole tensor, multiple of 16,384
  std::uint32_t count = 0;
  const std::byte* facts = nullptr;  // math::Facts::data()
  math::LineShape shape;             // the lines whose facts the method reads
  const double* lines = nullptr;     // fact i of line l at [i * shape.count + l]; null: none yet
};

// The counts of apply(); added to the present values.
struct Counts {
  std::uint64_t kept[math::kSources] = {};
  std::uint64_t conflicts = 0;
  std::uint32_t change = 0;
};

// The method's formula over a run, encoded.
using Apply = void (*)(const Run& run, math::Format format, math::Overflow overflow,
                       std::byte* output, Counts& counts);

// The sums of a fold or lines pass, laid out as Backend::fold() has them: sum n begins at
// sums[n * stride].
using Fold = void (*)(const Run& run, const math::Group* groups, int count, std::size_t stride,
                      double* sums);

// Keys of elements [from, from + count) of the run, count at most kStep: of one source, or of all.
using Keys = void (*)(const Run& run, int source, std::uint32_t from, std::uint32_t count,
                      std::int32_t* keys);

// A window that the keys of a stream are counted against: low <= high.
struct Window {
  int stream = 0;
  int source = 0;  // whose keys they are; -1: of all sources
  std::int32_t low = 0, high = 0;
};

struct Found {
  std::int32_t key;
  std::uint32_t index;
};

// Output of count(): counts, and up to `room` elements strictly inside the window.
struct Census {
  std::uint32_t above = 0, at_high = 0, at_low = 0, between = 0;
  Found* found = nullptr;
  std::uint32_t room = 0;  // what comes after is counted in `between` and not stored
};

// One sweep over a run for all windows; those of one stream stand together.
using Count = void (*)(const Run& run, const Window* windows, int number, Census* census);

// x * x - (1 + 2^-11), subnormal * 1, 1 / 3 and sqrt(2) as this instruction set computes them.
using Canary = void (*)(const float* in, float* out);

// Loops by a method's index in math::Methods and a pass's number among the method's.
struct Tiles {
  Apply (*apply)(int method);
  Fold (*fold)(int method, int pass);
  Keys (*keys)(int method, int pass);
  Count (*count)(int method, int pass);
  Canary canary;
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
