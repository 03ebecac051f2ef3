#include "ingot/merge.hpp"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include <fmt/format.h>

#include "changes.hpp"
#include "command.hpp"
#include "console.hpp"
#include "fits.hpp"
#include "interrupt.hpp"
#include "json.hpp"
#include "probe.hpp"
#include "progress.hpp"
#include "request.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

Json describe(const Report& report, const std::vector<Activity>& devices) {
  Json json{{"out", report.out},
            {"receipt", report.receipt},
            {"backend", report.backend},
            {"solver", report.solver},
            {"storage", report.storage},
            {"tensors", report.tensors},
            {"merged", report.merged},
            {"copied", report.copied},
            {"unused", report.unused},
            {"resumed", report.resumed},
            {"complete", report.complete},
            {"bytes_read", report.bytes_read},
            {"bytes_written", report.bytes_written},
            {"seconds", report.seconds},
            {"storage_rate", report.storage_rate},
            {"peak_memory", report.peak_memory},
            {"threads", report.threads},
            {"busy", report.busy},
            {"warnings", report.warnings},
            {"devices", Json::array()}};
  for (const Activity& device : devices) {
    json["devices"].push_back({{"device", device.device},
                               {"copy_in_seconds", device.copy_in},
                               {"kernel_seconds", device.kernels},
                               {"copy_out_seconds", device.copy_out},
                               {"waiting_seconds", device.waiting},
                               {"bytes_in", device.bytes_in},
                               {"bytes_out", device.bytes_out},
                               {"kernel_bytes", device.kernel_bytes},
                               {"memory", device.memory},
                               {"link_in_rate", device.link_in},
                               {"link_out_rate", device.link_out},
                               {"copy_rate", device.copy}});
  }
  return json;
}

// Threads that compute for so much of the time wait for no disk.
constexpr double kBound = 0.9;

// How the work was done: for who looks at speed.
std::string ways(const Report& report) {
  std::string text = fmt::format("computed by {}\n", report.backend);
  if (!report.storage.empty()) text += fmt::format("files by {}\n", report.storage);
  if (!report.solver.empty()) text += fmt::format("decomposed by {}\n", report.solver);
  if (report.storage_rate > 0) {
    const auto moved = static_cast<double>(report.bytes_read + report.bytes_written);
    // The page cache gives more than the storage.
    text += fmt::format(
        "storage gives {}, of which this run used {:.0f} %\n", show_rate(report.storage_rate),
        std::min(100.0, 100 * moved / std::max(report.seconds, 1e-9) / report.storage_rate));
  }
  return text;
}

// The last line of a run: seconds, rate, peak memory.
std::string cost(const Report& report, const std::vector<Activity>& devices) {
  const double moved = static_cast<double>(report.bytes_read + report.bytes_written);
  const double rate = report.seconds > 0 ? moved / report.seconds : 0;
  std::string text = fmt::format("{}, {}, peak memory {}", show_time(report.seconds),
                                 show_rate(rate), show_memory(report.peak_memory));
  for (const Activity& device : devices) {
    text += fmt::format(", {} on {}", show_memory(device.memory), device.device);
  }
  return text + '\n';
}

// "24.1 GB/s (97 % of its link)".
std::string rate_of(std::uint64_t bytes, double seconds, double most, const char* what) {
  const double rate = seconds > 0 ? static_cast<double>(bytes) / seconds : 0;
  if (most <= 0) return show_rate(rate);
  return fmt::format("{} ({:.0f} % of {})", show_rate(rate), 100 * rate / most, what);
}

// What a device was busy with, and how fast: the part with the largest share bounds the run.
std::string busy(const Activity& device, double seconds) {
  const auto share = [&](double part) { return 100 * part / std::max(seconds, 1e-9); };
  return fmt::format(
      "{}: copied in {:.0f} % of the time at {}, computed {:.0f} % at {}, copied out {:.0f} % at "
      "{}\n",
      device.device, share(device.copy_in),
      rate_of(device.bytes_in, device.copy_in, device.link_in, "its link"), share(device.kernels),
      rate_of(device.kernel_bytes, device.kernels, device.copy, "its own copy rate"),
      share(device.copy_out),
      rate_of(device.bytes_out, device.copy_out, device.link_out, "its link"));
}

std::string narrate(const Report& report, const std::vector<Activity>& devices, bool verbose) {
  if (report.complete) {
    return fmt::format("{} is complete: {} verified, nothing was left to do\n", report.out,
                       show_count(report.tensors, "tensor"));
  }
  std::string text = fmt::format("wrote {}: {} ({} merged, {} copied), {} read, {} written\n",
                                 report.out, show_count(report.tensors, "tensor"),
                                 show_count(report.merged), show_count(report.copied),
                                 show_bytes(report.bytes_read), show_bytes(report.bytes_written));
  if (report.resumed > 0) {
    text += fmt::format("resumed: {} done before\n", show_count(report.resumed, "tensor"));
  }
  if (report.unused > 0) {
    text += fmt::format("{} left out; the receipt says why\n",
                        show_count(report.unused, "input tensor"));
  }
  text += fmt::format("receipt {}\n", report.receipt);
  if (verbose) text += ways(report);
  for (const Activity& device : devices) text += busy(device, report.seconds);
  if (report.busy >= kBound) {
    text += fmt::format("compute-bound: {} busy {:.0f} % of the time\n",
                        show_count(static_cast<std::uint64_t>(report.threads), "thread"),
                        100 * report.busy);
  }
  return text + cost(report, devices);
}

Report run(const Console& console, Disk& disk, Backend& backend, Plan& plan, const Request& request,
           Meter& meter) {
  const Interrupt interrupt;
  try {
    return merge(disk, backend, plan, request.out(), request.options(),
                 [&meter](const Progress& progress) {
                   Interrupt::check();
                   meter.show(progress);
                 });
  } catch (const Error& error) {
    if (Interrupt::signal() == 0) fail(error.code(), request.worded(error.what()));
  } catch (...) {
    if (Interrupt::signal() == 0) throw;
  }
  meter.finish(false);
  console.remark(
      "stopped; the same command with --resume continues after the last finished tensor");
  Interrupt::die();
}

// The messages about a run that is done; `shown` were before the work began.
void tell(const Console& console, const Request& request, const Plan& plan, const Backend& backend,
          Report done, const std::vector<Problem>& shown) {
  // For adapters, show their decompositions; for models, the changes of their adapters.
  const bool model = plan.recipe.kind == Recipe::Kind::models;
  const auto changes = model ? changes_of(done.derived) : std::vector<Changes>();
  const auto fits = model ? std::vector<Fit>() : fits_of(done.derived);
  if (plan.recipe.kind == Recipe::Kind::extraction && done.copied == 0 && !fits.empty() &&
      std::all_of(fits.begin(), fits.end(), [](const Fit& fit) { return fit.norm == 0; })) {
    done.warnings.push_back(
        fmt::format("nothing differs between {} and {}: the adapter changes nothing",
                    plan.recipe.base_model->text, plan.recipe.models.front().model.text));
  }
  if (auto warning = model ? std::nullopt : left_out(fits, plan)) {
    done.warnings.push_back(std::move(*warning));
  }
  std::unordered_set<std::string_view> known;
  for (const Problem& problem : shown) known.insert(problem.text);
  for (const std::string& warning : done.warnings) {
    if (!known.contains(warning)) console.warning(request.worded(warning));
  }
  warn_lost(console, changes);
  if (request.json()) {
    Json json = describe(done, backend.activity());
    if (!changes.empty()) json["changes"] = describe(changes);
    if (!model) json["decompositions"] = describe(fits, plan);
    print_json(json);
  } else if (!console.quiet()) {
    print(narrate(changes) + (model ? "" : narrate(fits, plan)) +
          narrate(done, backend.activity(), request.verbose()));
  }
}

class MergeCommand final : public Command {
 public:
  explicit MergeCommand(CLI::App& program)
      : Command(program, "merge", "Merge models by a recipe into a new folder"),
        request_(app(), Request::Form::merge) {
    app().footer(
        "The folder appears whole or not at all; an interrupted merge continues with --resume.\n"
        "The option names of mergekit-yaml are accepted too; ingot(1) lists them.\n"
        "\n"
        "Examples:\n"
        "  ingot merge recipe.yml out\n"
        "  ingot merge recipe.yml out --memory 4GiB --shard-size 10GB\n"
        "  ingot merge recipe.yml out --resume\n"
        "  ingot merge examples/recipes/ties.yml out --root examples");
  }

  int run() override { return merge_by(request_); }

 private:
  Request request_;
};

}  // namespace

int merge_by(Request& request) {
  const Console console(request.quiet());
  request.settle(console);
  if (request.dry()) return plan_by(request);
  const std::unique_ptr<Disk> disk = system_disk();
  Meter meter(console, request.progress(console), Phase::plan);
  Plan plan = request.plan(*disk);
  Estimate expected;
  // What stands in the way is said with all the rest, and before minutes of measuring.
  const std::unique_ptr<Backend> backend =
      request.obstruct(*disk, plan, console, !plan.open.empty(), expected);
  report(console, plan, request);
  if (!plan.sound()) return verdict(plan);
  if (request.progress(console) != Meter::Style::none && request.probes()) {
    meter.expect(seconds_of(plan, expected, probe(plan)));
  }
  const std::vector<Problem> shown = plan.problems;
  const Report done = run(console, *disk, *backend, plan, request, meter);
  meter.finish();
  try {
    tell(console, request, plan, *backend, done, shown);
  } catch (...) {
    say_complete();
    throw;
  }
  return 0;
}

std::unique_ptr<Command> make_merge(CLI::App& program) {
  return std::make_unique<MergeCommand>(program);
}

}  // namespace ingot::tool
