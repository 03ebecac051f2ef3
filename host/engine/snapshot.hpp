// The files that a merge reads, as they were when it began.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ingot/plan.hpp"

namespace ingot {

// What tells whether a file has changed: its identity, and of weights the header's hash, since some
// file systems keep times by the second.
class Snapshot {
 public:
  // Every file that planning opened or that is copied into the folder.
  Snapshot(Disk& disk, const Plan& plan);

  // By absolute path: inode, size, times, header.
  [[nodiscard]] std::map<std::string, std::string> states() const;
  // The path of a file that differs from the later snapshot, or empty.
  [[nodiscard]] std::string changed(const Snapshot& later) const;

 private:
  struct Item {
    std::string path, state;
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items_;  // by path
};

// The hash of everything beside the inputs that can change a byte of the result: version, recipe,
// options, the layout of the output, texts that are written, and whether receipts have hashes. A
// resumed run must have the same, and the same inputs.
[[nodiscard]] std::string fingerprint(const Plan& plan, bool hashed);

}  // namespace ingot
