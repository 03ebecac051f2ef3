// README.md of the output: a model card for the Hugging Face Hub and for people.
#pragma once

#include <string>
#include <string_view>

#include "ingot/methods.hpp"
#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// Text as a cell of a table or a word of a sentence in Markdown: what would end it is escaped.
[[nodiscard]] std::string cell(std::string_view text);

// Text as a YAML scalar that every reader takes for a string.
[[nodiscard]] std::string yaml_string(std::string_view text);

// True for text in the form of a name on the Hub, `owner/name`. One word is not: it is more often a
// folder.
[[nodiscard]] bool like_hub_name(std::string_view text);

// The name of a model or adapter in published texts: its Hub name for a path into the Hub's cache,
// the last component of any other path that shows where files are on this machine, else the path.
[[nodiscard]] std::string public_name(const std::string& path, const std::string& revision = "");
[[nodiscard]] std::string public_name(const ModelRef& ref);

// The card of a merged model, or of one with adapters in its weights. A function of the recipe, the
// options that stand in the receipt, and the inputs.
[[nodiscard]] std::string model_card(Disk& disk, const Plan& plan, const math::Method& method,
                                     Problems& problems);

// The card of an adapter of a kind ("lora"): `about` is Markdown about how it came to be, `base`
// what adapter_config.json names as its base model. `title` is taken where the options give none.
[[nodiscard]] std::string adapter_card(Disk& disk, const Plan& plan, const std::string& kind,
                                       const std::string& base, const std::string& title,
                                       const std::string& about, Problems& problems);

}  // namespace ingot::plan
