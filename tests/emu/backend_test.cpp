// The CUDA backend over simulated devices: the CPU's bytes whatever the device does first, its
// ceiling, its failures.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "data.hpp"
#include "ingot/error.hpp"
#include "memory.hpp"
#include "stand.hpp"

namespace ingot {
namespace {

using test::Case;
using test::make;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Pinned memory as the engine has it: a case's inputs and room for its output.
class Staged {
 public:
  Staged(Backend& backend, const Case& c) : backend_(backend), case_(c) {
    for (const auto& input : c.inputs) {
      inputs_.push_back(take(input.size()));
      std::memcpy(inputs_.back(), input.data(), input.size());
    }
    output_ = take(c.count() * c.output_width());
  }

  // Consecutive elements from `first`; inputs stay put as long as this object.
  Chunk chunk(std::uint64_t first, Residence* residence = nullptr) {
    pointers_.push_back(std::make_unique<std::vector<const std::byte*>>());
    for (std::size_t i = 0; i < inputs_.size(); ++i)
      pointers_.back()->push_back(inputs_[i] + first * (bits(case_.work.inputs[i]) / 8));
    const auto count = static_cast<std::uint32_t>(std::min(kChunk, case_.count() - first));
    return {&case_.work,
            first,
            count,
            pointers_.back()->data(),
            residence,
            &case_.facts,
            case_.lines.empty() ? nullptr : case_.lines.data()};
  }
  [[nodiscard]] std::byte* output(std::uint64_t first) {
    return output_ + first * case_.output_width();
  }

 private:
  std::byte* take(std::size_t bytes) {
    bytes = std::max<std::size_t>(bytes, 1);
    taken_.push_back({backend_.allocate(bytes), Release{&backend_, bytes}});
    return taken_.back().get();
  }

  struct Release {
    Backend* backend;
    std::size_t bytes;
    void operator()(std::byte* memory) const { backend->release(memory, bytes); }
  };

  Backend& backend_;
  const Case& case_;
  std::vector<std::unique_ptr<std::byte, Release>> taken_;
  std::vector<std::byte*> inputs_;
  std::byte* output_ = nullptr;
  std::vector<std::unique_ptr<std::vector<const std::byte*>>> pointers_;
};

// Everything a backend can be asked about a tensor.
struct Answers {
  std::vector<std::byte> output;
  Tally tally;
  std::vector<double> sums;
  std::vector<std::vector<std::int32_t>> samples;  // of all order passes, stream by stream
  std::vector<Verdict> verdicts;
  std::vector<std::vector<std::uint64_t>> bins;
  std::vector<std::uint32_t> places;
};

// How many sums a pass has of a chunk, of one kind.
std::uint64_t places_of(const Chunk& chunk, const math::PassInfo& pass) {
  const math::Rule& rule = chunk.work->rule;
  const math::LineShape shape = math::line_shape(rule, math::method(rule.method).lines(rule));
  if (pass.kind == math::Pass::fold) return (chunk.count + math::kTile - 1) / math::kTile;
  return shape.lines == math::Lines::rows ? math::segments(chunk.first, chunk.count, shape.width)
                                          : shape.count;
}

// One pass over one chunk.
void ask_pass(Backend& backend, const Chunk& chunk, int number, Answers& a) {
  const math::Rule& rule = chunk.work->rule;
  const math::PassInfo& pass = math::method(rule.method).passes[static_cast<std::size_t>(number)];
  if (pass.kind != math::Pass::order) {
    std::vector<double> sums(static_cast<std::size_t>(pass.sums(rule)) * places_of(chunk, pass));
    backend.fold(chunk, number, sums);
    a.sums.insert(a.sums.end(), sums.begin(), sums.end());
    return;
  }
  std::vector<int> streams;
  for (int s = 0; s < pass.streams(rule); ++s) streams.push_back(s);
  std::vector<std::vector<std::int32_t>> keys(streams.size());
  backend.sample(chunk, number, streams, 512, keys);
  // Around the middle of what was found, and, of each second stream, a second bracket.
  std::vector<Bracket> brackets;
  for (std::size_t s = 0; s < keys.size(); ++s) {
    std::vector<std::int32_t> sorted = keys[s];
    std::sort(sorted.begin(), sorted.end());
    brackets.push_back({streams[s], sorted[sorted.size() / 4], sorted[sorted.size() / 2]});
    if (s % 2 == 1)
      brackets.push_back({streams[s], sorted[sorted.size() / 2], sorted[sorted.size() * 3 / 4]});
  }
  a.samples.insert(a.samples.end(), keys.begin(), keys.end());
  std::vector<Verdict> verdicts(brackets.size());
  backend.verify(chunk, number, brackets, chunk.count / 4 + 64, verdicts);
  a.verdicts.insert(a.verdicts.end(), verdicts.begin(), verdicts.end());
  std::vector<std::uint64_t> bins(65536);
  backend.histogram(chunk, number, streams.back(), nullptr, bins);
  a.bins.push_back(bins);
  const Verdict& first = verdicts[0];
  if (!first.overflowed && !first.between.empty())
    a.places.push_back(
        backend.locate(chunk, number, brackets[0].stream, first.between.back().key, 0));
}

Answers ask(Backend& backend, const Case& c, bool reside) {
  Staged staged(backend, c);
  Answers a;
  const std::unique_ptr<Residence> room = reside ? backend.reside(c.work) : nullptr;
  const std::size_t passes = math::method(c.work.rule.method).passes.size();
  for (std::uint64_t first = 0; first < c.count(); first += kChunk) {
    Chunk chunk = staged.chunk(first, room.get());
    if (room != nullptr) {
      backend.admit(chunk);
      chunk.inputs = nullptr;
    }
    for (int p = 0; p < static_cast<int>(passes); ++p)
      if (test::has_places(c.work.rule, p)) ask_pass(backend, chunk, p, a);
    const Backend::Item item{chunk, staged.output(first), &a.tally};
    backend.apply({&item, 1});
  }
  a.output.assign(staged.output(0), staged.output(0) + c.count() * c.output_width());
  return a;
}

void expect_same(const Answers& expected, const Answers& found) {
  EXPECT_TRUE(expected.output == found.output);
  EXPECT_EQ(0, std::memcmp(&expected.tally, &found.tally, sizeof(Tally)));
  const auto bits = [](double x) { return std::bit_cast<std::uint64_t>(x); };
  EXPECT_TRUE(std::ranges::equal(expected.sums, found.sums, {}, bits, bits));
  EXPECT_EQ(expected.samples, found.samples);
  EXPECT_EQ(expected.bins, found.bins);
  EXPECT_EQ(expected.places, found.places);
  ASSERT_EQ(expected.verdicts.size(), found.verdicts.size());
  for (std::size_t i = 0; i < expected.verdicts.size(); ++i) {
    const Verdict &e = expected.verdicts[i], &f = found.verdicts[i];
    EXPECT_EQ(e.above, f.above);
    EXPECT_EQ(e.at_high, f.at_high);
    EXPECT_EQ(e.at_low, f.at_low);
    EXPECT_EQ(e.overflowed, f.overflowed);
    if (e.overflowed) continue;
    ASSERT_EQ(e.between.size(), f.between.size());
    for (std::size_t j = 0; j < e.between.size(); ++j) {
      EXPECT_EQ(e.between[j].key, f.between[j].key);
      EXPECT_EQ(e.between[j].index, f.between[j].index);
    }
  }
}

// Every method, over few sources and over more than kernels hold in registers. NaN-free, so that
// sums can be compared by their bits.
std::vector<Case> cases(std::uint64_t count, const std::vector<int>& numbers = {3, 7}) {
  std::vector<Case> list;
  std::uint64_t n = 0;
  std::size_t turn = 0;
  for (const math::Method& method : math::kMethods) {
    ++turn;
    for (const int sources : numbers) {
#if defined(__SANITIZE_THREAD__)
      // The numbers in turn: threads meet in the backend, whatever the kernels do.
      if (sources != numbers[turn % numbers.size()]) continue;
#endif
      const int most = std::min(sources, test::most_sources(method));
      if (most < sources && sources != 3) continue;
      const Dtype dtype = test::kDtypes5[n % 5], output = test::kDtypes5[(n / 2 + n) % 5];
      list.push_back(
          make({method.card.name, most, 0.4}, count, {dtype, Dtype::bf16}, output, n, 0));
      ++n;
    }
  }
  return list;
}

TEST(CudaBackend, AnswersAsTheCpuDoesInAnyLegalOrder) {
  INGOT_NEEDS_DEVICE();
  const std::unique_ptr<Backend> cpu = cpu_backend("");
  for (const std::uint64_t seed : test::orders({0, 1, 2, 3}))
    for (const bool lazy : {true, false}) {
      test::fresh(seed, lazy);
      [[maybe_unused]] bool many_lines = false;  // their facts are copied from where they are
      for (const Case& c : cases(seed == 0 ? 20001 : 3000 + seed)) {
        SCOPED_TRACE(c.name);
        many_lines = many_lines || c.lines.size() * sizeof(double) > (std::size_t{32} << 10);
        const Answers expected = ask(*cpu, c, false);
        const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 64 * kMiB});
        expect_same(expected, ask(*cuda, c, false));
        const std::unique_ptr<Backend> fresh = cuda_backend({"cuda", 512 * kMiB});
        expect_same(expected, ask(*fresh, c, true));
      }
#if defined(INGOT_EMULATED)
      if (!many_lines) {
        EXPECT_EQ(emu::traffic().unpinned, 0U) << "a copy came from memory that is not pinned";
      }
      EXPECT_EQ(emu::traffic().live, 0U);
#endif
    }
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(CudaBackend, AnswersAsTheCpuDoesForATensorOfTwoChunks) {
  INGOT_NEEDS_DEVICE();
  const std::unique_ptr<Backend> cpu = cpu_backend("");
  test::fresh(0);
  for (const Case& c : cases(kChunk + 3, {3})) {
    SCOPED_TRACE(c.name);
    const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 512 * kMiB});
    const Answers expected = ask(*cpu, c, false);
    expect_same(expected, ask(*cuda, c, false));
    expect_same(expected, ask(*cuda, c, true));
  }
}
#endif

TEST(CudaBackend, ManyItemsAreFewLaunches) {
  INGOT_NEEDS_DEVICE();
  const std::unique_ptr<Backend> cpu = cpu_backend("");
  test::fresh(0);
  const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 64 * kMiB});
  std::vector<Case> list;
  std::vector<std::unique_ptr<Staged>> staged;
  for (std::uint64_t n = 0; n < 90; ++n) {
    const std::uint64_t size = n % 30 == 29 ? 40000 : 256 + n;
    list.push_back(make({n < 45 ? "ties" : "linear", 3}, size, {Dtype::bf16},
                        n % 2 == 0 ? Dtype::bf16 : Dtype::f32, n));
  }
  std::vector<Backend::Item> items;
  std::vector<Tally> tallies(list.size());
  for (std::size_t n = 0; n < list.size(); ++n) {
    staged.push_back(std::make_unique<Staged>(*cuda, list[n]));
    items.push_back(
        {staged[n]->chunk(0), staged[n]->output(0), n % 3 == 0 ? nullptr : &tallies[n]});
  }
#if defined(INGOT_EMULATED)
  const std::uint64_t before = emu::traffic().kernels;
#endif
  cuda->apply(items);
#if defined(INGOT_EMULATED)
  EXPECT_LE(emu::traffic().kernels - before, 4U);
#endif
  for (std::size_t n = 0; n < list.size(); ++n) {
    SCOPED_TRACE(list[n].name);
    const Answers expected = ask(*cpu, list[n], false);
    EXPECT_EQ(0, std::memcmp(expected.output.data(), staged[n]->output(0), expected.output.size()));
    const Tally& tally = n % 3 == 0 ? Tally{} : expected.tally;
    EXPECT_EQ(0, std::memcmp(&tally, &tallies[n], sizeof(Tally)));
  }
}

TEST(CudaBackend, ThreadsShareADeviceAndDevicesShareTheWork) {
  INGOT_NEEDS_DEVICE();
  const std::unique_ptr<Backend> cpu = cpu_backend("");
#if defined(INGOT_EMULATED)
  const std::vector<std::string> wishes = {"cuda", "cuda:1,0"};
#else
  const std::vector<std::string> wishes = {"cuda"};
#endif
  for (const std::string& devices : wishes)
    for (const std::uint64_t seed : {0U, 3U}) {
      test::fresh(seed, true, 2);
      const std::vector<Case> list = cases(5000);
      std::vector<Answers> expected;
      for (const Case& c : list) expected.push_back(ask(*cpu, c, false));
      // Little memory: calls wait for each other's room.
      const std::unique_ptr<Backend> cuda = cuda_backend({devices, 2 * kMiB});
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < 4; ++t)
        threads.emplace_back([&, t] {
          for (std::size_t i = 0; i < list.size(); ++i) {
            const std::size_t n = (i + t) % list.size();
            expect_same(expected[n], ask(*cuda, list[n], t % 2 == 0));
          }
        });
      for (std::thread& t : threads) t.join();
    }
}

TEST(CudaBackend, ReportsWhatTheDeviceDid) {
  INGOT_NEEDS_DEVICE();
  test::fresh(0);
  const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 16 * kMiB});
  EXPECT_EQ(cuda->describe().substr(0, 7), "cuda:0 ");
  (void)ask(*cuda, make({"linear", 3}, 20000, {Dtype::bf16}, Dtype::f32, 1), false);
  const std::vector<Activity> all = cuda->activity();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_GE(all[0].bytes_in, 3U * 20000 * 2);
  EXPECT_GE(all[0].bytes_out, 20000U * 4);
  EXPECT_GT(all[0].copy_in, 0);
  EXPECT_GT(all[0].kernels, 0);
  EXPECT_GT(all[0].copy_out, 0);
  EXPECT_EQ(all[0].memory, 16 * kMiB);
  EXPECT_EQ(all[0].kernel_bytes, 20000U * (3 * 2 + 4));
  EXPECT_GT(all[0].link_in, 0);
  EXPECT_GT(all[0].link_out, 0);
  EXPECT_GT(all[0].copy, 0);
}

#if defined(INGOT_EMULATED)

TEST(CudaBackend, ResidentInputsAreCopiedOnce) {
  emu::plug({});
  const Case c = make({"ties", 3}, 30000, {Dtype::bf16}, Dtype::bf16, 9, 0);
  const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 512 * kMiB});
  const std::uint64_t before = emu::traffic().bytes_in;
  (void)ask(*cuda, c, true);
  const std::uint64_t copied = emu::traffic().bytes_in - before;
  const std::uint64_t inputs = 4 * 30000 * 2;
  EXPECT_GE(copied, inputs);
  EXPECT_LT(copied, inputs + 40000);  // and descriptions
}

TEST(CudaBackend, HoldsItsCeilingAndAllocatesNothingLater) {
  for (const std::uint64_t ceiling : {std::uint64_t{1}, std::uint64_t{16}, std::uint64_t{440}}) {
    emu::plug({});
    const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", ceiling * kMiB});
    const std::uint64_t made = emu::traffic().allocations;
    const std::unique_ptr<Residence> none =
        cuda->reside(make({"linear", 2}, 8, {Dtype::bf16}, Dtype::bf16, 1).work);
    EXPECT_EQ(none != nullptr, ceiling == 440);
    for (const Case& c : cases(3000)) {
      const std::uint64_t staging = c.inputs.size() + 1;
      const std::uint64_t before = emu::traffic().allocations;
      (void)ask(*cuda, c, true);
      EXPECT_EQ(emu::traffic().allocations, before + staging);
    }
    EXPECT_LE(emu::traffic().peak, ceiling * kMiB);
    EXPECT_GE(made, 2U);
  }
}

std::string error_of(const DeviceOptions& options, Code code) {
  try {
    (void)cuda_backend(options);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(CudaBackend, SaysInOneSentenceWhyItCannotRun) {
  emu::Setup setup;
  setup.absent = cudaErrorInsufficientDriver;
  setup.driver = 0;
  emu::plug(setup);
  EXPECT_NE(error_of({}, Code::device).find("no NVIDIA driver is installed"), std::string::npos);
  setup.driver = 12020;
  emu::plug(setup);
  EXPECT_NE(error_of({}, Code::device).find("supports CUDA 12.2 and this program needs 13.0"),
            std::string::npos);
  setup.absent = cudaErrorInitializationError;
  emu::plug(setup);
  EXPECT_NE(error_of({}, Code::device).find("cudaErrorInitializationError"), std::string::npos);
  setup.absent = cudaSuccess;
  setup.devices = 0;
  emu::plug(setup);
  EXPECT_NE(error_of({}, Code::device).find("sees no CUDA device"), std::string::npos);
  setup.devices = 2;
  setup.memory = 32 * kMiB;
  emu::plug(setup);
  EXPECT_NE(error_of({"cuda:2", 4 * kMiB}, Code::device).find("the machine has 2"),
            std::string::npos);
  EXPECT_NE(error_of({"cuda:0,1", 64 * kMiB}, Code::memory).find("--device-memory"),
            std::string::npos);
  for (const char* text :
       {"cuda:", "cuda:x", "cuda:0,", "cuda:0,0", "cuda:-1", "cuda0", "gpu", "cuda:1 "})
    (void)error_of({text, 4 * kMiB}, Code::usage);
  (void)error_of({"cuda", 1000}, Code::usage);
  EXPECT_EQ(emu::traffic().live, 0U);
}

TEST(CudaBackend, AChunkThatCannotFitIsAnErrorThatNamesTheRemedy) {
  emu::plug({});
  const Case c = make({"linear", 8}, 100000, {Dtype::f32}, Dtype::f32, 1);
  const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", kMiB});
  try {
    (void)ask(*cuda, c, false);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::memory);
    EXPECT_NE(std::string(e.what()).find("raise --device-memory"), std::string::npos);
  }
}

#if defined(__SANITIZE_THREAD__)
constexpr std::uint64_t kEvery = 31;
#elif defined(__SANITIZE_ADDRESS__)
constexpr std::uint64_t kEvery = 5;
#else
constexpr std::uint64_t kEvery = 1;
#endif

// Runs `body` with the n-th call, then the n-th piece of work, failing, for every n that exists.
template <class Body>
void fail_each(bool lost, Body&& body) {
  for (const bool call : {true, false})
    for (std::uint64_t n = 1;; n += kEvery) {
      emu::Setup setup;
      setup.lost = lost;
      setup.seed = n % 4;
      (call ? setup.fail_call : setup.fail_work) = n;
      emu::plug(setup);
      const bool failed = body();
      const emu::Traffic t = emu::traffic();
      EXPECT_EQ(t.live, 0U) << "leak after failure " << n;
      if ((call ? t.calls : t.work) < n) {
        EXPECT_FALSE(failed);
        break;
      }
    }
}

TEST(CudaBackend, EveryFailureIsAnErrorAndLeaksNothing) {
  const std::unique_ptr<Backend> cpu = cpu_backend("");
  const Case c = make({"ties", 2, 0.5}, 700, {Dtype::bf16}, Dtype::bf16, 21, 0);
  const Answers expected = ask(*cpu, c, false);
  int errors = 0;
  for (const bool lost : {false, true})
    for (const bool reside : {false, true})
      fail_each(lost, [&] {
        try {
          const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 300 * kMiB});
          const Answers found = ask(*cuda, c, reside);
          // A failure in the last destructors alone is forgiven, with the right answer given.
          expect_same(expected, found);
          return false;
        } catch (const Error& e) {
          EXPECT_TRUE(e.code() == Code::device || e.code() == Code::memory) << e.what();
          ++errors;
          return true;
        }
      });
  EXPECT_GT(errors, 300 / static_cast<int>(kEvery));
}

TEST(CudaBackend, AFailedCallLeavesTheOthersAlone) {
  const std::unique_ptr<Backend> cpu = cpu_backend("");
  const Case c = make({"ties", 2, 0.5}, 700, {Dtype::bf16}, Dtype::bf16, 22, 0);
  const Answers expected = ask(*cpu, c, false);
  emu::plug({});
  std::uint64_t made = 0;
  {
    const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 300 * kMiB});
    made = emu::traffic().calls;
  }
  for (std::uint64_t n = 1; n < 80; n += 7) {
    emu::Setup setup;
    setup.fail_call = made + n;
    emu::plug(setup);
    const std::unique_ptr<Backend> cuda = cuda_backend({"cuda", 300 * kMiB});
    for (int round = 0; round < 3; ++round) {
      try {
        expect_same(expected, ask(*cuda, c, false));
      } catch (const Error&) {
      }
    }
    expect_same(expected, ask(*cuda, c, false));
  }
}

#endif

TEST(Arena, PartsNeverOverlapAndEverythingComesBack) {
  std::vector<std::byte> memory(1 << 16);
  gpu::Arena arena(memory.data(), memory.size());
  test::Random random(5);
  struct Part {
    std::byte* at;
    std::uint64_t bytes;
  };
  std::vector<Part> held;
  for (int i = 0; i < 20000; ++i) {
    if (held.size() < 20 && random.below(2) == 0) {
      const std::uint64_t bytes = random.below(6000) + 1;
      std::byte* at = arena.try_take(bytes);
      if (at == nullptr) continue;
      EXPECT_EQ((at - memory.data()) % 256, 0);
      EXPECT_LE(at + bytes, memory.data() + memory.size());
      for (const Part& p : held) EXPECT_TRUE(at + bytes <= p.at || p.at + p.bytes <= at);
      held.push_back({at, bytes});
    } else if (!held.empty()) {
      const std::size_t n = random.below(held.size());
      arena.give(held[n].at, held[n].bytes);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(n));
    }
  }
  for (const Part& p : held) arena.give(p.at, p.bytes);
  EXPECT_NE(arena.try_take(1 << 16), nullptr);
  EXPECT_EQ(arena.take((1 << 16) + 1), nullptr);
}

TEST(Arena, ALargeRequestIsNotStarvedBySmallOnes) {
  std::vector<std::byte> memory(1 << 14);
  gpu::Arena arena(memory.data(), memory.size());
  std::atomic<bool> served = false;
  std::byte* first = arena.take(1 << 13);
  std::thread large([&] {
    std::byte* all = arena.take(1 << 14);
    served = true;
    arena.give(all, 1 << 14);
  });
  std::thread small([&] {
    while (!served) {
      std::byte* part = arena.take(1 << 12);
      arena.give(part, 1 << 12);
    }
  });
  arena.give(first, 1 << 13);
  large.join();
  small.join();
  EXPECT_TRUE(served);
}

}  // namespace
}  // namespace ingot
