#include "help.hpp"

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "command.hpp"
#include "complaint.hpp"
#include "console.hpp"
#include "failure.hpp"
#include "foreign.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "table.hpp"

namespace ingot::tool {
namespace {

constexpr std::size_t kWidth = 80;   // of every line
constexpr std::size_t kColumn = 28;  // where explanations start

// The meanings of the words for values that are not plain names.
struct Value {
  std::string_view name, meaning;
};
constexpr std::array kValues{
    Value{"SIZE", "a number of bytes with a unit, as 512MiB, 1.5GiB or 5GB"},
    Value{"N", "a whole number"},
    Value{"SHARE", "a number from 0 to 1"},
    Value{"MODEL", "a folder, or a name in the Hub cache with an optional @REVISION"},
    Value{"ADAPTER[:WEIGHT]", "a folder or a name in the Hub cache, and a factor for it"},
};

// Characters of UTF-8.
std::size_t length(std::string_view text) {
  std::size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U ? 1 : 0;
  return count;
}

std::string line(const std::string& left, const std::string& right) {
  const std::string start = "  " + left;
  if (length(left) + 4 > kColumn)
    return start + '\n' + wrapped(std::string(kColumn, ' '), right, kColumn);
  return wrapped(fmt::format("{:<{}}", start, kColumn), right, kColumn);
}

// Paragraphs are filled; lines that start with spaces (examples) stay as they are.
std::string fill(std::string_view text) {
  std::string result, paragraph;
  const auto flush = [&] {
    if (!paragraph.empty()) result += wrapped("", paragraph, 0);
    paragraph.clear();
  };
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view one = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (one.empty() || one.starts_with(' ') || one.ends_with(':')) {
      flush();
      result += std::string(one) + '\n';
    } else {
      if (!paragraph.empty()) paragraph += ' ';
      paragraph += one;
    }
  }
  flush();
  return result;
}

std::string describe(const Option& option) {
  std::string left = fmt::format("{}", fmt::join(option.names, ", "));
  if (!option.value.empty()) left += " " + option.value;
  std::string right = option.summary;
  if (option.required) right += " (required)";
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

// The meaning of the words for values that a command's options have.
std::string values_of(const Subcommand& command) {
  std::string text;
  for (const Value& value : kValues) {
    const auto has = [&](const std::vector<Option>& options) {
      return std::any_of(options.begin(), options.end(), [&](const Option& option) {
        return option.group != kForeign && option.value == value.name;
      });
    };
    if (has(command.options) || has(command.arguments)) {
      text += line(std::string(value.name), std::string(value.meaning));
    }
  }
  return text.empty() ? text : "\nValues:\n" + text;
}

std::string page(const CLI::App& program) {
  const Table table = tabulate(program);
  std::string text = table.summary + "\n\nusage: ingot COMMAND ...\n\nCommands:\n";
  for (const Subcommand& entry : table.commands) text += line(entry.name, entry.summary);
  return text + describe(table.options) + "\n" + fill(table.footer);
}

std::string page(const Subcommand& entry) {
  std::string text = entry.summary + ".\n\n" + wrapped("usage: ", usage(entry), 7);
  if (!entry.arguments.empty()) text += '\n';
  for (const Option& argument : entry.arguments) {
    std::string summary = argument.summary;
    if (!argument.standard.empty()) summary += fmt::format(" (default {})", argument.standard);
    text += line(argument.names.front() + (argument.many ? "..." : ""), summary);
  }
  return text + describe(entry.options) + values_of(entry) + "\n" + fill(entry.footer);
}

// The options of other programs, and ours.
std::string foreign_page() {
  std::string text =
      "Options of other programs, and what ingot has for each. Those of mergekit-yaml\n"
      "are accepted as they are.\n";
  std::string_view program, commands = "-";
  for (const Foreign& row : foreign_options()) {
    if (program != row.program || commands != row.commands) {
      program = row.program;
      commands = row.commands;
      const std::string where =
          commands.empty() ? std::string("any command")
                           : fmt::format("ingot {}", fmt::join(split(commands, ' '), ", "));
      text += fmt::format("\n{} ({}):\n", program, where);
    }
    const std::string left = fmt::format("{}", fmt::join(split(row.names, ','), ", "));
    const std::string right = row.answer == Answer::noted
                                  ? fmt::format("accepted, no effect: {}", row.ours)
                              : row.answer == Answer::taken ? fmt::format("accepted: {}", row.ours)
                                                            : std::string(row.ours);
    text += wrapped("  ", left, 2) + wrapped("      ", right, 6);
  }
  return text;
}

std::string exit_page() {
  std::string text = "Exit codes, and what to do.\n\n";
  for (const Exit& exit : exits()) {
    text += wrapped(fmt::format("  {:<5}", exit.code), exit.meaning, 7);
    text += wrapped("       ", std::string("-> ") + exit.advice, 10);
  }
  return text;
}

class HelpCommand final : public Command {
 public:
  explicit HelpCommand(CLI::App& program)
      : Command(program, "help", "Show the help of a command, of options or of exit codes"),
        program_(program) {
    app()
        .add_option("TOPIC", words_,
                    "A command, as 'merge' or 'adapter merge'; 'options': the options of mergekit, "
                    "PEFT and others, and what ingot has for each; 'exit-codes'")
        ->type_name("TOPIC");
    app().footer(
        "Examples:\n"
        "  ingot help merge\n"
        "  ingot help adapter merge\n"
        "  ingot help options\n"
        "  ingot help exit-codes\n"
        "  ingot methods                 the merge methods, a line for each\n"
        "  ingot explain ties            one of them: formula, parameters, paper");
  }

  int run() override {
    print(words_.empty() ? page(program_) : topic());
    return 0;
  }

 private:
  [[nodiscard]] std::string topic() const {
    if (words_ == std::vector<std::string>{kTopics[0]}) return foreign_page();
    if (words_ == std::vector<std::string>{kTopics[1]}) return exit_page();
    const Choice choice = choose(program_, words_);
    if (choice.words == words_.size()) {
      const CLI::App* outer = choice.command;
      while (outer->get_parent() != &program_) outer = outer->get_parent();
      return page(tabulate_command(*outer));
    }
    const std::string& word = words_[choice.words];
    const std::string near = nearest(word, {std::begin(kTopics), std::end(kTopics)});
    if (choice.words == 0 && !near.empty()) {
      fail(Code::usage,
           fmt::format("'{}' is not a help topic; did you mean 'ingot help {}'?", word, near));
    }
    fail(Code::usage, unknown_command(program_, choice, word, "ingot help "));
  }

  CLI::App& program_;
  std::vector<std::string> words_;
};

}  // namespace

std::string wrapped(std::string line, std::string_view text, std::size_t indent) {
  std::string lines;
  bool fresh = true;  // nothing of the text is on the line
  while (!text.empty()) {
    const std::size_t end = text.find(' ');
    const std::string_view word = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (!fresh && length(line) + 1 + length(word) > kWidth) {
      lines += line + '\n';
      line = std::string(indent, ' ');
      fresh = true;
    }
    if (!fresh) line += ' ';
    line += word;
    fresh = false;
  }
  return lines + line + '\n';
}

std::string overview() {
  return "ingot merges language-model checkpoints and adapters.\n"
         "\n"
         "  ingot plan recipe.yml out                 what merge would do; all problems\n"
         "  ingot merge recipe.yml out                merge models by a recipe of mergekit\n"
         "  ingot bake base adapter -o out            put adapters into a model's weights\n"
         "  ingot adapter merge a:0.7 b:0.3 -o out    merge adapters into one adapter\n"
         "  ingot extract base tuned --rank 64 -o out make an adapter of a fine-tune\n"
         "  ingot verify out                          check a result and its inputs\n"
         "\n"
         "ingot help lists all commands, ingot help merge explains one, ingot methods\n"
         "lists the merge methods.\n";
}

std::string Help::make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const {
  if (app->get_parent() == nullptr) return page(*app);
  const CLI::App* command = app;  // `adapter merge` has the page of `adapter`
  while (command->get_parent()->get_parent() != nullptr) command = command->get_parent();
  return page(tabulate_command(*command));
}

std::unique_ptr<Command> make_help(CLI::App& program) {
  return std::make_unique<HelpCommand>(program);
}

}  // namespace ingot::tool
