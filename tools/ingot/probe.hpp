// A quick look at how fast the inputs can be read.
#pragma once

#include "ingot/plan.hpp"

namespace ingot::tool {

// Bytes per second of reading a few MiB spread over the plan's weight files, through the page cache
// as it is; 0 if there is too little to tell.
[[nodiscard]] double probe(const Plan& plan);

}  // namespace ingot::tool
