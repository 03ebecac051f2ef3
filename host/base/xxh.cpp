// Built once per instruction set with INGOT_VECTORS naming the namespace. The packaged library is
// SSE2 code; its header, inlined here, follows the compiler's flags.
#include "base/xxh.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ingot::INGOT_VECTORS {

Digest xxh3(const std::byte* data, std::size_t size) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(data, size);
  return {hash.high64, hash.low64};
}

}  // namespace ingot::INGOT_VECTORS
