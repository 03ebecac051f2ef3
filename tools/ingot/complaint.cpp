#include "complaint.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "console.hpp"
#include "foreign.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "table.hpp"

namespace ingot::tool {
namespace {

// The command that the parser chose, the innermost one.
const CLI::App& chosen(const CLI::App& program) {
  const CLI::App* command = &program;
  for (auto next = command->get_subcommands(); !next.empty(); next = command->get_subcommands()) {
    command = next.front();
  }
  return *command;
}

std::vector<std::string> options_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> commands_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::App* each : command.get_subcommands([](const CLI::App*) { return true; })) {
    if (!each->get_group().empty()) names.push_back(each->get_name());
  }
  return names;
}

// Commands of the program that have an option.
std::string owners(const CLI::App& program, const std::string& option) {
  std::string text;
  for (const Subcommand& entry : tabulate(program).commands) {
    for (const Option& each : entry.options) {
      if (std::find(each.names.begin(), each.names.end(), option) == each.names.end()) continue;
      text += (text.empty() ? "'ingot " : ", 'ingot ") + entry.name + "'";
    }
  }
  return text;
}

std::string unknown_option(const CLI::App& program, const CLI::App& command,
                           const std::string& word) {
  const std::string name = word.substr(0, word.find('='));
  const std::string start = fmt::format("unknown option '{}'", name);
  // The table's rows are for the outer name, `adapter` of `adapter merge`.
  const CLI::App* outer = &command;
  while (outer != &program && outer->get_parent() != &program) outer = outer->get_parent();
  if (const Foreign* row = advice(name, outer == &program ? "" : outer->get_name())) {
    return fmt::format("{}: {}", start, row->ours);
  }
  if (outer == &program) return start;
  const std::string near = nearest(name, options_of(command));
  if (!near.empty()) return fmt::format("{}; did you mean {}?", start, near);
  const std::string others = owners(program, name);
  if (!others.empty()) return fmt::format("{}; it belongs to {}", start, others);
  // Another program's, for another command.
  const Foreign* row = advice(name, "");
  if (row == nullptr) return start;
  return fmt::format("{}; of 'ingot {}': {}", start,
                     fmt::join(split(row->commands, ' '), "' and '"), row->ours);
}

// The parser's three sentences in our words: "OUT is required", "--memory: 1 required SIZE
// missing", "--storage: tape not in {auto,mapped}".
std::string in_words(std::string text) {
  constexpr std::string_view kRequired = " is required", kMissing = " missing",
                             kOne = ": 1 required ", kNotIn = " not in {";
  if (text.ends_with(kRequired)) {
    return text.substr(0, text.size() - kRequired.size()) + " is missing";
  }
  const std::size_t one = text.find(kOne);
  if (one != std::string::npos && text.ends_with(kMissing)) {
    const std::string value = text.substr(one + kOne.size());
    return fmt::format("{} needs a value: {}", one == 0 ? "an option" : text.substr(0, one),
                       value.substr(0, value.size() - kMissing.size()));
  }
  const std::size_t choice = text.find(kNotIn), colon = text.find(": ");
  if (choice != std::string::npos && colon < choice && text.ends_with('}')) {
    const std::string choices = text.substr(choice + kNotIn.size());
    return fmt::format("{} '{}': expected {}", text.substr(0, colon),
                       text.substr(colon + 2, choice - colon - 2),
                       fmt::join(split(choices.substr(0, choices.size() - 1), ','), ", "));
  }
  return text;
}

std::string describe(const CLI::ParseError& error, const CLI::App& program,
                     const CLI::App& command) {
  std::vector<std::string> rest = program.remaining(true);
  rest.erase(std::remove(rest.begin(), rest.end(), "--"), rest.end());
  const auto option = std::find_if(rest.begin(), rest.end(), [](const std::string& word) {
    return word.size() > 1 && word[0] == '-';
  });
  if (option != rest.end()) return unknown_option(program, command, *option);
  if (!commands_of(command).empty()) {
    return fmt::format("a command is missing; expected {}", fmt::join(commands_of(command), ", "));
  }
  if (!rest.empty()) return fmt::format("one argument too many: '{}'", rest.front());
  return in_words(error.what());
}

// "adapter merge" of the command.
std::string name_of(const CLI::App& program, const CLI::App& command) {
  std::string name;
  for (const CLI::App* each = &command; each != &program; each = each->get_parent()) {
    name = each->get_name() + (name.empty() ? "" : " ") + name;
  }
  return name;
}

int refuse(const CLI::App& program, const CLI::App& command, const std::string& message) {
  const Console console;
  console.error(message, Code::usage);
  const std::string name = name_of(program, command);
  if (name.empty()) {
    console.note("'ingot help' lists the commands");
  } else {
    const CLI::App* outer = &command;
    while (outer->get_parent() != &program) outer = outer->get_parent();
    console.note(fmt::format("usage: {}; 'ingot help {}' explains it",
                             usage(tabulate_command(*outer)), name));
  }
  return exit_code(Code::usage);
}

}  // namespace

Choice choose(const CLI::App& program, const std::vector<std::string>& words) {
  Choice choice{&program, 0};
  for (const std::string& word : words) {
    const auto found = choice.command->get_subcommands(
        [&](const CLI::App* each) { return each->get_name() == word; });
    if (found.empty()) break;
    choice = {found.front(), choice.words + 1};
  }
  return choice;
}

std::string unknown_command(const CLI::App& program, const Choice& choice, const std::string& word,
                            const std::string& start) {
  const std::string name = name_of(program, *choice.command);
  const std::string before = name.empty() ? "" : name + " ";
  std::string text = fmt::format("there is no command '{}{}'", before, word);
  const std::string_view meant = name.empty() ? meant_command(word) : "";
  if (!meant.empty()) return fmt::format("{}; use '{}{}'", text, start, meant);
  const std::vector<std::string> known = commands_of(*choice.command);
  const std::string near = nearest(word, known);
  if (!near.empty()) return fmt::format("{}; did you mean '{}{}{}'?", text, start, before, near);
  if (name.empty() && (word.ends_with(".yml") || word.ends_with(".yaml"))) {
    return fmt::format("{}; to merge by that recipe: '{}merge {} OUT'", text, start, word);
  }
  return name.empty() || known.empty()
             ? text
             : fmt::format("{}; there is '{}{}{}'", text, start, before, fmt::join(known, "', '"));
}

std::optional<int> complain_of_command(const CLI::App& program,
                                       const std::vector<std::string>& words) {
  const Choice choice = choose(program, words);
  if (choice.words == words.size() || commands_of(*choice.command).empty()) return std::nullopt;
  const std::string& word = words[choice.words];
  if (word.starts_with('-')) return std::nullopt;
  return refuse(program, *choice.command, unknown_command(program, choice, word, "ingot "));
}

int complain(const CLI::ParseError& error, const CLI::App& program) {
  const CLI::App& command = chosen(program);
  return refuse(program, command, describe(error, program, command));
}

}  // namespace ingot::tool
