// Holds `ingot bake` to PEFT's merge_and_unload of the example adapters: rows of every changed
// tensor recorded by tools/bakes.py in golden/bakes.
#include <cmath>
#include <cstdio>

#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "merging.hpp"
#include "store/values.hpp"

namespace ingot::test {
namespace {

using Values = std::vector<float>;

const std::string kFolder = std::string(INGOT_SOURCE) + "/tests/golden/bakes";
const char* kRegenerate = "run: tools/oracle.py setup && tools/bakes.py record";

// The recorder's summary; empty where it is absent or damaged, which `AreFresh` reports.
const nlohmann::json& summary() {
  static const nlohmann::json parsed = [] {
    nlohmann::json json = nlohmann::json::parse(read_file(kFolder + "/bakes.json"), nullptr, false);
    return json.is_object() ? json : nlohmann::json::object();
  }();
  return parsed;
}

Values values_of(const Checkpoint& checkpoint, const Entry& entry) {
  Values values(entry.info.count());
  read_values(checkpoint, entry, 0, values);
  return values;
}

TEST(BakeGoldens, AreFresh) {
  ASSERT_TRUE(summary().contains("files") && summary().contains("cases")) << kRegenerate;
  EXPECT_GE(summary()["cases"].size(), 12U) << kRegenerate;
  for (const auto& [path, hash] : summary()["files"].items()) {
    const std::string bytes = read_file(std::string(INGOT_SOURCE) + "/" + path);
    char text[17];
    std::snprintf(text, sizeof text, "%016llx",
                  static_cast<unsigned long long>(XXH64(bytes.data(), bytes.size(), 0)));
    EXPECT_EQ(hash, text) << path << " changed since the goldens were recorded; " << kRegenerate;
  }
}

class Bakes : public testing::TestWithParam<std::string> {};

TEST_P(Bakes, GiveWhatPeftGives) {
  const Folder folder;
  std::string recipe =
      "merge_method: passthrough\nmodels:\n- model:\n    path: models/base\n"
      "    adapters:\n";
  for (const auto& name : summary()["cases"][GetParam()]["adapters"]) {
    recipe += "    - adapters/" + name.get<std::string>() + "\n";
  }
  Settings settings;
  settings.plan.dtype = "float32";
  static_cast<void>(run_merge(recipe, folder / "out", settings));

  const auto disk = system_disk();
  const Checkpoint baked = Checkpoint::open(*disk, folder / "out", "out");
  const Checkpoint base = Checkpoint::open(*disk, example("models/base"), "base");
  const Checkpoint peft =
      Checkpoint::open(*disk, kFolder + "/" + GetParam() + ".safetensors", GetParam());
  EXPECT_EQ(baked.entries().size(), base.entries().size());
  std::size_t changed = 0;
  for (const Entry& entry : baked.entries()) {
    SCOPED_TRACE(entry.info.name);
    const Values found = values_of(baked, entry);
    const Entry* recorded = peft.find(entry.info.name);
    if (recorded == nullptr) {
      EXPECT_EQ(found, values_of(base, *base.find(entry.info.name)));
      continue;
    }
    ++changed;
    const Values theirs = values_of(peft, *recorded);
    ASSERT_LE(theirs.size(), found.size());
    float largest = 0;
    for (const float x : theirs) largest = std::max(largest, std::fabs(x));
    const std::size_t skip = found.size() - theirs.size();  // the last rows were kept
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      ASSERT_NEAR(found[skip + i], theirs[i], 0x1p-21F * largest) << i;
    }
  }
  EXPECT_EQ(changed, peft.entries().size());
  VerifyOptions options;
  options.all = true;
  options.root = example("");
  const Verdicts verdicts = verify(*disk, folder / "out", options);
  EXPECT_TRUE(verdicts.findings.empty()) << verdicts.findings[0].text;
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  if (!summary().contains("cases")) return all;
  for (const auto& [name, entry] : summary()["cases"].items()) all.push_back(name);
  return all;
}

INSTANTIATE_TEST_SUITE_P(Examples, Bakes, testing::ValuesIn(names()), [](const auto& given) {
  std::string name = given.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace ingot::test
