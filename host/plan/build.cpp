// From a recipe and headers to the whole plan, step by step.
#include <algorithm>
#include <map>
#include <set>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ingot/plan.hpp"
#include "plan/card.hpp"
#include "plan/config.hpp"
#include "plan/draft.hpp"
#include "plan/folder.hpp"
#include "plan/fuse.hpp"
#include "plan/layout.hpp"
#include "plan/problems.hpp"
#include "plan/rules.hpp"
#include "plan/sections.hpp"
#include "plan/settings.hpp"
#include "plan/tensors.hpp"
#include "plan/types.hpp"
#include "plan/values.hpp"
#include "store/recorder.hpp"

namespace ingot {
namespace plan {
namespace {

void check_tokenizer_setting(Draft& draft) {
  const Vocabulary& setting = draft.recipe().vocabulary;
  if (setting.kind != Vocabulary::Kind::unite && !setting.tokens) return;
  draft.problems.error(
      Code::usage,
      fmt::format(
          "{}: tokenizer {} is not supported yet; name 'base' or one of the models as its source",
          draft.place(setting.mark), setting.tokens ? "'tokens'" : "source 'union'"));
}

// The type that most bytes of floating-point output have: what config.json names.
Dtype prevailing(const std::vector<Job>& jobs) {
  std::map<Dtype, std::uint64_t> bytes;
  for (const Job& job : jobs) {
    if (is_float(job.output.dtype)) bytes[job.output.dtype] += job.output.bytes();
  }
  if (bytes.empty()) return Dtype::f32;
  return std::max_element(bytes.begin(), bytes.end(),
                          [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

// The view whose config.json the output's is made from: the donor, or where that has none the first
// other with as many rows of embedding, unless the layers are put together in a new order.
std::optional<std::uint32_t> model_of_config(Draft& draft, const Written& written) {
  if (draft.configs[draft.donor].present()) return draft.donor;
  if (!written.stacks.empty()) return std::nullopt;
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
    if (!draft.configs[v].present() || rows_of(draft, v) != rows_of(draft, draft.donor)) continue;
    draft.problems.warn(Code::missing,
                        fmt::format("the output gets the config.json of {}, because {} has none",
                                    draft.shown(v), draft.shown(draft.donor)));
    return v;
  }
  return std::nullopt;
}

// Warns where configs say different kinds of the layers that a merge of whole models mixes.
void compare_kinds(const Draft& draft, std::uint32_t model, const Written& written) {
  for (std::size_t s = 0; s < draft.names.counts.size(); ++s) {
    const auto& count = draft.names.counts[s];
    const bool sliced =
        std::any_of(written.stacks.begin(), written.stacks.end(), [&](const Restacked& stack) {
          return count && stack.count.object == count->place.object &&
                 stack.count.key == count->place.key;
        });
    if (!count || sliced) continue;
    const auto account = [&](std::uint32_t v) {
      return draft.configs[v].account(count->place, draft.depths[v][s], draft.shown(v));
    };
    const Account own = account(model);
    for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
      if (v == model || !draft.configs[v].present()) continue;
      const std::uint64_t layers = std::min(draft.depths[model][s], draft.depths[v][s]);
      compare_layers(own, account(v), layers, draft.problems);
    }
  }
}

// Where the donor's config.json counts the layers of the text.
Place place_of_text(const Draft& draft) {
  Place text;
  for (const auto& count : draft.names.counts) {
    if (count && count->place.object.find("vision") == std::string::npos) text = count->place;
  }
  return text;
}

// Warns where configs say of the weights that are merged that they mean different things.
void compare_meanings(const Draft& draft, std::uint32_t model) {
  const Place text = place_of_text(draft);
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
    if (v == model || !draft.configs[v].present()) continue;
    compare_values(draft.configs[model], draft.configs[v], text, draft.shown(model), draft.shown(v),
                   draft.problems);
  }
}

std::string edited_config(Draft& draft, std::uint32_t model, const Written& written,
                          std::optional<Dtype> wanted) {
  const Config& config = draft.configs[model];
  Edits edits;
  edits.dtype = word(wanted ? *wanted : prevailing(draft.plan.jobs));
  edits.uniform = wanted.has_value();
  edits.stacks = written.stacks;
  edits.ahead = written.ahead;
  edits.models = draft.configs;
  edits.shown = draft.shown(model);
  edits.donor = model;
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) edits.names.push_back(draft.shown(v));
  edits.allow_mismatch = draft.plan.options.allow_layer_mismatch;
  edits.mismatched = &draft.plan.waived.layers;
  edits.text = place_of_text(draft);
  if (written.rows != written.donor_rows) edits.vocabulary = written.rows;
  edits.old_vocabulary = written.donor_rows.value_or(0);
  // A head of its own is read only by a model that is told so. Where the config is silent, the
  // architecture's default fits the donor. A model without head was tied before.
  const bool apart = draft.views[model].untied.value_or(
      written.head && config.tied().value_or(!written.donor_head));
  // T5 and its kin read from the flag whether they scale their outputs.
  if (apart && !means_more(draft.names.ties.tying)) edits.tied = false;
  return config.edited(edits, draft.problems);
}

void write_companions(Disk& disk, Draft& draft, const Rules& rules, const Written& written,
                      std::optional<Dtype> wanted) {
  Plan& plan = draft.plan;
  const std::string tokenizer = tokenizer_folder(disk, draft);
  plan.companions = donated(disk, draft, tokenizer);
  attribute(draft, tokenizer, plan.companions);
  compare_settings(disk, draft, tokenizer);
  if (const auto model = model_of_config(draft, written)) {
    compare_kinds(draft, *model, written);
    compare_meanings(draft, *model);
    plan.companions.push_back({"config.json",
                               {},
                               edited_config(draft, *model, written, wanted),
                               plan.models[draft.views[*model].model].ref.text});
  }
  note_code(disk, plan, draft.problems);
  const std::string index = index_of(plan.jobs, plan.shards);
  if (!index.empty()) plan.companions.push_back({"model.safetensors.index.json", {}, index, {}});
  if (plan.options.model_card) {
    plan.companions.push_back(
        {"README.md", {}, model_card(disk, plan, rules.method(), draft.problems), {}});
  }
  plan.companions.push_back({"recipe.yml", {}, plan.recipe.text, {}});
  std::sort(plan.companions.begin(), plan.companions.end(),
            [](const Companion& a, const Companion& b) { return a.name < b.name; });
}

// float64 tensors are copied where all models agree on them, which only the data tell. Where they
// are most of the output, the models are float64 models, and a merge of them would stop.
void check_doubles(Draft& draft) {
  std::uint64_t copied = 0, all = 0;
  const Job* first = nullptr;
  for (const Job& job : draft.plan.jobs) {
    all += job.output.bytes();
    if (job.action != Action::copy || job.output.dtype != Dtype::f64 || job.operands.size() < 2)
      continue;
    copied += job.output.bytes();
    if (first == nullptr) first = &job;
  }
  if (first == nullptr) return;
  if (2 * copied > all) {
    draft.problems.error(
        Code::dtype,
        fmt::format("{}: the models are stored in float64, and ingot computes in float32; set "
                    "dtype: float32 (or --dtype float32) to narrow them",
                    draft.recipe().file));
  } else {
    draft.problems.warn(
        Code::dtype, fmt::format("{} and other float64 tensors are copied: the merge stops if the "
                                 "models differ in them, and dtype: float32 merges them",
                                 first->output.name));
  }
}

// Types that differ have float32 in common, which is twice as large.
void note_widened(Draft& draft, std::optional<Dtype> wanted) {
  if (wanted) return;
  std::uint64_t count = 0;
  const Job* first = nullptr;
  const auto stored = [&](const Operand& operand) {
    return draft.plan.models[operand.model].checkpoint.entries()[operand.entry].info.dtype;
  };
  for (const Job& job : draft.plan.jobs) {
    const bool widened =
        job.action == Action::merge && job.output.dtype == Dtype::f32 && job.operands.size() > 1 &&
        std::all_of(job.operands.begin(), job.operands.end(), [&](const Operand& operand) {
          return is_float(stored(operand)) && bits(stored(operand)) < 32;
        });
    if (!widened) continue;
    ++count;
    if (first == nullptr) first = &job;
  }
  if (first == nullptr) return;
  std::set<std::string_view> types;
  for (const Operand& operand : first->operands) types.insert(word(stored(operand)));
  draft.problems.warn(
      Code::dtype,
      fmt::format("{}: the models are stored in {}, and no dtype is given: {} tensors become "
                  "float32, twice the size; set dtype: {} for a smaller output",
                  draft.recipe().file, fmt::join(types, " and "), count,
                  word(stored(first->operands.front()))));
}

// Ids of special tokens that a cut vocabulary has no row for.
void collect_ids(const nlohmann::json& json, std::uint64_t rows, const std::string& path,
                 std::vector<std::string>& beyond) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      collect_ids(value, rows, path.empty() ? key : path + "." + key, beyond);
    }
    return;
  }
  if (!path.ends_with("_token_id") && !path.ends_with("_token_ids")) return;
  const auto check = [&](const nlohmann::json& id) {
    if (id.is_number_integer() && id.is_number_unsigned() && id.get<std::uint64_t>() >= rows) {
      beyond.push_back(fmt::format("{} {}", path, id.get<std::uint64_t>()));
    }
  };
  if (!json.is_array()) return check(json);
  for (const nlohmann::json& id : json) check(id);
}

void note_lost_ids(Disk& disk, Draft& draft, std::optional<std::uint64_t> height) {
  if (!draft.plan.waived.truncated || !height) return;
  const std::uint64_t rows = *height;
  for (const Companion& companion : draft.plan.companions) {
    if (companion.name != "config.json" && companion.name != "generation_config.json") continue;
    const std::string text =
        companion.from.empty() ? companion.text : read_text(disk, companion.from);
    std::vector<std::string> beyond;
    try {
      check_json(text, companion.name);
      collect_ids(nlohmann::json::parse(text, nullptr, false), rows, "", beyond);
    } catch (const Error&) {  // copied as it is, and read by nobody here
      continue;
    }
    if (beyond.empty()) continue;
    draft.problems.warn(
        Code::shape, fmt::format("{}: {} {} beyond the {} rows that --unsafe-truncate-embeddings "
                                 "leaves: the model cannot read such a token; "
                                 "tokenizer_source: base keeps them",
                                 companion.name, fmt::join(beyond, ", "),
                                 beyond.size() == 1 ? "is" : "are", rows));
  }
}

// Stops if the later checks would only repeat problems that were already found.
void run(Disk& disk, Draft& draft, Rules& rules, bool whole) {
  const std::optional<Dtype> wanted =
      wanted_dtype(draft.recipe(), draft.plan.options, draft.problems);
  check_tokenizer_setting(draft);
  const bool opened = open_models(disk, draft);
  if (!rules.usable() || !whole) return;
  if (!opened) return rules.require();
  const std::vector<Part> parts = make_parts(draft, rules);
  const Written written = write_tensors(disk, draft, rules, wanted, parts);
  Plan& plan = draft.plan;
  if (plan.jobs.empty() && !draft.problems.fatal()) {
    draft.problems.error(Code::usage,
                         fmt::format("{}: the output would have no tensors", plan.recipe.file));
  }
  check_doubles(draft);
  note_widened(draft, wanted);
  if (draft.problems.fatal()) return rules.require();
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) draft.rows.push_back(rows_of(draft, v));
  // As large as the plan itself, and done with.
  for (View& view : draft.views) std::vector<Item>().swap(view.items);
  for (const Listing& listing : draft.names.listings) draft.depths.push_back(listing.counts);
  std::vector<Listing>().swap(draft.names.listings);
  plan.shards = lay_out(plan.jobs, plan.options.shard_bytes);
  for (const Shard& shard : plan.shards) plan.bytes_out += shard.header.size() + shard.data_bytes;
  write_companions(disk, draft, rules, written, wanted);
  note_lost_ids(disk, draft, written.rows);
}

}  // namespace
}  // namespace plan

namespace {

Plan build_from(Disk& disk, Recipe recipe, PlanOptions options, plan::Measuring* measuring) {
  Plan result;
  result.recipe = std::move(recipe);
  result.options = std::move(options);
  plan::Problems problems;
  for (const Remark& remark : result.recipe.remarks) {
    if (remark.fatal) {
      problems.error(Code::usage, remark.text);
    } else {
      problems.warn(Code::usage, remark.text);
    }
  }
  const bool whole = !problems.fatal();  // what is missing would be missed again
  if (result.options.fast_product &&
      (result.recipe.kind != Recipe::Kind::models || result.recipe.method != "passthrough")) {
    problems.error(
        Code::usage,
        fmt::format(
            "{}: --fast-product works only with passthrough, as in `ingot bake`: its sums depend "
            "on the library and the machine, and other methods make choices from such sums",
            result.recipe.file));
  }
  if (result.recipe.kind != Recipe::Kind::models) {
    try {
      (result.recipe.kind == Recipe::Kind::adapters ? plan::fuse : plan::extract)(
          disk, result, problems, whole, measuring);
    } catch (const Error& e) {
      problems.error(e.code(), e.what());
    }
    result.problems = problems.finish();
    return result;
  }
  plan::Rules rules(result.recipe, result.options, problems);
  plan::Draft draft{result, problems, {}, {}, {}, {}, 0, {}, {}, {}, {}};
  try {
    plan::run(disk, draft, rules, whole);
  } catch (const Error& e) {
    problems.error(e.code(), e.what());
  }
  result.problems = problems.finish();
  for (const std::string& name : rules.waived()) result.recipe.waived.push_back(name);
  return result;
}

Plan recorded(Disk& disk, Recipe recipe, PlanOptions options, plan::Measuring* measuring) {
  Recorder recorder(disk);
  Plan plan = build_from(recorder, std::move(recipe), std::move(options), measuring);
  plan.read = recorder.opened();
  return plan;
}

}  // namespace

Plan build(Disk& disk, Recipe recipe, PlanOptions options) {
  return recorded(disk, std::move(recipe), std::move(options), nullptr);
}

Plan plan::build(Disk& disk, Recipe recipe, PlanOptions options, Measuring& measuring) {
  return recorded(disk, std::move(recipe), std::move(options), &measuring);
}

bool Plan::sound() const noexcept {
  return std::none_of(problems.begin(), problems.end(), [](const Problem& p) { return p.fatal; });
}

std::vector<Joint*> Plan::joints() const {
  std::vector<Joint*> all;
  std::unordered_set<Joint*> known;  // as many as an adapter has modules
  for (const Job& job : jobs) {
    for (const Operand& operand : job.operands) {
      Joint* const joint = operand.derived ? operand.derived->joint() : nullptr;
      if (joint != nullptr && known.insert(joint).second) all.push_back(joint);
    }
  }
  return all;
}

}  // namespace ingot
