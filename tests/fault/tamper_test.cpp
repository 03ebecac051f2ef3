// verify() notices whatever is changed in a folder, by somebody who makes hashes fit again.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "ingot/math/codec.hpp"
#include "merging.hpp"
#include "model.hpp"

namespace ingot::test {
namespace {

using Json = nlohmann::ordered_json;

std::string hash_of(const std::string& bytes) {
  std::vector<Digest> digests;
  for (std::size_t at = 0; at < bytes.size(); at += kHashBlock) {
    const std::string block = bytes.substr(at, kHashBlock);
    digests.push_back(hash_block(std::as_bytes(std::span(block.data(), block.size()))));
  }
  return hash_digests(digests).text();
}

// The receipt's text with a self-hash that fits.
std::string seal(Json receipt) {
  receipt.erase("hash");
  const std::string body = receipt.dump(1);
  receipt["hash"] = hash_block(std::as_bytes(std::span(body.data(), body.size()))).text();
  return receipt.dump(1) + "\n";
}

void write_floats(const std::string& path, const Tensors& tensors, std::uint64_t seed) {
  std::string bytes = print_header(tensors, {{"format", "pt"}});
  Random random(seed);
  for (const TensorInfo& tensor : tensors) {
    for (std::uint64_t i = 0; i < tensor.count(); ++i) {
      const auto value = static_cast<float>(random.uniform() - 0.5);
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
  write_file(path, bytes);
}

void write_llama(const std::string& folder, std::uint64_t seed) {
  write_model(folder, {}, llama_config(1, ",\n  \"auto_map\": {\"AutoModel\": \"modeling_x.X\"}"));
  write_floats(folder + "/model.safetensors", llama(1, Dtype::f32), seed);
  write_file(folder + "/generation_config.json", "{\"do_sample\": true}\n");
  write_file(folder + "/tokenizer_config.json", "{\"model_max_length\": 64}\n");
  write_file(folder + "/modeling_x.py", "class X: pass\n");
}

void write_lora(const std::string& folder, std::uint64_t seed) {
  write_file(folder + "/adapter_config.json",
             R"({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
                 "target_modules": ["q_proj"], "base_model_name_or_path": "a"})");
  const std::string module = "base_model.model.model.layers.0.self_attn.q_proj";
  write_floats(folder + "/adapter_model.safetensors",
               {{module + ".lora_A.weight", Dtype::f32, {2, 4}},
                {module + ".lora_B.weight", Dtype::f32, {4, 2}}},
               seed);
}

const std::string kTwo =
    "models:\n  - {model: ./a, parameters: {weight: 0.6, density: 0.5}}\n"
    "  - {model: ./b, parameters: {weight: 0.4, density: 0.7}}\nbase_model: ./c\n";

// Recipes that between them fill every field of a receipt.
const std::map<std::string, std::string>& kinds() {
  static const std::map<std::string, std::string> all = {
      {"ties", kTwo + "merge_method: ties\nparameters: {rescale: true}\ndtype: bfloat16\n"},
      {"dare", kTwo + "merge_method: dare_linear\n"},
      {"slerp",
       "models: [{model: ./a}, {model: ./b}]\nbase_model: ./a\nmerge_method: slerp\n"
       "parameters: {t: 0.3}\n"},
      {"cut",
       "slices: [{sources: [{model: ./a, layer_range: [0, 1]}]}]\nmerge_method: passthrough\n"},
      {"bake", "models: [{model: {path: ./a, adapters: [./l]}}]\nmerge_method: passthrough\n"},
      {"adapted",
       "models:\n  - {model: ./a+./l, parameters: {weight: 0.6}}\n"
       "  - {model: ./b, parameters: {weight: 0.4}}\nmerge_method: linear\n"},
      {"fused",
       "adapter_method: ties\nadapters: [{adapter: ./l}, {adapter: ./m}]\n"
       "parameters: {density: 0.6}\n"},
      {"wide",
       "models: [{model: ./a, parameters: {weight: 0.6}}, {model: ./b, parameters: {weight: "
       "3}}]\nmerge_method: linear\ndtype: float8_e4m3fn\n"},
      {"decomposed", "adapter_method: svd\nadapters: [{adapter: ./l}, {adapter: ./m}]\n"},
      {"extracted", "extract: lora\nbase_model: ./a\nmodel: ./b\nrank: 2\n"},
  };
  return all;
}

class Tampering : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    write_llama(folder_ / "a", 1);
    write_llama(folder_ / "b", 2);
    write_llama(folder_ / "c", 3);
    write_lora(folder_ / "l", 4);
    write_lora(folder_ / "m", 5);
    Settings settings;
    settings.plan.root = folder_.path();
    if (GetParam() == "dare") {
      settings.plan.seed = 7;
      settings.plan.shard_bytes = 200;
    }
    if (GetParam() == "slerp") settings.plan.dtype = "bfloat16";
    if (GetParam() ==
        "wide") {  // rows to cut, NaN and a value that only the result has no room for
      auto tensors = llama(1, Dtype::f32);
      for (TensorInfo& tensor : tensors) {
        if (tensor.shape[0] == 10) tensor.shape.set(0, 12);
      }
      write_floats(folder_ / "b/model.safetensors", tensors, 6);
      put(folder_ / "b/model.safetensors", 5, 300.0F);
      put(folder_ / "a/model.safetensors", 7, std::numeric_limits<float>::quiet_NaN());
      settings.plan.truncate_embeddings = true;
    }
    run_merge(kinds().at(GetParam()), out(), settings);
    original_ = read_file(file("ingot.json"));
    receipt_ = Json::parse(original_);
    ASSERT_EQ(findings(), "");
    ASSERT_EQ(findings(true), "");
    ASSERT_EQ(seal(receipt_), original_);
  }

  [[nodiscard]] std::string out() const { return folder_ / "out"; }
  [[nodiscard]] std::string file(const std::string& name) const { return out() + "/" + name; }

  [[nodiscard]] std::string findings(bool outputs_only = false) const {
    VerifyOptions options;
    options.root = folder_.path();
    options.threads = 1;
    options.outputs_only = outputs_only;
    const auto disk = system_disk();
    std::string text;
    for (const Finding& finding : verify(*disk, out(), options).findings) {
      text += finding.text + "\n";
    }
    return text;
  }

  // Sets an element of the file's first tensor.
  static void put(const std::string& path, std::size_t element, float value) {
    std::string bytes = read_file(path);
    std::memcpy(bytes.data() + 4096 + element * sizeof value, &value, sizeof value);
    write_file(path, bytes);
  }

  void restore() const { write_file(file("ingot.json"), original_); }

  // All values of the receipt, as JSON pointers; containers that hold nothing are values.
  [[nodiscard]] static std::vector<Json::json_pointer> leaves(const Json& receipt) {
    std::vector<Json::json_pointer> all;
    const Json flat = receipt.flatten();
    for (const auto& [path, value] : flat.items()) {
      if (path != "/hash") all.emplace_back(path);
    }
    return all;
  }

  static void spoil(Json& value) {
    if (value.is_string()) {
      auto text = value.get<std::string>();
      // A hash or number in hexadecimal stays one.
      if (text.empty()) {
        text = "x";
      } else {
        text.back() = text.back() == '1' ? '2' : '1';
      }
      value = text;
    } else if (value.is_boolean()) {
      value = !value.get<bool>();
    } else if (value.is_number_float()) {
      value = value.get<double>() * 1.001 + 1e-30;
    } else if (value.is_number()) {
      value = value.get<std::uint64_t>() + 1;
    } else if (value.is_array()) {
      value.push_back("x");
    } else if (value.is_object()) {
      value["x"] = 1;
    } else {
      value = 0;
    }
  }

  Folder folder_;
  std::string original_;
  Json receipt_;
};

TEST_P(Tampering, EveryValueOfTheReceiptCounts) {
  for (const auto& leaf : leaves(receipt_)) {
    Json changed = receipt_;
    spoil(changed[leaf]);
    write_file(file("ingot.json"), seal(changed));
    EXPECT_NE(findings(), "") << leaf.to_string() << ": " << receipt_[leaf];
  }
}

TEST_P(Tampering, NoValueOfTheReceiptCanGo) {
  for (const auto& leaf : leaves(receipt_)) {
    Json changed = receipt_;
    Json& parent = changed[leaf.parent_pointer()];
    if (parent.is_object()) {
      parent.erase(leaf.back());
    } else {
      parent.erase(std::stoul(leaf.back()));
    }
    write_file(file("ingot.json"), seal(changed));
    EXPECT_NE(findings(), "") << leaf.to_string();
  }
}

TEST_P(Tampering, NothingCanBeAddedToTheReceipt) {
  std::vector<Json::json_pointer> objects{Json::json_pointer()};
  for (std::size_t i = 0; i < objects.size(); ++i) {
    const Json value = receipt_[objects[i]];
    if (value.is_structured()) {
      for (const auto& [key, inner] : value.items()) {
        if (!inner.is_structured()) continue;
        objects.push_back(value.is_object() ? objects[i] / key : objects[i] / std::stoul(key));
      }
    }
    Json changed = receipt_;
    Json& target = changed[objects[i]];
    if (target.is_object()) {
      target["x"] = "y";
    } else {
      target.push_back(target.empty() ? Json("y") : target.back());
    }
    write_file(file("ingot.json"), seal(changed));
    EXPECT_NE(findings(), "") << objects[i].to_string();
  }
}

TEST_P(Tampering, TheReceiptHasOneSpelling) {
  const auto found = [&](const std::string& text) {
    write_file(file("ingot.json"), text);
    return findings() + findings(true);
  };
  EXPECT_NE(found(original_ + " "), "");
  EXPECT_NE(found(original_.substr(0, original_.size() - 1)), "");
  EXPECT_NE(found(" " + original_), "");
  EXPECT_NE(found(receipt_.dump()), "");
  std::string twice = original_;
  twice.replace(twice.find("{\n"), 2, "{\n \"format\": \"ingot-receipt-3\",\n");
  EXPECT_NE(found(twice), "");
  Random random(1);
  for (int i = 0; i < 100; ++i) {
    std::string flipped = original_;
    flipped[random.below(flipped.size())] ^= static_cast<char>(1 << random.below(8));
    EXPECT_NE(found(flipped), "");
  }
}

TEST_P(Tampering, EveryByteOfEveryFileCounts) {
  for (const auto& entry : std::filesystem::directory_iterator(out())) {
    const std::string name = entry.path().filename().string();
    if (name == "ingot.json") continue;
    const std::string bytes = read_file(file(name));
    const bool weights = name.ends_with(".safetensors");
    std::vector<std::size_t> places{0, bytes.size() - 1, bytes.size() / 2};
    if (weights) {  // length, JSON, padding, the first element
      for (const std::size_t at : std::vector<std::size_t>{7, 8, 9, 30, 200, 4095, 4096}) {
        if (at < bytes.size()) places.push_back(at);
      }
    }
    Random random(2);
    for (int i = 0; i < 8; ++i) places.push_back(random.below(bytes.size()));
    for (const std::size_t at : places) {
      std::string changed = bytes;
      changed[at] ^= 1;
      write_file(file(name), changed);
      restore();
      EXPECT_NE(findings(), "") << name << " " << at;
      EXPECT_NE(findings(true), "") << name << " " << at;
      // With hashes that fit. Factors of a decomposition may be others within their bound.
      Json forged = receipt_;
      if (!weights) {
        for (Json& one : forged["files"]) {
          if (one["file"] == name) one["hash"] = hash_of(changed);
        }
        if (name == "recipe.yml") {
          forged["recipe"]["hash"] =
              hash_block(std::as_bytes(std::span(changed.data(), changed.size()))).text();
        }
      } else if (GetParam() != "decomposed" && GetParam() != "extracted") {
        std::uint64_t begin = 4096;  // of data, in the order of the receipt
        for (Json& one : forged["tensors"]) {
          if (one["shard"] != name) continue;
          const auto dtype = dtype_of_name(one["dtype"].get<std::string>());
          std::uint64_t size = bits(*dtype) / 8;
          for (const auto& extent : one["shape"]) size *= extent.get<std::uint64_t>();
          one["hash"] = hash_of(changed.substr(begin, size));
          begin += size;
        }
        EXPECT_EQ(begin, bytes.size());
      } else {
        continue;
      }
      write_file(file("ingot.json"), seal(forged));
      // What the recipe says cannot be told from elsewhere: a comment may change.
      if (name == "recipe.yml") continue;
      EXPECT_NE(findings(), "") << name << " " << at << " (sealed)";
    }
    for (const std::string& longer : {bytes + std::string(1, '\0'), bytes.substr(1),
                                      bytes.substr(0, bytes.size() - 1), std::string()}) {
      write_file(file(name), longer);
      restore();
      EXPECT_NE(findings(), "") << name;
      EXPECT_NE(findings(true), "") << name;
    }
    write_file(file(name), bytes);
  }
  EXPECT_EQ(findings(), "");
}

TEST_P(Tampering, NoFileCanComeOrGo) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(out())) {
    names.push_back(entry.path().filename().string());
  }
  for (const std::string& name : names) {
    if (name == "ingot.json") continue;
    std::filesystem::rename(file(name), folder_ / "aside");
    EXPECT_NE(findings(), "") << name;
    EXPECT_NE(findings(true), "") << name;
    // Also not from the receipt's list.
    Json forged = receipt_;
    for (std::size_t i = 0; i < forged["files"].size(); ++i) {
      if (forged["files"][i]["file"] == name) forged["files"].erase(i);
    }
    write_file(file("ingot.json"), seal(forged));
    EXPECT_NE(findings(), "") << name;
    restore();
    std::filesystem::create_symlink(folder_ / "aside", file(name));
    EXPECT_NE(findings(), "") << name;
    EXPECT_NE(findings(true), "") << name;
    std::filesystem::remove(file(name));
    std::filesystem::create_directory(file(name));
    EXPECT_NE(findings(), "") << name;
    std::filesystem::remove(file(name));
    std::filesystem::rename(folder_ / "aside", file(name));
  }
  for (const std::string name :
       {"adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "modeling_y.py", "added_tokens.json", ".hidden", "chat_template.jinja",
        "sub/file"}) {
    if (std::filesystem::exists(file(name))) continue;
    write_file(file(name), "{}");
    EXPECT_NE(findings(), "") << name;
    EXPECT_NE(findings(true), "") << name;
    // Also not with an entry of the receipt.
    Json forged = receipt_;
    forged["files"].push_back({{"file", name}, {"origin", "written"}, {"hash", hash_of("{}")}});
    write_file(file("ingot.json"), seal(forged));
    EXPECT_NE(findings(), "") << name;
    restore();
    std::filesystem::remove_all(file(name == "sub/file" ? "sub" : name));
  }
  EXPECT_EQ(findings(), "");
}

// Weights that somebody changes and seals, so that only arithmetic can tell.
class Forging : public testing::Test {
 protected:
  using Bytes = std::span<char>;
  struct Tensor {
    std::string name;
    Dtype dtype;
    Bytes bytes;
  };

  void SetUp() override {
    write_llama(folder_ / "a", 1);
    write_llama(folder_ / "b", 2);
    write_lora(folder_ / "l", 4);
    write_lora(folder_ / "m", 5);
    write_lora(folder_ / "p", 6);
    const std::string config = folder_ / "p/adapter_config.json";
    std::string text = read_file(config);
    text.replace(text.find("\"r\":"), 4, "\"init_lora_weights\": \"pissa\", \"r\":");
    write_file(config, text);
  }

  [[nodiscard]] std::string out() const { return folder_ / "out"; }

  void make(const std::string& recipe, const std::string& dtype = {}, bool fast = false) const {
    Settings settings;
    settings.plan.root = folder_.path();
    settings.plan.dtype = dtype;
    settings.plan.fast_product = fast;
    settings.merge.force = true;
    run_merge(recipe, out(), settings);
    ASSERT_EQ(findings(), "") << recipe << dtype;
  }

  [[nodiscard]] std::string findings(bool outputs_only = false) const {
    VerifyOptions options;
    options.root = folder_.path();
    options.all = true;
    options.threads = 1;
    options.outputs_only = outputs_only;
    const auto disk = system_disk();
    std::string text;
    for (const Finding& finding : verify(*disk, out(), options).findings) {
      text += finding.text + "\n";
    }
    return text;
  }

  // The receipt, changed and sealed.
  void forge(const std::function<void(Json&)>& change) const {
    const std::string path = out() + "/ingot.json";
    Json receipt = Json::parse(read_file(path));
    change(receipt);
    write_file(path, seal(receipt));
  }

  // All tensors of the only file of weights, changed and sealed.
  void change(const std::function<void(std::vector<Tensor>&)>& change) const {
    const bool adapter = std::filesystem::exists(out() + "/adapter_model.safetensors");
    const std::string path =
        out() + (adapter ? "/adapter_model.safetensors" : "/model.safetensors");
    std::string bytes = read_file(path);
    std::vector<Tensor> tensors;
    const auto disk = system_disk();
    const Checkpoint checkpoint = Checkpoint::open(*disk, path, path);
    for (const Entry& entry : checkpoint.entries()) {
      tensors.push_back(
          {entry.info.name, entry.info.dtype, {bytes.data() + entry.offset, entry.info.bytes()}});
    }
    change(tensors);
    write_file(path, bytes);
    forge([&](Json& receipt) {
      for (Json& one : receipt["tensors"]) {
        for (const Tensor& tensor : tensors) {
          if (one["name"] != tensor.name) continue;
          one["hash"] = hash_of(std::string(tensor.bytes.begin(), tensor.bytes.end()));
        }
      }
    });
    EXPECT_EQ(findings(true), "");
  }

  // One element, one step away from zero.
  static void step(const Tensor& tensor, std::size_t element) {
    const std::size_t width = bits(tensor.dtype) / 8;
    std::uint32_t code = 0;
    std::memcpy(&code, tensor.bytes.data() + element * width, width);
    ++code;
    std::memcpy(tensor.bytes.data() + element * width, &code, width);
  }

  Folder folder_;
};

const std::string kBaked = "models: [{model: ./a+./l}]\nmerge_method: passthrough\n";

TEST_F(Forging, ABoundIsNoStepOfTheOutputsType) {
  const std::string initialised = "models: [{model: ./a+./p}]\nmerge_method: passthrough\n";
  const std::string mixed =
      "models:\n  - {model: ./a+./p, parameters: {weight: 0.6}}\n"
      "  - {model: ./b, parameters: {weight: 0.4}}\nmerge_method: linear\n";
  for (const std::string dtype : {"float32", "bfloat16", "float16", "float8_e4m3fn"}) {
    for (const auto& [recipe, fast] :
         {std::pair(kBaked, true), std::pair(initialised, false), std::pair(mixed, false)}) {
      // Products of f32 may be some steps of f32 away.
      for (const bool touched : {false, true}) {
        if (touched && fast && dtype == "float32") continue;
        make(recipe, dtype, fast);
        std::size_t moved = 0;
        change([&](std::vector<Tensor>& tensors) {
          for (const Tensor& tensor : tensors) {
            if ((tensor.name.find("q_proj") != std::string::npos) != touched) continue;
            step(tensor, 1);
            ++moved;
          }
        });
        const std::string found = findings();
        EXPECT_GT(moved, 0U);
        // Five of a kind are told one by one.
        EXPECT_GE(std::count(found.begin(), found.end(), '\n'), std::min<std::size_t>(moved, 5))
            << recipe << dtype << found;
      }
    }
  }
}

TEST_F(Forging, FastProductsNeedAProduct) {
  for (const std::string recipe :
       {"models: [{model: ./a}]\nmerge_method: passthrough\ndtype: float8_e4m3fn\n",
        "models: [{model: ./a+./l}]\nmerge_method: passthrough\n"}) {
    make(recipe, {}, true);
    const bool product = recipe.find("./l") != std::string::npos;
    EXPECT_EQ(Json::parse(read_file(out() + "/ingot.json"))["options"].contains("fast_product"),
              product);
    forge([](Json& receipt) { receipt["options"]["fast_product"] = true; });
    EXPECT_EQ(findings().empty(), product) << findings();
  }
}

TEST_F(Forging, FactorsHaveOneForm) {
  // Rows of A and columns of B, by module, as numbers.
  struct Factors {
    std::vector<std::vector<double>> a, b;
  };
  using Forgery = std::function<void(Factors&)>;
  const auto both = [](Factors& f, const std::function<void(std::vector<double>&, bool)>& each) {
    for (auto& row : f.a) each(row, true);
    for (auto& row : f.b) each(row, false);
  };
  const auto times = [&both](double by) -> Forgery {
    return [&both, by](Factors& f) {
      both(f, [by](std::vector<double>& row, bool a) {
        for (double& x : row) x = a ? x * by : x / by;
      });
    };
  };
  // Rows of A become M A, columns of B become B M^-1, for M = [[p, q], [r, s]] of determinant 1.
  const auto turn = [](double p, double q, double r, double s) -> Forgery {
    return [=](Factors& f) {
      for (std::size_t i = 0; i < f.a[0].size(); ++i) {
        const double x = f.a[0][i], y = f.a[1][i];
        f.a[0][i] = p * x + q * y;
        f.a[1][i] = r * x + s * y;
      }
      for (std::size_t i = 0; i < f.b[0].size(); ++i) {
        const double x = f.b[0][i], y = f.b[1][i];
        f.b[0][i] = s * x - r * y;
        f.b[1][i] = p * y - q * x;
      }
    };
  };
  const std::map<std::string, Forgery> forgeries = {{"long", times(64)},
                                                    {"short", times(0.25)},
                                                    {"signs", times(-1)},
                                                    {"sheared", turn(1, 0, 0.5, 1)},
                                                    {"turned", turn(0.8, 0.6, -0.6, 0.8)},
                                                    {"swapped", [](Factors& f) {
                                                       std::swap(f.a[0], f.a[1]);
                                                       std::swap(f.b[0], f.b[1]);
                                                     }}};
  // Of what one module has in common nothing is to be told.
  std::filesystem::copy(folder_ / "a", folder_ / "c");
  {
    const auto disk = system_disk();
    const std::string path = folder_ / "c/model.safetensors";
    std::string bytes = read_file(path);
    const Checkpoint checkpoint = Checkpoint::open(*disk, path, path);
    bytes[checkpoint.find("model.layers.0.mlp.up_proj.weight")->offset + 2] ^= 1;
    write_file(path, bytes);
  }
  const std::string same = "extract: lora\nbase_model: ./a\nmodel: ./c\nrank: 2\n";
  const std::string other = "extract: lora\nbase_model: ./a\nmodel: ./b\nrank: 2\n";
  const std::string joined =
      "adapter_method: svd\nadapters: [{adapter: ./l}, {adapter: ./m}]\nparameters: {}\n";
  const auto forge_all = [&](const std::string& recipe, const std::string& dtype,
                             const Forgery& forgery) {
    make(recipe, dtype);
    change([&](std::vector<Tensor>& tensors) {
      for (const Tensor& a : tensors) {
        const std::size_t at = a.name.find("lora_A");
        if (at == std::string::npos) continue;
        std::string partner = a.name;
        partner.replace(at, 6, "lora_B");
        const Tensor& b = *std::find_if(tensors.begin(), tensors.end(),
                                        [&](const Tensor& t) { return t.name == partner; });
        constexpr std::size_t kRank = 2;
        const auto place = [&](const Tensor& t, std::size_t k, std::size_t i) {
          const std::size_t n = t.bytes.size() * 8 / bits(t.dtype);
          return &t == &a ? k * (n / kRank) + i : i * kRank + k;
        };
        const auto each = [&](const Tensor& t, std::vector<std::vector<double>>& rows, bool write) {
          const std::size_t width = bits(t.dtype) / 8, n = t.bytes.size() / width;
          rows.resize(kRank, std::vector<double>(n / kRank));
          for (std::size_t k = 0; k < kRank; ++k) {
            for (std::size_t i = 0; i < n / kRank; ++i) {
              char* element = t.bytes.data() + place(t, k, i) * width;
              double& x = rows[k][i];
              std::uint32_t code = 0;
              std::memcpy(&code, element, width);
              using math::Format;
              const auto pass = [&](auto codec) {
                using Codec = decltype(codec);
                if (write) {
                  code = static_cast<std::uint32_t>(
                      Codec::encode(static_cast<float>(x), math::Overflow::saturate));
                } else {
                  using Code = decltype(Codec::encode(0.0F, math::Overflow::saturate));
                  x = static_cast<double>(Codec::decode(static_cast<Code>(code)));
                }
              };
              if (t.dtype == Dtype::f32) pass(math::Codec<Format::f32>());
              if (t.dtype == Dtype::f16) pass(math::Codec<Format::f16>());
              if (t.dtype == Dtype::bf16) pass(math::Codec<Format::bf16>());
              std::memcpy(element, &code, width);
            }
          }
        };
        Factors factors;
        each(a, factors.a, false);
        each(b, factors.b, false);
        forgery(factors);
        each(a, factors.a, true);
        each(b, factors.b, true);
      }
    });
    return findings();
  };
  for (const std::string dtype : {"float32", "bfloat16", "float16"}) {
    for (const std::string& recipe : {other, joined}) {
      EXPECT_EQ(forge_all(recipe, dtype, [](Factors&) {}), "");
      for (const auto& [name, forgery] : forgeries) {
        EXPECT_NE(forge_all(recipe, dtype, forgery), "") << name << " " << dtype << " " << recipe;
      }
    }
    const std::string zero = forge_all(same, dtype, [](Factors& f) { f.a[0][0] = 1; });
    EXPECT_NE(zero.find("are to be zero"), std::string::npos) << zero;
  }
}

TEST_F(Forging, OptionsThatChangeNothingCannotBeAdded) {
  const std::string joined = "adapter_method: svd\nadapters: [{adapter: ./l}, {adapter: ./m}]\n";
  const std::string narrow = "models: [{model: ./a}]\nmerge_method: passthrough\ndtype: ";
  const std::vector<std::tuple<std::string, std::string, Json>> all = {
      {joined, "dtype", "float32"},
      {joined, "copy_tokenizer", false},
      {"extract: lora\nbase_model: ./a\nmodel: ./b\nrank: 2\n", "dtype", "float32"},
      {narrow + "float8_e4m3fn\n", "fp8_overflow", "propagate"},
      {narrow + "bfloat16\n", "fp8_overflow", "propagate"},
      {narrow + "bfloat16\n", "dtype", "bfloat16"},
      {narrow + "bfloat16\n", "seed", 3},
      {narrow + "bfloat16\n", "shard_bytes", 100'000},
      {narrow + "bfloat16\n", "waivers", Json::array({"allow_mixed"})}};
  for (const auto& [recipe, option, value] : all) {
    make(recipe);
    forge([&, &option = option, &value = value](Json& receipt) {
      receipt["options"][option] = value;
    });
    EXPECT_NE(findings(), "") << recipe << option;
  }
  // Nor does a merge write them.
  Settings settings;
  settings.plan.root = folder_.path();
  settings.plan.dtype = "float32";
  settings.plan.copy_tokenizer = false;
  settings.plan.overflow = math::Overflow::propagate;
  settings.merge.force = true;
  run_merge(joined, out(), settings);
  EXPECT_EQ(Json::parse(read_file(out() + "/ingot.json"))["options"].size(), 0U);
  EXPECT_EQ(findings(), "");
  settings.plan.dtype.clear();
  run_merge(narrow + "float8_e4m3fn\n", out(), settings);
  EXPECT_EQ(Json::parse(read_file(out() + "/ingot.json"))["options"].dump(),
            R"({"copy_tokenizer":false})");
  EXPECT_EQ(findings(), "");
}

TEST_F(Forging, AnIndexIsThatOfTheShardsAlsoWithoutInputs) {
  Settings settings;
  settings.plan.root = folder_.path();
  settings.plan.shard_bytes = 200;
  run_merge("models: [{model: ./a}]\nmerge_method: passthrough\ndtype: bfloat16\n", out(),
            settings);
  ASSERT_EQ(findings(true), "");
  const std::string path = out() + "/model.safetensors.index.json", index = read_file(path);
  for (const auto& [from, to] :
       {std::pair("\"total_size\": ", "\"total_size\": 1"), std::pair("00001-of", "00002-of"),
        std::pair("lm_head.weight", "lm_head.veight"), std::pair("}\n", "}\n\n")}) {
    std::string changed = index;
    changed.replace(changed.find(from), std::string_view(from).size(), to);
    write_file(path, changed);
    forge([&](Json& receipt) {
      for (Json& one : receipt["files"]) {
        if (one["file"] == "model.safetensors.index.json") one["hash"] = hash_of(changed);
      }
    });
    EXPECT_NE(findings(true).find("the index does not match"), std::string::npos) << findings(true);
  }
  std::filesystem::remove(path);
  forge([](Json& receipt) {
    for (std::size_t i = 0; i < receipt["files"].size(); ++i) {
      if (receipt["files"][i]["file"] == "model.safetensors.index.json") receipt["files"].erase(i);
    }
  });
  EXPECT_NE(findings(true).find("missing"), std::string::npos) << findings(true);
}

TEST_F(Forging, AFolderOfTheHubsCacheIsOneOfLinksToItsBlobs) {
  make(kBaked);
  const std::string repository = folder_ / "models--me--mine";
  const std::string snapshot = repository + "/snapshots/" + std::string(40, 'c');
  std::filesystem::create_directories(repository + "/blobs");
  std::filesystem::create_directories(snapshot);
  int blob = 0;
  for (const auto& entry : std::filesystem::directory_iterator(out())) {
    const std::string name = "blobs/" + std::to_string(blob++);
    std::filesystem::rename(entry.path(), repository + "/" + name);
    std::filesystem::create_symlink("../../" + name,
                                    snapshot + "/" + entry.path().filename().string());
  }
  std::filesystem::remove(out());
  std::filesystem::create_directory_symlink(snapshot, out());
  EXPECT_EQ(findings(), "");
  EXPECT_EQ(findings(true), "");
  // Links that lead elsewhere stay shortfalls, also to the same bytes.
  const std::string config = snapshot + "/config.json";
  const std::string bytes = read_file(config);
  for (const std::string& target :
       {folder_ / "elsewhere", std::string(repository + "/elsewhere"), snapshot + "/within"}) {
    write_file(target, bytes);
    std::filesystem::remove(config);
    std::filesystem::create_symlink(target, config);
    EXPECT_NE(findings().find("found a link"), std::string::npos) << target;
    EXPECT_NE(findings(true).find("found a link"), std::string::npos) << target;
  }
}

TEST_F(Forging, LargeTensorsAgreeAtLeastWithTheFactsOfTheReceipt) {
  const Tensors tensors = {{"model.layers.0.mlp.down_proj.weight", Dtype::bf16, {1025, 1024}},
                           {"model.layers.0.mlp.up_proj.weight", Dtype::bf16, {1025, 1024}}};
  for (const char* name : {"a", "b", "c"}) {
    std::filesystem::remove_all(folder_ / name);
    write_file(folder_ / name + std::string("/config.json"), llama_config(1));
    std::string bytes = print_header(tensors, {{"format", "pt"}});
    Random random(static_cast<std::uint64_t>(name[0]));
    for (std::uint64_t i = 0; i < tensors[0].count() + tensors[1].count(); ++i) {
      const auto code = static_cast<std::uint16_t>(math::Codec<math::Format::bf16>::encode(
          static_cast<float>(random.uniform() - 0.5), math::Overflow::saturate));
      bytes.append(reinterpret_cast<const char*>(&code), sizeof code);
    }
    write_file(folder_ / name + std::string("/model.safetensors"), bytes);
  }
  const auto verdicts = [&] {
    VerifyOptions options;
    options.root = folder_.path();
    const auto disk = system_disk();
    return verify(*disk, out(), options);
  };
  for (const std::string& rest :
       {std::string("merge_method: ties\n"),
        std::string("merge_method: ties\nparameters: {rescale: true}\ndtype: float32\n"),
        std::string("merge_method: dare_linear\ndtype: float32\n"), std::string("slerp")}) {
    Settings settings;
    settings.plan.root = folder_.path();
    settings.merge.force = true;
    run_merge(rest == "slerp"
                  ? "models: [{model: ./a}, {model: ./b}]\nbase_model: ./a\nmerge_method: slerp\n"
                    "parameters: {t: 0.3}\ndtype: float32\n"
                  : kTwo + rest,
              out(), settings);
    const Verdicts honest = verdicts();
    EXPECT_EQ(honest.shortfalls, 0U) << rest << honest.findings[0].text;
    EXPECT_EQ(honest.sampled, 2U);
    EXPECT_EQ(honest.taken, 1U);
    EXPECT_EQ(honest.passed, 0U);
    change([](std::vector<Tensor>& all) {
      for (const Tensor& tensor : all) {
        const std::size_t count = tensor.bytes.size() * 8 / bits(tensor.dtype);
        for (std::size_t i = 0; i < count; ++i) {
          for (int steps = 0; steps < 32; ++steps) step(tensor, i);
        }
      }
    });
    const Verdicts forged = verdicts();
    std::size_t wrong = 0;
    for (const Finding& finding : forged.findings) {
      if (finding.text.find("its rule gives") != std::string::npos) ++wrong;
    }
    EXPECT_EQ(wrong, 2U) << rest;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, Tampering, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& [name, text] : kinds()) names.push_back(name);
                           return names;
                         }()),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace ingot::test
