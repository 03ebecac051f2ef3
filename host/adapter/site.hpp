// Where several adapters meet: the factors that each brings to one module of the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ingot/derived.hpp"
#include "ingot/linalg.hpp"

namespace ingot::adapter {

// One adapter's part: times * B * A.
struct Term {
  std::string adapter;  // its name in messages and receipts
  Ingredient a, b;
  std::uint64_t rank = 0;
  double times = 1;
};

// A module whose update is a matrix, height x width, of each of its experts. Convolutions count as
// matrices: outputs by all the rest. Factors of several experts interleave: row e * rank + k of A,
// column k * experts + e of B. Ranks of a grouped convolution are those of one group: row g * rank
// + k of A, column k of B.
struct Site {
  std::vector<Term> terms;
  std::uint64_t height = 0, width = 0, experts = 1, groups = 1;
  std::uint64_t padding = 0;  // ranks of zeros after those of the terms

  [[nodiscard]] std::uint64_t ranks() const {
    std::uint64_t sum = 0;
    for (const Term& term : terms) sum += term.rank;
    return sum;
  }
};

// An expert's factors of one term, as rows: rank x height and rank x width. Throws Error{format}
// naming adapter and tensor for values that are not finite.
struct Pair {
  linalg::Matrix b, a;
};
[[nodiscard]] Pair load(const Plan& plan, const Site& site, std::size_t term, std::uint64_t expert);

// The tensor's name, and the whole sentence about a value that is none.
[[nodiscard]] std::string name_of(const Plan& plan, const Ingredient& tensor);
void check_finite(const Plan& plan, const std::string& adapter, const Ingredient& tensor,
                  std::span<const float> values);

}  // namespace ingot::adapter
