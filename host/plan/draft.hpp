// Data that the steps of planning share: models, their configs, their names as one catalogue.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "ingot/adapter.hpp"
#include "ingot/plan.hpp"
#include "plan/config.hpp"
#include "plan/match.hpp"
#include "plan/problems.hpp"
#include "plan/view.hpp"

namespace ingot::plan {

// An adapter of the recipe, whose checkpoint is one of the plan's models.
struct Opened {
  std::uint32_t model = 0;  // index into Plan::models
  Adapter adapter;          // without its checkpoint
};

// Indices of models here are into Draft::views, not into Plan::models.
struct Draft {
  Plan& plan;
  Problems& problems;
  std::vector<View> views;
  std::vector<Opened> adapters;
  std::map<std::string, std::uint32_t> by_text;  // ModelRef::text to view; two may share one
  std::vector<Config> configs;                   // by view
  std::uint32_t donor = 0;  // base_model, else the first model: gives config, names, companions
  Catalogue names;
  // Rows of each view's input embedding, known once the views' items are given back.
  std::vector<std::optional<std::uint64_t>> rows;
  // Layers by view and stack, known with them.
  std::vector<std::vector<std::uint64_t>> depths;
  // Why tensors of Plan::models that nothing reads are not needed, by model and entry.
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::string> spared;

  [[nodiscard]] const Recipe& recipe() const noexcept { return plan.recipe; }
  [[nodiscard]] const std::string& shown(std::uint32_t view) const { return views[view].text; }
  [[nodiscard]] const Item& item(std::uint32_t view, std::uint32_t index) const {
    return views[view].items[index];
  }
  // The folder of a view's base.
  [[nodiscard]] const std::string& folder(std::uint32_t view) const {
    return plan.models[views[view].model].checkpoint.path();
  }
  [[nodiscard]] std::string place(Mark mark) const;  // "recipe.yml:12:3"
};

// Opens the models of the recipe, reads their configs and checks that they can be merged at all.
// False if a model is missing, so that nothing more can be said.
[[nodiscard]] bool open_models(Disk& disk, Draft& draft);

// The class of a view: the one that the recipe gives it, else that of its config.json; may be
// empty.
[[nodiscard]] std::string architecture(const Draft& draft, std::uint32_t view);

}  // namespace ingot::plan
