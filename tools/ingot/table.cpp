#include "table.hpp"

#include <algorithm>
#include <iterator>
#include <sstream>

#include <fmt/format.h>

#include "ingot/cards.hpp"

namespace ingot::tool {
namespace {

// The words that a value may be; empty where it is open.
std::vector<std::string> choices_of(const std::string& value) {
  std::vector<std::string> names;
  if (value.find('|') != std::string::npos) {
    for (std::string& word : tool::split(value, '|')) {
      if (word.find('N') == std::string::npos) names.push_back(std::move(word));  // N: any number
    }
  }
  if (value == "TYPE" || value == "METHOD") {
    for (const math::AdapterCard& card : math::kAdapterCards) names.emplace_back(card.name);
  }
  if (value == "METHOD") {
    for (const math::Method& method : math::kMethods) {
      const bool there = std::find(names.begin(), names.end(), method.card.name) != names.end();
      if (math::of_models(method) && !there) names.emplace_back(method.card.name);
    }
  }
  return names;
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
    // What a validator appends; not "A[:B]" or "cuda:N|auto".
    const std::size_t check = result.value.find(':', result.value.rfind('|') + 1);
    if (check != std::string::npos && check > 0 && result.value[check - 1] != '[') {
      result.value.resize(check);
    }
    result.choices = choices_of(result.value);
  }
  result.standard = option.get_default_str();
  result.summary = option.get_description();
  result.group = option.get_group().empty() ? kForeign : option.get_group();
  result.required = option.get_required();
  result.many = option.get_positional() && option.get_items_expected_max() > 1;
  return result;
}

}  // namespace

std::vector<std::string> split(std::string_view text, char between) {
  std::vector<std::string> parts;
  std::istringstream stream{std::string(text)};
  for (std::string part; std::getline(stream, part, between);) parts.push_back(part);
  return parts;
}

Subcommand tabulate_command(const CLI::App& command) {
  Subcommand entry{command.get_name(), command.get_description(), command.get_footer(), {}, {}};
  // A command whose work is done by a command of its own: that one's table.
  const auto inner = command.get_subcommands([](const CLI::App*) { return true; });
  if (inner.size() == 1) {
    Subcommand own = tabulate_command(*inner.front());
    own.name = entry.name + " " + own.name;
    return own;
  }
  for (const CLI::Option* option : command.get_options()) {
    (option->get_positional() ? entry.arguments : entry.options).push_back(describe(*option));
  }
  return entry;
}

std::string usage(const Subcommand& command) {
  std::string text = fmt::format("ingot {} [options]", command.name);
  bool out = false;
  for (const Option& argument : command.arguments) {
    const std::string& name = argument.names.front();
    const std::string dots = argument.many ? "..." : "";
    text +=
        argument.required ? fmt::format(" {}{}", name, dots) : fmt::format(" [{}{}]", name, dots);
    out = out || name == "OUT";
  }
  const bool option =
      std::any_of(command.options.begin(), command.options.end(), [](const Option& each) {
        return std::find(each.names.begin(), each.names.end(), "--out") != each.names.end();
      });
  return option && !out ? text + " -o OUT" : text;
}

Table tabulate(const CLI::App& program) {
  Table table{program.get_description(), program.get_footer(), {}, {}};
  for (const CLI::Option* option : program.get_options())
    table.options.push_back(describe(*option));
  for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) table.commands.push_back(tabulate_command(*command));
  }
  std::vector<std::string> topics(std::begin(kTopics), std::end(kTopics));
  for (const Subcommand& entry : table.commands) topics.push_back(split(entry.name, ' ').front());
  for (Subcommand& entry : table.commands) {
    for (Option& argument : entry.arguments) {
      if (argument.value == "TOPIC") argument.choices = topics;
    }
  }
  return table;
}

}  // namespace ingot::tool
