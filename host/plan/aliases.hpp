// Names that a class has in memory and checkpoints have on disk: a closed table of pairs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ingot::plan {

// The other names that a tensor of this name may have, the likeliest first: what transformers 5
// calls it in memory (so do the adapters that PEFT saves) where `name` is one of checkpoints, and
// the other way round.
[[nodiscard]] std::vector<std::string> aliases(std::string_view name);

}  // namespace ingot::plan
