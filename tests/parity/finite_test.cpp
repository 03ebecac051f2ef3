// Values that are not finite: made by the arithmetic they end a merge, brought by an input they are
// named; their numbers do not depend on how a merge runs.
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "adapting.hpp"
#include "ingot/error.hpp"
#include "ingot/math/codec.hpp"
#include "merging.hpp"
#include "model.hpp"

namespace ingot::test {
namespace {

using Json = nlohmann::ordered_json;
using Storage = MergeOptions::Storage;

constexpr std::uint64_t kHeight = 1500, kWidth = 1001;  // more than a chunk, and an odd number
constexpr std::uint64_t kCount = kHeight * kWidth;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const char* const kName = "model.layers.0.w.weight";

// Elements of a tensor that are not ordinary, by index.
using Special = std::map<std::uint64_t, double>;

template <class Word>
void append(std::string& data, const Word& word) {
  data.append(reinterpret_cast<const char*>(&word), sizeof word);
}

void append_value(std::string& data, Dtype dtype, double value) {
  const float x = static_cast<float>(value);
  switch (dtype) {
    case Dtype::f64:
      return append(data, value);
    case Dtype::f32:
      return append(data, x);
    case Dtype::f16:
      return append(data, math::Codec<math::Format::f16>::encode(x, {}));
    case Dtype::f8_e5m2:
      return append(data, math::Codec<math::Format::e5m2>::encode(x, math::Overflow::propagate));
    default:
      return append(data, math::Codec<math::Format::bf16>::encode(x, {}));
  }
}

struct Ran {
  std::string error;
  Json entry;
  std::vector<std::string> warnings;
};

class Finite : public testing::Test {
 protected:
  void write(const std::string& name, Dtype dtype, const Special& special) {
    std::string data;
    Random random(static_cast<std::uint64_t>(name[0]));
    for (std::uint64_t i = 0; i < kCount; ++i) {
      const auto at = special.find(i);
      append_value(data, dtype, at == special.end() ? random.uniform() - 0.5 : at->second);
    }
    write_file(folder_ / name + "/model.safetensors",
               print_header(Tensors{{kName, dtype, {kHeight, kWidth}}}, {{"format", "pt"}}) + data);
    write_file(folder_ / name + "/config.json",
               R"({"architectures": ["StrangeModel"], "num_hidden_layers": 1})");
  }

  Ran run(const std::string& recipe, Settings settings = {}) {
    const std::string out = folder_ / "out";
    std::filesystem::remove_all(out);
    settings.plan.root = folder_.path();
    Ran ran;
    try {
      ran.warnings = run_merge(recipe, out, settings).warnings;
      ran.entry = Json::parse(read_file(out + "/ingot.json"))["tensors"][0];
    } catch (const Error& e) {
      EXPECT_EQ(exit_code(e.code()), 3) << e.what();
      ran.error = e.what();
      EXPECT_FALSE(std::filesystem::exists(out));
    }
    return ran;
  }

  // Runs in every way and expects the same of all.
  Ran run_everywhere(const std::string& recipe, const Settings& settings = {}) {
    const Ran first = run(recipe, settings);
    int way = 0;
    for (const Storage storage : {Storage::mapped, Storage::direct, Storage::buffered}) {
      Settings other = settings;
      other.merge.storage = storage;
      other.merge.threads = 1 + way;
      other.merge.memory = std::uint64_t{way == 1 ? 96U : 1024U} << 20;
      other.isa = way == 0 ? "v2" : "";
      const Ran ran = run(recipe, other);
      EXPECT_EQ(ran.error, first.error) << way;
      EXPECT_EQ(ran.entry, first.entry) << way;
      EXPECT_EQ(ran.warnings, first.warnings) << way;
      ++way;
    }
    return first;
  }

  std::vector<std::string> findings() const {
    VerifyOptions options;
    options.all = true;
    options.root = folder_.path();
    const auto disk = system_disk();
    std::vector<std::string> texts;
    for (const Finding& f : verify(*disk, folder_ / "out", options).findings)
      texts.push_back(f.text);
    return texts;
  }

  static bool warned(const Ran& ran, const std::string& text) {
    return std::any_of(ran.warnings.begin(), ran.warnings.end(), [&](const std::string& warning) {
      return warning.find(text) != std::string::npos;
    });
  }

  Folder folder_;
  Guard guard_;
};

std::string linear(const std::string& dtype, const std::string& more = "normalize: false") {
  return fmt::format(
      "merge_method: linear\ndtype: {}\nparameters: {{{}}}\nmodels: [{{model: ./a, parameters: "
      "{{weight: 1}}}}, {{model: ./b, parameters: {{weight: 1}}}}]\n",
      dtype, more);
}

const Special kBig = {{5, 40000}, {999'999, -40000}, {1'200'000, 40000}};

TEST_F(Finite, ResultsBeyondTheTypeEndTheMergeWithTensorCountIndexAndRemedy) {
  write("a", Dtype::f32, kBig);
  write("b", Dtype::f32, kBig);
  const Ran ran = run_everywhere(linear("float16"));
  EXPECT_EQ(ran.error.find(std::string(kName) +
                           ": 3 of 1501500 elements (the first is number 5) are not finite"),
            0U)
      << ran.error;
  EXPECT_NE(ran.error.find("is too large for float16; write --dtype float32"), std::string::npos);
  EXPECT_NE(ran.error.find("--allow-nonfinite"), std::string::npos);
  // Nothing is in the way of the next run, which does better.
  const Ran better = run(linear("float32"));
  EXPECT_EQ(better.error, "");
  EXPECT_FALSE(better.entry.contains("nonfinite"));
  EXPECT_FALSE(warned(better, "NaN"));
}

TEST_F(Finite, EveryOutputTypeHasItsOwnEnd) {
  const Special large = {{77, 3.3e38}}, fair = {{77, 6e4}};
  Settings propagate;
  propagate.plan.overflow = math::Overflow::propagate;
  for (const auto& [dtype, special, settings] : {std::tuple{"float32", large, Settings{}},
                                                 {"bfloat16", large, Settings{}},
                                                 {"float16", fair, Settings{}},
                                                 {"float8_e4m3fn", fair, propagate},
                                                 {"float8_e5m2", fair, propagate}}) {
    write("a", Dtype::f32, special);
    write("b", Dtype::f32, special);
    const Ran ran = run(linear(dtype), settings);
    EXPECT_NE(ran.error.find("1 of 1501500 elements (the first is number 77)"), std::string::npos)
        << dtype << ran.error;
    EXPECT_NE(ran.error.find(fmt::format("too large for {};", dtype)), std::string::npos) << dtype;
    if (std::string(dtype) != "float16") continue;  // their mean is in its range
    EXPECT_EQ(run(linear(dtype, "normalize: true"), settings).error, "") << dtype;
  }
}

TEST_F(Finite, AWaiverWritesThemAndVerifyHoldsThemAgainstTheRecipe) {
  write("a", Dtype::bf16, kBig);
  write("b", Dtype::bf16, kBig);
  Settings settings;
  settings.plan.allow_nonfinite = true;
  const Ran ran = run_everywhere(linear("float16"), settings);
  EXPECT_EQ(ran.error, "");
  EXPECT_EQ(ran.entry["nonfinite"], Json::parse(R"({"count": 3, "first": 5, "made": 3})"));
  EXPECT_TRUE(
      warned(ran, "the output's model.layers.0.w.weight holds NaN or infinity in 3 elements"));
  const std::string receipt = read_file(folder_ / "out/ingot.json");
  EXPECT_NE(receipt.find("\"allow_nonfinite\""), std::string::npos);
  EXPECT_TRUE(findings().empty()) << findings().front();
  // The largest finite number in place of infinity: one code away, and wrong.
  const std::string path = folder_ / "out/model.safetensors";
  std::string bytes = read_file(path);
  const std::size_t at = bytes.size() - 2 * kCount + 2 * 5;
  EXPECT_EQ(bytes.substr(at, 2), std::string("\x00\x7c", 2));
  bytes[at] = '\xff';
  bytes[at + 1] = '\x7b';
  write_file(path, bytes);
  EXPECT_FALSE(findings().empty());
}

TEST_F(Finite, InputsThatHoldThemAreNamedAndTheirElementsExcused) {
  write("a", Dtype::f32, {{3, kNan}, {1'100'000, kInfinity}});
  write("b", Dtype::f16, {{1'100'000, -kInfinity}});
  const Ran ran = run_everywhere(linear("bfloat16"));
  EXPECT_EQ(ran.error, "");
  EXPECT_EQ(ran.entry["sources"][0]["nonfinite"], Json::parse(R"({"count": 2, "first": 3})"));
  EXPECT_EQ(ran.entry["sources"][1]["nonfinite"], Json::parse(R"({"count": 1, "first": 1100000})"));
  EXPECT_EQ(ran.entry["nonfinite"], Json::parse(R"({"count": 2, "first": 3, "made": 0})"));
  EXPECT_TRUE(warned(ran,
                     "model.layers.0.w.weight of ./a holds NaN or infinity in 2 elements (the "
                     "first is number 3)"));
  EXPECT_TRUE(warned(ran, "of ./b holds NaN or infinity in 1 element"));
  EXPECT_TRUE(findings().empty()) << findings().front();
  // One more that the arithmetic makes is not excused by them.
  write("a", Dtype::f32, {{3, kNan}, {4, 3e38}});
  write("b", Dtype::f32, {{4, 3e38}});
  EXPECT_NE(run_everywhere(linear("float32"))
                .error.find(": 1 of 1501500 elements (the first is "
                            "number 4)"),
            std::string::npos);
}

TEST_F(Finite, InputsAreLookedAtUnderEveryMethod) {
  write("base", Dtype::bf16, {});
  write("a", Dtype::bf16, {{1'000'001, kInfinity}, {12, kNan}});
  write("b", Dtype::bf16, {});
  for (const char* method : {"task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"}) {
    const bool slerp = std::string(method) == "slerp";
    const std::string recipe = fmt::format(
        "merge_method: {}\nbase_model: ./base\ndtype: float32\nparameters: {{t: 0.5}}\nmodels: "
        "[{{model: ./base}}, {{model: ./a, parameters: {{weight: 0.5, density: 0.5}}}}{}]\n",
        method, slerp ? "" : ", {model: ./b, parameters: {weight: 0.5, density: 0.5}}");
    Settings settings;
    settings.plan.allow_nonfinite = true;
    const Ran ran = run_everywhere(recipe, settings);
    EXPECT_EQ(ran.error, "") << method;
    EXPECT_EQ(ran.entry["sources"][1]["nonfinite"], Json::parse(R"({"count": 2, "first": 12})"))
        << method;
    // What one NaN does to a whole tensor by its norm is the merge's own doing.
    if (!slerp) continue;
    EXPECT_GT(ran.entry["nonfinite"]["made"].get<std::uint64_t>(), kCount / 2);
    EXPECT_NE(run(recipe).error.find("are not finite"), std::string::npos);
  }
}

TEST_F(Finite, CopiesAreNamedToo) {
  write("a", Dtype::bf16, {{1'300'000, kNan}});
  const Ran ran = run_everywhere("merge_method: passthrough\nmodels: [{model: ./a}]\n");
  EXPECT_EQ(ran.entry["rule"], "copy");
  EXPECT_EQ(ran.entry["sources"][0]["nonfinite"], Json::parse(R"({"count": 1, "first": 1300000})"));
  EXPECT_EQ(ran.entry["nonfinite"]["made"], 0);
  EXPECT_TRUE(warned(ran, "of ./a holds NaN or infinity in 1 element"));
  EXPECT_TRUE(findings().empty()) << findings().front();
}

TEST_F(Finite, DoublesThatSinglePrecisionCannotHoldAreResultsNotInputs) {
  write("a", Dtype::f64, {{9, 1e300}, {10, kInfinity}});
  const std::string recipe = "merge_method: passthrough\ndtype: float32\nmodels: [{model: ./a}]\n";
  EXPECT_NE(run_everywhere(recipe).error.find(": 1 of 1501500 elements (the first is number 9)"),
            std::string::npos);
  write("a", Dtype::f64, {{10, kInfinity}});
  const Ran ran = run_everywhere(recipe);
  EXPECT_EQ(ran.error, "");
  EXPECT_EQ(ran.entry["sources"][0]["nonfinite"], Json::parse(R"({"count": 1, "first": 10})"));
}

TEST_F(Finite, ElementsCutToTheLargestValueAreCounted) {
  // 224 and 224 are 448, the largest value itself; 464 is the first number that is not rounded to
  // it.
  write("a", Dtype::f32, {{1, 224}, {2, 231}, {3, 232}, {1'400'000, -5000}});
  write("b", Dtype::f32, {{1, 224}, {2, 231}, {3, 233}, {1'400'000, -5000}});
  const Ran ran = run_everywhere(linear("float8_e4m3fn"));
  EXPECT_EQ(ran.error, "");
  EXPECT_FALSE(ran.entry.contains("nonfinite"));
  EXPECT_EQ(ran.entry["saturated"], Json::parse(R"({"count": 2, "first": 3})"));
  EXPECT_TRUE(warned(ran, "has 2 elements (the first is number 3) beyond the range of F8_E4M3"));
}

TEST_F(Finite, NothingOfItNeedsHashes) {
  write("a", Dtype::f32, kBig);
  write("b", Dtype::f32, kBig);
  Settings settings;
  settings.merge.hash = false;
  EXPECT_NE(run_everywhere(linear("float16"), settings).error.find(": 3 of 1501500 elements"),
            std::string::npos);
}

TEST_F(Finite, ManyTensorsAreAFewWarnings) {
  Tensors tensors;
  std::string data;
  for (int i = 0; i < 30; ++i) {
    tensors.push_back({fmt::format("model.layers.0.w{}.weight", 10 + i), Dtype::f32, {4}});
    for (int e = 0; e < 4; ++e) append(data, e == 2 ? kNan : 1.0F);
  }
  write_file(folder_ / "a/model.safetensors", print_header(tensors, {{"format", "pt"}}) + data);
  write_file(folder_ / "a/config.json",
             R"({"architectures": ["StrangeModel"], "num_hidden_layers": 1})");
  const Ran ran =
      run_everywhere("merge_method: passthrough\ndtype: float16\nmodels: [{model: ./a}]\n");
  EXPECT_EQ(std::count_if(ran.warnings.begin(), ran.warnings.end(),
                          [](const std::string& w) { return w.find("NaN") != std::string::npos; }),
            18);
  EXPECT_TRUE(warned(ran, "22 more input tensors hold NaN or infinity"));
}

TEST_F(Finite, AnAdapterThatOverflowsEndsTheBake) {
  write("a", Dtype::bf16, {{0, kNan}});
  Factors factors{{"layers.0.w.lora_A.weight", {{1, kWidth}, std::vector<float>(kWidth, 1e19F)}},
                  {"layers.0.w.lora_B.weight", {{kHeight, 1}, std::vector<float>(kHeight, 0.0F)}}};
  factors["layers.0.w.lora_B.weight"].values[2] = 1e20F;
  write_adapter(folder_ / "big", factors, R"("r": 1, "lora_alpha": 1, "target_modules": ["w"])");
  Factors renamed;
  for (auto& [name, values] : factors) renamed["model." + name] = values;
  write_adapter(folder_ / "big", renamed, R"("r": 1, "lora_alpha": 1, "target_modules": ["w"])");
  const std::string recipe =
      "merge_method: passthrough\nmodels: [{model: {path: ./a, adapters: [./big]}}]\n";
  const std::string whole =
      fmt::format(": {} of 1501500 elements (the first is number {})", kWidth, 2 * kWidth);
  EXPECT_NE(run_everywhere(recipe).error.find(whole), std::string::npos) << run(recipe).error;
  Settings settings;
  settings.plan.allow_nonfinite = true;
  const Ran ran = run_everywhere(recipe, settings);
  EXPECT_EQ(ran.error, "");
  EXPECT_EQ(ran.entry["nonfinite"]["made"], kWidth);
  EXPECT_EQ(ran.entry["nonfinite"]["count"], kWidth + 1);
  EXPECT_TRUE(findings().empty()) << findings().front();
}

}  // namespace
}  // namespace ingot::test
