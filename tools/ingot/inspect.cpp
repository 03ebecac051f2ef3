#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "command.hpp"
#include "console.hpp"
#include "ingot/adapter.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "json.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "size.hpp"
#include "spectra.hpp"
#include "sweep.hpp"

namespace ingot::tool {
namespace {

// Tensors whose names differ in numbers only, of one type and shape.
struct Group {
  std::string name;
  Dtype dtype;
  Shape shape;
  std::uint64_t tensors = 0;
  std::uint64_t parameters = 0;
};

struct Summary {
  std::vector<Group> groups;  // as people count, by name
  std::map<Dtype, std::uint64_t> dtypes;
  std::uint64_t tensors = 0, parameters = 0, bytes = 0, layers = 0;
  std::optional<std::uint64_t> tokens;
  std::optional<std::uint64_t> vocabulary;  // of config.json
  std::string architecture;                 // of config.json
};

void read_config(const Checkpoint& model, Summary& summary) {
  nlohmann::json config;
  try {
    config = json_of(model.config(), "config.json");
  } catch (const Error&) {
    return;  // the tensors can be looked at all the same
  }
  if (!config.is_object()) return;
  if (config.contains("architectures") && config["architectures"].is_array() &&
      !config["architectures"].empty() && config["architectures"][0].is_string()) {
    summary.architecture = config["architectures"][0].get<std::string>();
  }
  if (config.contains("vocab_size") && config["vocab_size"].is_number_unsigned()) {
    summary.vocabulary = config["vocab_size"].get<std::uint64_t>();
  }
}

Summary summarize(Disk& disk, const Checkpoint& model) {
  Summary summary;
  std::set<std::uint64_t> layers;
  std::map<std::tuple<std::string, Dtype, std::string>, std::size_t> places;
  for (const Entry& entry : model.entries()) {
    const TensorInfo& info = entry.info;
    ++summary.tensors;
    summary.parameters += info.count();
    summary.bytes += info.bytes();
    ++summary.dtypes[info.dtype];
    if (const auto number = layer(info.name)) layers.insert(*number);
    const auto [place, fresh] = places.try_emplace(
        {pattern(info.name), info.dtype, info.shape.text()}, summary.groups.size());
    if (fresh) summary.groups.push_back({pattern(info.name), info.dtype, info.shape});
    Group& group = summary.groups[place->second];
    ++group.tensors;
    group.parameters += info.count();
  }
  std::stable_sort(summary.groups.begin(), summary.groups.end(),
                   [](const Group& a, const Group& b) { return natural_less(a.name, b.name); });
  summary.layers = layers.size();
  summary.tokens = count_tokens(disk, model);
  read_config(model, summary);
  return summary;
}

Json shape_of(const Shape& shape) {
  Json json = Json::array();
  for (int i = 0; i < shape.rank(); ++i) json.push_back(shape[i]);
  return json;
}

Json describe(const Checkpoint& model, const Summary& summary) {
  Json json{{"path", model.path()},        {"architecture", summary.architecture},
            {"files", model.file_count()}, {"pickled", model.pickled()},
            {"tensors", summary.tensors},  {"parameters", summary.parameters},
            {"bytes", summary.bytes},      {"layers", summary.layers},
            {"tokens", nullptr},           {"vocab_size", nullptr},
            {"dtypes", Json::object()},    {"groups", Json::array()}};
  if (summary.tokens) json["tokens"] = *summary.tokens;
  if (summary.vocabulary) json["vocab_size"] = *summary.vocabulary;
  for (const auto& [dtype, count] : summary.dtypes)
    json["dtypes"][std::string(word(dtype))] = count;
  for (const Group& group : summary.groups) {
    json["groups"].push_back({{"name", group.name},
                              {"dtype", word(group.dtype)},
                              {"shape", shape_of(group.shape)},
                              {"tensors", group.tensors},
                              {"parameters", group.parameters}});
  }
  return json;
}

std::string narrate(const Checkpoint& model, const Summary& summary) {
  std::string text;
  const auto line = [&](std::string_view label, const std::string& value) {
    text += fmt::format("{:<14}{}\n", label, printable(value));
  };
  line("model", model.path());
  if (!summary.architecture.empty()) line("architecture", summary.architecture);
  line("files",
       fmt::format("{}, {}, {}", model.file_count(),
                   model.pickled() ? "PyTorch .bin" : "safetensors", show_bytes(summary.bytes)));
  line("parameters", fmt::format("{} in {}", show_count(summary.parameters),
                                 show_count(summary.tensors, "tensor")));
  line("layers", show_count(summary.layers));
  std::string kinds;
  for (const auto& [dtype, count] : summary.dtypes) {
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", show_count(count), word(dtype));
  }
  line("dtypes", kinds);
  if (summary.tokens) line("tokens", show_count(*summary.tokens));
  if (summary.vocabulary) line("vocab_size", show_count(*summary.vocabulary));
  text += fmt::format("\n{:>8}  {:>16}  {:<10} {:<16} {}\n", "tensors", "parameters", "dtype",
                      "shape", "name");
  for (const Group& group : summary.groups) {
    text += fmt::format("{:>8}  {:>16}  {:<10} {:<16} {}\n", show_count(group.tensors),
                        show_count(group.parameters), word(group.dtype), group.shape.text(),
                        printable(group.name));
  }
  return text;
}

// Moments are combined piece by piece (Chan, Golub, LeVeque 1979), so that neither a large mean nor
// many elements cost digits. Only finite elements enter min, max, mean and deviation.
struct Statistics {
  std::uint64_t elements = 0, finite = 0, zeros = 0, nan = 0, infinite = 0;
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  double mean = 0, spread = 0;  // spread: sum of squared distances from the mean

  void add(std::span<const double> values) {
    std::uint64_t count = 0;
    double sum = 0;
    for (const double x : values) {
      if (std::isnan(x)) {
        ++nan;
      } else if (std::isinf(x)) {
        ++infinite;
      } else {
        ++count;
        sum += x;
        zeros += x == 0 ? 1 : 0;
        low = std::min(low, x);
        high = std::max(high, x);
      }
    }
    elements += values.size();
    if (count == 0) return;
    const double here = sum / static_cast<double>(count);
    double square = 0;
    for (const double x : values) {
      if (std::isfinite(x)) square += (x - here) * (x - here);
    }
    const double total = static_cast<double>(finite + count);
    const double step = here - mean;
    spread +=
        square + step * step * static_cast<double>(finite) * static_cast<double>(count) / total;
    mean += step * static_cast<double>(count) / total;
    finite += count;
  }
  [[nodiscard]] double deviation() const {
    return finite > 0 ? std::sqrt(spread / static_cast<double>(finite)) : 0;
  }
};

const Entry& find(const Checkpoint& model, const std::string& name) {
  if (const Entry* entry = model.find(name)) return *entry;
  std::vector<std::string> names;
  for (const Entry& entry : model.entries()) names.push_back(entry.info.name);
  const std::string meant = suggestion(name, names);
  fail(Code::missing,
       fmt::format("{}: there is no tensor '{}'{}", model.shown(), name,
                   meant.empty()
                       ? fmt::format("; 'ingot inspect {} --names' lists the names", model.shown())
                       : meant));
}

constexpr std::size_t kMostAdapters = 64;

class InspectCommand final : public Command {
 public:
  explicit InspectCommand(CLI::App& program)
      : Command(program, "inspect",
                "Show what a model or adapters hold, or statistics of one tensor") {
    app()
        .add_option("PATH", paths_,
                    "A model or an adapter: its folder, file or name in the Hub cache; several "
                    "adapters are compared")
        ->required()
        ->type_name("PATH");
    app()
        .add_option("--tensor", tensor_,
                    "Read this tensor and show min, max, mean and deviation (default: none)")
        ->type_name("TENSOR");
    add_root(app(), root_);
    app().add_flag("--names", names_, "Print the names of the tensors, one a line");
    app().add_flag("--json", json_, "Print JSON");
    progress_.emplace(app());
    app().footer(
        "Examples:\n"
        "  ingot inspect ./model\n"
        "  ingot inspect ./model --tensor model.layers.0.mlp.up_proj.weight\n"
        "  ingot inspect ./model --json | jq .parameters\n"
        "  ingot inspect ./style ./facts    norms, ranks, cosines, sign conflicts");
  }

  int run() override {
    const std::unique_ptr<Disk> disk = system_disk();
    // Where each lies: adapters of the Hub cache are known by their files, too.
    for (const std::string& path : paths_) folders_.push_back(locate(*disk, path, root_));
    const bool adapters = is_adapter(*disk, folders_.front());
    if (adapters && tensor_.empty() && !names_) return compare(*disk);
    if (paths_.size() > 1) {
      fail(Code::usage, fmt::format("'{}': several paths are compared where all are adapters; "
                                    "ingot diff compares two models",
                                    paths_[1]));
    }
    const Checkpoint model = open_any(*disk, paths_.front(), folders_.front());
    if (names_) {
      std::string text;
      for (const Entry& entry : model.entries()) text += printable(entry.info.name) + '\n';
      print(text);
    } else if (!tensor_.empty()) {
      measure(model, find(model, tensor_));
    } else if (json_) {
      print_json(describe(model, summarize(*disk, model)));
    } else {
      print(narrate(model, summarize(*disk, model)));
    }
    return 0;
  }

 private:
  int compare(Disk& disk) {
    // Every one is held against every other.
    if (paths_.size() > kMostAdapters) {
      fail(Code::usage, fmt::format("{} adapters: at most {} are compared at once",
                                    show_count(paths_.size()), kMostAdapters));
    }
    std::vector<Adapter> adapters;
    for (std::size_t i = 0; i < paths_.size(); ++i) {
      adapters.push_back(open_adapter(disk, folders_[i], paths_[i], {.allow_extra = true}));
    }
    const Console console;
    Meter meter(console, progress_->style(console), Phase::read);
    const Spectra spectra = tool::measure(adapters);
    meter.finish();
    if (json_) {
      print_json(tool::describe(spectra));
    } else {
      print(tool::narrate(spectra));
    }
    return 0;
  }

  void measure(const Checkpoint& model, const Entry& entry) {
    const TensorInfo& info = entry.info;
    if (!has_values(info.dtype)) {
      fail(Code::dtype, fmt::format("{}: tensor '{}' is {}, whose elements are not single values",
                                    model.shown(), info.name, name(info.dtype)));
    }
    Statistics all;
    const Console console;
    Meter meter(console, progress_->style(console), Phase::read);
    Progress progress{Phase::read, 0, entry.info.bytes(), entry.info.name};
    Sweep sweep(model, entry);
    while (sweep.next()) {
      all.add(sweep.values());
      progress.bytes_done += sweep.bytes().size();
      meter.show(progress);
    }
    meter.finish();
    if (json_) {
      Json json{{"tensor", info.name},
                {"dtype", word(info.dtype)},
                {"shape", shape_of(info.shape)},
                {"elements", all.elements},
                {"min", nullptr},
                {"max", nullptr},
                {"mean", nullptr},
                {"std", nullptr},
                {"zeros", all.zeros},
                {"nan", all.nan},
                {"inf", all.infinite}};
      if (all.finite > 0) {
        json["min"] = all.low;
        json["max"] = all.high;
        json["mean"] = all.mean;
        json["std"] = all.deviation();
      }
      print_json(json);
      return;
    }
    std::string text =
        fmt::format("{}  {} {}\n", printable(info.name), word(info.dtype), info.shape.text());
    text += fmt::format("elements  {}\n", show_count(all.elements));
    if (all.finite > 0) {
      text +=
          fmt::format("min       {:.9g}\nmax       {:.9g}\nmean      {:.9g}\nstd       {:.9g}\n",
                      all.low, all.high, all.mean, all.deviation());
    }
    text += fmt::format("zeros     {}\nnan       {}\ninf       {}\n", show_count(all.zeros),
                        show_count(all.nan), show_count(all.infinite));
    print(text);
  }

  std::vector<std::string> paths_, folders_;
  std::string tensor_, root_;
  bool json_ = false, names_ = false;
  std::optional<ProgressOption> progress_;
};

}  // namespace

std::unique_ptr<Command> make_inspect(CLI::App& program) {
  return std::make_unique<InspectCommand>(program);
}

}  // namespace ingot::tool
