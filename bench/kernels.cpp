// Rates of the CPU backend's loops on one thread, beside the rate at which it can read memory.
//
//   bench_kernels --benchmark_filter=v4      counters: in = input bytes/s, elements/s
//
// Inputs are larger than the last-level cache unless the name says "cached"; the output is one
// chunk that is used again and again, as the engine does.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.hpp"
#include "ingot/backend.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/list.hpp"
#include "measure/measure.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kLarge = std::uint64_t{48} << 20;  // elements of a tensor in memory
constexpr int kModels = 5;

std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// Roughly normal with the given deviation: four 16-bit uniforms.
float normal(std::uint64_t z, float deviation) {
  const std::uint64_t r = mix(z);
  const double sum = static_cast<double>(r & 0xffff) + static_cast<double>((r >> 16) & 0xffff) +
                     static_cast<double>((r >> 32) & 0xffff) + static_cast<double>(r >> 48);
  return static_cast<float>((sum / 65536.0 - 2.0) * std::sqrt(3.0)) * deviation;
}

// Memory from a cache line on.
template <class T>
struct Line {
  using value_type = T;
  Line() = default;
  template <class U>
  explicit Line(const Line<U>&) {}
  T* allocate(std::size_t n) {
    return static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64}));
  }
  void deallocate(T* memory, std::size_t) { ::operator delete (memory, std::align_val_t{64}); }
  friend bool operator==(const Line&, const Line&) { return true; }
};
template <class T>
using Lines = std::vector<T, Line<T>>;

// Model 0 is a base N(0, 0.02), the others fine-tunes of it: updates of deviation 2e-3.
template <math::Format f>
const Lines<typename math::Codec<f>::Word>& model(int index) {
  using Word = typename math::Codec<f>::Word;
  static Lines<Word> models[kModels];
  Lines<Word>& words = models[index];
  if (words.empty()) {
    words.resize(kLarge + 64);
    for (std::uint64_t i = 0; i < kLarge; ++i) {
      float x = normal(i, 0.02F);
      if (index > 0) x += normal((static_cast<std::uint64_t>(index) << 40) + i, 2e-3F);
      words[i] = math::Codec<f>::encode(x, math::Overflow::saturate);
    }
  }
  return words;
}

struct Setup {
  Work work;
  math::Facts facts;
  std::vector<const std::byte*> inputs;
};

// A threshold in the middle, for a method whose masks are measured: the median of |update|, so that
// about half of the elements survive; where, does not matter here.
void measure(Setup& setup) {
  const math::Rule& rule = setup.work.rule;
  const math::Method& m = math::method(rule.method);
  for (const math::PassInfo& pass : m.passes) {
    if (!pass.wanted(rule, setup.facts)) continue;
    if (pass.kind == math::Pass::order) {
      math::Selection found[math::kRanks];
      for (math::Selection& selection : found) {
        selection = {static_cast<std::int32_t>(math::bits(1.35e-3F)), kLarge / 2};
      }
      for (int stream = 0; stream < pass.streams(rule); ++stream) {
        std::uint64_t ranks[math::kRanks];
        if (pass.ranks(rule, setup.facts, stream, ranks) == 0) continue;
        pass.take_order(rule, stream, found, setup.facts);
      }
    } else if (pass.kind == math::Pass::fold) {
      // Two tensors at a right angle; norms that ask for a factor of a half.
      std::vector<double> sums(static_cast<std::size_t>(pass.sums(rule)), 0.0);
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = i % 2 == 0 ? 1.0 : 2.0;
      (void)pass.take(rule, sums.data(), setup.facts);
    }
  }
}

template <math::Format f>
Setup setup(const std::string& method, int models, double density) {
  Setup setup;
  math::Rule& rule = setup.work.rule;
  rule.method = math::find(method.c_str());
  const math::Method& m = math::method(rule.method);
  rule.base = m.card.base == math::Base::origin || m.card.base == math::Base::pivot ||
              m.card.base == math::Base::optional;
  rule.sources = models - (rule.base ? 1 : 0);
  rule.elements = kLarge;
  rule.seed = 1;
  math::set_defaults(rule);
  (void)math::set_global(rule, "t", 0.35);
  (void)math::set_global(rule, "rescale", 0.0);
  if (method == "dare_ties") (void)math::set_global(rule, "normalize", 1.0);
  for (int s = 0; s < rule.sources; ++s) {
    (void)math::set_local(rule, s, "weight", 0.3 + 0.1 * s);
    (void)math::set_local(rule, s, "density", density);
    rule.stream[s] = mix(static_cast<std::uint64_t>(s));
  }
  const Dtype dtype = f == math::Format::f32   ? Dtype::f32
                      : f == math::Format::f16 ? Dtype::f16
                                               : Dtype::bf16;
  setup.work.inputs.assign(static_cast<std::size_t>(models), dtype);
  setup.work.output = dtype;
  for (int i = 0; i < models; ++i) {
    setup.inputs.push_back(reinterpret_cast<const std::byte*>(model<f>(i).data()));
  }
  setup.facts = math::begin(rule);
  measure(setup);
  return setup;
}

// Calls body(chunk) over `total` elements, over and over.
template <math::Format f, class Body>
void sweep(benchmark::State& state, const Setup& setup, std::uint64_t total, Body body) {
  const std::size_t width = math::width(f);
  std::vector<const std::byte*> at(setup.inputs.size());
  for (auto _ : state) {
    for (std::uint64_t first = 0; first < total; first += kChunk) {
      for (std::size_t i = 0; i < at.size(); ++i) at[i] = setup.inputs[i] + first * width;
      Chunk chunk;
      chunk.work = &setup.work;
      chunk.first = first;
      chunk.count = static_cast<std::uint32_t>(std::min(kChunk, total - first));
      chunk.inputs = at.data();
      chunk.facts = &setup.facts;
      body(chunk);
    }
  }
  const double elements = static_cast<double>(state.iterations()) * static_cast<double>(total);
  state.counters["elements"] = benchmark::Counter(elements, benchmark::Counter::kIsRate);
  state.counters["in"] = benchmark::Counter(elements * static_cast<double>(width * at.size()),
                                            benchmark::Counter::kIsRate);
}

template <math::Format f>
void apply(benchmark::State& state, const std::string& isa, const std::string& method, int models,
           double density, std::uint64_t total, std::size_t shift) {
  Setup s = setup<f>(method, models, density);
  for (const std::byte*& input : s.inputs) input += shift;
  const std::unique_ptr<Backend> backend = cpu_backend(isa);
  Lines<std::byte> out(kChunk * math::width(f));
  Tally tally;
  sweep<f>(state, s, total, [&](const Chunk& chunk) {
    const Backend::Item item{chunk, out.data(), &tally};
    backend->apply({&item, 1});
  });
}

// `spread` 0: the bracket has closed on one key; else it holds about 1.2 % of the elements.
template <math::Format f>
void verify(benchmark::State& state, const std::string& isa, int models, float spread) {
  const Setup s = setup<f>("ties", models, 0.5);
  const std::unique_ptr<Backend> backend = cpu_backend(isa);
  std::vector<Bracket> brackets;
  for (int stream = 0; stream < models - 1; ++stream) {
    brackets.push_back({stream, static_cast<std::int32_t>(math::bits(1.35e-3F * (1.0F - spread))),
                        static_cast<std::int32_t>(math::bits(1.35e-3F * (1.0F + spread)))});
  }
  std::vector<Verdict> verdicts(brackets.size());
  std::uint64_t candidates = 0;
  sweep<f>(state, s, kLarge, [&](const Chunk& chunk) {
    backend->verify(chunk, 0, brackets, 65536, verdicts);
    candidates += verdicts[0].between.size();
  });
  state.counters["candidates"] = static_cast<double>(candidates) /
                                 static_cast<double>(state.iterations()) /
                                 static_cast<double>(kLarge);
}

// The exact threshold and cut of one task vector at density 0.5, from stored elements to the
// result, as the engine finds it. Threads share the chunks of a pass.
template <math::Format f>
void select(benchmark::State& state, const std::string& isa, unsigned threads) {
  const Setup s = setup<f>("ties", 2, 0.5);
  const std::unique_ptr<Backend> backend = cpu_backend(isa);
  const auto visit = [&](Measuring& measuring, std::uint32_t index) {
    const std::uint64_t first = index * kChunk;
    const std::byte* const at[] = {s.inputs[0] + first * math::width(f),
                                   s.inputs[1] + first * math::width(f)};
    Chunk chunk;
    chunk.work = &s.work;
    chunk.first = first;
    chunk.count = static_cast<std::uint32_t>(std::min(kChunk, kLarge - first));
    chunk.inputs = at;
    measuring.visit(*backend, chunk);
  };
  const std::string name = "weight";
  for (auto _ : state) {
    Measuring measuring(s.work.rule, name, false);
    while (!measuring.done()) {
      const std::vector<std::uint32_t> chunks = measuring.chunks();
      std::vector<std::thread> others;
      const auto share = [&](std::size_t from) {
        for (std::size_t i = from; i < chunks.size(); i += threads) visit(measuring, chunks[i]);
      };
      for (unsigned t = 1; t < threads; ++t) others.emplace_back(share, t);
      share(0);
      for (std::thread& other : others) other.join();
      measuring.advance();
    }
    benchmark::DoNotOptimize(measuring.known().facts.data());
  }
  const double elements = static_cast<double>(state.iterations()) * static_cast<double>(kLarge);
  state.counters["elements"] = benchmark::Counter(elements, benchmark::Counter::kIsRate);
  state.counters["in"] = benchmark::Counter(elements * static_cast<double>(2 * math::width(f)),
                                            benchmark::Counter::kIsRate);
}

// The sums of a method's first fold.
template <math::Format f>
void fold(benchmark::State& state, const std::string& isa, const std::string& method, int models) {
  Setup s = setup<f>(method, models, 0.5);
  (void)math::set_global(s.work.rule, "rescale", 1.0);
  s.facts = math::begin(s.work.rule);
  measure(s);
  const auto& passes = math::method(s.work.rule.method).passes;
  int pass = 0;
  while (passes[static_cast<std::size_t>(pass)].kind != math::Pass::fold) ++pass;
  const std::unique_ptr<Backend> backend = cpu_backend(isa);
  std::vector<double> tiles(
      static_cast<std::size_t>(passes[static_cast<std::size_t>(pass)].sums(s.work.rule)) *
      (kChunk / math::kTile));
  sweep<f>(state, s, kLarge, [&](const Chunk& chunk) { backend->fold(chunk, pass, tiles); });
}

// Reads `models` tensors in step, as the merges do.
void read(benchmark::State& state, int models) {
  const Setup s = setup<math::Format::bf16>("linear", models, 1.0);
  std::uint64_t sum = 0;
  sweep<math::Format::bf16>(state, s, kLarge, [&](const Chunk& chunk) {
    for (std::size_t from = 0; from < chunk.count * 2; from += 4096) {
      for (int m = 0; m < models; ++m) {
        std::uint64_t lanes[8] = {};
        for (std::size_t at = 0; at < 4096; at += 64) {
          for (std::size_t l = 0; l < 8; ++l) {
            std::uint64_t word;
            std::memcpy(&word, chunk.inputs[m] + from + at + 8 * l, 8);
            lanes[l] += word;
          }
        }
        for (const std::uint64_t lane : lanes) sum += lane;
      }
    }
  });
  benchmark::DoNotOptimize(sum);
}

// What exact selection replaces: nth_element over ready magnitudes.
void nth_element(benchmark::State& state) {
  const Setup s = setup<math::Format::f32>("ties", 2, 0.5);
  std::vector<float> ready(kLarge), work(kLarge);
  for (std::uint64_t i = 0; i < kLarge; ++i) {
    ready[i] = std::fabs(math::from_bits(model<math::Format::bf16>(1)[i] * 65536U) -
                         math::from_bits(model<math::Format::bf16>(0)[i] * 65536U));
  }
  for (auto _ : state) {
    state.PauseTiming();
    work = ready;
    state.ResumeTiming();
    std::nth_element(work.begin(), work.begin() + kLarge / 2, work.end(), std::greater<>());
    benchmark::DoNotOptimize(work.data());
  }
  state.counters["elements"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(kLarge),
                         benchmark::Counter::kIsRate);
}

// A bf16 matrix of 4096 columns with a product of that rank on top, chunk by chunk.
void amend(benchmark::State& state, const std::string& isa, std::uint32_t rank, bool fast) {
  constexpr std::uint64_t kWidth = 4096, kHeight = 2048;
  const auto backend = cpu_backend(isa);
  std::vector<float> a(rank * kWidth), b(kHeight * rank), values(kChunk);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = normal(i, 0.02F);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] = normal(i, 0.02F);
  const auto factors = backend->stage({a, b, rank, kWidth, 0.5F, fast});
  const Factors* const products[] = {factors.get()};
  const auto* own = reinterpret_cast<const std::byte*>(model<math::Format::bf16>(0).data());
  for (auto _ : state) {
    for (std::uint64_t first = 0; first < kWidth * kHeight; first += kChunk) {
      backend->amend(Dtype::bf16, own + 2 * first, products, first, values);
      benchmark::DoNotOptimize(values.data());
    }
  }
  const double count =
      static_cast<double>(state.iterations()) * static_cast<double>(kWidth * kHeight);
  state.counters["elements"] = benchmark::Counter(count, benchmark::Counter::kIsRate);
  state.counters["multiply-adds"] = benchmark::Counter(count * rank, benchmark::Counter::kIsRate);
}

template <class Function>
auto* enlist(const std::string& name, Function function) {
  return benchmark::RegisterBenchmark(name.c_str(), function)->Unit(benchmark::kMillisecond);
}

enum class Place { memory, cached, shifted };

// One line per method, number of inputs and format: "v4/ties/4/bf16".
template <math::Format f>
void enlist_apply(const std::string& isa, const std::string& method, int models,
                  Place place = Place::memory) {
  const std::string format = f == math::Format::bf16  ? "bf16"
                             : f == math::Format::f16 ? "f16"
                                                      : "f32";
  const std::string suffix = place == Place::cached    ? "/cached"
                             : place == Place::shifted ? "/shifted"
                                                       : "";
  const bool masked = method == "ties" || method == "dare_linear" || method == "dare_ties";
  enlist(isa + "/" + method + "/" + std::to_string(models) + "/" + format + suffix,
         [=](benchmark::State& state) {
           apply<f>(state, isa, method, models, masked ? 0.5 : 1.0,
                    place == Place::cached ? 8192 : kLarge, place == Place::shifted ? 8 : 0);
         });
}

void enlist_all() {
  using math::Format;
  for (const int models : {1, 2, 4}) {
    enlist("read/" + std::to_string(models), [=](benchmark::State& state) { read(state, models); });
  }
  enlist("nth_element", nth_element);
  for (const std::string isa : {"v2", "v3", "v4"}) {
    if (!cpu::has_isa(isa)) continue;
    enlist_apply<Format::bf16>(isa, "linear", 2);
    enlist_apply<Format::bf16>(isa, "linear", 4);
    enlist_apply<Format::bf16>(isa, "linear", 4, Place::cached);
    enlist_apply<Format::bf16>(isa, "linear", 4, Place::shifted);
    enlist_apply<Format::f16>(isa, "linear", 4);
    enlist_apply<Format::f32>(isa, "linear", 4);
    enlist_apply<Format::bf16>(isa, "task_arithmetic", 4);
    enlist_apply<Format::bf16>(isa, "task_arithmetic", 4, Place::cached);
    enlist_apply<Format::bf16>(isa, "ties", 2);
    enlist_apply<Format::bf16>(isa, "ties", 4);
    enlist_apply<Format::bf16>(isa, "ties", 4, Place::cached);
    enlist_apply<Format::bf16>(isa, "ties", 4, Place::shifted);
    enlist_apply<Format::f16>(isa, "ties", 4);
    enlist_apply<Format::bf16>(isa, "dare_linear", 2);
    enlist_apply<Format::bf16>(isa, "dare_linear", 2, Place::cached);
    enlist_apply<Format::bf16>(isa, "dare_linear", 4);
    enlist_apply<Format::bf16>(isa, "dare_ties", 4);
    enlist_apply<Format::bf16>(isa, "slerp", 2);
    enlist_apply<Format::bf16>(isa, "slerp", 2, Place::cached);
    const std::string verifying = isa + "/verify/";
    enlist(verifying + "2/bf16/point",
           [=](auto& state) { verify<Format::bf16>(state, isa, 2, 0.0F); });
    enlist(verifying + "2/bf16/window",
           [=](auto& state) { verify<Format::bf16>(state, isa, 2, 0.014F); });
    enlist(verifying + "4/bf16/point",
           [=](auto& state) { verify<Format::bf16>(state, isa, 4, 0.0F); });
    enlist(verifying + "2/f32/window",
           [=](auto& state) { verify<Format::f32>(state, isa, 2, 0.014F); });
    enlist(verifying + "4/f16/point",
           [=](auto& state) { verify<Format::f16>(state, isa, 4, 0.0F); });
    enlist(isa + "/select/bf16/1", [=](auto& state) { select<Format::bf16>(state, isa, 1); });
    enlist(isa + "/select/bf16/2", [=](auto& state) {
      select<Format::bf16>(state, isa, 2);
    })->UseRealTime();
    for (const std::uint32_t rank : {8u, 32u, 128u}) {
      const std::string name = isa + "/amend/bf16/rank " + std::to_string(rank);
      enlist(name, [=](auto& state) { amend(state, isa, rank, false); });
      if (isa == "v4")
        enlist(name + " by BLAS", [=](auto& state) { amend(state, isa, rank, true); });
    }
    const std::string folding = isa + "/fold/";
    enlist(folding + "slerp/2/bf16",
           [=](auto& state) { fold<Format::bf16>(state, isa, "slerp", 2); });
    enlist(folding + "ties/4/bf16",
           [=](auto& state) { fold<Format::bf16>(state, isa, "ties", 4); });
    enlist(folding + "dare_linear/4/bf16",
           [=](auto& state) { fold<Format::bf16>(state, isa, "dare_linear", 4); });
  }
}

}  // namespace
}  // namespace ingot

int main(int argc, char** argv) {
  ingot::enlist_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
