// Facts of lines, spread over the elements of a step. Compiled once per instruction set.
#pragma once

#include <utility>

#include "cpu/decode.hpp"

namespace ingot::cpu::INGOT_ISA {
namespace {

// The facts of each element's line; nothing at all for methods that read none.
template <int facts>
struct LineFacts {
  alignas(64) double fact[static_cast<std::size_t>(facts)][kStep];

  // For elements [from, from + n) of a run.
  void fill(const Run& run, std::uint32_t from, std::uint32_t n) {
    if (run.lines == nullptr || run.shape.lines == math::Lines::none) {
      for (auto& one : fact) {
        for (std::uint32_t e = 0; e < n; ++e) one[e] = 0.0;
      }
      return;
    }
    for (std::uint32_t at = 0; at < n;) {
      const std::uint64_t index = run.first + from + at;
      const std::uint64_t row = index / run.shape.width, column = index % run.shape.width;
      const std::uint64_t left = run.shape.width - column;
      const std::uint32_t some = left < n - at ? static_cast<std::uint32_t>(left) : n - at;
      const double* of = run.lines;
      for (auto& one : fact) {
        if (run.shape.lines == math::Lines::rows) {
          for (std::uint32_t e = 0; e < some; ++e) one[at + e] = of[row];
        } else {
          for (std::uint32_t e = 0; e < some; ++e) one[at + e] = of[column + e];
        }
        of += run.shape.count;
      }
      at += some;
    }
  }
  INGOT_HD void put(std::uint32_t e, double* line) const {
    [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
      ((line[i] = fact[i][e]), ...);
    }
    (std::make_integer_sequence<int, facts>{});
  }
};
template <>
struct LineFacts<0> {
  void fill(const Run&, std::uint32_t, std::uint32_t) {}
  INGOT_HD void put(std::uint32_t, double*) const {}
};

}  // namespace
}  // namespace ingot::cpu::INGOT_ISA
