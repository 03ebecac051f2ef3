// One of the two signs of every singular vector, chosen.
#pragma once

#include "ingot/linalg.hpp"

namespace ingot::linalg {

// Makes the largest entry by magnitude of each row of `a`, the first of several, positive; the rows
// of `b` follow.
void settle_signs(Matrix& b, Matrix& a);

}  // namespace ingot::linalg
