// What this process has in memory, mapped files included, as the system counts it.
#pragma once

#include <cstdint>

namespace ingot {

// Bytes; the most so far, and now. 0 where the system does not say.
[[nodiscard]] std::uint64_t peak_memory();
[[nodiscard]] std::uint64_t resident_memory();

}  // namespace ingot
