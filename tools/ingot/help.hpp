// --help.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

namespace ingot::tool {

// Prints help from the same table as the manual and the completions.
class Help final : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// What the program says where no command is given.
[[nodiscard]] std::string overview();

}  // namespace ingot::tool
