#include "engine/receipt.hpp"

#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "ingot/math/methods.hpp"
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

// Exact and the same on every machine: C's hexadecimal notation of an f32.
std::string hex(float x) { return fmt::format("{:a}", x); }

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
         math::method(job.work.rule.method).base == math::Base::origin;
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
  entry["rule"] = merge ? math::method(job.work.rule.method).name : "copy";
  if (!job.reason.empty()) entry["reason"] = job.reason;
  const math::Rule& rule = job.work.rule;
  if (merge) {
    const math::Method& method = math::method(rule.method);
    Json globals = Json::object();
    int at = 0;
    for (int i = 0; i < method.parameter_count; ++i) {
      const math::Parameter& p = method.parameters[i];
      if (p.scope == math::Scope::global) globals[p.name] = number(rule.globals[at++]);
    }
    if (!globals.empty()) entry["parameters"] = std::move(globals);
  }
  Json sources = Json::array();
  for (std::size_t i = 0; i < job.operands.size(); ++i) {
    const Operand& operand = job.operands[i];
    const Model& model = plan.models[operand.model];
    const TensorInfo& info = model.checkpoint.entries()[operand.entry].info;
    Json source = Json::object();
    if (!operand.derived || operand.derived->own()) {
      source["model"] = model.ref.text;
      source["tensor"] = info.name;
      source["dtype"] = std::string(name(info.dtype));
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
      int at = 0;
      for (int p = 0; p < method.parameter_count; ++p) {
        if (method.parameters[p].scope == math::Scope::global) continue;
        source[method.parameters[p].name] = number(rule.locals[s][at++]);
      }
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
    const math::Source& fact = outcome.facts.source[s];
    source["kept"] = outcome.tally.kept[s];
    source["dropped"] = rule.elements - outcome.tally.kept[s];
    if (math::method(rule.method).mask == math::Mask::select && fact.all == 0) {
      source["threshold"] = hex(math::from_bits(fact.threshold & 0x7fffffffu));
      source["cut"] = fact.cut;
    }
    if (outcome.facts.rescaled) source["factor"] = hex(fact.factor);
  }
  if (merge && math::method(rule.method).formula == math::Formula::slerp) {
    entry["coefficients"] =
        Json::array({hex(outcome.facts.scalar[0]), hex(outcome.facts.scalar[1])});
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

Json describe_options(const PlanOptions& o) {
  Json json = Json::object();
  json["seed"] = o.seed;
  json["shard_bytes"] = o.shard_bytes;
  json["dtype"] = o.dtype;
  json["fp8_overflow"] = o.overflow == math::Overflow::saturate ? "saturate" : "propagate";
  if (o.fast_product) json["fast_product"] = true;
  json["copy_tokenizer"] = o.copy_tokenizer;
  json["model_card"] = o.model_card;
  Json waivers = Json::array();
  if (o.truncate_embeddings) waivers.push_back("truncate_embeddings");
  if (o.allow_unknown_keys) waivers.push_back("allow_unknown_keys");
  if (o.allow_mixed) waivers.push_back("allow_mixed");
  if (o.allow_unchanged) waivers.push_back("allow_unchanged");
  if (o.allow_nonfinite) waivers.push_back("allow_nonfinite");
  json["waivers"] = std::move(waivers);
  return json;
}

PlanOptions parse_options(const Json& json) {
  PlanOptions o;
  o.seed = json.at("seed").get<std::uint64_t>();
  o.shard_bytes = json.at("shard_bytes").get<std::uint64_t>();
  o.dtype = json.at("dtype").get<std::string>();
  o.overflow =
      json.at("fp8_overflow") == "saturate" ? math::Overflow::saturate : math::Overflow::propagate;
  o.fast_product = json.value("fast_product", false);
  o.copy_tokenizer = json.at("copy_tokenizer").get<bool>();
  o.model_card = json.at("model_card").get<bool>();
  for (const auto& w : json.at("waivers")) {
    if (w == "truncate_embeddings") o.truncate_embeddings = true;
    if (w == "allow_unknown_keys") o.allow_unknown_keys = true;
    if (w == "allow_mixed") o.allow_mixed = true;
    if (w == "allow_unchanged") o.allow_unchanged = true;
    if (w == "allow_nonfinite") o.allow_nonfinite = true;
  }
  return o;
}

namespace {

Json describe(const Plan& plan, const Unused& u) {
  return {{"model", plan.models[u.model].ref.text},
          {"tensor", plan.models[u.model].checkpoint.entries()[u.entry].info.name},
          {"reason", u.reason}};
}

}  // namespace

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

void print_receipt(const Plan& plan, const Lines& lines,
                   const std::vector<std::pair<std::string, Digest>>& files,
                   const std::function<void(std::string_view)>& sink) {
  Json json = Json::object();
  json["format"] = kReceiptFormat;
  json["recipe"] = {{"method", plan.recipe.method}, {"hash", digest_of(plan.recipe.text).text()}};
  if (!plan.recipe.waived.empty()) json["recipe"]["unknown_keys"] = plan.recipe.waived;
  json["options"] = describe_options(plan.options);
  json["architecture"] = plan.architecture;

  std::vector<std::uint64_t> unused(plan.models.size());
  for (const Unused& u : plan.unused) ++unused[u.model];
  Json models = Json::array();
  for (std::size_t m = 0; m < plan.models.size(); ++m) {
    const auto& checkpoint = plan.models[m].checkpoint;
    models.push_back({{"model", plan.models[m].ref.text},
                      {"format", checkpoint.pickled() ? "pytorch" : "safetensors"},
                      {"tensors", checkpoint.entries().size()},
                      {"unused", unused[m]}});
  }
  json["models"] = std::move(models);
  // As long as the models have tensors: written element by element, below.
  json["tensors"] = Json::array();
  json["unused"] = Json::array();
  Json others = Json::array();
  for (const auto& [file, digest] : files)
    others.push_back({{"file", file}, {"hash", digest.text()}});
  json["files"] = std::move(others);
  Json warnings = Json::array();
  for (const Problem& p : plan.problems) {
    if (!p.fatal) warnings.push_back(p.text);
  }
  json["warnings"] = std::move(warnings);

  Hasher hash;
  const auto put = [&](std::string_view piece) {
    hash.add(piece);
    sink(piece);
  };
  // Only a key of the first level follows a line feed and one space.
  const std::string text = print(json);
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
  if (json["format"] != kReceiptFormat) {
    fail(Code::format,
         fmt::format("{}: receipt format {} found, {} expected: verify with the ingot "
                     "that wrote it",
                     path, json["format"].dump(), kReceiptFormat));
  }
  const auto at = json.find("hash");
  if (at == json.end() || !at->is_string()) {
    fail(Code::format,
         fmt::format("{}: the receipt has no self-hash: it was edited or cut off", path));
  }
  const auto told = at->get<std::string>();
  json.erase(at);
  if (const auto found = digest_of(print(json)).text(); found != told) {
    fail(Code::format,
         fmt::format("{}: the receipt was edited or damaged: its self-hash is {}, its "
                     "contents give {}",
                     path, told, found));
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
      for (const Json& source : entry["sources"]) {
        same = same || (source.contains("model") && source["model"] == ref &&
                        source["hash"] == entry["hash"] && source["dtype"] == entry["dtype"] &&
                        source["tensor"] == entry["name"]);
      }
      all = same;
    }
    if (all) return static_cast<int>(m);
  }
  return -1;
}

}  // namespace ingot
