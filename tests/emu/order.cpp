// order() of simulated devices.
#include "order.hpp"

#include "check.hpp"
#include "policy.hpp"
#include "runtime.hpp"
#include "stream.hpp"

namespace ingot::gpu {

void order(const Candidates& candidates, Candidate* ordered, std::byte* memory,
           const Stream& stream) {
  check(emu::enqueue(stream.get(), dim3(1), dim3(1),
                     [=] { order_on_host(candidates, ordered, memory); }),
        "ordering candidates");
}

}  // namespace ingot::gpu
