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

// `adapter` of "adapter merge", and the words behind it.
std::string word_of(const Subcommand& entry) { return entry.name.substr(0, entry.name.find(' ')); }
std::string inner_of(const Subcommand& entry) {
  const std::size_t space = entry.name.find(' ');
  return space == std::string::npos ? "" : entry.name.substr(space + 1);
}

std::string bash(const Table& table) {
  std::string text =
      "# bash completion for ingot; written by `ingot completion bash`.\n"
      "_ingot_tensors() {\n"
      "  local path\n"
      "  for path in \"${COMP_WORDS[@]:2}\"; do\n"
      "    path=${path/#\\~/$HOME}\n"
      "    [[ -e $path ]] && \"${COMP_WORDS[0]}\" inspect \"$path\" --names 2>/dev/null\n"
      "  done\n"
      "}\n"
      "_ingot() {\n"
      "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} "
      "command=${COMP_WORDS[1]}\n"
      "  COMPREPLY=()\n"
      "  # `--option=value` comes as three words.\n"
      "  if [[ $word == = ]]; then word=; elif [[ $before == = ]]; then "
      "before=${COMP_WORDS[COMP_CWORD - 2]}; fi\n"
      "  if ((COMP_CWORD == 1)); then\n";
  std::vector<std::string> names;
  for (const Subcommand& entry : table.commands) names.push_back(word_of(entry));
  for (const Option& option : table.options) {
    names.insert(names.end(), option.names.begin(), option.names.end());
  }
  text += fmt::format("    COMPREPLY=($(compgen -W {} -- \"$word\"))\n    return\n  fi\n",
                      literal(join(names, " ")));
  text += "  case $command in\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("    {})\n", word_of(entry));
    if (const std::string inner = inner_of(entry); !inner.empty()) {
      text += fmt::format(
          "      if ((COMP_CWORD == 2)); then\n        COMPREPLY=($(compgen -W {} -- \"$word\"))\n"
          "        return\n      fi\n",
          literal(inner));
    }
    text += "      case $before in\n";
    std::vector<std::string> options;
    for (const Option& option : entry.options) {
      if (option.group == kForeign) continue;
      options.insert(options.end(), option.names.begin(), option.names.end());
      if (option.value.empty()) continue;
      text += fmt::format("        {}) ", join(option.names, " | "));
      if (!option.choices.empty()) {
        text += fmt::format("COMPREPLY=($(compgen -W {} -- \"$word\"))",
                            literal(join(option.choices, " ")));
      } else if (option.value == "TENSOR") {
        text += "COMPREPLY=($(compgen -W \"$(_ingot_tensors)\" -- \"$word\"))";
      } else if (option.value == "DIR") {
        text += "COMPREPLY=($(compgen -d -- \"$word\"))";
      } else if (option.value == "FILE") {
        text += "COMPREPLY=($(compgen -f -- \"$word\"))";
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
  if (option.value == "TENSOR") return "_ingot_tensors";
  if (option.value == "DIR") return "_files -/";
  if (option.value == "N" || option.value == "SIZE" || option.value == "SHARE") return " ";
  return "_files";
}

std::string zsh(const Table& table) {
  std::string text =
      "#compdef ingot\n# zsh completion for ingot; written by `ingot completion zsh`.\n"
      "_ingot_tensors() {\n"
      "  local -a tensors\n"
      "  local path_\n"
      "  for path_ in ${(Q)words[2,-1]}; do\n"
      "    [[ -e $path_ ]] && tensors+=(${(f)\"$(ingot inspect $path_ --names 2>/dev/null)\"})\n"
      "  done\n"
      "  compadd -a tensors\n"
      "}\n"
      "_ingot() {\n"
      "  if ((CURRENT == 2)); then\n    local -a commands=(\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("      {}\n", literal(word_of(entry) + ":" + escaped(entry.summary)));
  }
  text +=
      "    )\n    _describe command commands\n    return\n  fi\n"
      "  shift words\n  ((CURRENT--))\n  case $words[1] in\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("    {})\n      _arguments", word_of(entry));
    int place = 0;
    if (const std::string inner = inner_of(entry); !inner.empty()) {
      text +=
          fmt::format(" \\\n        {}", literal(fmt::format("{}:command:({})", ++place, inner)));
    }
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
    for (const Option& argument : entry.arguments) {
      const std::string number = argument.many ? std::string("*") : std::to_string(++place);
      const std::string spec =
          fmt::format("{}:{}:{}", number, escaped(argument.names.front()), zsh_action(argument));
      text += fmt::format(" \\\n        {}", literal(spec));
    }
    text += " ;;\n";
  }
  return text + "  esac\n}\n_ingot \"$@\"\n";
}

std::string fish(const Table& table) {
  std::string text =
      "# fish completion for ingot; written by `ingot completion fish`.\n"
      "function __ingot_tensors\n"
      "  for path in (commandline -opc)[3..-1]\n"
      "    test -e $path; and ingot inspect $path --names 2>/dev/null\n"
      "  end\n"
      "end\n"
      "complete -c ingot -n __fish_use_subcommand -f\n";
  for (const Subcommand& entry : table.commands) {
    text += fmt::format("complete -c ingot -n __fish_use_subcommand -a {} -d {}\n", word_of(entry),
                        literal(entry.summary));
    const std::string when = literal("__fish_seen_subcommand_from " + word_of(entry));
    if (const std::string inner = inner_of(entry); !inner.empty()) {
      text += fmt::format("complete -c ingot -n {} -a {}\n", when, literal(inner));
    }
    for (const Option& option : entry.options) {
      if (option.group == kForeign) continue;
      text += fmt::format("complete -c ingot -n {}", when);
      for (const std::string& name : option.names) {
        text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      if (!option.choices.empty()) {
        text += fmt::format(" -x -a {}", literal(join(option.choices, " ")));
      } else if (option.value == "TENSOR") {
        text += " -x -a '(__ingot_tensors)'";
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
