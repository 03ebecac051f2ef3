// The walk over stages that combines, keys and commons have in common.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace ingot::gpu {

// Calls body.template operator()<stage>() for each stage in turn.
template <class Walker, class Body>
__device__ __forceinline__ void each_stage(Body&& body) {
  [&]<int... stage>(std::integer_sequence<int, stage...>) {
    (body.template operator()<stage>(), ...);
  }
  (std::make_integer_sequence<int, Walker::kStages>{});
}

// Calls body.template operator()<form>() with the form of a combine. The same for a whole block, so
// that its branches cost little: one kernel has all forms.
template <class Combine, class Body>
__device__ __forceinline__ void with_form(int form, Body&& body) {
  [&]<int... known>(std::integer_sequence<int, known...>) {
    (void)((known == form ? (body.template operator()<known>(), true) : false) || ...);
  }
  (std::make_integer_sequence<int, Combine::kForms>{});
}

}  // namespace ingot::gpu
