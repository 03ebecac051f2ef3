// Files beside the weights that say something else in another model of the recipe.
#pragma once

#include <string>

#include "plan/draft.hpp"

namespace ingot::plan {

// Warns where a model has another value than the model whose file the output has, in a file that
// says how inputs are prepared or outputs are read: tokenizer, chat template, image and audio
// processors, pooling, ids that end a text. config.json is not among them. `tokenizer`: the folder
// of the output's tokenizer. One warning for a file and a model; files that only one of them has,
// and files that cannot be read, are passed over.
void compare_settings(Disk& disk, const Draft& draft, const std::string& tokenizer);

}  // namespace ingot::plan
