// Messages about a command line that cannot be parsed.
#pragma once

#include <CLI/CLI.hpp>

namespace ingot::tool {

// Shows the parser's error, with the nearest word that exists, or ingot's word for another
// program's; returns the exit code.
[[nodiscard]] int complain(const CLI::ParseError& error, CLI::App& program);

}  // namespace ingot::tool
