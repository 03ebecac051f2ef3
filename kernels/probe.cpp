#include "probe.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <charconv>

#include "check.hpp"

namespace ingot::gpu {
namespace {

constexpr char kElse[] = "; run with --device cpu, which gives the same bytes";

// "13.0".
std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Any failure to count devices means there is none; only the words differ.
int count() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && devices > 0) return devices;
  (void)cudaGetLastError();
  if (error == cudaSuccess || error == cudaErrorNoDevice)
    fail(Code::device, std::string("the NVIDIA driver sees no CUDA device") + kElse);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    forgive(cudaDriverGetVersion(&driver));
    forgive(cudaRuntimeGetVersion(&runtime));
    if (driver == 0)
      fail(Code::device, std::string("no NVIDIA driver is installed on this machine") + kElse);
    fail(Code::device, "the NVIDIA driver supports CUDA " + version(driver) +
                           " and this program needs " + version(runtime) + ": update the driver" +
                           kElse);
  }
  fail(Code::device, "CUDA cannot be used (" + words(error) + ")" + kElse);
}

std::vector<int> indices(const std::string& wish) {
  if (wish == "cuda") return {0};
  std::vector<int> result;
  const char* at = wish.data();
  const char* const end = at + wish.size();
  if (wish.starts_with("cuda:")) {
    at += 5;
    while (at < end) {
      int index = -1;
      const auto [stop, error] = std::from_chars(at, end, index);
      const bool more = stop < end && *stop == ',' && stop + 1 < end;
      if (error != std::errc{} || index < 0 || (stop != end && !more) ||
          std::find(result.begin(), result.end(), index) != result.end())
        break;
      result.push_back(index);
      at = more ? stop + 1 : stop;
    }
    if (at == end && !result.empty()) return result;
  }
  fail(Code::usage,
       "--device " + wish + ": expected cuda, cuda:N or cuda:N,M,... with each device once");
}

}  // namespace

std::vector<Card> probe(const std::string& wish) {
  const std::vector<int> wanted = indices(wish);
  const int devices = count();
  std::vector<Card> cards;
  for (const int index : wanted) {
    if (index >= devices)
      fail(Code::device, "--device " + wish + ": there is no device " + std::to_string(index) +
                             ", the machine has " + std::to_string(devices) + " (numbered from 0)");
    cudaDeviceProp properties = {};
    check(cudaGetDeviceProperties(&properties, index), "asking for a device's properties");
    if (properties.major * 10 + properties.minor < 75)
      fail(Code::device, "device " + std::to_string(index) + ", " + properties.name +
                             ", has compute capability " + std::to_string(properties.major) + "." +
                             std::to_string(properties.minor) + " and 7.5 is the least that works" +
                             kElse);
    cards.push_back(
        {index, properties.name, properties.totalGlobalMem, properties.multiProcessorCount});
  }
  return cards;
}

}  // namespace ingot::gpu
