// Decompositions by the machine's cuBLAS and cuSOLVER, in f64, on one or several devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ingot/linalg.hpp"

namespace ingot::gpu {

// The two libraries and what is used of them. Throws Error{device} as the loader does.
class Algebra;
[[nodiscard]] std::shared_ptr<const Algebra> open_algebra(const std::string& folder);

// Device memory that decompositions have to themselves.
struct Site {
  int device = 0;
  std::byte* memory = nullptr;
  std::uint64_t bytes = 0;
};

// Solves in the memory of `sites`, each session on the one with the fewest. The memory must outlive
// what is returned.
[[nodiscard]] std::unique_ptr<linalg::Solver> make_solver(std::shared_ptr<const Algebra> algebra,
                                                          std::span<const Site> sites);

}  // namespace ingot::gpu
