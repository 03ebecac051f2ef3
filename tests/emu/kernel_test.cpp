// Every kernel against the CPU backend, bit for bit: sizes around every edge, all dtypes, all
// values, any block and grid.
#include <cstring>
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

const std::vector<Recipe> kRecipes = {
    {"linear", 1},
    {"linear", 2, 1, false},
    {"linear", 3},
    {"linear", 4},
    {"linear", 6},
    {"slerp", 1},
    {"passthrough", 1},
    {"task_arithmetic", 1},
    {"task_arithmetic", 2, 1, false},
    {"task_arithmetic", 5},
    {"ties", 1},
    {"ties", 2, 0.5, false},
    {"ties", 3},
    {"ties", 3, 0.2, true, false},
    {"ties", 4, 0.01},
    {"ties", 4, 0.8, false},
    {"ties", 7, 0.5},
    {"ties", 7, 0.5, false},
    {"dare_linear", 1, 0.5},
    {"dare_linear", 3, 0.1},
    {"dare_linear", 4, 0.9, false},
    {"dare_linear", 7, 0.5},
    {"dare_ties", 2, 0.3, true},
    {"dare_ties", 3, 0.5, false, false},
    {"dare_ties", 6, 0.5, true},
    {"ties", 3, 0.5, true, true, math::Vote::total},
    {"ties", 3, 0.5, true, true, math::Vote::frequency},
    {"dare_ties", 5, 0.5, true, true, math::Vote::total},
    {"ties", 3, 0.5, true, true, math::Vote::total, false},
    {"ties", 7, 0.5, true, true, math::Vote::frequency, false},
    {"task_arithmetic", 2, 1, false, true, math::Vote::none, false},
    {"dare_linear", 3, 0.5, false, false, math::Vote::none, false},
    {"dare_linear", 7, 0.5, false, false, math::Vote::none, false},
    {"dare_ties", 3, 0.5, false, false, math::Vote::total, false},
};

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

// A case's inputs on the device.
class Inputs {
 public:
  explicit Inputs(const Case& c, std::uint64_t first = 0) {
    for (std::size_t i = 0; i < c.inputs.size(); ++i) {
      const std::size_t width = bits(c.work.inputs[i]) / 8;
      memory_.push_back(std::make_unique<Memory>(gpu::padded(c.count(), width), c.inputs[i].data(),
                                                 c.inputs[i].size()));
      tensor_.input[i] = {memory_.back()->as<std::byte>(), test::format_of(c.work.inputs[i])};
    }
    tensor_.sources = c.work.rule.sources;
    tensor_.base = c.work.rule.base;
    tensor_.first = first;
    tensor_.count = c.count();
  }
  [[nodiscard]] const gpu::Tensor& tensor() const { return tensor_; }

 private:
  std::vector<std::unique_ptr<Memory>> memory_;
  gpu::Tensor tensor_;
};

Chunk chunk_of(const Case& c, const std::vector<const std::byte*>& inputs,
               std::uint64_t first = 0) {
  return {&c.work, first, static_cast<std::uint32_t>(c.count()), inputs.data(), nullptr};
}

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
  const Backend::Item item{chunk_of(c, pointers, first), &c.facts, expected.data(), &tally};
  cpu.apply({&item, 1});

  const gpu::Stream stream;
  const Inputs inputs(c, first);
  const Memory output(gpu::padded(c.count(), c.output_width()));
  gpu::Job job;
  job.tensor = inputs.tensor();
  job.output = output.as<std::byte>();
  job.format = test::format_of(c.work.output);
  job.overflow = c.work.overflow;
  job.facts = c.facts;
  const gpu::Counts zero = {};
  const Memory jobs(sizeof job, &job, sizeof job), counts(sizeof zero, &zero, sizeof zero);
  const gpu::Batch batch{jobs.as<gpu::Job>(), 1, span, gpu::spans(c.count(), span),
                         counts.as<gpu::Counts>()};
  gpu::apply(gpu::kind(c.facts), batch, shape, stream);
  finish(stream);
  EXPECT_TRUE(same(expected, output.read<std::byte>(), c.output_width()));
  const gpu::Counts found = counts.read<gpu::Counts>()[0];
  for (int s = 0; s < math::kSources; ++s) EXPECT_EQ(found.kept[s], tally.kept[s]) << s;
  EXPECT_EQ(found.conflicts, tally.conflicts);
  EXPECT_EQ(found.change, tally.change);
}

TEST_P(Kernels, ApplyGivesTheBytesAndCountsOfTheCpuForEveryMethodAndSize) {
  std::size_t n = 0;
  for (const Recipe& recipe : kRecipes)
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
  for (const Recipe& recipe : kRecipes) {
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
    for (const char* method : {"dare_linear", "dare_ties", "ties"})
      for (const int sources : {3, 6}) {
        Case c = make({method, sources, 0.5}, 2051, {Dtype::bf16}, Dtype::bf16, first % 1000 + 3);
        for (int s = 0; s < sources; ++s)
          if (c.facts.source[s].threshold != math::kNoKey) c.facts.source[s].cut += first;
        expect_apply(*cpu_, c, kShapes[0], 256, first);
      }
}

TEST_P(Kernels, ApplyTakesSixtyFourSources) {
  for (const char* method : {"linear", "ties", "dare_linear"})
    expect_apply(*cpu_, make({method, 64, 0.5}, 271, {Dtype::bf16, Dtype::f16}, Dtype::f32, 77),
                 kShapes[0], 32);
}

TEST_P(Kernels, ApplyOfABaseAloneIsTheBase) {
  for (const char* method : {"task_arithmetic", "ties"})
    expect_apply(*cpu_, make({method, 0}, 300, {Dtype::bf16}, Dtype::f16, 78), kShapes[0], 32);
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
    jobs[n].facts = c.facts;
    jobs[n].span = all;
    all += gpu::spans(c.count(), span);
  }
  const std::vector<gpu::Counts> zero(jobs.size());
  for (const Shape& shape : kShapes) {
    const Memory list(jobs.size() * sizeof(gpu::Job), jobs.data(), jobs.size() * sizeof(gpu::Job));
    const Memory counts(zero.size() * sizeof(gpu::Counts), zero.data(),
                        zero.size() * sizeof(gpu::Counts));
    gpu::apply(gpu::kind(jobs[0].facts),
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
      const Backend::Item item{chunk_of(c, pointers), &c.facts, expected.data(), &tally};
      cpu_->apply({&item, 1});
      EXPECT_TRUE(same(expected, outputs[n]->read<std::byte>(), c.output_width())) << c.name;
      for (int s = 0; s < 3; ++s) EXPECT_EQ(tallies[n].kept[s], tally.kept[s]) << c.name;
    }
  }
}

TEST_P(Kernels, FoldsHaveTheBitsOfTheCpusForAnyGrid) {
  std::size_t n = 0;
  for (const char* method : {"slerp", "dare_linear", "ties"})
    for (const std::uint64_t size :
         {std::uint64_t{1}, std::uint64_t{257}, std::uint64_t{16384}, kMost}) {
      const Case c =
          make({method, std::string(method) == "slerp" ? 1 : 2, 0.5}, size,
               {test::kDtypes5[n % 5], Dtype::bf16}, Dtype::f32, 40 + n, n % 2 == 0 ? 0 : 64);
      SCOPED_TRACE(c.name);
      const auto pointers = c.pointers(0);
      const auto terms = static_cast<unsigned>(math::needs(c.work.rule).folds);
      const std::uint64_t tiles = (size + kFoldTile - 1) / kFoldTile;
      std::vector<double> expected(terms * tiles, -1);
      cpu_->fold(chunk_of(c, pointers), c.facts, expected);

      std::vector<math::Term> list;
      for (unsigned t = 0; t < terms; ++t)
        list.push_back(math::term(c.work.rule, static_cast<int>(t)));
      const gpu::Stream stream;
      const Inputs inputs(c);
      gpu::Job job;
      job.tensor = inputs.tensor();
      job.facts = c.facts;
      const Memory jobs(sizeof job, &job, sizeof job);
      const Memory on_device(list.size() * sizeof(math::Term), list.data(),
                             list.size() * sizeof(math::Term));
      const Memory sums(expected.size() * sizeof(double));
      gpu::fold(jobs.as<gpu::Job>(), size, on_device.as<math::Term>(), terms, sums.as<double>(),
                {256, n % 2 == 0 ? 65536U : 2U}, stream);
      finish(stream);
      const auto all = sums.read<double>();
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const double found = all[i];
        const bool nan = expected[i] != expected[i] && found != found;  // payloads may differ
        EXPECT_TRUE(nan || std::memcmp(&expected[i], &found, sizeof found) == 0) << i;
      }
      ++n;
    }
}

TEST_P(Kernels, SamplesAreTheKeysTheCpuTakes) {
  std::size_t n = 0;
  for (const std::uint64_t size :
       {std::uint64_t{1}, std::uint64_t{63}, std::uint64_t{64}, std::uint64_t{1000}, kMost}) {
    const Case c = make({"ties", 3}, size, {test::kDtypes5[n % 5]}, Dtype::f32, 60 + n);
    const auto pointers = c.pointers(0);
    for (const std::uint32_t stride : {64U, 100U, 1024U}) {
      std::vector<std::vector<std::uint32_t>> expected(3);
      cpu_->sample(chunk_of(c, pointers, 7 * kChunk), stride, expected);
      const std::uint64_t runs = (size + stride - 1) / stride;
      const gpu::Stream stream;
      const Inputs inputs(c, 7 * kChunk);
      const gpu::Tensor tensor = inputs.tensor();
      const Memory on_device(sizeof tensor, &tensor, sizeof tensor);
      const Memory keys(3 * runs * 64 * sizeof(std::uint32_t));
      gpu::sample(on_device.as<gpu::Tensor>(), size, 3, stride, keys.as<std::uint32_t>(),
                  kShapes[n % kShapes.size()], stream);
      finish(stream);
      const auto found = keys.read<std::uint32_t>();
      for (std::size_t s = 0; s < 3; ++s)
        EXPECT_TRUE(std::equal(expected[s].begin(), expected[s].end(),
                               found.begin() + static_cast<std::ptrdiff_t>(s * runs * 64)))
            << c.name << " stride " << stride;
    }
    ++n;
  }
}

TEST_P(Kernels, VerifyCountsAndListsInOrder) {
  std::size_t n = 0;
  for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{33}, std::uint64_t{8192}, kMost})
    for (const int sources : {1, 3, 6}) {
      const Case c = make({"ties", sources}, size, {test::kDtypes5[n % 5]}, Dtype::f32, 80 + n);
      SCOPED_TRACE(c.name);
      const auto pointers = c.pointers(0);
      const auto count = static_cast<std::size_t>(sources);
      test::Random random(n);
      std::vector<Bracket> brackets(count);
      std::vector<std::uint8_t> active(count, 1);
      for (std::size_t s = 0; s < count; ++s) {
        const auto key = [&] {
          const std::uint64_t e = random.below(size);
          return math::key(
              math::delta(test::decode(c.inputs[s + 1].data(), e, c.work.inputs[s + 1]),
                          test::decode(c.inputs[0].data(), e, c.work.inputs[0])));
        };
        brackets[s] = {key(), key()};
        if (brackets[s].low > brackets[s].high) std::swap(brackets[s].low, brackets[s].high);
        if (s % 3 == 1) brackets[s].low = brackets[s].high;
        if (s % 4 == 2) brackets[s] = {0, 0x7fffffffU};
        if (s % 5 == 4) active[s] = 0;
      }
      const auto limit = static_cast<std::uint32_t>(n % 2 == 0 ? size : size / 64 + 1);
      std::vector<Verdict> expected(count);
      cpu_->verify(chunk_of(c, pointers), brackets, active, limit, expected);

      const gpu::Stream stream;
      const Inputs inputs(c);
      const gpu::Tensor tensor = inputs.tensor();
      const std::uint64_t spans = (size + gpu::kSpan - 1) / gpu::kSpan;
      std::vector<gpu::Window> windows;
      for (std::size_t s = 0; s < count; ++s)
        windows.push_back({brackets[s].low, brackets[s].high, active[s]});
      const std::vector<gpu::Census> zero(count);
      const Memory on_device(sizeof tensor, &tensor, sizeof tensor);
      const Memory window(count * sizeof(gpu::Window), windows.data(), count * sizeof(gpu::Window));
      const Memory census(count * sizeof(gpu::Census), zero.data(), count * sizeof(gpu::Census));
      const Memory found(count * limit * sizeof(gpu::Found));
      const std::vector<gpu::Segment> none(count * spans);
      const Memory segments(none.size() * sizeof(gpu::Segment), none.data(),
                            none.size() * sizeof(gpu::Segment));
      const std::vector<gpu::Found> unwritten(count * limit, {~0U, ~0U});
      const Memory ordered(unwritten.size() * sizeof(gpu::Found), unwritten.data(),
                           unwritten.size() * sizeof(gpu::Found));
      const Memory scratch(gpu::order_bytes(count, spans));
      gpu::verify(on_device.as<gpu::Tensor>(), size, static_cast<unsigned>(sources),
                  window.as<gpu::Window>(), limit, census.as<gpu::Census>(), found.as<gpu::Found>(),
                  segments.as<gpu::Segment>(), kShapes[n % kShapes.size()], stream);
      gpu::order({found.as<gpu::Found>(), segments.as<gpu::Segment>(), census.as<gpu::Census>(),
                  count, spans, limit},
                 ordered.as<gpu::Found>(), scratch.as<std::byte>(), stream);
      finish(stream);
      const auto counted = census.read<gpu::Census>();
      const auto list = ordered.read<gpu::Found>();
      std::size_t next = 0;
      for (std::size_t s = 0; s < count; ++s) {
        const gpu::Census& is = counted[s];
        EXPECT_EQ(is.above, expected[s].above);
        EXPECT_EQ(is.at_high, expected[s].at_high);
        EXPECT_EQ(is.at_low, expected[s].at_low);
        EXPECT_EQ(is.between > limit, expected[s].overflowed);
        if (is.between > limit || active[s] == 0) continue;
        ASSERT_EQ(is.between, expected[s].between.size());
        for (const Candidate& candidate : expected[s].between) {
          ASSERT_EQ(list[next].index, candidate.index);
          ASSERT_EQ(list[next].key, candidate.key);
          ++next;
        }
      }
      for (; next < list.size(); ++next) ASSERT_EQ(list[next].index, ~0U) << "behind the last one";
      ++n;
    }
}

TEST_P(Kernels, HistogramsAndMatchesFindWhatTheCpuFinds) {
  std::size_t n = 0;
  for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{33}, std::uint64_t{2049}}) {
    const Case c = make({"ties", 2}, size, {test::kDtypes5[n % 5]}, Dtype::f32, 120 + n);
    const auto pointers = c.pointers(0);
    const Chunk chunk = chunk_of(c, pointers);
    const gpu::Stream stream;
    const Inputs inputs(c);
    const gpu::Tensor tensor = inputs.tensor();
    const Memory on_device(sizeof tensor, &tensor, sizeof tensor);
    const Shape shape = kShapes[n++ % kShapes.size()];
    std::vector<std::uint64_t> coarse(32768);
    cpu_->histogram(chunk, 1, nullptr, coarse);
    const auto prefix =
        static_cast<std::uint32_t>(std::max_element(coarse.begin(), coarse.end()) - coarse.begin());
    for (const bool fine : {false, true}) {
      std::vector<std::uint64_t> expected(fine ? 65536 : 32768);
      cpu_->histogram(chunk, 1, fine ? &prefix : nullptr, expected);
      const std::vector<unsigned> zero(expected.size());
      const Memory bins(zero.size() * 4, zero.data(), zero.size() * 4);
      gpu::histogram(on_device.as<gpu::Tensor>(), size, 1, fine, prefix, bins.as<unsigned>(), shape,
                     stream);
      finish(stream);
      const auto found = bins.read<unsigned>();
      for (std::size_t i = 0; i < expected.size(); ++i) ASSERT_EQ(found[i], expected[i]) << i;
      if (!fine) continue;
      const auto low = static_cast<std::uint32_t>(
          std::max_element(expected.begin(), expected.end()) - expected.begin());
      const std::uint32_t key = prefix << 16 | low;
      const Memory bits((size + 7) / 8);
      gpu::match(on_device.as<gpu::Tensor>(), size, 1, key, bits.as<std::uint8_t>(), shape, stream);
      finish(stream);
      const auto marks = bits.read<std::uint8_t>();
      std::uint32_t rank = 0;
      for (std::uint64_t i = 0; i < size; ++i)
        if ((std::uint32_t{marks[i / 8]} >> i % 8 & 1U) != 0) {
          ASSERT_EQ(cpu_->locate(chunk, 1, key, rank++), i);
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
