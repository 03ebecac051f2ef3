// Names that other programs have for what ingot does, and ingot's answer to each.
#pragma once

#include <span>
#include <string_view>

namespace ingot::tool {

enum class Answer {
  taken,    // accepted, and means what it means there
  noted,    // accepted without effect; a note says why
  advised,  // refused; the error says what to write
};

// One option of another program.
struct Foreign {
  const char* names;     // comma-separated, as typed: "--svd_rank,--svd-rank"
  const char* program;   // whose it is: "mergekit", "PEFT", "others"
  const char* commands;  // the commands of ingot that the row is for, space-separated; "" for all
  Answer answer;
  bool value;        // takes a value (rows that are noted: how they are parsed)
  const char* ours;  // advised: words after "unknown option 'X': "; taken: our option; noted: why
};

[[nodiscard]] std::span<const Foreign> foreign_options() noexcept;

// What to say of an option that `command` does not have: a row of that command, else one for all;
// nullptr where the table has none. "" for `command` stands for any. Underscores and dashes are the
// same, and so are capital letters.
[[nodiscard]] const Foreign* advice(std::string_view option, std::string_view command) noexcept;

// The command that is meant by another program's word, "adapter merge" for
// "add_weighted_adapter"; empty where the word is not known.
[[nodiscard]] std::string_view meant_command(std::string_view word) noexcept;

}  // namespace ingot::tool
