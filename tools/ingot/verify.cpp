#include "ingot/merge.hpp"

#include <optional>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "json.hpp"
#include "progress.hpp"
#include "size.hpp"

namespace ingot::tool {
namespace {

class VerifyCommand final : public Command {
 public:
  explicit VerifyCommand(CLI::App& program)
      : Command(program, "verify", "Check a merged folder against its receipt and its inputs") {
    app().add_option("OUT", out_, "The folder a merge wrote")->required()->type_name("DIR");
    app().add_flag("--all", options_.all, "Recompute every element instead of a sample");
    app().add_flag("--outputs-only", options_.outputs_only, "Do not look at the inputs");
    app().add_flag("--allow-unchanged", options_.allow_unchanged,
                   "Accept an output that is equal to one of its inputs");
    app()
        .add_option("--root", options_.root,
                    "Where the recipe's relative paths start (default: here)")
        ->type_name("DIR");
    app()
        .add_option("-j,--threads", options_.threads, "Threads, 0 for all")
        ->type_name("N")
        ->check(no_thread_count)
        ->capture_default_str();
    app().add_flag("-q,--quiet", quiet_, "Print only what is wrong");
    app().add_flag("--json", json_, "Print the result as JSON on standard output");
    progress_.emplace(app());
    app().footer(
        "ingot plans the folder again from its recipe, compares every file with the expected one,\n"
        "hashes outputs and inputs again, and computes elements again by a second path: all "
        "elements\n"
        "of small tensors, a sample of large ones.\n"
        "Exit code 0 if the folder matches its recipe, 1 if it does not, 3 if inputs are\n"
        "missing.\n"
        "\n"
        "Examples:\n"
        "  ingot verify out\n"
        "  ingot verify out --all\n"
        "  ingot verify out --outputs-only    # the inputs are gone");
  }

  int run() override {
    const Console console(quiet_);
    const std::unique_ptr<Disk> disk = system_disk();
    Meter meter(console, progress_->style(console), Phase::plan);
    const Verdicts verdicts =
        verify(*disk, out_, options_, [&meter](const Progress& progress) { meter.show(progress); });
    meter.finish();
    const bool sound = verdicts.findings.empty();
    if (json_) {
      Json json{{"out", out_},
                {"sound", sound},
                {"tensors", verdicts.tensors},
                {"hashed_bytes", verdicts.hashed_bytes},
                {"elements", verdicts.elements},
                {"recomputed", verdicts.recomputed},
                {"exact", verdicts.exact},
                {"judged", verdicts.judged},
                {"sample", nullptr},
                {"shortfalls", verdicts.shortfalls},
                {"findings", Json::array()}};
      if (verdicts.sampled + verdicts.passed > 0) {
        json["sample"] = {{"large_tensors", verdicts.sampled + verdicts.passed},
                          {"sampled_tensors", verdicts.sampled},
                          {"elements_of_each", verdicts.sample},
                          {"finds_one_in", kOneIn},
                          {"probability", verdicts.detection(kOneIn)},
                          {"finds_run_of_share", verdicts.run(kSure)},
                          {"with_probability", kSure},
                          {"facts_from_receipt", verdicts.taken},
                          {"uncounted_entries", verdicts.uncounted}};
      }
      for (const Finding& finding : verdicts.findings) json["findings"].push_back(finding.text);
      print_json(json);
    } else {
      std::string text;
      for (const Finding& finding : verdicts.findings) text += printable(finding.text) + '\n';
      if (!sound) {
        text +=
            fmt::format("{}: {}\n", printable(out_), show_count(verdicts.shortfalls, "problem"));
      } else if (!quiet_) {
        text += describe(verdicts) + '\n';
      }
      print(text);
    }
    return sound ? 0 : 1;
  }

 private:
  // Of a large tensor: the share of wrong elements for which the sample's power is told.
  static constexpr std::uint64_t kOneIn = 1000;
  // And the probability for which the shortest run of wrong neighbours is told.
  static constexpr double kSure = 0.99;

  [[nodiscard]] std::string describe(const Verdicts& verdicts) const {
    std::string text =
        fmt::format("{} {}: {}, {} hashed", printable(out_),
                    options_.outputs_only ? "matches its receipt (the inputs were not read)"
                                          : "matches its recipe",
                    show_count(verdicts.tensors, "tensor"), show_bytes(verdicts.hashed_bytes));
    if (verdicts.judged > 0) {
      text += fmt::format(", {} within {} bound", show_count(verdicts.judged, "tensor"),
                          verdicts.judged == 1 ? "its" : "their");
    }
    if (verdicts.elements == 0) return text;
    text += fmt::format(", {} of {} recomputed", show_count(verdicts.recomputed),
                        show_count(verdicts.elements, "element"));
    text += verdicts.recomputed == 0 ? ""
            : verdicts.exact == verdicts.recomputed
                ? ", all equal bit for bit"
                : fmt::format(", {} equal bit for bit and the others within their bound",
                              show_count(verdicts.exact));
    if (verdicts.recomputed == verdicts.elements) return text;
    const std::uint64_t large = verdicts.sampled + verdicts.passed;
    text += fmt::format(
        "\nOnly a sample of {} of {} was recomputed, {} elements of each. If one in {} elements of "
        "such a tensor is wrong, this finds it with a probability of {:.0f} %; it finds a run of "
        "wrong neighbours with {:.0f} % if the run is {:.0f} % of the tensor or longer, and a "
        "shorter run with less",
        show_count(verdicts.sampled), show_count(large, "large tensor"),
        show_count(verdicts.sample), show_count(kOneIn), 100 * verdicts.detection(kOneIn),
        100 * kSure, 100 * verdicts.run(kSure));
    if (verdicts.taken > 0) {
      text += fmt::format(
          "; for {} the thresholds, factors or coefficients of the receipt were used without a "
          "check",
          show_count(verdicts.taken, "tensor"));
    }
    if (verdicts.uncounted > 0) {
      text += fmt::format("; the counts of the receipt for {} were not checked",
                          show_count(verdicts.uncounted, "tensor"));
    }
    return text + "; --all recomputes everything";
  }

  std::string out_;
  VerifyOptions options_;
  bool quiet_ = false, json_ = false;
  std::optional<ProgressOption> progress_;
};

}  // namespace

std::unique_ptr<Command> make_verify(CLI::App& program) {
  return std::make_unique<VerifyCommand>(program);
}

}  // namespace ingot::tool
