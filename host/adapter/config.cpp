// adapter_config.json as typed values. What would change numbers and is not understood is refused.
#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <span>

#include <fmt/format.h>

#include "adapter/tree.hpp"
#include "base/clip.hpp"
#include "ingot/adapter.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"

namespace ingot {
namespace adapter {
namespace {

constexpr double kMostRank = 1 << 20;
constexpr double kMostRows = 1e9;
constexpr double kMostLayers = 1e5;

constexpr const char* kBake =
    "bake it with PEFT (merge_and_unload), save the model, and ingot extract makes a LoRA of the "
    "difference";

constexpr const char* kFollows =
    "ingot does not have the formula that gives its change from its files and the base";

// Types whose result cannot be had here, and why.
struct Refusal {
  std::string_view type, reason;
};
constexpr std::array kGenerated{
    Refusal{"PVERA", "its projections come from a PyTorch generator unless they were saved"},
    Refusal{"RANDLORA", "its projections come from a PyTorch generator unless they were saved"},
    Refusal{"HIRA", kFollows},
    Refusal{"SHIRA", kFollows},
    Refusal{"C3A", kFollows},
    Refusal{"DELORA", kFollows},
    Refusal{"GRALORA", kFollows},
    Refusal{"ROAD", kFollows},
    Refusal{"GLORA", kFollows},
    Refusal{"VBLORA", kFollows},
    Refusal{"TINYLORA", "it depends on a decomposition of the base that PEFT makes"},
    Refusal{"OSF", "part of it is a decomposition of the base that PEFT makes when it loads it"},
    Refusal{"BEFT", kFollows},
    Refusal{"PEANUT", kFollows},
    Refusal{"SUPERTUNING", "its positions are chosen from the base unless they were saved"},
    Refusal{"BONE", "PEFT has replaced it by MISS"},
    Refusal{"FOURIERFT", "its positions come from a PyTorch generator"},
    Refusal{"WAVEFT", "its positions come from a PyTorch generator"},
    Refusal{"UNILORA", "its indices come from a NumPy generator"},
    Refusal{"FROD", "part of it is computed from the base when PEFT loads it"},
    Refusal{"PSOFT", "it depends on the signs of singular vectors that are not stored"},
    Refusal{"DEFT", "it depends on the signs of a decomposition that is not stored"},
    Refusal{"ADAMSS", "it depends on clusters that are computed from the base when PEFT loads it"},
};
constexpr std::array kWeightless{
    std::string_view("PROMPT_TUNING"), std::string_view("MULTITASK_PROMPT_TUNING"),
    std::string_view("P_TUNING"),      std::string_view("PREFIX_TUNING"),
    std::string_view("CPT"),           std::string_view("ADAPTION_PROMPT"),
    std::string_view("CARTRIDGE"),     std::string_view("SHADOW"),
    std::string_view("XLORA"),         std::string_view("POLY"),
    std::string_view("LILY"),
};

struct Type {
  std::string_view name;
  Family family;
  std::vector<std::string_view> fields;  // beside the common ones
};

const std::vector<Type>& types() {
  static const std::vector<Type> all = [] {
    using Fields = std::vector<std::string_view>;
    const Fields filters = {"layers_to_transform", "layers_pattern"};
    const auto with = [](Fields a, const Fields& b) {
      a.insert(a.end(), b.begin(), b.end());
      return a;
    };
    const Fields lora = with({"r",
                              "lora_alpha",
                              "lora_dropout",
                              "rank_pattern",
                              "alpha_pattern",
                              "use_rslora",
                              "use_dora",
                              "fan_in_fan_out",
                              "bias",
                              "lora_bias",
                              "init_lora_weights",
                              "loftq_config",
                              "eva_config",
                              "corda_config",
                              "lora_ga_config",
                              "kasa_config",
                              "velora_config",
                              "monteclora_config",
                              "use_bdlora",
                              "lora_B_layout",
                              "use_qalora",
                              "qalora_group_size",
                              "alora_invocation_tokens",
                              "arrow_config",
                              "trainable_token_indices",
                              "target_parameters",
                              "layer_replication",
                              "ensure_weight_tying",
                              "megatron_config",
                              "megatron_core",
                              "enable_lora",
                              "merge_weights"},
                             filters);
    const Fields products = with({"r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout",
                                  "module_dropout", "init_weights", "use_effective_conv2d"},
                                 filters);
    return std::vector<Type>{
        {"LORA", Family::lora, lora},
        {"ADALORA", Family::adalora,
         with(lora, {"target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
                     "orth_reg_weight", "total_step"})},
        {"LOHA", Family::loha, products},
        {"LOKR", Family::lokr,
         with(products, {"decompose_both", "decompose_factor", "rank_dropout_scale"})},
        {"IA3", Family::ia3, {"feedforward_modules", "fan_in_fan_out", "init_ia3_weights"}},
        {"OFT", Family::oft,
         with({"r", "oft_block_size", "module_dropout", "fan_in_fan_out", "bias", "init_weights",
               "coft", "eps", "block_share", "rank_pattern", "alpha_pattern", "use_cayley_neumann",
               "num_cayley_neumann_terms"},
              filters)},
        {"BOFT", Family::boft,
         with({"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout",
               "fan_in_fan_out", "bias", "init_weights"},
              filters)},
        {"VERA", Family::vera,
         with({"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial",
               "fan_in_fan_out", "bias", "init_weights"},
              filters)},
        {"MISS", Family::miss,
         with({"r", "miss_dropout", "mini_r", "init_weights", "bias"}, filters)},
        {"HRA", Family::hra, with({"r", "apply_GS", "init_weights", "bias"}, filters)},
        {"LN_TUNING", Family::none, {}},
        {"TRAINABLE_TOKENS", Family::none, {"token_indices", "init_weights"}},
    };
  }();
  return all;
}

// The fields of every type. `unsloth_fixed` is written by a trainer and means nothing for weights.
constexpr std::array kCommon{
    std::string_view("peft_type"),       std::string_view("peft_version"),
    std::string_view("auto_mapping"),    std::string_view("base_model_name_or_path"),
    std::string_view("revision"),        std::string_view("task_type"),
    std::string_view("inference_mode"),  std::string_view("runtime_config"),
    std::string_view("target_modules"),  std::string_view("exclude_modules"),
    std::string_view("modules_to_save"), std::string_view("unsloth_fixed"),
};

std::string lower(std::string text) {
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

class Reader {
 public:
  Reader(const Value& top, const std::string& where, AdapterConfig& out,
         std::vector<std::string>& warnings)
      : top_(top), where_(where), out_(out), warnings_(warnings) {}

  void read(bool allow_unknown) {
    const Type& type = find_type();
    out_.type = type.name;
    out_.family = type.family;
    check_fields(type, allow_unknown);
    out_.version = text("peft_version");
    out_.base = text("base_model_name_or_path");
    out_.revision = text("revision");
    out_.task = text("task_type");
    names("target_modules", out_.targets, out_.target_pattern);
    names("exclude_modules", out_.excluded, out_.excluded_pattern);
    names("feedforward_modules", out_.feedforward, out_.feedforward_pattern);
    out_.modules_to_save = list("modules_to_save");
    out_.parameters = list("target_parameters");
    out_.layer_patterns = list("layers_pattern");
    out_.fan_in_fan_out = flag("fan_in_fan_out", false);
    if (const Value* bias = present("bias")) {
      if (bias->kind != Value::Kind::text) wrong("bias", "'none', 'all' or 'lora_only'", *bias);
      out_.bias = bias->text;
      if (out_.bias != "none" && out_.bias != "all" && !out_.bias.ends_with("_only")) {
        wrong("bias", "'none', 'all' or 'lora_only'", *bias);
      }
    }
    read_layers();
    read_numbers();
    if (out_.family == Family::lora || out_.family == Family::adalora) read_lora();
    read_tokens();
    read_others();
  }

 private:
  [[noreturn]] void bad(std::string_view key, const std::string& what) const {
    fail(Code::format, fmt::format("{}: '{}' {}", where_, key, what));
  }
  [[noreturn]] void wrong(std::string_view key, const char* wanted, const Value& found) const {
    bad(key, fmt::format("should be {}, not {}", wanted, found.describe()));
  }
  [[noreturn]] void refuse(const std::string& what) const {
    fail(Code::usage, fmt::format("{}: {}", where_, what));
  }

  // The value of a key that is there and not null.
  const Value* present(std::string_view key) const {
    const Value* value = top_.find(key);
    return value != nullptr && value->kind != Value::Kind::null ? value : nullptr;
  }
  // The value of a feature that is not off.
  const Value* on(std::string_view key) const {
    const Value* value = top_.find(key);
    return value != nullptr && !value->off() ? value : nullptr;
  }

  const Type& find_type() const {
    const Value* value = present("peft_type");
    if (value == nullptr || value->kind != Value::Kind::text) {
      fail(Code::format, fmt::format("{} has no 'peft_type': it is not the configuration of a PEFT "
                                     "adapter",
                                     where_));
    }
    const std::string& name = value->text;
    for (const Type& type : types()) {
      if (type.name == name) return type;
    }
    for (const Refusal& known : kGenerated) {
      if (known.type != name) continue;
      refuse(fmt::format("ingot cannot compute {} adapters: {}; {}", name, known.reason, kBake));
    }
    for (const std::string_view known : kWeightless) {
      if (known != name) continue;
      refuse(
          fmt::format("{} changes no weights of the base (it adds prompts, routes or separate "
                      "networks), so there is nothing to merge or bake: serve it with PEFT",
                      name));
    }
    std::vector<std::string> names;
    for (const Type& type : types()) names.emplace_back(type.name);
    const std::string near = nearest(name, names);
    fail(Code::format,
         fmt::format("{}: ingot does not know the adapter type '{}'{}", where_, clip(name),
                     near.empty() ? "" : fmt::format("; did you mean {}?", near)));
  }

  void check_fields(const Type& type, bool allow_unknown) {
    for (const Member& member : top_.members) {
      const auto is = [&](std::string_view name) { return name == member.key; };
      if (std::any_of(kCommon.begin(), kCommon.end(), is) ||
          std::any_of(type.fields.begin(), type.fields.end(), is) || member.value.off()) {
        continue;
      }
      const std::string text = fmt::format("{}: field '{}' ({}) is not known for {}", where_,
                                           clip(member.key), member.value.describe(), type.name);
      if (!allow_unknown) {
        fail(Code::format, text +
                               "; it may change the weights, so nothing is done without "
                               "--allow-unknown-keys");
      }
      warnings_.push_back(text + " and was ignored, as --allow-unknown-keys asks");
      out_.waived = true;
    }
  }

  std::string text(std::string_view key) const {
    const Value* value = present(key);
    if (value == nullptr) return {};
    if (value->kind != Value::Kind::text) wrong(key, "text", *value);
    return value->text;
  }

  bool flag(std::string_view key, bool standard) const {
    const Value* value = present(key);
    if (value == nullptr) return standard;
    if (value->kind != Value::Kind::boolean) wrong(key, "true or false", *value);
    return value->truth;
  }

  double number(std::string_view key, double standard) const {
    const Value* value = present(key);
    if (value == nullptr) return standard;
    if (value->kind != Value::Kind::number) wrong(key, "a number", *value);
    if (!std::isfinite(value->number)) wrong(key, "a finite number", *value);
    return value->number;
  }

  static bool whole(const Value& value, double least, double most) {
    return value.kind == Value::Kind::number && value.whole && value.number >= least &&
           value.number <= most;
  }

  double rank(std::string_view key, double standard) const {
    const Value* value = present(key);
    if (value == nullptr) return standard;
    if (!whole(*value, 1, kMostRank)) {
      wrong(key, "a rank, a whole number from 1 to 1048576", *value);
    }
    return value->number;
  }

  std::vector<std::string> list(std::string_view key) const {
    std::vector<std::string> out;
    const Value* value = present(key);
    if (value == nullptr) return out;
    if (value->kind == Value::Kind::text) return {value->text};
    if (value->kind != Value::Kind::list) wrong(key, "a list of names", *value);
    for (const Value& item : value->items) {
      if (item.kind != Value::Kind::text || item.text.empty()) {
        wrong(key, "a list of names", item);
      }
      out.push_back(item.text);
    }
    return out;
  }

  // A list of names, or one expression.
  void names(std::string_view key, std::vector<std::string>& names, std::string& pattern) const {
    const Value* value = present(key);
    if (value != nullptr && value->kind == Value::Kind::text) {
      pattern = value->text;
    } else {
      names = list(key);
    }
  }

  std::vector<std::pair<std::string, double>> table(std::string_view key, bool ranks) const {
    std::vector<std::pair<std::string, double>> out;
    const Value* value = present(key);
    if (value == nullptr) return out;
    if (value->kind != Value::Kind::object) wrong(key, "an object", *value);
    for (const Member& member : value->members) {
      const Value& item = member.value;
      const bool good = ranks ? whole(item, 1, kMostRank)
                              : item.kind == Value::Kind::number && std::isfinite(item.number);
      if (!good) {
        bad(key, fmt::format("should give '{}' {}, not {}", clip(member.key),
                             ranks ? "a rank, a whole number from 1 to 1048576" : "a number",
                             item.describe()));
      }
      out.emplace_back(member.key, item.number);
    }
    return out;
  }

  void read_layers() {
    const Value* value = present("layers_to_transform");
    if (value == nullptr) return;
    const std::span<const Value> items = value->kind == Value::Kind::list
                                             ? std::span<const Value>(value->items)
                                             : std::span(value, 1);
    for (const Value& item : items) {
      if (!whole(item, 0, kMostLayers)) wrong("layers_to_transform", "layer numbers", item);
      out_.layers.push_back(static_cast<std::int64_t>(item.number));
    }
  }

  void read_numbers() {
    const char* alpha = top_.find("lora_alpha") != nullptr ? "lora_alpha" : "alpha";
    out_.alpha = number(alpha, 8);
    switch (out_.family) {
      case Family::adalora:
        out_.rank = rank("init_r", 12);
        // PEFT takes the rank where alpha is not positive. Its rank_pattern lists which ranks were
        // kept; the tensors are pruned already.
        if (out_.alpha <= 0) out_.alpha = out_.rank;
        return;
      case Family::lora:
      case Family::loha:
      case Family::lokr:
        out_.rank = rank("r", 8);
        out_.rank_pattern = table("rank_pattern", true);
        out_.alpha_pattern = table("alpha_pattern", false);
        return;
      default:
        // OFT and MiSS write 0 where another setting gives the size: the shapes tell.
        return;
    }
  }

  void read_lora() {
    out_.rslora = flag("use_rslora", false);
    out_.dora = flag("use_dora", false);
    out_.tying = flag("ensure_weight_tying", false);
    if (out_.family == Family::adalora && out_.dora) {
      refuse(fmt::format("PEFT cannot make AdaLoRA with DoRA; {}", kBake));
    }
    if (on("alora_invocation_tokens") != nullptr) {
      refuse(
          "an activated LoRA works only after its invocation tokens, so no fixed weight can hold "
          "it: serve it with PEFT");
    }
    if (on("arrow_config") != nullptr) {
      refuse(
          "Arrow routes between adapters at run time, so no fixed weight can hold it: serve it "
          "with PEFT, or merge the adapters that it routes between");
    }
    if (on("use_bdlora") != nullptr) {
      refuse(fmt::format("ingot cannot compute block-diagonal LoRA (use_bdlora); {}", kBake));
    }
    if (on("kasa_config") != nullptr) {
      refuse(
          fmt::format("KaSA (kasa_config) also replaces the base weight by its truncated "
                      "decomposition, which ingot does not compute; {}",
                      kBake));
    }
    const std::string layout = text("lora_B_layout");
    if (layout == "grouped_by_expert") {
      refuse(
          "lora_B_layout 'grouped_by_expert' orders the columns of lora_B expert by expert, which "
          "PEFT itself does not read; save the adapter again in the order of PEFT, 'rank_major' "
          "(column k of expert e of E is column k * E + e)");
    }
    if (!layout.empty() && layout != "rank_major") {
      wrong("lora_B_layout", "'rank_major' or 'grouped_by_expert'", *present("lora_B_layout"));
    }
    if (flag("use_qalora", false)) {
      warnings_.push_back(
          fmt::format("{}: use_qalora has an effect only on GPTQ layers; ingot ignores it and uses "
                      "the shapes of the factors",
                      where_));
    }
    read_initialisation();
    read_replication();
  }

  void read_initialisation() {
    const Value* value = present("init_lora_weights");
    if (value == nullptr || value->kind == Value::Kind::boolean) return;
    if (value->kind != Value::Kind::text)
      wrong("init_lora_weights", "true, false or a name", *value);
    const std::string word = lower(value->text);
    for (const char* harmless : {"gaussian", "orthogonal", "eva", "mica"}) {
      if (word == harmless) return;
    }
    const char* convert =
        "convert it to a plain LoRA with PEFT first (save_pretrained with "
        "path_initial_model_for_weight_conversion), or name the residual base that it was trained "
        "on "
        "and set init_lora_weights to true";
    if (word == "pissa") {
      out_.residual = AdapterConfig::Residual::pissa;
    } else if (word == "olora") {
      out_.residual = AdapterConfig::Residual::olora;
    } else if (word.starts_with("pissa_niter_")) {
      refuse(
          fmt::format("init_lora_weights '{}' subtracts a randomised decomposition from the base, "
                      "and no file stores it; {}",
                      clip(value->text), convert));
    } else if (word == "corda" || word == "lora_ga") {
      refuse(
          fmt::format("init_lora_weights '{}' subtracts a part from the base that was computed "
                      "from data and is not in the folder; {}",
                      clip(value->text), convert));
    } else if (word == "loftq") {
      refuse(
          fmt::format("init_lora_weights 'loftq' was trained on a quantised copy of the base, "
                      "which is not in the folder; {}",
                      convert));
    } else {
      wrong("init_lora_weights", "an initialisation that is known", *value);
    }
  }

  void read_replication() {
    const Value* value = on("layer_replication");
    if (value == nullptr) return;
    if (value->kind != Value::Kind::list) wrong("layer_replication", "a list of ranges", *value);
    double layers = 0;
    for (const Value& range : value->items) {
      if (range.kind != Value::Kind::list || range.items.size() != 2 ||
          !whole(range.items[0], 0, kMostLayers) || !whole(range.items[1], 1, kMostLayers) ||
          range.items[0].number >= range.items[1].number) {
        wrong("layer_replication", "a list of ranges [first, end]", range);
      }
      layers += range.items[1].number - range.items[0].number;
      if (layers > kMostLayers) bad("layer_replication", "names more layers than any model has");
      out_.replication.emplace_back(static_cast<std::int64_t>(range.items[0].number),
                                    static_cast<std::int64_t>(range.items[1].number));
    }
  }

  std::vector<std::uint64_t> rows(std::string_view key, const Value& value) const {
    if (value.kind != Value::Kind::list || value.items.empty()) {
      wrong(key, "a list of token numbers", value);
    }
    std::vector<std::uint64_t> out;
    for (const Value& item : value.items) {
      if (!whole(item, 0, kMostRows)) wrong(key, "a list of token numbers", item);
      out.push_back(static_cast<std::uint64_t>(item.number));
    }
    std::vector<std::uint64_t> sorted = out;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) bad(key, fmt::format("names token {} twice", *twice));
    return out;
  }

  void read_tokens() {
    if (const Value* value = on("token_indices")) {
      // The stand-alone type: target_modules are the embeddings.
      out_.tokens.emplace_back("", rows("token_indices", *value));
    }
    const Value* value = on("trainable_token_indices");
    if (value == nullptr) return;
    if (value->kind != Value::Kind::object) {
      out_.tokens.emplace_back("", rows("trainable_token_indices", *value));
      return;
    }
    for (const Member& member : value->members) {
      out_.tokens.emplace_back(member.key, rows("trainable_token_indices", member.value));
    }
  }

  void read_others() {
    if (out_.family == Family::oft) {
      out_.cayley_neumann = flag("use_cayley_neumann", true);
      const Value* terms = present("num_cayley_neumann_terms");
      if (terms != nullptr && !whole(*terms, 1, 1000)) {
        wrong("num_cayley_neumann_terms", "a whole number from 1 to 1000", *terms);
      }
      if (terms != nullptr) out_.terms = static_cast<std::uint32_t>(terms->number);
      out_.constrained = flag("coft", false);
      out_.eps = number("eps", 6e-5);
      out_.block_share = flag("block_share", false);
    }
    if (out_.family == Family::hra) out_.orthonormal = flag("apply_GS", false);
    if (out_.family == Family::miss) {
      const Value* value = present("init_weights");
      if (value == nullptr || value->kind == Value::Kind::boolean) return;
      if (value->kind == Value::Kind::text && value->text == "bat") {
        out_.tiling = AdapterConfig::Tiling::bat;
      } else if (value->kind == Value::Kind::text && value->text == "mini") {
        out_.tiling = AdapterConfig::Tiling::mini;
      } else {
        wrong("init_weights", "true, false, 'bat' or 'mini'", *value);
      }
    }
  }

  const Value& top_;
  const std::string& where_;
  AdapterConfig& out_;
  std::vector<std::string>& warnings_;
};

}  // namespace
}  // namespace adapter

AdapterConfig parse_adapter_config(std::string_view text, const std::string& shown,
                                   const AdapterOptions& options,
                                   std::vector<std::string>& warnings) {
  const std::string where = fmt::format("adapter_config.json of {}", shown);
  const adapter::Value top = adapter::parse_tree(text, where);
  AdapterConfig out;
  out.text = text;
  adapter::Reader(top, where, out, warnings).read(options.allow_unknown);
  return out;
}

}  // namespace ingot
