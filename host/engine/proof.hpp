// The second path: recomputes elements of an output tensor the slow and plain way.
//
// Shares the formulas of math/ with the engine and nothing else: one element at a time, thresholds
// by sorting, sums in the documented shape by a loop of its own. Formulas run in f32, whose bits
// are the contract, and in double, which has to agree with them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/receipt.hpp"
#include "ingot/plan.hpp"

namespace ingot {

// Tensors up to this size are walked whole, and of larger ones these runs of neighbours, beside
// both ends.
inline constexpr std::uint64_t kWhole = std::uint64_t{1} << 17;
inline constexpr std::uint64_t kRun = 64;
inline constexpr std::uint64_t kPlaces = 64;

struct Proof {
  std::uint64_t elements = 0;  // recomputed
  std::uint64_t exact = 0;     // of those, equal bit for bit
  std::string finding;         // the first element that is wrong, in words; empty: none
  math::Facts facts;           // measured again
  bool whole = false;          // every element was recomputed, so that what follows is known
  Tally tally;
  Findings findings;
  std::vector<std::string> found;  // by operand, as Outcome::found
};

// Recomputes a merged tensor whose bytes begin at `place` of `file`: every element, or, of more
// than kWhole and without `all`, runs at both ends and at places that follow from `salt`. Whatever
// a formula needs of the whole tensor is measured again, or, without `all`, `told`: facts of which
// each result must lie between those of some, the likeliest first. Elements of the exact class must
// equal the f32 formula bit for bit; those of the bounded class pass within their bound. Memory
// does not grow with the tensor.
[[nodiscard]] Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place,
                          bool all, std::uint64_t salt, const std::vector<math::Facts>& told = {});

// The facts of a rule as an entry of the receipt tells them: its numbers, and, as it rounds factors
// and coefficients to f32, the ends of what rounds to them. Empty: not told, or by too many
// numbers.
[[nodiscard]] std::vector<math::Facts> facts_told(const math::Rule& rule, const Json& entry);

// True if every derived operand of a job is of the exact class as the plan has it.
[[nodiscard]] bool exact(const Plan& plan, const Job& job);

// A sum in the shape of docs/numbers.md, fed one number after the other.
class Sum {
 public:
  void add(double x);
  [[nodiscard]] double total();  // ends it

 private:
  void close();

  std::vector<double> lanes_ = std::vector<double>(256);
  std::uint64_t count_ = 0;                    // in the current tile
  std::vector<std::optional<double>> levels_;  // of 2^i tiles each, waiting for their neighbours
};

}  // namespace ingot
