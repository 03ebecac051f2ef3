// The keys of an order pass, a pack or an element at a time.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/parts/gain.hpp"
#include "line.cuh"
#include "pack.cuh"
#include "walk.cuh"

namespace ingot::gpu {

// `Whole` is what the key is told of the tensor (a combine's facts; None for a key that takes
// anything), `facts` how many facts of lines there are. `source` means nothing to a key of all
// sources.
template <class Key, class Whole, int facts>
struct Keys {
  // How many blocks of verify() a processor must have registers for. Left to a number of its own,
  // ptxas spills some to reach it.
  static constexpr unsigned kBlocks = Key::kSingle ? 3 : 2;

  // The keys of a pack; `base` as load_base() has it.
  __device__ __forceinline__ static void load(const Tensor& tensor, unsigned source,
                                              std::uint64_t pack, const float (&base)[kPack],
                                              std::int32_t (&keys)[kPack]) {
    const Places<facts> places(tensor, tensor.first + pack * kPack);
    if constexpr (Key::kSingle) {
      float x[kPack];
      gpu::load(source_of(tensor, source), pack, x);
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j)
        keys[j] = Key::key(whole(tensor), shown(x[j], base[j]), places.at(j, base[j]));
    } else {
      typename Key::State states[kPack];
      each_stage<Key>([&]<int stage>() {
        for (int s = 0; s < tensor.sources; ++s) {
          float x[kPack];
          gpu::load(source_of(tensor, static_cast<unsigned>(s)), pack, x);
#pragma unroll
          for (unsigned j = 0; j < kPack; ++j)
            Key::template meet<stage>(states[j], whole(tensor), shown(x[j], base[j]),
                                      places.at(j, base[j]));
        }
      });
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j)
        keys[j] = Key::finish(states[j], whole(tensor), places.at(j, base[j]));
    }
  }

  // The key of one element.
  __device__ __forceinline__ static std::int32_t of(const Tensor& tensor, unsigned source,
                                                    std::uint64_t index) {
    const float base = tensor.base ? element(tensor.input[0], index) : 0.0F;
    const math::At<float> at = Places<facts>(tensor, tensor.first + index).at(0, base);
    if constexpr (Key::kSingle) {
      return Key::key(whole(tensor), shown(element(source_of(tensor, source), index), base), at);
    } else {
      typename Key::State state;
      each_stage<Key>([&]<int stage>() {
        for (int s = 0; s < tensor.sources; ++s)
          Key::template meet<stage>(
              state, whole(tensor),
              shown(element(source_of(tensor, static_cast<unsigned>(s)), index), base), at);
      });
      return Key::finish(state, whole(tensor), at);
    }
  }

 private:
  __device__ __forceinline__ static float shown(float x, float base) {
    return Key::Lens::kDelta ? math::delta(x, base) : x;
  }
  // A combine's facts stand at the front of a tensor's.
  __device__ __forceinline__ static const Whole& whole(const Tensor& tensor) {
    return *reinterpret_cast<const Whole*>(tensor.facts);
  }
};

}  // namespace ingot::gpu
