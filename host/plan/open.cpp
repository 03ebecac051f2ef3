#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "plan/adapt.hpp"
#include "plan/draft.hpp"
#include "plan/experts.hpp"
#include "plan/repeat.hpp"
#include "plan/types.hpp"

namespace ingot::plan {
namespace {

// What torch puts before all names of a module that it wraps: DistributedDataParallel and
// torch.compile. No class has such names.
constexpr std::string_view kWrappers[] = {"module.", "_orig_mod."};

// The wrappers before all names of a checkpoint, one after the other; empty: there are none.
std::string wrapping(const Checkpoint& checkpoint) {
  const std::vector<Entry>& entries = checkpoint.entries();
  const auto all = [&](const std::string& prefix) {
    return !entries.empty() && std::all_of(entries.begin(), entries.end(), [&](const Entry& e) {
      return e.info.name.size() > prefix.size() && e.info.name.starts_with(prefix);
    });
  };
  std::string prefix;
  for (bool more = true; more;) {
    more = false;
    for (const std::string_view wrapper : kWrappers) {
      if (!all(prefix + std::string(wrapper))) continue;
      prefix += wrapper;
      more = true;
    }
  }
  return prefix;
}

// Opens the models and adapters of the recipe: models first, in file order, then adapters.
class Opener {
 public:
  Opener(Disk& disk, Draft& draft) : disk_(disk), draft_(draft) {}

  // False if one could not be opened.
  bool run() {
    const std::vector<ModelRef> all = models_of(draft_.recipe());
    std::vector<std::pair<ModelRef, std::uint32_t>> open;
    bool good = true;
    for (const ModelRef& written : all) {
      const auto index =
          attempt(written.text, written.path, written.mark, [&] { return open_model(written); });
      if (index) open.emplace_back(settle(disk_, written, root()), *index);
      good = good && index;
    }
    if (good && !open.empty()) {
      std::uint32_t donor = open.front().second;
      for (std::size_t i = 0; i < open.size(); ++i) {
        const auto& base = draft_.recipe().base_model;
        if (base && all[i].text == base->text) donor = open[i].second;
      }
      arrange_experts(draft_, donor);
    }
    for (const auto& [ref, model] : open) good = add_view(ref, model) && good;
    return good;
  }

 private:
  const std::string& root() const { return draft_.plan.options.root; }

  // `text` names the model, or the model under the adapter, whose path is opened.
  template <class Open>
  std::optional<std::uint32_t> attempt(const std::string& text, const std::string& path, Mark mark,
                                       Open open) {
    try {
      return open();
    } catch (const Error& error) {
      Error e(error.code(),
              error.message() + (error.code() == Code::missing ? beside_recipe(path) : ""));
      for (const std::string& context : error.context()) e.add(context);
      e.add(fmt::format("reading model '{}' of {}", text, draft_.place(mark)));
      draft_.problems.error(e.code(), e.what());
      return std::nullopt;
    }
  }

  // Advice for a relative path that is not there but would be if paths started in the recipe's
  // folder or in one above it; else empty.
  std::string beside_recipe(const std::string& path) {
    std::string folder = draft_.recipe().file;
    if (path.empty() || path.starts_with('/') || path.starts_with('~')) return "";
    for (std::size_t slash = folder.rfind('/'); slash != std::string::npos && slash > 0;
         slash = folder.rfind('/')) {
      folder.resize(slash);
      const Disk::Kind kind = disk_.kind(folder + "/" + path);
      if (kind == Disk::Kind::file || kind == Disk::Kind::folder) {
        return fmt::format("; it is there with --root {}", folder);
      }
    }
    return "";
  }

  static std::string normal(const std::string& folder) {
    return std::filesystem::path(folder).lexically_normal().string();
  }

  std::uint32_t open_model(const ModelRef& written) {
    const ModelRef ref = settle(disk_, written, root());
    std::string folder = resolve(disk_, ref, root());
    auto& models = draft_.plan.models;
    const auto [it, fresh] =
        by_folder_.emplace(normal(folder), static_cast<std::uint32_t>(models.size()));
    if (!fresh) return it->second;
    try {
      // The base alone has this name in messages and receipts; its adapters are models of their
      // own.
      ModelRef own = ref;
      own.adapters.clear();
      if (!ref.adapters.empty()) own.text = path_text(ref.path, ref.revision);
      Checkpoint checkpoint = with_advice(disk_, folder, [&] { return open(folder, own.text); });
      for (const std::string& warning : checkpoint.warnings()) {
        draft_.problems.warn(Code::format, warning);
      }
      unwrap(checkpoint, own.text);
      models.push_back({std::move(own), std::move(folder), std::move(checkpoint), false});
    } catch (...) {
      by_folder_.erase(it);
      throw;
    }
    return it->second;
  }

  // Takes wrappers from the names of a model's tensors.
  void unwrap(Checkpoint& checkpoint, const std::string& text) {
    const std::string prefix = wrapping(checkpoint);
    if (prefix.empty()) return;
    std::vector<Entry> entries = checkpoint.entries();
    for (Entry& entry : entries) entry.info.name.erase(0, prefix.size());
    checkpoint.arrange(std::move(entries));
    draft_.problems.warn(
        Code::format,
        fmt::format("{}: all names of its tensors begin with {}, which DistributedDataParallel and "
                    "torch.compile put before names and no class reads: ingot leaves it out",
                    text, prefix));
  }

  // The tensors of a model; an adapter, which has none, is told as such.
  Checkpoint open(const std::string& folder, const std::string& text) {
    try {
      return Checkpoint::open(disk_, folder, text, draft_.plan.options.prefer);
    } catch (const Error& e) {
      const bool adapter = disk_.kind(folder + "/adapter_config.json") == Disk::Kind::file;
      if (e.code() != Code::missing || !adapter) throw;
      fail(Code::missing,
           fmt::format("{} is an adapter, and a model is expected here: a base stands "
                       "first, its adapters behind it",
                       text));
    }
  }

  static std::string path_text(const std::string& path, const std::string& revision) {
    return revision.empty() ? path : path + "@" + revision;
  }

  // Index into Draft::adapters.
  std::uint32_t open_adapter(const AdapterRef& adapter, Mark mark) {
    ModelRef ref;
    ref.text = adapter.text;
    ref.path = adapter.path;
    ref.revision = adapter.revision;
    ref.mark = mark;
    ref = settle(disk_, ref, root());
    std::string folder = resolve(disk_, ref, root());
    const auto [it, fresh] =
        adapters_.emplace(normal(folder), static_cast<std::uint32_t>(draft_.adapters.size()));
    if (!fresh) return it->second;
    try {
      AdapterOptions options;
      options.allow_unknown = draft_.plan.options.allow_unknown_keys;
      options.allow_extra = draft_.plan.options.ignore_extra_weights;
      Adapter opened = with_advice(
          disk_, folder, [&] { return ingot::open_adapter(disk_, folder, ref.text, options); });
      for (const std::string& warning : opened.warnings) {
        draft_.problems.warn(Code::format, warning);
      }
      draft_.plan.waived.unknown_keys = draft_.plan.waived.unknown_keys || opened.config.waived;
      draft_.plan.waived.extra_weights = draft_.plan.waived.extra_weights || opened.extra;
      bases_.push_back(adapter_below(opened));
      auto& models = draft_.plan.models;
      const auto model = static_cast<std::uint32_t>(models.size());
      models.push_back({std::move(ref), std::move(folder), std::move(opened.checkpoint), true});
      draft_.adapters.push_back({model, std::move(opened)});
    } catch (...) {
      adapters_.erase(it);
      throw;
    }
    return it->second;
  }

  // The folder of the adapter that an adapter was trained on, if its base is one; empty: it is not,
  // or not on this machine.
  std::string adapter_below(const Adapter& adapter) const {
    if (adapter.config.base.empty()) return {};
    try {
      ModelRef ref;
      ref.text = ref.path = adapter.config.base;
      const std::string folder = resolve(disk_, settle(disk_, ref, root()), root());
      const bool below = disk_.kind(folder + "/adapter_config.json") == Disk::Kind::file &&
                         disk_.kind(folder + "/config.json") != Disk::Kind::file;
      return below ? normal(folder) : std::string();
    } catch (const Error&) {
      return {};
    }
  }

  // An adapter that was trained on top of another changes little without it.
  void warn_below(const ModelRef& ref, const std::vector<Applied>& applied) {
    for (std::size_t i = 0; i < applied.size(); ++i) {
      const std::string& below = bases_[applied[i].adapter];
      if (below.empty()) continue;
      const auto found = adapters_.find(below);
      const auto end = applied.begin() + static_cast<std::ptrdiff_t>(i);
      if (found != adapters_.end() && std::any_of(applied.begin(), end, [&](const Applied& other) {
            return other.adapter == found->second;
          })) {
        continue;
      }
      draft_.problems.warn(
          Code::usage,
          fmt::format(
              "{}: adapter {} was trained on the adapter {}, not on a model: name both, with the "
              "one that was trained first before the other, unless {} already contains it",
              ref.text, ref.adapters[i].text,
              draft_.adapters[applied[i].adapter].adapter.config.base, ref.path));
    }
  }

  bool add_view(const ModelRef& ref, std::uint32_t model) {
    std::vector<Applied> applied;
    std::vector<Listed> listed;
    for (const AdapterRef& adapter : ref.adapters) {
      const auto index = attempt(ref.text, adapter.path, ref.mark,
                                 [&] { return open_adapter(adapter, ref.mark); });
      if (!index) return false;
      applied.push_back({*index, adapter.weight});
      listed.push_back({draft_.plan.models[draft_.adapters[*index].model].folder, adapter.text});
    }
    // Two spellings of one model are one.
    std::string key = fmt::format("{}", model);
    for (const Applied& each : applied) key += fmt::format(" {}:{}", each.adapter, each.weight);
    const auto [it, fresh] = views_.emplace(key, static_cast<std::uint32_t>(draft_.views.size()));
    draft_.by_text[ref.text] = it->second;
    if (!fresh) return true;
    warn_repeated(listed, draft_.place(ref.mark), draft_.problems);
    warn_below(ref, applied);
    draft_.views.push_back(plain_view(draft_.plan, model, ref.text));
    applied_.push_back(std::move(applied));
    return true;
  }

 public:
  [[nodiscard]] const std::vector<std::vector<Applied>>& applied() const { return applied_; }

 private:
  Disk& disk_;
  Draft& draft_;
  std::map<std::string, std::uint32_t> by_folder_, adapters_, views_;
  std::vector<std::vector<Applied>> applied_;  // by view
  std::vector<std::string> bases_;             // by adapter: the folder of the adapter below it
};

void read_configs(Draft& draft) {
  std::set<std::uint32_t> seen;
  for (const View& view : draft.views) {
    const Model& model = draft.plan.models[view.model];
    Config config;
    try {
      config = Config(model.checkpoint.config(), model.ref.text);
      if (!config.present() && seen.insert(view.model).second) {
        draft.problems.warn(Code::missing, fmt::format("{} has no config.json", model.ref.text));
      }
    } catch (const Error& e) {
      draft.problems.error(e.code(), e.what());
    }
    draft.configs.push_back(std::move(config));
  }
}

// True for the text-only and the image-text class of one model: Gemma3ForCausalLM and
// Gemma3ForConditionalGeneration. Their texts have the same layers.
bool two_forms(std::string_view a, std::string_view b) {
  constexpr std::string_view kText = "ForCausalLM", kAll = "ForConditionalGeneration";
  if (a.ends_with(kAll)) std::swap(a, b);
  if (!a.ends_with(kText) || !b.ends_with(kAll)) return false;
  return a.substr(0, a.size() - kText.size()) == b.substr(0, b.size() - kAll.size());
}

void check_architectures(Draft& draft) {
  Plan& plan = draft.plan;
  plan.architecture = architecture(draft, draft.donor);
  if (plan.architecture.empty()) {
    plan.architecture = fmt::format("unknown: {} names no class", draft.shown(draft.donor));
    draft.problems.warn(Code::format,
                        fmt::format("{} does not name its architecture: layers, vocabulary and "
                                    "head were recognised by tensor names",
                                    draft.shown(draft.donor)));
    return;
  }
  for (std::uint32_t m = 0; m < draft.views.size(); ++m) {
    const std::string other = architecture(draft, m);
    if (other == plan.architecture || other.empty()) continue;
    const std::string text =
        fmt::format("architectures differ: {} is {}, {} is {}", draft.shown(draft.donor),
                    plan.architecture, draft.shown(m), other);
    if (two_forms(plan.architecture, other)) {
      draft.problems.warn(Code::usage, text +
                                           "; they are two forms of one model, and the text of "
                                           "both is merged");
    } else if (plan.options.allow_mixed) {
      plan.waived.mixed = true;
      draft.problems.warn(Code::usage,
                          text + "; merged where names and shapes agree, as asked for");
    } else {
      draft.problems.error(Code::usage,
                           text + "; --allow-crimes merges them where names and shapes agree");
    }
  }
  if (family(plan.architecture) == nullptr) {
    draft.problems.warn(Code::usage, fmt::format("{} is not in the table of architectures: layers, "
                                                 "vocabulary and head were recognised by tensor "
                                                 "names",
                                                 plan.architecture));
  }
}

// Stored numbers that mean nothing without a scale would be merged into nonsense.
void check_quantised(Draft& draft) {
  std::set<std::uint32_t> seen;
  for (std::uint32_t m = 0; m < draft.views.size(); ++m) {
    const Model& model = draft.plan.models[draft.views[m].model];
    if (!seen.insert(draft.views[m].model).second) continue;
    std::string why = draft.configs[m].quantised();
    if (!why.empty()) {
      why = fmt::format("its config.json says {}", why);
    } else if (const Entry* scale = scale_of(model.checkpoint)) {
      why = fmt::format("tensor {} belongs to quantised weights", scale->info.name);
    } else {
      continue;
    }
    draft.problems.error(Code::dtype,
                         fmt::format("{} is quantised ({}): its stored values mean nothing without "
                                     "their scales, which ingot does not "
                                     "apply yet; use the original model or a dequantised copy",
                                     model.ref.text, why));
  }
}

}  // namespace

std::string architecture(const Draft& draft, std::uint32_t view) {
  const std::string& chosen = draft.plan.models[draft.views[view].model].ref.override_architecture;
  return chosen.empty() ? draft.configs[view].architecture() : chosen;
}

std::string Draft::place(Mark mark) const { return position(plan.recipe.file, mark); }

bool open_models(Disk& disk, Draft& draft) {
  Opener opener(disk, draft);
  if (!opener.run() || draft.views.empty()) return false;
  const auto& base = draft.recipe().base_model;
  draft.donor = base ? draft.by_text.at(base->text) : 0;
  read_configs(draft);
  check_architectures(draft);
  check_quantised(draft);
  bool good = true;
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
    if (!opener.applied()[v].empty()) good = adapt(disk, draft, v, opener.applied()[v]) && good;
  }
  if (!good) return false;
  draft.names = catalogue(draft.views, draft.configs, draft.donor, family(draft.plan.architecture),
                          draft.problems);
  return true;
}

}  // namespace ingot::plan
