// A model under its adapters: which base tensor each of an adapter's modules means, and what is
// replaced, added or changed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan/draft.hpp"

namespace ingot::plan {

// An adapter on a model.
struct Applied {
  std::uint32_t adapter = 0;  // index into Draft::adapters
  double weight = 1;
};

// A view of the checkpoint as it is.
[[nodiscard]] View plain_view(const Plan& plan, std::uint32_t model, std::string text);

// Puts adapters, in order, on a plain view. Every tensor of an adapter finds its place or is spared
// with a reason; if something is impossible, it is a problem, and the result is false.
[[nodiscard]] bool adapt(Disk& disk, Draft& draft, std::uint32_t view,
                         const std::vector<Applied>& applied);

// True for a layer that its class stores as (in, out), as GPT-2's do.
[[nodiscard]] bool transposed_layer(std::string_view architecture, std::string_view path);

// True where PEFT 0.19.1 and later take parameters of all experts as (experts, in, out): the class
// says `is_transposed`. Others with that order (Llama 4) are taken as they lie.
[[nodiscard]] bool transposed_parameters(std::string_view architecture);

}  // namespace ingot::plan
