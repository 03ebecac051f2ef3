#include "ingot/plan.hpp"
#include "ingot/merge.hpp"

#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "ingot/math/methods.hpp"
#include "json.hpp"
#include "probe.hpp"
#include "request.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

// The recipe's word for what it does.
std::string method(const Plan& plan) {
  return plan.recipe.kind == Recipe::Kind::extraction ? "extract" : plan.recipe.method;
}

// Where the whole of a tensor is computed and the rule only passes it on: what it is, "factor of
// the difference" or "rows".
std::string made(const Job& job) {
  const bool passed = job.operands.size() == 1 && job.operands[0].derived &&
                      !job.operands[0].derived->own() &&
                      job.work.rule.method == math::find("passthrough");
  if (!passed) return {};
  const Json json = Json::parse(job.operands[0].derived->describe());
  const std::string kind = json.value("kind", "");
  return json.contains("factor") ? "factor of the " + kind : kind;
}

// "ties", "svd: factor of the low-rank sum", or "copied: all inputs agree".
std::string rule(const Plan& plan, const Job& job) {
  if (job.action == Action::copy) return job.reason.empty() ? "copied" : "copied: " + job.reason;
  const std::string kind = made(job);
  if (kind.empty()) return math::method(job.work.rule.method).name;
  return fmt::format("{}: {}", method(plan), kind);
}

// The parameters of a job by name: globals as numbers, those of the sources as lists.
Json parameters(const Job& job) {
  Json result = Json::object();
  if (job.action != Action::merge) return result;
  const math::Rule& rule = job.work.rule;
  const math::Method& method = math::method(rule.method);
  int global = 0;
  int local = 0;
  for (int i = 0; i < method.parameter_count; ++i) {
    const math::Parameter& parameter = method.parameters[i];
    if (parameter.scope == math::Scope::global) {
      result[parameter.name] = rule.globals[global++];
      continue;
    }
    Json list = Json::array();
    for (int s = 0; s < rule.sources; ++s) list.push_back(rule.locals[s][local]);
    result[parameter.name] = std::move(list);
    ++local;
  }
  return result;
}

struct Forecast {
  std::uint64_t needed = 0;  // bytes on disk
  std::uint64_t free = 0;
  std::string place;  // where
  double rate = 0;    // bytes per second of reading, 0 if unknown
  double seconds = 0;
};

Forecast forecast(Disk& disk, const Plan& plan, const std::string& out, bool probing) {
  Forecast result;
  for (const Shard& shard : plan.shards) result.needed += shard.header.size() + shard.data_bytes;
  for (const Companion& companion : plan.companions) {
    result.needed +=
        companion.from.empty() ? companion.text.size() : disk.open(companion.from)->size();
  }
  result.place = out.empty() ? "." : out;
  result.free = disk.free_bytes(result.place);
  result.rate = probing ? probe(plan) : 0;
  if (result.rate > 0) {
    result.seconds = static_cast<double>(plan.bytes_in + plan.bytes_out) / result.rate;
  }
  return result;
}

std::map<std::string, std::uint64_t> rules(const Plan& plan) {
  std::map<std::string, std::uint64_t> counts;
  for (const Job& job : plan.jobs) ++counts[rule(plan, job)];
  return counts;
}

std::map<std::string, std::uint64_t> dtypes(const Plan& plan) {
  std::map<std::string, std::uint64_t> counts;
  for (const Job& job : plan.jobs) ++counts[std::string(word(job.output.dtype))];
  return counts;
}

std::string source(const Plan& plan, const Operand& operand) {
  const Model& model = plan.models[operand.model];
  std::string text = model.ref.text + ":" + model.checkpoint.entries()[operand.entry].info.name;
  std::set<std::uint32_t> more;
  if (operand.derived) {
    for (const Ingredient& each : operand.derived->ingredients()) more.insert(each.model);
  }
  for (const std::uint32_t each : more) text += " + " + plan.models[each].ref.text;
  return text;
}

// Output tensors that each adapter changes, brings or replaces, by model.
std::map<std::uint32_t, std::uint64_t> adapted(const Plan& plan) {
  std::map<std::uint32_t, std::uint64_t> counts;
  for (const Job& job : plan.jobs) {
    std::set<std::uint32_t> models;
    for (const Operand& operand : job.operands) {
      models.insert(operand.model);
      if (!operand.derived) continue;
      for (const Ingredient& each : operand.derived->ingredients()) models.insert(each.model);
    }
    for (const std::uint32_t model : models) {
      if (plan.models[model].adapter) ++counts[model];
    }
  }
  return counts;
}

std::uint64_t weight_bytes(const Model& model) {
  std::uint64_t bytes = 0;
  for (const Entry& entry : model.checkpoint.entries()) bytes += entry.info.bytes();
  return bytes;
}

Json describe(const Plan& plan, const Forecast& cost, const Request& request, bool tensors) {
  Json json = Json::object();
  json["recipe"] = request.recipe();
  json["method"] = method(plan);
  json["architecture"] = plan.architecture;
  json["models"] = Json::array();
  for (const Model& model : plan.models) {
    json["models"].push_back({{"model", model.ref.text},
                              {"folder", model.folder},
                              {"tensors", model.checkpoint.entries().size()},
                              {"bytes", weight_bytes(model)},
                              {"pickled", model.checkpoint.pickled()},
                              {"adapter", model.adapter}});
  }
  json["adapted"] = Json::object();
  for (const auto& [model, count] : adapted(plan))
    json["adapted"][plan.models[model].ref.text] = count;
  json["rules"] = rules(plan);
  json["dtypes"] = dtypes(plan);
  json["tensor_count"] = plan.jobs.size();
  json["shards"] = Json::array();
  for (const Shard& shard : plan.shards) {
    json["shards"].push_back(
        {{"file", shard.file}, {"bytes", shard.header.size() + shard.data_bytes}});
  }
  json["files"] = Json::array();
  for (const Companion& companion : plan.companions) json["files"].push_back(companion.name);
  json["unused"] = Json::array();
  for (const Unused& unused : plan.unused) {
    const Model& model = plan.models[unused.model];
    json["unused"].push_back({{"model", model.ref.text},
                              {"tensor", model.checkpoint.entries()[unused.entry].info.name},
                              {"reason", unused.reason}});
  }
  json["bytes_in"] = plan.bytes_in;
  json["bytes_out"] = plan.bytes_out;
  json["disk"] = {{"needed", cost.needed}, {"free", cost.free}, {"folder", cost.place}};
  json["memory"] = request.options().memory;
  json["time"] = {{"seconds", cost.seconds}, {"storage_rate", cost.rate}};
  json["waived"] = plan.recipe.waived;
  json["problems"] = Json::array();
  for (const Problem& problem : plan.problems) {
    json["problems"].push_back({{"fatal", problem.fatal}, {"text", problem.text}});
  }
  json["sound"] = plan.sound();
  if (!tensors) return json;
  json["tensors"] = Json::array();
  for (const Job& job : plan.jobs) {
    Json entry{{"name", job.output.name}, {"dtype", word(job.output.dtype)},
               {"shape", Json::array()},  {"shard", plan.shards[job.shard].file},
               {"rule", rule(plan, job)}, {"parameters", parameters(job)},
               {"sources", Json::array()}};
    for (int i = 0; i < job.output.shape.rank(); ++i) entry["shape"].push_back(job.output.shape[i]);
    for (const Operand& operand : job.operands) entry["sources"].push_back(source(plan, operand));
    json["tensors"].push_back(std::move(entry));
  }
  return json;
}

std::string narrate(const Plan& plan, const Forecast& cost, const Request& request, bool tensors) {
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    text += fmt::format("{:<14}{}\n", label, printable(value));
  };
  line("recipe", fmt::format("{} ({})", request.recipe(), method(plan)));
  line("architecture", plan.architecture);
  for (const Model& model : plan.models) {
    line(model.adapter ? "adapter" : "model",
         fmt::format("{}: {}, {}{}", model.ref.text,
                     show_count(model.checkpoint.entries().size(), "tensor"),
                     show_bytes(weight_bytes(model)),
                     model.checkpoint.pickled() ? ", pickled" : ""));
  }
  for (const auto& [model, count] : adapted(plan)) {
    line("adapted",
         fmt::format("{} by {}", show_count(count, "tensor"), plan.models[model].ref.text));
  }
  for (const auto& [name, count] : rules(plan)) {
    line("rule", fmt::format("{} {}", show_count(count, "tensor"), name));
  }
  std::map<std::string, std::uint64_t> unused;
  for (const Unused& entry : plan.unused) {
    ++unused[plan.models[entry.model].ref.text + ": " + entry.reason];
  }
  for (const auto& [reason, count] : unused) {
    line("unused", fmt::format("{} of {}", show_count(count, "tensor"), reason));
  }
  std::string kinds;
  for (const auto& [kind, count] : dtypes(plan)) {
    kinds += (kinds.empty() ? "" : ", ") + fmt::format("{} {}", show_count(count), kind);
  }
  line("output", fmt::format("{} ({}) in {}, {}", show_count(plan.jobs.size(), "tensor"), kinds,
                             show_count(plan.shards.size(), "shard"),
                             show_count(plan.companions.size(), "other file")));
  line("read", show_bytes(plan.bytes_in));
  line("write", show_bytes(plan.bytes_out));
  line("disk", fmt::format("{} needed, {} free for {}", show_bytes(cost.needed),
                           show_bytes(cost.free), cost.place));
  line("memory", fmt::format("at most {} resident", show_memory(request.options().memory)));
  if (cost.rate > 0) {
    line("time", fmt::format("about {} at the {} a quick probe of the inputs read",
                             show_time(cost.seconds), show_rate(cost.rate)));
  }
  if (tensors) {
    for (const Job& job : plan.jobs) {
      std::string sources;
      for (const Operand& operand : job.operands) {
        sources += (sources.empty() ? "" : ", ") + source(plan, operand);
      }
      const Json values = parameters(job);
      text +=
          printable(fmt::format("{}  {} {}  {}{}  from {}", job.output.name, word(job.output.dtype),
                                job.output.shape.text(), rule(plan, job),
                                values.empty() ? "" : " " + values.dump(), sources));
      text += '\n';
    }
  }
  return text;
}

class PlanCommand final : public Command {
 public:
  explicit PlanCommand(CLI::App& program)
      : Command(program, "plan",
                "Show all a merge would do, from headers alone, and every problem"),
        request_(app(), Request::Form::plan) {
    app().add_flag("--tensors", tensors_, "List every output tensor with its rule and sources");
    app().add_flag("--no-probe", no_probe_, "Do not read from the inputs to estimate the time");
    app().footer(
        "Nothing is written. Exit code 0 if the merge can run, else the one it would fail with.\n"
        "\n"
        "Examples:\n"
        "  ingot plan recipe.yml\n"
        "  ingot plan recipe.yml out --tensors\n"
        "  ingot plan recipe.yml --json | jq .problems");
  }

  int run() override {
    const Console console(request_.quiet());
    request_.settle(console);
    const std::unique_ptr<Disk> disk = system_disk();
    Plan plan = request_.plan(*disk);
    const Forecast cost = forecast(*disk, plan, request_.out(), !no_probe_);
    if (!request_.out().empty()) {
      try {
        check_target(*disk, plan, request_.out(), request_.options().force);
      } catch (const Error& error) {
        plan.problems.push_back({true, error.code(), error.what()});
      }
    }
    if (!request_.out().empty() && cost.needed > cost.free) {
      plan.problems.push_back({true, Code::io,
                               fmt::format("{} needs {} of disk and {} is free", cost.place,
                                           show_bytes(cost.needed), show_bytes(cost.free))});
    }
    if (plan.sound()) {
      try {
        (void)crowd(plan, request_.options());
      } catch (const Error& error) {
        plan.problems.push_back({true, error.code(), error.what()});
      }
    }
    if (request_.json()) {
      print_json(describe(plan, cost, request_, tensors_));
    } else {
      print(narrate(plan, cost, request_, tensors_));
    }
    report(console, plan);
    return verdict(plan);
  }

 private:
  Request request_;
  bool tensors_ = false, no_probe_ = false;
};

}  // namespace

std::unique_ptr<Command> make_plan(CLI::App& program) {
  return std::make_unique<PlanCommand>(program);
}

}  // namespace ingot::tool
