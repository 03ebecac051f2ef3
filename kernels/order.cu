// A chunk has far fewer spans and places: one kernel for scans in place of two.
#define THRUST_FORCE_32_BIT_OFFSET_TYPE

#include "order.cuh"

#include <thrust/system/cuda/execution_policy.h>
#include <thrust/system_error.h>

#include <string>

#include "check.hpp"
#include "memory.hpp"
#include "stream.hpp"

namespace ingot::gpu {
namespace {

// Thrust's temporary storage out of memory that is there. Nothing is given back before the stream
// has done its work, which is the caller's to know.
class Scratch {
 public:
  using value_type = char;

  Scratch(std::byte* memory, std::uint64_t bytes) : memory_(memory), left_(bytes) {}

  char* allocate(std::ptrdiff_t bytes) {
    const std::uint64_t size = aligned(static_cast<std::uint64_t>(bytes));
    if (size > left_)
      fail(Code::internal, "ordering candidates needs " + std::to_string(size) +
                               " bytes of temporary memory, and " + std::to_string(left_) +
                               " are left");
    std::byte* part = memory_;
    memory_ += size;
    left_ -= size;
    return reinterpret_cast<char*>(part);
  }
  void deallocate(char*, std::size_t) noexcept {}

 private:
  std::byte* memory_;
  std::uint64_t left_;
};

}  // namespace

void order(const Candidates& candidates, Candidate* ordered, std::byte* memory,
           const Stream& stream) {
  const std::uint64_t starts =
      aligned(candidates.brackets * candidates.spans * sizeof(std::uint32_t));
  Scratch scratch(memory + starts, order_bytes(candidates.brackets, candidates.spans) - starts);
  try {
    order(thrust::cuda::par_nosync(scratch).on(stream.get()), candidates,
          reinterpret_cast<std::uint32_t*>(memory), ordered);
  } catch (const thrust::system_error& error) {
    check(static_cast<cudaError_t>(error.code().value()), "ordering candidates");
    throw;
  }
}

}  // namespace ingot::gpu
