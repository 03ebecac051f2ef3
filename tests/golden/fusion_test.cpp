// Holds merges of adapters to PEFT's add_weighted_adapter: updates recorded by tools/fusions.py.
#include <cmath>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "adapting.hpp"
#include "merging.hpp"

namespace ingot::test {
namespace {

const std::string kRecord = std::string(INGOT_SOURCE) + "/tests/golden/fusions.json";

nlohmann::json record() { return nlohmann::json::parse(read_file(kRecord)); }

TEST(Fusions, RecordIsOfTheScriptThatStandsHere) {
  const auto all = record();
  for (const auto& [file, hash] : all["files"].items()) {
    const std::string text = read_file(std::string(INGOT_SOURCE) + "/" + file);
    EXPECT_EQ(fmt::format("{:016x}", XXH64(text.data(), text.size(), 0)), hash.get<std::string>())
        << file << " changed: run tools/fusions.py";
  }
}

class Fusion : public testing::TestWithParam<std::size_t> {};

TEST_P(Fusion, HasThePeersUpdates) {
  const auto all = record();
  const auto& expected = all["cases"][GetParam()];
  const std::string type = expected["type"];
  std::string recipe = fmt::format("adapter_method: {}\nadapters:\n", type);
  for (std::size_t i = 0; i < all["adapters"].size(); ++i) {
    recipe += fmt::format("  - {{adapter: ./adapters/{}, parameters: {{weight: {}}}}}\n",
                          all["adapters"][i].get<std::string>(), all["weights"][i].get<double>());
  }
  if (type != "linear" && type != "cat" && type != "svd") {
    recipe += fmt::format("parameters: {{density: {}}}\n", all["density"].get<double>());
  }
  if (type.find("ties") != std::string::npos) {
    recipe += fmt::format("majority_sign: {}\n", expected["vote"].get<std::string>());
  }
  if (expected["rank"] != 0) recipe += fmt::format("rank: {}\n", expected["rank"].get<int>());
  const Folder folder;
  (void)run_merge(recipe, folder / "out");
  const auto found = read_adapter_values(folder / "out");
  for (const auto& [module, update] : expected["modules"].items()) {
    const Values& a = found.at("base_model.model." + module + ".lora_A.weight");
    const Values& b = found.at("base_model.model." + module + ".lora_B.weight");
    const std::uint64_t rank = a.shape[0], width = a.shape[1], height = b.shape[0];
    const auto element = [&](std::uint64_t at) {
      double sum = 0;
      for (std::uint64_t k = 0; k < rank; ++k) {
        sum += static_cast<double>(b.values[at / width * rank + k]) *
               static_cast<double>(a.values[k * width + at % width]);
      }
      return sum;
    };
    double norm = 0;
    for (std::uint64_t i = 0; i < height * width; ++i) norm += element(i) * element(i);
    norm = std::sqrt(norm);
    EXPECT_NEAR(norm, update["norm"].get<double>(), 1e-5 * norm) << type << " " << module;
    // PEFT's own arithmetic is f32 throughout; a typical element is the norm over the root of the
    // count.
    const double typical = norm / std::sqrt(static_cast<double>(height * width));
    for (std::size_t i = 0; i < update["elements"].size(); ++i) {
      const std::uint64_t at = i * 7919 % (height * width);
      EXPECT_NEAR(element(at), update["elements"][i].get<double>(), 1e-4 * typical)
          << type << " " << module << " [" << at << "]";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Recorded, Fusion, testing::Range<std::size_t>(0, 16),
                         [](const testing::TestParamInfo<std::size_t>& one) {
                           const nlohmann::json all = record();
                           const nlohmann::json& which = all["cases"][one.param];
                           return fmt::format("{}_{}_{}", std::string(which["type"]),
                                              std::string(which["vote"]), one.param);
                         });

}  // namespace
}  // namespace ingot::test
