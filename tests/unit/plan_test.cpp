// The plan as a whole: sources, names, shapes, types, parameters, layout.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ingot/plan.hpp"
#include "model.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using test::Folder;
using test::Tensor;

Plan plan_of(const std::string& text, const std::string& root, PlanOptions options = {}) {
  const auto disk = system_disk();
  options.root = root;
  return build(*disk, parse(text, "recipe.yml", {}), options);
}

std::string report(const Plan& plan) {
  std::string text;
  for (const Problem& p : plan.problems) text += (p.fatal ? "error: " : "warning: ") + p.text + "\n";
  return text;
}

TEST(Plan, EveryTensorOfTheExamplesIsMerged) {
  const Plan plan = plan_of(
      "merge_method: ties\nbase_model: base\nmodels:\n- {model: python, parameters: {weight: 1, density: "
      "0.5}}\n- {model: c, parameters: {weight: 0.5, density: 0.3}}\ndtype: float16\n",
      test::example("models"));
  ASSERT_TRUE(plan.sound()) << report(plan);
  EXPECT_EQ(plan.jobs.size(), 21u);
  EXPECT_TRUE(plan.unused.empty());
  EXPECT_EQ(report(plan), "");
}

}  // namespace
}  // namespace ingot
