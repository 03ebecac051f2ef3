// The reductions: sums over tiles, over segments of rows and over columns, in double, in the shapes
// of math/fold.hpp.
//
// Of a tile or a row's segment a block makes one group's sums: numbers are made pack by pack, as
// everywhere, and put in the block's memory; there lane l finds its elements l, l + 256, ... Of a
// column one thread does. No atomics: the sums have the same bits for any grid.
#pragma once

#include <cuda_runtime.h>

#include "ingot/math/fold.hpp"
#include "launch.cuh"
#include "line.cuh"
#include "mask.cuh"
#include "walk.cuh"

namespace ingot::gpu {

// Elements of a tile that the block's memory holds at a time: one pack per lane.
inline constexpr unsigned kStep = math::kLanes * kPack;
static_assert(math::kTile % kStep == 0);

// The most sums that one term has.
template <class... Term>
constexpr int most_sums(math::List<Term...>) {
  int most = 0;
  ((most = Term::kSums > most ? Term::kSums : most), ...);
  return most;
}

// What a pass adds, of which sources, how sums are joined, and how many facts of lines there are.
template <class L, class C, class T, class Co, class J, int f>
struct Adds {
  using Lens = L;
  using Combine = C;
  using Terms = T;
  using Common = Co;
  using Join = J;
  static constexpr int facts = f;
  using Known = math::Known<L, C>;
  static constexpr int kMost = most_sums(T{});
};

namespace detail {

// Calls body.template operator()<Term>() with the term of this number.
template <class Body, class... Term>
__device__ __forceinline__ void with_term(math::List<Term...>, int number, Body&& body) {
  int at = 0;
  ((at++ == number ? body.template operator()<Term>() : void()), ...);
}

// A pack of a column, in the place of what `x` holds.
template <class A>
__device__ __forceinline__ void column_pack(const Tensor& tensor, const typename A::Known& known,
                                            const math::Column& column, std::uint64_t pack,
                                            const float (&base)[kPack], float (&x)[kPack]) {
  if (column.stream == math::Stream::value) {
    load(tensor.input[column.index], pack, x);
    return;
  }
  load(source_of(tensor, column.index), pack, x);
  if (column.stream == math::Stream::survivor) {
    survive<typename A::Lens>(known.lens[column.index], tensor.first + pack * kPack, base, x);
  } else {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) x[j] = math::delta(x[j], base[j]);
  }
}

// What a pass's Common makes of the sources, for a pack.
template <class A>
__device__ __forceinline__ void common_pack(const Tensor& tensor, const typename A::Known& known,
                                            std::uint64_t pack, const float (&base)[kPack],
                                            float (&out)[kPack]) {
  using Common = typename A::Common;
  const Places<A::facts> places(tensor, tensor.first + pack * kPack);
  typename Common::State states[kPack];
  each_stage<Common>([&]<int stage>() {
    for (int s = 0; s < tensor.sources; ++s) {
      float x[kPack];
      load(source_of(tensor, static_cast<unsigned>(s)), pack, x);
#pragma unroll
      for (unsigned j = 0; j < kPack; ++j) {
        if constexpr (Common::kStream == math::Stream::delta) x[j] = math::delta(x[j], base[j]);
        Common::template meet<stage>(states[j], *known.whole, x[j], places.here(j, 0.0F));
      }
    }
  });
#pragma unroll
  for (unsigned j = 0; j < kPack; ++j)
    out[j] = Common::finish(states[j], *known.whole, places.here(j, 0.0F));
}

// The same for one element.
template <class A>
__device__ __forceinline__ float column_element(const Tensor& tensor,
                                                const typename A::Known& known,
                                                const math::Column& column, std::uint64_t index,
                                                float base) {
  if (column.stream == math::Stream::none) return 0.0F;
  if (column.stream == math::Stream::value) return element(tensor.input[column.index], index);
  using Lens = typename A::Lens;
  const float x = element(source_of(tensor, column.index), index);
  const float d = math::delta(x, base);
  if (column.stream == math::Stream::delta) return d;
  const float shown = Lens::kDelta ? d : x;
  return Lens::keeps(known.lens[column.index], shown, tensor.first + index) ? shown : 0.0F;
}
template <class A>
__device__ __forceinline__ float common_element(const Tensor& tensor,
                                                const typename A::Known& known, std::uint64_t index,
                                                float base, const math::Here& here) {
  using Common = typename A::Common;
  typename Common::State state;
  each_stage<Common>([&]<int stage>() {
    for (int s = 0; s < tensor.sources; ++s) {
      const float x = element(source_of(tensor, static_cast<unsigned>(s)), index);
      const float d = Common::kStream == math::Stream::delta ? math::delta(x, base) : x;
      Common::template meet<stage>(state, *known.whole, d, here);
    }
  });
  return Common::finish(state, *known.whole, here);
}

// A block's columns for one step.
struct Step {
  float* a;
  float* b;
  float* common;
};

// Each thread puts its pack of every column that a group needs in the block's memory.
template <class A>
__device__ __forceinline__ void fill(const Tensor& tensor, const typename A::Known& known,
                                     const math::Group& group, std::uint64_t pack,
                                     const Step& step) {
  if (pack >= packs(tensor.count)) return;  // what stands there is not added
  float base[kPack], x[kPack];
  load_base(tensor, pack, base);
  const auto put = [&](float* numbers) {
#pragma unroll
    for (unsigned j = 0; j < kPack; ++j) numbers[threadIdx.x * kPack + j] = x[j];
  };
  if (group.a.stream != math::Stream::none) {
    column_pack<A>(tensor, known, group.a, pack, base, x);
    put(step.a);
  }
  if (group.b.stream != math::Stream::none) {
    column_pack<A>(tensor, known, group.b, pack, base, x);
    put(step.b);
  }
  if constexpr (A::Common::kUsed) {
    common_pack<A>(tensor, known, pack, base, x);
    put(step.common);
  }
}

// Adds element `i` of a step that begins at `first` of the whole tensor to a lane.
template <class A, class Term>
__device__ __forceinline__ void add(const Tensor& tensor, const typename A::Known& known,
                                    const math::Group& group, const Step& step, std::uint64_t first,
                                    unsigned i, double* lane) {
  float common = 0.0F;
  if constexpr (A::Common::kUsed) common = step.common[i];
  const auto number = [&](const math::Column& column, const float* numbers) {
    return column.stream == math::Stream::none ? 0.0F : numbers[i];
  };
  Term::add(lane, number(group.a, step.a), number(group.b, step.b), *known.whole,
            Places<A::facts>(tensor, first + i).here(0, common));
}

template <class A>
__device__ __forceinline__ void restart(double (&lane)[A::kMost]) {
#pragma unroll
  for (double& sum : lane) sum = A::Join::kStart;
}

// Joins the lanes of a block, of which `used`, a power of two, had elements.
template <class A>
__device__ __forceinline__ void join(double* lanes, double lane, unsigned used, double* sum) {
  lanes[threadIdx.x] = lane;
  for (unsigned half = used / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      lanes[threadIdx.x] = A::Join::join(lanes[threadIdx.x], lanes[threadIdx.x + half]);
  }
  if (threadIdx.x == 0) *sum = lanes[0];
  __syncthreads();
}

}  // namespace detail

// sums[n * tiles + tile].
template <class A>
static __global__ void __launch_bounds__(math::kLanes)
    fold_kernel(const Tensor* tensors, const math::Group* groups, unsigned group_count,
                std::uint64_t tiles, double* sums) {
  INGOT_SHARED(float[kStep], a);
  INGOT_SHARED(float[kStep], b);
  INGOT_SHARED(float[A::Common::kUsed ? kStep : 1], common);
  INGOT_SHARED(double[math::kLanes], lanes);
  const detail::Step step = {a, b, common};
  const Tensor& tensor = *tensors;
  const auto known =
      math::known<typename A::Lens, typename A::Combine>(tensor.facts, tensor.sources);
  for (std::uint64_t task = blockIdx.x; task < tiles * group_count; task += gridDim.x) {
    const std::uint64_t tile = task % tiles;
    const math::Group group = groups[task / tiles];
    double lane[A::kMost];
    detail::restart<A>(lane);
    for (std::uint64_t at = tile * math::kTile; at < (tile + 1) * math::kTile && at < tensor.count;
         at += kStep) {
      detail::fill<A>(tensor, known, group, at / kPack + threadIdx.x, step);
      __syncthreads();
      const std::uint64_t left = tensor.count - at;
      const unsigned here = left < kStep ? static_cast<unsigned>(left) : kStep;
      detail::with_term(typename A::Terms{}, group.term, [&]<class Term>() {
        for (unsigned i = threadIdx.x; i < here; i += math::kLanes)
          detail::add<A, Term>(tensor, known, group, step, tensor.first + at, i, lane);
      });
      __syncthreads();
    }
    detail::with_term(typename A::Terms{}, group.term, [&]<class Term>() {
      for (int n = 0; n < Term::kSums; ++n)
        detail::join<A>(lanes, lane[n], math::kLanes,
                        sums + (group.first + static_cast<unsigned>(n)) * tiles + tile);
    });
  }
}

// Segments of rows of `width` elements that begin in [first, end), `first` a multiple of kTile:
// each tile and each row begins one.
__device__ __forceinline__ std::uint64_t segments_before(std::uint64_t first, std::uint64_t end,
                                                         std::uint64_t width) {
  const auto multiples = [&](std::uint64_t of) {
    return (end + of - 1) / of - (first + of - 1) / of;
  };
  std::uint64_t shared = width & (~width + 1);  // the greatest common divisor of width and kTile
  if (shared > math::kTile) shared = math::kTile;
  return multiples(math::kTile) + multiples(width) - multiples(width / shared * math::kTile);
}

// sums[n * segments + segment]. Left to a number of blocks of its own, ptxas spills to reach it.
template <class A>
static __global__ void __launch_bounds__(math::kLanes, 2)
    rows_kernel(const Tensor* tensors, const math::Group* groups, unsigned group_count,
                std::uint64_t tiles, std::uint64_t segments, double* sums) {
  INGOT_SHARED(float[kStep], a);
  INGOT_SHARED(float[kStep], b);
  INGOT_SHARED(float[A::Common::kUsed ? kStep : 1], common);
  INGOT_SHARED(double[math::kLanes], lanes);
  const detail::Step step = {a, b, common};
  const Tensor& tensor = *tensors;
  const auto known =
      math::known<typename A::Lens, typename A::Combine>(tensor.facts, tensor.sources);
  const std::uint64_t width = tensor.line.shape.width;
  for (std::uint64_t task = blockIdx.x; task < tiles * group_count; task += gridDim.x) {
    const math::Group group = groups[task / tiles];
    // Indices in the whole tensor.
    const std::uint64_t first = tensor.first + task % tiles * math::kTile;
    const std::uint64_t last = tensor.first + tensor.count;
    const std::uint64_t end = first + math::kTile < last ? first + math::kTile : last;
    std::uint64_t segment = segments_before(tensor.first, first, width);
    std::uint64_t begin = first, stop = (first / width + 1) * width;  // of the segment
    double lane[A::kMost];
    detail::restart<A>(lane);
    for (std::uint64_t from = first; from < end; from += kStep) {
      detail::fill<A>(tensor, known, group, (from - tensor.first) / kPack + threadIdx.x, step);
      __syncthreads();
      const std::uint64_t to = from + kStep < end ? from + kStep : end;
      for (std::uint64_t at = from; at < to;) {
        const std::uint64_t over = stop < to ? stop : to;
        detail::with_term(typename A::Terms{}, group.term, [&]<class Term>() {
          // This lane's first element from `at` on.
          const std::uint64_t skip = (threadIdx.x - (at - begin)) % math::kLanes;
          for (std::uint64_t e = at + skip; e < over; e += math::kLanes)
            detail::add<A, Term>(tensor, known, group, step, from, static_cast<unsigned>(e - from),
                                 lane);
          if (over != stop && over != end) return;
          for (int n = 0; n < Term::kSums; ++n)
            detail::join<A>(lanes, lane[n],
                            math::lanes_of(static_cast<std::uint32_t>(over - begin)),
                            sums + (group.first + static_cast<unsigned>(n)) * segments + segment);
        });
        at = over;
        if (over != stop && over != end) continue;
        ++segment;
        begin = over;
        stop = begin + width;
        detail::restart<A>(lane);
      }
      __syncthreads();
    }
  }
}

// sums[n * columns + column], all columns of the tensor.
template <class A>
static __global__ void __launch_bounds__(math::kLanes)
    columns_kernel(const Tensor* tensors, const math::Group* groups, unsigned group_count,
                   double* sums) {
  const Tensor& tensor = *tensors;
  const auto known =
      math::known<typename A::Lens, typename A::Combine>(tensor.facts, tensor.sources);
  const std::uint64_t columns = tensor.line.shape.width;
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t task = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
       task < columns * group_count; task += step) {
    const std::uint64_t column = task % columns;
    const math::Group group = groups[task / columns];
    double lane[A::kMost];
    detail::restart<A>(lane);
    detail::with_term(typename A::Terms{}, group.term, [&]<class Term>() {
      const std::uint64_t before = tensor.first % columns;
      for (std::uint64_t i = column >= before ? column - before : column + columns - before;
           i < tensor.count; i += columns) {
        const float base = tensor.base ? element(tensor.input[0], i) : 0.0F;
        math::Here here = Places<A::facts>(tensor, tensor.first + i).here(0, 0.0F);
        if constexpr (A::Common::kUsed)
          here.common = detail::common_element<A>(tensor, known, i, base, here);
        Term::add(lane, detail::column_element<A>(tensor, known, group.a, i, base),
                  detail::column_element<A>(tensor, known, group.b, i, base), *known.whole, here);
      }
      for (int n = 0; n < Term::kSums; ++n)
        sums[(group.first + static_cast<unsigned>(n)) * columns + column] = lane[n];
    });
  }
}

}  // namespace ingot::gpu
