// What kernels are told: plain data in device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ingot/math/codec.hpp"
#include "ingot/math/fold.hpp"

namespace ingot::gpu {

// Elements that one thread holds at a time. Inputs and outputs begin at 32-byte boundaries and are
// followed by memory up to a whole pack, so packs are loaded and stored whole; what lies behind the
// last element is never counted.
inline constexpr unsigned kPack = 8;

// Bytes that `count` elements of a width take in device memory.
[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t count, std::size_t width) {
  return (count + kPack - 1) / kPack * kPack * width;
}

// Size of a grid. Results never depend on it.
struct Shape {
  unsigned threads = 256;   // of a block: a multiple of 32, at most 1024
  unsigned blocks = 65536;  // at most; kernels stride over the rest
};

struct Operand {
  const std::byte* data = nullptr;
  math::Format format = math::Format::f32;
};

// Facts of those lines of a tensor that its elements here lie in: fact i of the n-th of them at
// facts[i * count + n]. The n-th is line `first + n`; behind the tensor's last line comes its
// first.
struct LineTable {
  const double* facts = nullptr;  // null where no pass has made any
  std::uint64_t first = 0, count = 0;
  math::LineShape shape;
};

// Consecutive elements of one tensor's inputs, and what is known of the tensor.
struct Tensor {
  const Operand* input = nullptr;    // the base first if `base`, then the sources
  const std::byte* facts = nullptr;  // math::known() reads them; a multiple of 16 bytes
  LineTable line;
  std::int32_t sources = 0;
  bool base = false;
  std::uint64_t first = 0;  // index of the first element in the whole tensor, multiple of 8
  std::uint64_t count = 0;
};

// What became of a job's task vectors; sums and a maximum of integers, so the order is free.
struct Counts {
  unsigned long long kept[math::kSources];  // not counted where the method has no mask
  unsigned long long conflicts;
  unsigned change;  // bits; any NaN is the canonical one
};

// One output: a formula over the inputs.
struct Job {
  Tensor tensor;
  std::byte* output = nullptr;
  math::Format format = math::Format::f32;
  math::Overflow overflow = math::Overflow::saturate;
  std::uint64_t span = 0;  // number of its first span among all jobs of the batch
};

// How the keys of a stream lie to a bracket. Where low == high, ties are counted in at_high.
struct Census {
  unsigned above, at_high, at_low;
  unsigned between;  // also how many candidates have a place in the list
};

// Where the candidates of one span lie in the list of their bracket; ordered by index.
struct Segment {
  std::uint32_t offset, count;
};

}  // namespace ingot::gpu
