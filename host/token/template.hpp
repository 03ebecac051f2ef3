// Chat templates: which text the output gets, and where it stands in the folder.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "ingot/recipe.hpp"
#include "ingot/store.hpp"

namespace ingot {

// The chat template of the model in `folder`: chat_template.jinja, else `chat_template` of
// tokenizer_config.json (of several named ones that called "default"). Throws Error{format} for a
// configuration that is not JSON.
[[nodiscard]] std::optional<std::string> read_template(Disk& disk, const std::string& folder);

// The text the recipe's `chat_template` asks for: a built-in one by name, a literal, or for `auto`
// the most frequent among `models` (white space around it aside; of equally frequent ones the
// first). Nothing if the recipe says nothing, or `auto` finds none: the donor's stays. Throws
// Error{usage} with line for a text that is neither a name nor a template.
[[nodiscard]] std::optional<std::string> chat_template(
    const Recipe& recipe, std::span<const std::optional<std::string>> models);

// `config`, the text of a tokenizer_config.json, with `chat` for its top-level `chat_template`, and
// not another byte changed; as it is if it has none. `chat` goes into chat_template.jinja as well,
// which newer readers prefer. Throws Error{format} naming `file` if it is not a JSON object.
[[nodiscard]] std::string with_template(const std::string& config, const std::string& file,
                                        const std::string& chat);

}  // namespace ingot
