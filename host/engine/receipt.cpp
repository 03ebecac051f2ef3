#include "engine/receipt.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "ingot/methods.hpp"
#include "ingot/text.hpp"
#include "ingot/version.hpp"
#include "plan/problems.hpp"
#include "plan/rules.hpp"
#include "plan/types.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

// A million tensors of some twenty fields each, and four sources.
constexpr JsonBounds kBounds{128, 100'000'000};

Digest digest_of(const std::string& text) {
  return hash_block(std::as_bytes(std::span(text.data(), text.size())));
}

// Text that is handed on at once.
constexpr std::size_t kPiece = std::size_t{1} << 20;

// Exact and the same on every machine: C's hexadecimal notation.
template <class T>
std::string hex(T x) {
  return fmt::format("{:a}", x);
}

// The facts of a tensor as its entry shows them: under "measured" of the entry and of its sources.
class Showing final : public math::Teller {
 public:
  Showing(Json& entry, std::size_t skip) : entry_(entry), skip_(skip) {}

  bool number(const char* name, int source, int place, double& value) override {
    Json& at = of(source)[name];
    if (place < 0) {
      at = hex(value);
      return true;
    }
    if (at.is_null()) at = Json::array();
    at.push_back(hex(value));
    return true;
  }
  bool key(const char* name, int source, std::int32_t& key) override {
    of(source)[name] = hex(math::from_bits(static_cast<std::uint32_t>(key)));
    return true;
  }
  bool count(const char* name, int source, std::uint64_t& value) override {
    of(source)[name] = value;
    return true;
  }

 private:
  [[nodiscard]] Json& of(int source) {
    Json& whose = source < 0 ? entry_ : entry_["sources"][static_cast<std::size_t>(source) + skip_];
    // An object is made first: a null that turns into one is left invalid if that allocation fails.
    if (!whose.contains("measured")) whose["measured"] = Json::object();
    return whose["measured"];
  }

  Json& entry_;
  std::size_t skip_;
};

// Doubles as the shortest decimal that reads back the same; NaN (a parameter that is not set) as
// null.
Json number(double x) { return std::isnan(x) ? Json(nullptr) : Json(x); }

// Names that are not UTF-8 are shown with replacement characters instead of failing the run.
std::string print(const Json& json) {
  return json.dump(1, ' ', false, Json::error_handler_t::replace);
}

// A list's elements as print() writes them one level deep: strings hold no line feeds, so every
// line feed is followed by indentation.
void print_list(std::size_t count, const std::function<Json(std::size_t)>& element,
                const std::function<void(std::string_view)>& sink) {
  if (count == 0) return sink("[]");
  std::string text = "[";
  for (std::size_t i = 0; i < count; ++i) {
    text += i == 0 ? "\n  " : ",\n  ";
    for (const char c : print(element(i))) {
      text += c;
      if (c == '\n') text += "  ";
    }
    if (text.size() < kPiece) continue;
    sink(text);
    text.clear();
  }
  sink(text + "\n ]");
}

Json describe(const Count& count) { return {{"count", count.count}, {"first", count.first}}; }

bool has_task_vectors(const Job& job) {
  return job.action == Action::merge &&
         math::method(job.work.rule.method).card.base == math::Base::origin;
}

}  // namespace

Json describe_plan(const Plan& plan, const Job& job) {
  Json entry = Json::object();
  entry["name"] = job.output.name;
  entry["shard"] = plan.shards[job.shard].file;
  entry["dtype"] = std::string(name(job.output.dtype));
  Json shape = Json::array();
  for (int i = 0; i < job.output.shape.rank(); ++i) shape.push_back(job.output.shape[i]);
  entry["shape"] = std::move(shape);
  const bool merge = job.action == Action::merge;
  entry["rule"] = merge ? math::method(job.work.rule.method).card.name : "copy";
  if (!job.reason.empty()) entry["reason"] = job.reason;
  const math::Rule& rule = job.work.rule;
  if (merge) {
    const math::Method& method = math::method(rule.method);
    Json globals = Json::object();
    int at = 0;
    for (const math::Parameter& p : method.parameters) {
      if (p.scope == math::Scope::global) globals[p.name] = number(rule.globals[at++]);
    }
    if (!globals.empty()) entry["parameters"] = std::move(globals);
  }
  Json sources = Json::array();
  for (std::size_t i = 0; i < job.operands.size(); ++i) {
    const Operand& operand = job.operands[i];
    const Model& model = plan.models[operand.model];
    const Entry& stored = model.checkpoint.entries()[operand.entry];
    const TensorInfo& info = stored.info;
    Json source = Json::object();
    if (!operand.derived || operand.derived->own()) {
      source["model"] = model.ref.text;
      source["tensor"] = info.name;
      source["dtype"] = std::string(name(info.dtype));
      if (!stored.origin.empty()) source["arranged"] = stored.origin;
    }
    if (operand.rows) source["rows"] = "rearranged to the output's vocabulary";
    if (operand.derived) {
      source["derived"] = Json::parse(operand.derived->describe());
      Json ingredients = Json::array();
      for (const Ingredient& part : operand.derived->ingredients()) {
        const Model& from = plan.models[part.model];
        ingredients.push_back({{"model", from.ref.text},
                               {"tensor", from.checkpoint.entries()[part.entry].info.name}});
      }
      source["ingredients"] = std::move(ingredients);
    }
    if (merge && rule.base && i == 0) {
      source["role"] = "base";
    } else if (merge) {
      const math::Method& method = math::method(rule.method);
      const std::size_t s = i - (rule.base ? 1 : 0);
      Json locals = Json::object();
      int at = 0;
      for (const math::Parameter& p : method.parameters) {
        if (p.scope != math::Scope::global) locals[p.name] = number(rule.locals[s][at++]);
      }
      if (!locals.empty()) source["parameters"] = std::move(locals);
    }
    sources.push_back(std::move(source));
  }
  entry["sources"] = std::move(sources);
  return entry;
}

Json describe(const Plan& plan, const Job& job, const Outcome& outcome) {
  Json entry = describe_plan(plan, job);
  const math::Rule& rule = job.work.rule;
  const bool merge = job.action == Action::merge;
  const bool vectors = has_task_vectors(job);
  for (std::size_t i = 0; i < job.operands.size(); ++i) {
    Json& source = entry["sources"][i];
    const auto& derived = job.operands[i].derived;
    if (!derived || derived->own()) source["hash"] = outcome.inputs[i].text();
    if (i < outcome.nonfinite.size() && outcome.nonfinite[i].count > 0)
      source["nonfinite"] = describe(outcome.nonfinite[i]);
    for (std::size_t k = 0; derived && k < outcome.ingredients[i].size(); ++k) {
      source["ingredients"][k]["hash"] = outcome.ingredients[i][k].text();
      if (i >= outcome.ingredients_nonfinite.size()) continue;
      const Count& nonfinite = outcome.ingredients_nonfinite[i][k];
      if (nonfinite.count > 0) source["ingredients"][k]["nonfinite"] = describe(nonfinite);
    }
    if (derived && !outcome.found[i].empty()) source["found"] = Json::parse(outcome.found[i]);
    if (!vectors || (rule.base && i == 0)) continue;
    const std::size_t s = i - (rule.base ? 1 : 0);
    source["kept"] = outcome.tally.kept[s];
    source["dropped"] = rule.elements - outcome.tally.kept[s];
  }
  if (merge) {
    math::Facts facts = outcome.facts;
    Showing showing(entry, rule.base ? 1 : 0);
    (void)math::method(rule.method).tell(rule, facts, showing);
  }
  if (vectors) {
    entry["conflicts"] = outcome.tally.conflicts;
    entry["largest_change"] = hex(math::from_bits(outcome.tally.change));
  }
  const Findings& findings = outcome.findings;
  if (findings.nonfinite.count > 0) {
    entry["nonfinite"] = describe(findings.nonfinite);
    entry["nonfinite"]["made"] = findings.made.count;
  }
  if (findings.saturated.count > 0) entry["saturated"] = describe(findings.saturated);
  entry["hash"] = outcome.output.text();
  return entry;
}

namespace {

// A waiver as the receipt names it, and whether the plan or the run had use for it.
struct Waiver {
  const char* name;
  bool PlanOptions::*flag;
  bool (*used)(const Plan& plan, const Lines& lines);
};

constexpr Waiver kWaivers[] = {
    {"truncate_embeddings", &PlanOptions::truncate_embeddings,
     [](const Plan& plan, const Lines&) { return plan.waived.truncated; }},
    {"allow_unknown_keys", &PlanOptions::allow_unknown_keys,
     [](const Plan& plan, const Lines&) {
       return plan.waived.unknown_keys || !plan.recipe.waived.empty();
     }},
    {"ignore_extra_weights", &PlanOptions::ignore_extra_weights,
     [](const Plan& plan, const Lines&) { return plan.waived.extra_weights; }},
    {"allow_mixed", &PlanOptions::allow_mixed,
     [](const Plan& plan, const Lines&) { return plan.waived.mixed; }},
    {"allow_layer_mismatch", &PlanOptions::allow_layer_mismatch,
     [](const Plan& plan, const Lines&) { return plan.waived.layers; }},
    {"allow_unchanged", &PlanOptions::allow_unchanged,
     [](const Plan& plan, const Lines& lines) { return unchanged(plan, lines) >= 0; }},
    {"allow_nonfinite", &PlanOptions::allow_nonfinite,
     [](const Plan& plan, const Lines& lines) {
       for (std::size_t i = 0; i < plan.jobs.size(); ++i) {
         const Json entry = Json::parse(lines(i));
         if (entry.contains("nonfinite") && entry.at("nonfinite").value("made", 0U) > 0) {
           return true;
         }
       }
       return false;
     }},
};

// The largest shard size that gives these shards; 0: there is one.
std::uint64_t largest_shard(const Plan& plan) {
  std::vector<const std::string*> first(plan.shards.size());  // by shard: its first name
  std::vector<std::uint64_t> bytes(plan.shards.size());
  for (const Job& job : plan.jobs) {
    const std::string*& name = first[job.shard];
    if (name != nullptr && !natural_less(job.output.name, *name)) continue;
    name = &job.output.name;
    bytes[job.shard] = job.output.bytes();
  }
  std::uint64_t least = 0;
  for (std::size_t s = 0; s + 1 < plan.shards.size(); ++s) {
    const std::uint64_t most = plan.shards[s].data_bytes + bytes[s + 1] - 1;
    least = s == 0 ? most : std::min(least, most);
  }
  return least;
}

// The warnings of the plan, without the recipe's file name and the models' folders.
std::string say(const Plan& plan, std::string text) {
  const std::string& file = plan.recipe.file;
  if (text.starts_with(file + ":")) text.replace(0, file.size(), "recipe.yml");
  for (const Model& model : plan.models) {
    if (model.folder == model.ref.text) continue;
    const std::string folder = model.folder + "/";
    for (std::size_t at = 0; (at = text.find(folder, at)) != std::string::npos;) {
      text.replace(at, model.folder.size(), model.ref.text);
      at += model.ref.text.size() + 1;
    }
  }
  return text;
}

// The commit of a model that the Hub's cache holds, or empty.
std::string commit_of(const Model& model) {
  std::string repository = "/models--" + model.ref.path;
  if (const auto slash = repository.find('/', 1); slash != std::string::npos) {
    repository.replace(slash, 1, "--");
  }
  repository += "/snapshots/";
  const std::size_t at = model.folder.rfind(repository);
  if (at == std::string::npos) return {};
  const std::string rest = model.folder.substr(at + repository.size());
  return rest.substr(0, rest.find('/'));
}

Json describe_models(const Plan& plan) {
  std::vector<std::uint64_t> unused(plan.models.size());
  for (const Unused& u : plan.unused) ++unused[u.model];
  Json models = Json::array();
  for (std::size_t m = 0; m < plan.models.size(); ++m) {
    const Model& model = plan.models[m];
    Json entry{{"model", model.ref.text}};
    if (const std::string commit = commit_of(model); !commit.empty()) entry["commit"] = commit;
    entry["format"] = model.checkpoint.pickled() ? "pytorch" : "safetensors";
    entry["tensors"] = model.checkpoint.entries().size();
    entry["unused"] = unused[m];
    models.push_back(std::move(entry));
  }
  return models;
}

Json describe(const Plan& plan, const Unused& u) {
  return {{"model", plan.models[u.model].ref.text},
          {"tensor", plan.models[u.model].checkpoint.entries()[u.entry].info.name},
          {"reason", u.reason}};
}

Json describe_files(const Plan& plan, const std::vector<std::pair<std::string, Digest>>& files) {
  std::map<std::string, const Companion*> companions;
  for (const Companion& companion : plan.companions) companions[companion.name] = &companion;
  Json list = Json::array();
  for (const auto& [file, digest] : files) {
    const auto at = companions.find(file);
    const Companion* companion = at == companions.end() ? nullptr : at->second;
    const bool own = companion == nullptr || companion->model.empty();
    Json entry{{"file", file},
               {"origin", own                       ? "written"
                          : companion->from.empty() ? "edited"
                                                    : "copied"}};
    if (!own) entry["model"] = companion->model;
    entry["hash"] = digest.text();
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace

std::string printed(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

PlanOptions effective(const Plan& plan, const Lines& lines) {
  PlanOptions o = plan.options;
  const PlanOptions standard;
  if (!plan::draws(plan)) o.seed = standard.seed;
  o.shard_bytes = plan.shards.size() > 1 ? largest_shard(plan) : standard.shard_bytes;
  o.dtype = plan::wanted_by_option(plan);
  const bool narrow = std::any_of(plan.jobs.begin(), plan.jobs.end(), [](const Job& job) {
    return job.action == Action::merge &&
           (job.output.dtype == Dtype::f8_e4m3 || job.output.dtype == Dtype::f8_e5m2);
  });
  // Where no output is NaN or infinite, nothing overflowed.
  const auto overflows = [&] {
    for (std::size_t i = 0; i < plan.jobs.size(); ++i) {
      if (Json::parse(lines(i)).contains("nonfinite")) return true;
    }
    return false;
  };
  if (!narrow || (o.overflow != standard.overflow && !overflows())) o.overflow = standard.overflow;
  o.copy_tokenizer = o.copy_tokenizer || !plan.waived.tokenizer;
  if (std::none_of(plan.models.begin(), plan.models.end(),
                   [](const Model& model) { return model.checkpoint.chosen(); })) {
    o.prefer = standard.prefer;
  }
  o.fast_product =
      o.fast_product && std::any_of(plan.jobs.begin(), plan.jobs.end(), [](const Job& job) {
        return std::any_of(job.operands.begin(), job.operands.end(), [](const Operand& operand) {
          return operand.derived && operand.derived->products();
        });
      });
  for (const Waiver& waiver : kWaivers) {
    o.*waiver.flag = o.*waiver.flag && waiver.used(plan, lines);
  }
  return o;
}

Json describe_options(const PlanOptions& o) {
  const PlanOptions standard;
  Json json = Json::object();
  if (o.seed != standard.seed) json["seed"] = o.seed;
  if (o.shard_bytes != standard.shard_bytes) json["shard_bytes"] = o.shard_bytes;
  if (!o.dtype.empty()) json["dtype"] = o.dtype;
  if (o.overflow != standard.overflow) json["fp8_overflow"] = "propagate";
  if (o.fast_product) json["fast_product"] = true;
  if (!o.copy_tokenizer) json["copy_tokenizer"] = false;
  if (!o.model_card) json["model_card"] = false;
  if (o.model_card && !o.title.empty()) json["title"] = o.title;
  if (o.prefer != standard.prefer) json["prefer"] = o.prefer == Prefer::file ? "file" : "index";
  Json waivers = Json::array();
  for (const Waiver& waiver : kWaivers) {
    if (o.*waiver.flag) waivers.push_back(waiver.name);
  }
  if (!waivers.empty()) json["waivers"] = std::move(waivers);
  return json;
}

PlanOptions parse_options(const Json& json, const std::string& path) {
  PlanOptions o;
  try {
    o.seed = json.value("seed", o.seed);
    o.shard_bytes = json.value("shard_bytes", o.shard_bytes);
    o.dtype = json.value("dtype", o.dtype);
    if (json.contains("fp8_overflow")) o.overflow = math::Overflow::propagate;
    o.fast_product = json.value("fast_product", o.fast_product);
    o.copy_tokenizer = json.value("copy_tokenizer", o.copy_tokenizer);
    o.model_card = json.value("model_card", o.model_card);
    o.title = json.value("title", o.title);
    if (json.contains("prefer")) {
      o.prefer = json.at("prefer") == "file" ? Prefer::file : Prefer::index;
    }
    for (const Waiver& waiver : kWaivers) {
      const Json none = Json::array();
      const Json& told = json.contains("waivers") ? json.at("waivers") : none;
      o.*waiver.flag = std::find(told.begin(), told.end(), waiver.name) != told.end();
    }
  } catch (const nlohmann::json::exception&) {  // of the wrong type
    o = {};
  }
  if (const Json expected = describe_options(o); expected != json) {
    fail(Code::format,
         fmt::format("{}: the receipt has options that ingot does not write: {}", path,
                     shorten(json.dump(-1, ' ', false, Json::error_handler_t::replace), 300)));
  }
  return o;
}

Json describe_unused(const Plan& plan) {
  Json left = Json::array();
  for (const Unused& u : plan.unused) left.push_back(describe(plan, u));
  return left;
}

std::string print_line(const Json& entry) {
  std::string line = entry.dump(-1, ' ', false, Json::error_handler_t::replace);
  line.shrink_to_fit();
  return line;
}

Json describe_frame(const Plan& plan, const Lines& lines,
                    const std::vector<std::pair<std::string, Digest>>& files) {
  Json json = Json::object();
  json["format"] = kReceiptFormat;
  json["ingot"] = version();
  json["recipe"] = {{"method", plan.recipe.method}, {"hash", digest_of(plan.recipe.text).text()}};
  if (!plan.recipe.waived.empty()) json["recipe"]["unknown_keys"] = plan.recipe.waived;
  json["options"] = describe_options(effective(plan, lines));
  json["architecture"] = plan.architecture;
  json["models"] = describe_models(plan);
  json["tensors"] = Json::array();
  json["unused"] = Json::array();
  json["files"] = describe_files(plan, files);
  if (!plan.code.empty()) json["remote_code"] = plan.code;
  Json warnings = Json::array();
  for (const Problem& p : plan.problems) {
    if (!p.fatal) warnings.push_back(say(plan, p.text));
  }
  json["warnings"] = std::move(warnings);
  return json;
}

void print_receipt(const Plan& plan, const Lines& lines,
                   const std::vector<std::pair<std::string, Digest>>& files,
                   const std::function<void(std::string_view)>& sink) {
  Hasher hash;
  const auto put = [&](std::string_view piece) {
    hash.add(piece);
    sink(piece);
  };
  // Only a key of the first level follows a line feed and one space.
  const std::string text = print(describe_frame(plan, lines, files));
  std::size_t at = 0;
  const auto list = [&](std::string_view key, std::size_t count, const auto& element) {
    const std::string head = fmt::format("\n \"{}\": ", key);
    const std::size_t begin = text.find(head) + head.size();
    put(std::string_view(text).substr(at, begin - at));
    print_list(count, element, put);
    at = begin + std::string_view("[]").size();
  };
  list("tensors", plan.jobs.size(), [&](std::size_t i) { return Json::parse(lines(i)); });
  list("unused", plan.unused.size(), [&](std::size_t i) { return describe(plan, plan.unused[i]); });
  const std::string_view end = "\n}";
  put(std::string_view(text).substr(at, text.size() - end.size() - at));
  hash.add(end);  // the object without its hash
  sink(fmt::format(",\n \"hash\": \"{}\"\n}}\n", hash.digest().text()));
}

Json parse_receipt(const std::string& text, const std::string& path) {
  Json json = json_of(text, path, kBounds);
  if (!json.is_object() || !json.contains("format")) {
    fail(Code::format, fmt::format("{}: not a receipt of ingot (expected a JSON object with "
                                   "\"format\": \"{}\")",
                                   path, kReceiptFormat));
  }
  const auto shown = [](const Json& value) {
    return shorten(value.dump(-1, ' ', false, Json::error_handler_t::replace), 100);
  };
  if (json["format"] != kReceiptFormat) {
    fail(Code::format,
         fmt::format("{}: receipt format {} found, {} expected: verify with the ingot "
                     "that wrote it",
                     path, shown(json["format"]), kReceiptFormat));
  }
  if (!json.contains("ingot") || json["ingot"] != version()) {
    fail(Code::format,
         fmt::format("{}: written by ingot {}, and this is {}: verify with the ingot "
                     "that wrote it",
                     path, json.contains("ingot") ? shown(json["ingot"]) : "(none)", version()));
  }
  const auto at = json.find("hash");
  if (at == json.end() || !at->is_string()) {
    fail(Code::format,
         fmt::format("{}: the receipt has no self-hash: it was edited or cut off", path));
  }
  if (print(json) + "\n" != text) {
    fail(Code::format,
         fmt::format("{}: the receipt was edited: its keys, numbers or spaces are not as ingot "
                     "prints them",
                     path));
  }
  const auto told = at->get<std::string>();
  json.erase(at);
  if (const auto found = digest_of(print(json)).text(); found != told) {
    fail(Code::format,
         fmt::format("{}: the receipt was edited or damaged: its self-hash is {}, its "
                     "contents give {}",
                     path, shorten(told, 100), found));
  }
  return json;
}

int unchanged(const Plan& plan, const Lines& lines) {
  const bool alone = plan.models.size() == 1;
  const bool meant =
      plan.recipe.method == "passthrough" || plan.recipe.kind != Recipe::Kind::models;
  if (plan.jobs.empty() || (alone && meant)) return -1;
  for (std::size_t m = 0; m < plan.models.size(); ++m) {
    const std::string& ref = plan.models[m].ref.text;
    bool all = plan.models[m].checkpoint.entries().size() == plan.jobs.size();
    for (std::size_t e = 0; all && e < plan.jobs.size(); ++e) {
      const Json entry = Json::parse(lines(e));
      bool same = false;
      for (const Json& source : entry.at("sources")) {
        same = same ||
               (source.contains("model") && source.at("model") == ref &&
                source.at("hash") == entry.at("hash") && source.at("dtype") == entry.at("dtype") &&
                source.at("tensor") == entry.at("name"));
      }
      all = same;
    }
    if (all) return static_cast<int>(m);
  }
  return -1;
}

}  // namespace ingot
