// How many threads do a piece of work.
#pragma once

namespace ingot {

// `wanted` threads; as many as the machine has where that is 0.
[[nodiscard]] int thread_count(int wanted) noexcept;

}  // namespace ingot
