// merge(): reads, visits and writes chunks in bounded memory (docs/architecture.md, "The run").
//
// Three roles. The caller's thread is the reader: it lends memory, issues reads and hands landed
// chunks to the crew. The crew hashes, measures and applies. The writer puts output on disk.

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>

#include <fmt/format.h>
#include <malloc.h>

#include "engine/crew.hpp"
#include "engine/finite.hpp"
#include "engine/flight.hpp"
#include "engine/measure.hpp"
#include "engine/memory.hpp"
#include "engine/output.hpp"
#include "engine/staging.hpp"
#include "engine/supply.hpp"
#include "engine/writer.hpp"
#include "ingot/linalg.hpp"
#include "ingot/merge.hpp"
#include "store/ring.hpp"

namespace ingot {
namespace {

using Clock = std::chrono::steady_clock;

// Finished tensors become durable, and so resumable, at this interval.
constexpr std::chrono::seconds kJournal{5};
// Most tensors that are worked on from the page cache at once: each has a window per operand.
constexpr std::size_t kMapped = 12;
// Most tensors in work at once: their states have some 8 KiB each, which the ceiling has no other
// count of.
constexpr std::size_t kFlights = 1024;
// Reads that are too small to say how a run read.
constexpr std::uint64_t kNoted = std::uint64_t{64} << 10;
// Storage is probed only where the run is long enough to be worth a hundredth of a second.
constexpr std::uint64_t kProbeBytes = std::uint64_t{64} << 20;

class Run {
 public:
  Run(Backend& backend, const Plan& plan, Output& output, const MergeOptions& options,
      const Watcher& watcher, Report& report, Digests::Map known)
      : backend_(backend),
        plan_(plan),
        output_(output),
        options_(options),
        watcher_(watcher),
        report_(report),
        staging_(divide(plan, options)),
        threads_(staging_.crowd.threads),
        scratch_(static_cast<std::size_t>(threads_)),
        digests_(plan, std::move(known)),
        arena_(backend, staging_.inputs),
        outs_(backend, staging_.outputs),
        ring_(make_ring(kReadDepth, true)),
        writer_(true, [this](std::exception_ptr error) { crew_.fail(std::move(error)); }),
        crew_(threads_) {
    threads_ = crew_.threads();
    crew_.on_failure([this] { stop(); });
    for (const auto& [joint, bytes] : staging_.joints) {
      joint->allow(bytes);
      decomposes_ = decomposes_ || joint->work() > 0;
    }
    if (const auto& [working, available] = staging_.crowd;
        options.threads <= 0 && working < available) {
      report.warnings.push_back(
          fmt::format("only {} of {} threads work, because --memory {} MiB is too small for more",
                      working, available, options.memory >> 20));
    }
  }

  // Runs every job that a former run did not finish.
  void go() {
    const auto begin = Clock::now();
    weigh();
    for (const auto& [job, line] : output_.finished()) {
      notes_.add(Json::parse(line));
      ++finished_;
      ++admitted_;
      ++report_.resumed;
      done_bytes_ += static_cast<std::uint64_t>(weights_[job]);
      const std::uint64_t written = plan_.jobs[job].output.bytes();
      report_.bytes_written -= std::min(report_.bytes_written, written);
      report_.bytes_read -= std::min(report_.bytes_read, job_bytes(job) - written);
    }
    tell({});
    auto flushed = Clock::now();
    try {
      for (std::size_t job = 0; job < plan_.jobs.size(); ++job) {
        if (output_.finished().contains(job)) continue;
        if (crew_.failed()) break;
        admit(job);
        if (Clock::now() - flushed > kJournal || output_.full()) {
          output_.flush();
          flushed = Clock::now();
        }
      }
      drain();
    } catch (...) {
      crew_.fail(std::current_exception());
    }
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return crew_.failed() || finished_ == plan_.jobs.size(); });
    lock.unlock();
    crew_.check();
    const double all = std::chrono::duration<double>(Clock::now() - begin).count() * threads_;
    report_.threads = threads_;
    report_.busy = all > 0 ? std::min(crew_.seconds() / all, 1.0) : 0;
    for (std::string& warning : notes_.warnings()) report_.warnings.push_back(std::move(warning));
    output_.flush();
  }

  // After a failure: finished tensors can still be resumed.
  void rescue() noexcept {
    try {
      output_.flush();
    } catch (...) {  // the first error is on its way already
    }
  }

 private:
  // A chunk whose reads are under way.
  struct Load {
    std::shared_ptr<Flight> flight;
    std::uint32_t chunk = 0;
    std::size_t missing = 0;
  };

  [[nodiscard]] std::uint64_t job_bytes(std::size_t job) const {
    std::uint64_t sum = plan_.jobs[job].output.bytes();
    for (const Operand& o : plan_.jobs[job].operands) {
      sum += entry_of(o).info.bytes();
    }
    return sum;
  }

  [[nodiscard]] const Entry& entry_of(const Operand& o) const { return ingot::entry_of(plan_, o); }
  [[nodiscard]] File& file_of(const Operand& o) const { return ingot::file_of(plan_, o); }

  [[nodiscard]] std::uint64_t chunk_bytes(const Flight& flight, std::uint32_t chunk) const {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < flight.job().operands.size(); ++i) {
      for (const std::uint64_t bytes :
           {flight.input_bytes(i, chunk), flight.value_bytes(i, chunk)}) {
        if (bytes > 0) sum += slot_bytes(bytes);
      }
    }
    return sum;
  }

  // Bytes that all inputs of a tensor take, chunk by chunk.
  [[nodiscard]] std::uint64_t staged_bytes(const Flight& flight) const {
    std::uint64_t sum = 0;
    for (std::uint32_t c = 0; c < flight.chunk_count(); ++c) sum += chunk_bytes(flight, c);
    return sum;
  }

  [[nodiscard]] Lodging lodge(const Job& job, bool warm) const {
    if (warm && !backend_.staged() && mappable(plan_, job, options_.storage)) {
      return Lodging::mapped;
    }
    if (!measured_first(job)) return Lodging::passing;
    if (backend_.staged()) return Lodging::resident;
    // Every chunk takes up to two pages more.
    const std::uint64_t pages =
        2 * kPage * 2 * job.operands.size() * (job.work.rule.elements / kChunk + 1);
    return input_bytes(plan_, job) + pages <= arena_.size() ? Lodging::held : Lodging::passing;
  }

  void admit(std::size_t index) {
    const Job& job = plan_.jobs[index];
    await_place();
    const bool warm = hot(plan_, job, options_.storage);
    const Lodging lodging = lodge(job, warm);
    if (lodging == Lodging::mapped) await_turn(job, index);
    // Shared by the reader, the visits and writes of its chunks; the last of them lets it go.
    auto flight = std::make_shared<Flight>(plan_, index, lodging, backend_,
                                           options_.hash ? &digests_ : nullptr);
    if (flight->chunk_count() == 0) {
      finish(*flight);
      return;
    }
    // Also what was read from the page cache is written past it: pages taken from a virtual
    // machine's host for the first time cost more than the disk (bench/README.md, "store").
    flight->past_cache = options_.storage != MergeOptions::Storage::buffered &&
                         output_.shard(job.shard).direct() >= 0;
    std::uint64_t working = 0;
    for (const Operand& o : job.operands) working += o.derived ? o.derived->memory() : 0;
    if (working > 0) flight->working = take(working);
    if (crew_.failed()) return;
    switch (flight->lodging()) {
      case Lodging::mapped:
        note_path("page cache, mapped");
        for (const Operand& o : job.operands) {
          flight->windows.emplace_back(file_of(o), entry_of(o).offset, entry_of(o).info.bytes());
        }
        keep(flight);
        return;
      case Lodging::held:
        hold(flight, warm);
        return;
      case Lodging::passing:
      case Lodging::resident:
        pass(flight, warm);
        return;
    }
  }

  // Waits while too many jobs are in work, and hands out what lands meanwhile; counts one more.
  void await_place() {
    for (;;) {
      std::unique_lock lock(mutex_);
      const auto free = [this] { return crew_.failed() || admitted_ - finished_ < kFlights; };
      if (ring_->pending() == 0) changed_.wait(lock, free);
      if (free()) {
        ++admitted_;
        return;
      }
      lock.unlock();
      reap();
    }
  }

  // Waits while too many jobs work on the page cache, then counts this one.
  void await_turn(const Job& job, std::size_t index) {
    const std::uint64_t bytes = measured_first(job) ? input_bytes(plan_, job) : 0;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return crew_.failed() || mapped_.empty() ||
             (mapped_.size() < kMapped && windows_ + bytes <= staging_.windows);
    });
    mapped_.emplace(index, bytes);
    windows_ += bytes;
  }

  void post(const std::shared_ptr<Flight>& flight) {
    const auto chunks = flight->chunks();  // a copy: the pass may end while it is being posted
    for (const std::uint32_t chunk : chunks) post(flight, chunk);
  }

  void post(const std::shared_ptr<Flight>& flight, std::uint32_t chunk) {
    crew_.post(flight->index(),
               [this, flight, chunk](int worker) { visit(flight, chunk, worker); });
  }

  // Posts a mapped tensor. Its pages count against the ceiling while they are resident: to the end
  // if two such tensors fit, else until their chunk is applied, and if not even one fits, until
  // their chunk is visited.
  void keep(const std::shared_ptr<Flight>& flight) {
    const std::uint64_t all = staged_bytes(*flight);
    const std::uint64_t output = flight->past_cache ? slot_bytes(flight->output_bytes(0)) : 0;
    flight->lasting = all + output <= arena_.size() / 2;
    if (!flight->lasting && (flight->applying() || all > arena_.size())) {
      pass(flight, true);
      return;
    }
    Extent room = take(all, true);
    if (crew_.failed()) return;
    for (std::uint32_t c = 0; c < flight->chunk_count(); ++c) {
      flight->in[c] = room.split(round_up(chunk_bytes(*flight, c), kPage));
    }
    if (!flight->past_cache || !flight->applying()) {
      post(flight);
      return;
    }
    // Written in its first pass: the reader waits for room, so that no worker does.
    const auto chunks = flight->chunks();
    for (const std::uint32_t c : chunks) {
      flight->out[c] = take(slot_bytes(flight->output_bytes(c)));
      if (crew_.failed()) return;
      post(flight, c);
    }
  }

  // Allocates all inputs of the tensor as one extent, so that it cannot starve; chunks release
  // their parts.
  void hold(const std::shared_ptr<Flight>& flight, bool warm) {
    Extent all = take(staged_bytes(*flight));
    const auto chunks = flight->chunks();
    for (const std::uint32_t c : chunks) {
      if (crew_.failed()) return;
      flight->in[c] = all.split(chunk_bytes(*flight, c));
      load(flight, c, warm);
    }
  }

  // Chunk by chunk through the arena or the windows, pass after pass.
  void pass(const std::shared_ptr<Flight>& flight, bool warm) {
    const bool mapped = flight->lodging() == Lodging::mapped;
    flight->stepped = true;
    while (!flight->chunks().empty()) {
      const auto chunks = flight->chunks();
      const bool last = flight->applying();
      for (const std::uint32_t c : chunks) {
        if (crew_.failed()) return;
        // In one piece: memory in two could be there and yet not fit, and nobody else would give
        // way. Windows need no place.
        const std::uint64_t input = flight->reads() ? chunk_bytes(*flight, c) : 0;
        const std::uint64_t output =
            last && flight->past_cache ? slot_bytes(flight->output_bytes(c)) : 0;
        if (mapped) {
          flight->in[c] = take(input, true);
          if (output > 0) flight->out[c] = take(output);
        } else if (input + output > 0) {
          Extent both = take(input + output);
          if (both && input > 0) flight->in[c] = both.split(input);
          flight->out[c] = std::move(both);
        }
        if (crew_.failed()) return;
        if (flight->reads() && !mapped) {
          load(flight, c, warm);
        } else {
          post(flight, c);
        }
      }
      if (last) return;
      drain();
      {
        const std::lock_guard lock(mutex_);
        awaited_ = flight;
      }
      if (!crew_.failed()) flight->await();
      {
        const std::lock_guard lock(mutex_);
        awaited_ = nullptr;
      }
      if (crew_.failed()) return;
      flight->advance();
    }
  }

  // Takes memory, or room for `mapped` bytes; meanwhile, reads that are complete are still handed
  // out.
  Extent take(std::uint64_t bytes, bool mapped = false) {
    if (bytes > arena_.size()) {  // would wait for ever
      fail(Code::internal,
           fmt::format("{} bytes of staging asked, {} there", bytes, arena_.size()));
    }
    for (;;) {
      Extent extent = mapped ? arena_.try_count(bytes) : arena_.try_take(bytes);
      if (extent || crew_.failed()) return extent;
      if (ring_->pending() == 0) return mapped ? arena_.count(bytes) : arena_.take(bytes);
      reap();
    }
  }

  void load(const std::shared_ptr<Flight>& flight, std::uint32_t chunk, bool warm) {
    const Job& job = flight->job();
    const std::uint64_t token = next_token_++;
    Load& record = loads_[token];
    record = {flight, chunk, 1};
    std::byte* slot = flight->in[chunk].data();
    for (std::size_t i = 0; i < job.operands.size(); ++i) {
      const Operand& o = job.operands[i];
      const std::uint64_t bytes = flight->input_bytes(i, chunk);
      if (bytes == 0) continue;
      if (flight->computed(i)) {
        supply(plan_, o, job.action == Action::merge, flight->first(chunk), {slot, bytes});
      } else {
        const std::uint64_t begin = entry_of(o).offset + flight->input_offset(i, chunk);
        File& file = file_of(o);
        const bool direct = !warm && options_.storage != MergeOptions::Storage::buffered &&
                            file.direct() >= 0 && bytes >= kPage;
        if (bytes >= kNoted || report_.storage.empty()) {
          note_path(direct ? "direct I/O" : "page cache, read");
        }
        Transfer transfer{&file, begin, {slot + begin % kPage, bytes}, false, false, token};
        if (direct) {
          const std::uint64_t from = begin / kPage * kPage;
          transfer = {&file, from, {slot, round_up(begin + bytes, kPage) - from},
                      false, true, token};
        }
        ++record.missing;
        ring_->submit(transfer);
      }
      slot += slot_bytes(bytes);
    }
    landed(token);
    while (ring_->pending() >= 2 * kReadDepth) reap();
  }

  void reap() {
    const Completion completion = ring_->wait();
    if (completion.error) std::rethrow_exception(completion.error);
    landed(completion.token);
  }

  void landed(std::uint64_t token) {
    const auto at = loads_.find(token);
    if (--at->second.missing > 0) return;
    post(at->second.flight, at->second.chunk);
    loads_.erase(at);
  }

  void drain() {
    while (ring_->pending() > 0) reap();
  }

  // The crew's part: one chunk of one pass.
  void visit(const std::shared_ptr<Flight>& flight, std::uint32_t chunk, int worker) {
    const Job& job = flight->job();
    const bool applying = flight->applying();
    std::vector<const std::byte*> inputs(job.operands.size());
    std::vector<std::byte*> values(job.operands.size());
    if (flight->lodging() == Lodging::mapped) {
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        inputs[i] = flight->windows[i].bytes().data() + flight->input_offset(i, chunk);
      }
    } else if (flight->reads()) {
      std::byte* slot = flight->in[chunk].data();
      for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (flight->input_bytes(i, chunk) == 0) continue;
        const std::uint64_t begin =
            entry_of(job.operands[i]).offset + flight->input_offset(i, chunk);
        inputs[i] = slot + (flight->computed(i) ? 0 : begin % kPage);
        slot += slot_bytes(flight->input_bytes(i, chunk));
      }
      for (std::size_t i = 0; i < values.size(); ++i) {
        if (flight->value_bytes(i, chunk) == 0) continue;
        values[i] = slot;
        slot += slot_bytes(flight->value_bytes(i, chunk));
      }
    }
    File& shard = output_.shard(job.shard);
    const std::uint64_t place = output_.place(job);
    try {
      if (!applying) {
        flight->visit(chunk, inputs.data(), values.data(), nullptr, {});
      } else if (flight->past_cache) {
        // Room that the writer gives back: a worker waits for nothing but the disk here.
        Extent& room = flight->out[chunk];
        if (room.data() == nullptr) room = outs_.take(slot_bytes(flight->output_bytes(chunk)));
        if (room.data() == nullptr) return;  // the run has failed
        const std::uint64_t begin = place + flight->output_offset(chunk);
        std::byte* target = room.data() + begin % kPage;
        flight->visit(chunk, inputs.data(), values.data(), target, {});
        writer_.push({&shard, begin, {target, flight->output_bytes(chunk)}, [this, flight, chunk] {
                        flight->out[chunk] = {};
                        written(*flight);
                      }});
      } else {
        auto& scratch = scratch_[static_cast<std::size_t>(worker)];
        if (scratch.size() < flight->piece_bytes()) scratch.resize(flight->piece_bytes());
        flight->visit(chunk, inputs.data(), values.data(), scratch.data(),
                      [&](std::uint64_t at, std::span<const std::byte> piece) {
                        write_exact(shard, place + at, piece);
                      });
      }
    } catch (Error& error) {
      throw error.add(fmt::format("merging {}", job.output.name));
    }
    for (std::size_t i = 0; i < flight->windows.size(); ++i) {
      if (!flight->windows[i].torn()) continue;
      fail(Code::io,
           fmt::format("{}: the file was cut short while {} was read from it",
                       file_of(job.operands[i]).path(), entry_of(job.operands[i]).info.name));
    }
    if ((applying || flight->stepped) && !flight->lasting) {
      for (std::size_t i = 0; i < flight->windows.size(); ++i) {
        flight->windows[i].leave(flight->input_offset(i, chunk), flight->input_bytes(i, chunk));
      }
      flight->in[chunk] = {};
    }
    if (applying) {
      advance_progress(*flight, chunk);
      if (!flight->past_cache) written(*flight);
    }
    if (!flight->visited()) return;
    if (flight->stepped) {
      flight->signal();
      return;
    }
    flight->advance();
    post(flight);
  }

  // One more chunk of a tensor is with the system; after the last, so is the tensor.
  void written(Flight& flight) {
    if (flight.unwritten.fetch_sub(1) == 1) finish(flight);
  }

  void finish(Flight& flight) {
    const Outcome outcome = flight.outcome();
    refuse(plan_, flight.job(), outcome.findings);  // before the tensor counts as done
    const Json entry = describe(plan_, flight.job(), outcome);
    output_.done(flight.index(), print_line(entry));
    const std::lock_guard lock(mutex_);
    notes_.add(entry);
    ++finished_;
    if (const auto mapped = mapped_.extract(flight.index())) windows_ -= mapped.mapped();
    changed_.notify_all();
  }

  // First error: everybody who waits must wake.
  void stop() {
    arena_.stop();
    outs_.stop();
    const std::lock_guard lock(mutex_);
    if (awaited_) awaited_->signal();
    changed_.notify_all();
  }

  // What each job counts of all bytes: its output, and of its inputs, ingredients included, those
  // that no job before it has, nor the measuring pass.
  void weigh() {
    std::vector<std::vector<bool>> known;
    for (const Model& model : plan_.models) known.emplace_back(model.checkpoint.entries().size());
    weights_.reserve(plan_.jobs.size());
    for (const Job& job : plan_.jobs) {
      std::uint64_t sum = job.output.bytes();
      const auto add = [&](const Ingredient& tensor) {
        if (known[tensor.model][tensor.entry] || digests_.knows(tensor)) return;
        known[tensor.model][tensor.entry] = true;
        sum += plan_.models[tensor.model].checkpoint.entries()[tensor.entry].info.bytes();
      };
      for (const Operand& o : job.operands) {
        if (lands(o)) add({o.model, o.entry});
        if (!o.derived) continue;
        for (const Ingredient& tensor : o.derived->ingredients()) add(tensor);
      }
      weights_.push_back(sum);
      total_bytes_ += sum;
    }
  }

  // Counts a chunk and tells the watcher, about ten times a second.
  void advance_progress(const Flight& flight, std::uint32_t chunk) {
    // The chunks of a job together are its weight to the byte.
    const auto share = [&](std::uint64_t chunks) {
      return static_cast<std::uint64_t>(static_cast<long double>(weights_[flight.index()]) *
                                        static_cast<long double>(chunks) / flight.chunk_count());
    };
    done_bytes_.fetch_add(share(chunk + 1) - share(chunk));
    const std::int64_t now = Clock::now().time_since_epoch().count();
    std::int64_t last = told_.load();
    if (now - last < Clock::duration(std::chrono::milliseconds(100)).count() ||
        !told_.compare_exchange_strong(last, now)) {
      return;
    }
    tell(flight.job().output.name);
  }

  void tell(const std::string& tensor) {
    const std::lock_guard lock(watching_);
    if (!watcher_) return;
    watcher_({decomposes_ ? Phase::decompose : Phase::merge, done_bytes_, total_bytes_, tensor});
  }

  void note_path(const std::string& path) {
    if (report_.storage.find(path) != std::string::npos) return;
    report_.storage += report_.storage.empty() ? path : " + " + path;
  }

  Backend& backend_;
  const Plan& plan_;
  Output& output_;
  const MergeOptions& options_;
  const Watcher& watcher_;
  Report& report_;
  const Staging staging_;
  int threads_;
  bool decomposes_ = false;  // some of the results are not there yet
  Notes notes_;
  std::mutex mutex_;  // guards notes_, finished_, mapped_, windows_, awaited_
  std::condition_variable changed_;
  std::size_t finished_ = 0, admitted_ = 0;      // jobs; those of a former run count as both
  std::map<std::size_t, std::uint64_t> mapped_;  // jobs worked on from the page cache, and their
  std::uint64_t windows_ = 0;                    // bytes if they are measured first; their sum
  std::shared_ptr<Flight> awaited_;              // shared with the reader, which sleeps on it
  std::vector<std::uint64_t> weights_;           // by job
  std::uint64_t total_bytes_ = 0;                // their sum
  std::atomic<std::uint64_t> done_bytes_ = 0;
  std::atomic<std::int64_t> told_ = 0;
  std::mutex watching_;
  std::uint64_t next_token_ = 0;
  std::vector<std::vector<std::byte>> scratch_;  // by worker: one piece of output
  Digests digests_;
  // In the order in which they may go: threads first, reads under way before the memory they fill.
  Arena arena_, outs_;
  std::map<std::uint64_t, Load> loads_;
  std::unique_ptr<Ring> ring_;
  Writer writer_;
  Crew crew_;
};

// Bytes per second of a direct read from an input that is not in the page cache, or 0.
double probe(const Plan& plan) {
  if (plan.bytes_in + plan.bytes_out < 8 * kProbeBytes) return 0;
  for (const Job& job : plan.jobs) {
    for (const Operand& o : job.operands) {
      const Checkpoint& checkpoint = plan.models[o.model].checkpoint;
      File& file = checkpoint.file(checkpoint.entries()[o.entry].file);
      if (file.direct() < 0 || file.size() < kProbeBytes || resident(file, 0, kProbeBytes) > 0.5)
        continue;
      constexpr std::uint64_t kPiece = std::uint64_t{2} << 20;
      const std::unique_ptr<std::byte, void (*)(void*)> room(
          static_cast<std::byte*>(std::aligned_alloc(kPage, kPiece * 8)), std::free);
      const auto ring = make_ring(8, true);
      const auto begin = Clock::now();
      std::uint64_t at = 0;
      for (std::uint64_t i = 0; i < 8; ++i, at += kPiece) {
        ring->submit({&file, at, {room.get() + i * kPiece, kPiece}, false, true, i});
      }
      while (ring->pending() > 0) {
        const Completion c = ring->wait();
        if (c.error) std::rethrow_exception(c.error);
        if (at >= kProbeBytes) continue;
        ring->submit({&file, at, {room.get() + c.token * kPiece, kPiece}, false, true, c.token});
        at += kPiece;
      }
      return static_cast<double>(kProbeBytes) /
             std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
  return 0;
}

// True if the finished folder OUT is what the plan makes: the same recipe and options, and nothing
// that verify finds. The inputs are read for it: times and sizes are not in the folder.
bool holds(Disk& disk, const Plan& plan, const std::string& out, const MergeOptions& options,
           const Watcher& watcher) {
  const std::string recipe = out + "/recipe.yml";
  if (disk.kind(recipe) != Disk::Kind::file || read_text(disk, recipe) != plan.recipe.text) {
    return false;
  }
  const std::string path = fmt::format("{}/{}", out, kReceiptName);
  const Json receipt = parse_receipt(read_text(disk, path, std::uint64_t{1} << 32), path);
  const Json none = Json::array();
  const Json& tensors = receipt.contains("tensors") ? receipt.at("tensors") : none;
  if (!tensors.is_array() || tensors.size() != plan.jobs.size()) return false;
  const Json expected =
      describe_options(effective(plan, [&](std::size_t i) { return print_line(tensors[i]); }));
  if (receipt.value("options", Json()) != expected) return false;
  VerifyOptions verifying;
  verifying.allow_unchanged = true;
  verifying.root = plan.options.root;
  verifying.threads = options.threads;
  return verify(disk, out, verifying, watcher).findings.empty();
}

// Throws the first of the problems that stand in the way.
void refuse_problems(const Plan& plan) {
  std::size_t fatal = 0;
  for (const Problem& p : plan.problems) fatal += p.fatal ? 1 : 0;
  for (const Problem& p : plan.problems) {
    if (!p.fatal) continue;
    fail(p.code, fatal == 1 ? p.text
                            : fmt::format("{} ({} more: ingot plan shows all)", p.text, fatal - 1));
  }
}

// merge() of a plan in which nothing is open. `known` were read by the measuring pass.
Report write(Disk& disk, Backend& backend, const Plan& plan, Target& target, const std::string& out,
             const MergeOptions& options, const Watcher& watcher, Digests::Map known) {
  const auto begin = Clock::now();
  Report report;
  report.out = out;
  report.backend = backend.describe();
  for (const Problem& p : plan.problems) report.warnings.push_back(p.text);
  for (const Job& job : plan.jobs) ++(job.action == Action::merge ? report.merged : report.copied);
  report.tensors = plan.jobs.size();
  report.unused = plan.unused.size();
  report.bytes_read = plan.bytes_in;
  report.bytes_written = plan.bytes_out;

  const auto enter = [&](Phase phase) {
    if (watcher) watcher({phase, 0, 0, {}});
  };
  if (options.resume) enter(Phase::check);
  Output output(disk, plan, target, options);
  if (output.complete() && !holds(disk, plan, out, options, watcher)) output.replace_complete();
  if (output.complete()) {
    report.complete = true;
    report.resumed = report.tensors;
    report.bytes_read = report.bytes_written = 0;
    report.peak_memory = peak_memory();
    report.receipt = fmt::format("{}/{}", out, kReceiptName);
    report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    return report;
  }
#ifdef __GLIBC__
  // What planning needed goes back to the system before the run takes its own.
  ::malloc_trim(0);
#endif
  report.storage_rate = probe(plan);
  {
    Run run(backend, plan, output, options, watcher, report, std::move(known));
    try {
      run.go();
      enter(Phase::finish);
    } catch (Error& error) {
      // What is wrong with the inputs stays so: the next run is another one, and nothing that this
      // one leaves may be in its way.
      if (exit_code(error.code()) == exit_code(Code::format)) {
        output.drop();
        throw;
      }
      run.rescue();
      output.keep();
      throw error.add(fmt::format("--resume continues from {}", output.partial()));
    } catch (...) {
      run.rescue();
      output.keep();
      throw;
    }
  }
  const auto lines = [&](std::size_t job) { return output.line(job); };
  if (const int same = options.hash ? unchanged(plan, lines) : -1; same >= 0) {
    report.warnings.push_back(
        fmt::format("the merge changed nothing: every tensor equals {}'s bit for bit",
                    plan.models[static_cast<std::size_t>(same)].ref.text));
  }
  if (!plan.joints().empty()) report.solver = backend.solver().describe();
  for (std::size_t i = 0; i < plan.jobs.size(); ++i) {
    const auto& operands = plan.jobs[i].operands;
    if (std::any_of(operands.begin(), operands.end(), [](const Operand& o) { return o.derived; })) {
      report.derived.push_back(lines(i));
    }
  }
  try {
    output.publish();
  } catch (Error& error) {
    // The working folder is OUT now: what failed came after that, and only a power cut can tell.
    if (disk.kind(output.partial()) == Disk::Kind::absent &&
        disk.kind(report.out) == Disk::Kind::folder) {
      error.add(
          fmt::format("{} is complete and in place, but a power cut now may lose it", report.out));
    }
    throw;
  }
  report.receipt = out + "/" + kReceiptName;
  report.peak_memory = peak_memory();
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  return report;
}

}  // namespace

Report merge(Disk& disk, Backend& backend, const Plan& plan, const std::string& out,
             const MergeOptions& options, const Watcher& watcher) {
  refuse_problems(plan);
  (void)divide(plan, options);  // what it refuses is refused before anything is written
  if (!plan.open.empty()) {
    fail(Code::internal,
         fmt::format("a plan that is const cannot be merged, because the run has to "
                     "decide {}",
                     plan.open.front()));
  }
  Target target(disk, plan, out, options.force, options.sync);
  return write(disk, backend, plan, target, out, options, watcher, {});
}

Report merge(Disk& disk, Backend& backend, Plan& plan, const std::string& out,
             const MergeOptions& options, const Watcher& watcher) {
  if (plan.open.empty() || !plan.sound()) {
    return merge(disk, backend, std::as_const(plan), out, options, watcher);
  }
  const auto begin = Clock::now();
  // What stands in the way is said before hours of measuring.
  (void)divide(plan, options);
  check_target(disk, plan, out, options);
  Target target(disk, plan, out, options.force, options.sync);
  Digests::Map known = measure(disk, backend, plan, target, options, watcher);
  refuse_problems(plan);  // that only the numbers show
  (void)divide(plan, options);
  Report report = write(disk, backend, plan, target, out, options, watcher, std::move(known));
  report.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  return report;
}

}  // namespace ingot
