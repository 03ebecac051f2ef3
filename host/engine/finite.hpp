// Values that are not finite: found in inputs and outputs, refused where the arithmetic made them,
// told in reports.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/scan.hpp"
#include "engine/receipt.hpp"
#include "ingot/plan.hpp"
#include "measure/measure.hpp"

namespace ingot {

// Writes elements [first, first + values.size()) of a derived operand, given its own tensor's
// elements.
using Fill = std::function<void(std::size_t operand, std::uint64_t first,
                                std::span<const std::byte> own, std::span<float> values)>;

// What the output elements from `first` on hold, which `output` has as they will be written. An
// element's inputs are the elements of the same index; a row of a rearranged matrix has those of
// the rows that it is made of. A derived operand without a tensor of its own counts as finite, as
// do the other tensors that derived operands are made of. Costs a scan; where it finds something,
// the inputs are read again from their files around it.
[[nodiscard]] Findings examine(const Plan& plan, const Job& job, const Measurements& known,
                               std::uint64_t first, std::span<const std::byte> output,
                               const Fill& fill);

// The same for a whole tensor whose bytes begin at `place` of a file: the findings of a run, found
// again.
[[nodiscard]] Findings examine(const Plan& plan, const Job& job, const Measurements& known,
                               File& file, std::uint64_t place);

// True if an element of the output is not finite wherever an input is not: sums, whose terms are
// all there, of which none can bring another back from infinity.
[[nodiscard]] bool propagates(const Job& job);

// Throws Error{range} if the arithmetic made values that are not finite and they are not allowed.
void refuse(const Plan& plan, const Job& job, const Findings& findings);

// What reports say about values that are not finite, from the receipt's entries; does not depend on
// their order. Not thread-safe.
class Notes {
 public:
  void add(const Json& entry);
  // One sentence per tensor; after some, one for all others.
  [[nodiscard]] std::vector<std::string> warnings() const;

 private:
  using Named = std::pair<std::string, std::string>;
  std::map<Named, Count> inputs_;  // by model and tensor
  struct Output {
    std::string dtype;
    Count nonfinite, saturated;
  };
  std::map<std::string, Output> outputs_;
};

}  // namespace ingot
