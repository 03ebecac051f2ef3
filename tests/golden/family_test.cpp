// Holds every family of adapters to PEFT's merge_and_unload: folders and merged tensors recorded by
// tools/families.py in golden/families.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include <gtest/gtest.h>
#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "adapter/change.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/plan.hpp"
#include "store/values.hpp"
#include "support.hpp"

namespace ingot::test {
namespace {

using Values = std::vector<float>;
using Bf16 = math::Codec<math::Format::bf16>;

const std::string kFolder = std::string(INGOT_SOURCE) + "/tests/golden/families";

Values values_of(const Checkpoint& checkpoint, const Entry& entry) {
  Values values(entry.info.count());
  read_values(checkpoint, entry, 0, values);
  return values;
}

// A recorded case: its adapters' effects on each tensor of the base.
class Recorded {
 public:
  explicit Recorded(const std::string& folder) {
    add(Checkpoint::open(*disk_, kFolder + "/base.safetensors", "base"));
    for (const std::string& name : disk_->list(folder)) {
      if (disk_->kind(folder + "/" + name) != Disk::Kind::folder) continue;
      Adapter adapter = open_adapter(*disk_, folder + "/" + name, name);
      model_ = static_cast<std::uint32_t>(plan_.models.size());
      gather(adapter);
      add(std::move(adapter.checkpoint));
    }
  }

  [[nodiscard]] const Checkpoint& base() const { return plan_.models[0].checkpoint; }

  // The tensor after all adapters, by plain loops; of the base as stored, or raised to f32.
  [[nodiscard]] Values merged(const std::string& name, Dtype dtype) const {
    const auto saved = saved_.find(name);
    if (saved != saved_.end()) return values_of(plan_.models[1].checkpoint, *saved->second);
    const Entry& entry = *base().find(name);
    Located tensor = located(0, base(), index(base(), entry));
    tensor.info.dtype = dtype;
    std::vector<std::byte> own(tensor.info.bytes());
    Values values = values_of(base(), entry);
    if (dtype == Dtype::f32) {
      std::memcpy(own.data(), values.data(), own.size());
    } else {
      read_elements(base(), entry, 0, own);
    }
    change(tensor, effects_.at(name), {})->begin(plan_, nullptr)->fill(0, own, values);
    return values;
  }
  [[nodiscard]] std::size_t touched() const { return effects_.size() + saved_.size(); }

 private:
  void add(Checkpoint checkpoint) {
    plan_.models.push_back({{}, checkpoint.path(), std::move(checkpoint)});
  }
  static std::uint32_t index(const Checkpoint& checkpoint, const Entry& entry) {
    return static_cast<std::uint32_t>(&entry - checkpoint.entries().data());
  }
  static Located located(std::uint32_t model, const Checkpoint& checkpoint, std::uint32_t entry) {
    return {{model, entry}, checkpoint.entries()[entry].info};
  }

  void gather(const Adapter& adapter) {
    const AdapterConfig& config = adapter.config;
    for (const Saved& saved : adapter.saved) {
      saved_[saved.name] = &adapter.checkpoint.entries()[saved.entry];
    }
    for (const Tokens& tokens : adapter.tokens) {
      Effect effect;
      effect.family = Family::none;
      effect.layout = Layout::embedding;
      effect.rows = tokens.rows;
      effect.parts = {{Piece::block, located(model_, adapter.checkpoint, tokens.entry)}};
      effects_[tokens.path + ".weight"].push_back(effect);
    }
    for (const Adapted& module : adapter.modules) {
      Effect effect;
      effect.adapter = module.path;
      effect.family = config.family;
      effect.scaling = module.scaling;
      effect.cayley_neumann = config.cayley_neumann;
      effect.terms = config.terms;
      effect.constrained = config.constrained;
      effect.eps = config.eps;
      effect.block_share = config.block_share;
      effect.orthonormal = config.orthonormal;
      effect.tiling = config.tiling;
      effect.residual = config.residual;
      effect.cut.experts = static_cast<std::uint32_t>(module.experts);
      if (module.embedding) effect.layout = Layout::embedding;
      if (module.path == "turned" || module.path == "laid") effect.layout = Layout::transposed;
      const auto& ahead = config.feedforward;
      effect.feedforward = std::find(ahead.begin(), ahead.end(), module.path) != ahead.end();
      Effect bias = effect;
      for (const std::vector<Factor>* factors : {&module.factors, &adapter.shared}) {
        for (const Factor& factor : *factors) {
          Effect& owner = factor.piece == Piece::bias ? bias : effect;
          owner.parts.push_back({factor.piece, located(model_, adapter.checkpoint, factor.entry)});
        }
      }
      std::string name = module.path + ".weight";
      if (!module.parameters.empty()) name = module.path + "." + module.parameters[0];
      if (module.path == "attention") name = "attention.in_proj_weight";
      if (module.inner) {
        name = "attention.out_proj.weight";
        effect.times = 2;  // as PEFT adds it
      }
      effects_[name].push_back(effect);
      const bool scaled = config.family == Family::ia3 && !effect.feedforward &&
                          base().find(module.path + ".bias") != nullptr;
      if (scaled) bias.parts = effect.parts;
      if (!bias.parts.empty()) effects_[module.path + ".bias"].push_back(bias);
    }
  }

  std::unique_ptr<Disk> disk_ = system_disk();
  Plan plan_;
  std::uint32_t model_ = 0;
  std::map<std::string, std::vector<Effect>> effects_;
  std::map<std::string, const Entry*> saved_;
};

int ordered(float x) {
  const auto code = static_cast<int>(Bf16::encode(x, {}));
  return (code & 0x8000) != 0 ? -(code & 0x7fff) : code;
}

// PEFT rounds to bf16 after every adapter; in three places it rounds the change as well, and it
// prunes AdaLoRA's factors into the type of the base.
bool rounds_once(const std::string& name) {
  for (const char* more : {"two", "after", "series", "attention", "embedding", "experts"}) {
    if (name.find(more) != std::string::npos) return name == "dora-embedding";
  }
  return name != "adalora" && name != "lora-pissa";
}

class Families : public testing::TestWithParam<std::string> {};

TEST_P(Families, EqualWhatPeftMakesOfThem) {
  const std::string folder = kFolder + "/" + GetParam();
  const Recorded recorded(folder);
  const auto disk = system_disk();
  const Checkpoint expected = Checkpoint::open(*disk, folder + "/merged.safetensors", "merged");
  std::size_t tensors = 0;
  for (const Entry& entry : expected.entries()) {
    if (!entry.info.name.ends_with("@f32")) continue;
    ++tensors;
    const std::string name = entry.info.name.substr(0, entry.info.name.size() - 4);
    SCOPED_TRACE(name);
    const Values found = recorded.merged(name, Dtype::f32);
    const Values stored = recorded.merged(name, Dtype::bf16);
    const Values single = values_of(expected, entry);
    const Values half = values_of(expected, *expected.find(name));
    ASSERT_EQ(found.size(), single.size());
    // In f32 both make some tens of roundings, of which the largest elements' count; PEFT
    // decomposes a matrix in f32, too.
    const float most =
        GetParam().starts_with("lora-pissa") || GetParam() == "lora-olora" ? 1e-5F : 1e-6F;
    float largest = 0;
    for (const float x : single) largest = std::max(largest, std::fabs(x));
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], single[i], most * (1 + largest)) << i;
      if (rounds_once(GetParam())) {
        ASSERT_LE(std::abs(ordered(stored[i]) - ordered(half[i])), 1) << i;
      } else {
        ASSERT_NEAR(Bf16::decode(Bf16::encode(stored[i], {})), half[i], 0x1p-7F * largest) << i;
      }
    }
  }
  EXPECT_EQ(tensors, recorded.touched());
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
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
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
