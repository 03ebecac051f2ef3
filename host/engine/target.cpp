#include "engine/target.hpp"

#include <algorithm>
#include <array>
#include <ctime>
#include <filesystem>
#include <map>

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/hash.hpp"
#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kReceiptLimit = std::uint64_t{1} << 32;

// The files of a folder, by their paths in it, and the folders, deepest first.
struct Listing {
  std::vector<std::string> files, folders;
};

void list_into(Disk& disk, const std::string& folder, const std::string& prefix, int depth,
               Listing& listing) {
  for (const std::string& name : disk.list(folder)) {
    const std::string path = folder + "/" + name;
    // A link is a file here, wherever it leads.
    std::error_code error;
    const bool link = fs::is_symlink(fs::symlink_status(path, error));
    // Nothing that ingot writes is so deep.
    if (link || depth > 8 || disk.kind(path) != Disk::Kind::folder) {
      listing.files.push_back(prefix + name);
      continue;
    }
    list_into(disk, path, prefix + name + "/", depth + 1, listing);
    listing.folders.push_back(prefix + name);
  }
}

Listing list_all(Disk& disk, const std::string& folder) {
  Listing listing;
  list_into(disk, folder, "", 0, listing);
  return listing;
}

// Collects what a receipt of any version says of files: the entries of its lists "tensors" and
// "files" are objects of the third level.
class Receipt {
 public:
  explicit Receipt(Written& written) : written_(written) {}

  [[nodiscard]] bool good() const noexcept { return good_ && ours_; }

  bool key(std::string& name) {
    key_ = std::move(name);
    if (level_ == 1) list_ = key_;
    return true;
  }
  bool string(std::string& value) {
    if (level_ == 1 && key_ == "format") ours_ = value.starts_with("ingot-receipt-");
    if (level_ != 3) return true;
    if (key_ == "hash") part_.hash = value;
    if (list_ == "files" && key_ == "file") part_.file = value;
    if (list_ == "tensors" && key_ == "shard") part_.file = value;
    if (list_ == "tensors" && key_ == "name") part_.tensor = value;
    return true;
  }
  bool start_object(std::size_t) {
    if (++level_ == 3) part_ = {};
    return true;
  }
  bool end_object() {
    if (level_-- == 3 && !part_.file.empty()) {
      written_.names.insert(part_.file);
      written_.parts.push_back(std::move(part_));
    }
    return true;
  }
  bool start_array(std::size_t) {
    ++level_;
    return true;
  }
  bool end_array() {
    --level_;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) {
    return good_ = false;
  }
  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(std::int64_t) { return true; }
  bool number_unsigned(std::uint64_t) { return true; }
  bool number_float(double, const std::string&) { return true; }
  bool binary(nlohmann::json::binary_t&) { return true; }

 private:
  Written& written_;
  Written::Part part_;
  std::string key_, list_;
  int level_ = 0;
  bool good_ = true, ours_ = false;
};

Written written_to(Disk& disk, const std::string& folder) {
  const std::string path = folder + "/" + kReceiptName;
  if (disk.kind(path) != Disk::Kind::file) return {};
  Written written;
  Receipt sax(written);
  parse_json(read_text(disk, path, kReceiptLimit), sax);
  if (!sax.good()) return {};
  written.names.insert(kReceiptName);
  return written;
}

// The first file or folder that is not among the names, or empty.
std::string stranger(const Listing& listing, const std::set<std::string>& names) {
  for (const std::string& name : listing.files) {
    if (!names.contains(name)) return name;
  }
  for (const std::string& name : listing.folders) {
    const auto at = names.lower_bound(name + "/");
    if (at == names.end() || !at->starts_with(name + "/")) return name + "/";
  }
  return "";
}

// The first file of a folder that is not what its receipt says was written, or empty. Weights are
// hashed where they are not older than the receipt, which is written last; other files always.
std::string edited(Disk& disk, const std::string& folder, const Written& written) {
  const auto time = [&](const std::string& name) {
    const auto state = disk.identity(folder + "/" + name);
    return state ? std::max(state->modified, state->changed) : 0;
  };
  const std::int64_t receipt = time(kReceiptName);
  std::map<std::string, bool> suspect;  // by shard
  std::optional<Checkpoint> weights;
  for (const Written::Part& part : written.parts) {
    const std::string path = folder + "/" + part.file;
    if (disk.kind(path) != Disk::Kind::file) continue;  // gone: nothing of it is removed
    if (part.tensor.empty()) {
      const auto file = disk.open(path);
      if (hash_part(*file, 0, file->size()).text() != part.hash) return part.file;
      continue;
    }
    const auto [at, first] = suspect.try_emplace(part.file, false);
    if (first) at->second = time(part.file) > receipt;
    if (!at->second) continue;
    try {
      if (!weights) weights.emplace(Checkpoint::open(disk, path, part.file));
      if (weights->file(0).path() != path) weights.emplace(Checkpoint::open(disk, path, part.file));
      const Entry* entry = weights->find(part.tensor);
      if (entry == nullptr ||
          hash_part(weights->file(0), entry->offset, entry->info.bytes()).text() != part.hash) {
        return part.file;
      }
    } catch (const Error&) {  // no file of weights any more
      return part.file;
    }
  }
  return "";
}

// The first file or folder that ingot did not write, or empty.
std::string foreign(Disk& disk, const std::string& folder, const Written& written) {
  const std::string other = stranger(list_all(disk, folder), written.names);
  return other.empty() ? edited(disk, folder, written) : other;
}

// Removes files of these names, `last` after all others, so that an interruption leaves a folder
// that still says what it is; then the folder, if nothing else is in it.
void remove_named(Disk& disk, const std::string& folder, const std::set<std::string>& names,
                  std::string_view last) {
  if (disk.kind(folder) != Disk::Kind::folder) return;
  const Listing listing = list_all(disk, folder);
  if (const std::string other = stranger(listing, names); !other.empty()) {
    fail(Code::usage, fmt::format("{} holds {}, which this merge did not write: move it away, or "
                                  "remove the folder",
                                  folder, other));
  }
  for (const std::string& name : listing.files) {
    if (name != last) disk.remove(folder + "/" + name);
  }
  disk.remove(fmt::format("{}/{}", folder, last));
  for (const std::string& inner : listing.folders) disk.remove(folder + "/" + inner);
  disk.remove(folder);
}

std::string receipt_hash(Disk& disk, const std::string& folder) {
  const std::string path = folder + "/" + kReceiptName;
  if (disk.kind(path) != Disk::Kind::file) return "";
  const std::string text = read_text(disk, path, kReceiptLimit);
  return hash_block(std::as_bytes(std::span(text.data(), text.size()))).text();
}

// Absolute, and free of links as far as it exists.
fs::path canonical(const std::string& path) {
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  fs::path result = fs::weakly_canonical(absolute, error);
  return error ? absolute.lexically_normal() : result;
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

std::string lock_text() {
  return fmt::format("{{\"ingot\":\"lock\",\"pid\":{},\"host\":{},\"since\":\"{:%FT%TZ}\"}}\n",
                     ::getpid(),
                     Json(host_name()).dump(-1, ' ', true, Json::error_handler_t::replace),
                     fmt::gmtime(std::time(nullptr)));
}

// "pid 12 on host, since ..." from a lock's text.
std::string who(const std::string& text) {
  try {
    const Json lock = json_of(text.substr(0, text.find('\n')), "lock");
    const std::string host = lock.value("host", "");
    return fmt::format("pid {}{}, since {}", lock.at("pid").get<std::int64_t>(),
                       host == host_name() ? "" : " on " + host, lock.value("since", "?"));
  } catch (const std::exception&) {  // its first bytes are not written yet
    return "pid not known";
  }
}

}  // namespace

Target::Target(Disk& disk, const std::string& out, bool sync) : disk_(disk), sync_(sync) {
  locate(out);
}

std::unique_ptr<Target> Target::look(Disk& disk, const Plan& plan, const std::string& out,
                                     bool force) {
  std::unique_ptr<Target> target(new Target(disk, out, false));
  target->protect(plan);
  target->refuse_mount();
  target->refuse_unwritable();
  // An interrupted publishing is brought to an end by the next merge, not by a look.
  if (disk.kind(target->moved_journal_) == Disk::Kind::absent) target->examine(force);
  return target;
}

void Target::refuse_mount() const {
  if (disk_.kind(out_) == Disk::Kind::folder && disk_.mount_point(out_)) {
    fail(Code::usage,
         fmt::format("{} is a mount point, and a finished folder cannot replace a mount point in "
                     "one step: choose a folder in it, such as {}/model",
                     out_, out_));
  }
}

void Target::refuse_unwritable() const {
  if (disk_.writable(parent_)) return;
  fail(Code::io, fmt::format("{}: ingot cannot write in {}: choose another folder, or change its "
                             "permissions",
                             out_, parent_));
}

Target::Target(Disk& disk, const Plan& plan, const std::string& out, bool force, bool sync)
    : Target(disk, out, sync) {
  protect(plan);
  refuse_mount();
  refuse_unwritable();
  for (std::string above = parent_; disk_.kind(above) == Disk::Kind::absent;
       above = fs::path(above).parent_path().string()) {
    made_.push_back(above);
  }
  if (!made_.empty()) disk_.make_folder(parent_);
  try {
    std::string holder;
    lock_ = disk_.lock(fmt::format("{}/.{}.lock", parent_, name_), lock_text(), holder);
    if (lock_ == nullptr) {
      fail(Code::usage, fmt::format("another ingot ({}) is writing here, to {}: wait until it is "
                                    "done, or choose another output folder",
                                    who(holder), out_));
    }
    recover();
    examine(force);
  } catch (...) {
    leave();
    throw;
  }
}

Target::~Target() { leave(); }

std::string Target::journal() const { return fmt::format("{}/{}", partial_, kJournalName); }

void Target::locate(const std::string& out) {
  if (out.empty()) fail(Code::usage, "the output folder has an empty name: name a folder to write");
  if (out.find('\0') != std::string::npos) {
    fail(Code::usage, "the output folder's name holds a zero byte: choose another name");
  }
  const Disk::Kind kind = disk_.kind(out);
  if (kind == Disk::Kind::file || kind == Disk::Kind::other) {
    fail(Code::usage, fmt::format("{} exists and is not a folder: choose another output", out));
  }
  std::string cut = out;
  while (cut.size() > 1 && cut.ends_with('/')) cut.pop_back();
  // Where links lead is decided once, here: all that follows is about one folder.
  fs::path path = canonical(cut);
  if (path.filename().empty()) {
    fail(Code::usage, fmt::format("{} is not a name for a new folder: choose another output", out));
  }
  out_ = path.string();
  parent_ = path.parent_path().string();
  name_ = path.filename().string();
  partial_ = fmt::format("{}/.{}.partial", parent_, name_);
  moved_journal_ = fmt::format("{}/.{}.journal", parent_, name_);
  former_ = fmt::format("{}/.{}.former", parent_, name_);
}

// Nothing that the run reads may lie in a folder that it replaces or removes.
void Target::protect(const Plan& plan) const {
  std::vector<std::string> mine = {out_, partial_, former_};
  std::vector<std::optional<Identity>> identities;
  for (const std::string& folder : mine) identities.push_back(disk_.identity(folder));
  std::set<std::string> seen;
  const auto keep = [&](const std::string& path, const std::string& what) {
    for (fs::path at = canonical(path);; at = at.parent_path()) {
      // Folders that were checked before are not checked again.
      if (!seen.insert(at.string()).second) return;
      const std::optional<Identity> found = disk_.identity(at.string());
      for (std::size_t i = 0; i < mine.size(); ++i) {
        // By identity too: a folder may be mounted in two places.
        const bool same = found && identities[i] && found->inode == identities[i]->inode &&
                          found->device == identities[i]->device;
        if (!same && at.string() != mine[i]) continue;
        fail(Code::usage, fmt::format("{}{} holds {} ({}): choose another output folder", mine[i],
                                      i == 0 ? "" : ", where the merge would work,", what, path));
      }
      if (at == at.parent_path()) return;
    }
  };
  for (const Model& model : plan.models) {
    keep(model.folder, fmt::format("the model {}, which the recipe reads", model.ref.text));
  }
  for (const std::string& file : plan.read) keep(file, "a file that the merge reads");
  for (const Companion& companion : plan.companions) {
    if (!companion.from.empty()) keep(companion.from, "a file that the merge reads");
  }
  if (disk_.kind(plan.recipe.file) == Disk::Kind::file) keep(plan.recipe.file, "the recipe");
  if (!plan.options.root.empty()) keep(plan.options.root, "the folder that --root names");
  std::error_code error;
  if (const fs::path here = fs::current_path(error); !error) {
    keep(here.string(), "the current folder");
  }
  const std::string cache = hub_cache();
  try {
    if (disk_.kind(cache) == Disk::Kind::folder) keep(cache, "the Hub's cache");
  } catch (const Error&) {  // of another user, say: OUT cannot be in it either
  }
}

void Target::examine(bool force) {
  if (disk_.kind(out_) == Disk::Kind::folder) {
    const Listing listing = list_all(disk_, out_);
    written_ = written_to(disk_, out_);
    if (listing.files.empty() && listing.folders.empty()) {
      present_ = Present::empty;
    } else if (written_.names.empty()) {
      fail(
          Code::usage,
          fmt::format("{} exists and ingot did not write it (it has no receipt {}): ingot replaces "
                      "only what it wrote; remove the folder or choose another output",
                      out_, kReceiptName));
    } else if (const std::string other = force ? foreign(disk_, out_, written_) : "";
               !other.empty()) {
      fail(
          Code::usage,
          fmt::format("{} holds {}, which is not what its receipt says ingot wrote: ingot replaces "
                      "nothing else; move it away or choose another output",
                      out_, other));
    } else {
      present_ = Present::merged;
    }
  }
  if (present_ == Present::merged && force && disk_.kind(former_) != Disk::Kind::absent) {
    fail(Code::usage,
         fmt::format("{} is in the way: move it away, or choose another output", former_));
  }
  // One of these that is not ingot's would be met only after the work.
  if (disk_.kind(moved_journal_) != Disk::Kind::absent) {
    fail(Code::usage,
         fmt::format("{} is in the way: move it away, or choose another output", moved_journal_));
  }
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(partial_, error))) {
    fail(Code::usage, fmt::format("{} is a link, but ingot needs this name for the folder that "
                                  "becomes {}: remove the link, or choose another output",
                                  partial_, out_));
  }
  const Disk::Kind kind = disk_.kind(partial_);
  if (kind == Disk::Kind::absent) return;
  const Disk::Kind journalled = disk_.kind(journal());
  if (kind == Disk::Kind::folder && journalled == Disk::Kind::file) {
    unfinished_ = read_journal(disk_, journal());
    // Nothing but a first line that was cut off: the run ended as it began.
    if (!unfinished_->begun) unfinished_->files = {std::string(kJournalName)};
    return;
  }
  if (kind == Disk::Kind::folder && list_all(disk_, partial_).files.empty()) {
    unfinished_.emplace();
    return;
  }
  fail(Code::usage, fmt::format("{} is in the way: it has no journal, so ingot did not write it; "
                                "move it away or choose another output",
                                partial_));
}

void Target::refuse_finished() const {
  fail(Code::usage,
       fmt::format("{} exists: --force replaces it once the new merge is complete", out_));
}

std::unique_ptr<File> Target::scratch() {
  const std::string path = fmt::format("{}/.{}.ranks", parent_, name_);
  // A run that was killed right here leaves an empty file.
  const std::optional<Identity> there = disk_.identity(path);
  const Disk::Kind kind = disk_.kind(path);
  if (kind != Disk::Kind::absent && (kind != Disk::Kind::file || !there || there->size > 0)) {
    fail(Code::usage,
         fmt::format("{} is in the way: move it away, or choose another output", path));
  }
  disk_.remove(path);
  auto file = disk_.create(path);
  disk_.remove(path);
  return file;
}

void Target::begin() { disk_.make_folder(partial_); }

void Target::clear(const std::vector<std::string>& names) {
  std::set<std::string> known(names.begin(), names.end());
  known.insert(std::string(kJournalName));
  remove_named(disk_, partial_, known, kJournalName);
  unfinished_.reset();
}

void Target::leave() noexcept {
  lock_.reset();
  // Folders above OUT are of use only to what is in them; those that hold something stay.
  for (const std::string& folder : made_) {
    std::error_code ignored;
    fs::remove(folder, ignored);
  }
}

void Target::sync_parent() const {
  if (sync_) disk_.sync_folder(parent_);
}

// A publishing that cannot go on leaves the working folder as a finished merge that --resume
// publishes.
void Target::give_back(const std::string& reason) {
  (void)disk_.rename(moved_journal_, journal());
  sync_parent();
  fail(Code::usage,
       fmt::format(
           "{}. The finished merge is in {}: move {} away, then run the same command with --resume",
           reason, partial_, out_));
}

void Target::publish(Journal& journal, const std::string& receipt) {
  journal.publishing(receipt);
  // Out of the folder that becomes OUT, and in one step: until then the run can be resumed, and
  // from then on a later one can tell what was under way.
  if (!disk_.rename_new(this->journal(), moved_journal_)) {
    fail(Code::usage, moved_journal_ + " is in the way: move it away, then --resume");
  }
  if (sync_) disk_.sync_folder(partial_);
  sync_parent();
  const auto appeared = [&] {
    give_back(out_ + " appeared while the merge was running, and was left as it is");
  };
  if (present_ == Present::merged) {
    replace(journal);
  } else if (present_ == Present::nothing) {
    if (!disk_.rename_new(partial_, out_)) appeared();
  } else {
    // An empty folder, which is all that a rename replaces; one that cannot be moved goes first.
    if (disk_.kind(out_) == Disk::Kind::folder && !disk_.list(out_).empty()) appeared();
    if (!disk_.rename(partial_, out_)) {
      disk_.remove(out_);
      if (!disk_.rename_new(partial_, out_)) appeared();
    }
  }
  sync_parent();
  disk_.remove(moved_journal_);
  sync_parent();
}

void Target::replace(Journal& journal) {
  const auto changed = [&]() -> std::string {
    if (disk_.kind(out_) != Disk::Kind::folder) return "is gone";
    const Written now = written_to(disk_, out_);
    const bool same =
        std::equal(now.parts.begin(), now.parts.end(), written_.parts.begin(), written_.parts.end(),
                   [](const auto& a, const auto& b) {
                     return a.file == b.file && a.tensor == b.tensor && a.hash == b.hash;
                   });
    if (!same) return "is another merge now";
    const std::string other = foreign(disk_, out_, written_);
    return other.empty() ? "" : fmt::format("holds {} now, which ingot did not write", other);
  };
  if (const std::string now = changed(); !now.empty()) {
    give_back(fmt::format("{} {}: it changed while the merge was running, and was left as it is",
                          out_, now));
  }
  if (disk_.exchange(partial_, out_)) {
    sync_parent();
    // Once more, where nobody else looks for it any longer.
    const std::string other = foreign(disk_, partial_, written_);
    if (!other.empty() && disk_.exchange(partial_, out_)) {
      give_back(fmt::format("{} holds {} now, and was left as it is", out_, other));
    }
    remove_named(disk_, partial_, written_.names, kReceiptName);
    return;
  }
  // In two steps, between which there is no OUT: the journal beside it says so to the next run.
  if (disk_.rename(out_, former_)) {
    sync_parent();
    if (!disk_.rename_new(partial_, out_)) {
      give_back(fmt::format("{} appeared while it was being replaced; the former one is {}", out_,
                            former_));
    }
    sync_parent();
    remove_named(disk_, former_, written_.names, kReceiptName);
    return;
  }
  // A folder that cannot be moved, such as one of a container's image: its files are removed.
  journal.removing({written_.names.begin(), written_.names.end()});
  remove_named(disk_, out_, written_.names, kReceiptName);
  if (!disk_.rename_new(partial_, out_)) give_back(out_ + " appeared while it was being replaced");
}

// The receipts show how far an interrupted publishing came: the hash of the new receipt is in the
// journal.
void Target::recover() {
  if (disk_.kind(moved_journal_) != Disk::Kind::file) return;
  const Record record = read_journal(disk_, moved_journal_);
  if (!record.receipt) {
    fail(Code::usage,
         moved_journal_ +
             " is in the way: it is not the journal of an interrupted merge; move it away");
  }
  const bool in_out = receipt_hash(disk_, out_) == *record.receipt;
  const bool in_partial = receipt_hash(disk_, partial_) == *record.receipt;
  const auto discard = [&](const std::string& folder) {
    remove_named(disk_, folder, written_to(disk_, folder).names, kReceiptName);
  };
  if (in_out) {
    // Done but for the old folder. Where both are the same, neither is worth more.
    discard(partial_);
    discard(former_);
  } else if (in_partial) {
    if (record.removing) {
      remove_named(disk_, out_, {record.removing->begin(), record.removing->end()}, kReceiptName);
    }
    const bool halfway = record.removing || disk_.kind(former_) == Disk::Kind::folder;
    if (disk_.kind(out_) == Disk::Kind::absent && halfway) {
      (void)disk_.rename_new(partial_, out_);
      sync_parent();
      discard(former_);
    } else {
      (void)disk_.rename_new(moved_journal_, journal());
      sync_parent();
      return;
    }
  } else if (disk_.kind(out_) == Disk::Kind::absent && disk_.kind(former_) == Disk::Kind::folder) {
    (void)disk_.rename_new(former_, out_);
  }
  disk_.remove(moved_journal_);
  sync_parent();
}

}  // namespace ingot
