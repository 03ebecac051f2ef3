// One output tensor on its way: which pass it is in, where its chunks lie, what was learnt.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/once.hpp"
#include "engine/arena.hpp"
#include "engine/receipt.hpp"
#include "engine/supply.hpp"
#include "ingot/merge.hpp"
#include "measure/measure.hpp"
#include "store/window.hpp"

namespace ingot {

// Where a tensor's input bytes are while it is worked on.
enum class Lodging : std::uint8_t {
  mapped,    // windows on the page cache; chunk by chunk, or all of them until they are applied
  held,      // all of them in the arena; any chunk once it has landed
  passing,   // chunk by chunk through the arena, read again for every pass
  resident,  // chunk by chunk through the arena once, then in the backend's memory
};

// True if at least 95 % of a job's inputs are in the page cache, or `storage` says to read them
// from there.
[[nodiscard]] bool hot(const Plan& plan, const Job& job, MergeOptions::Storage storage);

// True if windows on files can stand for all inputs of a job. Tensors are copied from the page
// cache where all are small, unless `storage` says otherwise: a mapping is of whole units (Window),
// so that a model of 18 MB in tensors of 0.2 MB had 83 MiB resident where its pages were huge, and
// 28 MiB where it was read.
[[nodiscard]] bool mappable(const Plan& plan, const Job& job, MergeOptions::Storage storage);

// A job's state across its passes over the tensor. Jobs that need no measuring have one; others are
// measured first.
//
// visit() may run on many threads at once, for different chunks; the rest is called between passes.
class Flight {
 public:
  // Receives the output of an applying visit, piece by piece: offset in the tensor, bytes.
  using Emit = std::function<void(std::uint64_t at, std::span<const std::byte>)>;

  Flight(const Plan& plan, std::size_t job, Lodging lodging, Backend& backend, Digests* digests);

  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  [[nodiscard]] const Job& job() const noexcept { return job_; }
  [[nodiscard]] Lodging lodging() const noexcept { return lodging_; }
  [[nodiscard]] std::uint32_t chunk_count() const noexcept { return chunk_count_; }
  // Bytes of one chunk of an operand as it lands, and where they start in the operand; of the
  // output likewise. None for operands without a tensor of their own.
  [[nodiscard]] std::uint64_t input_bytes(std::size_t operand, std::uint32_t chunk) const noexcept;
  [[nodiscard]] std::uint64_t input_offset(std::size_t operand, std::uint32_t chunk) const noexcept;
  [[nodiscard]] std::uint64_t output_bytes(std::uint32_t chunk) const noexcept;
  [[nodiscard]] std::uint64_t output_offset(std::uint32_t chunk) const noexcept;
  // First element of a chunk; bytes of the largest piece an applying visit emits.
  [[nodiscard]] std::uint64_t first(std::uint32_t chunk) const noexcept;
  [[nodiscard]] std::uint64_t piece_bytes() const noexcept { return piece_ * out_width_; }
  [[nodiscard]] bool computed(std::size_t operand) const noexcept { return computed_[operand]; }
  // Bytes that a chunk of a derived operand's values takes beside what lands; 0 where they are made
  // piece by piece.
  [[nodiscard]] std::uint64_t value_bytes(std::size_t operand, std::uint32_t chunk) const noexcept;

  // The chunks the current pass visits; empty once the tensor is done.
  [[nodiscard]] const std::vector<std::uint32_t>& chunks() const noexcept { return chunks_; }
  // True in the pass that writes the output.
  [[nodiscard]] bool applying() const noexcept { return step_ == Step::apply; }
  // True if a visit of this pass needs the operands' bytes from the caller.
  [[nodiscard]] bool reads() const noexcept;

  // Takes part in the current pass with one chunk. `inputs` are the operands' bytes as they landed,
  // null where the backend holds them; `values` is the room for what is derived of them, by
  // operand. In the applying pass the output goes to `out`: the whole chunk of it, or, given
  // `emit`, one piece at a time.
  void visit(std::uint32_t chunk, const std::byte* const* inputs, std::byte* const* values,
             std::byte* out, const Emit& emit);

  // Counts a finished visit; true for the one that ends the pass.
  [[nodiscard]] bool visited() noexcept { return remaining_.fetch_sub(1) == 1; }
  // Between passes: concludes the last one and prepares the next.
  void advance();

  // After the last pass.
  [[nodiscard]] Outcome outcome();

  // Wakes the reader, which drives the passes of a stepped tensor, and waits for that.
  void signal();
  void await();

  // Staging, kept by the run: each chunk's bytes in the arena (only counted there if mapped),
  // windows by operand.
  std::vector<Extent> in, out;
  Extent working;  // what the derived operands hold, counted here, not kept here
  std::vector<Window> windows;
  bool stepped = false;     // the reader drives the passes, and no chunk stays from one to the next
  bool lasting = false;     // windows stay as they are to the end: less work than chunk by chunk
  bool past_cache = false;  // output goes through `out` and the writer, not through the page cache
  std::atomic<std::uint32_t> unwritten = 0;

 private:
  enum class Step : std::uint8_t { land, measure, apply, done };

  // The work on a derived operand, begun by the first worker that needs it.
  struct Making {
    const Derived* derived = nullptr;
    Once once;
    std::unique_ptr<Working> working;
  };

  void fill(std::size_t operand, std::uint64_t first, std::uint32_t count, const std::byte* own,
            std::byte* values);
  void look(std::uint64_t first, std::span<const std::byte> output, const std::byte* const* inputs);
  void apply(std::uint64_t first, std::uint32_t count, const std::byte* const* inputs,
             std::byte* out, Tally& tally);
  void begin(Step step, std::vector<std::uint32_t> chunks);
  void next();
  [[nodiscard]] std::uint32_t elements(std::uint32_t chunk) const noexcept;
  [[nodiscard]] Chunk view(std::uint64_t first, std::uint32_t count,
                           const std::byte* const* inputs) const;
  void hash_inputs(std::uint64_t first, std::uint32_t count, const std::byte* const* inputs);
  // Looks for NaN and infinity in an operand's bytes from `at` on.
  void scan_input(std::size_t operand, std::uint64_t at, std::span<const std::byte> data);
  static void hash_into(std::vector<Digest>& blocks, std::uint64_t at,
                        std::span<const std::byte> data);
  void compare(std::uint64_t at, std::uint32_t bytes, const std::byte* const* inputs) const;

  const Plan& plan_;
  std::size_t index_;
  const Job& job_;
  Lodging lodging_;
  Backend& backend_;
  Digests* digests_;            // null: nothing is hashed
  std::uint64_t elements_ = 0;  // of the tensor; bytes for a copy
  std::uint64_t chunk_elements_ = 0;
  std::uint32_t chunk_count_ = 0;
  std::uint64_t piece_ = 0;           // elements that fill whole hash blocks of every operand
  std::vector<std::uint64_t> width_;  // bytes per element as they land, by operand
  std::vector<bool> computed_;        // operands that are not runs of file bytes
  std::vector<std::unique_ptr<Making>> making_;  // by operand; null: it is not derived
  bool derives_ = false;                         // some operand is
  bool keeps_ = false;  // derived values are made by whole chunks, in memory of their own
  std::vector<std::uint8_t> made_;  // by chunk: they are there
  std::uint64_t out_width_ = 0;
  Step step_ = Step::land;
  std::vector<std::uint32_t> chunks_;
  std::atomic<std::uint32_t> remaining_ = 0;
  bool hashing_ = false;  // the current pass hashes the inputs and looks for NaN and infinities
  bool telling_ = false;  // NaN and infinities of inputs show in the output: only then are they
                          // looked for
  bool hashed_ = false, landed_ = false, admitted_ = false;
  std::unique_ptr<Measuring> measuring_;  // of a merge
  std::unique_ptr<Residence> residence_;
  std::vector<std::vector<Digest>> input_blocks_;
  std::vector<Digest> output_blocks_;
  Tally tally_;
  std::vector<Count> nonfinite_;  // among the inputs, by operand; of `computed_` ones by digests_
  Findings findings_;
  std::mutex mutex_;  // guards tally_, nonfinite_, findings_, ended_flag_
  std::condition_variable ended_;
  bool ended_flag_ = false;
};

}  // namespace ingot
