// --help.
#pragma once

#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

namespace ingot::tool {

// Prints help from the same table as the manual and the completions.
class Help final : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// Lines of `text` of at most 80 columns, if its words allow; the first one starts where `line`
// ends, the others behind `indent` spaces. Each ends in a line break.
[[nodiscard]] std::string wrapped(std::string line, std::string_view text, std::size_t indent);

// The text of the program without a command.
[[nodiscard]] std::string overview();

}  // namespace ingot::tool
