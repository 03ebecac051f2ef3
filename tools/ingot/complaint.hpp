// What is said of a command line that cannot be understood.
#pragma once

#include <CLI/CLI.hpp>

namespace ingot::tool {

// Shows what the parser found wrong, with the nearest word that exists, or ingot's word for another
// program's; returns the exit code.
[[nodiscard]] int complain(const CLI::ParseError& error, CLI::App& program);

}  // namespace ingot::tool
