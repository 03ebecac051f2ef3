#include "select.cuh"

#include <array>

#include "ingot/math/list.hpp"

namespace ingot::gpu {
namespace {

std::uint64_t divide(std::uint64_t count, std::uint64_t by) { return (count + by - 1) / by; }

// The kernels of one pass.
struct Kernels {
  void (*sample)(const Tensor*, std::uint64_t, const int*, unsigned, std::uint32_t,
                 std::int32_t*) = nullptr;
  void (*verify)(const Tensor*, std::uint64_t, const Bracket*, unsigned, std::uint32_t, Census*,
                 Candidate*, Segment*) = nullptr;
  void (*histogram)(const Tensor*, std::uint64_t, unsigned, bool, std::int32_t,
                    unsigned*) = nullptr;
  void (*match)(const Tensor*, unsigned, std::int32_t, std::uint8_t*) = nullptr;
};

template <class M, class P>
constexpr Kernels kernels() {
  if constexpr (P::kPass == math::Pass::order) {
    using Key = typename P::Key;
    // A key that takes any facts reads none: methods have its kernels in common.
    constexpr bool blind = requires { Key::key(math::None{}, 0.0F, math::At<float>{}); };
    using Whole = std::conditional_t<blind, math::None, typename M::Combine::Facts>;
    using Of = Keys<Key, Whole, math::line_facts<M>()>;
    return {sample_kernel<Of>, verify_kernel<Of>, histogram_kernel<Of>, match_kernel<Of>};
  } else {
    return {};
  }
}

// Most passes of a method.
template <class... M>
constexpr std::size_t most_passes(math::List<M...>) {
  int most = 0;
  ((most = M::Passes::size > most ? M::Passes::size : most), ...);
  return static_cast<std::size_t>(most);
}
constexpr std::size_t kPasses = most_passes(math::Methods{});

using Row = std::array<Kernels, kPasses>;
template <class M, class... P>
constexpr Row row(math::List<P...>) {
  return {kernels<M, P>()...};
}
template <class... M>
constexpr std::array<Row, sizeof...(M)> table(math::List<M...>) {
  return {row<M>(typename M::Passes{})...};
}
const std::array<Row, math::Methods::size> kKernels = table(math::Methods{});

const Kernels& kernels_of(const Ordering& of) {
  return kKernels[static_cast<std::size_t>(of.method)][static_cast<std::size_t>(of.pass)];
}

}  // namespace

void sample(const Ordering& of, const int* sources, unsigned streams, std::uint32_t stride,
            std::int32_t* keys, const Shape& shape, const Stream& stream) {
  const std::uint64_t runs = divide(of.count, stride);
  const std::uint64_t tasks = runs * math::kSampled * streams;
  launch("sampling", kernels_of(of).sample, dim3(blocks_for(divide(tasks, shape.threads), shape)),
         shape.threads, stream, of.tensor, runs, sources, streams, stride, keys);
}

void verify(const Ordering& of, const Bracket* brackets, unsigned bracket_count,
            std::uint32_t limit, Census* census, Candidate* found, Segment* segments,
            const Shape& shape, const Stream& stream) {
  const std::uint64_t spans = divide(of.count, kSpan);
  launch("counting keys", kernels_of(of).verify,
         dim3(blocks_for(spans, shape), static_cast<unsigned>(divide(bracket_count, kGroup))),
         shape.threads, stream, of.tensor, spans, brackets, bracket_count, limit, census, found,
         segments);
}

void histogram(const Ordering& of, int source, bool fine, std::int32_t prefix, unsigned* bins,
               const Shape& shape, const Stream& stream) {
  const std::uint64_t rows = divide(divide(of.count, kPack), shape.threads);
  launch("counting all keys", kernels_of(of).histogram, dim3(blocks_for(rows, shape)),
         shape.threads, stream, of.tensor, rows, static_cast<unsigned>(source), fine, prefix, bins);
}

void match(const Ordering& of, int source, std::int32_t key, std::uint8_t* bits, const Shape& shape,
           const Stream& stream) {
  launch("finding a key", kernels_of(of).match,
         dim3(blocks_for(divide(divide(of.count, kPack), shape.threads), shape)), shape.threads,
         stream, of.tensor, static_cast<unsigned>(source), key, bits);
}

}  // namespace ingot::gpu
