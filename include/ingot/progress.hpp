// How far a piece of work is, told while it goes on.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace ingot {

enum class Phase : std::uint8_t {
  plan,       // headers are read, the output is laid out
  measure,    // ranks are chosen by decomposing modules
  check,      // what a former run finished is hashed
  merge,      // tensors are read, computed and written
  decompose,  // the same where factors are computed
  finish,     // other files are written, all is put on stable storage and in place
  verify,     // a folder is hashed and computed again
  compare,    // two models are read
  read,       // a model's numbers are read
};

// "planning", "merging", ...
[[nodiscard]] constexpr std::string_view word(Phase phase) noexcept {
  constexpr std::array<std::string_view, 9> kWords{"planning",  "measuring",   "checking",
                                                   "merging",   "decomposing", "finishing",
                                                   "verifying", "comparing",   "reading"};
  return kWords[static_cast<std::size_t>(phase)];
}

// The state of the present phase. The first one of a phase gives its start: the work of an earlier
// run. `bytes_done` never falls within a phase and is never more than a total that is known.
struct Progress {
  Phase phase = Phase::merge;
  std::uint64_t bytes_done = 0, bytes_total = 0;  // read and written; total 0: not known
  std::string tensor;                             // or module; may be empty
};

// Called from any thread of the work, one call at a time, at each beginning of a phase and about
// ten times a second. What it throws ends the work.
using Watcher = std::function<void(const Progress&)>;

}  // namespace ingot
