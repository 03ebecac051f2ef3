// Chunks on their way to a device: where their inputs lie there, and what kernels are told of them.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "call.hpp"
#include "ingot/methods.hpp"
#include "job.hpp"

namespace ingot::gpu {

[[nodiscard]] inline math::Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return math::Format::f32;
    case Dtype::f16:
      return math::Format::f16;
    case Dtype::bf16:
      return math::Format::bf16;
    case Dtype::f8_e4m3:
      return math::Format::e4m3;
    case Dtype::f8_e5m2:
      return math::Format::e5m2;
    default:
      fail(Code::internal, "a dtype without a codec reached the device");
  }
}

template <class T>
[[nodiscard]] T* as(std::byte* memory) {
  return reinterpret_cast<T*>(memory);
}

// All inputs of one tensor, as long as the engine needs them.
class Room final : public Residence {
 public:
  Room(Lane& lane, const Work& work, std::byte* memory, std::uint64_t bytes)
      : lane_(lane), memory_(memory), bytes_(bytes) {
    Layout layout;
    for (const Dtype input : work.inputs)
      offsets_.push_back(layout.add(padded(work.rule.elements, bits(input) / 8)));
  }
  ~Room() override { lane_.stay().give(memory_, bytes_); }

  [[nodiscard]] static std::uint64_t bytes_for(const Work& work) {
    Layout layout;
    for (const Dtype input : work.inputs) layout.add(padded(work.rule.elements, bits(input) / 8));
    return layout.bytes();
  }

  [[nodiscard]] Lane& lane() const { return lane_; }
  [[nodiscard]] std::byte* at(const Chunk& chunk, std::size_t input) const {
    return memory_ + offsets_[input] + chunk.first * (bits(chunk.work->inputs[input]) / 8);
  }

 private:
  Lane& lane_;
  std::byte* memory_;
  std::uint64_t bytes_;
  std::vector<std::uint64_t> offsets_;
};

[[nodiscard]] inline Room* room_of(const Chunk& chunk) {
  return static_cast<Room*>(chunk.residence);
}

[[nodiscard]] inline std::uint64_t bytes_of(const Chunk& chunk, std::size_t input) {
  return std::uint64_t{chunk.count} * (bits(chunk.work->inputs[input]) / 8);
}

// Enqueues the copy of a chunk's input, and zeros up to the end of its last pack: packs are read
// whole.
inline void copy_input(Call& call, std::byte* to, const Chunk& chunk, std::size_t input) {
  call.copy_in(to, chunk.inputs[input], bytes_of(chunk, input),
               padded(chunk.count, bits(chunk.work->inputs[input]) / 8));
}

// What kernels are told of a chunk beside its numbers: operands, facts, and facts of its lines, in
// one piece of memory.
class Description {
 public:
  explicit Description(const Chunk& chunk) : chunk_(chunk) {
    const math::Rule& rule = chunk.work->rule;
    const math::Method& method = math::method(rule.method);
    facts_ = chunk.work->inputs.size() * sizeof(Operand);
    lines_ = facts_ + (chunk.facts != nullptr ? chunk.facts->bytes() : 0);
    table_.shape = math::line_shape(rule, method.lines(rule));
    if (chunk.lines == nullptr || method.line_facts == 0 || table_.shape.count == 0) return;
    const std::uint64_t width = table_.shape.width;
    if (table_.shape.lines == math::Lines::rows) {
      table_.first = chunk.first / width;
      table_.count = (chunk.first + chunk.count - 1) / width - table_.first + 1;
    } else {
      table_.first = chunk.first % width;
      table_.count = std::min<std::uint64_t>(chunk.count, width);
    }
    line_facts_ = static_cast<std::uint64_t>(method.line_facts);
  }

  // Bytes in what is sent with one copy, a multiple of 16.
  [[nodiscard]] std::uint64_t bytes() const {
    return lines_ + (lines_apart() == 0 ? (line_bytes() + 15) / 16 * 16 : 0);
  }
  // Bytes of line facts that are too many for that and are copied from where the engine has them.
  [[nodiscard]] std::uint64_t lines_apart() const {
    return line_bytes() > kSmall ? line_bytes() : 0;
  }

  // Writes it to `sent`, which will be copied to `there`, and enqueues the copy of line facts to
  // `apart`. Returns the tensor that kernels see.
  [[nodiscard]] Tensor write(Call& call, std::span<const Operand> operands, std::byte* sent,
                             std::byte* there, std::byte* apart) const {
    const Work& work = *chunk_.work;
    Tensor tensor;
    std::memcpy(sent, operands.data(), operands.size_bytes());
    tensor.input = as<Operand>(there);
    if (chunk_.facts != nullptr) {
      std::memcpy(sent + facts_, chunk_.facts->data(), chunk_.facts->bytes());
      tensor.facts = there + facts_;
    }
    tensor.line = table_;
    if (line_facts_ > 0) {
      std::uint64_t at = 0;
      const auto put = [&](const double* from, std::uint64_t count) {
        const std::uint64_t bytes = count * sizeof(double);
        if (lines_apart() > 0) {
          call.copy_in(apart + at, from, bytes);
        } else {
          std::memcpy(sent + lines_ + at, from, bytes);
        }
        at += bytes;
      };
      const std::uint64_t all = table_.shape.count;
      const std::uint64_t before_end = std::min(table_.count, all - table_.first);
      for (std::uint64_t i = 0; i < line_facts_; ++i) {
        put(chunk_.lines + i * all + table_.first, before_end);
        put(chunk_.lines + i * all, table_.count - before_end);
      }
      tensor.line.facts = as<double>(lines_apart() > 0 ? apart : there + lines_);
    }
    tensor.sources = work.rule.sources;
    tensor.base = work.rule.base;
    tensor.first = chunk_.first;
    tensor.count = chunk_.count;
    return tensor;
  }

 private:
  [[nodiscard]] std::uint64_t line_bytes() const {
    return line_facts_ * table_.count * sizeof(double);
  }

  const Chunk& chunk_;
  LineTable table_;
  std::uint64_t line_facts_ = 0;
  std::uint64_t facts_ = 0, lines_ = 0;  // offsets
};

// A chunk on the device for kernels that measure: its inputs, the tensor, and what a pass is told.
class Stage {
 public:
  // Only the base and the sources with `wanted` are staged; all of them if it is empty. `more`
  // bytes are sent behind the description.
  Stage(const Chunk& chunk, Layout& layout, std::uint64_t more = 0,
        std::span<const std::uint8_t> wanted = {})
      : chunk_(chunk), description_(chunk), more_(more) {
    const std::size_t base = chunk.work->rule.base ? 1 : 0;
    for (std::size_t i = 0; i < chunk.work->inputs.size(); ++i) {
      wanted_[i] = i < base || wanted.empty() || wanted[i - base] != 0;
      if (wanted_[i] && chunk.residence == nullptr)
        offset_[i] = layout.add(padded(chunk.count, bits(chunk.work->inputs[i]) / 8));
    }
    header_ = layout.add(sizeof(Tensor) + kGap + description_.bytes() + more);
    apart_ = layout.add(description_.lines_apart());
  }

  // Enqueues the copies of all of it. What is sent behind the description is at more(call.sent()).
  void copy(Call& call, std::byte* memory) const {
    std::vector<Operand> operands(chunk_.work->inputs.size());
    for (std::size_t i = 0; i < operands.size(); ++i) {
      if (!wanted_[i]) continue;
      call.moves(bytes_of(chunk_, i));
      const bool resident = chunk_.residence != nullptr;
      operands[i] = {resident ? room_of(chunk_)->at(chunk_, i) : memory + offset_[i],
                     format_of(chunk_.work->inputs[i])};
      if (!resident) copy_input(call, memory + offset_[i], chunk_, i);
    }
    constexpr std::uint64_t front = sizeof(Tensor) + kGap;
    *as<Tensor>(call.sent()) = description_.write(call, operands, call.sent() + front,
                                                  memory + header_ + front, memory + apart_);
    call.copy_in(memory + header_, call.sent(), front + description_.bytes() + more_);
  }
  [[nodiscard]] const Tensor* tensor(std::byte* memory) const {
    return as<Tensor>(memory + header_);
  }
  // What `more` asked for, in the pinned window and on the device.
  [[nodiscard]] std::byte* sent(const Call& call) const {
    return call.sent() + sizeof(Tensor) + kGap + description_.bytes();
  }
  [[nodiscard]] std::byte* told(std::byte* memory) const {
    return memory + header_ + sizeof(Tensor) + kGap + description_.bytes();
  }

 private:
  // Facts lie at multiples of 16 bytes.
  static constexpr std::uint64_t kGap = (16 - sizeof(Tensor) % 16) % 16;

  const Chunk& chunk_;
  Description description_;
  std::uint64_t more_;
  std::array<bool, math::kSources + 1> wanted_{};
  std::array<std::uint64_t, math::kSources + 1> offset_{};
  std::uint64_t header_ = 0, apart_ = 0;
};

}  // namespace ingot::gpu
