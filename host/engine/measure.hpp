// The measuring pass of a run: decides what its plan leaves open, before anything is laid out.
#pragma once

#include "engine/supply.hpp"
#include "engine/target.hpp"
#include "ingot/merge.hpp"

namespace ingot {

// Reads the models and replaces `plan`, which is of what is there now, by one with nothing open.
// Decompositions stay in a file beside OUT for as long as that plan lives, and what was read for
// them is hashed at once: neither has to be done again. Error{io} where a file changed since the
// plan was made. The new plan may have fatal problems.
[[nodiscard]] Digests::Map measure(Disk& disk, Backend& backend, Plan& plan, Target& target,
                                   const MergeOptions& options, const Watcher& watcher);

}  // namespace ingot
