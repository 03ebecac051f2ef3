// The folder a merge builds beside its target: shards, journal, and the rename that publishes it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/receipt.hpp"
#include "ingot/merge.hpp"

namespace ingot {

// `.<name>.partial` beside OUT. Construction refuses or prepares it, publish() turns it into OUT;
// without publish() it stays for --resume. done() is thread-safe, the rest is for one thread.
class Output {
 public:
  // Throws Error{usage} where OUT or an unfinished merge is in the way, naming the option that
  // helps; Error{io} where the disk has no room. A fresh partial folder that cannot be completed is
  // removed.
  Output(Disk& disk, const Plan& plan, std::string out, const MergeOptions& options);
  ~Output();

  [[nodiscard]] File& shard(std::uint32_t index) { return *shards_[index]; }
  // Offset in the shard's file of a job's first byte.
  [[nodiscard]] std::uint64_t place(const Job& job) const;

  // Receipt entries (print_line) of jobs a former run finished, by job index.
  [[nodiscard]] const std::map<std::size_t, std::string>& finished() const noexcept {
    return finished_;
  }

  // A job whose every byte was handed to the system, and its entry's line.
  void done(std::size_t job, std::string line);
  // Makes all done() jobs durable and enters them in the journal.
  void flush();
  // Writes companions and receipt, syncs, and puts the folder in place of OUT.
  void publish(const std::vector<std::string>& lines);

  [[nodiscard]] const std::string& partial() const noexcept { return partial_; }

 private:
  [[nodiscard]] std::string fingerprint() const;
  void create();
  // Takes up what a former run left; false if it left nothing to take up.
  [[nodiscard]] bool reopen(const std::string& journal);

  Disk& disk_;
  const Plan& plan_;
  std::string out_, parent_, partial_;
  MergeOptions options_;
  std::vector<std::unique_ptr<File>> shards_;
  std::unique_ptr<File> journal_;
  std::uint64_t journal_end_ = 0;
  std::map<std::size_t, std::string> finished_;
  std::mutex mutex_;
  std::vector<std::pair<std::size_t, std::string>> waiting_;  // done, not yet in the journal
};

// Throws Error{usage} if writing OUT would replace or lie within a folder the merge reads.
void check_target(Disk& disk, const Plan& plan, const std::string& out);

}  // namespace ingot
