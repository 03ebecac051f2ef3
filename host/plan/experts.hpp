// Experts kept as one tensor of all, or as a tensor of each: models that keep them otherwise than
// the donor are read as if they kept them as it does.
#pragma once

#include "plan/draft.hpp"

namespace ingot::plan {

// Gives the checkpoints of Plan::models the donor's layout of experts, one for each of its stacks:
// entries that are put together of several stored tensors, or cut out of one (Entry::patches), in
// place of the stored ones. Bits are never changed. Names outside "experts" stay. A layout with an
// expert missing, or with experts of different types or shapes, stays as it is.
//
//   apart        experts.7.gate_proj.weight (out, in)    or w1, w3, w2 for gate, up, down
//   together     experts.gate_up_proj (experts, 2 out, in), experts.down_proj (experts, out, in)
//   transposed   the same as (experts, in, 2 out): Llama 4; gate and up in turns: GPT-OSS
//   biases       experts.7.gate_proj.bias (out); experts.gate_up_proj_bias (experts, 2 out)
//
// Adapters among the models are not changed. `donor`: index into Plan::models.
void arrange_experts(Draft& draft, std::uint32_t donor);

}  // namespace ingot::plan
