#include "plan/card.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "ingot/text.hpp"
#include "plan/metadata.hpp"
#include "plan/rules.hpp"
#include "plan/types.hpp"

namespace ingot::plan {
namespace {

// The front matter of a card, key by key.
class Front {
 public:
  void set(std::string_view key, const std::string& value) {
    if (!value.empty()) text_ += fmt::format("{}: {}\n", key, yaml_string(value));
  }
  void list(std::string_view key, const std::vector<std::string>& values) {
    if (values.empty()) return;
    text_ += fmt::format("{}:\n", key);
    for (const std::string& value : values) text_ += fmt::format("- {}\n", yaml_string(value));
  }
  [[nodiscard]] std::string text() const { return "---\n" + text_ + "---\n"; }

 private:
  std::string text_;
};

// The name on the Hub of a model that lies in the Hub's cache
// (`…/models--owner--name/snapshots/…`), by whichever path the recipe names it; empty for other
// folders.
std::string hub_name(const std::string& folder) {
  constexpr std::string_view kMark = "/models--";
  const std::size_t mark = folder.rfind(kMark);
  if (mark == std::string::npos) return "";
  const std::size_t begin = mark + kMark.size();
  std::string name = folder.substr(begin, folder.find('/', begin) - begin);
  if (const std::size_t dashes = name.find("--"); dashes != std::string::npos) {
    name.replace(dashes, 2, "/");
  }
  return printable(name) == name ? name : "";
}

// True for a path that tells where a file is on one machine: absolute, of a home, or relative to a
// folder that is not named.
bool of_machine(std::string_view path) {
  if (path.starts_with('/') || path.starts_with('~')) return true;
  for (std::size_t at = 0; at <= path.size(); at = std::min(path.find('/', at), path.size()) + 1) {
    const std::string_view name = path.substr(at, path.find('/', at) - at);
    if (name == "." || name == "..") return true;
  }
  return false;
}

// One word of a command line, quoted for a POSIX shell where it must be.
std::string shell_word(std::string_view text) {
  const std::string word = printable(text);
  const auto plain = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view("._-/@:+=,%~").find(c) != std::string_view::npos;
  };
  if (!word.empty() && word.front() != '~' && std::all_of(word.begin(), word.end(), plain)) {
    return word;
  }
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// A fenced block whose fence is longer than any in the text.
std::string block(std::string_view language, const std::string& text) {
  std::string fence = "```";
  while (text.find(fence) != std::string::npos) fence += '`';
  return fmt::format("{}{}\n{}{}{}\n", fence, language, text, text.ends_with('\n') ? "" : "\n",
                     fence);
}

// The shortest decimal that reads back as the same f32, which is what formulas use.
std::string decimal(double value) { return fmt::format("{}", static_cast<float>(value)); }

std::string title_of(const Plan& plan, const std::string& otherwise) {
  return plan.options.title.empty() ? otherwise : plan.options.title;
}

// The options of the command line that stand in the receipt too.
std::string flags(const Plan& plan) {
  std::string text;
  if (draws(plan) && plan.options.seed != 0) text += fmt::format(" --seed {}", plan.options.seed);
  const std::string dtype = wanted_by_option(plan);
  if (!dtype.empty()) text += " --dtype " + dtype;
  return text;
}

// A command that makes the folder again: `words` without OUT and the options. The reader adds
// where models are that have no name on the Hub.
std::string command(const Plan& plan, const std::string& words) {
  const bool local = std::any_of(plan.models.begin(), plan.models.end(),
                                 [](const Model& model) { return hub_name(model.folder).empty(); });
  return block("sh", fmt::format("{}{}{}{}", words, shell_word(title_of(plan, "OUT")), flags(plan),
                                 local ? " --root DIR" : "")) +
         (local ? "\n`DIR` is the folder that has the models which are not on the Hub.\n" : "");
}

// recipe.yml holds all that the recipe says.
std::string command(const Plan& plan) { return command(plan, "ingot merge recipe.yml "); }

// The recipe's text with names for paths of this machine.
std::string public_recipe(const Plan& plan) {
  std::string text = plan.recipe.text;
  std::set<std::string> paths;
  for (const Model& model : plan.models) paths.insert(model.ref.path);
  paths.insert(plan.recipe.vocabulary.model.path);
  // Longer paths first: one may be the folder of another.
  for (auto path = paths.rbegin(); path != paths.rend(); ++path) {
    const std::string name = public_name(*path);
    if (name == *path) continue;
    for (std::size_t at = text.find(*path); at != std::string::npos; at = text.find(*path, at)) {
      // A word begins and ends there.
      const std::size_t end = at + path->size();
      const bool whole =
          (at == 0 || std::string_view(" \"'+[{,:\t\n").find(text[at - 1]) != std::string::npos) &&
          (end == text.size() ||
           std::string_view(" \"'+@:,]}\t\r\n/").find(text[end]) != std::string::npos);
      if (whole) text.replace(at, path->size(), name);
      at += whole ? name.size() : 1;
    }
  }
  return text;
}

std::string remote_code(const Plan& plan) {
  if (plan.code.empty()) return "";
  std::string text =
      "\n## Remote code\n\nThese files hold code of the models above, or name some. Programs run "
      "it where they are told to trust it (`trust_remote_code`); read it first.\n\n";
  for (const std::string& file : plan.code) text += fmt::format("- `{}`\n", cell(file));
  return text;
}

std::string differences(const Descent& descent) {
  std::string text;
  if (!descent.licences.empty()) {
    text += descent.licences.size() > 1
                ? "\n## Licences\n\nThe licences of the inputs differ. Choose one that all of them "
                  "permit.\n\n"
                : "\n## Licences\n\n";
    text += "| model | licence |\n|---|---|\n";
    for (const Descent::Claim& claim : descent.licences) {
      text += fmt::format("| {} | {} |\n", cell(claim.model), cell(claim.value));
    }
  }
  if (!descent.unlicensed.empty()) {
    std::string list;
    for (const std::string& model : descent.unlicensed) {
      list += fmt::format("{}{}", list.empty() ? "" : ", ", cell(model));
    }
    text += fmt::format("\nNo licence is given by the card of {}.\n", list);
  }
  for (const std::string& note : descent.notes) text += fmt::format("\n{}.\n", cell(note));
  return text;
}

// How every card ends.
std::string end_of_card(const Plan& plan) {
  return fmt::format(
      "\n## Recipe\n\n{}"
      "\nThe file `ingot.json` lists, for every tensor, its rule, its sources and their hashes. "
      "`ingot verify` checks this folder against it.\n",
      block("yaml", printable(public_recipe(plan), Breaks::kept)));
}

void add_descent(Front& front, const Descent& descent) {
  if (descent.licences.empty()) {
    front.set("license", descent.licence);
    front.set("license_name", descent.licence_name);
    front.set("license_link", descent.licence_link);
  } else {
    front.set("license", "other");
    front.set("license_name", descent.licences.size() > 1 ? "several" : "see-card");
  }
  front.list("language", descent.languages);
  front.set("pipeline_tag", descent.pipeline_tag);
}

// Our tags, then those of the inputs.
std::vector<std::string> tags_of(std::vector<std::string> own, const Descent& descent) {
  for (const std::string& tag : descent.tags) {
    if (std::find(own.begin(), own.end(), tag) == own.end()) own.push_back(tag);
  }
  return own;
}

// Smallest and largest value of a parameter over the tensors of the output.
struct Span {
  double low = 0, high = 0;
  void take(double value, bool first) {
    low = first ? value : std::min(low, value);
    high = first ? value : std::max(high, value);
  }
  [[nodiscard]] std::string text(math::Kind kind) const {
    const auto show = [&](double value) {
      return kind == math::Kind::boolean ? std::string(value != 0 ? "true" : "false")
                                         : decimal(value);
    };
    return low == high ? show(low) : show(low) + " to " + show(high);
  }
};

// The parameters of a merge as the plan resolved them: those of the output, and those of each model
// by name.
struct Resolved {
  std::map<std::string, std::pair<Span, math::Kind>> whole;
  std::map<std::uint32_t, std::map<std::string, std::pair<Span, math::Kind>>> models;
  std::uint64_t merged = 0, copied = 0;
};

Resolved resolved(const Plan& plan) {
  Resolved result;
  const auto take = [](auto& spans, const math::Parameter& parameter, double value) {
    const auto [at, fresh] = spans.try_emplace(parameter.name, std::pair{Span{}, parameter.kind});
    at->second.first.take(value, fresh);
  };
  for (const Job& job : plan.jobs) {
    if (job.action != Action::merge) {
      ++result.copied;
      continue;
    }
    ++result.merged;
    const math::Rule& rule = job.work.rule;
    const math::Method& method = math::method(rule.method);
    if (method.card.name != plan.recipe.method) continue;
    int global = 0, local = 0;
    for (const math::Parameter& parameter : method.parameters) {
      if (parameter.scope == math::Scope::global) {
        take(result.whole, parameter, rule.globals[global++]);
        continue;
      }
      for (std::size_t o = rule.base ? 1 : 0; o < job.operands.size(); ++o) {
        take(result.models[job.operands[o].model], parameter,
             rule.locals[o - (rule.base ? 1 : 0)][local]);
      }
      ++local;
    }
  }
  return result;
}

const Source* baked(const Plan& plan) {
  const Recipe& recipe = plan.recipe;
  if (recipe.kind != Recipe::Kind::models || recipe.method != "passthrough" ||
      recipe.models.size() != 1 || recipe.models.front().model.adapters.empty()) {
    return nullptr;
  }
  return &recipe.models.front();
}

std::string bake_text(const Plan& plan, const Source& source) {
  const ModelRef& base = source.model;
  const auto changed = static_cast<std::uint64_t>(
      std::count_if(plan.jobs.begin(), plan.jobs.end(), [](const Job& job) {
        return std::any_of(job.operands.begin(), job.operands.end(),
                           [](const Operand& operand) { return operand.derived != nullptr; });
      }));
  std::string text = fmt::format(
      "\nThis is the model {} with {} in its weights, as `ingot bake` puts them there: {} of its "
      "{} tensors are computed from the adapter{}. It needs no adapter to run.\n",
      cell(public_name(base.path, base.revision)),
      base.adapters.size() == 1 ? std::string("an adapter")
                                : fmt::format("{} adapters", base.adapters.size()),
      changed, plan.jobs.size(), base.adapters.size() == 1 ? "" : "s");
  text += "\n## Adapters\n\n| adapter, in order | weight |\n|---|---|\n";
  std::string words = "ingot bake " + shell_word(public_name(base.path, base.revision));
  for (const AdapterRef& adapter : base.adapters) {
    const std::string full = public_name(adapter.path, adapter.revision);
    text += fmt::format("| {} | {} |\n", cell(full), adapter.weight);
    words +=
        " " + shell_word(adapter.weight == 1 ? full : fmt::format("{}:{}", full, adapter.weight));
  }
  return text + "\n## Command\n\n" + command(plan, words + " -o ");
}

std::string merge_text(const Plan& plan, const math::Method& method) {
  const Resolved values = resolved(plan);
  const auto models = static_cast<std::size_t>(std::count_if(
      plan.models.begin(), plan.models.end(), [](const Model& m) { return !m.adapter; }));
  std::string text =
      fmt::format("\nThis model is made of {} by the merge method `{}`",
                  models == 1 ? "one model" : fmt::format("{} models", models), method.card.name);
  if (method.card.paper[0] != '\0') text += fmt::format(" (*{}*)", method.card.paper);
  text += fmt::format(". Of its {} tensors, {} are merged and {} are copied as they are.\n",
                      plan.jobs.size(), values.merged, values.copied);

  std::vector<std::string> names;  // of the parameters that models have
  for (const math::Parameter& parameter : method.parameters) {
    if (parameter.scope != math::Scope::global) names.emplace_back(parameter.name);
  }
  std::string head = "| model | part |", line = "|---|---|";
  for (const std::string& name : names) {
    head += fmt::format(" {} |", name);
    line += "---|";
  }
  text += fmt::format("\n## Models\n\n{}\n{}\n", head, line);
  const std::string base = plan.recipe.base_model ? plan.recipe.base_model->text : "";
  for (std::uint32_t m = 0; m < plan.models.size(); ++m) {
    const Model& model = plan.models[m];
    text += fmt::format("| {} | {} |", cell(public_name(model.ref)),
                        model.adapter            ? "adapter"
                        : model.ref.text == base ? "base"
                                                 : "merged");
    const auto own = values.models.find(m);
    for (const std::string& name : names) {
      std::string shown;
      if (own != values.models.end()) {
        const auto span = own->second.find(name);
        if (span != own->second.end()) shown = span->second.first.text(span->second.second);
      }
      text += fmt::format(" {} |", shown);
    }
    text += '\n';
  }
  if (!values.whole.empty()) {
    text += "\nParameters of the whole:";
    const char* mark = " ";
    for (const auto& [name, value] : values.whole) {
      if (name == "int8_mask") continue;  // changes nothing
      text += fmt::format("{}`{}` {}", mark, name, value.first.text(value.second));
      mark = ", ";
    }
    text += ".\n";
  }
  return text + "\n## Command\n\n" + command(plan);
}

}  // namespace

bool like_hub_name(std::string_view text) {
  const auto allowed = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '-' || c == '_' || c == '/';
  };
  return !text.empty() && text.front() != '/' && text.back() != '/' && !of_machine(text) &&
         std::count(text.begin(), text.end(), '/') == 1 &&
         std::all_of(text.begin(), text.end(), allowed);
}

std::string public_name(const std::string& path, const std::string& revision) {
  std::string name = hub_name(path);
  if (name.empty()) {
    std::string_view rest = path;
    while (rest.size() > 1 && rest.ends_with('/')) rest.remove_suffix(1);
    if (of_machine(rest)) rest.remove_prefix(rest.rfind('/') + 1);  // npos + 1 is 0
    name = rest.empty() || rest == "." || rest == ".." ? "model" : std::string(rest);
  }
  return revision.empty() ? name : name + "@" + revision;
}

std::string public_name(const ModelRef& ref) {
  std::string text = public_name(ref.path, ref.revision);
  for (const AdapterRef& adapter : ref.adapters) {
    text += "+" + public_name(adapter.path, adapter.revision);
    if (adapter.weight != 1) text += fmt::format(":{}", adapter.weight);
  }
  return text;
}

std::string cell(std::string_view text) {
  std::string out;
  for (const char c : printable(shorten(text, 200))) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      if (std::string_view("|`[]*\\").find(c) != std::string_view::npos) out += '\\';
      out += c;
    }
  }
  return out;
}

std::string yaml_string(std::string_view text) {
  const auto word = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
           c == '-' || c == '_' || c == '/' || c == '+';
  };
  // Words that YAML reads as something else than text.
  static constexpr std::string_view kOther[] = {"true", "false", "yes", "no",  "on", "off",
                                                "null", "y",     "n",   "nan", "inf"};
  std::string low(text);
  for (char& c : low) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  if (!low.empty() && low.front() >= 'a' && low.front() <= 'z' &&
      std::all_of(text.begin(), text.end(), word) &&
      std::find(std::begin(kOther), std::end(kOther), low) == std::end(kOther)) {
    return std::string(text);
  }
  std::string out = "\"";
  for (const char c : printable(text)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string model_card(Disk& disk, const Plan& plan, const math::Method& method,
                       Problems& problems) {
  const Descent descent = descend(disk, plan, problems);
  const Source* const bake = baked(plan);
  std::vector<std::string> bases;
  for (const Model& model : plan.models) {
    const std::string name = hub_name(model.folder);
    if (!name.empty() && std::find(bases.begin(), bases.end(), name) == bases.end()) {
      bases.push_back(name);
    }
  }
  Front front;
  front.list("base_model", bases);
  if (!bases.empty()) {
    front.set("base_model_relation", bake != nullptr && bases.size() == 1 ? "finetune" : "merge");
  }
  add_descent(front, descent);
  front.set("library_name", descent.library_name.empty() ? "transformers" : descent.library_name);
  front.list("tags", tags_of({"ingot", "merge"}, descent));
  return front.text() + fmt::format("# {}\n", cell(title_of(plan, "Merged model"))) +
         (bake != nullptr ? bake_text(plan, *bake) : merge_text(plan, method)) +
         differences(descent) + remote_code(plan) + end_of_card(plan);
}

std::string adapter_card(Disk& disk, const Plan& plan, const std::string& kind,
                         const std::string& base, const std::string& title,
                         const std::string& about, Problems& problems) {
  const Descent descent = descend(disk, plan, problems);
  const auto opened = std::find_if(plan.models.begin(), plan.models.end(),
                                   [&](const Model& model) { return model.ref.path == base; });
  // A base that is a folder is not a link.
  const std::string name = public_name(base);
  const std::string known = opened != plan.models.end() ? hub_name(opened->folder)
                            : like_hub_name(name)       ? name
                                                        : "";
  Front front;
  if (!known.empty()) {
    front.list("base_model", {known});
    front.set("base_model_relation", "adapter");
  }
  add_descent(front, descent);
  front.set("library_name", "peft");
  std::vector<std::string> tags{"ingot", kind};
  if (plan.recipe.kind == Recipe::Kind::adapters) tags.emplace_back("merge");
  front.list("tags", tags_of(tags, descent));
  std::string text = front.text() + fmt::format("# {}\n\n{}\n", cell(title_of(plan, title)), about);
  if (!base.empty()) text += fmt::format("\nIt is an adapter for the model {}.\n", cell(name));
  text += "\n## Sources\n\n| source | tensors |\n|---|---|\n";
  for (const Model& model : plan.models) {
    text += fmt::format("| {} | {} |\n", cell(public_name(model.ref)),
                        model.checkpoint.entries().size());
  }
  return text + "\n## Command\n\n" + command(plan) + differences(descent) + remote_code(plan) +
         end_of_card(plan);
}

}  // namespace ingot::plan
