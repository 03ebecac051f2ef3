// The CPU backend: chunks go through the loops of tile.cpp on the caller's thread.
#include "ingot/backend.hpp"

#include <fmt/format.h>

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "base/block.hpp"
#include "cpu/isa.hpp"
#include "ingot/error.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/methods.hpp"

namespace ingot {

void Tally::add(const Tally& other) {
  for (int s = 0; s < math::kSources; ++s) kept[s] += other.kept[s];
  conflicts += other.conflicts;
  change = std::max(change, other.change);
}

namespace cpu {
namespace {

// Round to nearest, subnormals as they are, no traps: whatever another library did to this thread.
class Arithmetic {
 public:
  Arithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~Arithmetic() { _mm_setcsr(before_); }
  Arithmetic(const Arithmetic&) = delete;
  Arithmetic& operator=(const Arithmetic&) = delete;

 private:
  unsigned before_;
};

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
      fail(Code::internal,
           fmt::format("dtype {} has no codec and reached the arithmetic", name(dtype)));
  }
}

// A chunk as the loops take it.
class View {
 public:
  explicit View(const Chunk& chunk) {
    const Work& work = *chunk.work;
    for (std::size_t i = 0; i < work.inputs.size(); ++i) {
      inputs_[i] = {chunk.inputs[i], format_of(work.inputs[i])};
    }
    run_ = {inputs_.data(), work.rule.base, work.rule.sources, chunk.first, chunk.count};
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  [[nodiscard]] const Run& run() const { return run_; }

 private:
  std::array<Input, math::kSources + 1> inputs_;
  Run run_;
};

class Staged final : public Factors {
 public:
  explicit Staged(const Product& p)
      : product{p.a.data(), p.b.data(), p.rank, p.width, p.scale}, fast(p.fast) {}
  LowRank product;
  bool fast;
};

class Cpu final : public Backend {
 public:
  explicit Cpu(const Isa& isa) : isa_(isa), tiles_(*isa.tiles) {}

  std::string describe() const override {
    return fmt::format("cpu, {} ({})", isa_.words, isa_.name);
  }

  std::byte* allocate(std::size_t bytes) override {
    void* memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      fail(Code::memory, fmt::format("cannot allocate {} bytes of staging memory; the machine has "
                                     "too little free memory; lower --memory",
                                     bytes));
    }
    ::madvise(memory, bytes, MADV_HUGEPAGE);
    return static_cast<std::byte*>(memory);
  }

  void release(std::byte* memory, std::size_t bytes) noexcept override { ::munmap(memory, bytes); }

  linalg::Solver& solver() override { return *solver_; }

  std::unique_ptr<Residence> reside(const Work&) override { return nullptr; }
  void admit(const Chunk&) override {}

  void sample(const Chunk& chunk, std::uint32_t stride,
              std::span<std::vector<std::uint32_t>> keys) override {
    const Arithmetic exact;
    const View view(chunk);
    std::array<std::uint32_t, math::kSampled> run;
    stride = std::max(stride, math::kSampled);
    for (std::uint64_t window = 0; window < chunk.count; window += stride) {
      const auto length =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(stride, chunk.count - window));
      const std::uint32_t n = std::min(math::kSampled, length);
      const std::uint32_t shift = math::sampled(chunk.first + window, length, n);
      for (std::size_t s = 0; s < keys.size(); ++s) {
        tiles_.keys(view.run(), static_cast<int>(s), static_cast<std::uint32_t>(window) + shift, n,
                    run.data());
        keys[s].insert(keys[s].end(), run.begin(), run.begin() + n);
      }
    }
  }

  void verify(const Chunk& chunk, std::span<const Bracket> brackets,
              std::span<const std::uint8_t> active, std::uint32_t limit,
              std::span<Verdict> verdicts) override {
    const Arithmetic exact;
    const View view(chunk);
    std::array<Window, math::kSources> windows;
    std::array<Census, math::kSources> census;
    // Room for all that may be found, of which little is touched.
    std::vector<std::unique_ptr<Found[]>> found(brackets.size());
    for (std::size_t s = 0; s < brackets.size(); ++s) {
      windows[s] = {brackets[s].low, brackets[s].high};
      if (active[s] == 0 || brackets[s].low == brackets[s].high) continue;
      census[s].room = std::min(limit, chunk.count);
      found[s] = std::make_unique_for_overwrite<Found[]>(census[s].room);
      census[s].found = found[s].get();
    }
    tiles_.verify(view.run(), windows.data(), active.data(), census.data());
    for (std::size_t s = 0; s < brackets.size(); ++s) {
      Verdict& verdict = verdicts[s];
      verdict = {census[s].above, census[s].at_high, census[s].at_low, {}, false};
      verdict.overflowed = census[s].between > limit;
      const std::uint32_t stored = std::min(census[s].between, census[s].room);
      verdict.between.reserve(stored);
      for (std::uint32_t i = 0; i < stored; ++i) {
        verdict.between.push_back({found[s][i].key, found[s][i].index});
      }
    }
  }

  void histogram(const Chunk& chunk, int source, const std::uint32_t* prefix,
                 std::span<std::uint64_t> counts) override {
    each_key(chunk, source, [&](std::uint32_t, std::uint32_t key) {
      if (prefix == nullptr) {
        ++counts[key >> 16];
      } else if (key >> 16 == *prefix) {
        ++counts[key & 0xffffu];
      }
      return true;
    });
  }

  std::uint32_t locate(const Chunk& chunk, int source, std::uint32_t key,
                       std::uint32_t n) override {
    std::uint32_t place = chunk.count;
    each_key(chunk, source, [&](std::uint32_t index, std::uint32_t found) {
      if (found != key || n-- != 0) return true;
      place = index;
      return false;
    });
    if (place == chunk.count) fail(Code::internal, "a key that was counted is not in its chunk");
    return place;
  }

  void fold(const Chunk& chunk, const math::Facts& facts, std::span<double> tiles) override {
    const Arithmetic exact;
    const View view(chunk);
    const math::Rule& rule = chunk.work->rule;
    std::vector<math::Term> terms;
    for (int t = 0; t < math::needs(rule).folds; ++t) terms.push_back(math::term(rule, t));
    tiles_.fold(view.run(), facts, terms.data(), static_cast<int>(terms.size()), tiles.data());
  }

  void apply(std::span<const Item> items) override {
    const Arithmetic exact;
    for (const Item& item : items) {
      const View view(item.chunk);
      const Work& work = *item.chunk.work;
      Counts counts;
      tiles_.apply(view.run(), *item.facts, format_of(work.output), work.overflow, item.output,
                   counts);
      if (item.tally == nullptr) continue;
      for (int s = 0; s < math::kSources; ++s) item.tally->kept[s] += counts.kept[s];
      item.tally->conflicts += counts.conflicts;
      item.tally->change = std::max(item.tally->change, counts.change);
    }
  }

  std::unique_ptr<Factors> stage(const Product& product) override {
    return std::make_unique<Staged>(product);
  }

  void amend(Dtype dtype, const std::byte* own, std::span<const Factors* const> products,
             std::uint64_t first, std::span<float> values) override {
    if (values.empty()) return;
    const Arithmetic exact;
    std::vector<LowRank> staged;
    for (const Factors* factors : products) {
      staged.push_back(static_cast<const Staged*>(factors)->product);
    }
    const bool fast = !products.empty() && static_cast<const Staged*>(products[0])->fast;
    (*isa_.amend)({own, format_of(dtype)}, staged.data(), fast ? 0 : staged.size(), first,
                  values.size(), values.data());
    if (!fast) return;
    for (const LowRank& p : staged) {
      each_block(first, values.size(), p.width, [&](const Block& block) {
        linalg::add_product(block.rows, block.columns, p.rank, p.scale, p.b + block.row * p.rank,
                            p.a + block.column, values.data() + block.at, p.width);
      });
    }
  }

 private:
  // Calls body(index, key) in order until it returns false.
  template <class Body>
  void each_key(const Chunk& chunk, int source, Body body) {
    const Arithmetic exact;
    const View view(chunk);
    alignas(64) std::array<std::uint32_t, kStep> keys;
    for (std::uint32_t from = 0; from < chunk.count; from += kStep) {
      const std::uint32_t n = std::min(kStep, chunk.count - from);
      tiles_.keys(view.run(), source, from, n, keys.data());
      for (std::uint32_t e = 0; e < n; ++e) {
        if (!body(from + e, keys[e])) return;
      }
    }
  }

  const Isa& isa_;
  const Tiles& tiles_;
  const std::unique_ptr<linalg::Solver> solver_ = linalg::lapack();
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> cpu_backend(const std::string& isa) {
  return std::make_unique<cpu::Cpu>(cpu::isa(isa));
}

}  // namespace ingot
