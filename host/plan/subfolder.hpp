// Folders in a model's folder that belong to the model, because its files or their readers name
// them.
#pragma once

#include <set>
#include <string>

#include "plan/folder.hpp"

namespace ingot::plan {

// Paths of folders, relative to `folder`, whose files go along:
//   of the tokenizer: additional_chat_templates
//   of the rest: processor, custom_generate; what modules.json of sentence-transformers lists; the
//   packages that a Python file of the model imports by a relative name (`from .parts import x`),
//   at any remove
// Only folders that are there. A modules.json that is not one is a warning.
[[nodiscard]] std::set<std::string> named_folders(Disk& disk, Problems& problems,
                                                  const std::string& folder, Share share);

}  // namespace ingot::plan
