// Plans whose output is an adapter.
#pragma once

#include "ingot/plan.hpp"
#include "plan/measure.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// Several adapters into one (Recipe::Kind::adapters). Of a recipe that is not `whole`, because
// parts of it could not be read, the rest is checked and the models are opened. Without `measuring`
// what only numbers decide stays open.
void fuse(Disk& disk, Plan& plan, Problems& problems, bool whole, Measuring* measuring);

// The difference between a model and its base (Recipe::Kind::extraction). The rest as above.
void extract(Disk& disk, Plan& plan, Problems& problems, bool whole, Measuring* measuring);

}  // namespace ingot::plan
