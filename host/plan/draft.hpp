// What the steps of planning share: models, their configs, their names as one catalogue.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ingot/plan.hpp"
#include "plan/config.hpp"
#include "plan/match.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

struct Draft {
  Plan& plan;
  Problems& problems;
  std::map<std::string, std::uint32_t> by_text;  // ModelRef::text to index; two may share a folder
  std::vector<Config> configs;                   // by model
  std::uint32_t donor = 0;  // base_model, else the first model: gives config, names, companions
  Catalogue names;

  [[nodiscard]] const Recipe& recipe() const noexcept { return plan.recipe; }
  [[nodiscard]] const std::string& shown(std::uint32_t model) const {
    return plan.models[model].ref.text;
  }
  [[nodiscard]] const Entry& entry(std::uint32_t model, std::uint32_t index) const {
    return plan.models[model].checkpoint.entries()[index];
  }
  [[nodiscard]] std::string place(Mark mark) const;  // "recipe.yml:12"
};

// Opens the models of the recipe, reads their configs and checks that they can be merged at all.
// False if a model is missing, so that nothing more can be said.
[[nodiscard]] bool open_models(Disk& disk, Draft& draft);

}  // namespace ingot::plan
