// Every kernel against the CPU backend, bit for bit: sizes around every edge, all dtypes, all
// values, any block and grid.
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "apply.hpp"
#include "data.hpp"
#include "measure.hpp"
#include "order.hpp"
#include "select.hpp"
#include "stand.hpp"
#include "stream.hpp"

namespace ingot {
namespace {

using gpu::Shape;
using test::Case;
using test::make;
using test::Recipe;

#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kSizes[] = {1, 8, 33, 2049};
constexpr std::uint64_t kMost = 16385;
#else
constexpr std::uint64_t kSizes[] = {1, 7, 8, 31, 32, 33, 255, 256, 257, 2047, 8193};
constexpr std::uint64_t kMost = 40961;
#endif

const std::vector<Shape> kShapes = {{256, 65536}, {32, 1}, {64, 3}, {128, 2}};

void check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess); }

// Device memory of exactly the size a kernel may touch.
class Memory {
 public:
  explicit Memory(std::size_t bytes, const void* data = nullptr, std::size_t size = 0)
      : bytes_(bytes) {
    check(cudaMalloc(&memory_, std::max<std::size_t>(bytes, 1)));
    if (size == 0) return;
    const gpu::Stream stream;
    check(cudaMemcpyAsync(memory_, data, size, cudaMemcpyHostToDevice, stream.get()));
    check(cudaStreamSynchronize(stream.get()));
  }
  ~Memory() { check(cudaFree(memory_)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(memory_);
  }
  // A copy of what it holds.
  template <class T>
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(bytes_ / sizeof(T));
    const gpu::Stream stream;
    check(cudaMemcpyAsync(values.data(), memory_, bytes_, cudaMemcpyDeviceToHost, stream.get()));
    check(cudaStreamSynchronize(stream.get()));
    return values;
  }

 private:
  void* memory_ = nullptr;
  std::size_t bytes_;
};

// A case's inputs on the device, and what is known of it.
class Inputs {
 public:
  explicit Inputs(const Case& c, std::uint64_t first = 0) {
    std::vector<gpu::Operand> operands;
    for (std::size_t i = 0; i < c.inputs.size(); ++i) {
      const std::size_t width = bits(c.work.inputs[i]) / 8;
      const std::byte* input =
          keep(gpu::padded(c.count(), width), c.inputs[i].data(), c.inputs[i].size());
      operands.push_back({input, test::format_of(c.work.inputs[i])});
    }
    const std::size_t bytes = operands.size() * sizeof(gpu::Operand);
    tensor_.input = reinterpret_cast<gpu::Operand*>(keep(bytes, operands.data(), bytes));
    tensor_.facts = keep(c.facts.bytes(), c.facts.data(), c.facts.bytes());
    const math::Rule& rule = c.work.rule;
    tensor_.line.shape = math::line_shape(rule, math::method(rule.method).lines(rule));
    tensor_.line.count = tensor_.line.shape.count;
    const std::size_t lines = c.lines.size() * sizeof(double);
    if (lines > 0)
      tensor_.line.facts = reinterpret_cast<double*>(keep(lines, c.lines.data(), lines));
    tensor_.sources = rule.sources;
    tensor_.base = rule.base;
    tensor_.first = first;
    tensor_.count = c.count();
    (void)keep(sizeof tensor_, &tensor_, sizeof tensor_);
  }
  [[nodiscard]] const gpu::Tensor& tensor() const { return tensor_; }
  [[nodiscard]] const gpu::Tensor* on_device() const { return memory_.back()->as<gpu::Tensor>(); }

 private:
  std::byte* keep(std::size_t bytes, const void* data, std::size_t size) {
    memory_.push_back(std::make_unique<Memory>(bytes, data, size));
    return memory_.back()->as<std::byte>();
  }

  std::vector<std::unique_ptr<Memory>> memory_;
  gpu::Tensor tensor_;
};

// Facts of a case as those of elements that lie `first` further on: cuts are indices.
class Shift final : public math::Teller {
 public:
  explicit Shift(std::uint64_t first) : first_(first) {}
  bool number(const char*, int, int, double&) override { return true; }
  bool key(const char*, int, std::int32_t&) override { return true; }
  bool count(const char* name, int, std::uint64_t& value) override {
    if (std::string(name).ends_with("cut")) value += first_;
    return true;
  }

 private:
  std::uint64_t first_;
};

void finish(const gpu::Stream& stream) { check(cudaStreamSynchronize(stream.get())); }

// Compares and says where two outputs part.
::testing::AssertionResult same(const std::vector<std::byte>& expected,
                                const std::vector<std::byte>& found, std::size_t width) {
  for (std::size_t at = 0; at < expected.size(); at += width) {
    if (std::memcmp(&expected[at], &found[at], width) == 0) continue;
    std::uint32_t e = 0, f = 0;
    std::memcpy(&e, &expected[at], width);
    std::memcpy(&f, &found[at], width);
    return ::testing::AssertionFailure()
           << "element " << at / width << ": expected " << std::hex << e << ", found " << f;
  }
  return ::testing::AssertionSuccess();
}

class Kernels : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  void SetUp() override {
    INGOT_NEEDS_DEVICE();
    test::fresh(GetParam());
  }
  const std::unique_ptr<Backend> cpu_ = cpu_backend("");
};

void expect_apply(Backend& cpu, const Case& c, const Shape& shape, unsigned span,
                  std::uint64_t first = 0) {
  SCOPED_TRACE(c.name + ", blocks of " + std::to_string(shape.threads) + ", at " +
               std::to_string(first));
  std::vector<std::byte> expected(c.count() * c.output_width());
  Tally tally;
  const auto pointers = c.pointers(0);
  const Backend::Item item{c.chunk(pointers, first), expected.data(), &tally};
  cpu.apply({&item, 1});

  const gpu::Stream stream;
  const Inputs inputs(c, first);
  const Memory output(gpu::padded(c.count(), c.output_width()));
  gpu::Job job;
  job.tensor = inputs.tensor();
  job.output = output.as<std::byte>();
  job.format = test::format_of(c.work.output);
  job.overflow = c.work.overflow;
  const gpu::Counts zero = {};
  const Memory jobs(sizeof job, &job, sizeof job), counts(sizeof zero, &zero, sizeof zero);
  const gpu::Batch batch{jobs.as<gpu::Job>(), 1, span, gpu::spans(c.count(), span),
                         counts.as<gpu::Counts>()};
  gpu::apply(gpu::kind(c.work.rule.method, c.work.rule.sources), batch, shape, stream);
  finish(stream);
  EXPECT_TRUE(same(expected, output.read<std::byte>(), c.output_width()));
  const gpu::Counts found = counts.read<gpu::Counts>()[0];
  const bool masks = math::method(c.work.rule.method).masks;
  for (int s = 0; s < math::kSources; ++s) EXPECT_EQ(found.kept[s], masks ? tally.kept[s] : 0) << s;
  EXPECT_EQ(found.conflicts, tally.conflicts);
  EXPECT_EQ(found.change, tally.change);
}

TEST_P(Kernels, ApplyGivesTheBytesAndCountsOfTheCpuForEveryMethodAndSize) {
  std::size_t n = 0;
  for (const Recipe& recipe : test::all_recipes())
    for (const std::uint64_t size : kSizes) {
      const Dtype dtype = test::kDtypes5[n % 5], output = test::kDtypes5[(n / 5 + n) % 5];
      const auto overflow = n % 2 == 0 ? math::Overflow::saturate : math::Overflow::propagate;
      expect_apply(*cpu_, make(recipe, size, {dtype}, output, 100 + n, 16, overflow),
                   kShapes[n % kShapes.size()], n % 3 == 0 ? 32 : 256);
      ++n;
    }
}

TEST_P(Kernels, ApplyReadsEveryMixOfInputTypes) {
  std::size_t n = 0;
  for (const Recipe& recipe : test::all_recipes()) {
    const std::vector<Dtype> mixed = {Dtype::bf16, Dtype::f8_e4m3, Dtype::f32, Dtype::f16,
                                      Dtype::f8_e5m2};
    expect_apply(*cpu_, make(recipe, 1003, mixed, test::kDtypes5[n % 5], 900 + n),
                 kShapes[n % kShapes.size()], 64);
    ++n;
  }
}

TEST_P(Kernels, ApplyUsesTheWholeIndexOfAnElement) {
  // Places whose lower 32 bits are small: a truncated index would draw and cut as at the beginning.
  for (const std::uint64_t first :
       {std::uint64_t{1} << 20, (std::uint64_t{1} << 32) + (1 << 20), std::uint64_t{5} << 33})
    for (const math::Method& method : math::kMethods)
      for (const int sources : {3, 6}) {
        if (!method.masks || method.line_facts > 0) continue;
        Case c = make({method.card.name, sources, 0.5}, 2051, {Dtype::bf16}, Dtype::bf16,
                      first % 1000 + 3);
        Shift shift(first);
        (void)method.tell(c.work.rule, c.facts, shift);
        expect_apply(*cpu_, c, kShapes[0], 256, first);
      }
}

TEST_P(Kernels, ApplyTakesSixtyFourSources) {
  for (const math::Method& method : math::kMethods)
    if (test::most_sources(method) == 64)
      expect_apply(
          *cpu_, make({method.card.name, 64, 0.5}, 271, {Dtype::bf16, Dtype::f16}, Dtype::f32, 77),
          kShapes[0], 32);
}

TEST_P(Kernels, ApplyOfABaseAloneIsTheBase) {
  for (const math::Method& method : math::kMethods)
    if (test::least_sources(method) == 0)
      expect_apply(*cpu_, make({method.card.name, 0}, 300, {Dtype::bf16}, Dtype::f16, 78),
                   kShapes[0], 32);
}

TEST_P(Kernels, ManyJobsOfOneLaunchAreWhatEachIsAlone) {
  std::vector<Case> cases;
  for (const std::uint64_t size : {1U, 4096U, 257U, 8U, 2049U, 7U, 300U})
    cases.push_back(make({"ties", 3, 0.4}, size, {test::kDtypes5[size % 5]},
                         test::kDtypes5[size / 2 % 5], size + 5));
  const gpu::Stream stream;
  std::vector<std::unique_ptr<Inputs>> inputs;
  std::vector<std::unique_ptr<Memory>> outputs;
  std::vector<gpu::Job> jobs(cases.size());
  std::uint64_t all = 0;
  constexpr unsigned span = 64;
  for (std::size_t n = 0; n < cases.size(); ++n) {
    const Case& c = cases[n];
    inputs.push_back(std::make_unique<Inputs>(c));
    outputs.push_back(std::make_unique<Memory>(gpu::padded(c.count(), c.output_width())));
    jobs[n].tensor = inputs[n]->tensor();
    jobs[n].output = outputs[n]->as<std::byte>();
    jobs[n].format = test::format_of(c.work.output);
    jobs[n].span = all;
    all += gpu::spans(c.count(), span);
  }
  const std::vector<gpu::Counts> zero(jobs.size());
  for (const Shape& shape : kShapes) {
    const Memory list(jobs.size() * sizeof(gpu::Job), jobs.data(), jobs.size() * sizeof(gpu::Job));
    const Memory counts(zero.size() * sizeof(gpu::Counts), zero.data(),
                        zero.size() * sizeof(gpu::Counts));
    gpu::apply(gpu::kind(cases[0].work.rule.method, 3),
               {list.as<gpu::Job>(), static_cast<unsigned>(jobs.size()), span, all,
                counts.as<gpu::Counts>()},
               shape, stream);
    finish(stream);
    const auto tallies = counts.read<gpu::Counts>();
    for (std::size_t n = 0; n < cases.size(); ++n) {
      const Case& c = cases[n];
      std::vector<std::byte> expected(c.count() * c.output_width());
      Tally tally;
      const auto pointers = c.pointers(0);
      const Backend::Item item{c.chunk(pointers), expected.data(), &tally};
      cpu_->apply({&item, 1});
      EXPECT_TRUE(same(expected, outputs[n]->read<std::byte>(), c.output_width())) << c.name;
      for (int s = 0; s < 3; ++s) EXPECT_EQ(tallies[n].kept[s], tally.kept[s]) << c.name;
    }
  }
}

// The recipes of methods that have a pass of these kinds, with its number.
struct Measured {
  Recipe recipe;
  int pass;
};
std::vector<Measured> measured(bool order) {
  std::vector<Measured> list;
  for (const Recipe& recipe : test::all_recipes()) {
    const auto passes = math::method(math::find(recipe.method.c_str())).passes;
    if (recipe.sources > 3) continue;
    for (std::size_t p = 0; p < passes.size(); ++p)
      if ((passes[p].kind == math::Pass::order) == order)
        list.push_back({recipe, static_cast<int>(p)});
  }
  return list;
}

TEST_P(Kernels, FoldsHaveTheBitsOfTheCpusForAnyGrid) {
  std::size_t n = 0;
  for (const auto& [recipe, pass] : measured(false))
    for (const std::uint64_t size :
         {std::uint64_t{1}, std::uint64_t{257}, std::uint64_t{16384}, kMost}) {
      const Case c = make(recipe, size, {test::kDtypes5[n % 5], Dtype::bf16}, Dtype::f32, 40 + n,
                          n % 2 == 0 ? 0 : 64);
      SCOPED_TRACE(c.name + ", pass " + std::to_string(pass));
      const math::Rule& rule = c.work.rule;
      if (!test::has_places(rule, pass)) continue;
      const auto pointers = c.pointers(0);
      const Inputs inputs(c);
      const gpu::Folding folding = {rule.method, pass, inputs.on_device(),
                                    0,           size, inputs.tensor().line.shape};
      const std::uint64_t places = gpu::fold_places(folding);
      const math::PassInfo& info = math::method(rule.method).passes[static_cast<std::size_t>(pass)];
      std::vector<double> expected(static_cast<std::size_t>(info.sums(rule)) * places, -1);
      cpu_->fold(c.chunk(pointers), pass, expected);

      const std::vector<math::Group> groups = gpu::groups(rule.method, pass, rule);
      const gpu::Stream stream;
      const Memory list(groups.size() * sizeof(math::Group), groups.data(),
                        groups.size() * sizeof(math::Group));
      const Memory sums(expected.size() * sizeof(double));
      gpu::fold(folding, list.as<math::Group>(), static_cast<unsigned>(groups.size()),
                sums.as<double>(), {256, n % 2 == 0 ? 65536U : 2U}, stream);
      finish(stream);
      const auto all = sums.read<double>();
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const double found = all[i];
        const bool nan = expected[i] != expected[i] && found != found;  // payloads may differ
        ASSERT_TRUE(nan || std::memcmp(&expected[i], &found, sizeof found) == 0)
            << i << ": expected " << expected[i] << ", found " << found;
      }
      ++n;
    }
}

// The streams of a pass that have ranks or could have, as the backend and as kernels name them.
struct Streams {
  std::vector<int> stream, source;
};
Streams streams_of(const Case& c, int pass) {
  const math::PassInfo& info =
      math::method(c.work.rule.method).passes[static_cast<std::size_t>(pass)];
  Streams all;
  for (int stream = 0; stream < info.streams(c.work.rule); ++stream) {
    all.stream.push_back(stream);
    all.source.push_back(std::max(info.source(stream), 0));
  }
  return all;
}

TEST_P(Kernels, SamplesAreTheKeysTheCpuTakes) {
  std::size_t n = 0;
  for (const auto& [recipe, pass] : measured(true))
    for (const std::uint64_t size :
         {std::uint64_t{1}, std::uint64_t{63}, std::uint64_t{64}, std::uint64_t{1000}}) {
      const Case c = make(recipe, size, {test::kDtypes5[n % 5]}, Dtype::f32, 60 + n);
      const auto pointers = c.pointers(0);
      const std::uint64_t first = c.lines.empty() ? 7 * kChunk : 0;
      const Streams streams = streams_of(c, pass);
      const std::size_t many = streams.stream.size();
      for (const std::uint32_t stride : {64U, 100U, 1024U}) {
        std::vector<std::vector<std::int32_t>> expected(many);
        cpu_->sample(c.chunk(pointers, first), pass, streams.stream, stride, expected);
        const std::uint64_t runs = (size + stride - 1) / stride;
        const gpu::Stream stream;
        const Inputs inputs(c, first);
        const Memory sources(many * sizeof(int), streams.source.data(), many * sizeof(int));
        const Memory keys(many * runs * 64 * sizeof(std::int32_t));
        gpu::sample({c.work.rule.method, pass, inputs.on_device(), size}, sources.as<int>(),
                    static_cast<unsigned>(many), stride, keys.as<std::int32_t>(),
                    kShapes[n % kShapes.size()], stream);
        finish(stream);
        const auto found = keys.read<std::int32_t>();
        for (std::size_t s = 0; s < many; ++s) {
          ASSERT_FALSE(expected[s].empty());
          EXPECT_TRUE(std::equal(expected[s].begin(), expected[s].end(),
                                 found.begin() + static_cast<std::ptrdiff_t>(s * runs * 64)))
              << c.name << " stride " << stride;
        }
      }
      ++n;
    }
}

// One to three brackets for each stream, around keys that there are.
std::vector<Bracket> brackets_of(Backend& cpu, const Case& c, int pass, const Streams& streams,
                                 std::size_t n) {
  test::Random random(n);
  const auto pointers = c.pointers(0);
  std::vector<std::vector<std::int32_t>> keys(streams.stream.size());
  cpu.sample(c.chunk(pointers), pass, streams.stream, 64, keys);
  std::vector<Bracket> brackets;
  for (std::size_t s = 0; s < keys.size(); ++s) {
    const auto key = [&] { return keys[s][random.below(keys[s].size())]; };
    for (std::size_t b = 0; b <= (n + s) % 3; ++b) {
      Bracket bracket = {streams.stream[s], key(), key()};
      if (bracket.low > bracket.high) std::swap(bracket.low, bracket.high);
      if ((s + b) % 3 == 1) bracket.low = bracket.high;
      if ((s + b) % 4 == 2) {
        bracket.low = std::numeric_limits<std::int32_t>::min();
        bracket.high = std::numeric_limits<std::int32_t>::max();
      }
      brackets.push_back(bracket);
    }
  }
  return brackets;
}

TEST_P(Kernels, VerifyCountsAndListsInOrder) {
  std::size_t n = 0;
  for (const auto& [recipe, pass] : measured(true))
    for (const std::uint64_t size :
         {std::uint64_t{1}, std::uint64_t{33}, std::uint64_t{8192}, kMost}) {
      // The largest size for one recipe of a method: what follows differs in the number of streams.
      if (size == kMost && (recipe.sources != 3 || recipe.flipped)) continue;
      const Case c = make(recipe, size, {test::kDtypes5[n % 5]}, Dtype::f32, 80 + n);
      SCOPED_TRACE(c.name);
      const auto pointers = c.pointers(0);
      const Streams streams = streams_of(c, pass);
      const std::vector<Bracket> brackets = brackets_of(*cpu_, c, pass, streams, n);
      const std::size_t count = brackets.size();
      const auto limit = static_cast<std::uint32_t>(n % 2 == 0 ? size : size / 64 + 1);
      std::vector<Verdict> expected(count);
      cpu_->verify(c.chunk(pointers), pass, brackets, limit, expected);

      const gpu::Stream stream;
      const Inputs inputs(c);
      const std::uint64_t spans = (size + gpu::kSpan - 1) / gpu::kSpan;
      std::vector<Bracket> named = brackets;
      for (Bracket& b : named) b.stream = streams.source[static_cast<std::size_t>(b.stream)];
      const std::vector<gpu::Census> zero(count);
      const Memory list(count * sizeof(Bracket), named.data(), count * sizeof(Bracket));
      const Memory census(count * sizeof(gpu::Census), zero.data(), count * sizeof(gpu::Census));
      const Memory found(count * limit * sizeof(Candidate));
      const std::vector<gpu::Segment> none(count * spans);
      const Memory segments(none.size() * sizeof(gpu::Segment), none.data(),
                            none.size() * sizeof(gpu::Segment));
      const std::vector<Candidate> unwritten(count * limit, {-1, ~0U});
      const Memory ordered(unwritten.size() * sizeof(Candidate), unwritten.data(),
                           unwritten.size() * sizeof(Candidate));
      const Memory scratch(gpu::order_bytes(count, spans));
      gpu::verify({c.work.rule.method, pass, inputs.on_device(), size}, list.as<Bracket>(),
                  static_cast<unsigned>(count), limit, census.as<gpu::Census>(),
                  found.as<Candidate>(), segments.as<gpu::Segment>(), kShapes[n % kShapes.size()],
                  stream);
      gpu::order({found.as<Candidate>(), segments.as<gpu::Segment>(), census.as<gpu::Census>(),
                  count, spans, limit},
                 ordered.as<Candidate>(), scratch.as<std::byte>(), stream);
      finish(stream);
      const auto counted = census.read<gpu::Census>();
      const auto all = ordered.read<Candidate>();
      std::size_t next = 0;
      for (std::size_t s = 0; s < count; ++s) {
        const gpu::Census& is = counted[s];
        EXPECT_EQ(is.above, expected[s].above);
        EXPECT_EQ(is.at_high, expected[s].at_high);
        EXPECT_EQ(is.at_low, expected[s].at_low);
        EXPECT_EQ(is.between > limit, expected[s].overflowed);
        if (is.between > limit) continue;
        ASSERT_EQ(is.between, expected[s].between.size());
        for (const Candidate& candidate : expected[s].between) {
          ASSERT_EQ(all[next].index, candidate.index);
          ASSERT_EQ(all[next].key, candidate.key);
          ++next;
        }
      }
      for (; next < all.size(); ++next) ASSERT_EQ(all[next].index, ~0U) << "behind the last one";
      ++n;
    }
}

TEST_P(Kernels, HistogramsAndMatchesFindWhatTheCpuFinds) {
  std::size_t n = 0;
  for (const auto& [recipe, pass] : measured(true))
    for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{33}, std::uint64_t{2049}}) {
      if (recipe.sources == 1 || recipe.flipped) continue;
      const Case c = make(recipe, size, {test::kDtypes5[n % 5]}, Dtype::f32, 120 + n);
      const auto pointers = c.pointers(0);
      const Chunk chunk = c.chunk(pointers);
      const gpu::Stream stream;
      const Inputs inputs(c);
      const gpu::Ordering ordering = {c.work.rule.method, pass, inputs.on_device(), size};
      const Streams streams = streams_of(c, pass);
      const int which = streams.stream.back(), source = streams.source.back();
      const Shape shape = kShapes[n++ % kShapes.size()];
      std::vector<std::uint64_t> coarse(gpu::kBins);
      cpu_->histogram(chunk, pass, which, nullptr, coarse);
      const auto prefix = static_cast<std::int32_t>(std::max_element(coarse.begin(), coarse.end()) -
                                                    coarse.begin() - 32768);
      for (const bool fine : {false, true}) {
        std::vector<std::uint64_t> expected(gpu::kBins);
        cpu_->histogram(chunk, pass, which, fine ? &prefix : nullptr, expected);
        const std::vector<unsigned> zero(expected.size());
        const Memory bins(zero.size() * 4, zero.data(), zero.size() * 4);
        gpu::histogram(ordering, source, fine, prefix, bins.as<unsigned>(), shape, stream);
        finish(stream);
        const auto found = bins.read<unsigned>();
        for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(found[i], expected[i]) << i;
        if (!fine) continue;
        const auto low = static_cast<std::uint32_t>(
            std::max_element(expected.begin(), expected.end()) - expected.begin());
        const auto key = static_cast<std::int32_t>(static_cast<std::uint32_t>(prefix) << 16 | low);
        const Memory bits((size + 7) / 8);
        gpu::match(ordering, source, key, bits.as<std::uint8_t>(), shape, stream);
        finish(stream);
        const auto marks = bits.read<std::uint8_t>();
        std::uint32_t rank = 0;
        for (std::uint64_t i = 0; i < size; ++i)
          if ((std::uint32_t{marks[i / 8]} >> i % 8 & 1U) != 0) {
            ASSERT_EQ(cpu_->locate(chunk, pass, which, key, rank++), i);
          }
        EXPECT_EQ(rank, expected[low]);
      }
    }
}

TEST_P(Kernels, TheCanaryIsWhatIeeeSays) {
  const gpu::Stream stream;
  const Memory in(sizeof gpu::kCanaryInput, gpu::kCanaryInput, sizeof gpu::kCanaryInput);
  const Memory out(sizeof gpu::kCanaryOutput);
  gpu::canary(in.as<float>(), out.as<float>(), stream);
  finish(stream);
  EXPECT_EQ(std::memcmp(out.read<float>().data(), gpu::kCanaryOutput, sizeof gpu::kCanaryOutput),
            0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, Kernels, ::testing::ValuesIn(test::orders({0, 1, 7})),
                         [](const auto& seed) { return "seed" + std::to_string(seed.param); });

}  // namespace
}  // namespace ingot
