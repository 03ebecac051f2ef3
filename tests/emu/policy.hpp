// What Thrust does on simulated devices, under the policy of the host.
#pragma once

#include "order.hpp"

namespace ingot::gpu {

// The work of order(), done by the calling thread.
void order_on_host(const Candidates& candidates, Candidate* ordered, std::byte* memory);

}  // namespace ingot::gpu
