// What the files that are compiled once per instruction set give to tile.cpp.
#pragma once

#include "cpu/tile.hpp"

namespace ingot::cpu::INGOT_ISA {

Apply apply_of(int method);
Fold fold_of(int method, int pass);
Keys keys_of(int method, int pass);
Count count_of(int method, int pass);

}  // namespace ingot::cpu::INGOT_ISA
