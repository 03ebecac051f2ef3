#include "engine/finite.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "engine/supply.hpp"
#include "ingot/error.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/methods.hpp"
#include "store/values.hpp"

namespace ingot {
namespace {

// Elements whose inputs are read together.
constexpr std::uint64_t kBlock = 1024;
// Tensors of a kind that reports name.
constexpr std::size_t kNamed = 8;

template <math::Format format>
bool beyond_as(float value) {
  using Codec = math::Codec<format>;
  const auto code = Codec::encode(value, math::Overflow::propagate);
  return !std::isnan(value) && !std::isfinite(Codec::decode(code));
}

// True if a number is too large for a type that saturates.
bool beyond(Dtype dtype, float value) {
  return dtype == Dtype::f8_e4m3   ? beyond_as<math::Format::e4m3>(value)
         : dtype == Dtype::f8_e5m2 ? beyond_as<math::Format::e5m2>(value)
                                   : false;
}

bool saturates(const Job& job) {
  return job.action == Action::merge && job.work.overflow == math::Overflow::saturate &&
         (job.output.dtype == Dtype::f8_e4m3 || job.output.dtype == Dtype::f8_e5m2);
}

// The inputs of a run of output elements, read again from their files.
class Inputs {
 public:
  Inputs(const Plan& plan, const Job& job) : plan_(plan), job_(job) {}

  // Marks elements [first, first + bad.size()) of which some input is not finite as stored.
  void mark(std::uint64_t first, std::vector<bool>& bad) const {
    for (const Operand& operand : job_.operands) {
      if (!lands(operand)) continue;
      if (operand.rows) {
        mark_rows(operand, first, bad);
        continue;
      }
      const Entry& entry = entry_of(plan_, operand.model, operand.entry);
      const Codes codes = nonfinite_codes(entry.info.dtype);
      if (codes.size == 0) continue;
      std::vector<std::byte> stored(bad.size() * codes.size);
      read_elements(plan_.models[operand.model].checkpoint, entry, first, stored);
      scan(codes, stored, [&](std::uint64_t i) { bad[i] = true; });
    }
  }

  // The values that enter the formula, by operand.
  [[nodiscard]] std::vector<std::vector<float>> values(std::uint64_t first, std::uint64_t count,
                                                       const Fill& fill) const {
    std::vector<std::vector<float>> all;
    for (std::size_t i = 0; i < job_.operands.size(); ++i) {
      const Operand& operand = job_.operands[i];
      std::vector<float>& values = all.emplace_back(count);
      std::vector<std::byte> stored;
      if (lands(operand)) {
        const Dtype dtype = staged_dtype(plan_, operand);
        stored.resize(count * bits(dtype) / 8);
        supply(plan_, operand, true, first, stored);
        if (!operand.derived) to_floats(dtype, stored, values);
      }
      if (operand.derived) fill(i, first, stored, values);
    }
    return all;
  }

 private:
  // Values of f64 become infinite as they are narrowed, so the rows that a row is made of are
  // looked at as they are stored. A mean of all rows has no such list: it is finite if they are.
  void mark_rows(const Operand& operand, std::uint64_t first, std::vector<bool>& bad) const {
    std::vector<float> values(bad.size());
    std::vector<std::byte> stored(bad.size() * sizeof(float));
    supply(plan_, operand, true, first, stored);
    to_floats(Dtype::f32, stored, values);
    const RowMap& map = *operand.rows;
    for (std::uint64_t i = 0; i < bad.size(); ++i) {
      if (bad[i] || std::isfinite(values[i])) continue;
      const std::uint64_t row = (first + i) / map.width, column = (first + i) % map.width;
      bad[i] = std::binary_search(map.averaged.begin(), map.averaged.end(), row);
      for (std::uint64_t p = map.first[row]; !bad[i] && p < map.first[row + 1]; ++p) {
        const RowMap::Pick& pick = map.picks[p];
        const Entry& entry = entry_of(plan_, pick.model, pick.entry);
        const Codes codes = nonfinite_codes(entry.info.dtype);
        std::byte element[sizeof(double)];
        read_elements(plan_.models[pick.model].checkpoint, entry, pick.row * map.width + column,
                      std::span(element, codes.size));
        bad[i] = large(codes, element);
      }
    }
  }

  const Plan& plan_;
  const Job& job_;
};

}  // namespace

void Findings::add(const Findings& other) {
  nonfinite.add(other.nonfinite);
  made.add(other.made);
  saturated.add(other.saturated);
}

Findings examine(const Plan& plan, const Job& job, const Measurements& known, std::uint64_t first,
                 std::span<const std::byte> output, const Fill& fill) {
  Findings findings;
  const Dtype dtype = job.output.dtype;
  const Codes codes = saturates(job) ? largest_codes(dtype) : nonfinite_codes(dtype);
  std::vector<std::uint64_t> suspects;  // of one block
  const auto look = [&] {
    if (suspects.empty()) return;
    const std::uint64_t at = suspects.front(), count = suspects.back() - at + 1;
    const Inputs inputs(plan, job);
    std::vector<bool> bad(count);
    std::vector<std::vector<float>> values;
    bool marked = false;
    for (const std::uint64_t i : suspects) {
      if (large(nonfinite_codes(dtype), output.data() + i * codes.size)) {
        if (!marked) inputs.mark(first + at, bad);
        marked = true;
        findings.nonfinite.add(first + i);
        if (!bad[i - at]) findings.made.add(first + i);
        continue;
      }
      // The largest finite value: rounded to, or a cut?
      if (values.empty()) values = inputs.values(first + at, count, fill);
      float x[math::kSources] = {};
      const std::size_t skip = job.work.rule.base ? 1 : 0;
      for (std::size_t s = skip; s < values.size(); ++s) x[s - skip] = values[s][i - at];
      const float base = skip == 1 ? values[0][i - at] : 0.0F;
      double line[math::kLineFacts] = {};
      known.line(job.work.rule, first + i, line);
      const auto exact =
          math::evaluate<float>(job.work.rule, known.facts, x, base, first + i, line);
      if (beyond(dtype, exact.value)) findings.saturated.add(first + i);
    }
    suspects.clear();
  };
  scan(codes, output, [&](std::uint64_t i) {
    if (!suspects.empty() && i / kBlock != suspects.front() / kBlock) look();
    suspects.push_back(i);
  });
  look();
  return findings;
}

Findings examine(const Plan& plan, const Job& job, const Measurements& known, File& file,
                 std::uint64_t place) {
  std::vector<std::unique_ptr<Working>> working(job.operands.size());
  const Fill fill = [&](std::size_t operand, std::uint64_t first, std::span<const std::byte> own,
                        std::span<float> values) {
    auto& work = working[operand];
    if (!work) work = job.operands[operand].derived->begin(plan, nullptr);
    work->fill(first, own, values);
  };
  Findings all;
  const std::uint64_t width = std::max<std::uint64_t>(bits(job.output.dtype) / 8, 1);
  const std::uint64_t bytes = job.output.bytes();
  std::vector<std::byte> block(std::min<std::uint64_t>(kHashBlock, bytes));
  for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
    const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, bytes - at));
    read_exact(file, place + at, piece);
    all.add(examine(plan, job, known, at / width, piece, fill));
  }
  if (job.action == Action::copy) all.made = {};
  return all;
}

bool propagates(const Job& job) {
  return job.action == Action::merge && math::method(job.work.rule.method).propagates &&
         !saturates(job);
}

void refuse(const Plan& plan, const Job& job, const Findings& findings) {
  if (findings.made.count == 0) return;
  // Factors that are not finite are of no use to anybody.
  const bool decomposed =
      std::any_of(job.operands.begin(), job.operands.end(),
                  [](const Operand& o) { return o.derived && o.derived->joint() != nullptr; });
  if (plan.options.allow_nonfinite && !decomposed) return;
  const Dtype dtype = job.output.dtype;
  const bool narrow = dtype != Dtype::f32 && dtype != Dtype::bf16;
  fail(Code::range,
       fmt::format(
           "{}: {} of {} elements (the first is number {}) are not finite, though all inputs of "
           "these elements are: the result, or an intermediate sum, is too large for {}; {}{}",
           job.output.name, findings.made.count, job.output.shape.count(), findings.made.first,
           word(dtype),
           narrow ? "write --dtype float32 or bfloat16, or choose other weights"
                  : "choose other weights",
           decomposed ? "" : ", or allow such results with --allow-nonfinite"));
}

void Notes::add(const Json& entry) {
  const auto read = [](const Json& of, const char* field) {
    Count count;
    if (of.contains(field)) {
      count.count = of[field].value("count", std::uint64_t{0});
      count.first = of[field].value("first", std::uint64_t{0});
    }
    return count;
  };
  const auto input = [&](const Json& source) {
    const Count count = read(source, "nonfinite");
    if (count.count == 0) return;
    inputs_[{source.value("model", ""), source.value("tensor", "")}] = count;
  };
  for (const Json& source : entry.at("sources")) {
    input(source);
    if (!source.contains("ingredients")) continue;
    for (const Json& part : source["ingredients"]) input(part);
  }
  const Output output{entry.at("dtype").get<std::string>(), read(entry, "nonfinite"),
                      read(entry, "saturated")};
  if (output.nonfinite.count == 0 && output.saturated.count == 0) return;
  outputs_[entry.at("name").get<std::string>()] = output;
}

std::vector<std::string> Notes::warnings() const {
  std::vector<std::string> all;
  const auto rest = [&](std::size_t count, const char* what) {
    if (count <= kNamed) return;
    all.push_back(fmt::format("{} more {}; the receipt counts them all", count - kNamed, what));
  };
  const auto elements = [](const Count& count) {
    return fmt::format("{} element{} (the first is number {})", count.count,
                       count.count == 1 ? "" : "s", count.first);
  };
  std::size_t named = 0;
  for (const auto& [tensor, count] : inputs_) {
    if (++named > kNamed) break;
    all.push_back(fmt::format("{} of {} holds NaN or infinity in {}", tensor.second, tensor.first,
                              elements(count)));
  }
  rest(inputs_.size(), "input tensors hold NaN or infinity");
  std::size_t bad = 0, cut = 0;
  for (const auto& [tensor, output] : outputs_) {
    if (output.nonfinite.count > 0 && ++bad <= kNamed) {
      all.push_back(fmt::format("the output's {} holds NaN or infinity in {}", tensor,
                                elements(output.nonfinite)));
    }
  }
  rest(bad, "output tensors hold NaN or infinity");
  for (const auto& [tensor, output] : outputs_) {
    if (output.saturated.count > 0 && ++cut <= kNamed) {
      all.push_back(
          fmt::format("the output's {} has {} beyond the range of {}, written as its "
                      "largest value",
                      tensor, elements(output.saturated), output.dtype));
    }
  }
  rest(cut, "output tensors have elements beyond their type's range");
  return all;
}

}  // namespace ingot
