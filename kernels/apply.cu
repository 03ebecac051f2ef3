// The formulas of math/, one pack at a time. Kernels are made from the list of methods: small
// numbers of sources are unrolled and held in registers, any other number is walked stage by stage.
#include "apply.hpp"

#include <array>
#include <utility>

#include "ingot/math/list.hpp"
#include "line.cuh"
#include "map.cuh"
#include "mask.cuh"
#include "walk.cuh"

namespace ingot::gpu {
namespace {

// A formula over K sources, or over any number (K = 0). `facts` is how many facts of lines there
// are.
template <class Lens, class Combine, unsigned K, int facts>
struct Merge {
  static constexpr unsigned kSources = K;
  // How many blocks of it find room on a processor, by the numbers that are held in registers.
  static constexpr bool kLight =
      Lens::kMask != math::Mask::random &&
      (K == 1 || K == 2 ||
       (Lens::kMask == math::Mask::none && !Lens::kDelta && Combine::kStages == 1));
  static constexpr bool kHeavy = K == 0 && sizeof(typename Combine::template State<float>) > 24;
  static constexpr unsigned kBlocks = kHeavy ? 1 : kLight ? 3 : 2;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned bits,
                                             float (&out)[kPack], Tally& tally) {
    const Tensor& tensor = job.tensor;
    const auto known = math::known<Lens, Combine>(tensor.facts, tensor.sources);
    const int form = Combine::form(*known.whole);
    const Places<facts> places(tensor, tensor.first + pack * kPack);
    float base[kPack] = {};
    unsigned conflicts = 0;
    const auto finish = [&]<int of>(const State& state, unsigned j) {
      math::Note note;
      out[j] =
          Combine::template finish<of, float>(state, *known.whole, places.at(j, base[j]), note);
      if (note.conflict) conflicts |= 1U << j;
    };

    if constexpr (K > 0 && Combine::kStages > 1) {
      float seen[K][kPack];
      Words words[K];
#pragma unroll
      for (unsigned s = 0; s < K; ++s) words[s] = fetch(source_of(tensor, s), pack);
      load_base(tensor, pack, base);
#pragma unroll
      for (unsigned s = 0; s < K; ++s)
        take<true>(job, known, s, pack, words[s], bits, base, seen[s], tally);
      with_form<Combine>(form, [&]<int of>() {
#pragma unroll
        for (unsigned j = 0; j < kPack; ++j) {
          State state;
          const math::At<float> at = places.at(j, base[j]);
          each_stage<Combine>([&]<int stage>() {
#pragma unroll
            for (unsigned s = 0; s < K; ++s)
              Combine::template meet<of, stage, float>(state, *known.whole, known.source[s],
                                                       seen[s][j], seen[s][j], at);
          });
          finish.template operator()<of>(state, j);
        }
      });
    } else {
      State states[kPack];
      const auto meet = [&]<int stage>(unsigned s, const float(&x)[kPack]) {
        with_form<Combine>(form, [&]<int of>() {
#pragma unroll
          for (unsigned j = 0; j < kPack; ++j)
            Combine::template meet<of, stage, float>(states[j], *known.whole, known.source[s], x[j],
                                                     x[j], places.at(j, base[j]));
        });
      };
      if constexpr (K > 0) {
        Words words[K];
#pragma unroll
        for (unsigned s = 0; s < K; ++s) words[s] = fetch(source_of(tensor, s), pack);
        load_base(tensor, pack, base);
#pragma unroll
        for (unsigned s = 0; s < K; ++s) {
          float x[kPack];
          take<true>(job, known, s, pack, words[s], bits, base, x, tally);
          meet.template operator()<0>(s, x);
        }
      } else {
        load_base(tensor, pack, base);
        each_stage<Combine>([&]<int stage>() {
          for (unsigned s = 0; s < static_cast<unsigned>(tensor.sources); ++s) {
            float x[kPack];
            const Words words = fetch(source_of(tensor, s), pack);
            take<stage == 0>(job, known, s, pack, words, bits, base, x, tally);
            meet.template operator()<stage>(s, x);
          }
        });
      }
      with_form<Combine>(form, [&]<int of>() {
#pragma unroll
        for (unsigned j = 0; j < kPack; ++j) finish.template operator()<of>(states[j], j);
      });
    }

    tally.conflict(conflicts & bits);
    if (!tensor.base) return;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j)
      if ((bits >> j & 1U) != 0) tally.change(math::delta(out[j], base[j]));
  }

 private:
  using State = typename Combine::template State<float>;

  // What the formula sees of a source; counts what the mask lets through of `bits`, once.
  template <bool counted, class Known, class Tally>
  __device__ __forceinline__ static void take(const Job& job, const Known& known, unsigned s,
                                              std::uint64_t pack, const Words& words, unsigned bits,
                                              const float (&base)[kPack], float (&x)[kPack],
                                              Tally& tally) {
    unpack(words, source_of(job.tensor, s).format, x);
    [[maybe_unused]] const unsigned kept =
        see<Lens>(known.lens[s], job.tensor.first + pack * kPack, base, x);
    if constexpr (counted && Lens::kMask != math::Mask::none) tally.keep(s, kept & bits);
  }
};

using Kernel = void (*)(Batch);

// Most sources that any kernel holds in registers.
constexpr int kHeld = 4;

// The most sources of a method beside the base.
template <class M>
constexpr int kMost = M::kCard.most - (M::kCard.base == math::Base::pivot ? 1 : 0);

// The kernel for K sources, or for any number (K = 0); null where no merge needs it.
template <class M, unsigned K>
constexpr Kernel kernel() {
  using Combine = typename M::Combine;
  static_assert(Combine::kHeld <= kHeld);
  constexpr unsigned held = Combine::kHeld < kMost<M> ? Combine::kHeld : kMost<M>;
  if constexpr (K == 0 ? held < kMost<M> || M::kCard.least == 0 : K <= held) {
    return map_kernel<Merge<typename M::Lens, Combine, K, math::line_facts<M>()>>;
  } else {
    return nullptr;
  }
}

struct Kernels {
  Kernel of[kHeld + 1];
};
template <class M, unsigned... K>
constexpr Kernels kernels(std::integer_sequence<unsigned, K...>) {
  return {{kernel<M, K>()...}};
}
template <class... M>
constexpr std::array<Kernels, sizeof...(M)> table(math::List<M...>) {
  return {kernels<M>(std::make_integer_sequence<unsigned, kHeld + 1>{})...};
}
// By method and number of sources. Methods of one lens and combine have the same kernels.
const std::array<Kernels, math::Methods::size> kKernels = table(math::Methods{});

}  // namespace

unsigned kind(int method, int sources) {
  const Kernels& kernels = kKernels[static_cast<std::size_t>(method)];
  const int form = sources <= kHeld && kernels.of[sources] != nullptr ? sources : 0;
  return static_cast<unsigned>(method * (kHeld + 1) + form);
}

unsigned span_packs(std::uint64_t elements, unsigned processors) {
  // 2,048 to 16,384 elements: many enough that counting is cheap, few enough that all are at work.
  std::uint64_t packs = 2048;
  while (packs > 256 && elements < packs * kPack * processors * 8) packs /= 2;
  return static_cast<unsigned>(packs);
}

void apply(unsigned kind, const Batch& batch, const Shape& shape, const Stream& stream) {
  const Kernel kernel = kKernels[kind / (kHeld + 1)].of[kind % (kHeld + 1)];
  launch("merging", kernel, dim3(blocks_for(batch.spans, shape)), shape.threads, stream, batch);
}

}  // namespace ingot::gpu
