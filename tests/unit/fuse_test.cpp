// Merges of adapters: every combination type against numbers of PEFT 0.21.2 and against plain
// loops, what is refused and why, what the folder says of itself.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapting.hpp"
#include "base/hash.hpp"
#include "ingot/error.hpp"
#include "ingot/methods.hpp"
#include "merging.hpp"
#include "watched.hpp"

namespace ingot {
namespace {

using test::Factors;
using test::Folder;
using test::Values;
using Dense = std::vector<double>;

constexpr const char* kA = "base_model.model.fc.lora_A.weight";
constexpr const char* kB = "base_model.model.fc.lora_B.weight";

Factors linear_factors(std::vector<float> a, std::vector<float> b, std::uint64_t rank = 2) {
  const std::uint64_t width = a.size() / rank, height = b.size() / rank;
  return {{"fc.lora_A.weight", {{rank, width}, std::move(a)}},
          {"fc.lora_B.weight", {{height, rank}, std::move(b)}}};
}

// The two adapters of the check vectors.
void write_pair(const Folder& folder) {
  test::write_adapter(folder / "a", linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5}),
                      R"("r": 2, "lora_alpha": 4)");
  test::write_adapter(folder / "b", linear_factors({-4, 1, 2, 3, -0.5, 1}, {2, 1, -1, 4}),
                      R"("r": 2, "lora_alpha": 1)");
}

std::string recipe_of(const std::string& type, double wa, double wb, const std::string& more = "") {
  return fmt::format(
      "adapter_method: {}\nadapters:\n  - {{adapter: ./a, parameters: {{weight: {}}}}}\n  - "
      "{{adapter: ./b, parameters: {{weight: {}}}}}\n{}",
      type, wa, wb, more);
}

Plan plan_of(const Folder& folder, const std::string& recipe) {
  const auto disk = system_disk();
  PlanOptions options;
  options.root = folder.path();
  return build(*disk, parse(recipe, "recipe.yml", {}), options);
}

std::map<std::string, Values> merged(const Folder& folder, const std::string& recipe,
                                     const std::string& out = "out") {
  test::Settings settings;
  settings.plan.root = folder.path();
  (void)test::run_merge(recipe, folder / out, settings);
  return test::read_adapter_values(folder / out);
}

std::vector<std::string> findings(const Folder& folder, const std::string& out = "out") {
  const auto disk = system_disk();
  VerifyOptions options;
  options.all = true;
  options.root = folder.path();
  std::vector<std::string> texts;
  for (const Finding& f : verify(*disk, folder / out, options).findings) texts.push_back(f.text);
  return texts;
}

std::string refusal(const Folder& folder, const std::string& recipe) {
  std::string all;
  for (const Problem& problem : plan_of(folder, recipe).problems) {
    if (problem.fatal) all += problem.text + "\n";
  }
  return all;
}

Dense product(const Values& b, const Values& a) {
  const std::uint64_t rank = a.shape[0], width = a.values.size() / rank, height = b.shape[0];
  Dense c(height * width);
  for (std::uint64_t o = 0; o < height; ++o) {
    for (std::uint64_t k = 0; k < rank; ++k) {
      for (std::uint64_t i = 0; i < width; ++i) {
        c[o * width + i] += static_cast<double>(b.values[o * rank + k]) *
                            static_cast<double>(a.values[k * width + i]);
      }
    }
  }
  return c;
}

template <class Found, class Expected>
void expect_near(const Found& found, const Expected& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(found[i]), static_cast<double>(expected[i]), tolerance)
        << what << " [" << i << "]";
  }
}

struct Case {
  const char* type;
  double wa, wb;
  Dense a, b;  // empty: the product is what counts
  Dense product;
};

TEST(Fuse, HasTheNumbersOfPeft) {
  const std::vector<Case> cases{
      {"linear",
       1,
       1,
       {-1.4142135, -2.1213202, 5.6568542, 2.8284271, 5.3033009, -0.7071068},
       {2.8284271, -3.5355337, 2.1213202, 3.5355339},
       {-14, -24.75, 18.5, 7, 14.25, 9.5}},
      {"linear",
       0.5,
       -2,
       {5, -3, 1, -2.5, 4.5, -2},
       {3, -2, 1, 4.5},
       {20, -18, 7, -6.25, 17.25, -8}},
      {"cat",
       1,
       1,
       {2, -4, 6, 1, 8, -2, -2, 0.5, 1, 1.5, -0.25, 0.5},
       {1, -3, 2, 1, 2, 0.5, -1, 4},
       {-3.5, -27.25, 14.5, 12.5, -5.5, 12}},
      {"cat",
       0.5,
       -2,
       {1, -2, 3, 0.5, 4, -1, 4, -1, -2, -3, 0.5, -1},
       {1, -3, 2, 1, 2, 0.5, -1, 4},
       {4.5, -15.5, 1, -13.75, 1, 3.5}},
      {"svd", 1, 1, {}, {}, {-3.5, -27.25, 14.5, 12.5, -5.5, 12}},
      {"svd", 0.5, -2, {}, {}, {4.5, -15.5, 1, -13.75, 1, 3.5}},
      {"ties",
       1,
       1,
       {-2.8284271, -2.8284271, 2.8284271, 2.1213202, 5.6568542, 0},
       {1.4142135, -4.2426405, 2.8284271, 2.8284271},
       {}},
      {"ties", 0.5, -2, {4, -2, 0.5, -3, 4, 0}, {2, -3, 2, 4}, {}},
      {"magnitude_prune",
       1,
       1,
       {-2.8284271, -2.8284271, 5.6568542, 2.1213202, 5.6568542, 0},
       {1.4142135, -4.2426405, 2.8284271, 2.8284271},
       {}},
      {"magnitude_prune", 0.5, -2, {4, -2, 1, -3, 4, 0}, {2, -3, 2, 4}, {}},
      {"ties_svd", 1, 1, {}, {}, {-2.5, -28, 7.25, 8, 0, 11}},
      {"ties_svd", 0.5, -2, {}, {}, {5, -14, 0.5, -16, 0, 5.5}},
      {"magnitude_prune_svd", 1, 1, {}, {}, {-2.5, -28, 14.5, 8, 0, 11}},
      {"magnitude_prune_svd", 0.5, -2, {}, {}, {5, -14, 1, -16, 0, 5.5}},
  };
  for (const Case& c : cases) {
    const Folder folder;
    write_pair(folder);
    const std::string type = c.type;
    const bool thins = type != "linear" && type != "cat" && type != "svd";
    for (const char* vote : {"total", "frequency"}) {
      std::string more = thins ? "parameters: {density: 0.5}\n" : "";
      if (type.starts_with("ties")) more += fmt::format("majority_sign: {}\n", vote);
      const std::string out = fmt::format("out-{}", vote);
      const auto found = merged(folder, recipe_of(type, c.wa, c.wb, more), out);
      const std::string what = fmt::format("{} ({}, {})", type, c.wa, c.wb);
      if (!c.a.empty()) {
        expect_near(found.at(kA).values, c.a, 1e-6, what + " A");
        expect_near(found.at(kB).values, c.b, 1e-6, what + " B");
      }
      if (!c.product.empty()) {
        expect_near(product(found.at(kB), found.at(kA)), c.product, 1e-5, what);
      }
      EXPECT_EQ(findings(folder, out), std::vector<std::string>()) << what;
    }
  }
}

TEST(Fuse, RepeatsTheDoubledScalingOfOldReleasesWhereAsked) {
  const Folder folder;
  write_pair(folder);
  const std::string compat = "compat: [svd-scaling-twice]\n";
  const auto check = [&](const char* type, double wa, double wb, const Dense& expected) {
    const bool thins = std::string(type) != "svd";
    const auto found = merged(
        folder, recipe_of(type, wa, wb, compat + (thins ? "parameters: {density: 0.5}\n" : "")),
        fmt::format("{}{}", type, wa));
    expect_near(product(found.at(kB), found.at(kA)), expected, 2e-5, type);
  };
  check("svd", 1, 1, {-3.25, -55.625, 25.25, 13, -8.75, 22.5});
  check("svd", 0.5, -2, {1.5, -28.75, 9.5, -3.5, -2.5, 10});
  check("ties_svd", 1, 1, {-1.25, -56, 12.625, 4, 0, 22});
  check("ties_svd", 0.5, -2, {2.5, -28, 4.75, -8, 0, 11});
  check("magnitude_prune_svd", 1, 1, {-1.25, -56, 25.25, 4, 0, 22});
  check("magnitude_prune_svd", 0.5, -2, {2.5, -28, 9.5, -8, 0, 11});
}

// DARE by plain loops in double, for masks from anywhere.
Dense dare(const std::vector<Dense>& x, const std::vector<std::vector<int>>& masks,
           const Dense& weights, double density, const std::string& vote) {
  Dense out(x[0].size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    Dense alive;
    double votes = 0;
    for (std::size_t s = 0; s < x.size(); ++s) {
      alive.push_back(masks[s][i] != 0 ? x[s][i] / density : 0.0);
      const double sign = alive[s] > 0 ? 1 : alive[s] < 0 ? -1 : 0;
      votes += vote == "total" ? alive[s] : sign;
    }
    double count = 0;
    for (std::size_t s = 0; s < x.size(); ++s) {
      const bool agrees = alive[s] != 0 && (alive[s] > 0) == (votes >= 0);
      if (vote.empty() || agrees) out[i] += alive[s] * weights[s];
      count += agrees ? 1 : 0;
    }
    if (!vote.empty()) out[i] /= std::max(count, 1.0);
  }
  return out;
}

TEST(Fuse, PlainLoopsOfDareHaveTheNumbersOfPeftUnderItsMasks) {
  const std::vector<Dense> a{{1, -2, 3, 0.5, 4, -1}, {-4, 1, 2, 3, -0.5, 1}};
  const std::vector<std::vector<int>> masks{{0, 1, 1, 1, 0, 0}, {1, 1, 1, 0, 0, 1}};
  const Dense weights{std::sqrt(2.0), std::sqrt(0.5)};
  expect_near(dare(a, masks, weights, 0.5, ""),
              Dense{-5.6568542, -4.2426405, 11.313708, 1.4142135, 0, 1.4142135}, 1e-6, "linear");
  expect_near(dare(a, masks, weights, 0.5, "total"),
              Dense{-5.6568542, -5.6568542, 5.6568542, 1.4142135, 0, 1.4142135}, 1e-6, "total");
  expect_near(dare(a, masks, weights, 0.5, "frequency"),
              Dense{-5.6568542, 1.4142135, 5.6568542, 1.4142135, 0, 1.4142135}, 1e-6, "frequency");
}

TEST(Fuse, DropsByItsOwnMasksAsPlainLoopsDo) {
  const Folder folder;
  test::Random random(5);
  Dense xa(48), xb(48);
  std::vector<float> fa, fb;
  for (Dense* x : {&xa, &xb}) {
    for (double& value : *x)
      value = static_cast<double>(static_cast<float>(random.uniform() - 0.5));
  }
  for (const double v : xa) fa.push_back(static_cast<float>(v));
  for (const double v : xb) fb.push_back(static_cast<float>(v));
  test::write_adapter(folder / "a", linear_factors(fa, fa));
  test::write_adapter(folder / "b", linear_factors(fb, fb));
  for (const auto& [type, vote] :
       {std::pair{"dare_linear", ""}, {"dare_ties", "total"}, {"dare_ties", "frequency"}}) {
    std::string more = "parameters: {density: 0.6}\n";
    if (*vote != '\0') more += fmt::format("majority_sign: {}\n", vote);
    const std::string out = fmt::format("{}{}", type, vote);
    const auto found = merged(folder, recipe_of(type, 2, -0.5, more), out);
    for (const auto& [name, sign] : {std::pair{kA, -1.0}, {kB, 1.0}}) {
      std::vector<std::vector<int>> masks(2);
      for (std::uint64_t s = 0; s < 2; ++s) {
        for (std::uint64_t i = 0; i < 48; ++i) {
          masks[s].push_back(math::keep(0, stream_key(name, "drop", s), i, math::probability(0.6)));
        }
      }
      const Dense expected =
          dare({xa, xb}, masks, {std::sqrt(2.0), sign * std::sqrt(0.5)}, 0.6, vote);
      expect_near(found.at(name).values, expected, 1e-6, out);
    }
    EXPECT_EQ(findings(folder, out), std::vector<std::string>());
    // The same masks on the update itself, under A's name.
    const auto svd = merged(
        folder, recipe_of(std::string(type) + "_svd", 2, -0.5, more + "rank: 24\n"), out + "_svd");
    std::vector<Dense> updates;
    for (const auto& f : {fa, fb}) {
      updates.push_back(product({{24, 2}, f}, {{2, 24}, f}));
      for (double& x : updates.back()) x = static_cast<double>(static_cast<float>(x));
    }
    std::vector<std::vector<int>> masks(2);
    for (std::uint64_t s = 0; s < 2; ++s) {
      for (std::uint64_t i = 0; i < 576; ++i) {
        masks[s].push_back(math::keep(0, stream_key(kA, "drop", s), i, math::probability(0.6)));
      }
    }
    expect_near(product(svd.at(kB), svd.at(kA)), dare(updates, masks, {2, -0.5}, 0.6, vote), 1e-5,
                out + "_svd");
  }
}

TEST(Fuse, OfOneAdapterIsTheAdapter) {
  for (const char* type : {"linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune_svd",
                           "dare_linear", "dare_ties_svd"}) {
    const Folder folder;
    write_pair(folder);
    const bool thins = std::string_view(type).find('_') != std::string_view::npos ||
                       std::string_view(type) == "ties";
    const auto found =
        merged(folder, fmt::format("adapter_method: {}\nadapters: [{{adapter: ./a}}]\n{}", type,
                                   thins ? "parameters: {density: 1}\n" : ""));
    expect_near(product(found.at(kB), found.at(kA)), Dense{-1, -28, 12, 4.5, -4, 11}, 1e-5, type);
  }
}

TEST(Fuse, CatIsTheSumWhateverTheRanks) {
  const Folder folder;
  write_pair(folder);
  test::write_adapter(folder / "b", linear_factors({1, 0, 2}, {3, -1}, 1),
                      R"("r": 1, "lora_alpha": 3)");
  const auto found = merged(folder, recipe_of("cat", 1, 2));
  EXPECT_EQ(found.at(kA).shape[0], 3U);
  expect_near(product(found.at(kB), found.at(kA)),
              Dense{-1 + 18, -28, 12 + 36, 4.5 - 6, -4, 11 - 12}, 1e-6, "cat");
  const auto svd = merged(folder, recipe_of("svd", 1, 2, "rank: 3\n"), "svd");
  expect_near(product(svd.at(kB), svd.at(kA)), product(found.at(kB), found.at(kA)), 1e-5, "svd");
  EXPECT_NE(refusal(folder, recipe_of("linear", 1, 2)).find("needs equal ranks: use cat, svd"),
            std::string::npos);
}

TEST(Fuse, DoesNotDependOnTheOrderOfAdapters) {
  const Folder folder;
  write_pair(folder);
  for (const char* type : {"cat", "linear", "ties"}) {
    const std::string more = std::string_view(type) == "ties" ? "parameters: {density: 0.5}\n" : "";
    const auto one = merged(folder, recipe_of(type, 2, 3, more), fmt::format("{}1", type));
    const auto two = merged(
        folder,
        fmt::format(
            "adapter_method: {}\nadapters:\n  - {{adapter: ./b, parameters: {{weight: 3}}}}\n"
            "  - {{adapter: ./a, parameters: {{weight: 2}}}}\n{}",
            type, more),
        fmt::format("{}2", type));
    expect_near(product(one.at(kB), one.at(kA)), product(two.at(kB), two.at(kA)), 1e-5, type);
  }
}

TEST(Fuse, WeighsModulesByFilter) {
  const Folder folder;
  Factors two = linear_factors({1, 0, 0, 0, 1, 0}, {1, 0, 0, 1});
  for (const char* side : {"A", "B"}) {
    two[fmt::format("gate.lora_{}.weight", side)] = two[fmt::format("fc.lora_{}.weight", side)];
  }
  test::write_adapter(folder / "a", two,
                      R"("r": 2, "lora_alpha": 2, "target_modules": ["fc", "gate"])");
  const auto found =
      merged(folder,
             "adapter_method: cat\nadapters:\n  - adapter: ./a\n    parameters:\n"
             "      weight:\n        - {filter: gate, value: 5}\n        - value: 2\n");
  EXPECT_EQ(found.at("base_model.model.gate.lora_A.weight").values,
            (std::vector<float>{5, 0, 0, 0, 5, 0}));
  EXPECT_EQ(found.at(kA).values, (std::vector<float>{2, 0, 0, 0, 2, 0}));
}

TEST(Fuse, FoldsScalingsSoThatTheResultHasNone) {
  const Folder folder;
  test::write_adapter(folder / "a", linear_factors({1, 0, 0, 1}, {1, 0, 0, 1}),
                      R"("r": 9, "lora_alpha": 9, "use_rslora": true, "rank_pattern": {"fc": 2},
                         "alpha_pattern": {"f.": 6})");
  const auto found = merged(folder, "adapter_method: cat\nadapters: [{adapter: ./a}]\n");
  expect_near(found.at(kA).values, Dense{6 / std::sqrt(2.0), 0, 0, 6 / std::sqrt(2.0)}, 1e-6, "A");
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["r"], 2);
  EXPECT_EQ(config["lora_alpha"], 2);
  EXPECT_EQ(config["use_rslora"], false);
  EXPECT_EQ(config["init_lora_weights"], true);
  EXPECT_EQ(config["target_modules"], nlohmann::json::array({"fc"}));
}

TEST(Fuse, KeepsACommonScalingWhereAsked) {
  const Folder folder;
  write_pair(folder);
  test::write_adapter(folder / "b", linear_factors({-4, 1, 2, 3, -0.5, 1}, {2, 1, -1, 4}),
                      R"("r": 2, "lora_alpha": 4)");
  const auto found = merged(folder, recipe_of("cat", 1, 3, "keep_scaling: true\n"));
  EXPECT_EQ(found.at(kA).values, (std::vector<float>{1, -2, 3, 0.5, 4, -1, -12, 3, 6, 9, -1.5, 3}));
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["lora_alpha"], 8);
  write_pair(folder);
  EXPECT_NE(
      refusal(folder, recipe_of("cat", 1, 3, "keep_scaling: true\n")).find("one scaling to keep"),
      std::string::npos);
}

TEST(Fuse, TakesModulesThatOnlySomeHave) {
  const Folder folder;
  write_pair(folder);
  Factors more = linear_factors({1, 2, 3, 4, 5, 6}, {1, 2, 3, 4});
  more["gate.lora_A.weight"] = {{2, 2}, {1, 2, 3, 4}};
  more["gate.lora_B.weight"] = {{2, 2}, {5, 6, 7, 8}};
  test::write_adapter(folder / "b", more,
                      R"("r": 2, "lora_alpha": 2, "target_modules": "fc|gate")");
  const Plan plan = plan_of(folder, recipe_of("linear", 1, 1));
  EXPECT_TRUE(std::any_of(plan.problems.begin(), plan.problems.end(), [](const Problem& p) {
    return p.text.find("1 of 2 modules are in only some of the adapters, for example gate") !=
           std::string::npos;
  }));
  const auto found = merged(folder, recipe_of("cat", 1, 1));
  EXPECT_EQ(found.at("base_model.model.gate.lora_B.weight").values,
            (std::vector<float>{5, 6, 7, 8}));
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["target_modules"], nlohmann::json::array({"fc", "gate"}));
  // fc has rank 4, gate 2: the larger is the rule, the other an exception for its path alone.
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["rank_pattern"].size(), 1U);
  EXPECT_EQ(config["rank_pattern"], config["alpha_pattern"]);
  EXPECT_EQ(config["rank_pattern"].begin().key().front(), '^');
}

TEST(Fuse, ChoosesRanksByEnergyAndWritesThemDown) {
  const Folder folder;
  // Singular values 10, 1, 0.1 of one module, 1, 1, 1 of the other.
  Factors three = linear_factors({10, 0, 0, 0, 1, 0, 0, 0, 0.1F}, {1, 0, 0, 0, 1, 0, 0, 0, 1}, 3);
  three["gate.lora_A.weight"] = three["gate.lora_B.weight"] = {{3, 3}, {1, 0, 0, 0, 1, 0, 0, 0, 1}};
  test::write_adapter(folder / "a", three,
                      R"("r": 3, "lora_alpha": 3, "target_modules": ["fc", "gate"])");
  const std::string recipe =
      "adapter_method: svd\nadapters: [{adapter: ./a}]\nrank: auto\nenergy: 0.95\n";
  const auto found = merged(folder, recipe);
  EXPECT_EQ(found.at(kA).shape[0], 1U);
  EXPECT_EQ(found.at("base_model.model.gate.lora_A.weight").shape[0], 3U);
  const std::string written = test::read_file(folder / "out/recipe.yml");
  EXPECT_NE(written.find("ranks:\n"), std::string::npos) << written;
  EXPECT_EQ(findings(folder), std::vector<std::string>());
}

TEST(Fuse, IsPlannedFromHeadersAlone) {
  for (const std::string type : {"svd", "ties_svd"}) {
    const std::string recipe = fmt::format(
        "adapter_method: {}\nadapters: [{{adapter: {}}}, {{adapter: {}}}]\nrank: auto\nenergy: "
        "0.9\n"
        "{}",
        type, test::example("adapters/c-lora"), test::example("adapters/python-lora"),
        type == "svd" ? "" : "parameters: {density: 0.5}\n");
    test::Watched sealed(true);
    const Plan plan = build(sealed, parse(recipe, "r.yml", {}), {});
    EXPECT_TRUE(plan.sound());
    ASSERT_EQ(plan.open.size(), 1U);
    EXPECT_NE(plan.open.front().find("which the run chooses by energy 0.9"), std::string::npos);
    // A run reads what one with a given rank reads.
    std::map<std::string, std::map<std::string, std::uint64_t>> read;
    const std::string given = recipe.substr(0, recipe.find("rank:")) + "rank: 4\n" +
                              recipe.substr(recipe.find("0.9\n") + 4);
    for (const std::string& each : {recipe, given}) {
      const Folder folder;
      test::Watched disk(false);
      test::Settings settings;
      settings.merge.threads = 1;  // two may hash one tensor at once
      (void)test::run_merge(each, folder / "out", settings, &disk);
      read[each] = disk.read();
      EXPECT_EQ(findings(folder), std::vector<std::string>());
    }
    EXPECT_EQ(read[recipe], read[given]) << type;
  }
}

TEST(Fuse, StacksAndSolvesExpertsOneByOne) {
  const Folder folder;
  // Two experts of rank 1, parameter (2, out 2, in 3): rows e of A, columns e of B.
  const auto write = [&](const char* name, std::vector<float> a, std::vector<float> b) {
    test::write_adapter(folder / name,
                        {{"mlp.experts.lora_A.weight", {{2, 3}, std::move(a)}},
                         {"mlp.experts.lora_B.weight", {{2, 2}, std::move(b)}}},
                        R"("r": 1, "lora_alpha": 2, "target_modules": [],
                           "target_parameters": ["mlp.experts.down_proj"])");
  };
  write("a", {1, 2, 3, 4, 5, 6}, {1, 2, 3, 4});
  write("b", {-1, 0, 1, 2, 0, 2}, {2, 1, 0, 1});
  const std::string a = "base_model.model.mlp.experts.lora_A.weight",
                    b = "base_model.model.mlp.experts.lora_B.weight";
  // Update of expert e: sum over ranks of B[o, k * E + e] * A[e * R + k, i].
  const auto update = [](const Values& right, const Values& left, std::uint64_t e) {
    const std::uint64_t rank = right.shape[0] / 2;
    Dense d(6);
    for (std::uint64_t o = 0; o < 2; ++o) {
      for (std::uint64_t k = 0; k < rank; ++k) {
        for (std::uint64_t i = 0; i < 3; ++i) {
          d[o * 3 + i] += static_cast<double>(left.values[o * rank * 2 + k * 2 + e]) *
                          static_cast<double>(right.values[(e * rank + k) * 3 + i]);
        }
      }
    }
    return d;
  };
  const std::vector<Dense> expected{{2 - 4, 4, 6 + 4, 6, 12, 18},
                                    {16 + 4, 20, 24 + 4, 32 + 4, 40, 48 + 4}};
  for (const char* type : {"cat", "svd"}) {
    const auto found = merged(
        folder, recipe_of(type, 1, 1, std::string_view(type) == "svd" ? "rank: 2\n" : ""), type);
    for (std::uint64_t e = 0; e < 2; ++e) {
      expect_near(update(found.at(a), found.at(b), e), expected[e], 1e-5,
                  fmt::format("{} expert {}", type, e));
    }
    EXPECT_EQ(findings(folder, type), std::vector<std::string>());
    const auto config = nlohmann::json::parse(
        test::read_file(folder / fmt::format("{}/adapter_config.json", type)));
    EXPECT_EQ(config["target_parameters"], nlohmann::json::array({"mlp.experts.down_proj"}));
    EXPECT_EQ(config["r"], 2);
  }
}

// As PEFT makes them for all linear layers of a model whose experts it fuses: gate and up have
// twice the rank, and both parameters wrap one module.
TEST(Fuse, GivesParametersOfExpertsOneRankWithZeros) {
  const Folder folder;
  const auto write = [&](const char* name, float times) {
    const auto count = [&](std::size_t n) {
      std::vector<float> values(n);
      for (std::size_t i = 0; i < n; ++i) values[i] = times * static_cast<float>(1 + i % 5);
      return values;
    };
    test::write_adapter(folder / name,
                        {{"mlp.experts.base_layer.lora_A.weight", {{4, 3}, count(12)}},
                         {"mlp.experts.base_layer.lora_B.weight", {{6, 4}, count(24)}},
                         {"mlp.experts.lora_A.weight", {{2, 3}, count(6)}},
                         {"mlp.experts.lora_B.weight", {{3, 2}, count(6)}},
                         {"fc.lora_A.weight", {{1, 3}, count(3)}},
                         {"fc.lora_B.weight", {{2, 1}, count(2)}}},
                        R"("r": 1, "lora_alpha": 1, "target_modules": ["fc"],
                           "rank_pattern": {".*\\.gate_up_proj": 2},
                           "alpha_pattern": {".*\\.gate_up_proj": 2},
                           "target_parameters": ["mlp.experts.gate_up_proj",
                                                 "mlp.experts.down_proj"])");
  };
  write("a", 1);
  write("b", -2);
  const std::string owner = "base_model.model.mlp.experts.";
  // Of expert 1, element (0, 0).
  const auto corner = [](const Values& a, const Values& b) {
    const std::uint64_t rank = a.shape[0] / 2;
    double sum = 0;
    for (std::uint64_t k = 0; k < rank; ++k) {
      sum += static_cast<double>(b.values[k * 2 + 1]) *
             static_cast<double>(a.values[(rank + k) * a.shape[1]]);
    }
    return sum;
  };
  const auto source = [&](const char* name, const std::string& piece) {
    const auto all = test::read_adapter_values(folder / name);
    return corner(all.at(owner + piece + "lora_A.weight"), all.at(owner + piece + "lora_B.weight"));
  };
  for (const char* type : {"cat", "svd"}) {
    const auto found = merged(folder, recipe_of(type, 1, 1), type);
    EXPECT_EQ(findings(folder, type), std::vector<std::string>());
    const auto config = nlohmann::json::parse(
        test::read_file(folder / fmt::format("{}/adapter_config.json", type)));
    for (const char* piece : {"base_layer.", ""}) {
      const Values& a = found.at(owner + piece + "lora_A.weight");
      EXPECT_EQ(a.shape[0], 2 * config["r"].get<std::uint64_t>()) << piece;
      if (std::string_view(type) == "cat") {
        EXPECT_NEAR(corner(a, found.at(owner + piece + "lora_B.weight")),
                    source("a", piece) + source("b", piece), 1e-5);
      }
    }
    // PEFT would say that it ignores patterns for parameters.
    for (const auto& [key, rank] : config["rank_pattern"].items()) {
      EXPECT_EQ(key.find("experts"), std::string::npos) << key;
    }
  }
  // One adapter stays what it is.
  (void)merged(folder, "adapter_method: cat\nadapters: [{adapter: ./a}]\n", "one");
  EXPECT_EQ(findings(folder, "one"), std::vector<std::string>());
}

TEST(Fuse, GivesAllModulesOneRankForLlamaCpp) {
  const Folder folder;
  write_pair(folder);
  Factors more = linear_factors({1, 2, 3, 4, 5, 6}, {1, 2, 3, 4});
  more["gate.lora_A.weight"] = {{2, 2}, {1, 2, 3, 4}};
  more["gate.lora_B.weight"] = {{2, 2}, {5, 6, 7, 8}};
  test::write_adapter(folder / "b", more,
                      R"("r": 2, "lora_alpha": 2, "target_modules": ["fc", "gate"])");
  const auto found = merged(folder, recipe_of("cat", 1, 1, "for: llama.cpp\n"));
  EXPECT_EQ(found.at("base_model.model.gate.lora_A.weight").values,
            (std::vector<float>{1, 2, 3, 4, 0, 0, 0, 0}));
  EXPECT_EQ(found.at("base_model.model.gate.lora_B.weight").values,
            (std::vector<float>{5, 6, 0, 0, 7, 8, 0, 0}));
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["rank_pattern"], nlohmann::json::object());
  EXPECT_EQ(findings(folder), std::vector<std::string>());
  const Plan plan = plan_of(folder, recipe_of("cat", 1, 1, "for: llama.cpp\n"));
  EXPECT_EQ(plan.notes, std::vector<std::string>{"rank 4 (2 + 2)"});
}

// Two adapters of a convolution with 4 inputs, 4 outputs and 2 groups, of ranks 2 and 4.
void write_grouped(const Folder& folder) {
  test::write_adapter(folder / "a",
                      {{"fc.lora_A.weight", {{2, 4, 1, 1}, {1, 2, 3, 4, -1, 0, 1, 2}}},
                       {"fc.lora_B.weight", {{4, 1, 1, 1}, {1, 2, 3, -4}}}},
                      R"("r": 2, "lora_alpha": 2)");
  test::write_adapter(
      folder / "b",
      {{"fc.lora_A.weight", {{4, 4, 1, 1}, {2, 0, 0, 1, 0, 5, 1, 0, 1, 1, 1, 1, 3, 0, -2, 0}}},
       {"fc.lora_B.weight", {{4, 2, 1, 1}, {1, 0, 2, -1, 0, 1, 3, 2}}}},
      R"("r": 4, "lora_alpha": 2)");
}

// What a grouped convolution's factors do to its inputs: an output sees the ranks of its group.
Dense grouped_update(const Values& b, const Values& a, std::uint64_t groups) {
  const std::uint64_t ranks = b.shape[1], height = b.shape[0];
  const std::uint64_t width = a.values.size() / a.shape[0];
  Dense update(height * width);
  for (std::uint64_t o = 0; o < height; ++o) {
    for (std::uint64_t k = 0; k < ranks; ++k) {
      const std::uint64_t row = o / (height / groups) * ranks + k;
      for (std::uint64_t i = 0; i < width; ++i) {
        update[o * width + i] += static_cast<double>(b.values[o * ranks + k]) *
                                 static_cast<double>(a.values[row * width + i]);
      }
    }
  }
  return update;
}

TEST(Fuse, StacksGroupedConvolutionsGroupByGroup) {
  const Folder folder;
  write_grouped(folder);
  const auto a = test::read_adapter_values(folder / "a"),
             b = test::read_adapter_values(folder / "b");
  const Dense one = grouped_update(a.at(kB), a.at(kA), 2),
              other = grouped_update(b.at(kB), b.at(kA), 2);
  Dense expected(one.size());
  for (std::size_t i = 0; i < one.size(); ++i) expected[i] = 2 * one[i] - 0.5 * other[i];
  const auto found = merged(folder, recipe_of("cat", 2, -1));  // b's own scaling is a half
  EXPECT_EQ(found.at(kA).shape, (Shape{6, 4, 1, 1}));
  EXPECT_EQ(found.at(kB).shape, (Shape{4, 3, 1, 1}));
  expect_near(grouped_update(found.at(kB), found.at(kA), 2), expected, 1e-6, "cat");
  EXPECT_EQ(findings(folder), std::vector<std::string>());
  const auto config = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(config["r"], 6);
  EXPECT_EQ(config["lora_alpha"], 6);
}

TEST(Fuse, CombinesFactorsOfGroupedConvolutionsAsTheyLie) {
  const Folder folder;
  write_grouped(folder);
  const auto one = test::read_adapter_values(folder / "a");
  const auto found = merged(
      folder, "adapter_method: linear\nadapters: [{adapter: ./a, parameters: {weight: 4}}]\n");
  for (const char* name : {kA, kB}) {
    EXPECT_EQ(found.at(name).shape, one.at(name).shape);
    Dense twice;
    for (const float x : one.at(name).values) twice.push_back(2 * static_cast<double>(x));
    expect_near(found.at(name).values, twice, 0, name);
  }
  EXPECT_EQ(findings(folder), std::vector<std::string>());
}

TEST(Fuse, RefusesToDecomposeGroupedConvolutions) {
  const Folder folder;
  write_grouped(folder);
  EXPECT_NE(refusal(folder, recipe_of("svd", 1, 1))
                .find("fc: ./a adapts a convolution of 2 groups, whose parts adapter_method 'svd' "
                      "would mix: use cat or a type on factors"),
            std::string::npos)
      << refusal(folder, recipe_of("svd", 1, 1));
  test::write_adapter(folder / "b",
                      {{"fc.lora_A.weight", {{2, 4, 1, 1}, {1, 2, 3, 4, -1, 0, 1, 2}}},
                       {"fc.lora_B.weight", {{4, 2, 1, 1}, {1, 0, 2, -1, 0, 1, 3, 2}}}});
  EXPECT_NE(refusal(folder, recipe_of("cat", 1, 1)).find("2 and 1 groups there"),
            std::string::npos);
}

TEST(Fuse, WarnsOfAnAdapterThatIsListedTwice) {
  const Folder folder;
  write_pair(folder);
  std::filesystem::create_directory_symlink(folder / "a", folder / "link");
  const auto warnings = [&](const std::string& list) {
    std::vector<std::string> texts;
    for (const Problem& p :
         plan_of(folder, "adapter_method: cat\nadapters: [" + list + "]\n").problems) {
      EXPECT_FALSE(p.fatal) << p.text;
      if (p.text.find("is listed") != std::string::npos) texts.push_back(p.text);
    }
    return texts;
  };
  EXPECT_TRUE(warnings("{adapter: ./a}, {adapter: ./b}").empty());
  EXPECT_EQ(
      warnings("{adapter: a}, {adapter: ./b}, {adapter: a}"),
      (std::vector<std::string>{"recipe.yml: adapter 'a' is listed 2 times and counts each time"}));
  EXPECT_EQ(
      warnings("{adapter: a}, {adapter: ./a/}, {adapter: b}, {adapter: link}"),
      (std::vector<std::string>{
          "recipe.yml: adapter './a/' = 'a' = 'link' is listed 3 times and counts each time"}));
}

TEST(Fuse, MergesVectorsAsDifferencesFromOne) {
  const Folder folder;
  const char* config =
      R"("peft_type": "IA3", "target_modules": ["k", "v"], "feedforward_modules": [])";
  test::write_adapter(folder / "a",
                      {{"k.ia3_l", {{2, 1}, {2, 0.5}}}, {"v.ia3_l", {{2, 1}, {2, 0.5}}}}, config);
  test::write_adapter(folder / "b", {{"k.ia3_l", {{2, 1}, {-1, 4}}}},
                      R"("peft_type": "IA3", "target_modules": ["k"], "feedforward_modules": [])");
  const auto found = merged(folder, recipe_of("linear", 0.5, 2));
  // 1 + 0.5 (2 - 1) + 2 (-1 - 1), ...
  EXPECT_EQ(found.at("base_model.model.k.ia3_l").values, (std::vector<float>{-2.5, 6.75}));
  EXPECT_EQ(found.at("base_model.model.v.ia3_l").values, (std::vector<float>{1.5, 0.75}));
  const auto plain =
      merged(folder, recipe_of("linear", 0.5, 2, "compat: [ia3-plain-sum]\n"), "plain");
  EXPECT_EQ(plain.at("base_model.model.k.ia3_l").values, (std::vector<float>{-1, 8.25}));
  EXPECT_EQ(plain.at("base_model.model.v.ia3_l").values, (std::vector<float>{1, 0.25}));
  for (const char* extra : {"", "compat: [ia3-plain-sum]\n"}) {
    const auto other = merged(folder, recipe_of("cat", 0.5, 2, extra), *extra == 0 ? "c" : "d");
    EXPECT_EQ(other.at("base_model.model.k.ia3_l").values,
              (*extra == 0 ? found : plain).at("base_model.model.k.ia3_l").values);
  }
  EXPECT_EQ(findings(folder), std::vector<std::string>());
  const auto json = nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"));
  EXPECT_EQ(json["peft_type"], "IA3");
  EXPECT_EQ(json["target_modules"], nlohmann::json::array({"k", "v"}));
}

TEST(Fuse, CarriesWhatOneBringsInFullAndAveragesOnRequest) {
  const Folder folder;
  Factors head = linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5});
  head["head.weight"] = {{2, 2}, {1, 2, 3, 4}};
  const char* config =
      R"("r": 2, "lora_alpha": 2, "target_modules": ["fc"], "modules_to_save": ["head"])";
  write_pair(folder);
  test::write_adapter(folder / "a", head, config);
  auto found = merged(folder, recipe_of("cat", 2, 1), "one");
  EXPECT_EQ(found.at("base_model.model.head.weight").values, (std::vector<float>{1, 2, 3, 4}));
  EXPECT_EQ(
      nlohmann::json::parse(test::read_file(folder / "one/adapter_config.json"))["modules_to_save"],
      nlohmann::json::array({"head"}));
  head["head.weight"].values = {5, 6, 7, 12};
  test::write_adapter(folder / "b", head, config);
  EXPECT_NE(refusal(folder, recipe_of("cat", 3, 1)).find("whole_tensors: average"),
            std::string::npos);
  found = merged(folder, recipe_of("cat", 3, 1, "whole_tensors: average\n"), "two");
  EXPECT_EQ(found.at("base_model.model.head.weight").values, (std::vector<float>{2, 3, 4, 6}));
}

TEST(Fuse, AddsBiasesOfB) {
  const Folder folder;
  write_pair(folder);
  Factors biased = linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5});
  biased["fc.lora_B.bias"] = {{2}, {1, 10}};
  test::write_adapter(folder / "a", biased, R"("r": 2, "lora_alpha": 4, "lora_bias": true)");
  const auto found = merged(folder, recipe_of("cat", 3, 1));
  EXPECT_EQ(found.at("base_model.model.fc.lora_B.bias").values, (std::vector<float>{6, 60}));
  EXPECT_EQ(nlohmann::json::parse(test::read_file(folder / "out/adapter_config.json"))["lora_bias"],
            true);
}

TEST(Fuse, KeepsMagnitudesOfOneAdapterAndRefusesMore) {
  const Folder folder;
  write_pair(folder);
  Factors dora = linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5});
  dora["fc.lora_magnitude_vector"] = {{2}, {7, 8}};
  test::write_adapter(folder / "a", dora, R"("r": 2, "lora_alpha": 4, "use_dora": true)");
  const auto found = merged(folder, "adapter_method: cat\nadapters: [{adapter: ./a}]\n");
  EXPECT_EQ(found.at("base_model.model.fc.lora_magnitude_vector").values,
            (std::vector<float>{7, 8}));
  EXPECT_NE(refusal(folder, recipe_of("cat", 1, 1)).find("is DoRA"), std::string::npos);
  EXPECT_NE(
      refusal(folder, "adapter_method: cat\nadapters: [{adapter: ./a, parameters: {weight: 2}}]\n")
          .find("is DoRA"),
      std::string::npos);
}

TEST(Fuse, RefusesWithTheReason) {
  const Folder folder;
  write_pair(folder);
  const auto expect = [&](const std::string& recipe, const char* reason) {
    const std::string found = refusal(folder, recipe);
    EXPECT_NE(found.find(reason), std::string::npos) << recipe << "\n" << found;
  };
  expect(recipe_of("tie", 1, 1), "did you mean 'ties'?");
  expect(recipe_of("foo_svd", 1, 1), "there is no adapter_method 'foo_svd'");
  expect(recipe_of("ties", 1, 1), "needs 'density'");
  expect(recipe_of("ties", 1, 1, "parameters: {density: 0}\n"), "above 0 and at most 1");
  expect(recipe_of("dare_ties", 1, 1, "parameters: {density: 1.5}\n"), "above 0 and at most 1");
  expect(recipe_of("linear", 1, 1, "parameters: {density: 0.5}\n"), "'density' changes nothing");
  expect(recipe_of("linear", 1, 1, "majority_sign: total\n"), "changes nothing");
  expect(recipe_of("cat", 1, 1, "rank: 4\n"), "changes nothing");
  expect(recipe_of("svd", 1, 1, "energy: 0.5\n"), "goes with 'rank: auto'");
  expect(recipe_of("svd", 1, 1, "rank: auto\n"), "needs 'energy'");
  expect(recipe_of("svd", 1, 1, "compat: [yes-please]\n"), "'compat' is one of");
  test::write_adapter(folder / "b", linear_factors({1, 2, 3, 4}, {1, 2, 3, 4}));
  expect(recipe_of("cat", 1, 1), "they adapt different models");
  test::write_adapter(folder / "b", {{"fc.ia3_l", {{2, 1}, {1, 1}}}},
                      R"("peft_type": "IA3", "target_modules": ["fc"], "feedforward_modules": [])");
  expect(recipe_of("linear", 1, 1), "only adapters of the same type can be merged");
  expect("adapter_method: ties\nadapters: [{adapter: ./b}]\nparameters: {density: 0.5}\n",
         "adapter_method linear");
}

TEST(Fuse, RefusesWeightsAndScalingsThatSinglePrecisionLoses) {
  for (const char* type : {"linear", "cat", "svd", "ties", "dare_linear_svd"}) {
    const Folder folder;
    write_pair(folder);
    const bool thins = std::string_view(type) != "linear" && std::string_view(type) != "cat" &&
                       std::string_view(type) != "svd";
    const std::string more = thins ? "parameters: {density: 0.5}\n" : "";
    const std::string found = refusal(folder, recipe_of(type, 1e-45, 1, more));
    EXPECT_NE(found.find("recipe.yml:3:33: the weight of ./a for fc is"), std::string::npos)
        << found;
    // The weight is fair, its product with the scaling of 1e-30 is not.
    test::write_adapter(folder / "a", linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5}),
                        R"("r": 2, "lora_alpha": 2e-30)");
    const std::string product = refusal(folder, recipe_of(type, 1e-20, 1, more));
    EXPECT_NE(product.find("its scaling 1e-30"), std::string::npos) << product;
    test::write_adapter(folder / "a", linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5}),
                        R"("r": 2, "lora_alpha": 1e-44)");
    const std::string scaling = refusal(folder, recipe_of(type, 1, 1, more));
    EXPECT_NE(scaling.find("a scaling too small for float32"), std::string::npos) << scaling;
  }
}

// Finite factors of any size: finite factors, or an error before anything is published.
TEST(Fuse, OfHugeOrTinyFactorsIsRightOrAnError) {
  const auto scaled = [](std::vector<float> values, float by) {
    for (float& x : values) x *= by;
    return values;
  };
  for (const char* type : {"svd", "linear", "cat", "ties_svd", "dare_linear_svd"}) {
    const bool thins =
        std::string_view(type).find("ties") == 0 || std::string_view(type).find("dare") == 0;
    const std::string more = thins ? "parameters: {density: 1.0}\n" : "";
    for (const float by : {1e-30F, 1e-18F, 1e18F, 1e30F}) {
      const Folder folder;
      // Of the product of B and A every element is `by` squared times a small number.
      const bool fits = by < 1e19F;
      const float b = by < 1 ? by : fits ? by : 3e38F / 4, a = by < 1e19F ? by : 1e30F;
      test::write_adapter(folder / "a", linear_factors(scaled({1, -2, 3, 0.5, 4, -1}, a / 8),
                                                       scaled({1, -3, 2, 0.5}, b / 8)));
      test::write_adapter(folder / "b", linear_factors(scaled({-4, 1, 2, 3, -0.5, 1}, a / 8),
                                                       scaled({2, 1, -1, 4}, b / 8)));
      try {
        const auto found = merged(folder, recipe_of(type, 1, 1, more));
        for (const auto& [name, tensor] : found) {
          for (const float x : tensor.values) EXPECT_TRUE(std::isfinite(x)) << type << by << name;
        }
        const auto wrong = findings(folder);
        EXPECT_TRUE(wrong.empty()) << type << by << wrong.front();
      } catch (const Error& error) {
        EXPECT_EQ(exit_code(error.code()), 3) << type << by << error.what();
        EXPECT_FALSE(std::filesystem::exists(folder / "out"));
        EXPECT_FALSE(fits) << type << by << error.what();
      }
    }
  }
}

// Weights that put B below float16's numbers: A takes a share, or the merge says what it cannot
// hold.
TEST(Fuse, OfSmallUpdatesInFloat16IsRightOrAnError) {
  for (const double weight : {1.0, 1e-3, 1e-5, 1e-7, 1e-12}) {
    const Folder folder;
    test::write_adapter(folder / "a", linear_factors({1, -2, 3, 0.5, 4, -1}, {1, -3, 2, 0.5}));
    test::write_adapter(folder / "b", linear_factors({-4, 1, 2, 3, -0.5, 1}, {2, 1, -1, 4}));
    try {
      (void)merged(folder, recipe_of("svd", weight, weight, "dtype: float16\n"));
      const auto wrong = findings(folder);
      EXPECT_TRUE(wrong.empty()) << weight << wrong.front();
      EXPECT_GT(weight, 1e-11);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::range) << error.what();
      EXPECT_FALSE(std::filesystem::exists(folder / "out"));
      EXPECT_NE(std::string(error.what()).find("float16 cannot hold"), std::string::npos)
          << error.what();
      EXPECT_LT(weight, 1e-6) << error.what();
    }
  }
}

TEST(Fuse, RefusesValuesThatAreNoNumbers) {
  for (const char* type : {"linear", "cat", "svd", "ties", "ties_svd"}) {
    const Folder folder;
    write_pair(folder);
    test::write_adapter(folder / "b",
                        linear_factors({-4, 1, std::nanf(""), 3, -0.5, 1}, {2, 1, -1, 4}));
    const std::string more =
        std::string_view(type).starts_with("ties") ? "parameters: {density: 0.5}\n" : "";
    try {
      (void)merged(folder, recipe_of(type, 1, 1, more));
      FAIL() << type;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("lora_A.weight holds nan"), std::string::npos)
          << error.what();
    }
  }
}

TEST(Fuse, SameBytesForAnyThreadsAndInstructionSet) {
  for (const char* type : {"linear", "cat", "ties", "dare_ties", "svd", "ties_svd"}) {
    const std::string_view name = type;
    const std::string recipe = fmt::format(
        "adapter_method: {}\nadapters:\n  - {{adapter: ./adapters/c-lora, parameters: {{weight: "
        "2}}}}\n"
        "  - adapter: ./adapters/prose-lora\n  - adapter: ./adapters/python-lora\n{}",
        type,
        name == "linear" || name == "cat" || name == "svd" ? "" : "parameters: {density: 0.4}\n");
    const Folder folder;
    std::map<std::string, std::string> first;
    for (const auto& [threads, isa] : {std::pair{1, ""}, {3, ""}, {2, "v2"}}) {
      test::Settings settings;
      settings.merge.threads = threads;
      settings.isa = isa;
      settings.merge.force = true;
      (void)test::run_merge(recipe, folder / "out", settings);
      const auto print = test::fingerprint(folder / "out");
      if (first.empty()) first = print;
      EXPECT_EQ(print, first) << type << " " << threads << isa;
    }
  }
}

// What is left of an update of rank 4 is the rounding of its factors alone: verify allows it.
TEST(Fuse, VerifyAllowsTheRoundingOfFactors) {
  for (const char* dtype : {"float32", "float16", "bfloat16"}) {
    const Folder folder;
    test::Random random(1);
    const auto values = [&](std::uint64_t count) {
      std::vector<float> out(count);
      for (float& x : out) x = static_cast<float>(2 * random.uniform() - 1);
      return out;
    };
    for (const char* name : {"a", "b"}) {
      test::write_adapter(folder / name, linear_factors(values(2 * 96), values(80 * 2)),
                          R"("r": 2, "lora_alpha": 4)");
    }
    test::Settings settings;
    settings.plan.root = folder.path();
    settings.plan.dtype = dtype;
    (void)test::run_merge(recipe_of("svd", 1, 1, "rank: 4\n"), folder / "out", settings);
    EXPECT_EQ(findings(folder), std::vector<std::string>()) << dtype;
  }
}

TEST(Fuse, VerifyFindsFactorsThatAreNotTheBest) {
  const Folder folder;
  write_pair(folder);
  (void)merged(folder, recipe_of("svd", 1, 1, "rank: 1\n"));
  EXPECT_EQ(findings(folder), std::vector<std::string>());
  std::string bytes = test::read_file(folder / "out/adapter_model.safetensors");
  float value = 0;
  std::memcpy(&value, bytes.data() + bytes.size() - 4, 4);
  value *= 1.5F;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  test::write_file(folder / "out/adapter_model.safetensors", bytes);
  const auto found = findings(folder);
  EXPECT_TRUE(std::any_of(found.begin(), found.end(), [](const std::string& text) {
    return text.find("best factors of rank 1") != std::string::npos;
  }));
}

}  // namespace
}  // namespace ingot
