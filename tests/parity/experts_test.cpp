// Mixtures of experts as checkpoints and adapters have had them over the years: one tensor for all
// experts or one for each, on either side, in either orientation. All must give the same bytes.
#include <cstring>
#include <functional>
#include <map>

#include <fmt/format.h>

#include "adapter.hpp"
#include "merging.hpp"
#include "store/values.hpp"

namespace ingot::test {
namespace {

constexpr std::uint64_t kExperts = 3, kRank = 2, kWidth = 5, kInner = 4;
const std::string kOwner = "model.layers.0.mlp.experts";

// A matrix of small numbers whose sums are exact, by expert and part.
float number(std::uint64_t seed, std::uint64_t i) {
  Random random(seed * 1000 + i);
  return static_cast<float>(random.below(31)) / 16 - 1;
}

struct File {
  Tensors tensors;
  std::vector<float> data;

  void add(const std::string& name, Shape shape, const std::function<float(std::uint64_t)>& at) {
    tensors.push_back({name, Dtype::f32, shape});
    for (std::uint64_t i = 0; i < shape.count(); ++i) data.push_back(at(i));
  }
  [[nodiscard]] std::string bytes() const {
    std::string text = print_header(tensors, {{"format", "pt"}});
    const std::size_t start = text.size();
    text.resize(start + data.size() * sizeof(float));
    std::memcpy(text.data() + start, data.data(), data.size() * sizeof(float));
    return text;
  }
};

// Values of expert e: part 0 gate, 1 up (inner x width), 2 down (width x inner).
std::uint64_t seed(std::uint64_t e, int part) { return 10 * e + static_cast<std::uint64_t>(part); }
const char* const kNames[] = {"gate_proj", "up_proj", "down_proj"};
std::uint64_t outputs(int part) { return part == 2 ? kWidth : kInner; }
std::uint64_t inputs(int part) { return part == 2 ? kInner : kWidth; }
float weight(std::uint64_t e, int part, std::uint64_t o, std::uint64_t i) {
  return number(seed(e, part), o * inputs(part) + i);
}
float factor_a(std::uint64_t e, int part, std::uint64_t k, std::uint64_t i) {
  return number(100 + seed(e, part), k * inputs(part) + i);
}
float factor_b(std::uint64_t e, int part, std::uint64_t o, std::uint64_t k) {
  return number(200 + seed(e, part), o * kRank + k);
}
// Of gate_up_proj: the part and the output of a row.
int part_of(std::uint64_t o) { return o < kInner ? 0 : 1; }

File separate_base() {
  File file;
  for (std::uint64_t e = 0; e < kExperts; ++e) {
    for (int part = 0; part < 3; ++part) {
      file.add(
          fmt::format("{}.{}.{}.weight", kOwner, e, kNames[part]), {outputs(part), inputs(part)},
          [&](std::uint64_t n) { return weight(e, part, n / inputs(part), n % inputs(part)); });
    }
  }
  return file;
}

float fused(bool down, std::uint64_t e, std::uint64_t o, std::uint64_t i) {
  return down ? weight(e, 2, o, i) : weight(e, part_of(o), o % kInner, i);
}

File fused_base(bool transposed) {
  File file;
  for (const bool down : {false, true}) {
    const std::uint64_t out = down ? kWidth : 2 * kInner;
    const std::uint64_t in = down ? kInner : kWidth;
    file.add(
        kOwner + (down ? ".down_proj" : ".gate_up_proj"),
        transposed ? Shape{kExperts, in, out} : Shape{kExperts, out, in}, [&](std::uint64_t n) {
          const std::uint64_t e = n / (in * out);
          const std::uint64_t x = n % (in * out);
          return transposed ? fused(down, e, x % out, x / out) : fused(down, e, x / in, x % in);
        });
  }
  return file;
}

File separate_adapter() {
  File file;
  for (std::uint64_t e = 0; e < kExperts; ++e) {
    for (int part = 0; part < 3; ++part) {
      const std::string name = fmt::format("base_model.model.{}.{}.{}.", kOwner, e, kNames[part]);
      file.add(name + "lora_A.weight", {kRank, inputs(part)}, [&](std::uint64_t n) {
        return factor_a(e, part, n / inputs(part), n % inputs(part));
      });
      file.add(name + "lora_B.weight", {outputs(part), kRank},
               [&](std::uint64_t n) { return factor_b(e, part, n / kRank, n % kRank); });
    }
  }
  return file;
}

// As PEFT converts it: gate and up stacked along the rank, B block-diagonal, columns by rank.
File fused_adapter() {
  File file;
  const std::string name = "base_model.model." + kOwner;
  constexpr std::uint64_t kBoth = 2 * kRank;
  file.add(name + ".base_layer.lora_A.weight", {kBoth * kExperts, kWidth}, [](std::uint64_t n) {
    const std::uint64_t row = n / kWidth;
    const std::uint64_t k = row % kBoth;
    return factor_a(row / kBoth, k < kRank ? 0 : 1, k % kRank, n % kWidth);
  });
  file.add(name + ".base_layer.lora_B.weight", {2 * kInner, kBoth * kExperts}, [](std::uint64_t n) {
    const std::uint64_t o = n / (kBoth * kExperts);
    const std::uint64_t column = n % (kBoth * kExperts);
    const std::uint64_t k = column / kExperts;
    const int part = k < kRank ? 0 : 1;
    return part == part_of(o) ? factor_b(column % kExperts, part, o % kInner, k % kRank) : 0.0F;
  });
  file.add(name + ".lora_A.weight", {kRank * kExperts, kInner}, [](std::uint64_t n) {
    const std::uint64_t row = n / kInner;
    return factor_a(row / kRank, 2, row % kRank, n % kInner);
  });
  file.add(name + ".lora_B.weight", {kWidth, kRank * kExperts}, [](std::uint64_t n) {
    const std::uint64_t column = n % (kRank * kExperts);
    return factor_b(column % kExperts, 2, n / (kRank * kExperts), column / kExperts);
  });
  return file;
}

// W + 2 B A of one element, in the order of the contract; every number is exact in f32.
float expected(std::uint64_t e, int part, std::uint64_t o, std::uint64_t i) {
  float sum = 0;
  for (std::uint64_t k = 0; k < kRank; ++k)
    sum += factor_b(e, part, o, k) * factor_a(e, part, k, i);
  return weight(e, part, o, i) + 2 * sum;
}

TEST(Experts, EveryFormOfBaseAndAdapterGivesTheSame) {
  const Folder folder;
  const std::string architecture = R"({"architectures": ["Qwen3MoeForCausalLM"]})";
  write_file(folder / "separate/model.safetensors", separate_base().bytes());
  write_file(folder / "fused/model.safetensors", fused_base(false).bytes());
  write_file(folder / "transposed/model.safetensors", fused_base(true).bytes());
  for (const char* base : {"separate", "fused", "transposed"}) {
    write_file(folder / (std::string(base) + "/config.json"), architecture);
  }
  write_file(folder / "old/adapter_model.safetensors", separate_adapter().bytes());
  write_file(folder / "old/adapter_config.json", lora_config());
  write_file(folder / "new/adapter_model.safetensors", fused_adapter().bytes());
  write_file(folder / "new/adapter_config.json", lora_config(R"("target_parameters":
      ["experts.gate_up_proj", "experts.down_proj"],
      "rank_pattern": {".*\\.gate_up_proj": 4}, "alpha_pattern": {".*\\.gate_up_proj": 8})"));
  const auto disk = system_disk();
  for (const std::string base : {"separate", "fused", "transposed"}) {
    for (const std::string adapter : {"old", "new"}) {
      SCOPED_TRACE(base + "+" + adapter);
      const std::string out = folder / (base + "-" + adapter);
      Settings settings;
      settings.plan.root = folder.path();
      const std::string recipe =
          "merge_method: passthrough\nmodels:\n- model: " + base + "+" + adapter + "\n";
      static_cast<void>(run_merge(recipe, out, settings));
      const Checkpoint baked = Checkpoint::open(*disk, out, "out");
      const auto values = [&](const std::string& name) {
        const Entry* entry = baked.find(name);
        std::vector<float> read(entry == nullptr ? 0 : entry->info.count());
        if (entry != nullptr) read_values(baked, *entry, 0, read);
        return read;
      };
      for (std::uint64_t e = 0; e < kExperts; ++e) {
        for (int part = 0; part < 3; ++part) {
          const std::uint64_t rows = part == 2 ? kWidth : 2 * kInner;
          const std::uint64_t in = inputs(part);
          const std::vector<float> all =
              base == "separate" ? values(fmt::format("{}.{}.{}.weight", kOwner, e, kNames[part]))
                                 : values(kOwner + (part == 2 ? ".down_proj" : ".gate_up_proj"));
          ASSERT_FALSE(all.empty());
          for (std::uint64_t o = 0; o < outputs(part); ++o) {
            for (std::uint64_t i = 0; i < in; ++i) {
              const std::uint64_t row = part == 1 ? kInner + o : o;
              const std::uint64_t at = base == "separate" ? o * in + i
                                       : base == "fused"  ? (e * rows + row) * in + i
                                                          : (e * in + i) * rows + row;
              ASSERT_EQ(all[at], expected(e, part, o, i)) << e << " " << kNames[part];
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace ingot::test
