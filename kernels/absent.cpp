// Stands for the CUDA backend in builds without it.
#include "ingot/backend.hpp"
#include "ingot/error.hpp"

namespace ingot {

std::unique_ptr<Backend> cuda_backend(const DeviceOptions&) {
  fail(Code::device,
       "this program was built without CUDA; run with --device cpu, which gives the same bytes, or "
       "configure with -DINGOT_CUDA=ON where nvcc is installed");
}

}  // namespace ingot
