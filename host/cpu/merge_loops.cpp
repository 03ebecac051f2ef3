// The merge loops of every method.
#include "cpu/merge_loops.hpp"

#include "cpu/tables.hpp"

namespace ingot::cpu::INGOT_ISA {

Apply apply_of(int method) { return Merges<math::Methods>::table[method]; }

}  // namespace ingot::cpu::INGOT_ISA
