// A quick look at how fast the inputs can be read.
#pragma once

#include "ingot/merge.hpp"

namespace ingot::tool {

// Bytes per second of reading a few MiB spread over the plan's weight files, through the page cache
// as it is; 0 if there is too little to tell.
[[nodiscard]] double probe(const Plan& plan);

// How long a run takes that computes while it reads and writes; `storage_rate` 0: not known.
[[nodiscard]] double seconds_of(const Plan& plan, const Estimate& run, double storage_rate);

}  // namespace ingot::tool
