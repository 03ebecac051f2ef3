// Ranks that follow from the numbers: by energy, or by a budget of bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapter/solve.hpp"
#include "ingot/plan.hpp"
#include "plan/measure.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// A module whose rank is to be chosen.
struct Measured {
  std::string name;
  std::uint64_t most = 0;  // its largest rank
  std::uint64_t experts = 1;
  std::uint64_t length = 0;  // elements that one more rank takes, of one expert
  std::function<std::unique_ptr<adapter::Target>()> target;
};

// True if the ranks are those that the numbers of the modules say.
[[nodiscard]] bool measured(const Adaptation& wishes);

// All that measuring modules reads.
[[nodiscard]] std::uint64_t bytes_of(const Plan& plan, const std::vector<Measured>& modules);

// The rank of every module: `fixed` at most its largest, or those of Adaptation::ranks, or, where
// these are measured(), what reading and decomposing the modules says, on PlanOptions::threads and
// as many at once as PlanOptions::memory has room for; Error{usage} where it has none for one. The
// recipe of the plan, its text included, has them afterwards, so that the same folder can be
// planned without measuring, and Measuring::kept the decompositions. Without `measuring` measured
// ranks are guesses, and the plan says that they are open.
[[nodiscard]] std::map<std::string, std::uint64_t> ranks_of(
    Plan& plan, const Adaptation& wishes, std::uint64_t fixed, std::uint64_t element_bytes,
    const std::vector<Measured>& modules, Problems& problems, Measuring* measuring);

// Gives all modules the largest of their ranks, so that one alpha fits all of them: `always`, or
// where the factors take no more than a quarter more bytes for it. False if they stay different.
bool level(std::map<std::string, std::uint64_t>& ranks, const std::vector<Measured>& modules,
           bool always);

}  // namespace ingot::plan
