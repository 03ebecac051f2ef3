// The CUDA backend: calls from any number of threads become copies and kernels on three streams.
//
// A device has one block of memory, taken once and divided by arenas: one for the chunks under way,
// one for tensors that stay. A call takes a slot (events and a window of pinned memory) and room,
// enqueues copy in, kernels and copy out on the streams of that name, and waits for its own last
// event: so copies and kernels of different calls overlap, and no call waits for the whole device.
#include "ingot/backend.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>

#include "apply.hpp"
#include "base/block.hpp"
#include "call.hpp"
#include "device.hpp"
#include "measure.hpp"
#include "order.hpp"
#include "product.hpp"
#include "select.hpp"
#include "staging.hpp"

namespace ingot {
namespace gpu {
namespace {

// Most bytes of sums that one call makes, unless one group has more.
constexpr std::uint64_t kSums = 8 * kMiB;
// Most groups of sums, and brackets, of one call.
constexpr std::size_t kGroups = 4096, kBrackets = math::kSources;

class Cuda final : public Backend {
 public:
  explicit Cuda(const DeviceOptions& options) {
    std::uint64_t memory = options.memory / kAlign * kAlign;
    if (options.fast_product) memory -= std::min(memory, Blas::kWorkspace);
    if (memory < kMiB)
      fail(Code::usage,
           "--device-memory " + std::to_string(options.memory) + ": at least 1 MiB is needed");
    const std::vector<Card> cards = probe(options.device);
    std::shared_ptr<const Algebra> algebra;
    solver_ = linalg::lapack();
    if (options.decompose != DeviceOptions::Decompose::no) {
      try {
        algebra = open_algebra(options.libraries);
      } catch (const Error& error) {
        if (options.decompose == DeviceOptions::Decompose::must) throw;
        solver_ = linalg::lapack(error.message());
      }
    }
    for (const Card& card : cards) {
      lanes_.push_back(std::make_unique<Lane>(card, memory, algebra != nullptr));
      if (options.fast_product) lanes_.back()->add_blas(options.libraries);
      test_arithmetic(*lanes_.back());
    }
    if (algebra == nullptr) return;
    std::vector<Site> sites;
    for (const auto& lane : lanes_) sites.push_back(lane->site());
    solver_ = make_solver(std::move(algebra), sites);
    if (solver_->capacity() == 0)
      solver_ = linalg::lapack("--device-memory leaves nothing for decompositions");
  }

  std::string describe() const override {
    std::string text;
    for (const auto& lane : lanes_) text += (text.empty() ? "" : ", ") + lane->name();
    return text;
  }

  bool staged() const override { return true; }

  std::byte* allocate(std::size_t bytes) override {
    lanes_.front()->use();
    return Pinned(bytes).release();
  }
  void release(std::byte* memory, std::size_t) noexcept override { forgive(cudaFreeHost(memory)); }

  linalg::Solver& solver() override { return *solver_; }

  std::unique_ptr<Residence> reside(const Work& work) override {
    const std::uint64_t bytes = Room::bytes_for(work);
    Lane& lane = idlest();
    std::byte* memory = lane.stay().try_take(bytes);
    if (memory == nullptr) return nullptr;
    return std::make_unique<Room>(lane, work, memory, bytes);
  }

  void admit(const Chunk& chunk) override {
    const Room& room = *room_of(chunk);
    Call call(room.lane());
    for (std::size_t i = 0; i < chunk.work->inputs.size(); ++i)
      copy_input(call, room.at(chunk, i), chunk, i);
    call.wait();
    call.done();
  }

  void sample(const Chunk& chunk, int pass, std::span<const int> streams, std::uint32_t stride,
              std::span<std::vector<std::int32_t>> keys) override {
    if (streams.empty()) return;
    stride = std::max(stride, math::kSampled);
    const std::uint64_t runs = (chunk.count + std::uint64_t{stride} - 1) / stride;
    const std::uint64_t each = runs * math::kSampled * sizeof(std::int32_t);
    Layout layout;
    const Stage stage(chunk, layout, streams.size() * sizeof(int),
                      sources_of(chunk, pass, streams));
    const std::uint64_t list = layout.add(each * streams.size());
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    int* sources = as<int>(stage.sent(call));
    for (const int stream : streams) *sources++ = source_of(chunk, pass, stream);
    stage.copy(call, memory);
    gpu::sample(ordering(chunk, pass, stage.tensor(memory)), as<int>(stage.told(memory)),
                static_cast<unsigned>(streams.size()), stride, as<std::int32_t>(memory + list),
                shape_, call.kernels());
    // Of the last window, what is shorter than a run was not written.
    const std::uint64_t last = chunk.count - (runs - 1) * stride;
    const std::uint64_t size =
        (runs - 1) * math::kSampled + std::min<std::uint64_t>(last, math::kSampled);
    for (std::size_t s = 0; s < keys.size(); ++s)
      bring_all(call, memory + list + s * each, size, keys[s]);
    call.done();
  }

  void verify(const Chunk& chunk, int pass, std::span<const Bracket> brackets, std::uint32_t limit,
              std::span<Verdict> verdicts) override {
    for (std::size_t at = 0; at < brackets.size(); at += kBrackets) {
      const std::size_t some = std::min(kBrackets, brackets.size() - at);
      verify_some(chunk, pass, brackets.subspan(at, some), limit, verdicts.subspan(at, some));
    }
  }

  void histogram(const Chunk& chunk, int pass, int stream, const std::int32_t* prefix,
                 std::span<std::uint64_t> counts) override {
    const std::uint64_t bytes = kBins * sizeof(unsigned);
    Layout layout;
    const Stage stage(chunk, layout, 0, sources_of(chunk, pass, {&stream, 1}));
    const std::uint64_t bins = layout.add(bytes);
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    call.clear(memory + bins, bytes);
    gpu::histogram(ordering(chunk, pass, stage.tensor(memory)), source_of(chunk, pass, stream),
                   prefix != nullptr, prefix != nullptr ? *prefix : 0, as<unsigned>(memory + bins),
                   shape_, call.kernels());
    std::vector<unsigned> result;
    result.reserve(kBins);
    bring_all(call, memory + bins, kBins, result);
    for (std::size_t i = 0; i < kBins; ++i) counts[i] += result[i];
    call.done();
  }

  std::uint32_t locate(const Chunk& chunk, int pass, int stream, std::int32_t key,
                       std::uint32_t n) override {
    const std::uint64_t size = (std::uint64_t{chunk.count} + 7) / 8;
    Layout layout;
    const Stage stage(chunk, layout, 0, sources_of(chunk, pass, {&stream, 1}));
    const std::uint64_t marks = layout.add(size);
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    match(ordering(chunk, pass, stage.tensor(memory)), source_of(chunk, pass, stream), key,
          as<std::uint8_t>(memory + marks), shape_, call.kernels());
    std::vector<std::uint8_t> bits;
    bits.reserve(size);
    bring_all(call, memory + marks, size, bits);
    call.done();
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const auto here = static_cast<std::uint32_t>(std::popcount(bits[i]));
      if (n >= here) {
        n -= here;
        continue;
      }
      std::uint32_t left = bits[i];
      while (n-- > 0) left &= left - 1;
      return static_cast<std::uint32_t>(i * 8) + static_cast<std::uint32_t>(std::countr_zero(left));
    }
    fail(Code::internal, "a key that was counted is not in its chunk");
  }

  void fold(const Chunk& chunk, int pass, std::span<double> sums) override {
    const math::Rule& rule = chunk.work->rule;
    const std::vector<math::Group> all = groups(rule.method, pass, rule);
    const Folding folding = {rule.method, pass,
                             nullptr,     chunk.first,
                             chunk.count, math::line_shape(rule, method_of(chunk).lines(rule))};
    const std::uint64_t places = fold_places(folding);
    std::span<const math::Group> left = all;
    while (!left.empty()) {
      // As many groups as one call has room for; their sums lie one behind the other.
      std::size_t some = 0;
      std::uint64_t bytes = 0;
      do {
        bytes += group_sums(rule.method, pass, left[some++]) * places * sizeof(double);
      } while (some < left.size() && some < kGroups && bytes < kSums &&
               left[some].first * places * sizeof(double) ==
                   left[0].first * places * sizeof(double) + bytes);
      fold_some(chunk, folding, left.first(some),
                sums.subspan(left[0].first * places, bytes / sizeof(double)));
      left = left.subspan(some);
    }
  }

  void apply(std::span<const Item> items) override {
    while (!items.empty()) items = items.subspan(apply_some(items));
  }

  std::unique_ptr<Factors> stage(const Product& product) override {
    return std::make_unique<Staged>(product, idlest());
  }

  void amend(Dtype dtype, const std::byte* own, std::span<const Factors* const> products,
             std::uint64_t first, std::span<float> values) override {
    if (values.empty()) return;
    const std::uint64_t count = values.size(), width = bits(dtype) / 8;
    const auto* leading = products.empty() ? nullptr : static_cast<const Staged*>(products[0]);
    Lane& lane = leading != nullptr && leading->a() != nullptr ? leading->lane() : idlest();
    const std::uint64_t columns = leading != nullptr ? leading->product().width : count;
    const std::uint64_t top = first / columns, rows = (first + count - 1) / columns - top + 1;
    Layout layout;
    const std::uint64_t stored = layout.add(own == nullptr ? 0 : count * width);
    const std::uint64_t result = layout.add(count * sizeof(float));
    const std::uint64_t header = layout.add(sizeof(Amendment) + products.size() * sizeof(LowRank));
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;  // of factors copied for this call
    for (const Factors* factors : products) {
      const auto& staged = static_cast<const Staged&>(*factors);
      const bool there = staged.a() != nullptr && &staged.lane() == &lane;
      const Product& p = staged.product();
      places.emplace_back(there ? 0 : layout.add(p.a.size_bytes()),
                          there ? 0 : layout.add(rows * p.rank * sizeof(float)));
    }
    Call call(lane);
    std::byte* memory = call.room(layout.bytes());
    auto* sent = as<Amendment>(call.sent());
    auto* list = as<LowRank>(call.sent() + sizeof(Amendment));
    *sent = {};
    if (own != nullptr) {
      sent->own = {memory + stored, format_of(dtype)};
      call.copy_in(memory + stored, own, count * width);
    }
    sent->products = as<LowRank>(memory + header + sizeof(Amendment));
    const bool fast = leading != nullptr && leading->product().fast;
    sent->number = fast ? 0 : static_cast<unsigned>(products.size());
    sent->width = columns;
    sent->first = first;
    sent->count = count;
    sent->values = as<float>(memory + result);
    for (std::size_t i = 0; i < products.size(); ++i) {
      const auto& staged = static_cast<const Staged&>(*products[i]);
      const Product& p = staged.product();
      if (staged.a() != nullptr && &staged.lane() == &lane) {
        list[i] = {staged.a(), staged.b(), 0, p.rank, p.scale};
        continue;
      }
      call.copy_in(memory + places[i].first, p.a.data(), p.a.size_bytes());
      call.copy_in(memory + places[i].second, p.b.data() + top * p.rank,
                   rows * p.rank * sizeof(float));
      list[i] = {as<float>(memory + places[i].first), as<float>(memory + places[i].second), top,
                 p.rank, p.scale};
    }
    call.copy_in(memory + header, call.sent(),
                 sizeof(Amendment) + products.size() * sizeof(LowRank));
    gpu::amend(as<Amendment>(memory + header), first, count, columns, shape_, call.kernels());
    if (fast) {
      each_block(first, count, columns, [&](const Block& block) {
        for (const LowRank& p : std::span(list, products.size())) {
          lane.blas().add(block.rows, block.columns, p.rank, p.scale,
                          p.b + (block.row - p.top) * p.rank, p.a + block.column,
                          as<float>(memory + result) + block.at, columns);
        }
      });
    }
    call.copy_out(values.data(), memory + result, values.size_bytes());
    call.wait();
    call.done();
  }

  std::vector<Activity> activity() const override {
    std::vector<Activity> all;
    for (const auto& lane : lanes_) all.push_back(lane->activity());
    return all;
  }

 private:
  // Where an item of a batch has its inputs and its output: offsets into what is sent with one
  // copy, into what is received with one, or into the room for large parts.
  struct Place {
    std::array<std::uint64_t, math::kSources + 1> input{};
    std::uint64_t output = 0, description = 0, lines = 0;
    bool small_input[math::kSources + 1] = {};
    bool small_output = false;
  };
  struct Batching {
    Layout sent, received, large;
    std::vector<Place> places;
    std::uint64_t elements = 0;
    std::uint64_t told = 0;  // bytes of descriptions, which lie behind the jobs
  };

  static void test_arithmetic(Lane& lane) {
    Call call(lane);
    std::byte* memory = call.room(2 * kAlign);
    std::memcpy(call.sent(), kCanaryInput, sizeof kCanaryInput);
    call.copy_in(memory, call.sent(), sizeof kCanaryInput);
    canary(as<float>(memory), as<float>(memory + kAlign), call.kernels());
    call.copy_out(call.received(), memory + kAlign, sizeof kCanaryOutput);
    call.wait();
    if (std::memcmp(call.received(), kCanaryOutput, sizeof kCanaryOutput) != 0)
      fail(Code::device, lane.name() + " does not round as IEEE 754 says; run with --device cpu");
  }

  Lane& idlest() {
    return **std::min_element(lanes_.begin(), lanes_.end(),
                              [](const auto& a, const auto& b) { return a->calls < b->calls; });
  }
  Lane& lane_for(const Chunk& chunk) {
    return chunk.residence != nullptr ? room_of(chunk)->lane() : idlest();
  }

  static const math::Method& method_of(const Chunk& chunk) {
    return math::method(chunk.work->rule.method);
  }
  // The source whose key a stream is; 0 for one of all sources, where it means nothing.
  static int source_of(const Chunk& chunk, int pass, int stream) {
    return std::max(method_of(chunk).passes[static_cast<std::size_t>(pass)].source(stream), 0);
  }
  // The sources that streams are made of; empty: all.
  static std::vector<std::uint8_t> sources_of(const Chunk& chunk, int pass,
                                              std::span<const int> streams) {
    std::vector<std::uint8_t> wanted(static_cast<std::size_t>(chunk.work->rule.sources), 0);
    for (const int stream : streams) {
      const int source = method_of(chunk).passes[static_cast<std::size_t>(pass)].source(stream);
      if (source < 0) return {};
      wanted[static_cast<std::size_t>(source)] = 1;
    }
    return wanted;
  }
  static Ordering ordering(const Chunk& chunk, int pass, const Tensor* tensor) {
    return {chunk.work->rule.method, pass, tensor, chunk.count};
  }

  void verify_some(const Chunk& chunk, int pass, std::span<const Bracket> brackets,
                   std::uint32_t limit, std::span<Verdict> verdicts) {
    const std::size_t number = brackets.size();
    const std::uint64_t spans = (chunk.count + kSpan - 1) / kSpan;
    limit = std::min(limit, chunk.count);
    std::vector<int> streams;
    for (const Bracket& bracket : brackets) streams.push_back(bracket.stream);
    Layout layout;
    const Stage stage(chunk, layout, brackets.size_bytes(), sources_of(chunk, pass, streams));
    const std::uint64_t counts = number * sizeof(Census);
    const std::uint64_t results = layout.add(counts + number * spans * sizeof(Segment));
    const std::uint64_t list = layout.add(number * limit * sizeof(Candidate));
    const std::uint64_t ordered = layout.add(number * limit * sizeof(Candidate));
    const std::uint64_t scratch = layout.add(order_bytes(number, spans));
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    auto* sent = as<Bracket>(stage.sent(call));
    for (std::size_t n = 0; n < number; ++n)
      sent[n] = {source_of(chunk, pass, brackets[n].stream), brackets[n].low, brackets[n].high};
    stage.copy(call, memory);
    call.clear(memory + results, counts + number * spans * sizeof(Segment));
    auto* census = as<Census>(memory + results);
    auto* segments = as<Segment>(memory + results + counts);
    gpu::verify(ordering(chunk, pass, stage.tensor(memory)), as<Bracket>(stage.told(memory)),
                static_cast<unsigned>(number), limit, census, as<Candidate>(memory + list),
                segments, shape_, call.kernels());
    order({as<Candidate>(memory + list), segments, census, number, spans, limit},
          as<Candidate>(memory + ordered), memory + scratch, call.kernels());
    call.copy_out(call.received(), memory + results, counts);
    call.wait();

    const auto* received = as<Census>(call.received());
    std::vector<std::size_t> lengths(number);
    for (std::size_t n = 0; n < number; ++n) {
      const Census& counted = received[n];
      Verdict& verdict = verdicts[n];
      verdict = {};
      verdict.above = counted.above;
      verdict.at_high = counted.at_high;
      verdict.at_low = counted.at_low;
      verdict.overflowed = counted.between > limit;
      if (!verdict.overflowed) lengths[n] = counted.between;
    }
    const std::size_t total = std::accumulate(lengths.begin(), lengths.end(), std::size_t{0});
    std::vector<Candidate> all;
    all.reserve(total);
    bring_all(call, memory + ordered, total, all);
    auto next = all.begin();
    for (std::size_t n = 0; n < number; ++n) {
      const auto end = next + static_cast<std::ptrdiff_t>(lengths[n]);
      verdicts[n].between.assign(next, end);
      next = end;
    }
    call.done();
  }

  void fold_some(const Chunk& chunk, Folding folding, std::span<const math::Group> groups,
                 std::span<double> sums) {
    Layout layout;
    const Stage stage(chunk, layout, groups.size_bytes());
    const std::uint64_t result = layout.add(sums.size_bytes());
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    auto* sent = as<math::Group>(stage.sent(call));
    for (const math::Group& group : groups) {
      *sent = group;
      sent->first = static_cast<std::uint16_t>(group.first - groups[0].first);
      ++sent;
    }
    stage.copy(call, memory);
    folding.tensor = stage.tensor(memory);
    gpu::fold(folding, as<math::Group>(stage.told(memory)), static_cast<unsigned>(groups.size()),
              as<double>(memory + result), shape_, call.kernels());
    double* next = sums.data();
    call.bring(memory + result, sums.size_bytes(), [&](const std::byte* bytes, std::uint64_t n) {
      std::memcpy(next, bytes, n);
      next += n / sizeof(double);
    });
    call.done();
  }

  // Appends `count` values of the device's memory to `list`.
  template <class T>
  static void bring_all(Call& call, const std::byte* from, std::uint64_t count,
                        std::vector<T>& list) {
    call.bring(from, count * sizeof(T), [&](const std::byte* bytes, std::uint64_t n) {
      const auto* values = reinterpret_cast<const T*>(bytes);
      list.insert(list.end(), values, values + n / sizeof(T));
    });
  }

  // Bytes of so many jobs; descriptions behind them lie at multiples of 16.
  static std::uint64_t jobs_bytes(std::size_t jobs) { return (jobs * sizeof(Job) + 15) / 16 * 16; }

  static unsigned kind_of(const Item& item) {
    return kind(item.chunk.work->rule.method, item.chunk.work->rule.sources);
  }

  // Adds an item to a batch, its small parts in the window if `window`. False if it does not fit.
  static bool add(Batching& batch, const Item& item, bool window, const Arena& memory) {
    const Chunk& chunk = item.chunk;
    Batching more{batch.sent, batch.received, batch.large, {}, 0, batch.told};
    Place place;
    for (std::size_t i = 0; i < chunk.work->inputs.size() && chunk.residence == nullptr; ++i) {
      const std::uint64_t bytes = padded(chunk.count, bits(chunk.work->inputs[i]) / 8);
      place.small_input[i] = window && bytes <= kSmall;
      place.input[i] = (place.small_input[i] ? more.sent : more.large).add(bytes);
    }
    const std::uint64_t bytes = padded(chunk.count, bits(chunk.work->output) / 8);
    place.small_output = window && bytes <= kSmall;
    place.output = (place.small_output ? more.received : more.large).add(bytes);

    const Description description(chunk);
    place.description = more.told;
    more.told += description.bytes();
    place.lines = more.large.add(description.lines_apart());

    const std::uint64_t jobs = batch.places.size() + 1;
    const std::uint64_t sent = more.sent.bytes() + aligned(jobs_bytes(jobs) + more.told);
    const std::uint64_t received = more.received.bytes() + aligned(jobs * sizeof(Counts));
    const bool alone = !window;  // nothing can be made smaller: what does not fit is an error later
    if (!alone && (sent > kWindow / 2 || received > kWindow / 2 ||
                   sent + received + more.large.bytes() > memory.capacity()))
      return false;
    batch.sent = more.sent;
    batch.received = more.received;
    batch.large = more.large;
    batch.told = more.told;
    batch.places.push_back(place);
    batch.elements += chunk.count;
    return true;
  }

  // Merges as many of the first items as agree in kernel and device and fit; returns how many.
  std::size_t apply_some(std::span<const Item> items) {
    Lane& lane = lane_for(items.front().chunk);
    const unsigned which = kind_of(items.front());
    Batching batch;
    for (const Item& item : items) {
      if (kind_of(item) != which) break;
      if (item.chunk.residence != nullptr && &room_of(item.chunk)->lane() != &lane) break;
      if (!add(batch, item, true, lane.work())) break;
    }
    if (batch.places.empty()) (void)add(batch, items.front(), false, lane.work());
    merge(lane, which, items.first(batch.places.size()), batch);
    return batch.places.size();
  }

  void merge(Lane& lane, unsigned which, std::span<const Item> items, Batching& batch) {
    // On the device: what is sent with the jobs and their descriptions behind it, what is received
    // with the counts behind it, what is large.
    const std::uint64_t jobs_at = batch.sent.add(jobs_bytes(items.size()) + batch.told);
    const std::uint64_t told_at = jobs_at + jobs_bytes(items.size());
    const std::uint64_t counts_at = batch.received.add(items.size() * sizeof(Counts));
    Call call(lane);
    std::byte* sent = call.room(batch.sent.bytes() + batch.received.bytes() + batch.large.bytes());
    std::byte* received = sent + batch.sent.bytes();
    std::byte* large = received + batch.received.bytes();

    Batch work;
    work.packs = span_packs(batch.elements, static_cast<unsigned>(lane.card().processors));
    auto* jobs = as<Job>(call.sent() + jobs_at);
    for (std::size_t n = 0; n < items.size(); ++n) {
      const Chunk& chunk = items[n].chunk;
      const Place& place = batch.places[n];
      Job job;
      std::vector<Operand> operands(chunk.work->inputs.size());
      for (std::size_t i = 0; i < operands.size(); ++i) {
        Operand& input = operands[i];
        call.moves(bytes_of(chunk, i));
        input.format = format_of(chunk.work->inputs[i]);
        if (chunk.residence != nullptr) {
          input.data = room_of(chunk)->at(chunk, i);
        } else if (place.small_input[i]) {
          std::memcpy(call.sent() + place.input[i], chunk.inputs[i], bytes_of(chunk, i));
          input.data = sent + place.input[i];
        } else {
          input.data = large + place.input[i];
          copy_input(call, large + place.input[i], chunk, i);
        }
      }
      call.moves(output_bytes(items[n]));
      job.tensor =
          Description(chunk).write(call, operands, call.sent() + told_at + place.description,
                                   sent + told_at + place.description, large + place.lines);
      job.output = (place.small_output ? received : large) + place.output;
      job.format = format_of(chunk.work->output);
      job.overflow = chunk.work->overflow;
      job.span = work.spans;
      work.spans += spans(chunk.count, work.packs);
      jobs[n] = job;
    }
    call.copy_in(sent, call.sent(), batch.sent.bytes());
    work.jobs = as<Job>(sent + jobs_at);
    work.count = static_cast<unsigned>(items.size());
    work.counts = as<Counts>(received + counts_at);
    call.clear(received + counts_at, items.size() * sizeof(Counts));
    gpu::apply(which, work, shape_, call.kernels());

    for (std::size_t n = 0; n < items.size(); ++n)
      if (!batch.places[n].small_output)
        call.copy_out(items[n].output, large + batch.places[n].output, output_bytes(items[n]));
    call.copy_out(call.received(), received, batch.received.bytes());
    call.wait();
    const auto* counts = as<Counts>(call.received() + counts_at);
    for (std::size_t n = 0; n < items.size(); ++n) {
      if (batch.places[n].small_output)
        std::memcpy(items[n].output, call.received() + batch.places[n].output,
                    output_bytes(items[n]));
      if (items[n].tally == nullptr) continue;
      Tally tally;
      const Chunk& chunk = items[n].chunk;
      for (int s = 0; s < chunk.work->rule.sources; ++s)
        tally.kept[s] = method_of(chunk).masks ? counts[n].kept[s] : chunk.count;
      tally.conflicts = counts[n].conflicts;
      tally.change = counts[n].change;
      items[n].tally->add(tally);
    }
    call.done();
  }

  static std::uint64_t output_bytes(const Item& item) {
    return std::uint64_t{item.chunk.count} * (bits(item.chunk.work->output) / 8);
  }

  const Shape shape_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::unique_ptr<linalg::Solver> solver_;  // in the lanes' memory
};

}  // namespace
}  // namespace gpu

std::unique_ptr<Backend> cuda_backend(const DeviceOptions& options) {
  return std::make_unique<gpu::Cuda>(options);
}

}  // namespace ingot
