// Writes checkpoints of true Llama-2-7B shapes at reduced depth, for the gates: a base and
// fine-tunes whose updates are as coarse as real bf16 ones.
//
//   bench_models OUT [--shapes 7b|70b] [--layers 2] [--models 4] [--no-head] [--sparse] [--seed 0]
//
// OUT/base, OUT/tune1, ... each with model.safetensors and config.json. Values are a function of
// seed, model, tensor and element. Besides ordinary updates (sigma 2e-4, every other model 2e-3)
// one tensor of every fine-tune has all-equal updates, one has none, and one is ordered by size, so
// that a sample of its beginning says nothing about its end. --sparse leaves holes for data: shapes
// and bytes without the disk space, for measurements of memory.

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

// Llama-2's numbers.
struct Size {
  std::uint64_t hidden = 4096, inner = 11008, keys = 4096, heads = 32;
};
constexpr Size k7b, k70b{8192, 28672, 1024, 64};

std::vector<TensorInfo> shapes(const Size& size, int layers, bool head) {
  std::vector<TensorInfo> all;
  const auto add = [&](const std::string& name, std::initializer_list<std::uint64_t> shape) {
    all.push_back({name, Dtype::bf16, Shape(shape)});
  };
  const std::uint64_t h = size.hidden;
  if (head) add("lm_head.weight", {32000, h});
  add("model.embed_tokens.weight", {32000, h});
  for (int layer = 0; layer < layers; ++layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    add(at + "input_layernorm.weight", {h});
    add(at + "mlp.down_proj.weight", {h, size.inner});
    add(at + "mlp.gate_proj.weight", {size.inner, h});
    add(at + "mlp.up_proj.weight", {size.inner, h});
    add(at + "post_attention_layernorm.weight", {h});
    add(at + "self_attn.k_proj.weight", {size.keys, h});
    add(at + "self_attn.o_proj.weight", {h, h});
    add(at + "self_attn.q_proj.weight", {h, h});
    add(at + "self_attn.v_proj.weight", {size.keys, h});
  }
  add("model.norm.weight", {h});
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
        value += sigma * 4 * static_cast<float>(index) / static_cast<float>(count) *
                 (noise < 0 ? -1.0F : 1.0F);
      }
    }
    out[i] = Bf16::encode(value, {});
  }
}

void write_model(const std::string& folder, std::uint64_t seed, int model, const Size& size,
                 int layers, bool head, bool sparse) {
  std::filesystem::create_directories(folder);
  const auto tensors = shapes(size, layers, head);
  const std::string path = folder + "/model.safetensors";
  std::ofstream file(path, std::ios::binary);
  const std::string header = print_header(tensors, {{"format", "pt"}});
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  constexpr std::uint64_t kPiece = 1 << 22;
  std::uint64_t bytes = header.size();
  for (const TensorInfo& tensor : tensors) bytes += tensor.bytes();
  for (std::uint64_t t = 0; t < tensors.size() && !sparse; ++t) {
    const std::uint64_t n = tensors[t].count();
    for (std::uint64_t at = 0; at < n; at += kPiece) {
      std::vector<std::uint16_t> piece(std::min(kPiece, n - at));
      fill(seed, model, t, update_of(tensors[t].name), n, at, piece);
      file.write(reinterpret_cast<const char*>(piece.data()),
                 static_cast<std::streamsize>(piece.size() * sizeof piece[0]));
    }
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
  std::filesystem::resize_file(path, bytes);
  std::ofstream(folder + "/config.json")
      << "{\n  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n  \"dtype\": \"bfloat16\",\n"
         "  \"hidden_act\": \"silu\",\n  \"hidden_size\": "
      << size.hidden << ",\n  \"intermediate_size\": " << size.inner
      << ",\n  \"max_position_embeddings\": 4096,\n  \"model_type\": \"llama\",\n  "
         "\"num_attention_heads\": "
      << size.heads << ",\n  \"num_hidden_layers\": " << layers
      << ",\n  \"num_key_value_heads\": " << size.keys / 128
      << ",\n"
         "  \"rms_norm_eps\": 1e-05,\n  \"tie_word_embeddings\": "
      << (head ? "false" : "true") << ",\n  \"vocab_size\": 32000\n}\n";
}

}  // namespace

int main(int argc, char** argv) try {
  std::string out;
  int layers = 2, models = 4;
  std::uint64_t seed = 0;
  bool head = true, sparse = false;
  Size size = k7b;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    if (arg == "--layers")
      layers = std::stoi(value());
    else if (arg == "--models")
      models = std::stoi(value());
    else if (arg == "--seed")
      seed = std::stoull(value());
    else if (arg == "--no-head")
      head = false;
    else if (arg == "--sparse")
      sparse = true;
    else if (arg == "--shapes")
      size = value() == "70b" ? k70b : k7b;
    else
      out = arg;
  }
  if (out.empty()) {
    std::fputs(
        "usage: bench_models OUT [--shapes 7b|70b] [--layers 2] [--models 4] [--no-head] "
        "[--sparse] "
        "[--seed 0]\n",
        stderr);
    return 2;
  }
  std::vector<std::thread> writers;
  for (int m = 0; m < models; ++m) {
    writers.emplace_back([&, m] {
      write_model(out + (m == 0 ? "/base" : "/tune" + std::to_string(m)), seed, m, size, layers,
                  head, sparse);
    });
    if (m % 2 == 1 || m + 1 == models) {
      for (auto& w : writers) w.join();
      writers.clear();
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "bench_models: %s\n", error.what());
  return 1;
}
