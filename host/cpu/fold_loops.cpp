// The fold loops of every method's passes.
#include "cpu/fold_loops.hpp"

#include "cpu/tables.hpp"

namespace ingot::cpu::INGOT_ISA {

Fold fold_of(int method, int pass) { return fold_of(math::Methods{}, method, pass); }

}  // namespace ingot::cpu::INGOT_ISA
