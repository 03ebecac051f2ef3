#include "engine/output.hpp"

#include <filesystem>

#include <fmt/format.h>

namespace ingot {
namespace {

constexpr const char* kJournal = "journal.jsonl";

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Copies a small file block by block and returns its receipt hash.
Digest copy_file(Disk& disk, const std::string& from, const std::string& to, bool sync) {
  const auto source = disk.open(from);
  const auto target = disk.create(to);
  const std::uint64_t size = source->size();
  std::vector<std::byte> block(kHashBlock);
  std::vector<Digest> digests;
  for (std::uint64_t at = 0; at < size; at += kHashBlock) {
    const std::span piece(block.data(), std::min<std::uint64_t>(kHashBlock, size - at));
    read_exact(*source, at, piece);
    digests.push_back(hash_block(piece));
    write_exact(*target, at, piece);
  }
  if (sync) target->sync();
  return hash_digests(digests);
}

Digest write_text(Disk& disk, const std::string& path, const std::string& text, bool sync) {
  const auto file = disk.create(path);
  std::vector<Digest> digests;
  for (std::size_t at = 0; at < text.size(); at += kHashBlock) {
    digests.push_back(
        hash_block(bytes_of(text).subspan(at, std::min(kHashBlock, text.size() - at))));
  }
  if (!text.empty()) write_exact(*file, 0, bytes_of(text));
  if (sync) file->sync();
  return hash_digests(digests);
}

// Absolute and free of links as far as the path exists.
std::filesystem::path canonical(const std::string& path) {
  std::error_code ignored;
  auto result = std::filesystem::weakly_canonical(std::filesystem::absolute(path), ignored);
  return ignored ? std::filesystem::absolute(path).lexically_normal() : result;
}

bool within(const std::filesystem::path& inner, const std::filesystem::path& outer) {
  const auto relative = inner.lexically_relative(outer);
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

void check_target(Disk& disk, const Plan& plan, const std::string& out) {
  const auto target = canonical(out);
  for (const Model& model : plan.models) {
    const auto folder = canonical(model.folder);
    if (target == folder || within(folder, target)) {
      fail(Code::usage, fmt::format("{} holds the model {} that the recipe reads: choose another "
                                    "output folder",
                                    out, model.ref.text));
    }
  }
  if (const auto kind = disk.kind(out); kind == Disk::Kind::file || kind == Disk::Kind::other) {
    fail(Code::usage, fmt::format("{} exists and is not a folder: choose another output", out));
  }
}

Output::Output(Disk& disk, const Plan& plan, std::string out, const MergeOptions& options)
    : disk_(disk), plan_(plan), out_(std::move(out)), options_(options) {
  while (out_.size() > 1 && out_.ends_with('/')) out_.pop_back();
  const auto path = std::filesystem::absolute(out_).lexically_normal();
  parent_ = path.parent_path().string();
  partial_ = (path.parent_path() / fmt::format(".{}.partial", path.filename().string())).string();
  if (path.filename().empty()) fail(Code::usage, fmt::format("{}: not a name for a folder", out_));

  check_target(disk, plan, out_);
  if (disk.kind(out_) == Disk::Kind::folder && !options.force) {
    fail(Code::usage,
         fmt::format("{} exists: --force replaces it once the new merge is complete", out_));
  }
  if (disk.kind(parent_) == Disk::Kind::absent) disk.make_folder(parent_);

  const std::string journal = partial_ + "/" + kJournal;
  if (disk.kind(partial_) != Disk::Kind::absent) {
    if (options.resume && disk.kind(journal) == Disk::Kind::file && reopen(journal)) return;
    if (!options.resume && !options.force) {
      fail(Code::usage, fmt::format("an unfinished merge to {} is in {}: --resume continues it, "
                                    "--force starts afresh",
                                    out_, partial_));
    }
    disk.remove(partial_);
  }
  try {
    create();
  } catch (...) {
    shards_.clear();
    journal_.reset();
    try {
      disk.remove(partial_);
    } catch (const Error&) {  // the first error is the one to report
    }
    throw;
  }
}

Output::~Output() = default;

std::uint64_t Output::place(const Job& job) const {
  return plan_.shards[job.shard].header.size() + job.offset;
}

// What must not have changed for a former run's bytes to be this run's: the recipe, the options,
// the output's layout, and the inputs by size and time of change.
std::string Output::fingerprint() const {
  std::string text = plan_.recipe.text + '\0' + describe_options(plan_.options).dump() + '\0';
  for (const Shard& shard : plan_.shards) text += shard.file + '\0' + shard.header;
  for (const Model& model : plan_.models) {
    text += '\0' + model.ref.text;
    for (std::uint32_t i = 0; i < model.checkpoint.file_count(); ++i) {
      File& file = model.checkpoint.file(i);
      std::error_code ignored;
      const auto changed = std::filesystem::last_write_time(file.path(), ignored);
      text += fmt::format("\0{} {} {}", file.path(), file.size(),
                          ignored ? 0 : changed.time_since_epoch().count());
    }
  }
  return hash_block(bytes_of(text)).text();
}

void Output::create() {
  std::uint64_t need = 0;
  for (const Shard& shard : plan_.shards) need += shard.header.size() + shard.data_bytes;
  if (const std::uint64_t room = disk_.free_bytes(parent_); room < need) {
    fail(Code::io, fmt::format("{}: the merge needs {} bytes and the file system has {} free",
                               parent_, need, room));
  }
  disk_.make_folder(partial_);
  for (const Shard& shard : plan_.shards) {
    auto file = disk_.create(partial_ + "/" + shard.file);
    file->reserve(shard.header.size() + shard.data_bytes);
    write_exact(*file, 0, bytes_of(shard.header));
    shards_.push_back(std::move(file));
  }
  journal_ = disk_.create(partial_ + "/" + kJournal);
  const std::string line = Json{{"fingerprint", fingerprint()}}.dump() + "\n";
  write_exact(*journal_, 0, bytes_of(line));
  journal_end_ = line.size();
  if (options_.sync) {
    for (auto& file : shards_) file->sync();
    journal_->sync();
    disk_.sync_folder(partial_);
    disk_.sync_folder(parent_);
  }
}

bool Output::reopen(const std::string& journal) {
  const std::string text = read_text(disk_, journal, std::uint64_t{1} << 32);
  bool first = true;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos) break;  // a line cut off by the interruption
    const Json line = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(at),
                                  text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (line.is_discarded()) break;
    if (first) {
      if (!line.is_object() || line.value("fingerprint", "") != fingerprint()) {
        fail(Code::usage,
             fmt::format(
                 "{} was left by a merge of another recipe, other options or inputs that have "
                 "changed since: --force starts afresh",
                 partial_));
      }
      first = false;
    } else if (line.is_object() && line.contains("job") && line.contains("entry") &&
               line["job"].is_number_unsigned() &&
               line["job"].get<std::size_t>() < plan_.jobs.size()) {
      finished_[line["job"].get<std::size_t>()] = print_line(line["entry"]);
    }
    at = end + 1;
    journal_end_ = at;
  }
  if (first) return false;  // interrupted before it had begun
  for (const Shard& shard : plan_.shards) {
    auto file = disk_.update(partial_ + "/" + shard.file);
    if (const std::uint64_t size = shard.header.size() + shard.data_bytes; file->size() != size) {
      fail(Code::io, fmt::format("{}: {} bytes found, {} expected: --force starts afresh",
                                 file->path(), file->size(), size));
    }
    shards_.push_back(std::move(file));
  }
  journal_ = disk_.update(journal);
  return true;
}

void Output::done(std::size_t job, std::string line) {
  const std::lock_guard lock(mutex_);
  waiting_.emplace_back(job, std::move(line));
}

void Output::flush() {
  std::vector<std::pair<std::size_t, std::string>> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(waiting_);
  }
  if (batch.empty()) return;
  std::vector<bool> touched(shards_.size());
  std::string text;
  for (const auto& [job, line] : batch) {
    touched[plan_.jobs[job].shard] = true;
    text += fmt::format("{{\"job\":{},\"entry\":{}}}\n", job, line);
  }
  if (options_.sync) {
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      if (touched[i]) shards_[i]->sync();
    }
  }
  write_exact(*journal_, journal_end_, bytes_of(text));
  journal_end_ += text.size();
  if (options_.sync) journal_->sync();
}

void Output::publish(const std::vector<std::string>& lines) {
  flush();
  std::vector<std::pair<std::string, Digest>> files;
  for (const Companion& companion : plan_.companions) {
    const std::string to = partial_ + "/" + companion.name;
    files.emplace_back(companion.name, companion.from.empty()
                                           ? write_text(disk_, to, companion.text, options_.sync)
                                           : copy_file(disk_, companion.from, to, options_.sync));
  }
  {
    const auto receipt = disk_.create(partial_ + "/" + kReceiptName);
    std::uint64_t end = 0;
    print_receipt(plan_, lines, files, [&](std::string_view piece) {
      write_exact(*receipt, end, std::as_bytes(std::span(piece.data(), piece.size())));
      end += piece.size();
    });
    if (options_.sync) receipt->sync();
  }
  if (options_.sync) {
    for (auto& file : shards_) file->sync();
  }
  shards_.clear();
  journal_.reset();
  disk_.remove(partial_ + "/" + kJournal);
  if (options_.sync) disk_.sync_folder(partial_);
  if (disk_.kind(out_) == Disk::Kind::folder) {
    disk_.exchange(partial_, out_);
    if (options_.sync) disk_.sync_folder(parent_);
    disk_.remove(partial_);  // the former OUT
  } else {
    disk_.rename(partial_, out_);
    if (options_.sync) disk_.sync_folder(parent_);
  }
}

}  // namespace ingot
