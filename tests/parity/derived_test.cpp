// Computed operands: a merge over them has the bytes of a merge over the values written out, in
// every lodging, for any memory, threads and number of passes.
#include <gtest/gtest.h>

#include "engine/supply.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/product.hpp"
#include "ingot/methods.hpp"
#include "merging.hpp"
#include "store/header.hpp"

namespace ingot::test {
namespace {

using Bf16 = math::Codec<math::Format::bf16>;

constexpr std::uint64_t kHeight = 1500, kWidth = 1501;
constexpr std::uint32_t kRank = 4;

// A tensor plus a product whose factors are of no file.
class Raised final : public Derived {
 public:
  explicit Raised(bool own) : own_(own), a_(kRank * kWidth), b_(kHeight * kRank) {
    Random random(3);
    for (float& x : a_) x = static_cast<float>(random.uniform() - 0.5);
    for (float& x : b_) x = static_cast<float>(random.uniform() - 0.5) * 0.01F;
  }

  bool own() const override { return own_; }
  std::span<const Ingredient> ingredients() const override { return {}; }
  std::string describe() const override { return R"({"kind": "raised"})"; }
  std::uint64_t memory() const override { return 4096; }
  std::unique_ptr<Working> begin(const Plan&, Backend* backend) const override {
    return std::make_unique<Hands>(*this, *backend);
  }
  std::vector<Truth> recompute(const Plan&, std::uint64_t, std::uint64_t,
                               std::span<const float>) const override {
    return {};
  }
  std::string found(const Working&) const override { return R"({"raised": true})"; }

  float at(std::uint64_t e, float own) const {
    float sum = 0.0F;
    for (std::uint32_t k = 0; k < kRank; ++k) {
      sum = math::extend(sum, b_[e / kWidth * kRank + k], a_[k * kWidth + e % kWidth]);
    }
    return math::amend(own, 2.0F, sum);
  }

 private:
  class Hands final : public Working {
   public:
    Hands(const Raised& of, Backend& backend)
        : backend_(backend), factors_(backend.stage({of.a_, of.b_, kRank, kWidth, 2.0F})) {}
    void fill(std::uint64_t first, std::span<const std::byte> own,
              std::span<float> values) override {
      const Factors* const list[] = {factors_.get()};
      backend_.amend(Dtype::bf16, own.empty() ? nullptr : own.data(), list, first, values);
    }

   private:
    Backend& backend_;
    std::unique_ptr<Factors> factors_;
  };

  bool own_;
  std::vector<float> a_, b_;
};

void write_model(const std::string& folder, Dtype dtype, std::uint64_t seed, const Raised* raised) {
  std::string data;
  Random random(seed);
  for (std::uint64_t e = 0; e < kHeight * kWidth; ++e) {
    const std::uint16_t word = Bf16::encode(static_cast<float>(random.uniform() - 0.5), {});
    float value = Bf16::decode(word);
    if (raised != nullptr) value = raised->at(e, raised->own() ? value : 0.0F);
    const auto put = [&](const auto& x) {
      data.append(reinterpret_cast<const char*>(&x), sizeof x);
    };
    if (dtype == Dtype::bf16) {
      put(word);
    } else {
      put(value);
    }
  }
  const std::vector<TensorInfo> tensors = {{"model.layers.0.w.weight", dtype, {kHeight, kWidth}}};
  write_file(folder + "/model.safetensors", print_header(tensors, {{"format", "pt"}}) + data);
  write_file(folder + "/config.json",
             R"({"architectures": ["StrangeModel"], "num_hidden_layers": 1, "dtype": "bfloat16"})");
}

std::string recipe(const std::string& method, const std::string& model) {
  const std::string base =
      method == "passthrough" || method == "linear" ? "" : "base_model: ./base\n";
  const std::string other =
      method == "passthrough" ? "" : ", {model: ./other, parameters: {weight: 0.4, density: 0.8}}";
  return "models: [{model: ./" + model +
         (method == "passthrough" ? "" : ", parameters: {weight: 0.7, density: 0.3}") + "}" +
         other + "]\nmerge_method: " + method + "\n" + base + "dtype: bfloat16\n";
}

class DerivedOperands : public testing::TestWithParam<bool> {
 protected:
  std::string merged(const std::string& method, const std::string& model, bool raise,
                     Settings settings, std::string* receipt = nullptr) {
    settings.plan.root = folder_.path();
    settings.plan.allow_unknown_keys = true;
    const auto disk = system_disk();
    Plan plan = build(*disk, parse(recipe(method, model), "recipe.yml", {true}), settings.plan);
    const std::uint32_t tuned = method == "passthrough" || method == "linear" ? 0 : 1;
    if (raise) {
      Job& job = plan.jobs.at(0);
      job.action = Action::merge;
      job.operands.at(tuned).derived = raised_;
      job.work.inputs.at(tuned) = Dtype::f32;
    }
    const Folder out;
    const auto backend = cpu_backend("");
    (void)merge(*disk, *backend, plan, out / "out", settings.merge);
    if (receipt != nullptr) *receipt = read_file(out / "out/ingot.json");
    return read_file(out / "out/model.safetensors");
  }

  void SetUp() override {
    raised_ = std::make_shared<Raised>(GetParam());
    write_model(folder_ / "base", Dtype::bf16, 1, nullptr);
    write_model(folder_ / "other", Dtype::bf16, 2, nullptr);
    write_model(folder_ / "tuned", Dtype::bf16, 3, nullptr);
    write_model(folder_ / "written", Dtype::f32, 3, raised_.get());
  }

  Folder folder_;
  Guard guard_;
  std::shared_ptr<Raised> raised_;
};

TEST_P(DerivedOperands, give_the_bytes_of_their_values_in_every_lodging) {
  using Storage = MergeOptions::Storage;
#if defined(__SANITIZE_THREAD__)
  const std::vector<int> crews = {4};  // one thread has nobody to race with
#else
  const std::vector<int> crews = {1, 4};
#endif
  for (const char* method : {"passthrough", "linear", "ties", "dare_ties"}) {
    const std::string expected = merged(method, "written", false, {});
    for (const Storage storage :
         {Storage::automatic, Storage::mapped, Storage::direct, Storage::buffered}) {
      for (const std::uint64_t memory : {std::uint64_t{96}, std::uint64_t{1024}}) {
        for (const int threads : crews) {
          SCOPED_TRACE(std::string(method) + " storage " +
                       std::to_string(static_cast<int>(storage)) + " memory " +
                       std::to_string(memory) + " threads " + std::to_string(threads));
          Settings settings;
          settings.merge.storage = storage;
          settings.merge.memory = memory << 20;
          settings.merge.threads = threads;
          EXPECT_TRUE(merged(method, "tuned", true, settings) == expected);
        }
      }
    }
  }
}

TEST_P(DerivedOperands, stand_in_the_receipt_with_what_their_work_found) {
  std::string receipt;
  (void)merged("passthrough", "tuned", true, {}, &receipt);
  EXPECT_NE(receipt.find(R"("kind": "raised")"), std::string::npos);
  EXPECT_NE(receipt.find(R"("raised": true)"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(kind, DerivedOperands, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "own" : "made"; });

}  // namespace
}  // namespace ingot::test
