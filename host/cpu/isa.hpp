// Which instruction sets this machine has.
#pragma once

#include <string>

#include "cpu/product.hpp"
#include "cpu/tile.hpp"

namespace ingot::cpu {

// An x86-64 level with its loops.
struct Isa {
  const char* name;   // "v4"
  const char* words;  // "AVX-512"
  const Tiles* tiles;
  const Amend* amend;
};

// The level named, or for "" the highest one this machine has. An unknown name is Error{usage}, a
// level the machine lacks Error{device}.
[[nodiscard]] const Isa& isa(const std::string& name);

// False for a level that exists but not on this machine.
[[nodiscard]] bool has_isa(const std::string& name);

}  // namespace ingot::cpu
