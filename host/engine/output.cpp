#include "engine/output.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// Copies a small file block by block and returns its receipt hash.
Digest copy_file(Disk& disk, const std::string& from, const std::string& to, bool sync) {
  const auto source = disk.open(from);
  const auto target = disk.create(to);
  const Digest digest = hash_part(
      *source, 0, source->size(),
      [&](std::uint64_t at, std::span<const std::byte> piece) { write_exact(*target, at, piece); });
  if (sync) target->sync();
  return digest;
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

// True if `found` has everything that `expected` has: objects at least its keys, lists its length.
bool holds(const Json& found, const Json& expected) {
  if (expected.is_object() && found.is_object()) {
    return std::all_of(expected.items().begin(), expected.items().end(), [&](const auto& item) {
      return found.contains(item.key()) && holds(found.at(item.key()), item.value());
    });
  }
  if (!expected.is_array() || !found.is_array()) return found == expected;
  return std::equal(expected.begin(), expected.end(), found.begin(), found.end(),
                    [](const Json& e, const Json& f) { return holds(f, e); });
}

[[noreturn]] void refuse_unfinished(const Target& target) {
  fail(Code::usage,
       fmt::format(
           "an unfinished merge to {} is in {}: --resume continues it, --force starts it again",
           target.out(), target.folder()));
}

[[noreturn]] void refuse_other(const Target& target, const std::string& what) {
  fail(Code::usage,
       fmt::format("{} was left by another merge: {}; --force removes it and starts again",
                   target.folder(), what));
}

}  // namespace

void check_target(Disk& disk, const Plan& plan, const std::string& out,
                  const MergeOptions& options) {
  const std::unique_ptr<Target> found = Target::look(disk, plan, out, options.force);
  const Target& target = *found;
  const std::optional<Record>& left = target.unfinished();
  const bool begun = left && left->begun;
  if (target.finished() && !options.force && !options.resume) target.refuse_finished();
  if (options.force || target.finished() || !begun || left->finished.empty()) return;
  if (!options.resume) refuse_unfinished(target);
  // Another job's sizes are guesses as well where something is open.
  if (plan.open.empty() && left->fingerprint != fingerprint(plan, options.hash)) {
    refuse_other(target, "the recipe, options or version of ingot differ");
  }
}

Output::Output(Disk& disk, const Plan& plan, Target& target, const MergeOptions& options)
    : disk_(disk), plan_(plan), options_(options), target_(target), inputs_(disk, plan) {
  const std::optional<Record> left = target_.unfinished();
  const bool begun = left && left->begun;
  if (target_.finished()) {
    complete_ = options.resume && !begun;
    if (complete_) return;
    if (!options.force) target_.refuse_finished();
  }
  if (begun && options.resume) {
    check_job(*left);
    if (!left->finished.empty()) {
      reopen(*left);
      return;
    }
  }
  // One in which nothing is finished is in nobody's way.
  if (begun && !left->finished.empty() && !options.force && !options.resume) {
    refuse_unfinished(target_);
  }
  if (left) target_.clear(left->files);
  create();
}

void Output::replace_complete() {
  if (!options_.force) target_.refuse_finished();
  complete_ = false;
  if (const auto& left = target_.unfinished()) target_.clear(left->files);
  create();
}

Output::~Output() {
  if (complete_ || published_ || kept_) return;
  shards_.clear();
  journal_.reset();
  try {
    target_.clear(names());
  } catch (...) {  // the first error is the one to report
  }
}

std::vector<std::string> Output::names() const {
  std::vector<std::string> names = {kReceiptName};
  for (const Shard& shard : plan_.shards) names.push_back(shard.file);
  for (const Companion& companion : plan_.companions) names.push_back(companion.name);
  return names;
}

std::uint64_t Output::place(const Job& job) const {
  return plan_.shards[job.shard].header.size() + job.offset;
}

void Output::create() {
  std::uint64_t need = 0;
  for (const Shard& shard : plan_.shards) need += shard.header.size() + shard.data_bytes;
  if (const std::uint64_t room = disk_.free_bytes(target_.parent()); room < need) {
    fail(Code::io, fmt::format("{}: the merge needs {} bytes and the file system has {} free",
                               target_.parent(), need, room));
  }
  try {
    target_.begin();
    // First of all: it marks the folder as ours.
    Record record;
    record.fingerprint = fingerprint(plan_, options_.hash);
    record.inputs = inputs_.states();
    record.files = names();
    journal_ = Journal::create(disk_, target_.journal(), record, options_.sync);
    for (const Shard& shard : plan_.shards) {
      auto file = disk_.create(target_.folder() + "/" + shard.file);
      file->reserve(shard.header.size() + shard.data_bytes);
      write_exact(*file, 0, bytes_of(shard.header));
      shards_.push_back(std::move(file));
    }
    if (!options_.sync) return;
    for (auto& file : shards_) file->sync();
    disk_.sync_folder(target_.folder());
    disk_.sync_folder(target_.parent());
  } catch (...) {
    shards_.clear();
    journal_.reset();
    try {
      target_.clear(names());
    } catch (const Error&) {  // the first error is the one to report
    }
    throw;
  }
}

void Output::check_job(const Record& record) const {
  const auto other = [&](const std::string& what) { refuse_other(target_, what); };
  if (record.fingerprint != fingerprint(plan_, options_.hash)) {
    other("the recipe, options or version of ingot differ");
  }
  const auto now = inputs_.states();
  for (const auto& [path, state] : now) {
    const auto at = record.inputs.find(path);
    if (at == record.inputs.end()) other(fmt::format("it did not read {}", path));
    if (at->second != state) {
      other(fmt::format("{} changed since then ({} then, {} now)", path, at->second, state));
    }
  }
  if (now.size() != record.inputs.size()) other("it read other files");
}

void Output::reopen(const Record& record) {
  const std::string& folder = target_.folder();
  const std::vector<std::string> known = names();
  for (const std::string& name : disk_.list(folder)) {
    const bool ours = std::any_of(known.begin(), known.end(), [&](const std::string& file) {
      return file == name || file.starts_with(name + "/");
    });
    if (name == kJournalName || ours) continue;
    fail(Code::usage, fmt::format("{} holds {}, which this merge did not write: move it away, then "
                                  "--resume",
                                  folder, name));
  }
  const auto damaged = [&](const std::string& path, const std::string& what) {
    fail(Code::format, fmt::format("{}: {}: --force starts the merge again", path, what));
  };
  for (const Shard& shard : plan_.shards) {
    const std::string path = folder + "/" + shard.file;
    if (disk_.kind(path) != Disk::Kind::file) damaged(path, "the file is missing");
    auto file = disk_.update(path);
    if (const std::uint64_t size = shard.header.size() + shard.data_bytes; file->size() != size) {
      damaged(file->path(), fmt::format("{} bytes found, {} expected", file->size(), size));
    }
    std::string header(shard.header.size(), '\0');
    read_exact(*file, 0, std::as_writable_bytes(std::span(header.data(), header.size())));
    if (header != shard.header)
      damaged(file->path(), "its header differs from the one that was written");
    shards_.push_back(std::move(file));
  }
  for (const auto& [index, line] : record.finished) {
    const auto bad = [&] { damaged(target_.journal(), fmt::format("job {} is not known", index)); };
    if (index >= plan_.jobs.size()) bad();
    const Job& job = plan_.jobs[index];
    const Json entry = json_of(line, target_.journal());
    if (!holds(entry, describe_plan(plan_, job)) || !entry.contains("hash")) bad();
    File& shard = *shards_[job.shard];
    if (entry["hash"] != hash_part(shard, place(job), job.output.bytes()).text()) {
      damaged(shard.path(), fmt::format("the bytes of {} do not match their hash in the journal",
                                        job.output.name));
    }
  }
  finished_ = record.finished;
  journal_ = Journal::reopen(disk_, target_.journal(), record, options_.sync);
  keep();
}

void Output::done(std::size_t job, std::string line) {
  const std::lock_guard lock(mutex_);
  waiting_bytes_ += line.size();
  waiting_.emplace_back(job, std::move(line));
}

bool Output::full() const {
  constexpr std::uint64_t kWaiting = std::uint64_t{4} << 20;
  const std::lock_guard lock(mutex_);
  return waiting_bytes_ > kWaiting;
}

std::string Output::line(std::size_t job) const {
  if (const auto at = finished_.find(job); at != finished_.end()) return at->second;
  return options_.hash ? journal_->entry(places_[job]) : lines_[job];
}

void Output::flush() {
  std::vector<std::pair<std::size_t, std::string>> batch;
  {
    const std::lock_guard lock(mutex_);
    batch.swap(waiting_);
    waiting_bytes_ = 0;
  }
  if (batch.empty()) return;
  if (!options_.hash) {  // nobody could tell later whether what is kept is whole
    lines_.resize(plan_.jobs.size());
    for (auto& [job, line] : batch) lines_[job] = std::move(line);
    return;
  }
  if (options_.sync) {
    std::vector<bool> touched(shards_.size());
    for (const auto& [job, line] : batch) touched[plan_.jobs[job].shard] = true;
    for (std::size_t i = 0; i < shards_.size(); ++i) {
      if (touched[i]) shards_[i]->sync();
    }
  }
  const std::vector<Journal::Place> places = journal_->finished(batch);
  places_.resize(plan_.jobs.size());
  for (std::size_t i = 0; i < batch.size(); ++i) places_[batch[i].first] = places[i];
}

void Output::publish() {
  keep();
  flush();
  std::vector<std::pair<std::string, Digest>> files;
  std::set<std::string> folders;
  for (const Companion& companion : plan_.companions) {
    const std::string to = target_.folder() + "/" + companion.name;
    if (const auto slash = companion.name.rfind('/'); slash != std::string::npos) {
      folders.insert(target_.folder() + "/" + companion.name.substr(0, slash));
      disk_.make_folder(target_.folder() + "/" + companion.name.substr(0, slash));
    }
    // What a former run left there may be a link to something else by now.
    disk_.remove(to);
    files.emplace_back(companion.name, companion.from.empty()
                                           ? write_text(disk_, to, companion.text, options_.sync)
                                           : copy_file(disk_, companion.from, to, options_.sync));
  }
  if (const std::string path = inputs_.changed(Snapshot(disk_, plan_)); !path.empty()) {
    drop();  // nobody knows which tensors were read before the change
    fail(Code::io, fmt::format("{} changed while it was merged, so the result would be a mixture: "
                               "nothing was written; run the merge again",
                               path));
  }
  Hasher hash;
  {
    const std::string to = fmt::format("{}/{}", target_.folder(), kReceiptName);
    disk_.remove(to);
    const auto receipt = disk_.create(to);
    std::uint64_t end = 0;
    const auto lines = [this](std::size_t job) { return line(job); };
    print_receipt(plan_, lines, files, [&](std::string_view piece) {
      write_exact(*receipt, end, bytes_of(piece));
      hash.add(piece);
      end += piece.size();
    });
    if (options_.sync) receipt->sync();
  }
  if (options_.sync) {
    for (auto& file : shards_) file->sync();
    for (const std::string& folder : folders) disk_.sync_folder(folder);
  }
  shards_.clear();
  target_.publish(*journal_, hash.digest().text());
  published_ = true;
}

}  // namespace ingot
