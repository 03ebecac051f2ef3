// What merge, plan, bake, adapter merge and extract have in common: a recipe, the options that
// shape its output, mergekit's names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "console.hpp"
#include "ingot/merge.hpp"
#include "progress.hpp"

namespace ingot::tool {

class Request {
 public:
  enum class Form {
    merge,    // RECIPE OUT
    plan,     // RECIPE [OUT]
    bake,     // BASE ADAPTER... -o OUT: a recipe of its own
    fuse,     // ADAPTER... -o OUT: the same, or a recipe file
    extract,  // BASE TUNED -o OUT: a recipe of its own
  };
  // Adds the arguments and the options to `command`.
  Request(CLI::App& command, Form form);

  // After parsing: checks values, and notes options without effect. Throws Error.
  void settle(const Console& console);
  // The machine that does the arithmetic. Throws Error{device} where it cannot be had; `auto` takes
  // the CPU instead and says why.
  [[nodiscard]] std::unique_ptr<Backend> backend(const Console& console, bool decomposes) const;
  // Whether a plan of this command may have decompositions.
  [[nodiscard]] bool may_decompose() const;
  // Adds to a plan what stands in the way of running it beside its recipe and its models: the
  // device, the ceiling on memory and, where `target` or anything is wrong already, OUT. A sound
  // plan's OUT is looked at by merge(), which locks it first. The backend; null: it cannot be had.
  std::unique_ptr<Backend> obstruct(Disk& disk, Plan& plan, const Console& console, bool target,
                                    Estimate& run) const;
  // A message about a recipe; about one that the command line stands for, in its options.
  [[nodiscard]] std::string worded(std::string text) const;
  // Reads the recipe and builds the plan.
  [[nodiscard]] Plan plan(Disk& disk) const;
  // The command line that does what this one plans: of its words those that matter to a merge.
  [[nodiscard]] std::string command() const;

  [[nodiscard]] const std::string& recipe() const noexcept { return recipe_; }
  [[nodiscard]] const std::string& out() const noexcept { return out_; }
  [[nodiscard]] const MergeOptions& options() const noexcept { return options_; }
  [[nodiscard]] bool quiet() const noexcept { return quiet_; }
  [[nodiscard]] bool json() const noexcept { return json_; }
  [[nodiscard]] bool verbose() const noexcept { return verbose_; }
  // True for `plan`, and for others with --dry-run: nothing is written.
  [[nodiscard]] bool dry() const noexcept { return form_ == Form::plan || dry_; }
  // Every tensor is listed; the inputs are not read to learn their rate.
  [[nodiscard]] bool tensors() const noexcept { return tensors_; }
  [[nodiscard]] bool probes() const noexcept { return !no_probe_; }
  [[nodiscard]] Meter::Style progress(const Console& console) const {
    return progress_.style(console);
  }

 private:
  // `argument` is OUT as an argument; null where the adapters take all arguments.
  void add_out(CLI::App& command, CLI::Option* argument);
  // OUT from the option, the argument, or the last of the adapters. Throws Error{usage}.
  void settle_out();
  // Without -o the last of the adapters is OUT, where it can be nothing else: it does not exist, or
  // is an empty folder. Throws Error{usage} where it is an adapter.
  [[nodiscard]] bool take_last();
  [[nodiscard]] bool takes_adapters() const;
  void add_fusion(CLI::App& command);
  void add_extraction(CLI::App& command);
  void add_ranks(CLI::App& command);
  // The recipe that the command line stands for.
  [[nodiscard]] std::string synthesise(Disk& disk) const;
  [[nodiscard]] std::string baking(Disk& disk) const;
  [[nodiscard]] std::string fusion(Disk& disk) const;
  [[nodiscard]] std::string extraction(Disk& disk) const;
  // The text of the recipe's file. Throws Error with what may be meant.
  [[nodiscard]] std::string read_recipe(Disk& disk) const;
  [[nodiscard]] bool exists(Disk& disk, const std::string& path) const;
  // `path` and `revision` of what the command line names.
  [[nodiscard]] std::string place(Disk& disk, const std::string& text,
                                  const std::string& indent) const;
  // `ADAPTER[:WEIGHT]` in two; the weight is empty where there is none.
  [[nodiscard]] std::pair<std::string, std::string> weighted(Disk& disk,
                                                             const std::string& word) const;

  Form form_;
  std::string recipe_, out_;
  std::string named_;  // OUT as an argument
  std::string base_, tuned_;
  // Values for the recipes that fuse and extract write; empty where not given.
  std::string type_ = "cat", density_, majority_sign_, rank_, energy_, bytes_, whole_tensors_;
  std::string for_;  // what is to load the adapter
  bool keep_scaling_ = false;
  std::vector<std::string> compat_;
  std::vector<std::string> adapters_;
  std::string memory_ = "1GiB", shard_size_ = "5GB", out_shard_size_, prefer_;
  std::string device_memory_ = "2GiB";
  std::uint64_t device_memory_bytes_ = 0;
  std::string device_ = "cpu", storage_ = "auto", libraries_;
  bool quiet_ = false, json_ = false, verbose_ = false, no_sync_ = false, no_hash_ = false;
  bool dry_ = false, tensors_ = false, no_probe_ = false;
  // mergekit's.
  bool cuda_ = false, gpu_rich_ = false, safe_ = true, copy_tokenizer_ = true, card_ = true;
  PlanOptions planning_;
  MergeOptions options_;
  CLI::App& command_;
  ProgressOption progress_;
};

// Plans and merges as asked and reports it, or plans alone where the request is dry(); the exit
// code.
[[nodiscard]] int merge_by(Request& request);
// Plans as asked and prints it: what would be done, and every problem. The exit code of the run.
[[nodiscard]] int plan_by(Request& request);

// The exit code of a plan: that of its first fatal problem, 0 if it has none.
[[nodiscard]] int verdict(const Plan& plan);

// Shows every problem of a plan.
void report(const Console& console, const Plan& plan, const Request& request);

}  // namespace ingot::tool
