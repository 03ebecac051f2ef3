// Model references in their string form.
#pragma once

#include <string>

#include "ingot/recipe.hpp"

namespace ingot {

// Reads `path[@revision][+adapter[@revision]]...`. Never fails: whether the text is such a
// reference or the name of a folder with `+` or `@` in it is known only where the disk is (settle,
// plan.hpp).
[[nodiscard]] ModelRef reference_of(const std::string& text, Mark mark);

// Sets path and revision from `path[@revision]`; the last `@` divides.
void split_revision(const std::string& text, std::string& path, std::string& revision);

// Adds an adapter, and its part to the reference's text: `+path[@revision]`, with `:weight` where
// it is not 1.
void add_adapter(ModelRef& ref, AdapterRef adapter);

}  // namespace ingot
