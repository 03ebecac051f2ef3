#include "engine/memory.hpp"

#include <fstream>
#include <string>
#include <string_view>

namespace ingot {
namespace {

std::uint64_t status_of(std::string_view name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name)) return std::stoull(line.substr(name.size())) * 1024;
  }
  return 0;
}

}  // namespace

std::uint64_t peak_memory() { return status_of("VmHWM:"); }
std::uint64_t resident_memory() { return status_of("VmRSS:"); }

}  // namespace ingot
