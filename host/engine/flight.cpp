#include "engine/flight.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "engine/finite.hpp"
#include "engine/supply.hpp"
#include "ingot/methods.hpp"
#include "store/ring.hpp"

namespace ingot {
namespace {

// Copies move raw bytes, four hash blocks at a time.
constexpr std::uint64_t kCopyChunk = std::uint64_t{4} << 20;
// Elements of a derived operand that are made at a time, where one pass is all: their f32 stay in
// L2.
constexpr std::uint32_t kMade = std::uint32_t{1} << 16;
// Inputs of a mapped tensor are not all smaller (bytes).
constexpr std::uint64_t kWindowed = std::uint64_t{2} << 20;
// Share of a tensor in the page cache from which on it is read from there.
constexpr double kHot = 0.95;

}  // namespace

bool hot(const Plan& plan, const Job& job, MergeOptions::Storage storage) {
  using Storage = MergeOptions::Storage;
  if (storage != Storage::automatic) return storage != Storage::direct;
  double in_cache = 0, all = 0;
  for (const Operand& o : job.operands) {
    const Entry& entry = entry_of(plan, o);
    if (!lands(o) || !entry.dense()) continue;
    const auto bytes = static_cast<double>(entry.info.bytes());
    in_cache += bytes * resident(file_of(plan, o), entry.offset, entry.info.bytes());
    all += bytes;
  }
  return in_cache >= kHot * all;
}

bool mappable(const Plan& plan, const Job& job, MergeOptions::Storage storage) {
  using Storage = MergeOptions::Storage;
  if (storage == Storage::buffered) return false;
  const bool merge = job.action == Action::merge;
  bool large = storage == Storage::mapped;
  for (const Operand& o : job.operands) {
    if (o.derived && (measured_first(job) || !lands(o)))
      return false;  // its values are kept between passes
    if (!lands(o)) continue;
    if (!dense(plan, o, merge) || !Window::possible(file_of(plan, o))) return false;
    large = large || entry_of(plan, o).info.bytes() >= kWindowed;
  }
  return large;
}

Flight::Flight(const Plan& plan, std::size_t job, Lodging lodging, Backend& backend,
               Digests* digests)
    : plan_(plan),
      index_(job),
      job_(plan.jobs[job]),
      lodging_(lodging),
      backend_(backend),
      digests_(digests) {
  const bool merge = job_.action == Action::merge;
  elements_ = merge ? job_.work.rule.elements : job_.output.bytes();
  chunk_elements_ = merge ? kChunk : kCopyChunk;
  chunk_count_ = static_cast<std::uint32_t>((elements_ + chunk_elements_ - 1) / chunk_elements_);
  for (const Operand& operand : job_.operands) {
    const bool own = lands(operand);
    width_.push_back(!own ? 0 : merge ? bits(staged_dtype(plan, operand)) / 8 : 1);
    computed_.push_back(!own || !dense(plan, operand, merge));
    making_.push_back(nullptr);
    if (!operand.derived) continue;
    derives_ = true;
    making_.back() = std::make_unique<Making>();
    making_.back()->derived = operand.derived.get();
  }
  out_width_ = merge ? bits(job_.output.dtype) / 8 : 1;
  std::uint64_t least = out_width_;
  for (const std::uint64_t w : width_) {
    if (w > 0) least = std::min(least, w);
  }
  piece_ = backend.staged() ? chunk_elements_ : kHashBlock / least;

  input_blocks_.resize(width_.size());
  for (std::size_t i = 0; i < width_.size(); ++i) {
    input_blocks_[i].resize((elements_ * width_[i] + kHashBlock - 1) / kHashBlock);
  }
  nonfinite_.resize(width_.size());
  output_blocks_.resize((elements_ * out_width_ + kHashBlock - 1) / kHashBlock);
  unwritten = chunk_count_;
  if (merge) {
    measuring_ =
        std::make_unique<Measuring>(job_.work.rule, job_.output.name, lodging == Lodging::passing);
  }
  if (chunk_count_ == 0) return;
  if (merge) {
    const bool measured = !measuring_->done();
    telling_ = !derives_ && !measured && propagates(job_);
    keeps_ = derives_ && (backend.staged() || measured);
    made_.resize(chunk_count_);
    if (lodging == Lodging::resident) {
      residence_ = backend.reside(job_.work);
      if (residence_ == nullptr) lodging_ = Lodging::passing;
    }
  }
  in.resize(chunk_count_);
  out.resize(chunk_count_);
  next();
}

std::uint64_t Flight::first(std::uint32_t chunk) const noexcept { return chunk * chunk_elements_; }

std::uint32_t Flight::elements(std::uint32_t chunk) const noexcept {
  return static_cast<std::uint32_t>(std::min(chunk_elements_, elements_ - first(chunk)));
}

std::uint64_t Flight::input_bytes(std::size_t operand, std::uint32_t chunk) const noexcept {
  return elements(chunk) * width_[operand];
}

std::uint64_t Flight::value_bytes(std::size_t operand, std::uint32_t chunk) const noexcept {
  return keeps_ && making_[operand] ? elements(chunk) * sizeof(float) : 0;
}

std::uint64_t Flight::input_offset(std::size_t operand, std::uint32_t chunk) const noexcept {
  return first(chunk) * width_[operand];
}

std::uint64_t Flight::output_bytes(std::uint32_t chunk) const noexcept {
  return elements(chunk) * out_width_;
}

std::uint64_t Flight::output_offset(std::uint32_t chunk) const noexcept {
  return first(chunk) * out_width_;
}

bool Flight::reads() const noexcept { return !(lodging_ == Lodging::resident && admitted_); }

void Flight::begin(Step step, std::vector<std::uint32_t> chunks) {
  step_ = step;
  chunks_ = std::move(chunks);
  remaining_ = static_cast<std::uint32_t>(chunks_.size());
  // Inputs are hashed in the first pass that reads all of them; a sample touches only a few lines.
  const bool sampling = step == Step::measure && measuring_->sampling();
  hashing_ = !hashed_ && !sampling && chunks_.size() == chunk_count_;
}

// The order of steps: everything lands (and is hashed) once, the method's passes, apply.
void Flight::next() {
  std::vector<std::uint32_t> all(chunk_count_);
  for (std::uint32_t c = 0; c < chunk_count_; ++c) all[c] = c;
  const bool measuring = measuring_ && !measuring_->done();
  const bool landing = !landed_ && (lodging_ == Lodging::held || lodging_ == Lodging::resident);
  // An order pass looks at a few lines of each chunk first; folds take chunks as they land.
  if (measuring && landing && measuring_->ordering()) return begin(Step::land, std::move(all));
  if (measuring) return begin(Step::measure, measuring_->chunks());
  if (step_ != Step::apply) return begin(Step::apply, std::move(all));
  begin(Step::done, {});
}

void Flight::advance() {
  if (step_ == Step::measure) measuring_->advance();
  if (chunks_.size() == chunk_count_) {  // every chunk was visited
    hashed_ = hashed_ || hashing_;
    admitted_ = admitted_ || residence_ != nullptr;
    landed_ = true;
  }
  next();
}

Chunk Flight::view(std::uint64_t first, std::uint32_t count, const std::byte* const* inputs) const {
  Chunk chunk;
  chunk.work = &job_.work;
  chunk.first = first;
  chunk.count = count;
  chunk.inputs = inputs;
  chunk.residence = residence_.get();
  if (measuring_) {
    const Measurements& known = measuring_->known();
    chunk.facts = &known.facts;
    chunk.lines = known.lines.empty() ? nullptr : known.lines.data();
  }
  return chunk;
}

// Block by block: hashed bytes are still in the cache when they are scanned.
void Flight::hash_inputs(std::uint64_t first, std::uint32_t count, const std::byte* const* inputs) {
  for (std::size_t i = 0; i < width_.size(); ++i) {
    if (computed_[i] || width_[i] == 0) continue;  // hashed as stored, by outcome()
    const std::uint64_t begin = first * width_[i], bytes = count * width_[i];
    for (std::uint64_t at = 0; at < bytes; at += kHashBlock) {
      const std::span block(inputs[i] + at, std::min<std::uint64_t>(kHashBlock, bytes - at));
      if (digests_ != nullptr) input_blocks_[i][(begin + at) / kHashBlock] = hash_block(block);
      if (!telling_) scan_input(i, begin + at, block);
    }
  }
}

void Flight::scan_input(std::size_t index, std::uint64_t at, std::span<const std::byte> data) {
  const Operand& operand = job_.operands[index];
  const Dtype dtype = entry_of(plan_, operand).info.dtype;
  const std::uint64_t width = std::max<std::uint64_t>(bits(dtype) / 8, 1);
  const Count found = count_nonfinite(dtype, data, at / width);
  if (found.count == 0) return;
  const std::lock_guard lock(mutex_);
  nonfinite_[index].add(found);
}

void Flight::hash_into(std::vector<Digest>& blocks, std::uint64_t at,
                       std::span<const std::byte> data) {
  for (std::size_t i = 0; i < data.size(); i += kHashBlock) {
    blocks[(at + i) / kHashBlock] =
        hash_block(data.subspan(i, std::min(kHashBlock, data.size() - i)));
  }
}

void Flight::fill(std::size_t operand, std::uint64_t first, std::uint32_t count,
                  const std::byte* own, std::byte* values) {
  Making& making = *making_[operand];
  making.once.call([&] { making.working = making.derived->begin(plan_, &backend_); });
  const std::size_t bytes = own == nullptr ? 0 : count * width_[operand];
  making.working->fill(first, {own, bytes}, {reinterpret_cast<float*>(values), count});
}

// Copies have the same findings as their inputs.
void Flight::look(std::uint64_t first, std::span<const std::byte> output,
                  const std::byte* const* inputs) {
  const Findings found = examine(
      plan_, job_, measuring_->known(), first, output,
      [this](std::size_t operand, std::uint64_t at, std::span<const std::byte> own,
             std::span<float> values) { making_[operand]->working->fill(at, own, values); });
  if (found.nonfinite.count == 0 && found.saturated.count == 0) return;
  for (std::size_t i = 0; telling_ && i < width_.size(); ++i) {
    if (computed_[i] || width_[i] == 0) continue;
    scan_input(i, first * width_[i], {inputs[i], output.size() / out_width_ * width_[i]});
  }
  const std::lock_guard lock(mutex_);
  findings_.add(found);
}

void Flight::apply(std::uint64_t first, std::uint32_t count, const std::byte* const* inputs,
                   std::byte* target, Tally& tally) {
  const Backend::Item item{view(first, count, inputs), target, &tally};
  backend_.apply({&item, 1});
}

void Flight::visit(std::uint32_t chunk, const std::byte* const* landed, std::byte* const* values,
                   std::byte* out_bytes, const Emit& emit) {
  const std::uint64_t begin = first(chunk);
  const std::uint32_t count = elements(chunk);
  std::vector<const std::byte*> inputs(landed, landed + width_.size());
  std::vector<std::uint64_t> stride = width_;  // bytes per element of what `inputs` points to
  const bool hold = lodging_ == Lodging::held;
  if (keeps_ && reads()) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (!making_[i]) continue;
      if (!hold || made_[chunk] == 0) fill(i, begin, count, landed[i], values[i]);
      inputs[i] = values[i];
      stride[i] = sizeof(float);
    }
    made_[chunk] = 1;
  }
  if (step_ != Step::apply) {
    if (hashing_) hash_inputs(begin, count, landed);
    const Chunk whole = view(begin, count, inputs.data());
    if (residence_ && !admitted_) backend_.admit(whole);
    if (step_ == Step::measure) measuring_->visit(backend_, whole);
    return;
  }
  Tally tally;
  std::vector<const std::byte*> at(width_.size());
  std::vector<float> made;
  for (std::uint64_t done = 0; done < count; done += piece_) {
    const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(piece_, count - done));
    const auto seek = [&](std::uint64_t to, const std::vector<std::uint64_t>& by,
                          const std::byte* const* from) {
      for (std::size_t i = 0; i < at.size(); ++i) {
        at[i] = from[i] == nullptr ? nullptr : from[i] + to * by[i];
      }
    };
    if (hashing_) {
      seek(done, width_, landed);
      hash_inputs(begin + done, n, at.data());
    }
    const std::byte* result = nullptr;
    // Pieces go out one by one from the same bytes, which stay in the cache; or side by side.
    std::byte* target = emit ? out_bytes : out_bytes + done * out_width_;
    if (job_.action == Action::copy) {
      seek(done, width_, landed);
      compare(begin + done, n, at.data());
      result = at[0];
      if (!emit) std::memcpy(target, at[0], n);
    } else if (derives_ && !keeps_) {
      made.resize(width_.size() * kMade);
      for (std::uint32_t part = 0; part < n; part += kMade) {
        const std::uint32_t m = std::min(kMade, n - part);
        seek(done + part, width_, landed);
        for (std::size_t i = 0; i < at.size(); ++i) {
          if (!making_[i]) continue;
          auto* room = reinterpret_cast<std::byte*>(made.data() + i * kMade);
          fill(i, begin + done + part, m, at[i], room);
          at[i] = room;
        }
        apply(begin + done + part, m, at.data(), target + part * out_width_, tally);
      }
      result = target;
    } else {
      seek(done, stride, inputs.data());
      apply(begin + done, n, at.data(), target, tally);
      result = target;
    }
    const std::span<const std::byte> piece(result, n * out_width_);
    if (digests_ != nullptr) hash_into(output_blocks_, (begin + done) * out_width_, piece);
    if (job_.action == Action::merge) {
      seek(done, width_, landed);
      look(begin + done, piece, at.data());
    }
    if (emit) emit((begin + done) * out_width_, piece);
  }
  const std::lock_guard lock(mutex_);
  tally_.add(tally);
}

// A copy is made only where all inputs hold the same bytes: anything else would need a formula that
// this type does not have.
void Flight::compare(std::uint64_t at, std::uint32_t bytes, const std::byte* const* inputs) const {
  for (std::size_t i = 1; i < job_.operands.size(); ++i) {
    if (std::memcmp(inputs[0], inputs[i], bytes) == 0) continue;
    const auto shown = [&](std::size_t operand) {
      return plan_.models[job_.operands[operand].model].ref.text;
    };
    fail(Code::dtype,
         fmt::format("{} ({}) differs between {} and {} near byte {}: {} tensors are copied, not "
                     "merged, so all models must agree on them",
                     job_.output.name, name(job_.output.dtype), shown(0), shown(i), at,
                     name(job_.output.dtype)));
  }
}

Outcome Flight::outcome() {
  Outcome result;
  result.inputs.resize(width_.size());
  result.ingredients.resize(width_.size());
  result.found.resize(width_.size());
  result.nonfinite = nonfinite_;
  result.ingredients_nonfinite.resize(width_.size());
  result.findings = findings_;
  for (std::size_t i = 0; i < width_.size(); ++i) {
    const Operand& operand = job_.operands[i];
    if (making_[i] && making_[i]->working) {
      result.found[i] = operand.derived->found(*making_[i]->working);
    }
    if (digests_ == nullptr) continue;
    if (width_[i] > 0) {
      result.inputs[i] = computed_[i] ? digests_->of({operand.model, operand.entry})
                                      : hash_digests(input_blocks_[i]);
      if (computed_[i]) result.nonfinite[i] = digests_->nonfinite({operand.model, operand.entry});
    }
    if (!making_[i]) continue;
    for (const Ingredient& part : operand.derived->ingredients()) {
      result.ingredients[i].push_back(digests_->of(part));
      result.ingredients_nonfinite[i].push_back(digests_->nonfinite(part));
    }
  }
  if (job_.action == Action::copy) result.findings.nonfinite = result.nonfinite[0];
  if (digests_ != nullptr) result.output = hash_digests(output_blocks_);
  result.tally = tally_;
  if (measuring_) result.facts = measuring_->known().facts;
  return result;
}

void Flight::signal() {
  const std::lock_guard lock(mutex_);
  ended_flag_ = true;
  ended_.notify_all();
}

void Flight::await() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return ended_flag_; });
  ended_flag_ = false;
}

}  // namespace ingot
