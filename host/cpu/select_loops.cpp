// The loops of every method's order passes.
#include "cpu/select_loops.hpp"

#include "cpu/tables.hpp"

namespace ingot::cpu::INGOT_ISA {

Keys keys_of(int method, int pass) { return orders_of(math::Methods{}, method, pass).keys; }
Count count_of(int method, int pass) { return orders_of(math::Methods{}, method, pass).count; }

}  // namespace ingot::cpu::INGOT_ISA
