// The folder a merge builds beside its target: shards, journal, and the rename that publishes it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/journal.hpp"
#include "engine/snapshot.hpp"
#include "engine/target.hpp"
#include "ingot/merge.hpp"

namespace ingot {

// Construction refuses or prepares the working folder, publish() turns it into OUT; without
// publish() it stays for --resume if keep() says so. done() is thread-safe, the rest
// is for one thread.
class Output {
 public:
  // Throws Error{usage} for what is in the way of OUT or of the working folder, naming the option
  // that helps; Error{format} for a journal, a header or a finished tensor that is damaged;
  // Error{io} where the disk has no room.
  Output(Disk& disk, const Plan& plan, Target& target, const MergeOptions& options);
  ~Output();

  // True if OUT holds a finished merge that may be this one, under --resume: nothing was prepared.
  [[nodiscard]] bool complete() const noexcept { return complete_; }
  // It is another one: starts afresh under --force, else throws.
  void replace_complete();

  [[nodiscard]] File& shard(std::uint32_t index) { return *shards_[index]; }
  // Offset in the shard's file of a job's first byte.
  [[nodiscard]] std::uint64_t place(const Job& job) const;

  // Receipt entries (print_line) of jobs a former run finished, by job index.
  [[nodiscard]] const std::map<std::size_t, std::string>& finished() const noexcept {
    return finished_;
  }

  // A job whose every byte was handed to the system, and its entry's line.
  void done(std::size_t job, std::string line);
  // True if so much waits for the journal that its memory is worth a flush().
  [[nodiscard]] bool full() const;
  // Makes all done() jobs durable and enters them in the journal, which keeps their entries.
  void flush();
  // The entry of a finished job, after a flush().
  [[nodiscard]] std::string line(std::size_t job) const;
  // Writes companions and receipt, syncs, and puts the folder in place of OUT. Error{io} if a file
  // that the merge read has changed since the merge began.
  void publish();

  // Whether the working folder stays for --resume. At first it does not, unless a former run left
  // it.
  void keep() noexcept { kept_ = true; }
  void drop() noexcept { kept_ = false; }
  [[nodiscard]] const std::string& partial() const noexcept { return target_.folder(); }

 private:
  void create();
  // Throws Error{usage} if the record is of another job than this one.
  void check_job(const Record& record) const;
  // Takes up the tensors that a former run finished, after a look at their bytes.
  void reopen(const Record& record);
  // Every name that the finished folder has.
  [[nodiscard]] std::vector<std::string> names() const;

  Disk& disk_;
  const Plan& plan_;
  const MergeOptions options_;
  Target& target_;
  Snapshot inputs_;
  bool complete_ = false, kept_ = false, published_ = false;
  std::vector<std::unique_ptr<File>> shards_;
  std::optional<Journal> journal_;
  std::map<std::size_t, std::string> finished_;
  // By job: where the journal has its entry; without hashes nothing is in it, and `lines_` has.
  std::vector<Journal::Place> places_;
  std::vector<std::string> lines_;
  mutable std::mutex mutex_;
  std::vector<std::pair<std::size_t, std::string>> waiting_;  // done, not yet in the journal
  std::uint64_t waiting_bytes_ = 0;
};

}  // namespace ingot
