// JSON on standard output, keys in the order they were put in.
#pragma once

#include <nlohmann/json.hpp>

#include "console.hpp"

namespace ingot::tool {

using Json = nlohmann::ordered_json;

// Names from files may be no valid UTF-8: such bytes are replaced.
inline void print_json(const Json& json) {
  print(json.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

}  // namespace ingot::tool
