// Plans whose output is an adapter.
#pragma once

#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// Several adapters into one (Recipe::Kind::adapters).
void fuse(Disk& disk, Plan& plan, Problems& problems);

// The difference between a model and its base (Recipe::Kind::extraction).
void extract(Disk& disk, Plan& plan, Problems& problems);

}  // namespace ingot::plan
