// verify(): does the folder match its recipe?
//
// The receipt is compared with the folder, and the plan, built again from the recipe and the
// inputs, against both: so the receipt alone is never trusted.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <unordered_map>

#include <fmt/format.h>

#include "base/clip.hpp"
#include "base/hash.hpp"
#include "base/threads.hpp"
#include "engine/crew.hpp"
#include "engine/finite.hpp"
#include "engine/proof.hpp"
#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "ingot/merge.hpp"
#include "ingot/methods.hpp"
#include "plan/layout.hpp"
#include "plan/measure.hpp"
#include "store/header.hpp"

namespace ingot {
namespace {

// Tensors up to this size are always measured again; of larger ones whose formula needs it one in
// kShare is, and one at least; which ones, nobody knows beforehand. `--all` takes every one.
constexpr std::uint64_t kAlways = std::uint64_t{1} << 20;
constexpr std::uint64_t kShare = 8;
// Shortfalls of one kind that are told one by one.
constexpr std::size_t kTold = 5;

// Shortfalls by kind, the first few of each in order of place.
class Shortfalls {
 public:
  // `kind` completes "and 7 more ...".
  void add(const std::string& kind, std::uint64_t place, std::string text) {
    const std::lock_guard lock(mutex_);
    Kind& found = kinds_[kind];
    ++found.count;
    found.first.emplace(place, std::move(text));
    if (found.first.size() > kTold) found.first.erase(std::prev(found.first.end()));
  }
  [[nodiscard]] bool none() const {
    const std::lock_guard lock(mutex_);
    return kinds_.empty();
  }
  void tell(Verdicts& verdicts) const {
    for (const auto& [kind, found] : kinds_) {
      for (const auto& [place, text] : found.first) verdicts.findings.push_back({text});
      verdicts.shortfalls += found.count;
      if (found.count > found.first.size()) {
        verdicts.findings.push_back(
            {fmt::format("... and {} more {}", found.count - found.first.size(), kind)});
      }
    }
  }

 private:
  struct Kind {
    std::uint64_t count = 0;
    std::multimap<std::uint64_t, std::string> first;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Kind> kinds_;
};

std::string shown(const Json& value) {
  return clip(value.dump(-1, ' ', false, Json::error_handler_t::replace), 120);
}

// A tensor as the receipt tells of it, and where its shard would hold it.
struct Told {
  TensorInfo info;
  const Json* entry = nullptr;
  std::string shard, hash;
  std::optional<std::uint64_t> place;  // in the shard's file
};

// A shard as the receipt's tensors make it.
struct Outline {
  std::vector<std::size_t> tensors;  // indices into told_
  std::string header;
  std::uint64_t bytes = 0;  // of the whole file
  std::unique_ptr<File> file;
};

class Verifier {
 public:
  Verifier(Disk& disk, const std::string& out, const VerifyOptions& options, const Watcher& watcher)
      : disk_(disk), out_(out), options_(options), watcher_(watcher) {
    std::random_device device;
    salt_ = std::uint64_t{device()} << 32 | device();
  }

  Verdicts go() {
    const std::string path = out_ + "/" + kReceiptName;
    const Disk::Kind kind = disk_.kind(out_);
    if (kind == Disk::Kind::absent) {
      fail(Code::missing,
           fmt::format("there is no folder {}{}", out_, path_advice(disk_, "", out_)));
    }
    if (kind != Disk::Kind::folder) {
      const std::size_t slash = out_.rfind('/');
      fail(Code::missing,
           fmt::format("{} is a file: name the folder that ingot wrote, as in "
                       "'ingot verify {}'",
                       out_, slash == std::string::npos ? "." : out_.substr(0, slash)));
    }
    if (disk_.kind(path) != Disk::Kind::file) {
      fail(Code::missing, fmt::format("{} has no {}, so it is not a folder that ingot merged", out_,
                                      kReceiptName));
    }
    try {
      receipt_ = parse_receipt(read_text(disk_, path, std::uint64_t{1} << 32), path);
      check();
    } catch (const nlohmann::json::exception& error) {
      find("", fmt::format("{}: the receipt lacks a field or has one of the wrong type ({})", path,
                           error.what()));
    } catch (const Error& error) {
      // Errors of the machine do not say anything about the folder.
      if (error.code() == Code::io || error.code() == Code::memory ||
          error.code() == Code::internal || error.code() == Code::device) {
        throw;
      }
      find("", error.what());
    }
    if (obstacle_ && shortfalls_.none()) throw Error(*obstacle_);
    if (obstacle_) find("", obstacle_->what());
    shortfalls_.tell(verdicts_);
    return std::move(verdicts_);
  }

 private:
  void find(const std::string& kind, std::string text, std::uint64_t place = 0) {
    shortfalls_.add(kind, place, std::move(text));
  }

  void check() {
    read_tensors();
    if (unhashed()) return;
    if (!options_.outputs_only && !recipe_changed()) replan();
    check_list();
    for (auto& [name, outline] : outlines_) check_shard(name, outline);
    check_files();
    if (plan_) {
      check_layout();
    } else {
      check_index();
    }
    weigh();
    each(told_.size(), [&](std::size_t i) { check_tensor(i); });
    if (digests_) verdicts_.hashed_bytes += digests_->bytes();
    if (plan_) check_rest();
  }

  // Runs `work` for every index on the crew; the first Error is thrown here.
  void each(std::size_t count, const std::function<void(std::size_t)>& work) {
    std::atomic<std::size_t> left = count;
    std::mutex mutex;
    std::condition_variable done;
    Crew crew(thread_count(options_.threads));
    const auto wake = [&] {
      const std::lock_guard lock(mutex);
      done.notify_all();
    };
    crew.on_failure(wake);
    for (std::size_t i = 0; i < count; ++i) {
      crew.post(i, [&, i](int) {
        work(i);
        if (left.fetch_sub(1) == 1) wake();
      });
    }
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return left == 0 || crew.failed(); });
    lock.unlock();
    crew.check();
  }

  void count_bytes(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    verdicts_.hashed_bytes += bytes;
  }

  // The hash of a part of a file; of a tensor of `dtype` also its elements that are not finite.
  Digest digest_of(File& file, std::uint64_t offset, std::uint64_t bytes,
                   std::optional<Dtype> dtype = std::nullopt, Count* nonfinite = nullptr) {
    const Digest digest =
        hash_part(file, offset, bytes, [&](std::uint64_t at, std::span<const std::byte> piece) {
          if (!dtype) return;
          const std::uint64_t width = std::max<std::uint64_t>(bits(*dtype) / 8, 1);
          nonfinite->add(count_nonfinite(*dtype, piece, at / width));
        });
    count_bytes(bytes);
    return digest;
  }

  // ---- the receipt by itself

  void read_tensors() {
    const Json& tensors = receipt_.at("tensors");
    if (!tensors.is_array()) fail(Code::format, "the receipt's 'tensors' is not a list");
    verdicts_.tensors = tensors.size();
    told_.reserve(tensors.size());
    std::set<std::string> names;
    for (const Json& entry : tensors) {
      Told tensor;
      tensor.entry = &entry;
      tensor.info.name = entry.at("name").get<std::string>();
      tensor.shard = entry.at("shard").get<std::string>();
      tensor.hash = entry.at("hash").get<std::string>();
      const auto dtype = dtype_of_name(entry.at("dtype").get<std::string>());
      bool sound = dtype.has_value() && entry.at("shape").is_array();
      tensor.info.dtype = dtype.value_or(Dtype::f32);
      for (const Json& extent : entry.at("shape")) {
        sound = sound && extent.is_number_unsigned() &&
                tensor.info.shape.push(extent.get<std::uint64_t>());
      }
      if (!sound || !tensor.info.shape.checked_bytes(tensor.info.dtype) ||
          tensor.info.name == "__metadata__" || !names.insert(tensor.info.name).second ||
          tensor.shard.find('/') != std::string::npos) {
        fail(Code::format,
             fmt::format(
                 "{}: the receipt describes this tensor twice, or in a way that no tensor can have",
                 clip(tensor.info.name, 200)));
      }
      by_name_[tensor.info.name] = told_.size();
      outlines_[tensor.shard].tensors.push_back(told_.size());
      told_.push_back(std::move(tensor));
    }
    for (auto& [name, outline] : outlines_) {
      std::vector<TensorInfo> infos;
      std::uint64_t bytes = 0;
      for (const std::size_t i : outline.tensors) {
        if (__builtin_add_overflow(bytes, told_[i].info.bytes(), &bytes)) {
          fail(Code::format,
               fmt::format("{}: the receipt gives this file more bytes than a file can have",
                           clip(name, 200)));
        }
        infos.push_back(told_[i].info);
      }
      outline.header = print_header(infos, {{"format", "pt"}});
      outline.bytes = outline.header.size() + bytes;
      std::uint64_t at = outline.header.size();
      for (const std::size_t i : outline.tensors) {
        told_[i].place = at;
        at += told_[i].info.bytes();
      }
    }
  }

  // A merge for measurements leaves the hashes out.
  [[nodiscard]] bool unhashed() {
    const std::string zero = Digest{}.text();
    const bool any = std::any_of(told_.begin(), told_.end(),
                                 [&](const Told& tensor) { return tensor.hash == zero; });
    if (any) {
      find("", fmt::format("{}: merged with --no-hash, so its receipt has no hashes to check the "
                           "folder with: merge again without --no-hash",
                           out_));
    }
    return any;
  }

  // ---- the plan, built again

  // True if the recipe in the folder is not the one of the merge, by both of the receipt's hashes:
  // what it makes is another folder. check_files() says so.
  [[nodiscard]] bool recipe_changed() {
    const std::string path = out_ + "/recipe.yml";
    if (disk_.kind(path) != Disk::Kind::file) return false;
    const auto file = disk_.open(path);
    const std::string found = hash_part(*file, 0, file->size(), {}).text();
    const auto differs = [&](const Json& entry) {
      return entry.at("file") == "recipe.yml" && entry.at("hash") != found;
    };
    const Json& files = receipt_.at("files");
    return receipt_.at("recipe").at("hash") != recipe_hash(*file) &&
           std::any_of(files.begin(), files.end(), differs);
  }

  static std::string recipe_hash(File& file) {
    std::string text(file.size(), '\0');
    read_exact(file, 0, std::as_writable_bytes(std::span(text.data(), text.size())));
    return hash_block(std::as_bytes(std::span(text.data(), text.size()))).text();
  }

  void replan() {
    PlanOptions options = parse_options(receipt_.at("options"), kReceiptName);
    options.root = options_.root;
    options.threads = options_.threads;
    const std::string path = out_ + "/recipe.yml";
    if (disk_.kind(path) != Disk::Kind::file) {
      fail(Code::format,
           fmt::format(
               "{}: the file is missing, and without it only --outputs-only can check the folder",
               path));
    }
    Recipe recipe = parse(read_text(disk_, path), path, {options.allow_unknown_keys});
    plan::Measuring measuring;
    Plan plan = plan::build(disk_, std::move(recipe), options, measuring);
    for (const Problem& problem : plan.problems) {
      if (!problem.fatal) continue;
      const bool absent = problem.code == Code::missing;
      if (!absent && problem.code != Code::io) {
        find("problems of the recipe and its inputs", problem.text);
        continue;
      }
      if (obstacle_) continue;
      obstacle_ = Error(
          problem.code,
          fmt::format("{}; {}--outputs-only checks the folder without its inputs", problem.text,
                      absent ? "--root names the folder where the recipe's relative "
                               "paths start, and "
                             : ""));
    }
    if (!plan.sound()) return;
    const std::string home = disk_.resolve(out_) + "/";
    for (const Model& model : plan.models) {
      if (!(disk_.resolve(model.folder) + "/").starts_with(home)) continue;
      find("inputs in the folder", fmt::format("{}: the recipe's model {} is in the folder itself, "
                                               "so it cannot be used to check the folder",
                                               out_, clip(model.ref.text, 200)));
    }
    plan_.emplace(std::move(plan));
    digests_.emplace(*plan_);
    pass_over();
    for (std::size_t j = 0; j < plan_->jobs.size(); ++j) {
      jobs_[printed(plan_->jobs[j].output.name)] = j;
    }
  }

  // Chooses the large tensors that are not measured again: all but one in kShare, and never all.
  void pass_over() {
    std::vector<const Job*> measured;
    for (const Job& job : plan_->jobs) {
      if (options_.all || job.work.rule.elements <= kAlways) continue;
      if (measured_first(job)) measured.push_back(&job);
    }
    const std::uint64_t share = std::min<std::uint64_t>(kShare, measured.size());
    for (std::size_t i = 0; i < measured.size(); ++i) {
      if ((i + salt_) % share != 0) passed_.insert(measured[i]);
    }
  }

  // ---- files

  // The files that the folder should have, with names as the receipt prints them.
  void check_list() {
    std::set<std::string> expected{kReceiptName};
    for (const auto& [name, outline] : outlines_) expected.insert(name);
    for (const Json& file : receipt_.at("files")) {
      expected.insert(file.at("file").get<std::string>());
    }
    check_folder("", expected);
    for (const std::string& name : expected) {
      if (!names_.contains(name)) {
        find("files that are missing", fmt::format("{}/{}: the file is missing", out_, name));
      }
    }
  }

  // `prefix` is a folder below OUT with its `/`, or empty.
  void check_folder(const std::string& prefix, const std::set<std::string>& expected) {
    for (const std::string& own : disk_.list(out_ + (prefix.empty() ? "" : "/" + prefix))) {
      const std::string name = prefix + own;
      const std::string path = out_ + "/" + name;
      const auto kind = disk_.kind(path);
      const auto below = expected.lower_bound(printed(name) + "/");
      if (kind == Disk::Kind::folder && !disk_.is_link(path) && below != expected.end() &&
          below->starts_with(printed(name) + "/")) {
        check_folder(name + "/", expected);
        continue;
      }
      const bool link = disk_.is_link(path) && !cached(name);
      if (!expected.contains(printed(name))) {
        find("that the merge did not write",
             fmt::format("{}: {} that the merge did not write", path,
                         link                         ? "a link"
                         : kind == Disk::Kind::folder ? "a folder"
                                                      : "a file"));
        continue;
      }
      names_[printed(name)] = name;
      if (link || kind != Disk::Kind::file) {
        find("that are not regular files",
             fmt::format("{}: expected the file that the merge wrote, found {}", path,
                         link                         ? "a link"
                         : kind == Disk::Kind::folder ? "a folder"
                                                      : "something"));
      }
    }
  }

  // True for a link of a Hub cache: into the blobs of the folder's own repository. The rule is that
  // of inputs; but the folder's own files are no links to each other.
  bool cached(const std::string& name) {
    try {
      const std::string path = member(disk_, out_, name);
      return !disk_.resolve(path).starts_with(disk_.resolve(out_) + "/");
    } catch (const Error& error) {
      if (error.code() != Code::missing && error.code() != Code::format) throw;
      return false;
    }
  }

  // A file of the folder, or null: it is none, which was found already.
  std::unique_ptr<File> open(const std::string& name) {
    const auto at = names_.find(name);
    if (at == names_.end()) return nullptr;
    const std::string path = out_ + "/" + at->second;
    return disk_.kind(path) == Disk::Kind::file ? disk_.open(path) : nullptr;
  }

  void check_shard(const std::string& name, Outline& outline) {
    outline.file = open(name);
    const auto lose = [&] {
      for (const std::size_t i : outline.tensors) told_[i].place.reset();
    };
    if (!outline.file) return lose();
    File& file = *outline.file;
    std::string header(std::min<std::uint64_t>(outline.header.size(), file.size()), '\0');
    read_exact(file, 0, std::as_writable_bytes(std::span(header.data(), header.size())));
    if (header == outline.header && file.size() == outline.bytes) return;
    lose();
    if (explain(file, outline)) return;
    if (header == outline.header) {
      find("files of another size",
           fmt::format("{}: {} bytes expected, {} found", file.path(), outline.bytes, file.size()));
      return;
    }
    const auto at = std::mismatch(header.begin(), header.end(), outline.header.begin()).first;
    find("changed headers", fmt::format("{}: the header is wrong from its byte {} on: the order of "
                                        "the tensors, the metadata or the padding was changed",
                                        file.path(), at - header.begin()));
  }

  // Tells what a header has that the receipt has not and the other way round; false: nothing. What
  // is the same can be found by it.
  bool explain(File& file, const Outline& outline) {
    Header header;
    try {
      header = read_header(file, 0);
    } catch (const Error& error) {
      if (error.code() != Code::format) throw;
      find("damaged files", error.what());
      return true;
    }
    bool any = false;
    const auto tell = [&](const std::string& kind, std::string text) {
      find(kind, std::move(text));
      any = true;
    };
    std::map<std::string_view, const Entry*> entries;
    for (const Entry& entry : header.entries) {
      entries[entry.info.name] = &entry;
      const auto at = by_name_.find(entry.info.name);
      if (at == by_name_.end() || told_[at->second].shard != name_of(file)) {
        tell("tensors that the receipt does not name",
             fmt::format("{}: the folder has this tensor, but the receipt does not name it",
                         clip(entry.info.name, 200)));
      }
    }
    for (const std::size_t i : outline.tensors) {
      const auto at = entries.find(told_[i].info.name);
      if (at == entries.end()) {
        tell("tensors that are not there",
             fmt::format("{}: the receipt names this tensor, but the folder does not have it",
                         clip(told_[i].info.name, 200)));
        continue;
      }
      const TensorInfo& found = at->second->info;
      if (found.dtype != told_[i].info.dtype || !(found.shape == told_[i].info.shape)) {
        tell("tensors of another type or shape",
             fmt::format("{}: {} {} expected, {} {} found", clip(found.name, 200),
                         name(told_[i].info.dtype), told_[i].info.shape.text(), name(found.dtype),
                         found.shape.text()));
        continue;
      }
      told_[i].place = at->second->offset;
    }
    return any;
  }

  [[nodiscard]] static std::string name_of(const File& file) {
    return printed(file.path().substr(file.path().rfind('/') + 1));
  }

  void check_files() {
    for (const Json& entry : receipt_.at("files")) {
      const auto name = entry.at("file").get<std::string>();
      const auto file = open(name);
      if (!file) {
        if (names_.contains(name)) continue;
        hashes_[name] = Digest::parse(entry.at("hash").get<std::string>()).value_or(Digest{});
        changed_.insert(name);  // said once: it is missing
        continue;
      }
      const Digest digest = digest_of(*file, 0, file->size());
      hashes_[name] = digest;
      if (digest.text() == entry.at("hash")) continue;
      const std::string told = entry.at("hash").get<std::string>();
      hashes_[name] = Digest::parse(told).value_or(digest);  // said once
      changed_.insert(name);
      find("files that changed since the merge",
           fmt::format("{}: changed since the merge: hash {} expected, {} found{}", file->path(),
                       clip(told), digest.text(),
                       name == "recipe.yml" && !plan_
                           ? "; without the recipe of the merge, the rest was checked with the "
                             "receipt alone"
                           : ""));
    }
    // The recipe's own hash says the same; both are checked.
    const auto file = open("recipe.yml");
    if (!file || plan_ || changed_.contains("recipe.yml")) return;
    const std::string found = recipe_hash(*file);
    if (receipt_.at("recipe").at("hash") == found) return;
    find("", fmt::format("{}: changed since the merge: hash {} expected, {} found", file->path(),
                         shown(receipt_.at("recipe").at("hash")), found));
  }

  // ---- the folder against the plan

  // Shards and other files are those that the plan makes, with the same contents.
  void check_layout() {
    for (const Shard& shard : plan_->shards) {
      const auto at = outlines_.find(shard.file);
      if (at == outlines_.end()) {
        find("shards that the receipt does not name",
             fmt::format("{}: the recipe makes this shard, but the receipt does not name it",
                         shard.file));
      } else if (at->second.header != shard.header ||
                 at->second.bytes != shard.header.size() + shard.data_bytes) {
        find("shards of other tensors",
             fmt::format("{}: the tensors of this shard, or their order, differ between the recipe "
                         "and the receipt",
                         shard.file));
      }
    }
    for (const Companion& companion : plan_->companions) compare(companion);
  }

  // Without a plan: the index is that of the receipt's tensors.
  void check_index() {
    const std::string name = "model.safetensors.index.json";
    const auto file = open(name);
    if (outlines_.size() < 2) {
      if (file) {
        find("files that are not what the merge makes",
             fmt::format("{}: the folder has this index, but the receipt names only one shard",
                         file->path()));
      }
      return;
    }
    std::vector<std::pair<std::string_view, std::string_view>> tensors;
    std::uint64_t bytes = 0;
    for (const Told& tensor : told_) {
      tensors.emplace_back(tensor.info.name, tensor.shard);
      bytes += tensor.info.bytes();
    }
    const std::string expected = plan::print_index(std::move(tensors), bytes);
    std::string found(file ? std::min<std::uint64_t>(file->size(), expected.size() + 1) : 0, '\0');
    if (file) read_exact(*file, 0, std::as_writable_bytes(std::span(found.data(), found.size())));
    if (found == expected) return;
    const auto at = std::mismatch(found.begin(), found.end(), expected.begin(), expected.end());
    find("files that are not what the merge makes",
         file ? fmt::format("{}: the index does not match the receipt's tensors and shards from "
                            "its byte {} on",
                            file->path(), at.first - found.begin())
              : fmt::format("{}/{}: the index is missing, but the receipt names {} shards", out_,
                            name, outlines_.size()));
  }

  // Byte for byte, unless the file is another than the receipt says, which was found.
  void compare(const Companion& companion) {
    if (changed_.contains(printed(companion.name))) return;
    const auto file = open(printed(companion.name));
    if (!file) {
      if (!names_.contains(printed(companion.name))) {
        find("files that are missing",
             fmt::format("{}/{}: the recipe makes this file, but it is missing", out_,
                         companion.name));
      }
      return;
    }
    const auto source = companion.from.empty() ? nullptr : disk_.open(companion.from);
    const std::uint64_t size = source ? source->size() : companion.text.size();
    std::vector<std::byte> found(kHashBlock), expected(kHashBlock);
    bool same = file->size() == size;
    for (std::uint64_t at = 0; same && at < size; at += kHashBlock) {
      const std::size_t n = std::min<std::uint64_t>(kHashBlock, size - at);
      read_exact(*file, at, std::span(found).first(n));
      if (source) {
        read_exact(*source, at, std::span(expected).first(n));
      } else {
        std::memcpy(expected.data(), companion.text.data() + at, n);
      }
      same = std::memcmp(found.data(), expected.data(), n) == 0;
    }
    if (same) return;
    find("files that are not what the recipe makes",
         fmt::format("{}: not what {} now", file->path(),
                     companion.model.empty()  ? "the recipe and its inputs make"
                     : companion.from.empty() ? "is made of that of " + companion.model
                                              : companion.model + " has"));
  }

  // ---- tensors

  void check_tensor(std::size_t i) {
    const Told& tensor = told_[i];
    const std::string name = clip(tensor.info.name, 200);
    const Job* job = plan_ ? job_of(i) : nullptr;
    File* file = tensor.place ? outlines_.at(tensor.shard).file.get() : nullptr;
    const bool fits = job != nullptr && file != nullptr && job->output.dtype == tensor.info.dtype &&
                      job->output.shape == tensor.info.shape;
    const bool copies = fits && job->action == Action::copy;
    Outcome outcome;
    bool same = true;
    if (job != nullptr) outcome = hash_inputs(*job, copies);
    if (copies) {
      same = compare_copy(*job, *file, *tensor.place, outcome);
    } else if (file != nullptr) {
      outcome.output = digest_of(*file, *tensor.place, tensor.info.bytes(), tensor.info.dtype,
                                 &outcome.findings.nonfinite);
    }
    std::string changed;  // one finding for one tensor
    if (file != nullptr && outcome.output.text() != tensor.hash) {
      changed = fmt::format("{}: changed since the merge: hash {} expected, {} found", name,
                            clip(tensor.hash), outcome.output.text());
      outcome.output = Digest::parse(tensor.hash).value_or(Digest{});
    }
    if (job != nullptr && check_inputs(*job, *tensor.entry, outcome, i)) {
      // Hashes find accidents; this finds entries that were forged.
      if (!same && changed.empty()) {
        find("copies that differ from their source",
             fmt::format("{}: the copy differs from its source", name), i);
      }
      const Seen seen = fits && job->action == Action::merge
                            ? recompute(*job, *file, *tensor.place, i, outcome, changed)
                            : Seen{};
      if (file == nullptr) outcome.output = Digest::parse(tensor.hash).value_or(Digest{});
      compare_entry(*job, *tensor.entry, outcome, seen, i);
    }
    if (!changed.empty()) find("tensors that changed since the merge", std::move(changed), i);
    tell(weight(tensor, job), tensor.info.name);
  }

  // About how many bytes the check of a tensor reads: its own and those of its inputs.
  [[nodiscard]] std::uint64_t weight(const Told& tensor, const Job* job) const {
    std::uint64_t sum = tensor.info.bytes();
    if (job == nullptr) return sum;
    const auto add = [&](const Ingredient& at) {
      sum += plan_->models[at.model].checkpoint.entries()[at.entry].info.bytes();
    };
    for (const Operand& operand : job->operands) {
      if (lands(operand)) add({operand.model, operand.entry});
      if (!operand.derived) continue;
      for (const Ingredient& ingredient : operand.derived->ingredients()) add(ingredient);
    }
    return sum;
  }

  void weigh() {
    for (const Told& tensor : told_) {
      const auto at = jobs_.find(tensor.info.name);
      total_ += weight(tensor, at == jobs_.end() ? nullptr : &plan_->jobs[at->second]);
    }
    tell(0, {});
  }

  void tell(std::uint64_t bytes, const std::string& tensor) {
    const std::lock_guard lock(mutex_);
    done_ += bytes;
    if (watcher_) watcher_({Phase::verify, done_, total_, tensor});
  }

  // The job of an entry; an entry that has none or another place is told of here.
  const Job* job_of(std::size_t i) {
    const std::string& name = told_[i].info.name;
    const auto at = jobs_.find(name);
    if (at == jobs_.end()) {
      find("tensors that the recipe does not make",
           fmt::format("{}: the receipt names this tensor, but the recipe does not make it",
                       clip(name, 200)),
           i);
      return nullptr;
    }
    if (at->second != i) {
      find("tensors at another place",
           fmt::format("{}: the tensor is number {} in the receipt, but number {} by the recipe",
                       clip(name, 200), i + 1, at->second + 1),
           i);
    }
    return &plan_->jobs[at->second];
  }

  // Of all inputs; but the first of a copy is read beside its output.
  Outcome hash_inputs(const Job& job, bool copies) {
    Outcome outcome;
    const std::size_t count = job.operands.size();
    outcome.inputs.resize(count);
    outcome.ingredients.resize(count);
    outcome.found.resize(count);
    outcome.nonfinite.resize(count);
    outcome.ingredients_nonfinite.resize(count);
    for (std::size_t k = 0; k < count; ++k) {
      const Operand& operand = job.operands[k];
      const Checkpoint& checkpoint = plan_->models[operand.model].checkpoint;
      const Entry& from = checkpoint.entries()[operand.entry];
      const bool merge = job.action == Action::merge;
      const std::uint64_t bytes =
          merge ? job.work.rule.elements * bits(from.info.dtype) / 8 : job.output.bytes();
      if (lands(operand) && dense(*plan_, operand, merge) && bytes < from.info.bytes()) {
        // Rows behind the end are cut off: what was read was hashed.
        outcome.inputs[k] = digest_of(checkpoint.file(from.file), from.offset, bytes,
                                      from.info.dtype, &outcome.nonfinite[k]);
      } else if (lands(operand) && !(copies && k == 0)) {
        outcome.inputs[k] = digests_->of({operand.model, operand.entry});
        outcome.nonfinite[k] = digests_->nonfinite({operand.model, operand.entry});
      }
      if (!operand.derived) continue;
      for (const Ingredient& part : operand.derived->ingredients()) {
        outcome.ingredients[k].push_back(digests_->of(part));
        outcome.ingredients_nonfinite[k].push_back(digests_->nonfinite(part));
      }
    }
    return outcome;
  }

  // True if a copy equals its input byte for byte. The hashes of both.
  bool compare_copy(const Job& job, File& file, std::uint64_t place, Outcome& outcome) {
    const std::uint64_t bytes = job.output.bytes();
    std::vector<std::byte> copy(std::min<std::uint64_t>(kHashBlock, bytes)), input(copy.size());
    std::vector<Digest> copies, inputs;
    const std::uint64_t width = std::max<std::uint64_t>(bits(job.output.dtype) / 8, 1);
    bool same = true;
    Count counted;
    for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
      const std::size_t n = std::min<std::uint64_t>(kHashBlock, bytes - at);
      read_exact(file, place + at, std::span(copy).first(n));
      supply(*plan_, job.operands[0], false, at, std::span(input).first(n));
      copies.push_back(hash_block(std::span(copy).first(n)));
      const bool equal = std::memcmp(copy.data(), input.data(), n) == 0;
      inputs.push_back(equal ? copies.back() : hash_block(std::span(input).first(n)));
      counted.add(count_nonfinite(job.output.dtype, std::span(input).first(n), at / width));
      same = same && equal;
    }
    count_bytes(2 * bytes);
    outcome.output = hash_digests(copies);
    outcome.inputs[0] = hash_digests(inputs);
    outcome.findings.nonfinite = outcome.nonfinite[0] = counted;
    return same;
  }

  // True if the entry names the plan's inputs and none of them changed since the merge.
  bool check_inputs(const Job& job, const Json& entry, const Outcome& outcome, std::size_t i) {
    const Json expected = describe_plan(*plan_, job);
    if (const auto what = difference(expected["sources"], entry.at("sources"), true)) {
      find("entries that are not what the recipe makes",
           fmt::format("{}: the recipe and the receipt differ in {}", clip(job.output.name, 200),
                       words("sources" + *what)),
           i);
      return false;
    }
    bool intact = true;
    const auto check = [&](const Json& told, const Digest& digest) {
      const std::string found = digest.text();
      if (told.at("hash") == found) return;
      intact = false;
      find("inputs that changed since the merge",
           fmt::format("{} of {}: the input changed since the merge: hash {} expected, {} found",
                       clip(told.at("tensor").get<std::string>(), 200),
                       clip(told.at("model").get<std::string>(), 200), shown(told.at("hash")),
                       found),
           i);
    };
    for (std::size_t k = 0; k < job.operands.size(); ++k) {
      const Json& source = entry.at("sources").at(k);
      if (lands(job.operands[k])) check(source, outcome.inputs[k]);
      for (std::size_t p = 0; p < outcome.ingredients[k].size(); ++p) {
        check(source.at("ingredients").at(p), outcome.ingredients[k][p]);
      }
    }
    return intact;
  }

  // How much of a tensor was looked at again.
  struct Seen {
    bool facts = false;   // what its formula measures
    bool whole = false;   // every element
    bool judged = false;  // as a whole
    bool exact = true;    // what was found is of the exact class
  };

  // What is wrong is added to what is known of a tensor that `changed`, if it did.
  Seen recompute(const Job& job, File& file, std::uint64_t place, std::size_t i, Outcome& outcome,
                 std::string& changed) {
    const auto tell_of = [&](const char* kind, const std::string& text) {
      const std::string start = clip(told_[i].info.name, 200) + ": ";
      if (changed.empty()) return find(kind, text, i);
      changed += "; " + (text.starts_with(start) ? text.substr(start.size()) : text);
    };
    for (std::size_t k = 0; k < job.operands.size(); ++k) {
      const Operand& operand = job.operands[k];
      if (!operand.derived) continue;
      const Json& source = told_[i].entry->at("sources").at(k);
      const std::string told = source.contains("found") ? source.at("found").dump() : std::string();
      const auto judged = operand.derived->judge(*plan_, output(), job.output.name, told);
      if (!judged) continue;
      if (!judged->empty()) tell_of("decompositions that miss too much", *judged);
      outcome.found[k] = told;
      outcome.facts = math::begin(job.work.rule);
      const std::lock_guard lock(mutex_);
      ++verdicts_.judged;
      return {true, true, true, true};
    }
    const math::Rule& rule = job.work.rule;
    const bool large = rule.elements > kWhole && !options_.all;
    const bool pass = passed_.contains(&job);
    std::optional<math::Facts> facts;
    if (pass) facts = facts_told(rule, *told_[i].entry);
    {
      const std::lock_guard lock(mutex_);
      verdicts_.elements += rule.elements;
      if (large) ++(pass && !facts ? verdicts_.passed : verdicts_.sampled);
      if (facts) ++verdicts_.taken;
    }
    // What a sample does not count can be counted where it may be there at all.
    Measurements known{outcome.facts, {}};
    const auto recount = [&] { outcome.findings = examine(*plan_, job, known, file, place); };
    const bool cuts = job.work.overflow == math::Overflow::saturate &&
                      (job.output.dtype == Dtype::f8_e4m3 || job.output.dtype == Dtype::f8_e5m2);
    if (pass) {
      if (outcome.findings.nonfinite.count > 0 && !cuts) recount();
      if (!facts) return {};
    }
    Proof proof = prove(*plan_, job, file, place, options_.all, salt_, facts);
    if (!proof.finding.empty()) {
      tell_of("tensors with wrong elements", proof.finding);
    }
    if (pass) {
      const std::lock_guard lock(mutex_);
      verdicts_.recomputed += proof.elements;
      verdicts_.exact += proof.exact;
      verdicts_.sample = proof.elements;
      return {};
    }
    known = std::move(proof.known);
    outcome.facts = known.facts;
    outcome.tally = proof.tally;
    if (proof.whole) {
      outcome.found = std::move(proof.found);
      outcome.findings = proof.findings;
    } else if (outcome.findings.nonfinite.count > 0 || cuts) {
      recount();
    }
    const std::lock_guard lock(mutex_);
    verdicts_.recomputed += proof.elements;
    verdicts_.exact += proof.exact;
    if (!proof.whole) verdicts_.sample = proof.elements;
    return {true, proof.whole, false, exact(*plan_, job)};
  }

  // The tensors as a checkpoint, for those that are judged with others of their module.
  const Checkpoint& output() {
    std::call_once(opened_, [&] {
      output_.emplace(Checkpoint::open(disk_, out_ + "/" + plan_->shards.front().file, out_));
    });
    return *output_;
  }

  // Every field of an entry is what the plan and the second path say. What a sample cannot tell is
  // taken from the entry, if it can be true.
  void compare_entry(const Job& job, const Json& entry, Outcome& outcome, const Seen& seen,
                     std::size_t i) {
    const math::Rule& rule = job.work.rule;
    const bool merge = job.action == Action::merge;
    if (merge && !seen.facts) outcome.facts = math::begin(rule);
    bool partial = false;  // some count is not known
    std::vector<bool> counted(static_cast<std::size_t>(std::max(rule.sources, 0)), true);
    for (int s = 0; merge && !seen.whole && s < rule.sources; ++s) {
      const std::uint64_t kept = math::kept(rule, s);
      counted[static_cast<std::size_t>(s)] = kept != math::kUncounted;
      outcome.tally.kept[s] = kept == math::kUncounted ? 0 : kept;
    }
    Json expected = describe(*plan_, job, outcome);
    const auto adopt = [&](Json& ours, const Json& theirs, const char* key) {
      if (!ours.contains(key) || !theirs.contains(key) || !alike(ours[key], theirs[key])) return;
      ours[key] = theirs[key];
      partial = true;
    };
    for (std::size_t k = 0; merge && !seen.judged && k < job.operands.size(); ++k) {
      Json& ours = expected["sources"][k];
      const Json& theirs = entry.at("sources").at(k);
      const std::size_t skip = rule.base ? 1 : 0;
      if (!seen.facts) adopt(ours, theirs, "measured");
      if (!seen.whole && k >= skip && !counted[k - skip] && sums_up(theirs, rule.elements)) {
        adopt(ours, theirs, "kept");
        adopt(ours, theirs, "dropped");
      }
      if (job.operands[k].derived && theirs.contains("found") &&
          (seen.whole
               ? !seen.exact && ours.contains("found") && near(ours["found"], theirs.at("found"))
               : is_account(theirs.at("found")))) {
        ours["found"] = theirs.at("found");
        partial = true;
      }
    }
    if (!seen.facts) adopt(expected, entry, "measured");
    if (merge && !seen.whole) {
      adopt(expected, entry, "conflicts");
      adopt(expected, entry, "largest_change");
    }
    // Only the formula tells which values were cut.
    if (merge && !seen.facts) {
      if (expected.contains("nonfinite") && entry.contains("nonfinite")) {
        adopt(expected["nonfinite"], entry.at("nonfinite"), "made");
      }
      if (entry.contains("saturated") && is_count(entry.at("saturated"), rule.elements)) {
        const std::string hash = expected["hash"];
        expected.erase("hash");  // which is the last
        expected["saturated"] = entry.at("saturated");
        expected["hash"] = hash;
        partial = true;
      }
    }
    if (const auto what = difference(expected, entry, false)) {
      find("entries that are not what the recipe makes",
           fmt::format("{}: the recipe and the receipt differ in {}", clip(job.output.name, 200),
                       words(*what)),
           i);
    }
    if (!partial) return;
    const std::lock_guard lock(mutex_);
    ++verdicts_.uncounted;
  }

  // True if two values that need not be equal are of one form: whole numbers, or numbers in
  // hexadecimal.
  static bool alike(const Json& ours, const Json& theirs) {
    if (ours.is_object()) {
      bool all = theirs.is_object() && theirs.size() == ours.size();
      for (const auto& [key, value] : ours.items()) {
        all = all && theirs.contains(key) && alike(value, theirs.at(key));
      }
      return all;
    }
    if (ours.is_array()) {
      bool all = theirs.is_array() && theirs.size() == ours.size();
      for (std::size_t i = 0; all && i < ours.size(); ++i) all = alike(ours[i], theirs[i]);
      return all;
    }
    if (ours.is_number()) return theirs.is_number_unsigned();
    if (!theirs.is_string()) return false;
    const auto& text = theirs.get_ref<const std::string&>();
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    return end == text.c_str() + text.size() &&
           (fmt::format("{:a}", value) == text ||
            fmt::format("{:a}", static_cast<float>(value)) == text);
  }

  static bool sums_up(const Json& source, std::uint64_t elements) {
    const auto count = [&](const char* key) {
      const bool sound = source.contains(key) && source.at(key).is_number_unsigned();
      return sound ? source.at(key).get<std::uint64_t>() : elements + 1;
    };
    return count("kept") <= elements && count("dropped") == elements - count("kept");
  }

  static bool is_count(const Json& count, std::uint64_t elements) {
    return count.is_object() && count.size() == 2 && count.contains("count") &&
           count.contains("first") && count.at("count").is_number_unsigned() &&
           count.at("first").is_number_unsigned() &&
           count.at("count").get<std::uint64_t>() - 1 < elements &&
           count.at("first").get<std::uint64_t>() < elements;
  }

  // What adapters' work may have found (Derived::found).
  static bool is_account(const Json& found) {
    if (!found.is_object() || found.empty()) return false;
    for (const auto& [key, value] : found.items()) {
      const bool known = key == "skipped" || key == "change" || key == "largest" ||
                         key == "weight" || key == "survived";
      if (!known || !value.is_number()) return false;
    }
    return true;
  }

  // The same account, from bytes of the bounded class.
  static bool near(const Json& ours, const Json& theirs) {
    if (!is_account(ours) || !is_account(theirs) || ours.size() != theirs.size()) return false;
    constexpr double kBounded = 1e-3;
    for (const auto& [key, value] : ours.items()) {
      if (!theirs.contains(key)) return false;
      const double a = value.get<double>(), b = theirs.at(key).get<double>();
      if (!(std::fabs(a - b) <= kBounded * std::fabs(a))) return false;
    }
    return true;
  }

  // ---- the rest of the receipt

  void check_rest() {
    for (std::size_t j = 0; j < plan_->jobs.size(); ++j) {
      const std::string name = printed(plan_->jobs[j].output.name);
      if (by_name_.contains(name)) continue;
      find("tensors that the receipt does not name",
           fmt::format("{}: the recipe makes this tensor, but the receipt does not name it",
                       clip(name, 200)),
           j);
    }
    std::vector<std::pair<std::string, Digest>> files;
    for (const Companion& companion : plan_->companions) {
      const auto at = hashes_.find(printed(companion.name));
      files.emplace_back(companion.name, at == hashes_.end() ? Digest{} : at->second);
    }
    if (told_.size() != plan_->jobs.size()) return;  // which was found
    const Lines lines = [&](std::size_t i) { return print_line(*told_[i].entry); };
    const int same =
        options_.allow_unchanged || plan_->options.allow_unchanged ? -1 : unchanged(*plan_, lines);
    if (same >= 0) {
      find("", fmt::format("the merge changed nothing: every tensor equals {}'s bit for bit "
                           "(--allow-unchanged if that is meant)",
                           plan_->models[static_cast<std::size_t>(same)].ref.text));
    }
    Json expected = describe_frame(*plan_, lines, files);
    expected["unused"] = describe_unused(*plan_);
    for (const auto& [key, value] : expected.items()) {
      if (key == "tensors") continue;
      if (!receipt_.contains(key)) {
        find("fields of the receipt", fmt::format("the receipt has no {}", key));
      } else if (const auto what = difference(value, receipt_[key], false)) {
        find("fields of the receipt",
             fmt::format("the recipe and its inputs do not give the receipt's {}",
                         words(key + *what)));
      }
    }
    for (const auto& [key, value] : receipt_.items()) {
      if (expected.contains(key)) continue;
      find("fields of the receipt",
           fmt::format("the receipt has an unexpected field {}", clip(key)));
    }
    if (!shortfalls_.none() || expected.size() != receipt_.size()) return;
    auto theirs = receipt_.begin();
    for (auto ours = expected.begin(); ours != expected.end(); ++ours, ++theirs) {
      if (ours.key() == theirs.key()) continue;
      find("", fmt::format("the receipt has the field {} where {} is expected", clip(theirs.key()),
                           ours.key()));
      return;
    }
  }

  // The first place at which two values differ, as ".key[2].other"; keys come in one order.
  // `open`: objects of theirs may have more keys, in any order.
  static std::optional<std::string> difference(const Json& ours, const Json& theirs, bool open) {
    if (ours.is_object() && theirs.is_object()) {
      for (const auto& [key, value] : ours.items()) {
        if (!theirs.contains(key)) return "." + key;
        if (const auto what = difference(value, theirs.at(key), open)) return "." + key + *what;
      }
      if (open) return std::nullopt;
      auto our = ours.begin();
      for (auto their = theirs.begin(); their != theirs.end(); ++their) {
        if (our == ours.end() || our.key() != their.key()) return "." + clip(their.key());
        ++our;
      }
      return std::nullopt;
    }
    if (ours.is_array() && theirs.is_array()) {
      for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
        if (const auto what = difference(ours[i], theirs[i], open)) {
          return fmt::format("[{}]{}", i + 1, *what);
        }
      }
      if (ours.size() == theirs.size()) return std::nullopt;
      return fmt::format(" (number {})", std::min(ours.size(), theirs.size()) + 1);
    }
    const auto text = [](const Json& value) {
      return value.dump(-1, ' ', false, Json::error_handler_t::replace);
    };
    if (text(ours) == text(theirs)) return std::nullopt;
    return fmt::format(" ({} expected, {} found)", shown(ours), shown(theirs));
  }

  // "weight of source 2 (...)" for "sources[2].weight (...)".
  static std::string words(const std::string& place) {
    const std::string path = place.starts_with(".") ? place.substr(1) : place;
    const std::string start = "sources[";
    if (!path.starts_with(start)) return path;
    const std::size_t close = path.find(']');
    const std::string number = path.substr(start.size(), close - start.size());
    std::string rest = path.substr(close + 1);
    if (!rest.starts_with(".")) return path;
    const std::size_t end = std::min(rest.find(' '), rest.size());
    return fmt::format("{} of source {}{}", rest.substr(1, end - 1), number, rest.substr(end));
  }

  Disk& disk_;
  const std::string& out_;
  const VerifyOptions& options_;
  const Watcher& watcher_;
  std::uint64_t salt_ = 0;              // nobody knows beforehand what a run will look at
  std::mutex mutex_;                    // guards verdicts_, done_
  std::uint64_t done_ = 0, total_ = 0;  // bytes, as the watcher is told
  Verdicts verdicts_;
  Shortfalls shortfalls_;
  Json receipt_;
  std::vector<Told> told_;
  std::unordered_map<std::string, std::size_t> by_name_;  // of told_
  std::map<std::string, Outline> outlines_;               // by shard
  std::map<std::string, std::string> names_;              // of files that are there, as printed
  std::map<std::string, Digest> hashes_;                  // of files beside the weights
  std::set<std::string> changed_;  // of them, other than the receipt says or missing
  std::optional<Plan> plan_;
  std::unordered_map<std::string, std::size_t> jobs_;  // of the plan, as printed
  std::set<const Job*> passed_;                        // that are not measured again
  std::optional<Digests> digests_;
  std::optional<Error> obstacle_;  // why the inputs cannot be looked at
  std::once_flag opened_;
  std::optional<Checkpoint> output_;
};

}  // namespace

double Verdicts::detection(std::uint64_t one_in) const {
  const auto large = static_cast<double>(sampled + passed);
  if (large == 0) return 1;
  const double missed = std::pow(1 - 1 / static_cast<double>(one_in), static_cast<double>(sample));
  return static_cast<double>(sampled) / large * (1 - missed);
}

double Verdicts::run(double probability) const {
  const auto large = static_cast<double>(sampled + passed);
  if (large == 0) return 0;
  const double needed = probability * large / static_cast<double>(sampled);
  if (!(needed < 1)) return 1;
  return 1 - std::pow(1 - needed, 1 / static_cast<double>(kPlaces));
}

Verdicts verify(Disk& disk, const std::string& out, const VerifyOptions& options,
                const Watcher& watcher) {
  return Verifier(disk, out, options, watcher).go();
}

}  // namespace ingot
