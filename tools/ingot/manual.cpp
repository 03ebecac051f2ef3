#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "failure.hpp"
#include "ingot/version.hpp"
#include "table.hpp"

namespace ingot::tool {
namespace {

// Text that roff shows as it is.
std::string plain(std::string_view text) {
  std::string result;
  bool start = true;
  for (char c : text) {
    if (start && (c == '.' || c == '\'')) result += "\\&";
    if (c == '\\') {
      result += "\\e";
    } else if (c == '-') {
      result += "\\-";
    } else {
      result += c;
    }
    start = c == '\n';
  }
  return result;
}

std::string upper(std::string text) {
  for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return text;
}

std::string entry_of(const Option& option) {
  std::string names;
  for (const std::string& name : option.names) {
    names += (names.empty() ? "" : ", ") + fmt::format("\\fB{}\\fR", plain(name));
  }
  if (!option.value.empty() && option.value != option.names.front())
    names += fmt::format(" \\fI{}\\fR", plain(option.value));
  if (option.many) names += " ...";
  std::string summary = plain(option.summary);
  if (option.required && option.names.front().starts_with("-")) summary += " (required)";
  if (!option.standard.empty()) summary += fmt::format(" (default: {})", plain(option.standard));
  return fmt::format(".TP\n{}\n{}.\n", names, summary);
}

// Lines of a footer: paragraphs, and examples as they stand.
std::string footer(const std::string& text) {
  return text.empty() ? "" : fmt::format(".PP\n.nf\n{}\n.fi\n", plain(text));
}

std::string page(const Table& table) {
  std::string text = fmt::format(
      ".TH INGOT 1 \"\" \"ingot {}\" \"User Commands\"\n.SH NAME\ningot \\- merge "
      "language-model checkpoints\n.SH SYNOPSIS\n",
      version());
  for (const Subcommand& entry : table.commands) {
    text += plain(usage(entry)) + "\n.br\n";
  }
  text += fmt::format(
      ".SH DESCRIPTION\n{}\n"
      "It reads safetensors and PyTorch .bin folders, runs a mergekit recipe with bounded memory "
      "and\n"
      "writes a folder that serves, with a receipt that accounts for every tensor.\n",
      plain(table.summary));
  for (const Subcommand& entry : table.commands) {
    text += fmt::format(".SH {}\n{}.\n", upper("ingot " + entry.name), plain(entry.summary));
    for (const Option& argument : entry.arguments) text += entry_of(argument);
    std::map<std::string, std::string> groups;
    for (const Option& option : entry.options) groups[option.group] += entry_of(option);
    text += groups["Options"];
    for (const auto& [group, options] : groups) {
      if (group == "Options" || group == kForeign) continue;
      text += fmt::format(".SS {}\n{}", plain(group), options);
    }
    if (entry.name == "merge") {
      text +=
          ".SS Names of mergekit\\-yaml\nAccepted as well. Where one has no effect, a note says "
          "why.\n" +
          groups[kForeign];
    }
    text += footer(entry.footer);
  }
  text +=
      ".SH ENVIRONMENT\n"
      ".TP\n\\fBINGOT_ISA\\fR\nv2, v3 or v4: the instruction set for arithmetic. Results do not "
      "depend "
      "on it.\n"
      ".TP\n\\fBHF_HUB_CACHE\\fR, \\fBHF_HOME\\fR\nWhere models named as on the Hub are looked "
      "for.\n"
      ".TP\n\\fBNO_COLOR\\fR\nNo colours on a terminal.\n"
      ".SH EXIT STATUS\n";
  for (const Exit& exit : exits()) {
    text += fmt::format(".TP\n\\fB{}\\fR\n{}.\n", exit.code, plain(exit.meaning));
  }
  return text;
}

class ManualCommand final : public Command {
 public:
  explicit ManualCommand(CLI::App& program)
      : Command(program, "manual", "Print the manual page"), program_(program) {
    app().group("");  // for packaging: not in --help
  }

  int run() override {
    print(page(tabulate(program_)));
    return 0;
  }

 private:
  CLI::App& program_;
};

}  // namespace

std::unique_ptr<Command> make_manual(CLI::App& program) {
  return std::make_unique<ManualCommand>(program);
}

}  // namespace ingot::tool
