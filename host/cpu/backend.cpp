// The CPU backend: chunks go through the loops of tile.hpp on the caller's thread.
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
#include "ingot/methods.hpp"

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
    const math::Rule& rule = work.rule;
    const math::LineShape shape = math::line_shape(rule, math::method(rule.method).lines(rule));
    run_ = {inputs_.data(), rule.base,           rule.sources, chunk.first,
            chunk.count,    chunk.facts->data(), shape,        chunk.lines};
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  [[nodiscard]] const Run& run() const { return run_; }

 private:
  std::array<Input, math::kSources + 1> inputs_;
  Run run_;
};

// The groups of sums of a pass of the method M.
template <class M, class... P>
std::vector<math::Group> groups_of(const math::Rule& rule, int pass, math::List<P...>) {
  std::vector<math::Group> groups;
  [[maybe_unused]] int at = 0;
  [[maybe_unused]] const auto one = [&]<class Some>() {
    if constexpr (Some::kPass != math::Pass::order) {
      if (at == pass) {
        for (int n = 0; n < Some::groups(rule); ++n) groups.push_back(Some::group(rule, n));
      }
    }
    ++at;
  };
  (one.template operator()<P>(), ...);
  return groups;
}
std::vector<math::Group> groups_of(const math::Rule& rule, int pass) {
  std::vector<math::Group> groups;
  math::with_method(rule.method,
                    [&]<class M>() { groups = groups_of<M>(rule, pass, typename M::Passes{}); });
  return groups;
}

const math::PassInfo& pass_of(const math::Rule& rule, int pass) {
  return math::method(rule.method).passes[static_cast<std::size_t>(pass)];
}

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

  void sample(const Chunk& chunk, int pass, std::span<const int> streams, std::uint32_t stride,
              std::span<std::vector<std::int32_t>> keys) override {
    const Arithmetic exact;
    const View view(chunk);
    const math::Rule& rule = chunk.work->rule;
    const Keys loop = tiles_.keys(rule.method, pass);
    std::array<std::int32_t, math::kSampled> run;
    stride = std::max(stride, math::kSampled);
    for (std::uint64_t window = 0; window < chunk.count; window += stride) {
      const auto length =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(stride, chunk.count - window));
      const std::uint32_t n = std::min(math::kSampled, length);
      const std::uint32_t shift = math::sampled(chunk.first + window, length, n);
      for (std::size_t s = 0; s < streams.size(); ++s) {
        loop(view.run(), pass_of(rule, pass).source(streams[s]),
             static_cast<std::uint32_t>(window) + shift, n, run.data());
        keys[s].insert(keys[s].end(), run.begin(), run.begin() + n);
      }
    }
  }

  void verify(const Chunk& chunk, int pass, std::span<const Bracket> brackets, std::uint32_t limit,
              std::span<Verdict> verdicts) override {
    const Arithmetic exact;
    const View view(chunk);
    const math::Rule& rule = chunk.work->rule;
    std::vector<Window> windows(brackets.size());
    std::vector<Census> census(brackets.size());
    // Room for all that may be found, of which little is touched.
    std::vector<std::unique_ptr<Found[]>> found(brackets.size());
    for (std::size_t b = 0; b < brackets.size(); ++b) {
      windows[b] = {brackets[b].stream, pass_of(rule, pass).source(brackets[b].stream),
                    brackets[b].low, brackets[b].high};
      if (brackets[b].low == brackets[b].high) continue;
      census[b].room = std::min(limit, chunk.count);
      found[b] = std::make_unique_for_overwrite<Found[]>(census[b].room);
      census[b].found = found[b].get();
    }
    tiles_.count(rule.method, pass)(view.run(), windows.data(), static_cast<int>(windows.size()),
                                    census.data());
    for (std::size_t b = 0; b < brackets.size(); ++b) {
      Verdict& verdict = verdicts[b];
      verdict = {census[b].above, census[b].at_high, census[b].at_low, {}, false};
      verdict.overflowed = census[b].between > limit;
      const std::uint32_t stored = std::min(census[b].between, census[b].room);
      verdict.between.reserve(stored);
      for (std::uint32_t i = 0; i < stored; ++i) {
        verdict.between.push_back({found[b][i].key, found[b][i].index});
      }
    }
  }

  void histogram(const Chunk& chunk, int pass, int stream, const std::int32_t* prefix,
                 std::span<std::uint64_t> counts) override {
    each_key(chunk, pass, stream, [&](std::uint32_t, std::int32_t key) {
      if (prefix == nullptr) {
        ++counts[static_cast<std::size_t>((key >> 16) + 32768)];
      } else if (key >> 16 == *prefix) {
        ++counts[static_cast<std::size_t>(key & 0xffff)];
      }
      return true;
    });
  }

  std::uint32_t locate(const Chunk& chunk, int pass, int stream, std::int32_t key,
                       std::uint32_t n) override {
    std::uint32_t place = chunk.count;
    each_key(chunk, pass, stream, [&](std::uint32_t index, std::int32_t found) {
      if (found != key || n-- != 0) return true;
      place = index;
      return false;
    });
    if (place == chunk.count) fail(Code::internal, "a key that was counted is not in its chunk");
    return place;
  }

  void fold(const Chunk& chunk, int pass, std::span<double> sums) override {
    const Arithmetic exact;
    const View view(chunk);
    const math::Rule& rule = chunk.work->rule;
    const std::vector<math::Group> groups = groups_of(rule, pass);
    const auto number = static_cast<std::size_t>(pass_of(rule, pass).sums(rule));
    tiles_.fold(rule.method, pass)(view.run(), groups.data(), static_cast<int>(groups.size()),
                                   number == 0 ? 0 : sums.size() / number, sums.data());
  }

  void apply(std::span<const Item> items) override {
    const Arithmetic exact;
    for (const Item& item : items) {
      const View view(item.chunk);
      const Work& work = *item.chunk.work;
      Counts counts;
      tiles_.apply(work.rule.method)(view.run(), format_of(work.output), work.overflow, item.output,
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
  void each_key(const Chunk& chunk, int pass, int stream, Body body) {
    const Arithmetic exact;
    const View view(chunk);
    const math::Rule& rule = chunk.work->rule;
    const Keys loop = tiles_.keys(rule.method, pass);
    const int source = pass_of(rule, pass).source(stream);
    alignas(64) std::array<std::int32_t, kStep> keys;
    for (std::uint32_t from = 0; from < chunk.count; from += kStep) {
      const std::uint32_t n = std::min(kStep, chunk.count - from);
      loop(view.run(), source, from, n, keys.data());
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
