#include "help.hpp"

#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "table.hpp"

namespace ingot::tool {
namespace {

constexpr std::size_t kColumn = 30;  // where explanations start

std::string line(const std::string& left, const std::string& right) {
  if (left.size() + 4 > kColumn) return fmt::format("  {}\n{:{}}{}\n", left, "", kColumn, right);
  return fmt::format("  {:<{}}{}\n", left, kColumn - 2, right);
}

std::string describe(const Option& option) {
  std::string left = fmt::format("{}", fmt::join(option.names, ", "));
  if (!option.value.empty()) left += " " + option.value;
  std::string right = option.summary;
  if (!option.standard.empty()) right += fmt::format(" (default {})", option.standard);
  return line(left, right);
}

// Options by group, groups in the order of their first option; foreign names are the manual's.
std::string describe(const std::vector<Option>& options) {
  std::vector<std::pair<std::string, std::string>> groups;
  for (const Option& option : options) {
    if (option.group == kForeign) continue;
    auto group = groups.begin();
    while (group != groups.end() && group->first != option.group) ++group;
    if (group == groups.end()) group = groups.insert(group, {option.group, ""});
    group->second += describe(option);
  }
  std::string text;
  for (const auto& [name, lines] : groups) text += fmt::format("\n{}:\n{}", name, lines);
  return text;
}

}  // namespace

std::string Help::make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const {
  std::string text;
  if (app->get_parent() == nullptr) {
    const Table table = tabulate(*app);
    text = table.summary + "\n\nusage: ingot COMMAND ...\n\nCommands:\n";
    for (const Subcommand& entry : table.commands) text += line(entry.name, entry.summary);
    return text + describe(table.options) + "\n" + table.footer + "\n";
  }
  const Subcommand entry = tabulate_command(*app);
  std::string words = entry.name;
  for (const CLI::App* p = app->get_parent(); p->get_parent() != nullptr; p = p->get_parent()) {
    words = p->get_name() + " " + words;
  }
  text = fmt::format("{}.\n\nusage: ingot {} [options]", entry.summary, words);
  for (const Option& argument : entry.arguments) {
    const std::string& name = argument.names.front();
    text += argument.required ? fmt::format(" {}", name) : fmt::format(" [{}]", name);
  }
  text += "\n\n";
  for (const Option& argument : entry.arguments) {
    text += line(argument.names.front(), argument.summary);
  }
  return text + describe(entry.options) + "\n" + entry.footer + "\n";
}

}  // namespace ingot::tool
