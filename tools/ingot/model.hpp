// Models as the inspecting commands see them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ingot/store.hpp"

namespace ingot::tool {

// A folder, a file, or a Hub name (with @revision) in the local cache. Throws Error{missing}.
[[nodiscard]] Checkpoint open_model(Disk& disk, const std::string& name);
// Likewise, of an adapter as well.
[[nodiscard]] Checkpoint open_any(Disk& disk, const std::string& name);
// The folder or file of such a name.
[[nodiscard]] std::string locate(Disk& disk, const std::string& name);
// Whether a folder holds an adapter.
[[nodiscard]] bool is_adapter(Disk& disk, const std::string& folder);

// The name with every component that is a number as "*": "model.layers.*.mlp.up_proj.weight".
[[nodiscard]] std::string pattern(std::string_view name);
// The first component that is a number, as in "model.layers.7.mlp": the layer.
[[nodiscard]] std::optional<std::uint64_t> layer(std::string_view name);

// Tokens in the folder's tokenizer.json, added ones included; nothing if there is no such file.
// Throws Error{format} if it is not a tokenizer.
[[nodiscard]] std::optional<std::uint64_t> count_tokens(Disk& disk, const Checkpoint& model);

}  // namespace ingot::tool
