// The files of the output beside its weights.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plan/draft.hpp"

namespace ingot::plan {

// True for the files that make up a tokenizer, its chat template included.
[[nodiscard]] bool of_tokenizer(const std::string& name);

// What happens to a file of the donor's folder, by its name.
enum class Fate {
  taken,        // tokenizer, settings, processors, remote code, licence: the output gets it
  passed_over,  // weights, descriptions, leftovers of training, hidden files, what a merge writes
  unknown,      // anything else: it stays behind, with a warning
};
[[nodiscard]] Fate fate(const std::string& name);

// Which of a folder's files go along.
enum class Share { tokenizer, rest };

// Adds the files of `folder` that are taken over. A file that cannot be read, is a link that leads
// out of the folder or to nothing, or is a folder or a device where a tokenizer's file belongs, is
// an error; what stays behind although it looks as if it belonged to the model is a warning.
void take_over(Disk& disk, Problems& problems, const std::string& folder, Share share,
               std::vector<Companion>& files);

// True if leaving the tokenizer of `folder` behind (PlanOptions::copy_tokenizer) leaves anything
// unsaid or behind.
[[nodiscard]] bool has_tokenizer(Disk& disk, const std::string& folder);

// Where the output's tokenizer comes from: the model that a tokenizer setting names, else the
// donor; or, where the donor has none, the first model with one for as many rows, with a warning.
[[nodiscard]] std::string tokenizer_folder(Disk& disk, const Draft& draft);

// Rows of the input embedding of a view, if it has one.
[[nodiscard]] std::optional<std::uint64_t> rows_of(const Draft& draft, std::uint32_t view);

// The donor's files that go along, with the tokenizer of `tokenizer` (often the same folder) and
// the chat template that the recipe asks for. Sorted by name.
[[nodiscard]] std::vector<Companion> donated(Disk& disk, Draft& draft,
                                             const std::string& tokenizer);

// Says of each of these files from which model it is.
void attribute(const Draft& draft, const std::string& tokenizer, std::vector<Companion>& files);

// Puts companions that hold or name code of a model into Plan::code, with a warning.
void note_code(Disk& disk, Plan& plan, Problems& problems);

}  // namespace ingot::plan
