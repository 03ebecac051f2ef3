// The second path: recomputes elements of an output tensor the slow and plain way.
//
// Shares the formulas of math/ with the engine, in double, and nothing else: one element at a time,
// thresholds by sorting, sums from first to last.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "ingot/plan.hpp"

namespace ingot {

struct Proof {
  std::uint64_t elements = 0;  // recomputed
  std::uint64_t exact = 0;     // of those, equal bit for bit
  std::string finding;         // the first element that is wrong, in words; empty: none
};

// Recomputes a merged tensor: every element, or runs at hashed places and both ends. Whatever a
// formula needs of the whole tensor is measured again. An element passes within 1 ulp of the output
// type. Memory does not grow with the tensor.
[[nodiscard]] Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place,
                          bool all);

}  // namespace ingot
