// The program's commands and options as data, for everything printed about them.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace ingot::tool {

// The group of options that are mergekit's: accepted, and left to the manual.
inline constexpr const char* kForeign = "mergekit";

struct Option {
  std::vector<std::string> names;    // with dashes; of an argument its one name
  std::string value;                 // "SIZE"; empty for a flag
  std::vector<std::string> choices;  // where the value is one of a few words
  std::string standard;              // the default, if it is worth showing
  std::string summary;
  std::string group;  // "Options" unless set; kForeign for mergekit's names
  bool required = false;
};

struct Subcommand {
  std::string name, summary, footer;
  std::vector<Option> arguments, options;
};

struct Table {
  std::string summary, footer;
  std::vector<Option> options;
  std::vector<Subcommand> commands;
};

[[nodiscard]] Table tabulate(const CLI::App& program);
[[nodiscard]] Subcommand tabulate_command(const CLI::App& command);

}  // namespace ingot::tool
