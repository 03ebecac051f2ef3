// Where a merge writes: OUT, the working folder beside it, and the step from the one to the other
// (docs/architecture.md, "Publishing").
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/journal.hpp"
#include "ingot/plan.hpp"
#include "ingot/store.hpp"

namespace ingot {

// Beside OUT, all of them hidden: `.NAME.partial` is the working folder, `.NAME.lock` the lock that
// this process holds, `.NAME.journal` the journal while OUT is being replaced, `.NAME.former` the
// old OUT where a file system cannot exchange two folders, `.NAME.ranks` what a run keeps while it
// measures ranks.
//
// The files that were written to a folder, according to its receipt.
struct Written {
  struct Part {
    std::string file, tensor, hash;  // a file beside the weights has no tensor
  };
  std::vector<Part> parts;
  std::set<std::string> names;  // of all files, the receipt's own included; empty: no receipt
};

// For one thread.
class Target {
 public:
  // Takes the lock, brings an interrupted publishing to an end, and looks at OUT and the working
  // folder. Throws Error{usage} for everything in the way: another run, a mount point, files that
  // ingot did not write, an OUT that exists (unless `force`, and it holds nothing but what its
  // receipt says; or it is an empty folder), a folder that holds something the merge reads.
  Target(Disk& disk, const Plan& plan, const std::string& out, bool force, bool sync);
  // The same looks without taking or changing anything. A finished folder is not an error here.
  [[nodiscard]] static std::unique_ptr<Target> look(Disk& disk, const Plan& plan,
                                                    const std::string& out, bool force);
  ~Target();
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  [[nodiscard]] const std::string& out() const noexcept { return out_; }
  [[nodiscard]] const std::string& folder() const noexcept { return partial_; }
  // The folder that holds both.
  [[nodiscard]] const std::string& parent() const noexcept { return parent_; }
  [[nodiscard]] std::string journal() const;

  // True if OUT holds a finished merge. Without `force` it is in the way of a new one: refuse()
  // says so.
  [[nodiscard]] bool finished() const noexcept { return present_ == Present::merged; }
  void refuse_finished() const;
  // The journal of an unfinished merge in the working folder, if there is one.
  [[nodiscard]] const std::optional<Record>& unfinished() const noexcept { return unfinished_; }

  // An empty file beside OUT to read and write. It has no name when this returns, so that the
  // system removes it however the run ends. Throws Error{usage} where something has the name that
  // it needs for a moment.
  [[nodiscard]] std::unique_ptr<File> scratch();
  // Makes the working folder, empty.
  void begin();
  // Removes the working folder with every file of these names. Anything else in it is Error{usage}
  // and stays, with all the rest.
  void clear(const std::vector<std::string>& names);

  // Puts the complete working folder in OUT's place. Everything in it is on stable storage;
  // `receipt` is the hash of the receipt's text. OUT is looked at again first: what appeared there
  // meanwhile is Error{usage} and stays, and so does the working folder.
  void publish(Journal& journal, const std::string& receipt);

 private:
  enum class Present { nothing, empty, merged };

  Target(Disk& disk, const std::string& out, bool sync);
  void leave() noexcept;
  void locate(const std::string& out);
  void protect(const Plan& plan) const;
  void refuse_mount() const;
  void refuse_unwritable() const;
  void examine(bool force);
  void recover();
  void replace(Journal& journal);
  void sync_parent() const;
  [[noreturn]] void give_back(const std::string& reason);

  Disk& disk_;
  std::string out_, parent_, name_, partial_, moved_journal_, former_;
  bool sync_;
  std::vector<std::string> made_;  // folders above OUT that did not exist, deepest first
  Present present_ = Present::nothing;
  Written written_;  // to OUT, where it holds a merge
  std::optional<Record> unfinished_;
  std::unique_ptr<Lock> lock_;
};

}  // namespace ingot
