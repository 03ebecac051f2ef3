#include "plan/rules.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "ingot/cards.hpp"

namespace ingot::plan {
namespace {

// Parameters that mergekit 0.1.5 knows, so that a recipe written for it hears why it cannot run.
constexpr const char* kPeerParameters[] = {"weight",
                                           "density",
                                           "gamma",
                                           "epsilon",
                                           "int8_mask",
                                           "normalize",
                                           "rescale",
                                           "lambda",
                                           "t",
                                           "scale",
                                           "nuslerp_row_wise",
                                           "nuslerp_flatten",
                                           "normalize_weights",
                                           "eps",
                                           "max_iter",
                                           "tol",
                                           "filter_wise",
                                           "select_topk",
                                           "r",
                                           "alpha"};

// Keys of the recipe itself that are met among parameters.
constexpr const char* kTopKeys[] = {"dtype",      "out_dtype", "merge_method",
                                    "base_model", "tokenizer", "tokenizer_source",
                                    "models",     "slices",    "chat_template"};

template <class List>
bool listed(const List& list, std::string_view word) {
  return std::any_of(std::begin(list), std::end(list),
                     [&](std::string_view known) { return known == word; });
}

const math::Parameter* parameter_of(const math::Method& method, std::string_view name) {
  const auto it = std::find_if(method.parameters.begin(), method.parameters.end(),
                               [&](const math::Parameter& p) { return p.name == name; });
  return it == method.parameters.end() ? nullptr : &*it;
}

// What a parameter may be, in words.
std::string wanted(const math::Parameter& parameter) {
  const bool whole = parameter.kind == math::Kind::integer;
  const bool low = parameter.low > -math::kLargest, high = parameter.high < math::kLargest;
  const std::string kind = whole ? "a whole number" : "a finite number";
  if (low && high) {
    return fmt::format("{}between {} and {}", whole ? kind + " " : "", parameter.low,
                       parameter.high);
  }
  return low ? fmt::format("{} from {} on", kind, parameter.low) : kind;
}

Kind kind_of(const math::Parameter& parameter) {
  return parameter.kind == math::Kind::boolean ? Kind::boolean : Kind::real;
}

}  // namespace

Rules::Rules(const Recipe& recipe, const PlanOptions& options, Problems& problems)
    : recipe_(recipe), options_(options), problems_(problems) {
  index_ = math::find(recipe.method.c_str());
  if (index_ >= 0 && !math::of_models(method())) index_ = -1;  // an adapter's
  if (recipe.method.empty()) return;                           // remarked by the parser
  if (index_ < 0) {
    std::vector<std::string> known;
    for (int i = 0; i < math::kMethodCount; ++i) {
      if (math::of_models(math::method(i))) known.emplace_back(math::method(i).card.name);
    }
    const std::string place = position(recipe.file, recipe.method_mark);
    if (const math::AbsentMethod* absent = math::absent_method(recipe.method)) {
      problems_.error(Code::usage,
                      fmt::format("{}: merge_method '{}' is not supported yet; the nearest one is "
                                  "'{}'; ingot has {}",
                                  place, recipe.method, absent->near, fmt::join(known, ", ")));
    } else {
      problems_.error(
          Code::usage,
          fmt::format("{}: there is no merge_method '{}'; the methods are {}{}", place,
                      recipe.method, fmt::join(known, ", "), suggestion(recipe.method, known)));
    }
    return;
  }
  check(recipe.parameters, "the recipe", Owner::all);
  for (const Module& module : recipe.modules) {
    check(module.parameters, fmt::format("module '{}'", module.name), Owner::all);
  }
  each_section([&](const auto& sources, const auto& base, const Parameters* of_slice, auto*) {
    if (of_slice != nullptr) check(*of_slice, "the slice", Owner::all);
    for (const Source& source : sources) {
      const bool of_base = base && base->text == source.model.text;
      check(source.parameters, source.model.text, of_base ? Owner::base : Owner::model);
    }
  });
}

template <class Body>
void Rules::each_section(Body body) const {
  const auto slices = [&](const std::vector<Slice>& all, const Parameters* of_module) {
    for (const Slice& slice : all) {
      body(slice.sources, slice.base_model ? slice.base_model : recipe_.base_model,
           &slice.parameters, of_module);
    }
  };
  const Parameters* const none = nullptr;
  if (!recipe_.models.empty()) body(recipe_.models, recipe_.base_model, none, none);
  slices(recipe_.slices, none);
  for (const Module& module : recipe_.modules) {
    if (!module.models.empty()) body(module.models, recipe_.base_model, none, &module.parameters);
    slices(module.slices, &module.parameters);
  }
}

void Rules::require() {
  each_section([&](const auto& sources, const auto& base, const Parameters* of_slice,
                   const Parameters* of_module) {
    require(sources, base, std::array{of_slice, of_module, &recipe_.parameters});
  });
}

void Rules::require(const std::vector<Source>& sources, const std::optional<ModelRef>& base,
                    std::span<const Parameters* const> shared) {
  if (sources.size() == 1 && method().card.least > 1) return;  // passed through
  const auto given = [&](const char* name, const Parameters* own) {
    const auto has = [&](const Parameters* level) {
      return level != nullptr && level->contains(name);
    };
    return has(own) || std::any_of(shared.begin(), shared.end(), has);
  };
  for (const math::Parameter& parameter : method().parameters) {
    if (!parameter.required) continue;
    if (parameter.scope == math::Scope::global) {
      if (!given(parameter.name, nullptr)) miss(parameter, "", "");
      continue;
    }
    for (const Source& source : sources) {
      const bool apart =
          math::has_task_vectors(method()) && base && base->text == source.model.text;
      if (apart || given(parameter.name, &source.parameters)) continue;
      miss(parameter, " of " + source.model.text, "");
    }
  }
}

// Once for all tensors.
void Rules::miss(const math::Parameter& parameter, const std::string& whose,
                 const std::string& output) {
  const std::string key = fmt::format("required {}{}", parameter.name, whose);
  if (!missing_.insert(key).second && output.empty()) return;
  problems_.error_like(key, Code::usage,
                       fmt::format("{}: {} needs parameter '{}'{}{}, and no level of the recipe "
                                   "gives it a value",
                                   recipe_.file, recipe_.method, parameter.name, whose,
                                   output.empty() ? "" : fmt::format(" for tensor {}", output)));
}

void Rules::check(const Parameters& parameters, const std::string& where, Owner owner) {
  for (const auto& [name, setting] : parameters) {
    const std::string place = position(recipe_.file, setting.mark);
    if (const math::Parameter* known = parameter_of(method(), name)) {
      const bool global = known->scope == math::Scope::global;
      if (!global && owner == Owner::base && math::has_task_vectors(method())) continue;
      if (!global || owner == Owner::all) {
        check_value(*known, setting, owner == Owner::all ? "" : " of " + where);
      } else {
        problems_.warn(Code::usage, fmt::format("{}: '{}' under {} is not read: in {} it is one "
                                                "value for all models; move it to the "
                                                "'parameters' at the top level",
                                                place, name, where, recipe_.method));
      }
      continue;
    }
    bool elsewhere = listed(kPeerParameters, name);
    for (int i = 0; i < math::kMethodCount && !elsewhere; ++i) {
      elsewhere = parameter_of(math::method(i), name) != nullptr;
    }
    std::vector<std::string> own;
    for (const math::Parameter& parameter : method().parameters) own.emplace_back(parameter.name);
    if (elsewhere) {
      problems_.warn(Code::usage,
                     fmt::format("{}: parameter '{}' of {} is not read by {}, which reads {}",
                                 place, name, where, recipe_.method, fmt::join(own, ", ")));
    } else if (listed(kTopKeys, name)) {
      problems_.warn(Code::usage,
                     fmt::format("{}: '{}' among the parameters of {} is ignored, as mergekit "
                                 "ignores it; it belongs at the top level",
                                 place, name, where));
    } else if (options_.allow_unknown_keys) {
      waived_.push_back(fmt::format("{} (line {})", name, setting.mark.line));
      problems_.warn(Code::usage,
                     fmt::format("{}: unknown parameter '{}' of {} is ignored, as asked for", place,
                                 name, where));
    } else {
      std::vector<std::string> all = own;
      all.insert(all.end(), std::begin(kPeerParameters), std::end(kPeerParameters));
      if (nearest(name, all).empty()) {
        problems_.warn(Code::usage,
                       fmt::format("{}: no method reads the parameter '{}' of {}; {} "
                                   "reads {}",
                                   place, name, where, recipe_.method, fmt::join(own, ", ")));
      } else {
        problems_.error(Code::usage, fmt::format("{}: unknown parameter '{}' of {}{}", place, name,
                                                 where, suggestion(name, all)));
      }
    }
  }
}

// Every point, so that a gradient between them is in range as well.
void Rules::check_value(const math::Parameter& parameter, const Setting& setting,
                        const std::string& whose) {
  const auto refuse = [&](const std::string& text) {
    problems_.error(Code::usage, text);
    faulty_.insert(&setting);
  };
  for (const Condition& condition : setting.conditions) {
    std::vector<double> points;
    try {
      points = points_of(condition.value, parameter.name, kind_of(parameter), recipe_.file);
    } catch (const Error& e) {
      refuse(e.message());
      continue;
    }
    const auto wrong = std::find_if(points.begin(), points.end(), [&](double point) {
      return !(point >= parameter.low && point <= parameter.high) ||
             (parameter.kind == math::Kind::integer && point != std::floor(point));
    });
    if (wrong == points.end()) continue;
    refuse(fmt::format("{}: parameter '{}'{} is {}; it must be {}",
                       position(recipe_.file, condition.value.mark), parameter.name, whose, *wrong,
                       wanted(parameter)));
  }
}

Binding Rules::bind(std::span<const Parameters* const> own,
                    std::span<const Parameters* const> shared) const {
  Binding binding;
  for (const math::Parameter& parameter : method().parameters) {
    const auto find = [&](const Parameters* of_input) {
      std::vector<const Setting*> found;
      const auto look = [&](const Parameters* level) {
        if (level == nullptr) return;
        const auto it = level->find(parameter.name);
        if (it != level->end()) found.push_back(&it->second);
      };
      look(of_input);
      for (const Parameters* level : shared) look(level);
      return found;
    };
    auto& rows = binding.settings.emplace_back();
    if (parameter.scope == math::Scope::global) {
      rows.push_back(find(nullptr));
    } else {
      for (const Parameters* of_input : own) rows.push_back(find(of_input));
    }
  }
  return binding;
}

std::optional<double> Rules::value(const math::Parameter& parameter,
                                   const std::vector<const Setting*>& settings,
                                   std::string_view filtered, double t, const std::string& whose,
                                   const std::string& output) {
  const Kind kind = kind_of(parameter);
  for (const Setting* setting : settings) {
    if (faulty_.contains(setting)) return std::nullopt;
    const auto key = [&] { return fmt::format("value {} {}", fmt::ptr(setting), parameter.name); };
    std::optional<double> found;
    try {
      found = evaluate(*setting, parameter.name, filtered, t, kind, recipe_.file);
    } catch (Error& e) {
      e.add(fmt::format("planning {}{}", output, whose));
      problems_.error_like(key(), e.code(), e.what());
      return std::nullopt;
    }
    if (!found) continue;
    if (parameter.kind == math::Kind::integer && *found != std::floor(*found)) {
      problems_.error_like(key(), Code::usage,
                           fmt::format("{}: parameter '{}'{} is {} for tensor {}: it must be {}",
                                       position(recipe_.file, setting->mark), parameter.name, whose,
                                       *found, output, wanted(parameter)));
      return std::nullopt;
    }
    if (kind == Kind::real && !math::single(*found)) {
      problems_.error_like(
          key(), Code::usage,
          fmt::format(
              "{}: parameter '{}'{} is {} for tensor {}: single precision cannot hold such a "
              "small number; it must be 0 or at least 1.2e-38 in size",
              position(recipe_.file, setting->mark), parameter.name, whose, *found, output));
      return std::nullopt;
    }
    return found;
  }
  if (!parameter.required) return parameter.fallback;
  miss(parameter, whose, output);
  return std::nullopt;
}

std::optional<math::Rule> Rules::resolve(const Binding& binding, const std::string& output,
                                         const std::string& drawn, std::span<const Seat> sources,
                                         bool base, double t, const Shape& shape) {
  math::Rule rule;
  rule.method = index_;
  rule.sources = static_cast<std::int32_t>(sources.size());
  rule.base = base;
  rule.elements = shape.count();
  if (shape.rank() > 1) {
    rule.width = shape[shape.rank() - 1];
    rule.height = shape[0];
  }
  rule.seed = options_.seed;
  bool sound = true;
  std::size_t global = 0;
  std::size_t local = 0;
  std::size_t p = 0;
  for (const math::Parameter& parameter : method().parameters) {
    const auto& rows = binding.settings[p++];
    if (parameter.scope == math::Scope::global) {
      const auto found = value(parameter, rows.front(), output, t, "", output);
      sound = sound && found.has_value();
      rule.globals[global++] = found.value_or(0);
      continue;
    }
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const auto found = value(parameter, rows[sources[s].input], sources[s].tensor, t,
                               " of " + sources[s].model, output);
      sound = sound && found.has_value();
      rule.locals[s][local] = found.value_or(0);
    }
    ++local;
  }
  if (!sound) return std::nullopt;
  if (method().random) {
    for (std::size_t s = 0; s < sources.size(); ++s) rule.stream[s] = stream_key(drawn, "drop", s);
  }
  if (const char* why = math::invalid(rule)) {
    problems_.error_like(
        fmt::format("invalid {}", why), Code::usage,
        fmt::format("{}: {} for tensor {}: {}", recipe_.file, recipe_.method, output, why));
    return std::nullopt;
  }
  return rule;
}

bool draws(const Plan& plan) {
  return std::any_of(plan.jobs.begin(), plan.jobs.end(), [](const Job& job) {
    return (job.action == Action::merge && math::draws(job.work.rule)) ||
           std::any_of(job.operands.begin(), job.operands.end(), [](const Operand& operand) {
             return operand.derived && operand.derived->draws();
           });
  });
}

math::Rule Rules::pass(std::uint64_t elements) {
  math::Rule rule;
  rule.method = math::kIndex<math::Passthrough>;
  rule.sources = 1;
  rule.elements = elements;
  math::set_defaults(rule);
  return rule;
}

}  // namespace ingot::plan
