// How failures of the operating system become errors; shared by the files of host/store.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "ingot/error.hpp"
#include "ingot/store.hpp"

namespace ingot {

// "cannot ACTION: REASON" from an errno value; Code::missing where the file or folder does not
// exist, Code::io otherwise. `action` names the path ("read /m/a.bin at byte 10").
[[nodiscard]] Error system_error(std::string_view action, int number);

// The error of a file that ends `wanted` bytes too early, at `offset`.
[[nodiscard]] Error end_of_file(std::string_view path, std::uint64_t offset, std::uint64_t wanted);

}  // namespace ingot
