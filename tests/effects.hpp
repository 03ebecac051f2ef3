// A base tensor and the parts of its adapters in a checkpoint of a test's own, and what becomes of
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "adapter/change.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/plan.hpp"
#include "model.hpp"

namespace ingot::test {

using Values = std::vector<float>;

// The weight and the factors of the known answers: 2 x 3, rank 2.
inline const Values kW{1, 2, 3, 4, 5, 6};
inline const Values kA{1, -1, 2, 0.5F, 0, 1};
inline const Values kB{1, 2, -1, 0.5F};

inline void expect_near(const Values& found, const Values& expected, float most = 1e-6F) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], most * std::max(1.0F, std::fabs(expected[i]))) << i;
  }
}

// Values from -1 to 1, the same on every machine.
inline Values random_values(std::uint64_t seed, std::uint64_t count) {
  Random random(seed);
  Values values(count);
  for (float& v : values) v = static_cast<float>(random.uniform() * 2 - 1);
  return values;
}

class Bench {
 public:
  // Adds a tensor to the checkpoint; bf16 values are rounded.
  Bench& add(const std::string& name, Shape shape, const Values& values, Dtype dtype = Dtype::f32) {
    std::string bytes;
    for (const float v : values) {
      const std::uint32_t word =
          dtype == Dtype::bf16 ? math::Codec<math::Format::bf16>::encode(v, {}) : math::bits(v);
      bytes.append(reinterpret_cast<const char*>(&word), bits(dtype) / 8);
    }
    tensors_[name] = {{name, dtype, shape}, std::move(bytes)};
    return *this;
  }
  // Random values of that shape.
  Bench& grow(const std::string& name, Shape shape, Dtype dtype = Dtype::f32) {
    return add(name, shape, random_values(tensors_.size() + 7, shape.count()), dtype);
  }

  // Writes what was added and opens it; once, before what follows.
  void open() {
    std::vector<TensorInfo> infos;
    std::string data;
    for (const auto& [name, tensor] : tensors_) {
      infos.push_back(tensor.first);
      data += tensor.second;
    }
    write_file(folder_ / "model.safetensors", print_header(infos, {{"format", "pt"}}) + data);
    plan_.models.push_back({{}, folder_.path(), Checkpoint::open(*disk_, folder_.path(), "test")});
  }

  [[nodiscard]] Located at(const std::string& name) const {
    const Checkpoint& checkpoint = plan_.models[0].checkpoint;
    const Entry* entry = checkpoint.find(name);
    const auto index = static_cast<std::uint32_t>(entry - checkpoint.entries().data());
    return {{0, index}, entry->info};
  }
  // Values as the file has them.
  [[nodiscard]] Values values(const std::string& name) const {
    const auto& [info, bytes] = tensors_.at(name);
    Values values(info.count());
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::uint32_t word = 0;
      std::memcpy(&word, bytes.data() + i * (bits(info.dtype) / 8), bits(info.dtype) / 8);
      values[i] = math::from_bits(info.dtype == Dtype::bf16 ? word << 16 : word);
    }
    return values;
  }

  // An effect of parts named as they stand in the checkpoint.
  [[nodiscard]] Effect effect(Family family, double scaling,
                              std::vector<std::pair<Piece, std::string>> parts) const {
    Effect effect;
    effect.adapter = "adapter";
    effect.family = family;
    effect.scaling = scaling;
    for (auto& [piece, name] : parts) effect.parts.push_back({piece, at(name)});
    return effect;
  }

  // Elements [first, first + count) of `base` as a Working fills them.
  Values fill(Working& working, const std::string& base, std::uint64_t first,
              std::uint64_t count) const {
    const auto& [info, bytes] = tensors_.at(base);
    const std::uint64_t width = bits(info.dtype) / 8;
    Values values(count);
    working.fill(
        first,
        std::as_bytes(std::span(bytes.data(), bytes.size())).subspan(first * width, count * width),
        values);
    return values;
  }
  // All of it, by plain loops unless a backend is given.
  Values apply(const std::string& base, std::vector<Effect> effects,
               Backend* backend = nullptr) const {
    const auto derived = change(at(base), std::move(effects), std::nullopt);
    return fill(*derived->begin(plan_, backend), base, 0, tensors_.at(base).first.count());
  }
  [[nodiscard]] const Plan& plan() const { return plan_; }

 private:
  Folder folder_;
  std::unique_ptr<Disk> disk_ = system_disk();
  std::map<std::string, std::pair<TensorInfo, std::string>> tensors_;
  Plan plan_;
};

}  // namespace ingot::test
