// Decompositions by cuBLAS and cuSOLVER: over the small libraries that stand for them where devices
// are simulated, over the machine's own on hardware. Within their bound, batched, inside the memory
// they are given.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "adapting.hpp"
#include "libraries/fake.hpp"
#include "loader.hpp"
#include "matrix.hpp"
#include "merging.hpp"
#include "stand.hpp"
#include "support.hpp"

#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/linalg.hpp"

namespace ingot {
namespace {

using linalg::As;
using linalg::Low;
using linalg::Matrix;
using Decompose = DeviceOptions::Decompose;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
// All but 400 MiB is the solver's.
constexpr std::uint64_t kMemory = 640 * kMiB;

#if defined(INGOT_EMULATED)
const std::string kLibraries = INGOT_LIBRARIES;

// Open for as long as the tests run: what they count must not go with the last backend.
const gpu::Libraries& libraries() {
  static const gpu::Libraries both = gpu::open_libraries(kLibraries);
  return both;
}
// Both libraries' counts.
FakeCalls counted() {
  FakeCalls sum = libraries().blas.symbol<FakeCounted>(kFakeCounted)();
  const FakeCalls more = libraries().solver.symbol<FakeCounted>(kFakeCounted)();
  sum.all += more.all;
  sum.eigen += more.eigen;
  sum.matrices += more.matrices;
  sum.qr += more.qr;
  sum.live += more.live;
  return sum;
}
// From now the n-th call into one of the two fails; 0: none does.
void reset(std::uint64_t blas = 0, std::uint64_t solver = 0) {
  libraries().blas.symbol<FakeReset>(kFakeReset)(blas);
  libraries().solver.symbol<FakeReset>(kFakeReset)(solver);
}
#else
const std::string kLibraries;
void reset() {}
#endif

class Decompositions : public testing::Test {
 protected:
  void SetUp() override {
    INGOT_NEEDS_DEVICE();
#if !defined(INGOT_EMULATED)
    try {
      (void)device_libraries(kLibraries);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
#endif
    test::fresh(0);
    reset();
  }
};

std::unique_ptr<Backend> device(std::uint64_t memory = kMemory, const std::string& name = "cuda") {
  return cuda_backend({name, memory, false, kLibraries, Decompose::must});
}

using test::distance;

Matrix random(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  return test::random_matrix(rows, cols, seed);
}

struct Pair {
  Matrix b, a;
};

// Ordinary ones; two sources that are nearly the same; the same twice; nothing; scales far apart.
std::vector<Pair> pairs(std::size_t height, std::size_t width, std::size_t ranks) {
  std::vector<Pair> all;
  for (std::uint64_t i = 0; i < 6; ++i) {
    all.push_back({random(ranks, height, 10 + i), random(ranks, width, 30 + i)});
  }
  const std::size_t half = ranks / 2;
  for (std::size_t r = 0; r < half; ++r) {
    for (std::size_t c = 0; c < width; ++c) {
      all[1].a.at(r + half, c) = all[1].a.at(r, c) + 1e-3 * all[1].a.at(r + half, c);
      all[2].a.at(r + half, c) = all[2].a.at(r, c);
    }
    for (std::size_t c = 0; c < height; ++c) {
      all[1].b.at(r + half, c) = all[1].b.at(r, c) + 1e-3 * all[1].b.at(r + half, c);
      all[2].b.at(r + half, c) = all[2].b.at(r, c);
      all[4].b.at(r, c) *= 1e-4;
    }
  }
  std::fill(all[3].b.data.begin(), all[3].b.data.end(), 0.0);
  return all;
}

// Solves them together and holds each to the promise: 1.0001 times the best and what f32 cannot
// tell.
std::vector<std::size_t> solve(linalg::Solver& solver, const std::vector<Pair>& all,
                               std::size_t rank) {
  const linalg::Products products{all[0].b.cols, all[0].a.cols, all[0].b.rows, all.size(),
                                  [&](std::size_t i, Matrix& b, Matrix& a) {
                                    b = all[i].b;
                                    a = all[i].a;
                                  }};
  std::size_t taken = 0;
  auto rest = linalg::recombine(solver, products, rank, [&](std::size_t i, const Low& low) {
    ++taken;
    const Low best = linalg::recombine(all[i].b, all[i].a, {rank, 1});
    const double left = distance(test::product(all[i].b, all[i].a), test::product(low.b, low.a));
    EXPECT_LE(left, 1.0001 * best.error + 1e-7 * best.norm) << i;
    EXPECT_NEAR(low.error, best.error, 1e-4 * best.error + 1e-7 * best.norm) << i;
    EXPECT_NEAR(low.norm, best.norm, 1e-10 * best.norm) << i;
    ASSERT_EQ(low.values.size(), best.values.size()) << i;
    for (std::size_t j = 0; j < low.values.size(); ++j) {
      EXPECT_NEAR(low.values[j], best.values[j], 1e-7 * best.values[0]) << i << " " << j;
    }
    // Rows of A are orthonormal, their largest entries positive.
    for (std::size_t r = 0; r < low.a.rows; ++r) {
      for (std::size_t s = 0; s <= r; ++s) {
        double dot = 0;
        for (std::size_t c = 0; c < low.a.cols; ++c) dot += low.a.at(r, c) * low.a.at(s, c);
        EXPECT_NEAR(dot, r == s ? 1.0 : 0.0, 1e-5) << i;
      }
      const double* row = low.a.row(r);
      EXPECT_GT(*std::max_element(row, row + low.a.cols,
                                  [](double x, double y) { return std::fabs(x) < std::fabs(y); }),
                0.0);
    }
  });
  EXPECT_EQ(taken + rest.size(), all.size());
  return rest;
}

TEST_F(Decompositions, OfManyProductsAreAsGoodAsLapacks) {
  for (const auto& [height, width] : {std::pair<std::size_t, std::size_t>{40, 24}, {24, 40}}) {
    const auto all = pairs(height, width, 8);
    for (const std::size_t rank : {1U, 3U, 8U, 20U}) {
      const auto cuda = device();
      // Identical sources and nothing at all are for QR.
      EXPECT_EQ(solve(cuda->solver(), all, rank), (std::vector<std::size_t>{2, 3}));
      EXPECT_EQ(cuda->solver().done, 4U);
      EXPECT_EQ(cuda->solver().ill, 2U);
      const std::string said = cuda->solver().describe();
      EXPECT_NE(said.find("2 by LAPACK, their Gram matrices ill-conditioned"), std::string::npos)
          << said;
      // The same algorithm over LAPACK.
      const auto host = linalg::lapack();
      EXPECT_EQ(solve(*host, all, rank), (std::vector<std::size_t>{2, 3}));
    }
  }
}

TEST_F(Decompositions, OfManyProductsTakeThreeEigenproblemsAndNineProducts) {
#if defined(INGOT_EMULATED)
  const auto cuda = device();
  (void)solve(cuda->solver(), pairs(40, 24, 8), 3);
  const FakeCalls calls = counted();
  EXPECT_EQ(calls.eigen, 3U);
  EXPECT_EQ(calls.matrices, 18U);
  EXPECT_EQ(calls.products, 9U);  // two Grams, core and its Gram, images, two each for B and A
  EXPECT_EQ(calls.qr, 0U);
#else
  GTEST_SKIP() << "cuSOLVER does not count its calls";
#endif
}

TEST_F(Decompositions, TakeAsManyAsFit) {
  const auto cuda = device(428 * kMiB);
  linalg::Solver& solver = cuda->solver();
  ASSERT_EQ(solver.capacity(), 28 * kMiB);
  const linalg::Products shape{256, 256, 16, 0, {}};
  const std::size_t some = linalg::recombine_count(solver, shape, 8, 1000);
  EXPECT_GT(some, 20U);
  EXPECT_LT(some, 14 * kMiB / (24 * 512 * sizeof(double)));
  EXPECT_EQ(linalg::recombine_count(solver, shape, 8, 2), 2U);
  EXPECT_EQ(linalg::recombine_count(solver, {16384, 16384, 200, 0, {}}, 8, 1000), 0U);
  EXPECT_EQ(linalg::recombine_count(solver, {256, 8, 16, 0, {}}, 8, 1000), 0U);
  std::vector<Pair> all;
  for (std::uint64_t i = 0; i < some; ++i)
    all.push_back({random(16, 256, i), random(16, 256, 99 + i)});
  EXPECT_TRUE(solve(solver, all, 8).empty());
  EXPECT_EQ(solver.large, 0U);
}

linalg::Rows rows_of(const Matrix& m) {
  return {m.rows, m.cols, [&m](std::size_t first, std::span<float> values) {
            for (std::size_t i = 0; i < values.size(); ++i) {
              values[i] = static_cast<float>(m.data[first * m.cols + i]);
            }
          }};
}

// Of falling singular values, all there.
Matrix fading(std::size_t height, std::size_t width, std::uint64_t seed) {
  const std::size_t side = std::min(height, width);
  Matrix b = random(side, height, seed);
  for (std::size_t r = 0; r < side; ++r) {
    for (std::size_t c = 0; c < height; ++c) b.at(r, c) /= 1.0 + static_cast<double>(r * r) / 20;
  }
  Matrix m = test::product(b, random(side, width, seed + 1));
  for (double& x : m.data) x = static_cast<double>(static_cast<float>(x));
  return m;
}

TEST_F(Decompositions, OfDenseMatricesAreAsGoodAsLapacks) {
  const std::uint64_t seed = 7;
  struct Case {
    std::size_t height, width, rank;
  };
  for (const Case& c : {Case{300, 280, 12}, {60, 90, 7}, {90, 60, 60}, {1, 50, 1}}) {
    const Matrix m = fading(c.height, c.width, 5);
    const Low best = linalg::approximate(rows_of(m), {c.rank, 1}, {.seed = seed});
    // With room for the matrix, and swept a piece at a time.
    for (const bool keep : {true, false}) {
      const auto cuda = device();
      const auto session = cuda->solver().open(100 * kMiB);
      const auto rows = rows_of(m);
      const auto dense = session->dense(rows, keep);
      EXPECT_NEAR(dense->squares(), best.norm * best.norm, 1e-10 * best.norm * best.norm);
      EXPECT_NEAR(dense->residual(best.b, best.a), best.error,
                  1e-5 * best.error + 1e-6 * best.norm);
      const Matrix v = random(3, c.width, 8), u = random(3, c.height, 9);
      const auto ahead = session->stack(1, 3, c.width), back = session->stack(1, 3, c.height);
      session->write(*ahead, 0, v);
      session->write(*back, 0, u);
      const Matrix right = linalg::multiply(v, As::is, m, As::turned);
      const Matrix left = linalg::multiply(u, As::is, m, As::is);
      EXPECT_LE(distance(session->read(*dense->forward(*ahead), 0), right),
                1e-5 * linalg::norm(right));
      EXPECT_LE(distance(session->read(*dense->backward(*back), 0), left),
                1e-5 * linalg::norm(left));
    }
    const auto cuda = device();
    const Low low = linalg::approximate(rows_of(m), {c.rank, 1}, {.seed = seed}, &cuda->solver());
    EXPECT_EQ(cuda->solver().done, 1U);
    EXPECT_EQ(cuda->solver().large, 0U);
    EXPECT_LE(low.error, 1.005 * best.error + 1e-6 * best.norm);
    EXPECT_NEAR(linalg::residual(rows_of(m), low.b, low.a), low.error,
                1e-5 * low.error + 1e-6 * low.norm);
  }
}

// Multiplied by a power of two beforehand: the same result, that power larger.
TEST_F(Decompositions, OfMatricesNearTheEndsOfSinglePrecisionLoseNothing) {
  for (const bool keep : {true, false}) {
    const Matrix m = fading(300, 280, 5);
    const linalg::Sketch sketch{.seed = 7, .memory = keep ? kMiB : 0};
    const auto cuda = device();
    const Low plain = linalg::approximate(rows_of(m), {12, 1}, sketch, &cuda->solver());
    for (const int power : {100, -110}) {
      Matrix far = m;
      for (double& x : far.data) x = std::ldexp(x, power);
      const Low low = linalg::approximate(rows_of(far), {12, 1}, sketch, &cuda->solver());
      EXPECT_NEAR(std::ldexp(low.norm, -power), plain.norm, 1e-5 * plain.norm);
      EXPECT_LE(std::ldexp(low.error, -power), 1.005 * plain.error + 1e-6 * plain.norm);
      EXPECT_NEAR(std::ldexp(linalg::residual(rows_of(far), low.b, low.a), -power),
                  std::ldexp(low.error, -power), 1e-5 * plain.error + 1e-6 * plain.norm);
    }
  }
}

TEST_F(Decompositions, LeaveToLapackWhatDoesNotFit) {
  const Matrix m = fading(300, 280, 5);
  const Low best = linalg::approximate(rows_of(m), {12, 1}, {.seed = 7, .memory = kMiB});
  const auto cuda = device(405 * kMiB);  // 5 MiB
  const Low low =
      linalg::approximate(rows_of(m), {12, 1}, {.seed = 7, .memory = kMiB}, &cuda->solver());
  EXPECT_EQ(low.a.data, best.a.data);
  EXPECT_EQ(cuda->solver().large, 1U);
  const std::string said = cuda->solver().describe();
  EXPECT_NE(said.find("1 by LAPACK, too large for --device-memory"), std::string::npos) << said;
  // All of a small device is for tensors under way: nothing is the solver's.
  const auto small = device(64 * kMiB);
  EXPECT_EQ(small->solver().capacity(), 0U);
  EXPECT_NE(small->solver().describe().find("--device-memory leaves nothing"), std::string::npos)
      << small->solver().describe();
}

// Whole merges: adapters of several modules, some equal in shape.
class Adapters : public Decompositions {
 protected:
  void write(const std::string& name, std::uint64_t seed) {
    test::Random random(seed);
    test::Factors factors;
    std::string modules;
    const auto fill = [&](std::uint64_t rows, std::uint64_t cols) {
      test::Values tensor{{rows, cols}, std::vector<float>(rows * cols)};
      for (float& x : tensor.values) x = static_cast<float>(random.uniform() - 0.5);
      return tensor;
    };
    for (int layer = 0; layer < 6; ++layer) {
      for (const auto& [module, in, out] :
           {std::tuple<const char*, std::uint64_t, std::uint64_t>{"q", 24, 24}, {"v", 24, 16}}) {
        const std::string path = "layers." + std::to_string(layer) + "." + module;
        factors[path + ".lora_A.weight"] = fill(4, in);
        factors[path + ".lora_B.weight"] = fill(out, 4);
      }
    }
    test::write_adapter(folder_ / name, factors,
                        R"("r": 4, "lora_alpha": 4, "target_modules": ["q", "v"])");
  }
  void SetUp() override {
    Decompositions::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    write("a", 1);
    write("b", 2);
  }

  [[nodiscard]] Plan plan(const std::string& type, const std::string& more = "") const {
    const auto disk = system_disk();
    PlanOptions options;
    options.root = folder_.path();
    return build(*disk,
                 parse("adapter_method: " + type +
                           "\nadapters:\n  - {adapter: ./a, parameters: {weight: 0.7}}\n  - "
                           "{adapter: ./b, parameters: {weight: 0.5}}\n" +
                           (type == "cat" ? "" : "rank: 5\n") + more,
                       "recipe.yml", {}),
                 options);
  }
  Report run(Backend& backend, const std::string& out, const std::string& type = "svd",
             MergeOptions options = {}) const {
    const auto disk = system_disk();
    options.sync = false;
    options.force = true;
    const bool masked = type != "svd";
    return merge(*disk, backend, plan(type, masked ? "parameters: {density: 0.6}\n" : ""),
                 folder_ / out, options);
  }
  void expect_verified(const std::string& out) const {
    const auto disk = system_disk();
    VerifyOptions options;
    options.all = true;
    options.root = folder_.path();
    const Verdicts verdicts = verify(*disk, folder_ / out, options);
    EXPECT_EQ(verdicts.judged, 24U);
    for (const Finding& finding : verdicts.findings) ADD_FAILURE() << finding.text;
  }
  test::Folder folder_;
};

TEST_F(Adapters, MergeBySvdInOneBatchForEachShape) {
  MergeOptions options;
  options.threads = 1;
  for (const std::uint64_t seed : test::orders({0, 1, 3})) {
    test::fresh(seed, seed % 2 == 0, 2);
    reset();
    {
      const auto cuda = device(kMemory, seed == 3 ? test::kTwoDevices : "cuda");
      const Report report = run(*cuda, "out", "svd", options);
      EXPECT_NE(report.solver.find("cuSOLVER"), std::string::npos) << report.solver;
      EXPECT_EQ(report.solver.find("LAPACK"), std::string::npos) << report.solver;
    }
#if defined(INGOT_EMULATED)
    const FakeCalls calls = counted();
    EXPECT_EQ(calls.eigen, 6U);  // left, right, cores, for each of two shapes
    EXPECT_EQ(calls.matrices, 36U);
    EXPECT_EQ(calls.live, 0);
    EXPECT_EQ(emu::traffic().live, 0U);
    EXPECT_LE(emu::traffic().peak, kMemory);
#endif
    expect_verified("out");
    // Nothing of the device is in the folder but numbers.
    EXPECT_EQ(test::read_file(folder_ / "out/ingot.json").find("cuSOLVER"), std::string::npos);
  }
}

TEST_F(Adapters, MergeByMaskedTypesToo) {
  for (const char* type : {"ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"}) {
    const auto cuda = device();
    const Report report = run(*cuda, "out", type);
    EXPECT_EQ(report.solver.find("LAPACK"), std::string::npos) << report.solver;
    EXPECT_EQ(cuda->solver().done, 12U);
    expect_verified("out");
  }
}

TEST_F(Adapters, GiveTheSameBytesAgain) {
  const auto cuda = device();
  MergeOptions options;
  options.threads = 1;
  (void)run(*cuda, "one", "svd", options);
  options.threads = 3;
  (void)run(*cuda, "two", "svd", options);
  EXPECT_EQ(test::fingerprint(folder_ / "one"), test::fingerprint(folder_ / "two"));
}

TEST_F(Adapters, AreMergedByLapackWhereALibraryIsMissing) {
  const auto cuda = cuda_backend({"cuda", kMemory, false, "/nowhere", Decompose::if_possible});
  const Report report = run(*cuda, "out");
  EXPECT_NE(report.solver.find("LAPACK of OpenBLAS"), std::string::npos) << report.solver;
  EXPECT_NE(report.solver.find("cannot open libcublas.so.13"), std::string::npos) << report.solver;
  const auto cpu = cpu_backend("");
  const Report other = run(*cpu, "cpu");
  EXPECT_EQ(other.solver.find(':'), std::string::npos) << other.solver;
  EXPECT_EQ(test::fingerprint(folder_ / "out"), test::fingerprint(folder_ / "cpu"));
  // Types that decompose nothing say nothing of it.
  const auto disk = system_disk();
  MergeOptions options;
  options.sync = false;
  EXPECT_EQ(merge(*disk, *cuda, plan("cat"), folder_ / "cat", options).solver, "");
  try {
    (void)cuda_backend({"cuda", kMemory, false, "/nowhere", Decompose::must});
    FAIL() << "took a library that is not there";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::device);
    EXPECT_NE(e.message().find("--cuda-libraries"), std::string::npos) << e.message();
  }
}

#if defined(INGOT_EMULATED)

// Merges while the n-th call fails, for every n (every `step`-th) until none fails.
void fail_each(std::uint64_t step, const std::function<void(std::uint64_t)>& arrange,
               const std::function<void()>& body) {
  for (std::uint64_t n = 1;; n += step) {
    test::fresh(n % 4);
    reset();
    arrange(n);
    bool failed = false;
    try {
      body();
    } catch (const Error& e) {
      failed = true;
      const std::string text = e.message();
      EXPECT_TRUE(e.code() == Code::device || e.code() == Code::memory) << n << ": " << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    }
    EXPECT_EQ(counted().live, 0) << n;
    EXPECT_EQ(emu::traffic().live, 0U) << n;
    if (!failed) return;
    ASSERT_LT(n, 100000U);
  }
}

TEST_F(Adapters, EveryFailureOfALibraryIsOneErrorAndLeaksNothing) {
  MergeOptions options;
  options.threads = 1;
  const auto by = [&](const char* type) {
    return [this, type, options] { (void)run(*device(), "out", type, options); };
  };
  fail_each(
      1, [](std::uint64_t n) { reset(n); }, by("svd"));
  fail_each(
      1, [](std::uint64_t n) { reset(0, n); }, by("svd"));
  fail_each(
      7, [](std::uint64_t n) { reset(n); }, by("ties_svd"));
  const Matrix m = fading(300, 280, 5);
  const auto lanczos = [&] {
    const auto cuda = device();
    (void)linalg::approximate(rows_of(m), {12, 1}, {.seed = 7}, &cuda->solver());
  };
  fail_each(
      17, [](std::uint64_t n) { reset(0, n); }, lanczos);
}

TEST_F(Decompositions, EveryFailureOfTheDeviceIsOneErrorAndLeaksNothing) {
  const std::vector<Pair> all = pairs(40, 24, 8);
  for (const bool work : {false, true}) {
    for (std::uint64_t n = 1;; ++n) {
      emu::Setup setup;
      setup.seed = n % 4;
      setup.lost = n % 2 == 0;
      (work ? setup.fail_work : setup.fail_call) = n;
      emu::plug(setup);
      reset();
      try {
        const auto cuda = device();
        (void)solve(cuda->solver(), all, 3);
      } catch (const Error& e) {
        EXPECT_TRUE(e.code() == Code::device || e.code() == Code::memory) << e.message();
      }
      const emu::Traffic traffic = emu::traffic();
      EXPECT_EQ(traffic.live, 0U) << n;
      EXPECT_EQ(counted().live, 0) << n;
      if ((work ? traffic.work : traffic.calls) < n) break;
    }
  }
}

#endif

}  // namespace
}  // namespace ingot
