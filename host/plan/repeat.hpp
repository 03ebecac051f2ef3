// Adapters that a recipe lists more than once.
#pragma once

#include <string>
#include <vector>

#include "plan/problems.hpp"

namespace ingot::plan {

// An entry of a list of adapters.
struct Listed {
  std::string folder;  // resolved
  std::string text;    // as the recipe has it
};

// Warns of every folder that stands in the list more than once, whatever it is called there: each
// entry counts, which PEFT cannot be asked for. `place` is the list's, as in "recipe.yml:3".
void warn_repeated(const std::vector<Listed>& list, const std::string& place, Problems& problems);

}  // namespace ingot::plan
