// The program's commands and options as data, for everything printed about them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

namespace ingot::tool {

// The group of options that are mergekit's: accepted, and left to the manual.
inline constexpr const char* kForeign = "mergekit";

// Topics of 'ingot help' beside the commands.
inline constexpr const char* kTopics[] = {"options", "exit-codes"};

struct Option {
  std::vector<std::string> names;    // with dashes; of an argument its one name
  std::string value;                 // "SIZE"; empty for a flag
  std::vector<std::string> choices;  // where the value is one of a few words
  std::string standard;              // the default, if it is worth showing
  std::string summary;
  std::string group;  // "Options" unless set; kForeign for mergekit's names
  bool required = false;
  bool many = false;  // an argument that may be given several times
};

struct Subcommand {
  std::string name, summary, footer;  // name: "merge", "adapter merge"
  std::vector<Option> arguments, options;
};

struct Table {
  std::string summary, footer;
  std::vector<Option> options;
  std::vector<Subcommand> commands;
};

// The parts of a text between separators.
[[nodiscard]] std::vector<std::string> split(std::string_view text, char between);

// "ingot merge [options] RECIPE OUT": arguments that may be left out in brackets, "..." behind
// those that may be repeated.
[[nodiscard]] std::string usage(const Subcommand& command);

[[nodiscard]] Table tabulate(const CLI::App& program);
[[nodiscard]] Subcommand tabulate_command(const CLI::App& command);

}  // namespace ingot::tool
