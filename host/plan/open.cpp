#include <filesystem>

#include <fmt/format.h>

#include "plan/draft.hpp"
#include "plan/types.hpp"

namespace ingot::plan {
namespace {

// True if the model could be opened or is one already open.
bool open_model(Disk& disk, Draft& draft, const ModelRef& written,
                std::map<std::string, std::uint32_t>& by_folder) {
  Plan& plan = draft.plan;
  try {
    const ModelRef ref = settle(disk, written, plan.options.root);
    if (!ref.adapters.empty()) {
      draft.problems.error(Code::usage, fmt::format("{}: '{}' is a model with an adapter, which is "
                                                    "not supported yet: bake it first and name the "
                                                    "result",
                                                    draft.place(written.mark), written.text));
      return false;
    }
    std::string folder = resolve(disk, ref, plan.options.root);
    const auto [it, fresh] =
        by_folder.emplace(std::filesystem::path(folder).lexically_normal().string(),
                          static_cast<std::uint32_t>(plan.models.size()));
    draft.by_text[written.text] = it->second;
    if (fresh) {
      Checkpoint checkpoint = Checkpoint::open(disk, folder, ref.text);
      plan.models.push_back({ref, std::move(folder), std::move(checkpoint)});
    }
    return true;
  } catch (Error& e) {
    e.add(fmt::format("reading model '{}' of {}", written.text, draft.place(written.mark)));
    draft.problems.error(e.code(), e.what());
    return false;
  }
}

void read_configs(Draft& draft) {
  for (const Model& model : draft.plan.models) {
    Config config;
    try {
      config = Config(model.checkpoint.config(), model.ref.text);
      if (!config.present()) {
        draft.problems.warn(Code::missing, fmt::format("{} has no config.json", model.ref.text));
      }
    } catch (const Error& e) {
      draft.problems.error(e.code(), e.what());
    }
    draft.configs.push_back(std::move(config));
  }
}

std::string architecture(const Draft& draft, std::uint32_t m) {
  const std::string& chosen = draft.plan.models[m].ref.override_architecture;
  return chosen.empty() ? draft.configs[m].architecture() : chosen;
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
  for (std::uint32_t m = 0; m < plan.models.size(); ++m) {
    const std::string other = architecture(draft, m);
    if (other == plan.architecture || other.empty()) continue;
    const std::string text =
        fmt::format("architectures differ: {} is {}, {} is {}", draft.shown(draft.donor),
                    plan.architecture, draft.shown(m), other);
    if (plan.options.allow_mixed) {
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
  for (std::uint32_t m = 0; m < draft.plan.models.size(); ++m) {
    std::string why = draft.configs[m].quantised();
    if (!why.empty()) {
      why = fmt::format("its config.json says {}", why);
    } else if (const Entry* scale = scale_of(draft.plan.models[m].checkpoint)) {
      why = fmt::format("tensor {} belongs to quantised weights", scale->info.name);
    } else {
      continue;
    }
    draft.problems.error(Code::dtype,
                         fmt::format("{} is quantised ({}): its stored values mean nothing without "
                                     "their scales, which ingot does not "
                                     "apply yet; use the original model or a dequantised copy",
                                     draft.shown(m), why));
  }
}

}  // namespace

std::string Draft::place(Mark mark) const {
  return mark.line > 0 ? fmt::format("{}:{}", plan.recipe.file, mark.line) : plan.recipe.file;
}

bool open_models(Disk& disk, Draft& draft) {
  std::map<std::string, std::uint32_t> by_folder;  // two spellings of one folder are one model
  bool all = true;
  for (const ModelRef& written : models_of(draft.recipe())) {
    all = open_model(disk, draft, written, by_folder) && all;
  }
  if (!all || draft.plan.models.empty()) return false;
  const auto& base = draft.recipe().base_model;
  draft.donor = base ? draft.by_text.at(base->text) : 0;
  read_configs(draft);
  check_architectures(draft);
  check_quantised(draft);
  draft.names = catalogue(draft.plan.models, draft.configs, draft.donor,
                          family(draft.plan.architecture), draft.problems);
  return true;
}

}  // namespace ingot::plan
