// Packs: eight stored elements, loaded whole, through the codecs of math/ to f32 and back.
//
// The format is a run-time value, the same for a whole block, so its switch costs a few
// instructions for eight elements and kernels need no instantiation per format.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/codec.hpp"
#include "job.hpp"

namespace ingot::gpu {

// The stored words of a pack; of the narrower formats only the front is used.
struct Words {
  uint4 low, high;
};

// Loads a pack. Separate from unpack() so that a thread has several loads under way.
__device__ __forceinline__ Words fetch(const Operand& in, std::uint64_t pack) {
  Words w;
  w.high = make_uint4(0, 0, 0, 0);
  switch (math::width(in.format)) {
    case 1: {
      const uint2 v = reinterpret_cast<const uint2*>(in.data)[pack];
      w.low = make_uint4(v.x, v.y, 0, 0);
      break;
    }
    case 2:
      w.low = reinterpret_cast<const uint4*>(in.data)[pack];
      break;
    default:
      w.low = reinterpret_cast<const uint4*>(in.data)[2 * pack];
      w.high = reinterpret_cast<const uint4*>(in.data)[2 * pack + 1];
  }
  return w;
}

// The one switch over formats: calls body.template operator()<format>().
template <class Body>
__device__ __forceinline__ void with_format(math::Format format, Body&& body) {
  switch (format) {
    case math::Format::f32:
      body.template operator()<math::Format::f32>();
      break;
    case math::Format::f16:
      body.template operator()<math::Format::f16>();
      break;
    case math::Format::bf16:
      body.template operator()<math::Format::bf16>();
      break;
    case math::Format::e4m3:
      body.template operator()<math::Format::e4m3>();
      break;
    default:
      body.template operator()<math::Format::e5m2>();
  }
}

__device__ __forceinline__ void unpack(const Words& w, math::Format format, float (&x)[kPack]) {
  with_format(format, [&]<math::Format known>() {
    using Codec = math::Codec<known>;
    using Word = typename Codec::Word;
    constexpr unsigned each = 4 / sizeof(Word);
    const std::uint32_t words[8] = {w.low.x,  w.low.y,  w.low.z,  w.low.w,
                                    w.high.x, w.high.y, w.high.z, w.high.w};
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      x[j] = Codec::decode(static_cast<Word>(words[j / each] >> (j % each * 8 * sizeof(Word))));
  });
}

// A pack of an input as numbers.
__device__ __forceinline__ void load(const Operand& in, std::uint64_t pack, float (&x)[kPack]) {
  unpack(fetch(in, pack), in.format, x);
}

// The base of a tensor, or zeros.
__device__ __forceinline__ void load_base(const Tensor& tensor, std::uint64_t pack,
                                          float (&x)[kPack]) {
  if (tensor.base) {
    load(tensor.input[0], pack, x);
  } else {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) x[j] = 0.0F;
  }
}

__device__ __forceinline__ const Operand& source_of(const Tensor& tensor, unsigned source) {
  return tensor.input[source + (tensor.base ? 1U : 0U)];
}

// One element of an input as a number.
__device__ __forceinline__ float element(const Operand& in, std::uint64_t index) {
  float x = 0.0F;
  with_format(in.format, [&]<math::Format known>() {
    using Codec = math::Codec<known>;
    x = Codec::decode(reinterpret_cast<const typename Codec::Word*>(in.data)[index]);
  });
  return x;
}

// Rounds a pack and stores it whole.
__device__ __forceinline__ void store(std::byte* data, math::Format format, math::Overflow overflow,
                                      std::uint64_t at, const float (&x)[kPack]) {
  with_format(format, [&]<math::Format known>() {
    using Codec = math::Codec<known>;
    using Word = typename Codec::Word;
    constexpr unsigned each = 4 / sizeof(Word);
    std::uint32_t words[8] = {};
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      words[j / each] |= std::uint32_t{Codec::encode(x[j], overflow)}
                         << (j % each * 8 * sizeof(Word));
    if constexpr (sizeof(Word) == 1) {
      reinterpret_cast<uint2*>(data)[at] = make_uint2(words[0], words[1]);
    } else if constexpr (sizeof(Word) == 2) {
      reinterpret_cast<uint4*>(data)[at] = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
      reinterpret_cast<uint4*>(data)[2 * at] = make_uint4(words[0], words[1], words[2], words[3]);
      reinterpret_cast<uint4*>(data)[2 * at + 1] =
          make_uint4(words[4], words[5], words[6], words[7]);
    }
  });
}

// Bits of the elements of a pack that exist, of `count` in all.
__device__ __forceinline__ unsigned valid(std::uint64_t pack, std::uint64_t count) {
  const std::uint64_t left = count - pack * kPack;
  return left >= kPack ? (1U << kPack) - 1 : (1U << static_cast<unsigned>(left)) - 1;
}

// Packs of `count` elements.
__device__ __forceinline__ std::uint64_t packs(std::uint64_t count) {
  return (count + kPack - 1) / kPack;
}

}  // namespace ingot::gpu
