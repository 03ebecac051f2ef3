#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "command.hpp"
#include "compare.hpp"
#include "console.hpp"
#include "ingot/error.hpp"
#include "json.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "size.hpp"
#include "sweep.hpp"

namespace ingot::tool {
namespace {

// One name that occurs in either model.
struct Row {
  const Entry* a = nullptr;
  const Entry* b = nullptr;
  Likeness likeness;

  [[nodiscard]] const std::string& name() const {
    return a != nullptr ? a->info.name : b->info.name;
  }
  [[nodiscard]] bool comparable() const {
    return a != nullptr && b != nullptr && a->info.shape == b->info.shape;
  }
  [[nodiscard]] bool equal() const {
    return comparable() && a->info.dtype == b->info.dtype && likeness.differing == 0;
  }
};

std::vector<Row> match(const Checkpoint& a, const Checkpoint& b) {
  std::vector<Row> rows;
  for (const Entry& entry : a.entries()) rows.push_back({&entry, b.find(entry.info.name), {}});
  for (const Entry& entry : b.entries()) {
    if (a.find(entry.info.name) == nullptr) rows.push_back({nullptr, &entry, {}});
  }
  std::sort(rows.begin(), rows.end(),
            [](const Row& x, const Row& y) { return natural_less(x.name(), y.name()); });
  return rows;
}

std::string kind(const Entry& entry) {
  return fmt::format("{} {}", word(entry.info.dtype), entry.info.shape.text());
}

// Why a row cannot be compared element by element, or that its types differ; empty if neither.
std::string structure(const Row& row) {
  if (row.a == nullptr) return "only in B";
  if (row.b == nullptr) return "only in A";
  if (row.a->info.shape == row.b->info.shape && row.a->info.dtype == row.b->info.dtype) return "";
  return fmt::format("A is {}, B is {}", kind(*row.a), kind(*row.b));
}

Json describe(const Likeness& likeness) {
  Json json{{"elements", likeness.elements}, {"differing", likeness.differing}};
  json["max_ulp"] = likeness.ulps > 0 ? Json(likeness.max_ulp) : Json();
  json["mean_ulp"] = likeness.ulps > 0 ? Json(likeness.mean_ulp()) : Json();
  json["max_difference"] = likeness.max_difference;
  json["relative_change"] = likeness.relative();
  json["cosine"] = likeness.cosine();
  json["not_finite"] = likeness.not_finite;
  return json;
}

// Columns of narrate().
std::string header() {
  return fmt::format("{:>12}  {:>10}  {:>9}  {:>10}  {:>12}  tensor\n", "differ", "max ulp",
                     "mean ulp", "change", "cosine");
}

std::string narrate(const Likeness& likeness) {
  const double share = likeness.elements > 0 ? 100 * static_cast<double>(likeness.differing) /
                                                   static_cast<double>(likeness.elements)
                                             : 0;
  std::string text = fmt::format("{:>10.4f} %  ", share);
  text += likeness.ulps > 0 ? fmt::format("{:>10}  {:>9.3g}", likeness.max_ulp, likeness.mean_ulp())
                            : fmt::format("{:>10}  {:>9}", "-", "-");
  text += fmt::format("  {:>10.3g}  {:>12.9f}", likeness.relative(), likeness.cosine());
  if (likeness.not_finite > 0) {
    text += fmt::format("  {} not finite", show_count(likeness.not_finite));
  }
  return text;
}

class DiffCommand final : public Command {
 public:
  explicit DiffCommand(CLI::App& program)
      : Command(program, "diff", "Compare two models or adapters tensor by tensor") {
    app()
        .add_option("A", a_, "A model or an adapter: its folder, file or name in the Hub cache")
        ->required()
        ->type_name("PATH");
    app().add_option("B", b_, "The other")->required()->type_name("PATH");
    app()
        .add_option("--top", top_, "Show the N tensors that changed most (default: all, by name)")
        ->type_name("N")
        ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1'000'000'000}).description(""));
    add_root(app(), root_);
    app().add_flag("-q,--quiet", quiet_, "Print nothing; the exit code shows the result");
    app().add_flag("--json", json_, "Print JSON");
    progress_.emplace(app());
    app().footer(
        "Exit code 0 if every tensor is the same bit for bit, 1 if anything differs.\n"
        "differ: share of the elements that are not equal. An ulp is one step between neighbouring "
        "numbers of the tensor's type. change: ||A - B|| / ||A||.\n"
        "\n"
        "Examples:\n"
        "  ingot diff ./base ./tuned\n"
        "  ingot diff ./base ./tuned --top 10\n"
        "  ingot diff ./style-1 ./style-2\n"
        "  ingot diff out-1 out-2 --quiet && echo same");
  }

  int run() override {
    const Console console(quiet_);
    const std::unique_ptr<Disk> disk = system_disk();
    const Checkpoint a = open_any(*disk, a_, locate(*disk, a_, root_));
    const Checkpoint b = open_any(*disk, b_, locate(*disk, b_, root_));
    std::vector<Row> rows = match(a, b);
    Likeness total;
    Meter meter(console, progress_->style(console), Phase::compare);
    Progress progress;
    progress.phase = Phase::compare;
    for (const Row& row : rows) {
      if (row.comparable()) progress.bytes_total += row.a->info.bytes() + row.b->info.bytes();
    }
    for (Row& row : rows) {
      if (!row.comparable()) continue;
      progress.tensor = row.name();
      Sweep left(a, *row.a);
      Sweep right(b, *row.b);
      while (left.next() && right.next()) {
        row.likeness.add(row.a->info.dtype, left, row.b->info.dtype, right);
        progress.bytes_done += left.bytes().size() + right.bytes().size();
        meter.show(progress);
      }
      total.add(row.likeness);
    }
    meter.finish();
    const bool same =
        std::all_of(rows.begin(), rows.end(), [](const Row& row) { return row.equal(); });
    const std::size_t all = rows.size();
    const std::size_t equal = static_cast<std::size_t>(
        std::count_if(rows.begin(), rows.end(), [](const Row& row) { return row.equal(); }));
    if (top_ > 0) choose(rows);
    if (json_) {
      list(rows, total, same);
    } else if (!quiet_) {
      tell(rows, total, all, equal);
    }
    return same ? 0 : 1;
  }

 private:
  void list(const std::vector<Row>& rows, const Likeness& total, bool same) const {
    Json json{{"a", a_}, {"b", b_}, {"identical", same}, {"total", describe(total)}};
    json["tensors"] = Json::array();
    for (const Row& row : rows) {
      Json entry{{"name", row.name()}, {"identical", row.equal()}};
      if (const std::string text = structure(row); !text.empty()) entry["structure"] = text;
      if (row.comparable()) entry.update(describe(row.likeness));
      json["tensors"].push_back(std::move(entry));
    }
    print_json(json);
  }

  // The rows that changed most: those that cannot be compared, then by their relative change.
  void choose(std::vector<Row>& rows) const {
    std::erase_if(rows, [](const Row& row) { return row.equal(); });
    const auto rank = [](const Row& row) {
      return row.comparable() ? row.likeness.relative() : std::numeric_limits<double>::infinity();
    };
    std::stable_sort(rows.begin(), rows.end(),
                     [&](const Row& x, const Row& y) { return rank(x) > rank(y); });
    if (rows.size() > top_) rows.resize(top_);
  }

  // `all` tensors, `equal` of them the same; rows of these are left out.
  void tell(const std::vector<Row>& rows, const Likeness& total, std::size_t all,
            std::size_t equal) const {
    const bool same = equal == all;
    std::string text = same ? "" : header();
    for (const Row& row : rows) {
      if (row.equal()) continue;
      const std::string note = structure(row);
      if (!note.empty()) text += fmt::format("{}  {}\n", note, printable(row.name()));
      if (row.comparable() && row.likeness.differing > 0) {
        text += fmt::format("{}  {}\n", narrate(row.likeness), printable(row.name()));
      }
    }
    if (!same && total.elements > 0) text += fmt::format("{}  in total\n", narrate(total));
    text +=
        same ? fmt::format("identical: {}, {}\n", show_count(all, "tensor"),
                           show_count(total.elements, "element"))
             : fmt::format("{} of {} tensors are identical\n", show_count(equal), show_count(all));
    print(text);
  }

  std::string a_, b_, root_;
  std::uint64_t top_ = 0;  // 0: all
  bool quiet_ = false, json_ = false;
  std::optional<ProgressOption> progress_;
};

}  // namespace

std::unique_ptr<Command> make_diff(CLI::App& program) {
  return std::make_unique<DiffCommand>(program);
}

}  // namespace ingot::tool
