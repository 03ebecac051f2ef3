#include "measure.hpp"

#include <array>
#include <cmath>

#include "fold.cuh"
#include "ingot/math/list.hpp"

namespace ingot::gpu {
namespace {

static __global__ void canary_kernel(const float* in, float* out) {
  out[0] = in[0] * in[0] - in[1];
  out[1] = math::fuse(in[0], in[0], -in[1]);
  out[2] = in[2] * in[3];
  out[3] = in[3] / in[4];
  out[4] = sqrtf(in[5]);
  out[5] = in[2] + in[2];
}

// The kernels of one pass, and its groups.
struct Pass {
  void (*tiles)(const Tensor*, const math::Group*, unsigned, std::uint64_t, double*) = nullptr;
  void (*rows)(const Tensor*, const math::Group*, unsigned, std::uint64_t, std::uint64_t,
               double*) = nullptr;
  void (*columns)(const Tensor*, const math::Group*, unsigned, double*) = nullptr;
  int (*groups)(const math::Rule&) = nullptr;
  math::Group (*group)(const math::Rule&, int) = nullptr;
  int (*sums)(int term) = nullptr;
};

// Passes that join in one way have their kernels in common.
template <class P>
using Join =
    std::conditional_t<std::is_base_of_v<math::Adding, P>, math::Adding,
                       std::conditional_t<std::is_base_of_v<math::Largest, P>, math::Largest, P>>;

template <class... Term>
int sums_of(int term, math::List<Term...>) {
  int at = 0, sums = 0;
  ((at++ == term ? void(sums = Term::kSums) : void()), ...);
  return sums;
}

template <class M, class P>
constexpr Pass pass() {
  Pass pass;
  if constexpr (P::kPass != math::Pass::order) {
    using Of = Adds<typename M::Lens, typename M::Combine, typename P::Terms, typename P::Common,
                    Join<P>, math::line_facts<M>()>;
    if constexpr (P::kPass == math::Pass::fold) {
      pass.tiles = fold_kernel<Of>;
    } else {
      pass.rows = rows_kernel<Of>;
      pass.columns = columns_kernel<Of>;
    }
    pass.groups = P::groups;
    pass.group = P::group;
    pass.sums = [](int term) { return sums_of(term, typename P::Terms{}); };
  }
  return pass;
}

// Most passes of a method.
template <class... M>
constexpr std::size_t most_passes(math::List<M...>) {
  int most = 0;
  ((most = M::Passes::size > most ? M::Passes::size : most), ...);
  return static_cast<std::size_t>(most);
}
constexpr std::size_t kPasses = most_passes(math::Methods{});

using Row = std::array<Pass, kPasses>;
template <class M, class... P>
constexpr Row row(math::List<P...>) {
  return {pass<M, P>()...};
}
template <class... M>
constexpr std::array<Row, sizeof...(M)> table(math::List<M...>) {
  return {row<M>(typename M::Passes{})...};
}
const std::array<Row, math::Methods::size> kTable = table(math::Methods{});

const Pass& pass_of(int method, int pass) {
  return kTable[static_cast<std::size_t>(method)][static_cast<std::size_t>(pass)];
}

std::uint64_t tiles_of(std::uint64_t count) { return (count + math::kTile - 1) / math::kTile; }

}  // namespace

std::vector<math::Group> groups(int method, int pass, const math::Rule& rule) {
  const Pass& of = pass_of(method, pass);
  std::vector<math::Group> all;
  for (int n = 0; n < of.groups(rule); ++n) all.push_back(of.group(rule, n));
  return all;
}

unsigned group_sums(int method, int pass, const math::Group& group) {
  return static_cast<unsigned>(pass_of(method, pass).sums(group.term));
}

std::uint64_t fold_places(const Folding& of) {
  if (pass_of(of.method, of.pass).tiles != nullptr) return tiles_of(of.count);
  return of.shape.lines == math::Lines::rows ? math::segments(of.first, of.count, of.shape.width)
                                             : of.shape.count;
}

// The number of threads is part of the shape of sums over tiles and rows.
void fold(const Folding& of, const math::Group* groups, unsigned group_count, double* sums,
          const Shape& shape, const Stream& stream) {
  const Pass& pass = pass_of(of.method, of.pass);
  const std::uint64_t tiles = tiles_of(of.count);
  const dim3 grid(blocks_for(tiles * group_count, shape));
  if (pass.tiles != nullptr) {
    launch("folding", pass.tiles, grid, math::kLanes, stream, of.tensor, groups, group_count, tiles,
           sums);
  } else if (of.shape.lines == math::Lines::rows) {
    launch("folding rows", pass.rows, grid, math::kLanes, stream, of.tensor, groups, group_count,
           tiles, fold_places(of), sums);
  } else {
    const std::uint64_t tasks = of.shape.count * group_count;
    launch("folding columns", pass.columns,
           dim3(blocks_for((tasks + math::kLanes - 1) / math::kLanes, shape)), math::kLanes, stream,
           of.tensor, groups, group_count, sums);
  }
}

void canary(const float* in, float* out, const Stream& stream) {
  launch("testing its arithmetic", canary_kernel, dim3(1), 1, stream, in, out);
}

}  // namespace ingot::gpu
