// The formulas of math/, one pack at a time. Small numbers of sources are unrolled and held in
// registers; any other number is walked twice, as host/cpu does it.
#include "apply.hpp"

#include "ingot/math/slerp.hpp"
#include "ingot/math/ties.hpp"
#include "map.cuh"
#include "mask.cuh"

namespace ingot::gpu {
namespace {

using math::Divisor;
using math::Facts;
using math::Formula;
using math::Vote;

// Most sources whose loop is unrolled.
constexpr unsigned kUnrolled = 4;
// Whether so few sources are held in registers that three blocks find room on a processor.
template <unsigned K>
constexpr bool kFewSources = K == 1 || K == 2;

__device__ __forceinline__ unsigned sources(const Job& job) {
  return static_cast<unsigned>(job.facts.sources);
}

__device__ __forceinline__ void set(float (&x)[kPack], float value) {
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) x[j] = value;
}

__device__ __forceinline__ void divide(const Facts& facts, float (&x)[kPack]) {
  if (facts.divisor == Divisor::none) return;
  const float divisor = facts.scalar[math::kDivisor];
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j) x[j] = math::share_out(x[j], divisor);
}

template <class Tally>
__device__ __forceinline__ void count_change(const Job& job, const float (&out)[kPack],
                                             const float (&base)[kPack], unsigned bits,
                                             Tally& tally) {
  if (!job.tensor.base) return;
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j)
    if ((bits >> j & 1U) != 0) tally.change(math::delta(out[j], base[j]));
}

template <unsigned K>
struct Linear {
  static constexpr unsigned kSources = K;
  static constexpr unsigned kBlocks = 3;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned,
                                             float (&out)[kPack], Tally&) {
    set(out, 0.0F);
    if constexpr (K > 0) {
      Words words[K];
#pragma unroll
      for (unsigned s = 0; s < K; ++s) words[s] = fetch(job.tensor.input[s], pack);
#pragma unroll
      for (unsigned s = 0; s < K; ++s) add(job, s, words[s], out);
    } else {
      for (unsigned s = 0; s < sources(job); ++s)
        add(job, s, fetch(job.tensor.input[s], pack), out);
    }
    divide(job.facts, out);
  }

 private:
  __device__ __forceinline__ static void add(const Job& job, unsigned s, const Words& words,
                                             float (&sum)[kPack]) {
    float x[kPack];
    unpack(words, job.tensor.input[s].format, x);
    const float weight = job.facts.source[s].weight;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) sum[j] = math::weigh(sum[j], weight, x[j]);
  }
};

struct Scale {
  static constexpr unsigned kSources = 1;
  static constexpr unsigned kBlocks = 3;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned,
                                             float (&out)[kPack], Tally&) {
    load(job.tensor.input[0], pack, out);
    const float weight = job.facts.source[0].weight;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) out[j] = out[j] * weight;
  }
};

struct Slerp {
  static constexpr unsigned kSources = 1;
  static constexpr unsigned kBlocks = 3;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned bits,
                                             float (&out)[kPack], Tally& tally) {
    const Words near = fetch(job.tensor.input[0], pack), far = fetch(job.tensor.input[1], pack);
    float base[kPack];
    unpack(near, job.tensor.input[0].format, base);
    unpack(far, job.tensor.input[1].format, out);
    const math::Arc arc(job.facts);
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) out[j] = arc(base[j], out[j]);
    count_change(job, out, base, bits, tally);
  }
};

// The elements of one source that the mask keeps.
template <class Tally>
__device__ __forceinline__ void thin_source(const Job& job, unsigned s, std::uint64_t pack,
                                            const Words& words, unsigned bits,
                                            const float (&base)[kPack], float (&x)[kPack],
                                            Tally& tally) {
  unpack(words, source_of(job.tensor, s).format, x);
  const math::Source& source = job.facts.source[s];
  const unsigned kept =
      thin(job.facts, source, source.gain, job.tensor.first + pack * kPack, base, x);
  tally.keep(s, kept & bits);
}

// The base, and the elements of K sources that the masks keep.
template <unsigned K, class Tally>
__device__ __forceinline__ void gather(const Job& job, std::uint64_t pack, unsigned bits,
                                       float (&base)[kPack], float (&alive)[K][kPack],
                                       Tally& tally) {
  Words words[K];
#pragma unroll
  for (unsigned s = 0; s < K; ++s) words[s] = fetch(source_of(job.tensor, s), pack);
  load_base(job.tensor, pack, base);
#pragma unroll
  for (unsigned s = 0; s < K; ++s) thin_source(job, s, pack, words[s], bits, base, alive[s], tally);
}

template <unsigned K>
struct Sum {
  static constexpr unsigned kSources = K;
  static constexpr unsigned kBlocks = kFewSources<K> ? 3 : 2;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned bits,
                                             float (&out)[kPack], Tally& tally) {
    float base[kPack];
    math::Spread spread[kPack];
    set(out, 0.0F);
    if constexpr (K > 0) {
      float alive[K][kPack];
      gather<K>(job, pack, bits, base, alive, tally);
#pragma unroll
      for (unsigned s = 0; s < K; ++s) add(alive[s], out, spread);
    } else {
      load_base(job.tensor, pack, base);
      for (unsigned s = 0; s < sources(job); ++s) {
        float x[kPack];
        thin_source(job, s, pack, fetch(source_of(job.tensor, s), pack), bits, base, x, tally);
        add(x, out, spread);
      }
    }
    divide(job.facts, out);
    const float lambda = job.facts.scalar[math::kLambda];
    unsigned conflicts = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) {
      out[j] = math::land(out[j], lambda, base[j]);
      if (spread[j].conflict()) conflicts |= 1U << j;
    }
    tally.conflict(conflicts & bits);
    count_change(job, out, base, bits, tally);
  }

 private:
  __device__ __forceinline__ static void add(const float (&x)[kPack], float (&sum)[kPack],
                                             math::Spread (&spread)[kPack]) {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) {
      sum[j] += x[j];
      spread[j].add(x[j]);
    }
  }
};

template <Vote vote, Divisor divisor, unsigned K>
struct Consensus {
  static constexpr unsigned kSources = K;
  static constexpr unsigned kBlocks = kFewSources<K> ? 3 : 2;

  template <class Tally>
  __device__ __forceinline__ static void run(const Job& job, std::uint64_t pack, unsigned bits,
                                             float (&out)[kPack], Tally& tally) {
    float base[kPack];
    unsigned conflicts = 0;
    if constexpr (K > 0) {
      float alive[K][kPack], weight[K];
      gather<K>(job, pack, bits, base, alive, tally);
#pragma unroll
      for (unsigned s = 0; s < K; ++s) weight[s] = job.facts.source[s].weight;
      const math::Consensus<vote, divisor, float, int{K}> formula{weight, int{K},
                                                                  job.facts.scalar[math::kLambda]};
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j) {
        float column[K];
#pragma unroll
        for (unsigned s = 0; s < K; ++s) column[s] = alive[s][j];
        bool conflict = false;
        out[j] = formula(column, column, base[j], conflict);
        if (conflict) conflicts |= 1U << j;
      }
    } else {
      conflicts = walk(job, pack, bits, base, out, tally);
    }
    tally.conflict(conflicts & bits);
    count_change(job, out, base, bits, tally);
  }

 private:
  // Source by source, with running sums: once for the vote, once for the mean.
  template <class Tally>
  __device__ __forceinline__ static unsigned walk(const Job& job, std::uint64_t pack, unsigned bits,
                                                  float (&base)[kPack], float (&out)[kPack],
                                                  Tally& tally) {
    load_base(job.tensor, pack, base);
    float votes[kPack], shares[kPack], least[kPack], x[kPack];
    set(votes, 0.0F);
    set(shares, 0.0F);
    set(least, 0.0F);
    set(out, 0.0F);
    for (unsigned s = 0; s < sources(job); ++s) {
      thin_source(job, s, pack, fetch(source_of(job.tensor, s), pack), bits, base, x, tally);
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j) votes[j] += math::ballot<vote>(x[j]);
    }
    for (unsigned s = 0; s < sources(job); ++s) {
      load(source_of(job.tensor, s), pack, x);
      const math::Source& source = job.facts.source[s];
      (void)thin(job.facts, source, source.gain, job.tensor.first + pack * kPack, base, x);
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j) {
        const float opinion = math::heard(x[j], math::majority(votes[j]));
        const bool agrees = math::agrees(opinion);
        out[j] += agrees ? math::term<vote>(x[j], source.weight) : 0.0F;
        shares[j] += agrees ? math::share<divisor>(source.weight) : 0.0F;
        least[j] = opinion < least[j] ? opinion : least[j];
      }
    }
    const float lambda = job.facts.scalar[math::kLambda];
    unsigned conflicts = 0;
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) {
      out[j] = math::land(math::mean<divisor>(out[j], shares[j]), lambda, base[j]);
      if (math::opposes(least[j])) conflicts |= 1U << j;
    }
    return conflicts;
  }
};

using Kernel = void (*)(Batch);

// The closed list: for linear, sum and the two consensus rules of recipes, any number of sources,
// then 1 to kUnrolled; the others in one form.
constexpr unsigned kForms = kUnrolled + 1;
enum Group : unsigned { linear, sum, plain, normalized, kGroups };
constexpr unsigned kSingle = kGroups * kForms;
static_assert(kSingle + 4 <= kKinds);

const Kernel kKernels[kSingle + 4] = {
    map_kernel<Linear<0>>,
    map_kernel<Linear<1>>,
    map_kernel<Linear<2>>,
    map_kernel<Linear<3>>,
    map_kernel<Linear<4>>,
    map_kernel<Sum<0>>,
    map_kernel<Sum<1>>,
    map_kernel<Sum<2>>,
    map_kernel<Sum<3>>,
    map_kernel<Sum<4>>,
    map_kernel<Consensus<Vote::weighted, Divisor::none, 0>>,
    map_kernel<Consensus<Vote::weighted, Divisor::none, 1>>,
    map_kernel<Consensus<Vote::weighted, Divisor::none, 2>>,
    map_kernel<Consensus<Vote::weighted, Divisor::none, 3>>,
    map_kernel<Consensus<Vote::weighted, Divisor::none, 4>>,
    map_kernel<Consensus<Vote::weighted, Divisor::weight, 0>>,
    map_kernel<Consensus<Vote::weighted, Divisor::weight, 1>>,
    map_kernel<Consensus<Vote::weighted, Divisor::weight, 2>>,
    map_kernel<Consensus<Vote::weighted, Divisor::weight, 3>>,
    map_kernel<Consensus<Vote::weighted, Divisor::weight, 4>>,
    map_kernel<Consensus<Vote::total, Divisor::count, 0>>,
    map_kernel<Consensus<Vote::frequency, Divisor::count, 0>>,
    map_kernel<Scale>,
    map_kernel<Slerp>,
};

}  // namespace

unsigned kind(const Facts& facts) {
  const auto sources = static_cast<unsigned>(facts.sources);
  const unsigned form = sources <= kUnrolled ? sources : 0U;
  switch (facts.formula) {
    case Formula::linear:
      return linear * kForms + form;
    case Formula::sum:
      return sum * kForms + form;
    case Formula::scale:
      return kSingle + 2;
    case Formula::slerp:
      return kSingle + 3;
    case Formula::consensus:
      break;
  }
  if (facts.vote == Vote::total) return kSingle;
  if (facts.vote == Vote::frequency) return kSingle + 1;
  return (facts.divisor == Divisor::none ? plain : normalized) * kForms + form;
}

unsigned span_packs(std::uint64_t elements, unsigned processors) {
  // 2,048 to 16,384 elements: many enough that counting is cheap, few enough that all are at work.
  std::uint64_t packs = 2048;
  while (packs > 256 && elements < packs * kPack * processors * 8) packs /= 2;
  return static_cast<unsigned>(packs);
}

void apply(unsigned kind, const Batch& batch, const Shape& shape, const Stream& stream) {
  launch("merging", kKernels[kind], dim3(blocks_for(batch.spans, shape)), shape.threads, stream,
         batch);
}

}  // namespace ingot::gpu
