// Holds ingot to what the real mergekit gives: recipes, models and expected tensors recorded by
// tools/oracle.py in golden/oracle.
#include <gtest/gtest.h>

#include <xxhash.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "ingot/merge.hpp"
#include "ingot/methods.hpp"
#include "support.hpp"

namespace {

using ingot::Checkpoint;
using ingot::Dtype;

const std::string kFolder = std::string(INGOT_SOURCE) + "/tests/golden/oracle";
const char* kRegenerate = "run: tools/oracle.py setup && tools/oracle.py record";

// The recorder's summary; empty where it is absent or damaged, which `AreFresh` reports.
const nlohmann::json& summary() {
  static const nlohmann::json parsed = [] {
    nlohmann::json json =
        nlohmann::json::parse(ingot::test::read_file(kFolder + "/oracle.json"), nullptr, false);
    return json.is_object() ? json : nlohmann::json::object();
  }();
  return parsed;
}

// Methods that have goldens and that the engine does not have yet, one a line. A method that it has
// must not be here: a test below fails then. Without the file there are none.
std::set<std::string> pending() {
  std::set<std::string> names;
  const std::string file = std::string(INGOT_SOURCE) + "/tests/golden/pending.txt";
  if (!std::filesystem::exists(file)) return names;
  std::istringstream lines(ingot::test::read_file(file));
  for (std::string name; lines >> name;) names.insert(name);
  return names;
}

std::string xxh64_of(const std::string& path) {
  const std::string bytes = ingot::test::read_file(path);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx",
                static_cast<unsigned long long>(XXH64(bytes.data(), bytes.size(), 0)));
  return text;
}

std::vector<std::byte> raw(const Checkpoint& checkpoint, const ingot::Entry& entry) {
  std::vector<std::byte> bytes(entry.info.bytes());
  ingot::read_exact(checkpoint.file(entry.file), entry.offset, bytes);
  return bytes;
}

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

double half(std::uint16_t code) {
  const int exponent = code >> 10 & 31;
  const int fraction = code & 1023;
  const double size =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (code & 0x8000) != 0 ? -size : size;
}

std::vector<double> decode(const std::vector<std::byte>& bytes, Dtype dtype) {
  std::vector<double> values;
  const std::size_t width = ingot::bits(dtype) / 8;
  for (std::size_t i = 0; i < bytes.size(); i += width) {
    const std::byte* at = bytes.data() + i;
    switch (dtype) {
      case Dtype::f64:
        values.push_back(load<double>(at));
        break;
      case Dtype::f32:
        values.push_back(static_cast<double>(load<float>(at)));
        break;
      case Dtype::f16:
        values.push_back(half(load<std::uint16_t>(at)));
        break;
      case Dtype::bf16: {
        const std::uint32_t bits = static_cast<std::uint32_t>(load<std::uint16_t>(at)) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        values.push_back(static_cast<double>(value));
        break;
      }
      default:
        ADD_FAILURE() << "golden of an unexpected type " << ingot::name(dtype);
        return values;
    }
  }
  return values;
}

// Distance between two numbers of a 16-bit float type in representable steps.
long steps(const std::byte* a, const std::byte* b) {
  const auto place = [](const std::byte* at) {
    const auto code = load<std::uint16_t>(at);
    const long size = code & 0x7fff;
    return (code & 0x8000) != 0 ? -size : size;
  };
  return std::labs(place(a) - place(b));
}

TEST(OracleGoldens, AreFresh) {
  ASSERT_TRUE(summary().contains("files") && summary().contains("cases"))
      << kFolder << "/oracle.json is absent or damaged; " << kRegenerate;
  EXPECT_GE(summary()["cases"].size(), 147U) << kRegenerate;
  for (const auto& [path, hash] : summary()["files"].items()) {
    EXPECT_EQ(hash, xxh64_of(std::string(INGOT_SOURCE) + "/" + path))
        << path << " changed since the goldens were recorded; " << kRegenerate;
  }
  for (const auto& [name, entry] : summary()["cases"].items()) {
    for (const char* ending : {".yml", ".safetensors"}) {
      EXPECT_TRUE(std::filesystem::exists(kFolder + "/" + name + ending))
          << name << ending << " is absent; " << kRegenerate;
    }
  }
}

// Whether a recipe of golden/oracle is refused for its merge_method.
bool refuses_method(const std::string& name) {
  const std::string file = kFolder + "/" + name + ".yml";
  ingot::PlanOptions options;
  options.root = kFolder + "/models";
  try {
    const ingot::Plan plan = ingot::build(
        *ingot::system_disk(), ingot::parse(ingot::test::read_file(file), file, {}), options);
    return std::any_of(
        plan.problems.begin(), plan.problems.end(), [](const ingot::Problem& problem) {
          return problem.fatal && problem.text.find("merge_method") != std::string::npos;
        });
  } catch (const ingot::Error& error) {
    return std::string(error.what()).find("merge_method") != std::string::npos;
  }
}

TEST(OracleGoldens, PendingMethodsAreNotInTheEngine) {
  std::set<std::string> waiting = pending();
  for (const auto& [name, entry] : summary()["cases"].items()) {
    const auto method = entry["method"].get<std::string>();
    if (waiting.count(method) == 0) continue;
    EXPECT_TRUE(refuses_method(name))
        << "the engine has " << method << ": take its line out of tests/golden/pending.txt";
    waiting.erase(method);
  }
  for (const std::string& method : waiting) {
    ADD_FAILURE() << "tests/golden/pending.txt names " << method << ", which has no golden";
  }
}

TEST(OracleGoldens, EveryMethodOfTheEngineHasThem) {
  std::set<std::string> known;
  for (const auto& [name, entry] : summary()["cases"].items()) {
    known.insert(entry["method"].get<std::string>());
  }
  for (const ingot::math::Method& method : ingot::math::kMethods) {
    if (!ingot::math::of_models(method)) continue;
    EXPECT_TRUE(known.contains(method.card.name)) << method.card.name << " has no golden";
  }
}

class Oracle : public ::testing::TestWithParam<std::string> {};

TEST_P(Oracle, MergesAsMergekitDoes) {
  const nlohmann::json& expected = summary()["cases"][GetParam()];
  const std::string file = kFolder + "/" + GetParam() + ".yml";
  ingot::test::Folder folder;
  const auto disk = ingot::system_disk();
  ingot::PlanOptions options;
  options.root = kFolder + "/models";
  options.seed = expected["seed"].get<std::uint64_t>();
  const ingot::Plan plan =
      ingot::build(*disk, ingot::parse(ingot::test::read_file(file), file, {}), options);
  for (const ingot::Problem& problem : plan.problems) {
    ASSERT_FALSE(problem.fatal) << problem.text;
  }
  EXPECT_EQ(expected["tensors"].get<std::size_t>(), plan.jobs.size());
  const auto backend = ingot::cpu_backend("");
  ingot::MergeOptions run;
  run.sync = false;
  (void)ingot::merge(*disk, *backend, plan, folder / "out", run);

  const Checkpoint merged = Checkpoint::open(*disk, folder / "out", "out");
  const Checkpoint golden =
      Checkpoint::open(*disk, kFolder + "/" + GetParam() + ".safetensors", GetParam());
  const double allowed = expected["steps"].get<double>();
  std::vector<std::byte> units;
  if (const ingot::Entry* entry = golden.find("#units")) units = raw(golden, *entry);
  std::size_t place = 0, elements = 0, ties = 0, unequal = 0;
  double worst = 0, share = 0;
  for (const ingot::Entry& entry : golden.entries()) {
    const std::string& name = entry.info.name;
    if (name.find('#') != std::string::npos) continue;
    const ingot::Entry* own = merged.find(name);
    ASSERT_NE(own, nullptr) << name;
    ASSERT_EQ(entry.info.dtype, own->info.dtype) << name;
    ASSERT_EQ(entry.info.shape.text(), own->info.shape.text()) << name;
    const Dtype dtype = entry.info.dtype;
    const std::vector<std::byte> peer_bytes = raw(golden, entry), own_bytes = raw(merged, *own);
    const std::vector<double> peers = decode(peer_bytes, dtype), owns = decode(own_bytes, dtype);
    elements += peers.size();
    if (expected["rounded"].get<bool>()) {
      // mergekit rounds every step to the inputs' type; here only the distance to the truth counts.
      const ingot::Entry* entry_of_truth = golden.find(name + "#truth");
      ASSERT_NE(entry_of_truth, nullptr) << name;
      const std::vector<double> truth = decode(raw(golden, *entry_of_truth), Dtype::f64);
      double own_error = 0, peer_error = 0;
      for (std::size_t i = 0; i < truth.size(); ++i) {
        if (std::isnan(truth[i])) {
          ++ties;
          continue;
        }
        own_error += (owns[i] - truth[i]) * (owns[i] - truth[i]);
        peer_error += (peers[i] - truth[i]) * (peers[i] - truth[i]);
      }
      EXPECT_LE(std::sqrt(own_error), 1.01 * std::sqrt(peer_error)) << name;
      if (peer_error > 0) share = std::max(share, std::sqrt(own_error / peer_error));
      continue;
    }
    for (std::size_t i = 0; i < peers.size(); ++i) {
      ASSERT_LT(2 * place, units.size());
      const auto unit = load<std::uint16_t>(&units[2 * place++]);
      if (unit == 0xffff) {
        ++ties;
        continue;
      }
      if (owns[i] == peers[i]) continue;
      ++unequal;
      if (dtype != Dtype::f32) {
        EXPECT_LE(steps(&peer_bytes[2 * i], &own_bytes[2 * i]), 1)
            << name << "[" << i << "]: mergekit " << peers[i] << ", ingot " << owns[i];
        continue;
      }
      // The low byte is the exponent of the element's largest term; the high one is mergekit's own
      // error in such units where that uses up the tolerance.
      const double distance =
          std::fabs(owns[i] - peers[i]) / std::ldexp(1.0, (unit & 255) - 127 - 23);
      const double slack = unit >> 8;
      worst = std::max(worst, distance - slack);
      EXPECT_LE(distance, allowed + slack)
          << name << "[" << i << "]: mergekit " << peers[i] << ", ingot " << owns[i]
          << ", in units of the last place of the largest term";
    }
  }
  EXPECT_GT(elements, 0U);
  std::printf(
      "%s: %zu elements, %zu unequal, at most %.2f ulp of the largest term (%g allowed), "
      "%zu rounding ties, error at most %.3f of mergekit's\n",
      GetParam().c_str(), elements, unequal, worst, allowed, ties, share);
}

std::vector<std::string> names() {
  std::vector<std::string> found;
  if (summary().contains("cases")) {
    const std::set<std::string> waiting = pending();
    for (const auto& [name, entry] : summary()["cases"].items()) {
      if (waiting.count(entry["method"].get<std::string>()) == 0) found.push_back(name);
    }
  }
  return found;
}

INSTANTIATE_TEST_SUITE_P(Recipes, Oracle, ::testing::ValuesIn(names()), [](const auto& given) {
  std::string name = given.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
