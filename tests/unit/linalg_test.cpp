// Decompositions: known spectra, deficient ranks, extreme shapes, values that are no numbers.
#include "ingot/linalg.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "matrix.hpp"

namespace ingot::linalg {
namespace {

using test::distance;
using test::product;

Matrix random(std::size_t rows, std::size_t cols, std::uint64_t seed) {
  return test::random_matrix(rows, cols, seed);
}

// Height x width with the singular values given.
Matrix with_values(std::size_t height, std::size_t width, const std::vector<double>& values,
                   std::uint64_t seed) {
  Matrix u = split(random(values.size(), height, seed)).right;
  const Matrix v = split(random(values.size(), width, seed + 1)).right;
  for (std::size_t j = 0; j < values.size(); ++j) {
    for (std::size_t c = 0; c < height; ++c) u.at(j, c) *= values[j];
  }
  return product(u, v);
}

Rows rows_of(const Matrix& m, int* reads = nullptr) {
  return {m.rows, m.cols, [&m, reads](std::size_t first, std::span<float> values) {
            if (reads != nullptr) ++*reads;
            for (std::size_t i = 0; i < values.size(); ++i) {
              values[i] = static_cast<float>(m.data[first * m.cols + i]);
            }
          }};
}

double best(const std::vector<double>& values, std::size_t rank) {
  double sum = 0;
  for (std::size_t j = rank; j < values.size(); ++j) sum += values[j] * values[j];
  return std::sqrt(sum);
}

void expect_orthonormal(const Matrix& rows, double tolerance) {
  const Matrix gram = multiply(rows, As::is, rows, As::turned);
  for (std::size_t r = 0; r < gram.rows; ++r) {
    for (std::size_t c = 0; c < gram.cols; ++c) {
      EXPECT_NEAR(gram.at(r, c), r == c ? 1.0 : 0.0, tolerance) << r << " " << c;
    }
  }
}

TEST(Multiply, FollowsTheDefinitionForEveryTransposition) {
  const Matrix a = random(3, 5, 1), b = random(5, 4, 2);
  Matrix expected(3, 4), at(5, 3), bt(4, 5);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t k = 0; k < 5; ++k) {
      at.at(k, i) = a.at(i, k);
      for (std::size_t j = 0; j < 4; ++j) {
        bt.at(j, k) = b.at(k, j);
        expected.at(i, j) += a.at(i, k) * b.at(k, j);
      }
    }
  }
  EXPECT_LT(distance(multiply(a, As::is, b, As::is), expected), 1e-14);
  EXPECT_LT(distance(multiply(at, As::turned, b, As::is), expected), 1e-14);
  EXPECT_LT(distance(multiply(a, As::is, bt, As::turned), expected), 1e-14);
  EXPECT_LT(distance(multiply(at, As::turned, bt, As::turned), expected), 1e-14);
  EXPECT_EQ(multiply(Matrix(3, 0), As::is, Matrix(0, 4), As::is).data, std::vector<double>(12));
}

TEST(Eigen, DiagonalisesAndSortsRising) {
  const Matrix half = random(6, 9, 3);
  const Matrix gram = multiply(half, As::is, half, As::turned);
  const Spectrum spectrum = eigen(gram);
  EXPECT_TRUE(std::is_sorted(spectrum.values.begin(), spectrum.values.end()));
  expect_orthonormal(spectrum.vectors, 1e-13);
  const Matrix image = multiply(spectrum.vectors, As::is, gram, As::is);
  for (std::size_t j = 0; j < 6; ++j) {
    for (std::size_t c = 0; c < 6; ++c) {
      EXPECT_NEAR(image.at(j, c), spectrum.values[j] * spectrum.vectors.at(j, c), 1e-12);
    }
  }
}

TEST(Split, RestoresAnyShapeFromOrthonormalRows) {
  for (const auto& [rows, cols] : {std::pair{4, 9}, {9, 4}, {1, 7}, {7, 1}, {5, 5}}) {
    const Matrix a = random(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), 4);
    const Split parts = split(a);
    EXPECT_EQ(parts.right.rows, static_cast<std::size_t>(std::min(rows, cols)));
    expect_orthonormal(parts.right, 1e-13);
    EXPECT_LT(distance(multiply(parts.left, As::is, parts.right, As::is), a),
              1e-13 * norm(a) + 1e-14);
  }
}

TEST(Svd, FindsTheValuesThatWereGiven) {
  const std::vector<double> values{9, 4, 4, 1, 0.25};
  for (const auto& [m, n] : {std::pair<std::size_t, std::size_t>{5, 12}, {12, 5}}) {
    const Singular found = svd(with_values(m, n, values, 5));
    for (std::size_t j = 0; j < 5; ++j) EXPECT_NEAR(found.values[j], values[j], 1e-12);
    expect_orthonormal(found.u, 1e-12);
    expect_orthonormal(found.v, 1e-12);
  }
}

TEST(Kept, TakesTheFewestThatReachTheEnergy) {
  const std::vector<double> values{3, 2, 1};  // squares 9 4 1 of 14
  EXPECT_EQ(kept(values, 14, {3, 1}), 3U);
  EXPECT_EQ(kept(values, 14, {2, 1}), 2U);
  EXPECT_EQ(kept(values, 14, {9, 0.5}), 1U);
  EXPECT_EQ(kept(values, 14, {9, 0.65}), 2U);
  EXPECT_EQ(kept(values, 14, {1, 0.99}), 1U);
  EXPECT_EQ(kept(std::vector<double>{0, 0}, 0, {2, 0.9}), 0U);
}

TEST(Recombine, IsTheWholeProductWhereTheRankSuffices) {
  const Matrix b = random(6, 40, 6), a = random(6, 30, 7);
  const Low low = recombine(b, a, {6, 1});
  EXPECT_LT(distance(product(low.b, low.a), product(b, a)), 1e-11 * norm(product(b, a)));
  EXPECT_NEAR(low.norm, norm(product(b, a)), 1e-11 * low.norm);
  EXPECT_EQ(low.error, 0.0);
  expect_orthonormal(low.a, 1e-9);
}

TEST(Recombine, LeavesNoMoreThanTheOptimum) {
  const Matrix b = random(24, 90, 8), a = random(24, 70, 9), whole = product(b, a);
  const std::vector<double> values = svd(whole).values;
  for (const std::size_t rank : {1U, 5U, 12U, 23U}) {
    const Low low = recombine(b, a, {rank, 1});
    const double optimum = best(values, rank);
    EXPECT_EQ(low.a.rows, rank);
    EXPECT_LT(distance(product(low.b, low.a), whole), 1.0000001 * optimum) << rank;
    EXPECT_NEAR(low.error, optimum, 1e-9 * optimum);
  }
}

TEST(Recombine, SurvivesEqualAndNearlyEqualFactors) {
  Matrix b = random(8, 50, 10), a = random(8, 60, 11);
  for (std::size_t c = 0; c < 50; ++c) {
    for (std::size_t r = 4; r < 8; ++r) b.at(r, c) = -b.at(r - 4, c);
  }
  for (std::size_t c = 0; c < 60; ++c) {
    for (std::size_t r = 4; r < 8; ++r) {
      a.at(r, c) = a.at(r - 4, c) * (1 + (c % 7 == 0 ? 1e-6 : 0));  // all but cancels
    }
  }
  const Matrix whole = product(b, a);
  const Low low = recombine(b, a, {8, 1});
  EXPECT_LT(distance(product(low.b, low.a), whole), 1e-7 * norm(whole));
}

TEST(Recombine, GivesZeroRowsWhereTheProductHasALowerRank) {
  Matrix b = random(3, 20, 12);
  const Matrix a = random(3, 25, 13);
  for (std::size_t c = 0; c < 20; ++c) b.at(2, c) = b.at(1, c) = b.at(0, c);
  const Low low = recombine(b, a, {3, 1});
  EXPECT_LT(distance(product(low.b, low.a), product(b, a)), 1e-12);
  for (std::size_t r = 1; r < 3; ++r) {
    EXPECT_EQ(std::count(low.b.row(r), low.b.row(r) + 20, 0.0), 20);
    EXPECT_EQ(std::count(low.a.row(r), low.a.row(r) + 25, 0.0), 25);
  }
  const Low nothing = recombine(Matrix(4, 20), a.rows == 3 ? random(4, 25, 1) : a, {4, 1});
  EXPECT_EQ(norm(nothing.b), 0.0);
  EXPECT_EQ(nothing.a.rows, 4U);
}

TEST(Recombine, TakesMoreRanksThanTheMatrixHasRows) {
  for (const auto& [height, width] : {std::pair<std::size_t, std::size_t>{1, 9}, {9, 1}, {3, 4}}) {
    const Matrix b = random(12, height, 14), a = random(12, width, 15);
    const Low low = recombine(b, a, {12, 1});
    EXPECT_EQ(low.a.rows, std::min(height, width));
    EXPECT_LT(distance(product(low.b, low.a), product(b, a)), 1e-11);
  }
}

TEST(Recombine, MakesTheLargestEntryOfEachRowPositive) {
  const Low low = recombine(random(5, 20, 16), random(5, 30, 17), {5, 1});
  for (std::size_t r = 0; r < 5; ++r) {
    const double* row = low.a.row(r);
    EXPECT_GT(*std::max_element(row, row + 30,
                                [](double x, double y) { return std::fabs(x) < std::fabs(y); }),
              0);
  }
}

TEST(Recombine, RefusesWhatIsNoNumber) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL, 1e200}) {
    Matrix b = random(3, 8, 18), a = random(3, 8, 19);
    b.at(1, 2) = bad;
    EXPECT_THROW((void)recombine(b, a, {2, 1}), Error);
    EXPECT_THROW((void)recombine(a, b, {2, 1}), Error);
    EXPECT_THROW((void)spectrum(a, b), Error);
  }
}

TEST(Spectrum, HasTheSingularValuesOfTheProduct) {
  const Matrix b = random(7, 30, 20), a = random(7, 20, 21);
  const std::vector<double> values = spectrum(b, a), expected = svd(product(b, a)).values;
  ASSERT_EQ(values.size(), 7U);
  for (std::size_t j = 0; j < 7; ++j) EXPECT_NEAR(values[j], expected[j], 1e-10 * expected[0]);
}

// Spectra on which sketches do badly: a slow decay, a floor of noise, none at all.
std::vector<std::vector<double>> hard(std::size_t n) {
  std::vector<double> slow(n), floor(n, 0.3), flat(n, 1.0);
  for (std::size_t j = 0; j < n; ++j) slow[j] = 1 / std::sqrt(static_cast<double>(j + 1));
  for (std::size_t j = 0; j < 20; ++j) floor[j] = 20 - static_cast<double>(j) * 0.9;
  return {slow, floor, flat};
}

TEST(Approximate, StaysWithinHalfAPercentOfTheOptimum) {
  for (const auto& values : hard(420)) {
    const Matrix whole = with_values(500, 420, values, 22);
    const Low low = approximate(rows_of(whole), {32, 1}, {.seed = 7, .memory = 1 << 20});
    const double optimum = best(values, 32), found = distance(product(low.b, low.a), whole);
    EXPECT_EQ(low.a.rows, 32U);
    EXPECT_LT(found, 1.005 * optimum);
    EXPECT_NEAR(low.error, found, 1e-5 * found);
    expect_orthonormal(low.a, 1e-5);
  }
}

TEST(Approximate, IsExactForSmallMatricesAndLargeRanks) {
  const Matrix small = random(40, 60, 23), wide = random(300, 280, 24);
  for (const auto& [matrix, rank] : {std::pair{small, std::size_t{5}}, {wide, std::size_t{200}}}) {
    const Low low = approximate(rows_of(matrix), {rank, 1}, {});
    EXPECT_LT(low.error, 1.0001 * best(svd(matrix).values, rank));
  }
}

TEST(Approximate, FindsALowRankWhole) {
  const Matrix whole = product(random(6, 400, 25), random(6, 330, 26));
  const Low low = approximate(rows_of(whole), {16, 1}, {.memory = 1 << 20});
  EXPECT_LT(low.error, 2e-6 * low.norm);
}

TEST(Approximate, DoesNotDependOnWhereTheMatrixIsKept) {
  const Matrix whole = random(500, 3000, 27);  // two pieces
  int kept = 0, streamed = 0;
  const Low one = approximate(rows_of(whole, &kept), {8, 1}, {.memory = std::uint64_t{1} << 30});
  const Low two = approximate(rows_of(whole, &streamed), {8, 1}, {.memory = 0});
  EXPECT_EQ(one.a.data, two.a.data);
  EXPECT_EQ(one.b.data, two.b.data);
  EXPECT_EQ(kept, 1);
  EXPECT_GT(streamed, 4);
}

TEST(Approximate, TakesAnyOfEqualSingularValues) {
  Matrix identity(400, 400);
  for (std::size_t i = 0; i < 400; ++i) identity.at(i, i) = 1;
  EXPECT_LT(approximate(rows_of(identity), {64, 1}, {}).error, 1.005 * std::sqrt(400.0 - 64));
}

TEST(Approximate, HandlesZerosAndExtremeShapes) {
  const Low zero = approximate(rows_of(Matrix(600, 500)), {8, 1}, {});
  EXPECT_EQ(zero.error, 0.0);
  EXPECT_EQ(norm(zero.b), 0.0);
  const Matrix line = random(1, 900, 28), column = random(900, 1, 29);
  EXPECT_LT(approximate(rows_of(line), {8, 1}, {}).error, 1e-6 * norm(line));
  EXPECT_EQ(approximate(rows_of(column), {8, 1}, {}).a.rows, 1U);
}

TEST(Approximate, ReachesToBothEndsOfSinglePrecision) {
  // Small ones are decomposed whole, large ones by products in f32.
  for (const auto& [height, width, rank] :
       {std::tuple{60, 40, 5}, std::tuple{500, 400, 20}, std::tuple{1, 300, 1}}) {
    std::vector<double> values;
    for (int j = 0; j < std::min(height, 40); ++j) values.push_back(std::pow(0.8, j));
    const Matrix m =
        with_values(static_cast<std::size_t>(height), static_cast<std::size_t>(width), values, 3);
    const auto k = static_cast<std::size_t>(rank);
    for (const int power : {127, -110}) {
      Matrix far = m;
      for (double& x : far.data) x = std::ldexp(x, power);
      const Low low = approximate(rows_of(far), {k, 1}, {.seed = 3});
      const double scale = std::ldexp(1.0, power);
      const double slack = 1e-5 * scale;
      EXPECT_NEAR(low.norm, best(values, 0) * scale, slack) << power;
      EXPECT_LE(low.error, 1.005 * best(values, k) * scale + slack) << power;
      EXPECT_NEAR(residual(rows_of(far), low.b, low.a), low.error, slack) << power;
      expect_orthonormal(low.a, 1e-5);
    }
  }
}

TEST(Recombine, ReachesToBothEndsOfSinglePrecision) {
  const Matrix b = random(6, 30, 1), a = random(6, 20, 2);
  const Low plain = recombine(b, a, {4, 1});
  for (const int power : {120, -140}) {
    Matrix left = b, right = a;
    for (double& x : left.data) x = std::ldexp(x, power);
    for (double& x : right.data) x = std::ldexp(x, power);
    const Low far = recombine(left, right, {4, 1});
    EXPECT_NEAR(std::ldexp(far.norm, -2 * power), plain.norm, 1e-10 * plain.norm);
    EXPECT_NEAR(std::ldexp(far.error, -2 * power), plain.error, 1e-10 * plain.norm);
    expect_orthonormal(far.a, 1e-10);
  }
}

TEST(Approximate, StopsAtTheEnergyAsked) {
  std::vector<double> values(300, 0.0);
  for (std::size_t j = 0; j < 300; ++j) values[j] = std::pow(0.5, static_cast<double>(j));
  const Low low = approximate(rows_of(with_values(320, 300, values, 30)), {40, 0.99}, {});
  EXPECT_EQ(low.a.rows, 4U);  // 1 - 2^-8 of the squares; three leave 2^-6
}

TEST(Approximate, RefusesWhatIsNoNumber) {
  Matrix whole = random(300, 300, 31);
  whole.at(299, 299) = std::numeric_limits<double>::infinity();
  EXPECT_THROW((void)approximate(rows_of(whole), {8, 1}, {}), Error);
}

}  // namespace
}  // namespace ingot::linalg
