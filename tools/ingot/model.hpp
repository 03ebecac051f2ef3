// Models as the inspecting commands see them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

#include "ingot/store.hpp"

namespace ingot::tool {

// The folder or file of a name: a path, which starts in `root` if it is relative, or a Hub name
// (with @revision) in the local cache. Throws Error{missing}.
[[nodiscard]] std::string locate(Disk& disk, const std::string& name, const std::string& root);
// The tensors of a model or an adapter of such a name, which lies in `folder`.
[[nodiscard]] Checkpoint open_any(Disk& disk, const std::string& name, const std::string& folder);
// Option --root of a command that looks at models.
void add_root(CLI::App& command, std::string& root);
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
