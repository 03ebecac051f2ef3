#include "table.hpp"

#include <algorithm>
#include <sstream>

namespace ingot::tool {
namespace {

std::vector<std::string> split(const std::string& text, char between) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, between);) parts.push_back(part);
  return parts;
}

Option describe(const CLI::Option& option) {
  Option result;
  if (option.get_positional()) {
    result.names = {option.get_name(true)};
  } else {
    // `--no-x` is left out: it says what `--x` says.
    const std::vector<std::string>& negative = option.get_fnames();
    for (const std::string& name : option.get_snames()) result.names.push_back("-" + name);
    for (const std::string& name : option.get_lnames()) {
      if (std::find(negative.begin(), negative.end(), name) == negative.end()) {
        result.names.push_back("--" + name);
      }
    }
  }
  if (option.get_items_expected_max() > 0 && option.get_type_size() > 0) {
    result.value = option.get_type_name();
    if (const std::size_t check = result.value.find(':'); check != std::string::npos) {
      result.value.resize(check);  // what a validator appends
    }
    if (result.value.find('|') != std::string::npos) result.choices = split(result.value, '|');
  }
  result.standard = option.get_default_str();
  result.summary = option.get_description();
  result.group = option.get_group().empty() ? kForeign : option.get_group();
  result.required = option.get_required();
  return result;
}

}  // namespace

Subcommand tabulate_command(const CLI::App& command) {
  Subcommand entry{command.get_name(), command.get_description(), command.get_footer(), {}, {}};
  // A command whose work is done by commands of its own: the word that chooses, and its options.
  const auto inner = command.get_subcommands([](const CLI::App*) { return true; });
  if (inner.size() == 1) {
    Subcommand own = tabulate_command(*inner.front());
    entry.arguments.push_back({{own.name}, "", {own.name}, "", own.summary, "Options", true});
    entry.arguments.insert(entry.arguments.end(), own.arguments.begin(), own.arguments.end());
    entry.options = own.options;
    entry.footer = own.footer;
    return entry;
  }
  for (const CLI::Option* option : command.get_options()) {
    (option->get_positional() ? entry.arguments : entry.options).push_back(describe(*option));
  }
  return entry;
}

Table tabulate(const CLI::App& program) {
  Table table{program.get_description(), program.get_footer(), {}, {}};
  for (const CLI::Option* option : program.get_options())
    table.options.push_back(describe(*option));
  for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) table.commands.push_back(tabulate_command(*command));
  }
  return table;
}

}  // namespace ingot::tool
