// The loop of scan.cpp, compiled for one instruction set. Private to host/base.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ingot {
namespace sse2 {
// Whether an element of `size` bytes (1, 2, 4, 8) has a code that is, without its sign, at least
// `least`. Any address.
[[nodiscard]] bool sweep(const std::byte* data, std::size_t count, unsigned size,
                         std::uint64_t least) noexcept;
}  // namespace sse2
namespace avx2 {
[[nodiscard]] bool sweep(const std::byte* data, std::size_t count, unsigned size,
                         std::uint64_t least) noexcept;
}
}  // namespace ingot
