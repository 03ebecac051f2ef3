#include "plan/loaded.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "plan/roles.hpp"

namespace ingot::plan {
namespace {

// What transformers does to the names of some classes. Lists are words with blanks between them.
struct Row {
  std::string_view classes;
  // "^from>to", of whole components; '*' is a number. '^': only where the name begins. From left to
  // right, each place of a name is changed once, by the first that fits.
  std::string_view changes;
  // "layer=part,part": the rows of a layer of files are those of the parts, one below the other and
  // as many for each.
  std::string_view divided;
  // Ends of names of tensors, once changed, whose elements have other places in the loaded model.
  std::string_view remade;
  bool fuses;  // one parameter for all experts of a layer
};
constexpr Row kRows[] = {
#include "plan/renames.inc"
};

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(at), text.size());
    out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

using Components = std::vector<std::string_view>;
struct Change {
  bool front = false;
  Components from, to;
};
struct Divided {
  std::string_view layer;
  std::vector<std::string_view> parts;
};
struct Rules {
  std::vector<Change> changes;
  std::vector<Divided> divided;
  std::vector<Components> remade;
  bool fuses = false;
};

Rules read(const Row& row) {
  Rules out;
  for (std::string_view word : split(row.changes, ' ')) {
    Change change;
    change.front = word.starts_with('^');
    if (change.front) word.remove_prefix(1);
    const std::size_t middle = word.find('>');
    change.from = split(word.substr(0, middle), '.');
    change.to = split(word.substr(middle + 1), '.');
    out.changes.push_back(std::move(change));
  }
  for (const std::string_view word : split(row.divided, ' ')) {
    const std::size_t middle = word.find('=');
    out.divided.push_back({word.substr(0, middle), split(word.substr(middle + 1), ',')});
  }
  for (const std::string_view word : split(row.remade, ' ')) {
    out.remade.push_back(split(word, '.'));
  }
  out.fuses = row.fuses;
  return out;
}

// The rules of a class; empty for a class that renames nothing.
const Rules& rules(std::string_view architecture) {
  static const Rules none;
  static const auto all = [] {
    std::map<std::string_view, std::shared_ptr<const Rules>> made;
    for (const Row& row : kRows) {
      const auto shared = std::make_shared<const Rules>(read(row));
      for (const std::string_view name : split(row.classes, ' ')) made.emplace(name, shared);
    }
    return made;
  }();
  const auto found = all.find(architecture);
  return found == all.end() ? none : *found->second;
}

// True if the name has these components here, a number for each '*'.
bool has(const Components& name, std::size_t at, const Components& wanted) {
  return name.size() - at >= wanted.size() &&
         std::equal(wanted.begin(), wanted.end(), name.begin() + static_cast<std::ptrdiff_t>(at),
                    [](std::string_view word, std::string_view here) {
                      return word == here || (word == "*" && is_number(here));
                    });
}

// The part of a path before its last components `last`, with the dot; nullopt if it ends otherwise.
std::optional<std::string_view> before(std::string_view path, std::string_view last) {
  if (!path.ends_with(last)) return std::nullopt;
  path.remove_suffix(last.size());
  if (!path.empty() && path.back() != '.') return std::nullopt;
  return path;
}

// True if the class is one of the blank-separated stems with a head, or its base module.
bool among(std::string_view stems, std::string_view architecture) {
  for (const std::string_view stem : split(stems, ' ')) {
    if (!architecture.starts_with(stem)) continue;
    const std::string_view head = architecture.substr(stem.size());
    if (head.starts_with("For") || head == "Model" || head == "LMHeadModel") return true;
  }
  return false;
}

}  // namespace

std::string loaded_name(std::string_view architecture, std::string_view name, Renaming renaming) {
  const std::vector<Change>& changes = rules(architecture).changes;
  if (changes.empty()) return std::string(name);
  // A base module alone has no outer module to be renamed. A change of outer modules gives the name
  // another start or another depth.
  const bool whole = architecture.find("For") != std::string_view::npos;
  const Components parts = split(name, '.');
  Components out;
  for (std::size_t at = 0; at < parts.size();) {
    const auto change = std::find_if(changes.begin(), changes.end(), [&](const Change& each) {
      const bool outer =
          whole && at == 0 && (each.to.size() != each.from.size() || each.to[0] != each.from[0]);
      return (renaming == Renaming::all || outer) && (at == 0 || !each.front) &&
             has(parts, at, each.from);
    });
    if (change == changes.end()) {
      out.push_back(parts[at++]);
      continue;
    }
    std::size_t number = 0;  // the next one of `from`, for the next one of `to`
    for (const std::string_view to : change->to) {
      if (to == "*") {
        while (change->from[number] != "*") ++number;
        out.push_back(parts[at + number++]);
      } else {
        out.push_back(to);
      }
    }
    at += change->from.size();
  }
  return fmt::format("{}", fmt::join(out, "."));
}

std::vector<std::string> divided(std::string_view architecture, std::string_view path) {
  for (const Divided& row : rules(architecture).divided) {
    const auto front = before(path, row.layer);
    if (!front) continue;
    std::vector<std::string> all;
    for (const std::string_view part : row.parts) all.push_back(fmt::format("{}{}", *front, part));
    return all;
  }
  return {};
}

std::optional<Portion> portion(std::string_view architecture, std::string_view path) {
  for (const Divided& row : rules(architecture).divided) {
    for (std::size_t i = 0; i < row.parts.size(); ++i) {
      const auto front = before(path, row.parts[i]);
      if (front) return Portion{fmt::format("{}{}", *front, row.layer), i, row.parts.size()};
    }
  }
  return std::nullopt;
}

bool remade(std::string_view architecture, std::string_view name) {
  const std::vector<Components>& all = rules(architecture).remade;
  if (all.empty()) return false;
  const Components parts = split(name, '.');
  return std::any_of(all.begin(), all.end(), [&](const Components& last) {
    return parts.size() >= last.size() && has(parts, parts.size() - last.size(), last);
  });
}

bool reads_weight(std::string_view architecture, std::string_view path) {
  const std::string_view leaf = last_component(path);
  return (leaf == "out_proj" &&
          among("Mamba Mamba2 FalconMamba FalconH1 NemotronH", architecture)) ||
         (leaf == "dt_proj" && among("Mamba FalconMamba Jamba", architecture));
}

bool fuses_experts(std::string_view architecture) { return rules(architecture).fuses; }

std::optional<FusedPart> fused_part(std::string_view name, bool gated) {
  if (!name.ends_with(".weight")) return std::nullopt;
  const auto expert = expert_layer(parent(name));
  if (!expert) return std::nullopt;
  const std::string_view leaf = expert->leaf;
  FusedPart part;
  part.expert = expert->number;
  const bool gate = leaf == "gate_proj" || leaf == "w1", up = leaf == "up_proj" || leaf == "w3";
  if (!gate && !up && leaf != "down_proj" && leaf != "w2") return std::nullopt;
  part.second = up && gated;
  part.parameter = fmt::format("{}.{}", expert->owner,
                               gate || part.second ? "gate_up_proj"
                               : up                ? "up_proj"
                                                   : "down_proj");
  return part;
}

}  // namespace ingot::plan
