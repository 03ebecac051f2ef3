#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "table.hpp"

namespace ingot::tool {
namespace {

std::string join(const std::vector<std::string>& words, std::string_view between) {
  std::string text;
  for (const std::string& word : words) {
    if (!text.empty()) text += between;
    text += word;
  }
  return text;
}

// Text between single quotes of a shell.
std::string literal(std::string_view text) {
  std::string result = "'";
  for (char c : text) result += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return result + "'";
}

std::string bash(const Table& table) {
  std::string text =
      "# bash completion for ingot; written by `ingot completion bash`.\n"
      "_ingot() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} "
      "command=${COMP_WORDS[1]}\n"
      "  COMPREPLY=()\n"
      "  if ((COMP_CWORD == 1)); then\n";
  std::vector<std::string> names;
  for (const Subcommand& entry : table.commands) names.push_back(entry.name);
  for (const Option& option : table.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  text += fmt::format("    COMPREPLY=($(compgen -W {} -- \"$word\"))\n    return\n  fi\n",
                      literal(join(names, " ")));
  text += "  case $command in\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("    {})\n      case $before in\n", entry.name);
    std::vector<std::string> options;
    for (const Option& option : entry.options) {
      if (option.group == kForeign) continue;
      options.insert(options.end(), option.names.begin(), option.names.end());
      if (option.value.empty()) continue;
      text += fmt::format("        {}) ", join(option.names, " | "));
      if (!option.choices.empty()) {
        text += fmt::format("COMPREPLY=($(compgen -W {} -- \"$word\"))",
                            literal(join(option.choices, " ")));
      } else if (option.value == "DIR") {
        text += "COMPREPLY=($(compgen -d -- \"$word\"))";
      } else {
        text += ":";
      }
      text += "; return ;;\n";
    }
    text += "      esac\n";
    text += fmt::format(
        "      if [[ $word == -* ]]; then\n"
        "        COMPREPLY=($(compgen -W {} -- \"$word\"))\n"
        "      else\n",
        literal(join(options, " ")));
    const bool words = !entry.arguments.empty() && !entry.arguments.front().choices.empty();
    text += words ? fmt::format("        COMPREPLY=($(compgen -W {} -- \"$word\"))\n",
                                literal(join(entry.arguments.front().choices, " ")))
                  : std::string("        COMPREPLY=($(compgen -f -- \"$word\"))\n");
    text += "      fi ;;\n";
  }
  return text + "  esac\n}\ncomplete -o filenames -F _ingot ingot\n";
}

// Inside a zsh _arguments specification, brackets and colons are marks of its own.
std::string escaped(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (c == '[' || c == ']' || c == ':') result += '\\';
    result += c;
  }
  return result;
}

std::string zsh_action(const Option& option) {
  if (!option.choices.empty()) return "(" + join(option.choices, " ") + ")";
  if (option.value == "DIR") return "_files -/";
  if (option.value == "FILE" || option.value == "PATH") return "_files";
  return " ";
}

std::string zsh(const Table& table) {
  std::string text =
      "#compdef ingot\n# zsh completion for ingot; written by `ingot completion zsh`.\n"
      "_ingot() {\n"
      "  if ((CURRENT == 2)); then\n    local -a commands=(\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("      {}\n", literal(entry.name + ":" + escaped(entry.summary)));
  }
  text +=
      "    )\n    _describe command commands\n    return\n  fi\n"
      "  shift words\n  ((CURRENT--))\n  case $words[1] in\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("    {})\n      _arguments", entry.name);
    for (const Option& option : entry.options) {
      if (option.group == kForeign) continue;
      for (const std::string& name : option.names) {
        std::string spec = name + "[" + escaped(option.summary) + "]";
        if (!option.value.empty()) {
          spec += ":" + escaped(option.choices.empty() ? option.value : "value") + ":" +
                  zsh_action(option);
        }
        text += fmt::format(" \\\n        {}", literal(spec));
      }
    }
    int place = 0;
    for (const Option& argument : entry.arguments) {
      const std::string spec =
          fmt::format("{}:{}:{}", ++place, escaped(argument.names.front()), zsh_action(argument));
      text += fmt::format(" \\\n        {}", literal(spec));
    }
    text += " ;;\n";
  }
  return text + "  esac\n}\n_ingot \"$@\"\n";
}

std::string fish(const Table& table) {
  std::string text =
      "# fish completion for ingot; written by `ingot completion fish`.\n"
      "complete -c ingot -n __fish_use_subcommand -f\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("complete -c ingot -n __fish_use_subcommand -a {} -d {}\n", entry.name,
                        literal(entry.summary));
    const std::string when = literal("__fish_seen_subcommand_from " + entry.name);
    for (const Option& option : entry.options) {
      if (option.group == kForeign) continue;
      text += fmt::format("complete -c ingot -n {}", when);
      for (const std::string& name : option.names) {
        text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      if (!option.choices.empty()) {
        text += fmt::format(" -x -a {}", literal(join(option.choices, " ")));
      } else if (option.value == "DIR" || option.value == "FILE" || option.value == "PATH") {
        text += " -r -F";
      } else if (!option.value.empty()) {
        text += " -x";
      }
      text += fmt::format(" -d {}\n", literal(option.summary));
    }
    for (const Option& argument : entry.arguments) {
      if (argument.choices.empty()) continue;
      text += fmt::format("complete -c ingot -n {} -f -a {}\n", when,
                          literal(join(argument.choices, " ")));
    }
  }
  return text;
}

class CompletionCommand final : public Command {
 public:
  explicit CompletionCommand(CLI::App& program)
      : Command(program, "completion", "Print a script that completes ingot's options in a shell"),
        program_(program) {
    app()
        .add_option("SHELL", shell_, "bash, zsh or fish")
        ->required()
        ->type_name("bash|zsh|fish")
        ->check(CLI::IsMember({"bash", "zsh", "fish"}));
    app().footer(
        "Examples:\n"
        "  ingot completion bash > ~/.local/share/bash-completion/completions/ingot\n"
        "  ingot completion zsh > \"${fpath[1]}/_ingot\"\n"
        "  ingot completion fish > ~/.config/fish/completions/ingot.fish");
  }

  int run() override {
    const Table table = tabulate(program_);
    print(shell_ == "bash" ? bash(table) : shell_ == "zsh" ? zsh(table) : fish(table));
    return 0;
  }

 private:
  CLI::App& program_;
  std::string shell_;
};

}  // namespace

std::unique_ptr<Command> make_completion(CLI::App& program) {
  return std::make_unique<CompletionCommand>(program);
}

}  // namespace ingot::tool
