// XXH3-128 compiled for one instruction set; hash.cpp chooses. Private to host/base.
#pragma once

#include <cstddef>

#include "base/hash.hpp"

namespace ingot {
namespace sse2 {
[[nodiscard]] Digest xxh3(const std::byte* data, std::size_t size) noexcept;
}
namespace avx2 {
[[nodiscard]] Digest xxh3(const std::byte* data, std::size_t size) noexcept;
}
}  // namespace ingot
