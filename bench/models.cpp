// Writes checkpoints of true Llama-2-7B shapes at reduced depth, for the gates: a base and fine-tunes
// whose updates are as coarse as real bf16 ones.
//
//   bench-models OUT [--layers 2] [--models 4] [--no-head] [--seed 0]
//
// OUT/base, OUT/tune1, ... each with model.safetensors and config.json. Values are a function of seed,
// model, tensor and element. Besides ordinary updates (sigma 2e-4, every other model 2e-3) one tensor of
// every fine-tune has all-equal updates, one has none, and one is ordered by size, so that a sample
// of its beginning says nothing about its end.

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <filesystem>
#include <fstream>

#include "ingot/math/codec.hpp"
#include "ingot/tensor.hpp"
#include "store/header.hpp"

namespace {

using namespace ingot;

std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// Nearly N(0, 1): the sum of eight bytes.
float normal(std::uint64_t key) {
  const std::uint64_t z = mix(key);
  const std::uint64_t pairs = (z & 0x00ff00ff00ff00ffULL) + ((z >> 8) & 0x00ff00ff00ff00ffULL);
  const std::uint64_t sum = (pairs * 0x0001000100010001ULL) >> 48;
  return (static_cast<float>(sum) - 1020.0F) / 209.0F;
}

enum class Update { ordinary, equal, none, ordered };

Update update_of(const std::string& name) {
  if (name == "model.layers.0.self_attn.k_proj.weight") return Update::equal;
  if (name == "model.layers.0.self_attn.v_proj.weight") return Update::none;
  if (name == "model.layers.0.self_attn.o_proj.weight") return Update::ordered;
  return Update::ordinary;
}

std::vector<TensorInfo> shapes(int layers, bool head) {
  std::vector<TensorInfo> all;
  const auto add = [&](const std::string& name, std::initializer_list<std::uint64_t> shape) {
    all.push_back({name, Dtype::bf16, Shape(shape)});
  };
  if (head) add("lm_head.weight", {32000, 4096});
  add("model.embed_tokens.weight", {32000, 4096});
  for (int layer = 0; layer < layers; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    add(at + "input_layernorm.weight", {4096});
    add(at + "mlp.down_proj.weight", {4096, 11008});
    add(at + "mlp.gate_proj.weight", {11008, 4096});
    add(at + "mlp.up_proj.weight", {11008, 4096});
    add(at + "post_attention_layernorm.weight", {4096});
    for (const char* p : {"k", "o", "q", "v"}) {
      add(at + "self_attn." + p + "_proj.weight", {4096, 4096});
    }
  }
  add("model.norm.weight", {4096});
  return all;
}

// Elements [first, first + out.size()) of a tensor of model number `model` (0: the base).
void fill(std::uint64_t seed, int model, std::uint64_t tensor, Update update, std::uint64_t count,
          std::uint64_t first, std::vector<std::uint16_t>& out) {
  using Bf16 = math::Codec<math::Format::bf16>;
  const float sigma = model % 2 == 1 ? 2e-4F : 2e-3F;
  const std::uint64_t base_key = mix(seed * 31 + tensor);
  const std::uint64_t tune_key = mix(base_key + static_cast<std::uint64_t>(model) * 0x1000193);
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint64_t index = first + i;
    const float base = Bf16::decode(Bf16::encode(0.02F * normal(base_key + index), {}));
    float value = base;
    if (model > 0) {
      const float noise = normal(tune_key + index);
      if (update == Update::ordinary) value += sigma * noise;
      if (update == Update::equal) value += noise < 0 ? -0x1p-9F : 0x1p-9F;
      if (update == Update::ordered) {
        value += sigma * 4 * static_cast<float>(index) / static_cast<float>(count) * (noise < 0 ? -1.0F : 1.0F);
      }
    }
    out[i] = Bf16::encode(value, {});
  }
}

void write_model(const std::string& folder, std::uint64_t seed, int model, int layers, bool head) {
  std::filesystem::create_directories(folder);
  const auto tensors = shapes(layers, head);
  const std::string path = folder + "/model.safetensors";
  std::ofstream file(path, std::ios::binary);
  const std::string header = print_header(tensors, {{"format", "pt"}});
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  constexpr std::uint64_t kPiece = 1 << 22;
  for (std::uint64_t t = 0; t < tensors.size(); ++t) {
    const std::uint64_t n = tensors[t].count();
    for (std::uint64_t at = 0; at < n; at += kPiece) {
      std::vector<std::uint16_t> piece(std::min(kPiece, n - at));
      fill(seed, model, t, update_of(tensors[t].name), n, at, piece);
      file.write(reinterpret_cast<const char*>(piece.data()),
                 static_cast<std::streamsize>(piece.size() * sizeof piece[0]));
    }
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
  std::ofstream(folder + "/config.json")
      << "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"dtype\": \"bfloat16\",\n"
         "  \"hidden_act\": \"silu\",\n  \"hidden_size\": 4096,\n  \"intermediate_size\": 11008,\n"
         "  \"max_position_embeddings\": 4096,\n  \"model_type\": \"llama\",\n  \"num_attention_heads\": 32,\n"
         "  \"num_hidden_layers\": " << layers << ",\n  \"num_key_value_heads\": 32,\n"
         "  \"rms_norm_eps\": 1e-05,\n  \"tie_word_embeddings\": " << (head ? "false" : "true")
      << ",\n  \"vocab_size\": 32000\n}\n";
}

}  // namespace

int main(int argc, char** argv) try {
  std::string out;
  int layers = 2, models = 4;
  std::uint64_t seed = 0;
  bool head = true;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    if (arg == "--layers") layers = std::stoi(value());
    else if (arg == "--models") models = std::stoi(value());
    else if (arg == "--seed") seed = std::stoull(value());
    else if (arg == "--no-head") head = false;
    else out = arg;
  }
  if (out.empty()) {
    std::fputs("usage: bench-models OUT [--layers 2] [--models 4] [--no-head] [--seed 0]\n", stderr);
    return 2;
  }
  std::vector<std::thread> writers;
  for (int m = 0; m < models; ++m) {
    writers.emplace_back([&, m] {
      write_model(out + (m == 0 ? "/base" : "/tune" + std::to_string(m)), seed, m, layers, head);
    });
    if (m % 2 == 1 || m + 1 == models) {
      for (auto& w : writers) w.join();
      writers.clear();
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench-models: %s\n", error.what());
  return 1;
}
