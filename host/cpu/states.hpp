// The states of a step's elements side by side, one array for each number of a state, so that any
// number of sources streams through loops that become vectors. Compiled once per instruction set.
#pragma once

#include <utility>

#include "cpu/tile.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

// Room for the numbers that State::each() visits; rows that no number uses are never touched.
template <class State>
class States {
 public:
  INGOT_HD State load(std::uint32_t e) const {
    State state;
    int n = 0, w = 0;
    state.each(Load{this, e, n, w});
    return state;
  }
  INGOT_HD void store(std::uint32_t e, State state) {
    int n = 0, w = 0;
    state.each(Store{this, e, n, w});
  }

 private:
  // How many numbers were visited is counted outside the visitors: a state that is made of others
  // hands a copy of its visitor on.
  struct Load {
    const States* from;
    std::uint32_t e;
    int &n, &w;
    INGOT_HD void operator()(float& x) { x = from->narrow_[n++][e]; }
    INGOT_HD void operator()(double& x) { x = from->wide_[w++][e]; }
  };
  struct Store {
    States* to;
    std::uint32_t e;
    int &n, &w;
    INGOT_HD void operator()(float& x) { to->narrow_[n++][e] = x; }
    INGOT_HD void operator()(double& x) { to->wide_[w++][e] = x; }
  };

  alignas(64) float narrow_[sizeof(State) / sizeof(float)][kStep];
  alignas(64) double wide_[1 + sizeof(State) / sizeof(double)][kStep];
};

// What something of all sources (a Common of a pass, a key) is at each element of a step:
// column(s) is what it sees of source s, near(e) what surrounds element e.
template <class Of, class Whole, class Column, class Near, class Out>
void walk(const Whole& whole, int sources, Column column, Near near, std::uint32_t n, Out* out) {
  using State = typename Of::State;
  States<State> states;
  for (std::uint32_t e = 0; e < n; ++e) states.store(e, State{});
  const auto stage = [&]<int now>() {
    for (int s = 0; s < sources; ++s) {
      const float* x = column(s);
      for (std::uint32_t e = 0; e < n; ++e) {
        State state = states.load(e);
        Of::template meet<now>(state, whole, x[e], near(e));
        states.store(e, state);
      }
    }
  };
  [&]<int... now>(std::integer_sequence<int, now...>) { (stage.template operator()<now>(), ...); }
  (std::make_integer_sequence<int, Of::kStages>{});
  for (std::uint32_t e = 0; e < n; ++e) out[e] = Of::finish(states.load(e), whole, near(e));
}

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
