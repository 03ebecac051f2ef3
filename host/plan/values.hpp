// Single values of config.json that weights were trained with: a window, a base of rotation, an
// activation.
#pragma once

#include <string>

#include "plan/config.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// Warns, in one sentence, of values that differ between the donor's config and another model's and
// that give weights their meaning: numbers, texts and booleans of the document and of the object of
// the text at `text`, with rotation in its old and new spelling as one. Names, versions, types,
// ids, vocabulary, initial values, dropout, losses, generation and what layers.hpp compares have no
// part in it; nor have keys that one of the two lacks, where the class decides.
void compare_values(const Config& donor, const Config& other, const Place& text,
                    const std::string& donor_shown, const std::string& other_shown,
                    Problems& problems);

}  // namespace ingot::plan
