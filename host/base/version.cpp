#include "ingot/version.hpp"

namespace ingot {

const char* version() noexcept { return INGOT_VERSION; }

}  // namespace ingot
