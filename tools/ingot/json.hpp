// JSON on standard output, keys in the order they were put in; and JSON from files.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "console.hpp"
#include "ingot/store.hpp"

namespace ingot::tool {

using Json = nlohmann::ordered_json;

// Names from files may be no valid UTF-8: such bytes are replaced. In ASCII, so that nothing in a
// name acts on a terminal and a reader of JSON gets the name as it is.
inline void print_json(const Json& json) {
  print(json.dump(2, ' ', true, Json::error_handler_t::replace) + '\n');
}

// What a file of the model or folder holds. Its keys are sorted: an object may have many. Throws
// Error{format} if the text is not JSON or is beyond bounds.
inline nlohmann::json json_of(const std::string& text, const std::string& where,
                              std::size_t values = 5'000'000) {
  check_json(text, where, values);
  return nlohmann::json::parse(text);
}

}  // namespace ingot::tool
