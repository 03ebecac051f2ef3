// Operands of adapter merges that are made element by element: rows and columns side by side,
// constants, and stored tensors whose values are checked on the way.
#pragma once

#include <memory>
#include <string>

#include "adapter/site.hpp"
#include "ingot/derived.hpp"

namespace ingot::adapter {

enum class Side : std::uint8_t { a, b };

// The factors of all terms: rows times * A one below the other, in one rounding; columns of B side
// by side, as they are.
[[nodiscard]] std::shared_ptr<const Derived> stacked(Site site, Side side);

// The same number everywhere.
[[nodiscard]] std::shared_ptr<const Derived> constant(double value);

// A stored tensor as it is. Error{format} at the first value that is not finite.
[[nodiscard]] std::shared_ptr<const Derived> finite(std::string adapter, Ingredient tensor);

}  // namespace ingot::adapter
