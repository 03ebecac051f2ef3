// The loops of one instruction set together. See tile.hpp.
#include "cpu/tile.hpp"

#include "cpu/tables.hpp"
#include "ingot/math/target.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

void canary(const float* in, float* out) {
  out[0] = in[0] * in[0] - in[1];
  out[1] = in[2] * in[3];
  out[2] = in[3] / in[4];
  out[3] = __builtin_sqrtf(in[5]);
  out[4] = math::fuse(in[0], in[0], -in[1]);
}

}  // namespace

const Tiles tiles = {apply_of, fold_of, keys_of, count_of, canary};

}  // namespace ingot::cpu::INGOT_ISA
