// ingot.json: what became of every tensor, in a form that can be checked (docs/formats.md).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/hash.hpp"
#include "base/scan.hpp"
#include "ingot/backend.hpp"
#include "ingot/facts.hpp"
#include "ingot/plan.hpp"

namespace ingot {

using Json = nlohmann::ordered_json;

inline constexpr const char* kReceiptFormat = "ingot-receipt-3";
inline constexpr const char* kReceiptName = "ingot.json";

// Output elements that deserve a warning, or an error.
struct Findings {
  Count nonfinite;  // NaN and infinities
  Count made;       // of those, the elements whose inputs are all finite
  Count saturated;  // beyond the type's range, so that the largest value was written for them

  void add(const Findings& other);
};

// What running a job brought to light.
struct Outcome {
  Digest output;
  std::vector<Digest> inputs;                    // by operand: of its own tensor
  std::vector<std::vector<Digest>> ingredients;  // by operand: of a derived one's, in their order
  std::vector<std::string> found;  // by operand: what a derived one's work brought to light
  // NaN and infinities among the inputs, in the same order; nothing is said where these are empty.
  std::vector<Count> nonfinite;
  std::vector<std::vector<Count>> ingredients_nonfinite;
  Findings findings;
  Tally tally;
  math::Facts facts;  // for Action::merge
};

// One entry of the receipt's "tensors". A pure function of its arguments.
[[nodiscard]] Json describe(const Plan& plan, const Job& job, const Outcome& outcome);

// The same without what only running can tell: what verify compares an entry with.
[[nodiscard]] Json describe_plan(const Plan& plan, const Job& job);

// The options and waivers that are not what they are without a word, each in its one spelling.
[[nodiscard]] Json describe_options(const PlanOptions& options);
// The other way. Throws Error{format} for what describe_options() does not print.
[[nodiscard]] PlanOptions parse_options(const Json& json, const std::string& path);

// Every input tensor no output reads, with the reason.
[[nodiscard]] Json describe_unused(const Plan& plan);

// An entry as one line of JSON, without spaces: as a tree it would take ten times the memory, and a
// run keeps one for every tensor.
[[nodiscard]] std::string print_line(const Json& entry);

// An entry by job, as print_line prints it.
using Lines = std::function<std::string(std::size_t)>;

// The plan's options without those that changed nothing: what stands in the receipt. So every one
// that does can be told by the folder.
[[nodiscard]] PlanOptions effective(const Plan& plan, const Lines& lines);

// The receipt without self-hash, and with nothing in its two long lists, tensors and unused.
// `files`: the hashes of the folder's other files.
[[nodiscard]] Json describe_frame(const Plan& plan, const Lines& lines,
                                  const std::vector<std::pair<std::string, Digest>>& files);

// The whole receipt: the entries in the order of jobs, then come the hashes of the folder's other
// files. Ends in a self-hash that finds accidents. Handed to `sink` piece by piece, as one
// text would take more memory than the run.
void print_receipt(const Plan& plan, const Lines& lines,
                   const std::vector<std::pair<std::string, Digest>>& files,
                   const std::function<void(std::string_view)>& sink);

// Parses a receipt and checks format, version, self-hash, and that it is byte for byte as
// print_receipt() prints; throws Error{format}.
[[nodiscard]] Json parse_receipt(const std::string& text, const std::string& path);

// How a receipt prints text from files: bytes that are not UTF-8 are replaced.
[[nodiscard]] std::string printed(const std::string& text);

// Index into plan.models of a model whose every tensor came out bit for bit, or -1. One whole model
// passed through on purpose, or one adapter alone, does not count.
[[nodiscard]] int unchanged(const Plan& plan, const Lines& lines);

}  // namespace ingot
