#include "weights.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "help.hpp"
#include "ingot/methods.hpp"
#include "model.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

// Rows of a table that a person reads; JSON has all.
constexpr std::size_t kMostRows = 100;
constexpr std::size_t kTableWidth = 79;
constexpr std::size_t kMostKinds = 3;
constexpr std::size_t kKindsWidth = 36;  // characters of them

// A parameter as people wrote it: 0.3, not what the nearest f32 is in f64.
double plain_number(double value) {
  const auto single = static_cast<float>(value);
  if (static_cast<double>(single) != value) return value;
  return std::stod(fmt::format("{}", single));
}

// True for parameters that are true or false in every method that has them.
bool yes_or_no(std::string_view name) {
  for (const math::Method& method : math::kMethods) {
    for (const math::Parameter& parameter : method.parameters) {
      if (parameter.name == name) return parameter.kind == math::Kind::boolean;
    }
  }
  return false;
}

// As a table shows it; JSON has every digit.
std::string cell(std::string_view name, double value) {
  if (yes_or_no(name)) return value != 0 ? "true" : "false";
  return fmt::format("{:.5g}", value);
}

// The models of a job's sources: its operands without the base.
Json sources_of(const Plan& plan, const Job& job) {
  Json names = Json::array();
  const math::Rule& rule = job.work.rule;
  const std::size_t first = rule.base && job.operands.size() > 1 ? 1 : 0;
  for (std::size_t i = first; i < job.operands.size(); ++i) {
    names.push_back(plan.models[job.operands[i].model].ref.text);
  }
  return names;
}

// Tensors of one kind in every layer: "self_attn.q_proj.weight".
std::string kind_of(const std::string& name) {
  const std::string kind = pattern(name);
  const std::size_t star = kind.find("*.");
  return star == std::string::npos ? name : kind.substr(star + 2);
}

struct Cell {
  Json models, parameters;
  friend bool operator==(const Cell& a, const Cell& b) {
    return a.models == b.models && a.parameters == b.parameters;
  }
};

// Kinds of tensors that have the same parameters in every layer.
struct Alike {
  std::vector<std::string> kinds;
  std::map<std::uint64_t, Cell> layers;
  std::optional<Cell> alone;  // of what is in no layer
};

std::vector<Alike> groups_of(const Plan& plan) {
  std::vector<Alike> kinds;
  std::map<std::string, std::size_t> places;
  for (const Job& job : plan.jobs) {
    if (job.action != Action::merge) continue;
    Json values = parameters(job);
    static const Json kPassed{{"scale", {1.0}}};
    if (values.empty() || values == kPassed) continue;
    const std::optional<std::uint64_t> number = layer(job.output.name);
    const std::string kind = kind_of(job.output.name);
    const auto [at, fresh] = places.emplace((number ? "layer " : "") + kind, kinds.size());
    if (fresh) kinds.push_back({{kind}, {}, {}});
    Cell cell{sources_of(plan, job), std::move(values)};
    Alike& group = kinds[at->second];
    if (number) {
      group.layers[*number] = std::move(cell);
    } else {
      group.alone = std::move(cell);
    }
  }
  std::vector<Alike> groups;
  for (Alike& kind : kinds) {
    const auto same = std::find_if(groups.begin(), groups.end(), [&](const Alike& group) {
      return group.layers == kind.layers && group.alone == kind.alone;
    });
    if (same == groups.end()) {
      groups.push_back(std::move(kind));
    } else {
      same->kinds.push_back(std::move(kind.kinds.front()));
    }
  }
  return groups;
}

// "mlp" of "mlp.up_proj.weight", "embed_tokens" of "model.embed_tokens.weight".
std::string short_kind(const std::string& kind, bool layered) {
  if (layered) return kind.substr(0, kind.find('.'));
  const std::string_view model = "model.", weight = ".weight";
  const std::size_t begin = kind.starts_with(model) ? model.size() : 0;
  return kind.substr(begin, kind.size() - begin - (kind.ends_with(weight) ? weight.size() : 0));
}

// Words for the kinds of a row, unless they are all there are on their side, in layers or out.
std::string words_of(const Json& row) {
  std::vector<std::string> words;
  for (const Json& kind : row.at("kinds")) {
    std::string word = short_kind(kind.get<std::string>(), !row.at("layers").is_null());
    if (std::find(words.begin(), words.end(), word) == words.end())
      words.push_back(std::move(word));
  }
  std::string text;
  std::size_t shown = 0;
  for (; shown < std::min(words.size(), kMostKinds); ++shown) {
    if (shown > 0 && text.size() + words[shown].size() > kKindsWidth) break;
    text += (shown > 0 ? ", " : "") + words[shown];
  }
  if (words.size() > shown) text += fmt::format(" and {} more", words.size() - shown);
  return text;
}

std::string label_of(const Json& row) {
  const Json& layers = row.at("layers");
  const bool whole = row.at("whole").get<bool>();
  if (layers.is_null()) return whole ? "outside layers" : words_of(row);
  const auto range = layers.get<std::string>();
  const std::string label =
      fmt::format("{}{}", range.find('-') == std::string::npos ? "layer " : "layers ", range);
  return whole ? label : fmt::format("{}: {}", label, words_of(row));
}

std::string short_name(const std::string& model) {
  const std::size_t slash = model.find_last_of('/');
  return slash == std::string::npos || slash + 1 == model.size() ? model : model.substr(slash + 1);
}

// Headings of models: the last part of their paths where no two share it.
std::map<std::string, std::string> headings_of(const Json& weights) {
  std::map<std::string, std::string> headings;
  std::map<std::string, int> uses;
  for (const Json& row : weights) {
    for (const Json& model : row.at("models")) headings.emplace(model.get<std::string>(), "");
  }
  for (const auto& [model, heading] : headings) ++uses[short_name(model)];
  for (auto& [model, heading] : headings) {
    const std::string name = short_name(model);
    heading = uses[name] == 1 ? name : model;
  }
  return headings;
}

// Columns by heading, in the order met; cells by row.
struct Columns {
  std::vector<std::pair<std::string, std::vector<std::string>>> all;
  void set(const std::string& heading, std::size_t row, std::string value) {
    auto at = std::find_if(all.begin(), all.end(),
                           [&](const auto& column) { return column.first == heading; });
    if (at == all.end()) at = all.insert(all.end(), {heading, {}});
    at->second.resize(row + 1, "-");
    at->second[row] = std::move(value);
  }
};

}  // namespace

Json parameters(const Job& job) {
  Json result = Json::object();
  if (job.action != Action::merge) return result;
  const math::Rule& rule = job.work.rule;
  const math::Method& method = math::method(rule.method);
  int global = 0;
  int local = 0;
  for (const math::Parameter& parameter : method.parameters) {
    if (parameter.scope == math::Scope::global) {
      result[parameter.name] = plain_number(rule.globals[global++]);
      continue;
    }
    Json list = Json::array();
    for (int s = 0; s < rule.sources; ++s) list.push_back(plain_number(rule.locals[s][local]));
    result[parameter.name] = std::move(list);
    ++local;
  }
  return result;
}

std::string shown(const Json& parameters) {
  std::string text;
  for (const auto& [name, value] : parameters.items()) {
    text += (text.empty() ? " " : ", ") + name;
    for (const Json& each : value.is_array() ? value : Json{value}) {
      text += " " + cell(name, each.get<double>());
    }
  }
  return text;
}

Json weights_of(const Plan& plan) {
  const std::vector<Alike> groups = groups_of(plan);
  std::size_t layered = 0, others = 0;  // kinds
  for (const Alike& group : groups) {
    (group.layers.empty() ? others : layered) += group.kinds.size();
  }
  Json rows = Json::array();
  // Kinds that differ in some layers have one row for those in which they agree.
  const auto add = [&](const Alike& group, const Json& layers, std::size_t count,
                       const Cell& cell) {
    const std::size_t tensors = count * group.kinds.size();
    for (Json& row : rows) {
      if (row["layers"] != layers || row["models"] != cell.models ||
          row["parameters"] != cell.parameters) {
        continue;
      }
      for (const std::string& kind : group.kinds) row["kinds"].push_back(kind);
      row["tensors"] = row["tensors"].get<std::size_t>() + tensors;
      row["whole"] = row["kinds"].size() == (layers.is_null() ? others : layered);
      return;
    }
    rows.push_back({{"layers", layers},
                    {"whole", group.kinds.size() == (layers.is_null() ? others : layered)},
                    {"kinds", group.kinds},
                    {"tensors", tensors},
                    {"models", cell.models},
                    {"parameters", cell.parameters}});
  };
  for (const Alike& group : groups) {
    if (group.alone) add(group, nullptr, 1, *group.alone);
    for (auto at = group.layers.begin(); at != group.layers.end();) {
      const auto first = at;
      std::uint64_t last = at->first;
      std::size_t count = 0;
      for (; at != group.layers.end() && at->second == first->second && at->first <= last + 1;
           ++at, ++count) {
        last = at->first;
      }
      add(group,
          first->first == last ? std::to_string(last) : fmt::format("{}-{}", first->first, last),
          count, first->second);
    }
  }
  return rows;
}

std::string table_of(const Json& weights) {
  if (weights.empty()) return {};
  const std::map<std::string, std::string> headings = headings_of(weights);
  Columns columns;
  std::vector<std::string> labels;
  const std::size_t rows = std::min(kMostRows, weights.size());
  std::size_t first_width = 0;
  for (std::size_t r = 0; r < rows; ++r) {
    const Json& row = weights[r];
    labels.push_back(label_of(row));
    first_width = std::max(first_width, labels.back().size());
    const Json& models = row.at("models");
    for (const auto& [name, value] : row.at("parameters").items()) {
      if (!value.is_array()) {
        columns.set(name, r, cell(name, value.get<double>()));
        continue;
      }
      for (std::size_t i = 0; i < value.size(); ++i) {
        const std::string model =
            i < models.size() ? headings.at(models[i].get<std::string>()) : std::to_string(i + 1);
        columns.set(fmt::format("{} {}", model, name), r, cell(name, value[i].get<double>()));
      }
    }
  }
  std::string text;
  // A parameter that is the same in every row needs no column.
  std::string same;
  std::erase_if(columns.all, [&](const auto& column) {
    const auto& cells = column.second;
    const bool constant = cells.size() == rows &&
                          std::all_of(cells.begin(), cells.end(), [&](const std::string& cell) {
                            return cell == cells.front();
                          });
    if (constant)
      same += fmt::format("{}{} {}", same.empty() ? "" : ", ", column.first, cells.front());
    return constant;
  });
  if (!same.empty()) {
    text += wrapped(fmt::format("{:<14}", "parameters"),
                    (columns.all.empty() ? "" : "everywhere ") + same, 14);
  }
  if (columns.all.empty()) return text;
  // As many columns side by side as fit.
  for (std::size_t begin = 0; begin < columns.all.size();) {
    std::vector<std::size_t> widths;
    std::size_t all = 2 + first_width, end = begin;
    for (; end < columns.all.size(); ++end) {
      std::size_t width = columns.all[end].first.size();
      for (const std::string& cell : columns.all[end].second) width = std::max(width, cell.size());
      if (end > begin && all + 2 + width > kTableWidth) break;
      all += 2 + width;
      widths.push_back(width);
    }
    text += fmt::format("  {:<{}}", "", first_width);
    for (std::size_t c = begin; c < end; ++c) {
      text += fmt::format("  {:>{}}", columns.all[c].first, widths[c - begin]);
    }
    text += '\n';
    for (std::size_t r = 0; r < rows; ++r) {
      text += fmt::format("  {:<{}}", labels[r], first_width);
      for (std::size_t c = begin; c < end; ++c) {
        const auto& cells = columns.all[c].second;
        text += fmt::format("  {:>{}}", r < cells.size() ? cells[r] : "-", widths[c - begin]);
      }
      text += '\n';
    }
    begin = end;
  }
  if (rows < weights.size()) {
    text +=
        fmt::format("  and {}; --json has all\n", show_count(weights.size() - rows, "more row"));
  }
  return text;
}

}  // namespace ingot::tool
