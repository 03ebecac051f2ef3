// The CUDA backend: calls from any number of threads become copies and kernels on three streams.
//
// A device has one block of memory, taken once and divided by arenas: one for the chunks under way,
// one for tensors that stay. A call takes a slot (events and a window of pinned memory) and room,
// enqueues copy in, kernels and copy out on the streams of that name, and waits for its own last
// event: so copies and kernels of different calls overlap, and no call waits for the whole device.
#include "ingot/backend.hpp"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <numeric>

#include "apply.hpp"
#include "base/block.hpp"
#include "blas.hpp"
#include "check.hpp"
#include "ingot/error.hpp"
#include "ingot/math/methods.hpp"
#include "measure.hpp"
#include "memory.hpp"
#include "order.hpp"
#include "probe.hpp"
#include "product.hpp"
#include "select.hpp"
#include "solver.hpp"
#include "stream.hpp"

namespace ingot {
namespace gpu {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Calls under way per device; more wait. Enough for copy in, kernels and copy out of several
// threads.
constexpr std::size_t kSlots = 16;
// A slot's pinned window: descriptions and small tensors in one half, results in the other.
constexpr std::uint64_t kWindow = kMiB;
// Inputs and outputs up to this size travel in the window, many in one copy.
constexpr std::uint64_t kSmall = std::uint64_t{32} << 10;
// One chunk of the most inputs of the widest type, their candidates twice (as found, in order), its
// output, and change.
constexpr std::uint64_t kLargestCall =
    (math::kSources + 2) * 4 * kMiB + math::kSources * 2 * kMiB + 8 * kMiB;

math::Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return math::Format::f32;
    case Dtype::f16:
      return math::Format::f16;
    case Dtype::bf16:
      return math::Format::bf16;
    case Dtype::f8_e4m3:
      return math::Format::e4m3;
    case Dtype::f8_e5m2:
      return math::Format::e5m2;
    default:
      fail(Code::internal, "a dtype without a codec reached the device");
  }
}

// Sizes of parts that will lie behind each other.
class Layout {
 public:
  // The offset of a part of `bytes` bytes.
  std::uint64_t add(std::uint64_t bytes) {
    const std::uint64_t at = bytes_;
    bytes_ += aligned(bytes);
    return at;
  }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t bytes_ = 0;
};

// The resources of one call on a device, beside its part of the memory.
struct Slot {
  std::byte* window = nullptr;
  std::array<Event, 6> mark;  // begin and end of copy in, kernels, copy out
};

// One device.
class Lane {
 public:
  // If it decomposes, the solver has the memory that tensors would stay in.
  Lane(const Card& card, std::uint64_t memory, bool decomposes)
      : card_(card),
        block_(take(card, memory)),
        bytes_(memory),
        windows_(kSlots * kWindow),
        work_(block_.data(), work_bytes(memory)),
        stay_(rest(), decomposes ? 0 : rest_bytes()) {
    for (std::size_t i = 0; i < kSlots; ++i) {
      slots_.push_back(std::make_unique<Slot>());
      slots_.back()->window = windows_.data() + i * kWindow;
      idle_.push_back(slots_.back().get());
    }
  }

  [[nodiscard]] Site site() const { return {card_.index, rest(), rest_bytes()}; }

  // Makes this device the calling thread's.
  void use() const { check(cudaSetDevice(card_.index), "choosing a device"); }

  [[nodiscard]] const Card& card() const { return card_; }
  [[nodiscard]] Arena& work() { return work_; }
  [[nodiscard]] Arena& stay() { return stay_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::string name() const {
    return "cuda:" + std::to_string(card_.index) + " " + card_.name;
  }

  [[nodiscard]] Slot& take() {
    std::unique_lock lock(mutex_);
    returned_.wait(lock, [&] { return !idle_.empty(); });
    Slot& slot = *idle_.back();
    idle_.pop_back();
    return slot;
  }
  void give(Slot& slot) {
    {
      const std::lock_guard lock(mutex_);
      idle_.push_back(&slot);
    }
    returned_.notify_one();
  }

  void note(const Activity& more) {
    const std::lock_guard lock(mutex_);
    activity_.copy_in += more.copy_in;
    activity_.kernels += more.kernels;
    activity_.copy_out += more.copy_out;
    activity_.waiting += more.waiting;
    activity_.bytes_in += more.bytes_in;
    activity_.bytes_out += more.bytes_out;
    activity_.kernel_bytes += more.kernel_bytes;
  }
  [[nodiscard]] Activity activity() {
    const std::lock_guard lock(mutex_);
    try {
      if (activity_.copy == 0) measure();
    } catch (const Error&) {
      activity_.copy = 0;  // what was done stands, whatever becomes of the device now
    }
    Activity a = activity_;
    a.device = name();
    a.memory = bytes_;
    return a;
  }

  // Opens cuBLAS for products that may be fast.
  void add_blas(const std::string& folder) {
    use();
    blas_ = std::make_unique<Blas>(folder, compute);
  }
  [[nodiscard]] Blas& blas() {
    if (blas_ == nullptr) fail(Code::internal, "a fast product came to a device without cuBLAS");
    return *blas_;
  }

  std::atomic<int> calls{0};  // under way
  // Held while a call enqueues, so that its copies and kernels lie together in their streams.
  std::mutex turn;

 private:
  static Device take(const Card& card, std::uint64_t memory) {
    check(cudaSetDevice(card.index), "choosing a device");
    return Device(memory);
  }
  // The rates of bare copies, on a device that has nothing else to do.
  void measure() {
    use();
    const std::uint64_t half = aligned(std::min(bytes_ / 2 - kAlign, 128 * kMiB));
    const std::uint64_t piece = std::min(half, 16 * kMiB);
    const Pinned host(piece);
    Event start, stop;
    const auto rate = [&](const Stream& stream, void* to, const void* from, std::uint64_t bytes,
                          cudaMemcpyKind kind) {
      double best = 0;
      for (int round = 0; round < 3; ++round) {
        start.record(stream);
        check(cudaMemcpyAsync(to, from, bytes, kind, stream.get()), "measuring its copies");
        stop.record(stream);
        stop.wait();
        best =
            std::max(best, static_cast<double>(bytes) / std::max(stop.seconds_since(start), 1e-9));
      }
      return best;
    };
    activity_.link_in = rate(in, block_.data(), host.data(), piece, cudaMemcpyHostToDevice);
    activity_.link_out = rate(out, host.data(), block_.data(), piece, cudaMemcpyDeviceToHost);
    activity_.copy = 2 * rate(compute, block_.data() + bytes_ - half, block_.data(), half,
                              cudaMemcpyDeviceToDevice);
  }
  // A quarter for chunks under way, unless the largest call needs more.
  static std::uint64_t work_bytes(std::uint64_t memory) {
    return aligned(std::min(memory, std::max(memory / 4, kLargestCall)));
  }

  [[nodiscard]] std::byte* rest() const { return block_.data() + work_bytes(bytes_); }
  [[nodiscard]] std::uint64_t rest_bytes() const { return bytes_ - work_bytes(bytes_); }

  Card card_;
  Device block_;
  std::uint64_t bytes_;
  Pinned windows_;
  std::unique_ptr<Blas> blas_;

 public:
  const Stream in, compute, out;

 private:
  Arena work_, stay_;
  std::vector<std::unique_ptr<Slot>> slots_;
  mutable std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<Slot*> idle_;
  Activity activity_;
};

// All inputs of one tensor, as long as the engine needs them.
class Room final : public Residence {
 public:
  Room(Lane& lane, const Work& work, std::byte* memory, std::uint64_t bytes)
      : lane_(lane), memory_(memory), bytes_(bytes) {
    Layout layout;
    for (const Dtype input : work.inputs)
      offsets_.push_back(layout.add(padded(work.rule.elements, bits(input) / 8)));
  }
  ~Room() override { lane_.stay().give(memory_, bytes_); }

  [[nodiscard]] static std::uint64_t bytes_for(const Work& work) {
    Layout layout;
    for (const Dtype input : work.inputs) layout.add(padded(work.rule.elements, bits(input) / 8));
    return layout.bytes();
  }

  [[nodiscard]] Lane& lane() const { return lane_; }
  [[nodiscard]] std::byte* at(const Chunk& chunk, std::size_t input) const {
    return memory_ + offsets_[input] + chunk.first * (bits(chunk.work->inputs[input]) / 8);
  }

 private:
  Lane& lane_;
  std::byte* memory_;
  std::uint64_t bytes_;
  std::vector<std::uint64_t> offsets_;
};

// A product's factors in a device's memory for as long as they are needed; where there is no room
// for them, in the host's, and they are copied with every call.
class Staged final : public Factors {
 public:
  Staged(const Product& product, Lane& lane) : product_(product), lane_(lane) {
    memory_ = lane.stay().try_take(bytes());
    if (memory_ == nullptr) return;
    try {
      lane.use();
      check(cudaMemcpyAsync(memory_, product.a.data(), product.a.size_bytes(),
                            cudaMemcpyHostToDevice, lane.in.get()),
            "copying to it");
      check(cudaMemcpyAsync(memory_ + aligned(product.a.size_bytes()), product.b.data(),
                            product.b.size_bytes(), cudaMemcpyHostToDevice, lane.in.get()),
            "copying to it");
      check(cudaStreamSynchronize(lane.in.get()), "copying to it");
    } catch (...) {
      forgive(cudaStreamSynchronize(lane.in.get()));
      lane.stay().give(memory_, bytes());
      throw;
    }
  }
  ~Staged() override {
    if (memory_ != nullptr) lane_.stay().give(memory_, bytes());
  }
  Staged(const Staged&) = delete;
  Staged& operator=(const Staged&) = delete;

  [[nodiscard]] const Product& product() const { return product_; }
  [[nodiscard]] Lane& lane() const { return lane_; }
  // On its device: A, and B from its first row; null if they are not there.
  [[nodiscard]] const float* a() const { return reinterpret_cast<const float*>(memory_); }
  [[nodiscard]] const float* b() const {
    return reinterpret_cast<const float*>(memory_ + aligned(product_.a.size_bytes()));
  }

 private:
  [[nodiscard]] std::uint64_t bytes() const {
    return aligned(product_.a.size_bytes()) + aligned(product_.b.size_bytes());
  }

  Product product_;
  Lane& lane_;
  std::byte* memory_ = nullptr;
};

Room* room_of(const Chunk& chunk) { return static_cast<Room*>(chunk.residence); }

std::uint64_t bytes_of(const Chunk& chunk, std::size_t input) {
  return std::uint64_t{chunk.count} * (bits(chunk.work->inputs[input]) / 8);
}

// One call's way through a device. If it is left by an exception, what was enqueued is waited for:
// nothing may still copy from or to memory that others use again.
class Call {
 public:
  explicit Call(Lane& lane) : lane_(lane), slot_(enter(lane)) {}
  ~Call() {
    if (turn_.owns_lock()) turn_.unlock();
    if (!settled_) {
      forgive(cudaStreamSynchronize(lane_.in.get()));
      forgive(cudaStreamSynchronize(lane_.compute.get()));
      forgive(cudaStreamSynchronize(lane_.out.get()));
    }
    if (memory_ != nullptr) lane_.work().give(memory_, bytes_);
    lane_.give(slot_);
    --lane_.calls;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  [[nodiscard]] Lane& lane() const { return lane_; }
  // The halves of the pinned window: what goes to the device, what comes back.
  [[nodiscard]] std::byte* sent() const { return slot_.window; }
  [[nodiscard]] std::byte* received() const { return slot_.window + kWindow / 2; }

  // Device memory for the call, waited for if others have it.
  std::byte* room(std::uint64_t bytes) {
    if (bytes == 0) return nullptr;
    memory_ = lane_.work().take(bytes);
    if (memory_ == nullptr)
      fail(Code::memory, "one chunk of this merge needs " + std::to_string(bytes) +
                             " bytes of device memory and the ceiling leaves " +
                             std::to_string(lane_.work().capacity()) + "; raise --device-memory");
    bytes_ = bytes;
    return memory_;
  }

  // Enqueues a copy to the device.
  void copy_in(std::byte* to, const void* from, std::uint64_t bytes) {
    if (bytes == 0) return;
    begin(kIn, lane_.in);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, lane_.in.get()),
          "copying to it");
    activity_.bytes_in += bytes;
  }
  // Enqueues the copy of a chunk's input, and zeros up to the end of its last pack: packs are read
  // whole.
  void copy_in(std::byte* to, const Chunk& chunk, std::size_t input) {
    const std::uint64_t bytes = bytes_of(chunk, input);
    copy_in(to, chunk.inputs[input], bytes);
    const std::uint64_t all = padded(chunk.count, bits(chunk.work->inputs[input]) / 8);
    if (all != bytes)
      check(cudaMemsetAsync(to + bytes, 0, all - bytes, lane_.in.get()), "clearing its memory");
  }
  // So many bytes of tensors are read and written by the kernels to come.
  void moves(std::uint64_t bytes) { activity_.kernel_bytes += bytes; }
  // The stream for kernels, behind the copies of this call.
  const Stream& kernels() {
    if (!begun_[kCompute] && begun_[kIn]) hand_over(kIn, lane_.in, lane_.compute);
    begin(kCompute, lane_.compute);
    return lane_.compute;
  }
  void clear(std::byte* memory, std::uint64_t bytes) {
    check(cudaMemsetAsync(memory, 0, bytes, kernels().get()), "clearing its memory");
  }
  // Enqueues a copy from the device, behind the kernels of this call.
  void copy_out(void* to, const std::byte* from, std::uint64_t bytes) {
    if (bytes == 0) return;
    if (!begun_[kOut] && begun_[kCompute]) hand_over(kCompute, lane_.compute, lane_.out);
    begin(kOut, lane_.out);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, lane_.out.get()),
          "copying from it");
    activity_.bytes_out += bytes;
  }

  // Waits for everything enqueued so far.
  void wait() {
    const auto start = std::chrono::steady_clock::now();
    Event& last = slot_.mark[begun_[kOut] ? 5 : 1];
    last.record(begun_[kOut] ? lane_.out : lane_.in);
    turn_.unlock();
    last.wait();
    settled_ = true;
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
    activity_.waiting += waited.count();
  }
  // The call is over: records its times and bytes.
  void done() {
    if (begun_[kIn]) activity_.copy_in = seconds(kIn);
    if (begun_[kCompute]) activity_.kernels = seconds(kCompute);
    if (begun_[kOut]) activity_.copy_out = seconds(kOut);
    lane_.note(activity_);
  }

  // Copies results of any size to the host, a window at a time; wait() is included.
  template <class Take>
  void bring(const std::byte* from, std::uint64_t bytes, Take&& take) {
    constexpr std::uint64_t half = kWindow / 2;
    for (std::uint64_t at = 0; at < bytes; at += half) {
      const std::uint64_t n = std::min(half, bytes - at);
      copy_out(received(), from + at, n);
      wait();
      take(received(), n);
    }
  }

 private:
  static Slot& enter(Lane& lane) {
    lane.use();
    Slot& slot = lane.take();
    ++lane.calls;
    return slot;
  }
  // Before anything is enqueued in one of the three streams: its part of the call begins.
  void begin(std::size_t part, const Stream& stream) {
    settled_ = false;
    if (!turn_.owns_lock()) turn_.lock();
    if (begun_[part]) return;
    begun_[part] = true;
    slot_.mark[2 * part].record(stream);
  }
  // A part ends; the next one's stream waits for it.
  void hand_over(std::size_t part, const Stream& from, const Stream& to) {
    slot_.mark[2 * part + 1].record(from);
    slot_.mark[2 * part + 1].hold(to);
  }
  [[nodiscard]] double seconds(std::size_t part) const {
    return slot_.mark[2 * part + 1].seconds_since(slot_.mark[2 * part]);
  }

  static constexpr std::size_t kIn = 0, kCompute = 1, kOut = 2;

  Lane& lane_;
  Slot& slot_;
  std::unique_lock<std::mutex> turn_{lane_.turn, std::defer_lock};
  std::byte* memory_ = nullptr;
  std::uint64_t bytes_ = 0;
  bool begun_[3] = {};
  bool settled_ = true;
  Activity activity_;
};

// A chunk's inputs on the device: laid out first, then copied.
class Stage {
 public:
  // Only the base and the sources with `wanted` are staged; all of them if it is empty.
  Stage(const Chunk& chunk, Layout& layout, std::span<const std::uint8_t> wanted = {})
      : chunk_(chunk) {
    const std::size_t base = chunk.work->rule.base ? 1 : 0;
    for (std::size_t i = 0; i < chunk.work->inputs.size(); ++i) {
      wanted_[i] = i < base || wanted.empty() || wanted[i - base] != 0;
      if (wanted_[i] && chunk.residence == nullptr)
        offset_[i] = layout.add(padded(chunk.count, bits(chunk.work->inputs[i]) / 8));
    }
  }

  // The chunk as kernels see it, with its inputs behind `memory`.
  [[nodiscard]] Tensor tensor(std::byte* memory) const {
    const Work& work = *chunk_.work;
    Tensor tensor;
    for (std::size_t i = 0; i < work.inputs.size(); ++i) {
      if (!wanted_[i]) continue;
      tensor.input[i].format = format_of(work.inputs[i]);
      tensor.input[i].data =
          chunk_.residence != nullptr ? room_of(chunk_)->at(chunk_, i) : memory + offset_[i];
    }
    tensor.sources = work.rule.sources;
    tensor.base = work.rule.base;
    tensor.first = chunk_.first;
    tensor.count = chunk_.count;
    return tensor;
  }

  void copy(Call& call, std::byte* memory) const {
    for (std::size_t i = 0; i < chunk_.work->inputs.size(); ++i)
      if (wanted_[i]) call.moves(bytes_of(chunk_, i));
    if (chunk_.residence != nullptr) return;
    for (std::size_t i = 0; i < chunk_.work->inputs.size(); ++i)
      if (wanted_[i]) call.copy_in(memory + offset_[i], chunk_, i);
  }

 private:
  const Chunk& chunk_;
  std::array<bool, math::kSources + 1> wanted_{};
  std::array<std::uint64_t, math::kSources + 1> offset_{};
};

template <class T>
T* as(std::byte* memory) {
  return reinterpret_cast<T*>(memory);
}

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
      call.copy_in(room.at(chunk, i), chunk, i);
    call.wait();
    call.done();
  }

  void sample(const Chunk& chunk, std::uint32_t stride,
              std::span<std::vector<std::uint32_t>> keys) override {
    stride = std::max(stride, math::kSampled);
    const std::uint64_t runs = (chunk.count + std::uint64_t{stride} - 1) / stride;
    const std::uint64_t each = runs * math::kSampled * sizeof(std::uint32_t);
    Layout layout;
    const Stage stage(chunk, layout);
    const std::uint64_t header = layout.add(sizeof(Tensor));
    const std::uint64_t list = layout.add(each * keys.size());
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    send(call, memory + header, stage.tensor(memory));
    gpu::sample(as<Tensor>(memory + header), chunk.count, static_cast<unsigned>(keys.size()),
                stride, as<std::uint32_t>(memory + list), shape_, call.kernels());
    // Of the last window, what is shorter than a run was not written.
    const std::uint64_t last = chunk.count - (runs - 1) * stride;
    const std::uint64_t size =
        (runs - 1) * math::kSampled + std::min<std::uint64_t>(last, math::kSampled);
    for (std::size_t s = 0; s < keys.size(); ++s)
      bring_all(call, memory + list + s * each, size, keys[s]);
    call.done();
  }

  void verify(const Chunk& chunk, std::span<const Bracket> brackets,
              std::span<const std::uint8_t> active, std::uint32_t limit,
              std::span<Verdict> verdicts) override {
    const std::size_t sources = brackets.size();
    const std::uint64_t spans = (chunk.count + kSpan - 1) / kSpan;
    limit = std::min(limit, chunk.count);
    Layout layout;
    const Stage stage(chunk, layout, active);
    const std::uint64_t header = layout.add(sizeof(Tensor) + sources * sizeof(Window));
    const std::uint64_t counts = sources * sizeof(Census);
    const std::uint64_t results = layout.add(counts + sources * spans * sizeof(Segment));
    const std::uint64_t list = layout.add(sources * limit * sizeof(Found));
    const std::uint64_t ordered = layout.add(sources * limit * sizeof(Found));
    const std::uint64_t scratch = layout.add(order_bytes(sources, spans));
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);

    auto* windows = as<Window>(call.sent() + sizeof(Tensor));
    for (std::size_t s = 0; s < sources; ++s)
      windows[s] = {brackets[s].low, brackets[s].high, active[s] != 0 ? 1U : 0U};
    *as<Tensor>(call.sent()) = stage.tensor(memory);
    call.copy_in(memory + header, call.sent(), sizeof(Tensor) + sources * sizeof(Window));
    call.clear(memory + results, counts + sources * spans * sizeof(Segment));
    auto* census = as<Census>(memory + results);
    auto* segments = as<Segment>(memory + results + counts);
    gpu::verify(as<Tensor>(memory + header), chunk.count, static_cast<unsigned>(sources),
                as<Window>(memory + header + sizeof(Tensor)), limit, census,
                as<Found>(memory + list), segments, shape_, call.kernels());
    order({as<Found>(memory + list), segments, census, sources, spans, limit},
          as<Found>(memory + ordered), memory + scratch, call.kernels());
    call.copy_out(call.received(), memory + results, counts);
    call.wait();

    const auto* received = as<Census>(call.received());
    std::vector<std::size_t> lengths(sources);
    for (std::size_t s = 0; s < sources; ++s) {
      const Census& counted = received[s];
      Verdict& verdict = verdicts[s];
      verdict = {};
      if (active[s] == 0) continue;
      verdict.above = counted.above;
      verdict.at_high = counted.at_high;
      verdict.at_low = counted.at_low;
      verdict.overflowed = counted.between > limit;
      if (!verdict.overflowed) lengths[s] = counted.between;
    }
    const std::size_t total = std::accumulate(lengths.begin(), lengths.end(), std::size_t{0});
    static_assert(sizeof(Candidate) == sizeof(Found));
    std::vector<Candidate> all;
    all.reserve(total);
    bring_all(call, memory + ordered, total, all);
    auto next = all.begin();
    for (std::size_t s = 0; s < sources; ++s) {
      const auto end = next + static_cast<std::ptrdiff_t>(lengths[s]);
      verdicts[s].between.assign(next, end);
      next = end;
    }
    call.done();
  }

  void histogram(const Chunk& chunk, int source, const std::uint32_t* prefix,
                 std::span<std::uint64_t> counts) override {
    const std::uint64_t bytes = counts.size() * sizeof(unsigned);
    const std::vector<std::uint8_t> wanted = only(chunk, source);
    Layout layout;
    const Stage stage(chunk, layout, wanted);
    const std::uint64_t header = layout.add(sizeof(Tensor));
    const std::uint64_t bins = layout.add(bytes);
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    send(call, memory + header, stage.tensor(memory));
    call.clear(memory + bins, bytes);
    gpu::histogram(as<Tensor>(memory + header), chunk.count, static_cast<unsigned>(source),
                   prefix != nullptr, prefix != nullptr ? *prefix : 0, as<unsigned>(memory + bins),
                   shape_, call.kernels());
    std::vector<unsigned> result;
    result.reserve(counts.size());
    bring_all(call, memory + bins, counts.size(), result);
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += result[i];
    call.done();
  }

  std::uint32_t locate(const Chunk& chunk, int source, std::uint32_t key,
                       std::uint32_t n) override {
    const std::uint64_t size = (std::uint64_t{chunk.count} + 7) / 8;
    const std::vector<std::uint8_t> wanted = only(chunk, source);
    Layout layout;
    const Stage stage(chunk, layout, wanted);
    const std::uint64_t header = layout.add(sizeof(Tensor));
    const std::uint64_t marks = layout.add(size);
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    send(call, memory + header, stage.tensor(memory));
    match(as<Tensor>(memory + header), chunk.count, static_cast<unsigned>(source), key,
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

  void fold(const Chunk& chunk, const math::Facts& facts, std::span<double> tiles) override {
    const math::Rule& rule = chunk.work->rule;
    const auto count = static_cast<std::size_t>(math::needs(rule).folds);
    if (count == 0) return;
    Layout layout;
    const Stage stage(chunk, layout);
    const std::uint64_t header = layout.add(sizeof(Job) + count * sizeof(math::Term));
    const std::uint64_t sums = layout.add(tiles.size_bytes());
    Call call(lane_for(chunk));
    std::byte* memory = call.room(layout.bytes());
    stage.copy(call, memory);
    Job job;
    job.tensor = stage.tensor(memory);
    job.facts = facts;
    *as<Job>(call.sent()) = job;
    auto* terms = as<math::Term>(call.sent() + sizeof(Job));
    for (std::size_t t = 0; t < count; ++t) terms[t] = math::term(rule, static_cast<int>(t));
    call.copy_in(memory + header, call.sent(), sizeof(Job) + count * sizeof(math::Term));
    gpu::fold(as<Job>(memory + header), chunk.count, as<math::Term>(memory + header + sizeof(Job)),
              static_cast<unsigned>(count), as<double>(memory + sums), shape_, call.kernels());
    double* next = tiles.data();
    call.bring(memory + sums, tiles.size_bytes(), [&](const std::byte* bytes, std::uint64_t n) {
      std::memcpy(next, bytes, n);
      next += n / sizeof(double);
    });
    call.done();
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
    std::uint64_t output = 0;
    bool small_input[math::kSources + 1] = {};
    bool small_output = false;
  };
  struct Batching {
    Layout sent, received, large;
    std::vector<Place> places;
    std::uint64_t elements = 0;
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

  static std::vector<std::uint8_t> only(const Chunk& chunk, int source) {
    std::vector<std::uint8_t> wanted(static_cast<std::size_t>(chunk.work->rule.sources), 0);
    wanted[static_cast<std::size_t>(source)] = 1;
    return wanted;
  }

  template <class T>
  static void send(Call& call, std::byte* to, const T& value) {
    *as<T>(call.sent()) = value;
    call.copy_in(to, call.sent(), sizeof value);
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

  // Adds an item to a batch, its small parts in the window if `window`. False if it does not fit.
  static bool add(Batching& batch, const Item& item, bool window, const Arena& memory) {
    const Chunk& chunk = item.chunk;
    Batching more{batch.sent, batch.received, batch.large, {}, 0};
    Place place;
    for (std::size_t i = 0; i < chunk.work->inputs.size() && chunk.residence == nullptr; ++i) {
      const std::uint64_t bytes = padded(chunk.count, bits(chunk.work->inputs[i]) / 8);
      place.small_input[i] = window && bytes <= kSmall;
      place.input[i] = (place.small_input[i] ? more.sent : more.large).add(bytes);
    }
    const std::uint64_t bytes = padded(chunk.count, bits(chunk.work->output) / 8);
    place.small_output = window && bytes <= kSmall;
    place.output = (place.small_output ? more.received : more.large).add(bytes);

    const std::uint64_t jobs = batch.places.size() + 1;
    const std::uint64_t sent = more.sent.bytes() + aligned(jobs * sizeof(Job));
    const std::uint64_t received = more.received.bytes() + aligned(jobs * sizeof(Counts));
    const bool alone = !window;  // nothing can be made smaller: what does not fit is an error later
    if (!alone && (sent > kWindow / 2 || received > kWindow / 2 ||
                   sent + received + more.large.bytes() > memory.capacity()))
      return false;
    batch.sent = more.sent;
    batch.received = more.received;
    batch.large = more.large;
    batch.places.push_back(place);
    batch.elements += chunk.count;
    return true;
  }

  // Merges as many of the first items as agree in kernel and device and fit; returns how many.
  std::size_t apply_some(std::span<const Item> items) {
    Lane& lane = lane_for(items.front().chunk);
    const unsigned which = kind(*items.front().facts);
    Batching batch;
    for (const Item& item : items) {
      if (kind(*item.facts) != which) break;
      if (item.chunk.residence != nullptr && &room_of(item.chunk)->lane() != &lane) break;
      if (!add(batch, item, true, lane.work())) break;
    }
    if (batch.places.empty()) (void)add(batch, items.front(), false, lane.work());
    merge(lane, which, items.first(batch.places.size()), batch);
    return batch.places.size();
  }

  void merge(Lane& lane, unsigned which, std::span<const Item> items, Batching& batch) {
    // On the device: what is sent with the jobs behind it, what is received with the counts behind
    // it, what is large.
    const std::uint64_t jobs_at = batch.sent.add(items.size() * sizeof(Job));
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
      for (std::size_t i = 0; i < chunk.work->inputs.size(); ++i) {
        Operand& input = job.tensor.input[i];
        call.moves(bytes_of(chunk, i));
        input.format = format_of(chunk.work->inputs[i]);
        if (chunk.residence != nullptr) {
          input.data = room_of(chunk)->at(chunk, i);
        } else if (place.small_input[i]) {
          std::memcpy(call.sent() + place.input[i], chunk.inputs[i], bytes_of(chunk, i));
          input.data = sent + place.input[i];
        } else {
          input.data = large + place.input[i];
          call.copy_in(large + place.input[i], chunk, i);
        }
      }
      call.moves(output_bytes(items[n]));
      job.tensor.sources = chunk.work->rule.sources;
      job.tensor.base = chunk.work->rule.base;
      job.tensor.first = chunk.first;
      job.tensor.count = chunk.count;
      job.output = (place.small_output ? received : large) + place.output;
      job.format = format_of(chunk.work->output);
      job.overflow = chunk.work->overflow;
      job.span = work.spans;
      job.facts = *items[n].facts;
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
      std::copy(counts[n].kept, counts[n].kept + math::kSources, tally.kept);
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
