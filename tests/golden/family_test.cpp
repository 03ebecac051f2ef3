// Holds `bake` to PEFT's merge_and_unload for every family of adapters: folders and merged tensors
// recorded by tools/families.py in golden/families.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>

#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "ingot/math/codec.hpp"
#include "merging.hpp"
#include "store/values.hpp"

namespace ingot::test {
namespace {

using Values = std::vector<float>;
using Bf16 = math::Codec<math::Format::bf16>;

const std::string kFolder = std::string(INGOT_SOURCE) + "/tests/golden/families";
constexpr std::string_view kRaised = "@f32";  // tensors of the base raised to f32

Values values_of(const Checkpoint& checkpoint, const Entry& entry) {
  Values values(entry.info.count());
  read_values(checkpoint, entry, 0, values);
  return values;
}

// Codes of bf16 in the order of their values.
int ordered(float x) {
  const auto code = static_cast<int>(Bf16::encode(x, {}));
  return (code & 0x8000) != 0 ? -(code & 0x7fff) : code;
}

// PEFT rounds to bf16 after every adapter; in three places it rounds the change as well, and it
// prunes AdaLoRA's factors into the type of the base.
bool rounds_once(const std::string& name) {
  static const std::set<std::string> others = {
      "adalora",      "dora-after-lora",         "dora-two",   "loha-two",
      "lora-experts", "lora-experts-transposed", "lora-pissa", "lora-attention",
      "lora-two",     "lora-embedding",          "oft-series"};
  return !others.contains(name);
}

// The base under a case's adapters, in `out`.
void bake(const std::string& name, const std::string& dtype, const std::string& out) {
  std::string recipe = "merge_method: passthrough\nmodels:\n  - model:\n      path: " + kFolder +
                       "/base\n      adapters:\n";
  for (const char* adapter : {"a", "b"}) {
    const std::string folder = kFolder + "/" + name + "/" + adapter;
    if (std::filesystem::exists(folder)) recipe += "        - path: " + folder + "\n";
  }
  Settings settings;
  settings.plan.dtype = dtype;
  static_cast<void>(run_merge(recipe, out, settings));
}

class Families : public testing::TestWithParam<std::string> {
 protected:
  // Calls each(baked, recorded values) for every tensor that the adapters change, the recorded ones
  // being those of NAME + suffix; all others must be the base's.
  template <class Each>
  void compare(const Checkpoint& baked, std::string_view suffix, Each each) const {
    const auto disk = system_disk();
    const Checkpoint recorded =
        Checkpoint::open(*disk, kFolder + "/" + GetParam() + "/merged.safetensors", "merged");
    const Checkpoint base = Checkpoint::open(*disk, kFolder + "/base", "base");
    std::size_t changed = 0;
    for (const Entry& entry : baked.entries()) {
      SCOPED_TRACE(entry.info.name);
      const Values found = values_of(baked, entry);
      const Entry* peer = recorded.find(entry.info.name + std::string(suffix));
      if (peer == nullptr) {
        EXPECT_EQ(found, values_of(base, *base.find(entry.info.name)));
        continue;
      }
      ++changed;
      ASSERT_EQ(found.size(), peer->info.count());
      each(found, values_of(recorded, *peer));
    }
    EXPECT_EQ(2 * changed, recorded.entries().size());
    EXPECT_EQ(baked.entries().size(), base.entries().size());
  }
};

TEST_P(Families, BakeToTheNeighbourOfPeft) {
  const Folder folder;
  const auto disk = system_disk();
  bake(GetParam(), "", folder / "out");
  compare(Checkpoint::open(*disk, folder / "out", "out"), "",
          [&](const Values& found, const Values& peer) {
            float largest = 0;
            for (const float x : peer) largest = std::max(largest, std::fabs(x));
            for (std::size_t i = 0; i < found.size(); ++i) {
              if (rounds_once(GetParam())) {
                ASSERT_LE(std::abs(ordered(found[i]) - ordered(peer[i])), 1) << i;
              } else {
                ASSERT_NEAR(found[i], peer[i], 0x1p-7F * largest) << i;
              }
            }
          });
  VerifyOptions options;
  options.all = true;
  const Verdicts verdicts = verify(*disk, folder / "out", options);
  EXPECT_TRUE(verdicts.findings.empty()) << verdicts.findings[0].text;
}

// In f32 both make some tens of roundings, of which those of the largest elements count.
TEST_P(Families, BakeToWhatPeftGivesInSinglePrecision) {
  // What PiSSA and OLoRA leave is rounded to the base's own type.
  if (GetParam().starts_with("lora-pissa") || GetParam() == "lora-olora") return;
  const Folder folder;
  const auto disk = system_disk();
  bake(GetParam(), "float32", folder / "out");
  compare(Checkpoint::open(*disk, folder / "out", "out"), kRaised,
          [](const Values& found, const Values& peer) {
            float largest = 0;
            for (const float x : peer) largest = std::max(largest, std::fabs(x));
            for (std::size_t i = 0; i < found.size(); ++i) {
              ASSERT_NEAR(found[i], peer[i], 1e-6F * (1 + largest)) << i;
            }
          });
}

TEST(FamilyGoldens, AreFresh) {
  const auto summary = nlohmann::json::parse(read_file(kFolder + "/families.json"), nullptr, false);
  ASSERT_TRUE(summary.is_object()) << "run: tools/oracle.py setup && tools/families.py";
  for (const auto& [path, hash] : summary["files"].items()) {
    const std::string bytes = read_file(std::string(INGOT_SOURCE) + "/" + path);
    char text[17];
    std::snprintf(text, sizeof text, "%016llx",
                  static_cast<unsigned long long>(XXH64(bytes.data(), bytes.size(), 0)));
    EXPECT_EQ(hash, text) << path << " changed: run tools/families.py";
  }
}

std::vector<std::string> recorded_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
    if (std::filesystem::exists(entry.path() / "merged.safetensors")) {
      names.push_back(entry.path().filename().string());
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string label(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Peft, Families, testing::ValuesIn(recorded_cases()), label);

}  // namespace
}  // namespace ingot::test
