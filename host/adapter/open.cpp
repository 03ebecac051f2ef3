// An adapter folder: every tensor is accounted for, or the folder is refused.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "adapter/keys.hpp"
#include "adapter/pattern.hpp"
#include "base/clip.hpp"
#include "ingot/adapter.hpp"
#include "ingot/error.hpp"
#include "ingot/math/rule.hpp"

namespace ingot {
namespace adapter {
namespace {

// Modules of the largest mixtures of experts, adapted one by one, ten times over.
constexpr std::size_t kTensors = 2'000'000;
constexpr std::size_t kShown = 5;       // names in a message
constexpr std::size_t kParameters = 6;  // of one module, whose orders are tried

bool ends(std::string_view path, std::string_view name);

// Embeddings and heads as models call them: what PEFT saves along where the vocabulary grew.
bool vocabulary_name(std::string_view path) {
  constexpr std::string_view kNames[] = {"embed_tokens",
                                         "lm_head",
                                         "wte",
                                         "word_embeddings",
                                         "embed_in",
                                         "embed_out",
                                         "shared",
                                         "tok_embeddings",
                                         "embeddings",
                                         "output",
                                         "decoder",
                                         "embedding",
                                         "proj_out",
                                         "vocab_projector",
                                         "lm_loss",
                                         "generator_lm_head",
                                         "tokens_embed",
                                         "word_embedding",
                                         "output_projection",
                                         "token_embedding",
                                         "pred_layer.proj",
                                         "lm_head.out_proj",
                                         "output_layer",
                                         "transformer.w",
                                         "head",
                                         "cls",
                                         "log_softmax.mlp.layer0"};
  return std::any_of(std::begin(kNames), std::end(kNames),
                     [&](std::string_view name) { return ends(path, name); });
}

// True if a module on the way to `path` has a name that ends in `name`: how PEFT looks for modules
// to save, without regard to where words begin.
bool within(std::string_view path, std::string_view name) {
  for (std::size_t at = path.find(name); at != std::string_view::npos;
       at = path.find(name, at + 1)) {
    const std::size_t end = at + name.size();
    if (end == path.size() || path[end] == '.') return true;
  }
  return false;
}

bool ends(std::string_view path, std::string_view name) {
  return path.ends_with(name) &&
         (path.size() == name.size() || path[path.size() - name.size() - 1] == '.');
}

bool needs_rank(Family family) {
  return family == Family::lora || family == Family::adalora || family == Family::loha ||
         family == Family::lokr;
}

class Account {
 public:
  Account(Adapter& out, const std::string& shown, std::vector<std::string>& warnings)
      : out_(out),
        config_(out.config),
        warnings_(warnings),
        of_config_(fmt::format("adapter_config.json of {}", shown)),
        targets_(config_.targets,
                 config_.target_pattern == "all-linear" ? std::string() : config_.target_pattern,
                 of_config_ + ": target_modules") {}

  void run() {
    sort_keys();
    check_saved();
    resolve_plain();
    check_tokens();
    for (Adapted& module : out_.modules) complete(module);
    std::sort(out_.modules.begin(), out_.modules.end(), [](const Adapted& a, const Adapted& b) {
      if (a.path != b.path) return natural_less(a.path, b.path);
      return a.nesting < b.nesting;
    });
    find_ranks();
    check_targets();
    if (out_.modules.empty() && out_.saved.empty() && out_.tokens.empty()) {
      fail(Code::format, fmt::format("{} holds no tensor of an adapter", out_.folder));
    }
  }

 private:
  const Entry& entry(std::uint32_t index) const { return out_.checkpoint.entries()[index]; }
  const Shape& shape(std::uint32_t index) const { return entry(index).info.shape; }

  std::string where(std::uint32_t index) const {
    return fmt::format("{}: tensor {}", out_.checkpoint.file(entry(index).file).path(),
                       clip(entry(index).info.name, 160));
  }
  [[noreturn]] void bad(Code code, std::uint32_t index, const std::string& what) const {
    fail(code, fmt::format("{} {}", where(index), what));
  }

  // --- names

  void sort_keys() {
    const auto& entries = out_.checkpoint.entries();
    if (entries.size() > kTensors) {
      fail(Code::format, fmt::format("{} has {} tensors; at most {} are read", out_.folder,
                                     entries.size(), kTensors));
    }
    for (std::uint32_t i = 0; i < entries.size(); ++i) {
      const TensorInfo& info = entries[i].info;
      Key key = parse_key(info.name, config_.family);
      if (key.kind == Key::Kind::refused) bad(Code::format, i, key.why);
      if (info.count() == 0) {
        bad(Code::shape, i,
            fmt::format(
                "has shape {}, so no elements: the trace of a sharded training run that saved "
                "without gathering; save the adapter again from gathered weights",
                info.shape.text()));
      }
      switch (key.kind) {
        case Key::Kind::factor:
          add_factor(key, i);
          break;
        case Key::Kind::shared:
          out_.shared.push_back({key.piece, i});
          break;
        case Key::Kind::tokens:
          need_codec(i);
          add_tokens(key, i);
          break;
        case Key::Kind::saved:
          add_saved(key.path + "." + key.parameter, i, Saved::Why::module);
          saved_paths_.insert(key.path);
          break;
        case Key::Kind::original:
          originals_.emplace_back(key.path, i);
          break;
        case Key::Kind::idle:
          out_.idle.push_back({i, key.why});
          break;
        default:
          plain_.emplace_back(std::move(key), i);
      }
    }
  }

  void need_codec(std::uint32_t i) const {
    const Dtype dtype = entry(i).info.dtype;
    if (has_codec(dtype)) return;
    bad(Code::dtype, i,
        fmt::format("is stored as {}; factors are float32, bfloat16, float16 or float8",
                    word(dtype)));
  }

  void add_factor(const Key& key, std::uint32_t i) {
    need_codec(i);
    const auto [it, fresh] = index_.emplace(
        fmt::format("{}\n{}\n{}", key.path, key.nesting, key.inner), out_.modules.size());
    if (fresh) {
      Adapted module;
      module.path = key.path;
      module.nesting = key.nesting;
      module.inner = key.inner;
      module.embedding = key.embedding;
      out_.modules.push_back(std::move(module));
    }
    Adapted& module = out_.modules[it->second];
    if (const auto other = module.find(key.piece)) {
      bad(Code::format, i,
          fmt::format("and tensor {} are two names of one part of module {}",
                      clip(entry(*other).info.name, 160), clip(key.path, 120)));
    }
    if (module.embedding != key.embedding && key.piece != Piece::magnitude) {
      if (module.factors.size() == 1 && module.factors[0].piece == Piece::magnitude) {
        module.embedding = key.embedding;
      } else {
        bad(Code::format, i,
            fmt::format("is of another kind of layer than {}",
                        clip(entry(module.factors[0].entry).info.name, 160)));
      }
    }
    module.factors.push_back({key.piece, i});
  }

  void add_saved(std::string name, std::uint32_t i, Saved::Why why) {
    if (!is_float(entry(i).info.dtype) && why != Saved::Why::module) {
      bad(Code::dtype, i, fmt::format("is stored as {}", word(entry(i).info.dtype)));
    }
    const auto [it, fresh] = saved_names_.emplace(name, i);
    if (!fresh) {
      bad(Code::format, i,
          fmt::format("and tensor {} both give {}", clip(entry(it->second).info.name, 160),
                      clip(name, 120)));
    }
    out_.saved.push_back({std::move(name), i, why});
  }

  void add_tokens(const Key& key, std::uint32_t i) {
    for (const Tokens& other : out_.tokens) {
      if (other.path == key.path) {
        bad(Code::format, i,
            fmt::format("and tensor {} both give rows of {}",
                        clip(entry(other.entry).info.name, 160), clip(key.path, 120)));
      }
    }
    out_.tokens.push_back({key.path, {}, i});
  }

  // --- whole tensors

  bool declared(std::string_view path) const {
    return std::any_of(config_.modules_to_save.begin(), config_.modules_to_save.end(),
                       [&](const std::string& name) { return within(path, name); });
  }

  // A parameter that is named by itself: PEFT loads it over the base's.
  bool listed(const std::string& name) const {
    const auto& all = config_.modules_to_save;
    return std::find(all.begin(), all.end(), name) != all.end();
  }

  // A module that is marked as saved but not declared would not be looked at by PEFT.
  void check_saved() {
    if (config_.type == "LN_TUNING") return;
    for (const Saved& saved : out_.saved) {
      if (!declared(saved.name)) {
        bad(Code::format, saved.entry,
            fmt::format(
                "is a saved module that the configuration does not name in modules_to_save"));
      }
    }
  }

  void resolve_plain() {
    for (auto& [key, i] : plain_) {
      const std::string name = key.path + "." + key.parameter;
      // Both the marked and the plain form of a module: the marked form was trained.
      if (saved_names_.contains(name) && key.nesting == 0 && !key.inner) {
        out_.idle.push_back({i, "the same module again; the tensor marked modules_to_save counts"});
        continue;
      }
      if (saved_paths_.contains(key.path)) {
        bad(Code::format, i,
            "belongs to a saved module of which other tensors are marked "
            "modules_to_save, and this one is not among them");
      }
      if (declared(name) && (key.nesting == 0 || listed(name))) {
        add_saved(name, i, Saved::Why::module);
      } else if (key.parameter == "bias" && config_.bias != "none") {
        check_bias(key, i);
        add_saved(name, i, Saved::Why::bias);
      } else if (within(key.path, "lm_predictions.lm_head") ||  // DeBERTa's, without a matrix
                 (vocabulary_name(key.path) &&
                  (key.parameter == "weight" ? shape(i).rank() == 2
                                             : key.parameter == "bias" && of_vocabulary(key, i)))) {
        add_saved(name, i, Saved::Why::embedding);
      } else if (key.parameter == "bias") {
        bad(Code::format, i,
            "is a bias, but the configuration says that no bias was trained (bias: none), and PEFT "
            "would still overwrite the base's bias: remove the tensor, or correct 'bias'");
      } else if (!key.why.empty()) {
        bad(Code::format, i, key.why);
      } else {
        bad(Code::format, i,
            fmt::format("is not a factor of {}, and the configuration does not name its module in "
                        "modules_to_save; PEFT would overwrite the base's tensor with it: remove "
                        "it, or name the module",
                        config_.type));
      }
    }
    for (const auto& [path, i] : originals_) {
      if (!saved_paths_.contains(path)) {
        bad(Code::format, i, "is the untrained copy of a module whose trained tensors are missing");
      }
      out_.idle.push_back({i, "the untrained copy of a saved module"});
    }
    for (const std::string& name : config_.modules_to_save) {
      const bool found = std::any_of(out_.saved.begin(), out_.saved.end(),
                                     [&](const Saved& saved) { return within(saved.name, name); });
      if (!found && !only_by_task(name)) {
        fail(Code::missing, fmt::format("{}: modules_to_save names '{}', of which {} has no tensor",
                                        of_config_, clip(name), out_.folder));
      }
    }
  }

  // PEFT saves embedding and head as they stand, so a bias comes with the matrix.
  bool of_vocabulary(const Key& bias, std::uint32_t i) const {
    return std::any_of(plain_.begin(), plain_.end(), [&](const auto& other) {
      const Shape& matrix = shape(other.second);
      return other.first.path == bias.path && other.first.parameter == "weight" &&
             matrix.rank() == 2 && shape(i) == Shape{matrix[0]};
    });
  }

  // PEFT adds the heads of a task by name; a model has one of them.
  bool only_by_task(std::string_view name) const {
    return (config_.task == "SEQ_CLS" || config_.task == "TOKEN_CLS") &&
           (name == "classifier" || name == "score") &&
           std::any_of(out_.saved.begin(), out_.saved.end(), [](const Saved& saved) {
             return within(saved.name, "classifier") || within(saved.name, "score");
           });
  }

  void check_bias(const Key& key, std::uint32_t i) const {
    // One number for each output; ConvBERT has them as (out, 1).
    if (shape(i).rank() == 0 || shape(i).count() != shape(i)[0]) {
      bad(Code::shape, i,
          fmt::format("is a bias of shape {}, but a bias has one number for each output",
                      shape(i).text()));
    }
    if (config_.bias == "all" || key.nesting > 0) return;
    bad(Code::format, i,
        fmt::format(
            "is the bias of a module without an adapter, and the configuration says bias: {}",
            config_.bias));
  }

  void check_tokens() {
    std::vector<bool> used(config_.tokens.size());
    for (Tokens& tokens : out_.tokens) {
      for (std::size_t k = 0; k < used.size(); ++k) {
        const std::string& name = config_.tokens[k].first;
        if (!name.empty() && !ends(tokens.path, name)) continue;
        tokens.rows = config_.tokens[k].second;
        used[k] = true;
        break;
      }
      const Shape& s = shape(tokens.entry);
      // PEFT writes the rows of a tied embedding under its other uses too, which it does not list.
      std::size_t fits = 0;
      for (const auto& [name, rows] : config_.tokens) fits += rows.size() == s[0] ? 1U : 0U;
      for (const auto& [name, rows] : config_.tokens) {
        if (tokens.rows.empty() && fits == 1 && rows.size() == s[0]) tokens.rows = rows;
      }
      if (tokens.rows.empty()) {
        bad(Code::format, tokens.entry,
            "holds trained tokens of which the configuration has no list");
      }
      if (s.rank() != 2 || s[0] != tokens.rows.size()) {
        bad(Code::shape, tokens.entry,
            fmt::format("has shape {}, while the configuration lists {} tokens", s.text(),
                        tokens.rows.size()));
      }
    }
    for (std::size_t k = 0; k < used.size(); ++k) {
      if (used[k]) continue;
      const std::string& name = config_.tokens[k].first;
      fail(Code::missing,
           fmt::format("{} lists trained tokens{}, and {} has no rows for them", of_config_,
                       name.empty() ? "" : fmt::format(" of '{}'", clip(name)), out_.folder));
    }
  }

  // --- factors

  // The factors of a module as a set without holes.
  void complete(Adapted& module) {
    std::sort(module.factors.begin(), module.factors.end(),
              [](const Factor& x, const Factor& y) { return x.piece < y.piece; });
    const Family family = config_.family;
    const auto need = [&](Piece piece) {
      if (module.find(piece)) return;
      fail(Code::missing,
           fmt::format("{}: module {} has {} but no {}", out_.folder, clip(module.path, 120),
                       clip(entry(module.factors[0].entry).info.name, 160),
                       adapter::word(piece, family)));
    };
    switch (family) {
      case Family::lora:
        need(Piece::a);
        need(Piece::b);
        if (config_.dora) need(Piece::magnitude);
        if (!config_.dora && module.find(Piece::magnitude)) {
          bad(Code::format, *module.find(Piece::magnitude),
              "is a magnitude of DoRA, while the configuration says use_dora: false");
        }
        return check_lora(module);
      case Family::adalora:
        need(Piece::a);
        need(Piece::b);
        need(Piece::e);
        return check_adalora(module);
      case Family::loha:
        need(Piece::w1_a);
        need(Piece::w1_b);
        need(Piece::w2_a);
        need(Piece::w2_b);
        if (module.find(Piece::t1)) need(Piece::t2);
        if (module.find(Piece::t2)) need(Piece::t1);
        return check_loha(module);
      case Family::lokr:
        check_half(module, Piece::w1, Piece::w1_a, Piece::w1_b);
        check_half(module, Piece::w2, Piece::w2_a, Piece::w2_b);
        return check_lokr(module);
      case Family::boft:
        need(Piece::r);
        need(Piece::s);
        return check_axes(module, Piece::r, 4);
      case Family::vera:
        need(Piece::lambda_b);
        need(Piece::lambda_d);
        if (out_.shared.size() != 2) {
          fail(
              Code::missing,
              fmt::format("{} has no vera_A and vera_B, because its projections come from a "
                          "PyTorch generator; train with save_projection: true, or {}",
                          out_.folder,
                          "bake it with PEFT (merge_and_unload), save the model, and ingot extract "
                          "makes a LoRA of the difference"));
        }
        check_axes(module, Piece::lambda_b, 1);
        check_axes(module, Piece::lambda_d, 1);
        module.rank = shape(*module.find(Piece::lambda_d))[0];
        return;
      case Family::oft:
        return check_axes(module, Piece::r, 2);
      case Family::hra:
        check_axes(module, Piece::u, 2);
        module.rank = shape(*module.find(Piece::u))[1];
        return;
      case Family::miss:
        check_axes(module, Piece::block, config_.tiling == AdapterConfig::Tiling::bat ? 3 : 2);
        module.rank = shape(*module.find(Piece::block))[0];
        return;
      case Family::ia3:
      case Family::none:
        return;
    }
  }

  void check_axes(const Adapted& module, Piece piece, int axes) const {
    const std::uint32_t i = *module.find(piece);
    if (shape(i).rank() == axes) return;
    bad(Code::shape, i, fmt::format("has shape {}; {} axes were expected", shape(i).text(), axes));
  }

  void check_lora(Adapted& module) {
    const std::uint32_t a = *module.find(Piece::a);
    const std::uint32_t b = *module.find(Piece::b);
    const Shape& sa = shape(a);
    const Shape& sb = shape(b);
    if (sa.rank() < 2 || sb.rank() != sa.rank()) {
      bad(Code::shape, sa.rank() < 2 ? a : b,
          fmt::format(
              "has shape {}: a factor has as many axes as its weight; sharded training runs "
              "that saved without gathering leave such tensors",
              (sa.rank() < 2 ? sa : sb).text()));
    }
    // Convolutions never stand in an owner of experts.
    if (sa.rank() == 3 && within(module.path, "experts")) {
      bad(Code::shape, a,
          fmt::format(
              "has shape {}: factors of experts with a dimension for the experts, which PEFT "
              "does not read; save them as PEFT does for target_parameters, lora_A with the "
              "rows of all experts (experts * rank) in two dimensions",
              sa.text()));
    }
    if (sa[0] != sb[1]) {
      if (sa.rank() == 2 && sa[1] == sb[0]) {
        bad(Code::shape, a,
            fmt::format("has shape {} and {} has {}: A and B seem to be swapped", sa.text(),
                        clip(entry(b).info.name, 160), sb.text()));
      }
      const bool conv = config_.family == Family::lora && sa.rank() > 2;
      module.groups = conv && sa[0] % sb[1] == 0 ? sa[0] / sb[1] : 0;
      if (module.groups == 0 || sb[0] % module.groups != 0) {
        bad(Code::shape, b,
            fmt::format("has shape {}, and {} has {}: their ranks differ", sb.text(),
                        clip(entry(a).info.name, 160), sa.text()));
      }
    }
    module.rank = sa[0];
    for (int axis = 2; axis < sb.rank(); ++axis) {
      if (sb[axis] != 1) {
        bad(Code::shape, b, fmt::format("has shape {}; B of a convolution is 1 wide", sb.text()));
      }
    }
    if (const auto bias = module.find(Piece::bias); bias && shape(*bias) != Shape{sb[0]}) {
      bad(Code::shape, *bias,
          fmt::format("has shape {}; [{}] was expected", shape(*bias).text(), sb[0]));
    }
    if (const auto m = module.find(Piece::magnitude); m && entry(*m).info.count() != sb[0]) {
      bad(Code::shape, *m,
          fmt::format("has shape {}; {} elements were expected, one for each row of {}",
                      shape(*m).text(), sb[0], clip(entry(b).info.name, 160)));
    }
  }

  void check_adalora(Adapted& module) {
    check_lora(module);
    const std::uint32_t e = *module.find(Piece::e);
    if (shape(e) != Shape{module.rank, 1}) {
      bad(Code::shape, e,
          fmt::format("has shape {}; [{}, 1] was expected", shape(e).text(), module.rank));
    }
  }

  void check_loha(Adapted& module) {
    const bool conv = module.find(Piece::t1).has_value();
    const Shape& first = shape(*module.find(Piece::w1_a));
    module.rank = first.rank() == 2 ? first[conv ? 0 : 1] : 0;
    for (const auto& [piece, axis] : {std::pair(Piece::w1_a, conv ? 0 : 1),
                                      {Piece::w1_b, 0},
                                      {Piece::w2_a, conv ? 0 : 1},
                                      {Piece::w2_b, 0}}) {
      check_rank(module, piece, axis, 2);
    }
    for (const Piece piece : {Piece::t1, Piece::t2}) {
      if (conv) check_rank(module, piece, 0, 4);
    }
  }

  void check_lokr(Adapted& module) {
    module.rank = 0;
    for (const auto& [a, b] : {std::pair(Piece::w1_a, Piece::w1_b), {Piece::w2_a, Piece::w2_b}}) {
      const auto pa = module.find(a);
      if (!pa) continue;
      const bool conv = a == Piece::w2_a && module.find(Piece::t2);
      const int axis = conv ? 0 : 1;
      if (shape(*pa).rank() != 2) check_axes(module, a, 2);
      const std::uint64_t rank = shape(*pa)[axis];
      if (module.rank != 0 && rank != module.rank) check_rank(module, a, axis, 2);
      module.rank = rank;
      check_rank(module, b, 0, 2);
      if (conv) check_rank(module, Piece::t2, 0, 4);
    }
  }

  void check_half(const Adapted& module, Piece whole, Piece a, Piece b) const {
    const bool full = module.find(whole).has_value();
    const bool parts = module.find(a) && module.find(b);
    const bool some = module.find(a) || module.find(b);
    if (full != some && full != parts) return;
    fail(Code::missing,
         fmt::format("{}: module {} needs either {} or both {} and {}", out_.folder,
                     clip(module.path, 120), adapter::word(whole, config_.family),
                     adapter::word(a, config_.family), adapter::word(b, config_.family)));
  }

  void check_rank(const Adapted& module, Piece piece, int axis, int axes) const {
    check_axes(module, piece, axes);
    const std::uint32_t i = *module.find(piece);
    if (shape(i)[axis] == module.rank) return;
    bad(Code::shape, i,
        fmt::format("has shape {}; its axis {} should be the rank {}", shape(i).text(), axis,
                    module.rank));
  }

  // --- rank, alpha, scaling

  void find_ranks() {
    if (!needs_rank(config_.family)) return;
    const Table ranks(config_.rank_pattern, of_config_ + ": rank_pattern");
    const Table alphas(config_.alpha_pattern, of_config_ + ": alpha_pattern");
    std::vector<bool> used_ranks(ranks.size()), used_alphas(alphas.size());
    // Patterns see a parameter under its own name.
    const auto look = [&](const Table& table, std::vector<bool>& used, const std::string& subject,
                          double standard, const char* what) {
      const auto hit = table.find(subject, effort_);
      if (!hit) return standard;
      used[hit->index] = true;
      for (const std::size_t k : hit->later) used[k] = true;  // it fits, if not as the first
      if (hit->rival) overlap(table, *hit, subject, what);
      return hit->value;
    };
    const auto sizes = [&](const std::string& subject) {
      return Sizes{look(ranks, used_ranks, subject, config_.rank, "rank_pattern"),
                   look(alphas, used_alphas, subject, config_.alpha, "alpha_pattern")};
    };
    std::span<Adapted> rest = out_.modules;
    while (!rest.empty()) {
      std::size_t levels = 1;
      while (levels < rest.size() && rest[levels].path == rest[0].path) ++levels;
      const std::vector<std::string> names = parameters_of(rest[0].path);
      if (!names.empty()) {
        std::vector<Sizes> each;
        for (const std::string& name : names) each.push_back(sizes(rest[0].path + "." + name));
        settle_parameters(rest.first(levels), names, each);
      } else {
        for (Adapted& module : rest.first(levels)) {
          if (module.nesting > 0) no_parameter(module);
          settle_rank(module, sizes(module.path));
        }
      }
      rest = rest.subspan(levels);
    }
    for (const auto& [table, used, what] : {std::tuple(&ranks, &used_ranks, "rank_pattern"),
                                            {&alphas, &used_alphas, "alpha_pattern"}}) {
      std::vector<std::size_t> idle;
      for (std::size_t k = 0; k < used->size(); ++k) {
        if (!(*used)[k]) idle.push_back(k);
      }
      if (idle.empty()) continue;
      const std::string key = clip(table->key(idle.front()));
      warnings_.push_back(
          idle.size() == 1
              ? fmt::format("{}: {} key '{}' fits no module of the adapter", of_config_, what, key)
              : fmt::format("{}: {} of the {} keys of {} fit no module of the adapter, the first "
                            "is '{}'",
                            of_config_, idle.size(), used->size(), what, key));
    }
  }

  void overlap(const Table& table, const Table::Hit& hit, const std::string& path,
               const char* what) {
    if (!overlaps_.insert(fmt::format("{} {} {}", what, hit.index, *hit.rival)).second) return;
    warnings_.push_back(fmt::format(
        "{}: {} keys '{}' ({}) and '{}' ({}) both fit {}; the first in the file counts, as for "
        "PEFT "
        "when it loads it, but saving sorts the keys, so training may have used the other",
        of_config_, what, clip(table.key(hit.index)), hit.value, clip(table.key(*hit.rival)),
        table.value(*hit.rival), clip(path, 120)));
  }

  struct Sizes {
    double rank = 0;
    double alpha = 0;
  };

  // The names that target_parameters has for a module, in the order in which modules define them as
  // far as it is known.
  std::vector<std::string> parameters_of(std::string_view path) {
    std::vector<std::string> names;
    const auto add = [&](std::string name) {
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        names.push_back(std::move(name));
      }
    };
    for (const std::string& target : config_.parameters) {
      const std::size_t dot = target.rfind('.');
      if (dot != std::string::npos && ends(path, target.substr(0, dot))) {
        add(target.substr(dot + 1));
      }
    }
    // A module whose weight is named is a layer like a router: it holds no experts.
    if (std::find(names.begin(), names.end(), "weight") != names.end()) return names;
    for (const std::string& target : config_.parameters) {
      // Without its module's name a parameter may be of any that is not adapted as a module.
      if (target.find('.') != std::string::npos) continue;
      if (targets_.empty() ? ends(path, "experts") : !targets_.fits(path, effort_)) add(target);
    }
    std::stable_sort(names.begin(), names.end(), [&](const std::string& x, const std::string& y) {
      return adapter::place_of(x) < adapter::place_of(y);
    });
    return names;
  }

  [[noreturn]] void no_parameter(const Adapted& module) const {
    bad(Code::format, module.factors.front().entry,
        fmt::format(
            "is of a parameter wrapped {} deep, of which the configuration names none: name "
            "the parameters in target_parameters, as [\"experts.gate_up_proj\", "
            "\"experts.down_proj\"]",
            module.nesting));
  }

  // Which of a module's parameters each level is: the one defined first lies innermost, and all
  // hold equally many experts.
  void settle_parameters(std::span<Adapted> levels, const std::vector<std::string>& names,
                         const std::vector<Sizes>& sizes) {
    const std::string& path = levels[0].path;
    if (levels.size() > names.size() || names.size() > kParameters) {
      fail(Code::format,
           fmt::format(
               "{}: module {} has {} adapted parameters, while target_parameters names {} (at "
               "most {} are tried)",
               out_.folder, clip(path, 120), levels.size(), names.size(), kParameters));
    }
    for (std::size_t k = 0; k < levels.size(); ++k) {
      if (levels[k].nesting != k) no_parameter(levels[k]);
    }
    std::vector<std::size_t> order(names.size());
    for (std::size_t k = 0; k < order.size(); ++k) order[k] = k;
    do {
      // Outermost is last: level 0 takes the last of the chosen names.
      std::uint64_t experts = 0;
      bool fit =
          std::is_sorted(order.begin() + static_cast<std::ptrdiff_t>(levels.size()), order.end());
      for (std::size_t k = 0; k < levels.size() && fit; ++k) {
        const auto rank = static_cast<std::uint64_t>(sizes[order[levels.size() - 1 - k]].rank);
        fit = levels[k].rank % rank == 0 && (k == 0 || levels[k].rank / rank == experts);
        experts = levels[k].rank / rank;
      }
      if (!fit) continue;
      for (std::size_t k = 0; k < levels.size(); ++k) {
        const std::size_t chosen = order[levels.size() - 1 - k];
        Adapted& level = levels[k];
        level.parameters = {names[chosen]};
        for (const std::string& other : names) {
          if (other != names[chosen]) level.parameters.push_back(other);
        }
        level.experts = experts;
        level.rank /= experts;
        level.alpha = sizes[chosen].alpha;
        level.scaling = scaling(level, sizes[chosen]);
      }
      return;
    } while (std::next_permutation(order.begin(), order.end()));
    const std::uint32_t i = levels[0].factors.front().entry;
    bad(Code::shape, i,
        fmt::format(
            "has shape {}, and no rank of the configuration divides it into the experts of {}",
            shape(i).text(), clip(path, 120)));
  }

  // The rank that shapes give against the one of the configuration.
  void settle_rank(Adapted& module, const Sizes& said) {
    module.alpha = said.alpha;
    module.scaling = scaling(module, said);
    // LoKr's whole factors have no rank, AdaLoRA's stored ranks are what pruning left.
    if (config_.family == Family::adalora || module.rank == 0) return;
    const auto wanted = static_cast<std::uint64_t>(said.rank);
    if (module.rank == wanted) return;
    const std::uint32_t i = module.factors.front().entry;
    bad(Code::shape, i,
        fmt::format(
            "has shape {}, so rank {}, while the configuration gives module {} the rank {}; "
            "r or rank_pattern is wrong, or the tensors are of another adapter",
            shape(i).text(), module.rank, clip(module.path, 120), wanted));
  }

  double scaling(const Adapted& module, const Sizes& sizes) {
    const auto [rank, alpha] = sizes;
    double value = 0;
    if (config_.family == Family::adalora) {
      value = alpha / (config_.rank + 1e-5);
    } else if (config_.rslora) {
      value = alpha / std::sqrt(rank);
    } else {
      value = alpha / rank;
    }
    if (!(std::fabs(value) <= static_cast<double>(std::numeric_limits<float>::max()))) {
      fail(Code::format, fmt::format("{}: alpha {} over rank {} gives module {} a scaling beyond "
                                     "float32",
                                     of_config_, alpha, rank, clip(module.path, 120)));
    }
    if (!math::single(value) || (value == 0 && alpha != 0)) {
      fail(Code::format,
           fmt::format("{}: alpha {} over rank {} gives module {} a scaling too small "
                       "for float32",
                       of_config_, alpha, rank, clip(module.path, 120)));
    }
    if (value == 0 && !idle_said_) {
      idle_said_ = true;
      warnings_.push_back(
          fmt::format("{}: alpha is 0, so module {} and modules like it change nothing", of_config_,
                      clip(module.path, 120)));
    }
    return value;
  }

  // --- targets

  // Tensors of modules that the configuration does not target are ignored by PEFT without a word.
  void check_targets() {
    const Choice excluded(config_.excluded, config_.excluded_pattern,
                          of_config_ + ": exclude_modules");
    if (targets_.empty()) return;
    std::vector<std::string> strangers;
    std::size_t count = 0;
    for (const Adapted& module : out_.modules) {
      if (!module.parameters.empty() || module.inner) continue;
      const bool hit = targets_.fits(module.path, effort_) && !excluded.fits(module.path, effort_);
      if (hit) continue;
      // The other end of a tied pair, which the configuration need not name.
      if (config_.tying && vocabulary_name(module.path)) continue;
      if (++count <= kShown) strangers.push_back(clip(module.path, 120));
    }
    if (count == 0) return;
    fail(Code::format,
         fmt::format(
             "{}: {} of {} modules with tensors are not among target_modules{}, so PEFT would "
             "ignore them: {}{}; correct the configuration so that it matches the tensors",
             of_config_, count, out_.modules.size(),
             excluded.empty() ? "" : " or are among exclude_modules", fmt::join(strangers, ", "),
             count > kShown ? ", ..." : ""));
  }

  Adapter& out_;
  const AdapterConfig& config_;
  std::vector<std::string>& warnings_;
  const std::string of_config_;
  const Choice targets_;
  Effort effort_;
  std::unordered_map<std::string, std::size_t> index_;  // path, nesting, inner to module
  std::unordered_map<std::string, std::uint32_t> saved_names_;
  std::unordered_set<std::string> saved_paths_;
  std::vector<std::pair<std::string, std::uint32_t>> originals_;
  std::vector<std::pair<Key, std::uint32_t>> plain_;
  std::unordered_set<std::string> overlaps_;
  bool idle_said_ = false;
};

}  // namespace
}  // namespace adapter

std::optional<std::uint32_t> Adapted::find(Piece piece) const noexcept {
  const auto found = std::find_if(factors.begin(), factors.end(),
                                  [&](const Factor& factor) { return factor.piece == piece; });
  if (found == factors.end()) return std::nullopt;
  return found->entry;
}

Adapter read_adapter(Checkpoint checkpoint, std::string folder, std::string_view config,
                     std::string shown, const AdapterOptions& options) {
  std::vector<std::string> warnings;
  AdapterConfig parsed = parse_adapter_config(config, shown, options, warnings);
  Adapter out{
      std::move(checkpoint), std::move(folder), std::move(parsed), {}, {}, {}, {}, {}, false, {}};
  adapter::Account(out, shown, warnings).run();
  out.warnings = std::move(warnings);
  return out;
}

namespace adapter {
namespace {

// What trainers leave beside an adapter, and forms of it that other programs read.
bool leftover(std::string_view name) {
  for (const char* start : {"adapter_model.", "optimizer", "scheduler", "scaler", "rng_state",
                            "random_states", "training_args", "sampler", "."}) {
    if (name.starts_with(start)) return true;
  }
  return false;
}

// Weights beside the adapter's own were trained or saved with it, and PEFT does not read them: what
// they change would be lost without a word.
void look_beside(Disk& disk, Adapter& out, const AdapterOptions& options) {
  std::vector<std::string> found;
  for (const std::string& name : disk.list(out.folder)) {
    const std::size_t dot = name.rfind('.');
    const std::string_view kind =
        dot == std::string::npos ? "" : std::string_view(name).substr(dot);
    bool weights = false;
    for (const char* known : {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}) {
      weights = weights || kind == known;
    }
    if (!weights || leftover(name) || disk.kind(out.folder + "/" + name) != Disk::Kind::file) {
      continue;
    }
    found.push_back(clip(name));
  }
  if (found.empty()) return;
  std::sort(found.begin(), found.end());
  const std::size_t count = found.size();
  found.resize(std::min(count, kShown));
  const std::string text = fmt::format(
      "{} has weights beside the adapter: {}{}. They are not part of it, and PEFT does not read "
      "them",
      out.folder, fmt::join(found, ", "), count > kShown ? ", ..." : "");
  if (!options.allow_extra) {
    fail(Code::format,
         text +
             ": put them into the base first (load_state_dict, then save_pretrained) and bake "
             "the adapter into the result, or leave them out with --ignore-extra-weights");
  }
  out.extra = true;
  out.warnings.push_back(text + "; they were left out");
}

}  // namespace
}  // namespace adapter

Adapter open_adapter(Disk& disk, const std::string& folder, std::string shown,
                     const AdapterOptions& options) {
  const auto config = seek_member(disk, folder, "adapter_config.json");
  if (!config) {
    const bool model = disk.kind(folder + "/config.json") == Disk::Kind::file;
    fail(Code::missing,
         fmt::format("{} has no adapter_config.json: it is {}", folder,
                     model ? "a model, not an adapter" : "not the folder of a PEFT adapter"));
  }
  const std::string text = read_text(disk, *config);
  for (const char* name : {"adapter_model.safetensors", "adapter_model.bin"}) {
    const auto weights = seek_member(disk, folder, name);
    if (!weights) continue;
    Adapter out =
        read_adapter(Checkpoint::open(disk, *weights, shown), folder, text, shown, options);
    adapter::look_beside(disk, out, options);
    return out;
  }
  // The configuration may already say why there is nothing to do.
  std::vector<std::string> warnings;
  (void)parse_adapter_config(text, shown, options, warnings);
  fail(Code::missing,
       fmt::format("{} has neither adapter_model.safetensors nor adapter_model.bin", folder));
}

}  // namespace ingot
