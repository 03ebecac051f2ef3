// What LoRA adapters do, module by module, and how they stand to each other: from their factors
// alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ingot/adapter.hpp"
#include "json.hpp"

namespace ingot::tool {

// One adapter's update of one module.
struct Update {
  std::uint64_t rank = 0;
  double norm = 0;       // Frobenius, the scaling included
  double spectral = 0;   // the largest singular value
  double effective = 0;  // exp of the entropy of the singular values' shares of the energy
};

// Two adapters in one module.
struct Relation {
  double cosine = 0;
  double conflict = 0;  // share of elements whose signs differ, of a sample of rows
};

struct Spectra {
  struct Module {
    std::string path;
    std::vector<std::optional<Update>> updates;      // by adapter
    std::vector<std::optional<Relation>> relations;  // by pair: 0-1, 0-2, ..., 1-2, ...
  };
  struct Adapter {
    std::string name, type, base;
    std::uint64_t parameters = 0;    // of factors
    std::uint64_t adapted = 0;       // elements of the weights they change
    std::uint64_t whole = 0;         // parameters brought in full
    double norm = 0, effective = 0;  // root of the sum of squares; mean over modules
  };
  std::vector<Adapter> adapters;
  std::vector<Module> modules;
  std::vector<Relation> relations;  // of whole adapters, by pair
};

// Decomposes every module of every adapter. Families without low-rank factors have sizes alone.
[[nodiscard]] Spectra measure(const std::vector<Adapter>& adapters);

[[nodiscard]] std::string narrate(const Spectra& spectra);
[[nodiscard]] Json describe(const Spectra& spectra);

}  // namespace ingot::tool
