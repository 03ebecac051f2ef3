// Several threads in BLAS and LAPACK at once: each gets what it would get alone.
#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "ingot/linalg.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using linalg::As;
using linalg::Matrix;

Matrix random_matrix(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  test::Random random(seed);
  Matrix m(rows, cols);
  for (double& x : m.data) x = random.uniform() - 0.5;
  return m;
}

constexpr int kThreads = 2, kRounds = 20;

// Calls of several threads at once that give something else than a call alone.
template <class Call>
int wrong(const Call& call) {
  const auto expected = call();
  std::atomic<int> count = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) count += call() == expected ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return count;
}

TEST(Blas, GivesEveryThreadItsOwnResult) {
  const Matrix wide = random_matrix(64, 2048, 1);
  Matrix symmetric = random_matrix(256, 256, 2);
  for (std::size_t r = 0; r < 256; ++r) {
    for (std::size_t c = 0; c < r; ++c) symmetric.at(r, c) = symmetric.at(c, r);
  }
  EXPECT_EQ(wrong([&] { return linalg::multiply(wide, As::is, wide, As::turned).data; }), 0);
  EXPECT_EQ(wrong([&] { return linalg::split(wide).right.data; }), 0);
  EXPECT_EQ(wrong([&] { return linalg::eigen(symmetric).vectors.data; }), 0);
  EXPECT_EQ(wrong([&] { return linalg::svd(symmetric).u.data; }), 0);
  std::vector<float> a(wide.data.begin(), wide.data.end());
  EXPECT_EQ(wrong([&] {
              std::vector<float> values(256 * 2048, 1.0F);
              linalg::add_product(256, 2048, 64, 0.5F, a.data(), a.data(), values.data(), 2048);
              return values;
            }),
            0);
}

}  // namespace
}  // namespace ingot
