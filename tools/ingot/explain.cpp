// `ingot methods` and `ingot explain METHOD`.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "help.hpp"
#include "ingot/cards.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "json.hpp"
#include "table.hpp"

namespace ingot::tool {
namespace {

std::string list() {
  std::string text = "Merge methods of recipes (merge_method):\n";
  const auto row = [&](const auto& card) {
    text += wrapped(fmt::format("  {:<20} ", card.name), card.summary, 23);
  };
  for (const math::Method& method : math::kMethods) {
    if (math::of_models(method)) row(method.card);
  }
  text += "\nTypes of 'ingot adapter merge' (--type):\n";
  for (const math::AdapterCard& card : math::kAdapterCards) row(card);
  return text + "\n'ingot explain METHOD' tells more: formula, parameters, when to use, paper.\n";
}

std::string indented(std::string_view lines) {
  std::string text;
  for (const std::string& line : split(lines, '\n')) text += "  " + line + '\n';
  return text;
}

std::string number(double value) {
  return value == math::kLargest || value == -math::kLargest ? "any" : fmt::format("{:g}", value);
}

std::string range(const math::Parameter& parameter) {
  if (parameter.kind == math::Kind::boolean) return "true or false";
  if (parameter.kind == math::Kind::integer) {
    return fmt::format("whole, from {} to {}", number(parameter.low), number(parameter.high));
  }
  if (parameter.high == math::kLargest) return "any number";
  return fmt::format("from {} to {}", number(parameter.low), number(parameter.high));
}

std::string standard(const math::Parameter& parameter) {
  if (parameter.required) return "required";
  if (parameter.kind == math::Kind::boolean) {
    return parameter.fallback != 0 ? "default true" : "default false";
  }
  return fmt::format("default {:g}", parameter.fallback);
}

std::string parameters(const math::Method& method) {
  std::size_t width = 11;
  for (const math::Parameter& parameter : method.parameters) {
    width = std::max(width, std::string_view(parameter.name).size());
  }
  std::string text;
  for (const math::Parameter& parameter : method.parameters) {
    text += wrapped(fmt::format("  {:<{}} ", parameter.name, width),
                    fmt::format("{} ({}{}; {})", parameter.meaning,
                                parameter.scope == math::Scope::global ? "" : "for each model; ",
                                range(parameter), standard(parameter)),
                    width + 3);
  }
  return text;
}

std::string models(const math::Method& method) {
  const auto others = [&] {
    if (method.card.least == method.card.most) return fmt::format("exactly {}", method.card.most);
    return method.card.least == 0 ? std::string("any number")
                                  : fmt::format("{} or more", method.card.least);
  };
  switch (method.card.base) {
    case math::Base::origin:
      return fmt::format("base_model is required; {} of others", others());
    case math::Base::optional:
      return fmt::format("{}, and a base_model if changes against it are meant", others());
    case math::Base::pivot:
      return "exactly two, and base_model is one of them";
    default:
      return method.card.most == 1 ? "one for each tensor" : others();
  }
}

template <class Card>
std::string start(const Card& card, std::string_view what) {
  return wrapped("", fmt::format("{} ({})", card.name, what), 0) + "\n" +
         wrapped("", card.summary, 0) + "\nFormula:\n" + indented(card.formula);
}

std::string end(std::string_view when, std::string_view paper, std::string_view link,
                std::string_view recipe) {
  std::string text = "\nWhen to use:\n" + wrapped("  ", when, 2);
  if (!paper.empty() || !link.empty()) {
    text += "\nPaper:\n";
    if (!paper.empty()) text += wrapped("  ", paper, 2);
    if (!link.empty()) text += fmt::format("  {}\n", link);
  }
  return text + "\nExample:\n" + indented(recipe);
}

std::string explain(const math::Method& method) {
  const math::Card& card = method.card;
  return start(card, "merge_method of a recipe") + "\nModels:\n  " + models(method) +
         "\n\nParameters:\n" + parameters(method) +
         end(card.when, card.paper, card.link, card.recipe);
}

std::string explain(const math::AdapterCard& card) {
  std::string text = start(card, "--type of 'ingot adapter merge', adapter_method of a recipe");
  text += "\nOptions:\n";
  text += wrapped(
      "  ", "weight        factor of an adapter, behind its name: a:0.7 (any number; default 1)",
      16);
  const bool svd = card.name.ends_with("svd");
  const bool ties = card.name.starts_with("ties") || card.name.starts_with("dare_ties");
  if (card.formula.find("density") != std::string_view::npos ||
      card.name.find("_svd") != std::string_view::npos)
    text += "  --density     share of the elements that are kept (from 0 to 1; required)\n";
  if (ties) text += "  --majority-sign\n                total or frequency (default total)\n";
  if (svd) {
    text +=
        "  --rank        whole number, or auto with --energy (default: the largest\n"
        "                rank of the adapters)\n";
  }
  return text + end(card.when, "", card.link, card.recipe);
}

std::vector<std::string> names() {
  std::vector<std::string> known;
  for (const math::Method& method : math::kMethods) {
    if (math::of_models(method)) known.emplace_back(method.card.name);
  }
  for (const math::AdapterCard& card : math::kAdapterCards) known.emplace_back(card.name);
  return known;
}

// How a method uses base_model, in one word.
std::string_view base(const math::Method& method) {
  switch (method.card.base) {
    case math::Base::origin:
      return "required";
    case math::Base::pivot:
      return "one of the two";
    case math::Base::optional:
      return "optional";
    default:
      return "none";
  }
}

Json described(const math::Method& method) {
  const math::Card& card = method.card;
  Json json{{"name", card.name},         {"summary", card.summary}, {"formula", card.formula},
            {"measured", card.measured}, {"when", card.when},       {"paper", card.paper},
            {"link", card.link},         {"recipe", card.recipe},   {"base", base(method)},
            {"least", card.least},       {"most", card.most}};
  json["parameters"] = Json::array();
  for (const math::Parameter& parameter : method.parameters) {
    const char* of = parameter.scope == math::Scope::global   ? "output"
                     : parameter.scope == math::Scope::source ? "model"
                                                              : "every model";
    json["parameters"].push_back({{"name", parameter.name},
                                  {"meaning", parameter.meaning},
                                  {"of", of},
                                  {"range", range(parameter)},
                                  {"default", standard(parameter)}});
  }
  return json;
}

class MethodsCommand final : public Command {
 public:
  explicit MethodsCommand(CLI::App& program)
      : Command(program, "methods", "List the merge methods and the types of adapter merges") {
    app().add_flag("--json", json_, "Print JSON");
    app().footer(
        "Examples:\n"
        "  ingot methods\n"
        "  ingot explain ties");
  }

  int run() override {
    if (json_) {
      Json json{{"methods", Json::array()}};
      for (const math::Method& method : math::kMethods) {
        if (math::of_models(method)) json["methods"].push_back(described(method));
      }
      print_json(json);
    } else {
      print(list());
    }
    return 0;
  }

 private:
  bool json_ = false;
};

class ExplainCommand final : public Command {
 public:
  explicit ExplainCommand(CLI::App& program)
      : Command(program, "explain",
                "Explain a merge method: formula, parameters, when to use, paper") {
    app()
        .add_option("METHOD", name_,
                    "A merge_method of recipes or a type of 'ingot adapter merge', both where they "
                    "have one name")
        ->required()
        ->type_name("METHOD");
    app().footer(
        "Examples:\n"
        "  ingot explain ties\n"
        "  ingot explain slerp\n"
        "  ingot explain magnitude_prune_svd");
  }

  int run() override {
    std::string text;
    for (const math::Method& method : math::kMethods) {
      if (math::of_models(method) && name_ == method.card.name) text += explain(method);
    }
    for (const math::AdapterCard& card : math::kAdapterCards) {
      if (name_ == card.name) text += (text.empty() ? "" : "\n") + explain(card);
    }
    if (text.empty()) {
      if (const math::AbsentMethod* absent = math::absent_method(name_)) {
        fail(Code::usage, fmt::format("'{}' is a merge method of mergekit that ingot does not have "
                                      "yet; the nearest one is '{}'; 'ingot methods' lists all",
                                      name_, absent->near));
      }
      const std::string meant = suggestion(name_, names());
      fail(Code::usage, fmt::format("there is no method '{}'{}", name_,
                                    meant.empty() ? "; 'ingot methods' lists them" : meant));
    }
    print(text);
    return 0;
  }

 private:
  std::string name_;
};

}  // namespace

std::unique_ptr<Command> make_methods(CLI::App& program) {
  return std::make_unique<MethodsCommand>(program);
}

std::unique_ptr<Command> make_explain(CLI::App& program) {
  return std::make_unique<ExplainCommand>(program);
}

}  // namespace ingot::tool
