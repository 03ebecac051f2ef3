#include "plan/types.hpp"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include <fmt/format.h>

#include "plan/roles.hpp"

namespace ingot::plan {
namespace {

// Other words for element types: NumPy's, PyTorch's and everybody's.
struct Synonym {
  std::string_view word, name;
};
constexpr Synonym kSynonyms[] = {{"bf16", "bfloat16"}, {"fp16", "float16"}, {"f16", "float16"},
                                 {"half", "float16"},  {"fp32", "float32"}, {"f32", "float32"},
                                 {"float", "float32"}, {"fp64", "float64"}, {"f64", "float64"},
                                 {"double", "float64"}};

// The name that a word in any case stands for, or the word itself.
std::string canonical(std::string_view text) {
  std::string low(text);
  for (char& c : low) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const Synonym& synonym : kSynonyms) {
    if (low == synonym.word) return std::string(synonym.name);
  }
  return low;
}

std::optional<Dtype> parse_dtype(std::string_view written, const std::string& where,
                                 Problems& problems) {
  constexpr std::string_view kTorch = "torch.";
  if (written.starts_with(kTorch)) written.remove_prefix(kTorch.size());
  const std::string text = canonical(written);
  if (text == "auto") {
    problems.error(Code::usage, fmt::format("{} auto: leave it out, and the output has the type "
                                            "that its inputs have in common",
                                            where));
    return std::nullopt;
  }
  std::vector<std::string> known;
  for (int i = 0; i < kDtypes; ++i) {
    const Dtype dtype = static_cast<Dtype>(i);
    if (has_codec(dtype)) known.emplace_back(word(dtype));
    if (word(dtype) != text) continue;
    if (has_codec(dtype) && bits(dtype) == 8) {
      problems.warn(Code::dtype,
                    fmt::format("{} {}: the weights are stored without scales, which transformers "
                                "does not load; use bfloat16, which loads everywhere",
                                where, text));
    }
    if (has_codec(dtype)) return dtype;
    problems.error(
        Code::usage,
        fmt::format("{} {}: ingot computes in float32 and writes {}; {} is not among them", where,
                    text, "bfloat16, float16, float32 and the float8 types", text));
    return std::nullopt;
  }
  problems.error(Code::usage,
                 fmt::format("{} '{}' is not an element type; ingot writes {}{}", where, text,
                             fmt::join(known, ", "), suggestion(text, known)));
  return std::nullopt;
}

bool mark_of_codes(std::string_view last) {
  return last == "qweight" || last == "qzeros" || last == "g_idx" || last == "absmax" ||
         last == "quant_map" || last == "nested_absmax" || last == "SCB" ||
         last == "weight_packed" || last.starts_with("quant_state");
}

// Types whose numbers come with a scale where a scale lies beside them.
bool codes(Dtype dtype) {
  return dtype == Dtype::f8_e4m3 || dtype == Dtype::f8_e5m2 || dtype == Dtype::i8 ||
         dtype == Dtype::u8 || dtype == Dtype::i32 || bits(dtype) < 8;
}

}  // namespace

std::optional<Dtype> wanted_dtype(const Recipe& recipe, const PlanOptions& options,
                                  Problems& problems) {
  const auto read = [&](const std::string& text, const std::string& where) -> std::optional<Dtype> {
    if (text.empty()) return std::nullopt;
    return parse_dtype(text, where, problems);
  };
  const auto of_option = read(options.dtype, "--dtype");
  const auto out =
      read(recipe.out_dtype, position(recipe.file, recipe.out_dtype_mark) + ": out_dtype");
  const auto all = read(recipe.dtype, position(recipe.file, recipe.dtype_mark) + ": dtype");
  return of_option ? of_option : out ? out : all;
}

Meeting meet(std::span<const Dtype> stored, std::optional<Dtype> wanted) {
  Meeting meeting;
  meeting.inputs.assign(stored.begin(), stored.end());
  const Dtype first = stored.front();
  const bool same = std::all_of(stored.begin(), stored.end(), [&](Dtype d) { return d == first; });
  for (const Dtype dtype : stored) {
    if (dtype == Dtype::c64 || (is_float(dtype) && bits(dtype) <= 8 && !has_codec(dtype))) {
      if (stored.size() == 1) {
        meeting.action = Action::copy;
        meeting.output = dtype;
        meeting.reason = fmt::format("{} of one model is copied", word(dtype));
      } else {
        meeting.refusal = fmt::format(
            "{} can only be copied from one model, because ingot does not compute with it",
            word(dtype));
      }
      return meeting;
    }
  }
  if (std::any_of(stored.begin(), stored.end(), [](Dtype d) { return !is_float(d); })) {
    meeting.action = Action::copy;
    meeting.output = first;
    meeting.reason = fmt::format("{} is copied where all inputs agree", word(first));
    if (!same) meeting.refusal = "integers and booleans of different types cannot be merged";
    return meeting;
  }
  if (std::find(stored.begin(), stored.end(), Dtype::f64) != stored.end()) {
    if (!wanted) {
      meeting.action = Action::copy;
      meeting.output = Dtype::f64;
      meeting.reason = "float64 is copied where all inputs agree";
      if (!same) {
        meeting.refusal =
            "ingot computes in float32: set dtype: float32 to narrow the float64 tensors";
      }
      return meeting;
    }
    std::replace(meeting.inputs.begin(), meeting.inputs.end(), Dtype::f64, Dtype::f32);
  }
  meeting.output = wanted ? *wanted : same ? first : Dtype::f32;
  return meeting;
}

const Entry* scale_of(const Checkpoint& checkpoint) {
  std::unordered_set<std::string_view> coded;  // tensors of codes, and their modules
  for (const Entry& entry : checkpoint.entries()) {
    const std::string_view name = entry.info.name;
    if (mark_of_codes(last_component(name))) return &entry;
    if (codes(entry.info.dtype)) coded.insert({name, parent(name)});
  }
  if (coded.empty()) return nullptr;
  for (const Entry& entry : checkpoint.entries()) {
    const std::string_view last = last_component(entry.info.name);
    const bool scale = last.find("scale") != last.npos || last == "zero_point";
    // "w.weight_scale" lies beside "w.weight", "w.weight.scale" below it.
    if (scale && coded.contains(parent(entry.info.name))) return &entry;
  }
  return nullptr;
}

std::string wanted_by_option(const Plan& plan) {
  Problems ignored;
  PlanOptions none;
  const auto by_recipe = wanted_dtype(plan.recipe, none, ignored);
  const auto by_both = wanted_dtype(plan.recipe, plan.options, ignored);
  // Factors are f32 where nobody says otherwise.
  const bool standard = plan.recipe.kind != Recipe::Kind::models && !by_recipe;
  if (by_both == by_recipe || (standard && by_both == Dtype::f32)) return {};
  return std::string(word(*by_both));
}

}  // namespace ingot::plan
