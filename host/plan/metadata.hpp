// The YAML headers of the inputs' cards (README.md).
#pragma once

#include <string>
#include <vector>

#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// The header of one card. Values are text of at most 128 bytes without characters that hide or
// control; others are passed over, and so is everything after the 64th of a list.
struct Metadata {
  std::vector<std::string> licences;  // `license`, a word or a list
  std::string licence_name, licence_link;
  std::vector<std::string> languages;  // `language`, a word or a list
  std::string pipeline_tag, library_name;
  std::vector<std::string> tags;
};

// The header of a card's text, which is untrusted. Throws Error for a header that is not YAML or
// is longer than 64 KiB; a text without one says nothing.
[[nodiscard]] Metadata read_metadata(const std::string& text, const std::string& path);

// The headers of all inputs of a plan together. A value counts for the output where all inputs that
// give one agree.
struct Descent {
  struct Claim {
    std::string model;  // public_name()
    std::string value;
  };
  std::string licence, licence_name, licence_link;  // empty: nobody says, or they differ
  std::vector<Claim> licences;                      // where they differ: whose is what
  std::vector<std::string> unlicensed;              // give none, while others do
  std::vector<std::string> languages;               // of all inputs, in their order
  std::string pipeline_tag, library_name;           // the first model's where they differ
  std::vector<std::string> tags;                    // that all inputs with tags have
  std::vector<std::string> notes;                   // sentences about what differs
};

// Reads the card of every model and adapter of the plan. What differs, and a header that cannot be
// read as YAML, is a warning: nothing in a card can stop a merge. Throws Error{io} where the disk
// fails.
[[nodiscard]] Descent descend(Disk& disk, const Plan& plan, Problems& problems);

}  // namespace ingot::plan
