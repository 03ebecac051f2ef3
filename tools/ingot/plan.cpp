#include "ingot/plan.hpp"
#include "ingot/merge.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "failure.hpp"
#include "help.hpp"
#include "ingot/methods.hpp"
#include "json.hpp"
#include "probe.hpp"
#include "progress.hpp"
#include "request.hpp"
#include "size.hpp"
#include "weights.hpp"

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
                      job.work.rule.method == math::kIndex<math::Passthrough>;
  if (!passed) return {};
  const Json json = Json::parse(job.operands[0].derived->describe());
  const std::string kind = json.value("kind", "");
  return json.contains("factor") ? "factor of the " + kind : kind;
}

// "ties", "svd: factor of the low-rank sum", or "copied: all inputs agree".
std::string rule(const Plan& plan, const Job& job) {
  if (job.action == Action::copy) return job.reason.empty() ? "copied" : "copied: " + job.reason;
  const std::string kind = made(job);
  if (kind.empty()) return math::method(job.work.rule.method).card.name;
  return fmt::format("{}: {}", method(plan), kind);
}

struct Forecast {
  std::uint64_t needed = 0;  // bytes on disk
  std::uint64_t free = 0;
  std::string place;   // where
  double rate = 0;     // bytes per second of reading, 0 if unknown
  double seconds = 0;  // 0 if unknown
  Estimate run;
};

// Problems that the target, its disk, the ceilings and the device bring are added to the plan.
Forecast forecast(Disk& disk, Plan& plan, const Request& request) {
  Forecast result;
  result.place = request.out().empty() ? "." : request.out();
  for (const Shard& shard : plan.shards) result.needed += shard.header.size() + shard.data_bytes;
  for (const Companion& companion : plan.companions) {
    result.needed +=
        companion.from.empty() ? companion.text.size() : disk.open(companion.from)->size();
  }
  (void)request.obstruct(disk, plan, Console(true), true, result.run);
  try {
    result.free = disk.free_bytes(result.place);
    if (!request.out().empty() && result.needed > result.free) {
      plan.problems.push_back({true, Code::io,
                               fmt::format("{} needs {} of disk and {} is free", result.place,
                                           show_bytes(result.needed), show_bytes(result.free))});
    }
  } catch (const Error& error) {
    plan.problems.push_back({true, error.code(), error.what()});
  }
  if (plan.jobs.empty() || !request.probes()) return result;
  result.rate = probe(plan);
  result.seconds = seconds_of(plan, result.run, result.rate);
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

Json describe(const Plan& plan, const Forecast& cost, const Request& request) {
  Json json = Json::object();
  json["recipe"] = plan.recipe.file;
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
  json["weights"] = weights_of(plan);
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
  json["memory"] = {{"ceiling", request.options().memory}, {"peak", cost.run.memory}};
  json["threads"] = cost.run.crowd.threads;
  json["time"] = {
      {"seconds", cost.seconds}, {"compute", cost.run.compute}, {"storage_rate", cost.rate}};
  json["open"] = plan.open;
  json["waived"] = plan.recipe.waived;
  json["problems"] = Json::array();
  for (const Problem& problem : plan.problems) {
    Json entry = describe(Failure{problem.code, request.worded(problem.text)});
    entry["fatal"] = problem.fatal;
    entry["text"] = entry["message"];
    entry.erase("message");
    if (!problem.fatal) {
      entry.erase("exit");
      entry.erase("advice");
    }
    json["problems"].push_back(std::move(entry));
  }
  json["sound"] = plan.sound();
  json["command"] = request.command();
  if (!request.tensors()) return json;
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

// An output tensor: what it is, then how it comes to be, in lines that fit a terminal.
std::string describe(const Plan& plan, const Job& job) {
  std::string sources;
  for (const Operand& operand : job.operands) {
    std::string text = source(plan, operand);
    const std::string same = ":" + job.output.name;  // most have the output's name
    if (text.ends_with(same)) text.resize(text.size() - same.size());
    sources += (sources.empty() ? "" : ", ") + text;
  }
  return fmt::format("{}  {} {}\n", printable(job.output.name), word(job.output.dtype),
                     job.output.shape.text()) +
         wrapped("    ",
                 fmt::format("{}{} from {}", rule(plan, job), shown(parameters(job)),
                             printable(sources)),
                 4);
}

std::string narrate(const Plan& plan, const Forecast& cost, const Request& request) {
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    text += fmt::format("{:<14}{}\n", label, printable(value));
  };
  line("recipe", fmt::format("{} ({})", plan.recipe.file, method(plan)));
  if (!plan.architecture.empty()) line("architecture", plan.architecture);
  for (const Model& model : plan.models) {
    line(model.adapter ? "adapter" : "model",
         fmt::format("{}: {}, {}{}", model.ref.text,
                     show_count(model.checkpoint.entries().size(), "tensor"),
                     show_bytes(weight_bytes(model)),
                     model.checkpoint.pickled() ? ", pickled" : ""));
  }
  const auto fatal = static_cast<std::uint64_t>(
      std::count_if(plan.problems.begin(), plan.problems.end(),
                    [](const Problem& problem) { return problem.fatal; }));
  if (!plan.shards.empty()) {
    for (const auto& [model, count] : adapted(plan)) {
      line("adapted",
           fmt::format("{} by {}", show_count(count, "tensor"), plan.models[model].ref.text));
    }
    for (const auto& [name, count] : rules(plan)) {
      line("rule", fmt::format("{} {}", show_count(count, "tensor"), name));
    }
    text += printable(table_of(weights_of(plan)), Breaks::kept);
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
    for (const std::string& open : plan.open) line("open", open);
    line("read", show_bytes(plan.bytes_in));
    line("write", show_bytes(plan.bytes_out));
    line("disk", fmt::format("{} needed, {} free for {}", show_bytes(cost.needed),
                             show_bytes(cost.free), cost.place));
  }
  if (cost.run.memory > 0) {
    line("memory",
         fmt::format("about {}; the ceiling is {} (--memory)", show_memory(cost.run.memory),
                     show_memory(request.options().memory)));
  }
  if (cost.seconds > 0 && cost.run.crowd.threads > 0) {
    line("time",
         fmt::format("{} with {}",
                     cost.seconds < 1 ? "under a second" : "about " + show_time(cost.seconds),
                     show_count(static_cast<std::uint64_t>(cost.run.crowd.threads), "thread")));
  }
  if (request.tensors()) {
    for (const Job& job : plan.jobs) text += describe(plan, job);
  }
  line(fatal == 0 ? "ready" : "not ready",
       fatal == 0 ? request.command() : show_count(fatal, "error") + " to correct");
  return text;
}

class PlanCommand final : public Command {
 public:
  explicit PlanCommand(CLI::App& program)
      : Command(program, "plan",
                "Show what a merge would do and every problem, from the file headers alone"),
        request_(app(), Request::Form::plan) {
    app().footer(
        "Nothing is written. Exit code 0 if the merge can run, otherwise the code of its failure.\n"
        "The commands that write take --dry-run, which does the same for them.\n"
        "\n"
        "Examples:\n"
        "  ingot plan recipe.yml\n"
        "  ingot plan recipe.yml out --tensors\n"
        "  ingot plan recipe.yml --json | jq .problems");
  }

  int run() override { return merge_by(request_); }

 private:
  Request request_;
};

}  // namespace

int plan_by(Request& request) {
  const Console console(request.quiet());
  const std::unique_ptr<Disk> disk = system_disk();
  Meter meter(console, request.progress(console), Phase::plan);
  Plan plan = request.plan(*disk);
  const Forecast cost = forecast(*disk, plan, request);
  meter.finish();
  if (request.json()) {
    print_json(describe(plan, cost, request));
  } else if (!request.quiet()) {
    print(narrate(plan, cost, request));
  }
  report(console, plan, request);
  return verdict(plan);
}

std::unique_ptr<Command> make_plan(CLI::App& program) {
  return std::make_unique<PlanCommand>(program);
}

}  // namespace ingot::tool
