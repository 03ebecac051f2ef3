// Stands for the CUDA backend in builds without it.
#include "ingot/backend.hpp"
#include "ingot/error.hpp"

namespace ingot {

namespace {

[[noreturn]] void refuse() {
  fail(Code::device,
       "this program was built without CUDA; run with --device cpu, which gives the same bytes, or "
       "configure with -DINGOT_CUDA=ON where nvcc is installed");
}

}  // namespace

std::unique_ptr<Backend> cuda_backend(const DeviceOptions&) { refuse(); }

std::vector<Rate> device_rates(const DeviceOptions&) { refuse(); }

}  // namespace ingot
