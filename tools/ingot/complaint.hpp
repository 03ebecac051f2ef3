// Messages about a command line that cannot be parsed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace ingot::tool {

// The command that words choose: `merge` of "adapter merge a -o out".
struct Choice {
  const CLI::App* command = nullptr;  // the innermost one
  std::size_t words = 0;              // how many words chose it
};
[[nodiscard]] Choice choose(const CLI::App& program, const std::vector<std::string>& words);

// "there is no command 'adapter mrege'; did you mean 'ingot adapter merge'?" of words of which the
// one behind the choice should be a command and is none. `start` precedes the advice: "ingot ".
[[nodiscard]] std::string unknown_command(const CLI::App& program, const Choice& choice,
                                          const std::string& word, const std::string& start);

// Shows what is wrong with the words that choose a command, whatever the options are; returns the
// exit code, or nothing where they choose one, or none.
[[nodiscard]] std::optional<int> complain_of_command(const CLI::App& program,
                                                     const std::vector<std::string>& words);

// Shows the parser's error, with the nearest word that exists, or ingot's word for another
// program's; returns the exit code.
[[nodiscard]] int complain(const CLI::ParseError& error, const CLI::App& program);

}  // namespace ingot::tool
