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
#include "measure/measure.hpp"

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
  Measurements known;          // measured again, or as told
  bool whole = false;          // every element was recomputed, so that what follows is known
  Tally tally;
  Findings findings;
  std::vector<std::string> found;  // by operand, as Outcome::found
};

// Recomputes a merged tensor whose bytes begin at `place` of `file`: every element, or, of more
// than kWhole and without `all`, runs at both ends and at places that follow from `salt`. Whatever
// a formula needs of the whole tensor is measured again, or, without `all`, `told`. Elements of the
// exact class must equal the f32 formula bit for bit; those of the bounded class pass within their
// bound. Memory does not grow with the tensor, but by the facts of its lines.
[[nodiscard]] Proof prove(const Plan& plan, const Job& job, File& file, std::uint64_t place,
                          bool all, std::uint64_t salt,
                          const std::optional<math::Facts>& told = std::nullopt);

// The facts of a rule as an entry of the receipt tells them, to the bit; nothing where it does not
// tell all of them.
[[nodiscard]] std::optional<math::Facts> facts_told(const math::Rule& rule, const Json& entry);

// True if every derived operand of a job is of the exact class as the plan has it.
[[nodiscard]] bool exact(const Plan& plan, const Job& job);

// A sum, or a maximum, in the shape of docs/numbers.md, fed one number after the other: of a whole
// tensor, or of one row, whose segments end where the tensor's tiles do.
class Sum {
 public:
  explicit Sum(double start = 0.0, double (*join)(double, double) = nullptr)
      : start_(start), join_(join), lanes_(256, start) {}

  // The lane that takes the next number.
  [[nodiscard]] double& lane() { return lanes_[count_ % lanes_.size()]; }
  // The lane has taken it.
  void next();
  void add(double x);
  // Ends a segment before its tile is full.
  void cut();
  [[nodiscard]] double total();  // ends it

 private:
  [[nodiscard]] double joined(double a, double b) const {
    return join_ == nullptr ? a + b : join_(a, b);
  }
  void close();

  double start_;
  double (*join_)(double, double);
  std::vector<double> lanes_;
  std::uint64_t count_ = 0;                    // in the current tile
  std::vector<std::optional<double>> levels_;  // of 2^i tiles each, waiting for their neighbours
};

}  // namespace ingot
