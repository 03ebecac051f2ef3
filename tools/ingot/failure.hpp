// Errors as data: what --json prints of a command that fails, and the exit codes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "console.hpp"
#include "json.hpp"

namespace ingot::tool {

// The place of an error, as far as its message gives it; unknown fields are empty or 0.
struct Place {
  std::string file;
  std::uint64_t line = 0, column = 0;  // from 1, of `file`
  std::string tensor, key, option;
};

// Reads the house's forms: "FILE:LINE:COLUMN: ..." of recipes, at the start and behind " of " in
// what was being done; "FILE: ..." and "FILE is ..." where such a file or folder exists; files that
// are not there, in the sentences that say so; "tensor 'NAME'", "key 'NAME'", an option at the
// start.
[[nodiscard]] Place place_of(std::string_view message);

// {"code", "exit", "message", "place", "advice"}.
[[nodiscard]] Json describe(const Failure& failure);

// {"exit", "errors"}; `failures` is not empty.
[[nodiscard]] Json describe(const std::vector<Failure>& failures);

// The code's name in JSON: "usage", "format", ...
[[nodiscard]] const char* code_word(Code code) noexcept;

// An exit code of the program: what it means, and what to do.
struct Exit {
  int code;
  const char* meaning;
  const char* advice;
};

// Every exit code, in order.
[[nodiscard]] std::span<const Exit> exits() noexcept;

}  // namespace ingot::tool
