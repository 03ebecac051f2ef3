// journal.jsonl in the working folder: which job is at work there, and which of its tensors are
// finished (docs/formats.md, "Journal").
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

inline constexpr std::string_view kJournalName = "journal.jsonl";

// The contents of a journal.
struct Record {
  bool begun = false;                           // its first line is whole; if not, nothing was done
  std::string fingerprint;                      // of the job
  std::map<std::string, std::string> inputs;    // the state of every file it reads, by path
  std::vector<std::string> files;               // every name that the run may create in its folder
  std::map<std::size_t, std::string> finished;  // receipt entries (print_line) by job
  // Publishing has begun, with a receipt of this hash; and OUT's former files of these names are
  // being removed one by one.
  std::optional<std::string> receipt;
  std::optional<std::vector<std::string>> removing;
  std::uint64_t end = 0;  // bytes of its whole lines
};

// Reads a journal. A last line without an end was cut off by an interruption and does not count.
// Throws Error{format} if the file is not a journal of this version, or if the hash of a line is
// wrong.
[[nodiscard]] Record read_journal(Disk& disk, const std::string& path);

// A journal that is being written.
class Journal {
 public:
  // Creates the file with its first line, from the record's job, inputs and files.
  static Journal create(Disk& disk, const std::string& path, const Record& record, bool sync);
  // Goes on after the lines of `record`.
  static Journal reopen(Disk& disk, const std::string& path, const Record& record, bool sync);

  // Where an entry is in the file.
  struct Place {
    std::uint64_t offset = 0, bytes = 0;
  };
  // Appends one line for each finished job, in one write. The places of their entries, in order.
  std::vector<Place> finished(const std::vector<std::pair<std::size_t, std::string>>& lines);
  // An entry again.
  [[nodiscard]] std::string entry(const Place& place) const;
  void publishing(const std::string& receipt);
  void removing(const std::vector<std::string>& names);
  // After this the file may have been moved.
  void sync();

 private:
  Journal(std::unique_ptr<File> file, std::uint64_t end, bool sync)
      : file_(std::move(file)), end_(end), sync_(sync) {}
  void append(const std::string& text);

  std::unique_ptr<File> file_;
  std::uint64_t end_ = 0;
  bool sync_;
};

}  // namespace ingot
