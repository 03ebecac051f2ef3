#include "select.cuh"

namespace ingot::gpu {
namespace {

std::uint64_t divide(std::uint64_t count, std::uint64_t by) { return (count + by - 1) / by; }

}  // namespace

void sample(const Tensor* tensor, std::uint64_t count, unsigned sources, std::uint32_t stride,
            std::uint32_t* keys, const Shape& shape, const Stream& stream) {
  const std::uint64_t runs = divide(count, stride);
  const std::uint64_t tasks = runs * math::kSampled * sources;
  launch("sampling", sample_kernel, dim3(blocks_for(divide(tasks, shape.threads), shape)),
         shape.threads, stream, tensor, runs, sources, stride, keys);
}

void verify(const Tensor* tensor, std::uint64_t count, unsigned sources, const Window* windows,
            std::uint32_t limit, Census* census, Found* found, Segment* segments,
            const Shape& shape, const Stream& stream) {
  const std::uint64_t spans = divide(count, kSpan);
  launch("counting keys", verify_kernel,
         dim3(blocks_for(spans, shape), static_cast<unsigned>(divide(sources, kGroup))),
         shape.threads, stream, tensor, spans, sources, windows, limit, census, found, segments);
}

void histogram(const Tensor* tensor, std::uint64_t count, unsigned source, bool fine,
               std::uint32_t prefix, unsigned* bins, const Shape& shape, const Stream& stream) {
  const std::uint64_t rows = divide(divide(count, kPack), shape.threads);
  launch("counting all keys", histogram_kernel, dim3(blocks_for(rows, shape)), shape.threads,
         stream, tensor, rows, source, fine, prefix, bins);
}

void match(const Tensor* tensor, std::uint64_t count, unsigned source, std::uint32_t key,
           std::uint8_t* bits, const Shape& shape, const Stream& stream) {
  launch("finding a key", match_kernel,
         dim3(blocks_for(divide(divide(count, kPack), shape.threads), shape)), shape.threads,
         stream, tensor, source, key, bits);
}

}  // namespace ingot::gpu
