// The files that a merge reads, as they were when it began.
#pragma once

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

  // One line for each file: path, device, inode, size, times, header.
  [[nodiscard]] std::string text() const;
  // The path of a file that differs from the later snapshot, or empty.
  [[nodiscard]] std::string changed(const Snapshot& later) const;

 private:
  struct Item {
    std::string path, state;
    friend bool operator==(const Item&, const Item&) = default;
  };
  std::vector<Item> items_;  // by path
};

// The hash of everything that can change a byte of the result: the recipe, options, the layout of
// the output, texts that are written, whether receipts have hashes, and the inputs. A resumed run
// must have the same.
[[nodiscard]] std::string fingerprint(const Plan& plan, bool hashed, const Snapshot& inputs);

}  // namespace ingot
