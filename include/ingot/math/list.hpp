// The closed list of merge methods. What the engine sees of it is in ingot/methods.hpp.
//
// A new method is one header in methods/, its name in `Methods`, and its cases in the oracle.
#pragma once

#include "ingot/math/methods/adapter.hpp"
#include "ingot/math/methods/arcee_fusion.hpp"
#include "ingot/math/methods/breadcrumbs.hpp"
#include "ingot/math/methods/consensus.hpp"
#include "ingot/math/methods/dare.hpp"
#include "ingot/math/methods/karcher.hpp"
#include "ingot/math/methods/linear.hpp"
#include "ingot/math/methods/model_stock.hpp"
#include "ingot/math/methods/multislerp.hpp"
#include "ingot/math/methods/nearswap.hpp"
#include "ingot/math/methods/nuslerp.hpp"
#include "ingot/math/methods/passthrough.hpp"
#include "ingot/math/methods/ram.hpp"
#include "ingot/math/methods/sce.hpp"
#include "ingot/math/methods/slerp.hpp"
#include "ingot/math/methods/task_arithmetic.hpp"
#include "ingot/math/methods/ties.hpp"

namespace ingot::math {

using Methods =
    List<Linear, Slerp, TaskArithmetic, Ties, DareLinear, DareTies, Breadcrumbs, BreadcrumbsTies,
         Nuslerp, Multislerp, Karcher, ModelStock, Sce, Ram, RamplusTl, Nearswap, ArceeFusion,
         Consensus, Passthrough, AdapterMagnitudePrune, AdapterTiesTotal, AdapterTiesFrequency,
         AdapterDareLinear, AdapterDareTiesTotal, AdapterDareTiesFrequency>;

template <class M>
using ViewOf = View<typename M::Lens, typename M::Combine>;
template <class M>
using KnownOf = Known<typename M::Lens, typename M::Combine>;

// How many facts of its line an element's formula reads.
template <class M>
[[nodiscard]] constexpr int line_facts() {
  if constexpr (requires { M::kLineFacts; }) {
    static_assert(M::kLineFacts <= kLineFacts);
    return M::kLineFacts;
  } else {
    return 0;
  }
}

// The index of a method's type.
template <class M, class... All>
[[nodiscard]] constexpr int index_in(List<All...>) {
  int at = 0;
  bool found = false;
  ((found = found || __is_same(M, All), at += found ? 0 : 1), ...);
  return at;
}
template <class M>
inline constexpr int kIndex = index_in<M>(Methods{});

}  // namespace ingot::math
