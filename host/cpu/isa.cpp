#include "cpu/isa.hpp"

#include <cstring>

#include "ingot/error.hpp"

namespace ingot::cpu {
namespace {

constexpr Isa kLevels[] = {{"v4", "AVX-512", &v4::tiles, &v4::amend},
                           {"v3", "AVX2", &v3::tiles, &v3::amend},
                           {"v2", "SSE4.2", &v2::tiles, &v2::amend}};

// Features that the compiler may use when it builds for a level (x86-64 psABI), system support
// included.
bool runs(const char* name) {
  __builtin_cpu_init();
  if (std::strcmp(name, "v4") == 0) return __builtin_cpu_supports("x86-64-v4");
  if (std::strcmp(name, "v3") == 0) return __builtin_cpu_supports("x86-64-v3");
  return __builtin_cpu_supports("x86-64-v2");
}

}  // namespace

bool has_isa(const std::string& name) {
  for (const Isa& level : kLevels) {
    if (name == level.name) return runs(level.name);
  }
  return false;
}

const Isa& isa(const std::string& name) {
  for (const Isa& level : kLevels) {
    if (name.empty() ? runs(level.name) : name == level.name) {
      if (!runs(level.name)) {
        fail(Code::device, "this machine has no " + std::string(level.words) +
                               " (instruction set " + name +
                               "); choose a lower one or leave the choice to ingot");
      }
      return level;
    }
  }
  if (name.empty()) fail(Code::device, "this machine lacks SSE4.2 (x86-64-v2), which ingot needs");
  fail(Code::usage, "no instruction set is called \"" + name + "\"; expected v2, v3 or v4");
}

}  // namespace ingot::cpu
