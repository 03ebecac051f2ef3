// Apart from the emulator's headers: where a toolkit is installed Thrust includes the real ones.
#include "policy.hpp"

#include "order.cuh"

namespace ingot::gpu {

void order_on_host(const Candidates& candidates, Candidate* ordered, std::byte* memory) {
  order(thrust::host, candidates, reinterpret_cast<std::uint32_t*>(memory), ordered);
}

}  // namespace ingot::gpu
