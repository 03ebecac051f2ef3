// Which ingot this is.
#pragma once

namespace ingot {

// "0.1.0".
[[nodiscard]] const char* version() noexcept;

}  // namespace ingot
