// Decompositions in a file: their leading directions, what these leave, and both ends of the range.
#include "adapter/kept.hpp"

#include <cmath>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot::adapter {
namespace {

using linalg::As;
using linalg::Low;
using linalg::Matrix;

Matrix random_matrix(std::size_t rows, std::size_t cols, double scale) {
  test::Random random(3);
  Matrix m(rows, cols);
  for (double& x : m.data) {
    x = scale * static_cast<double>(static_cast<float>(random.below(2001)) / 1000 - 1);
  }
  return m;
}

Low decomposed(const Matrix& m, std::size_t rank) {
  Matrix identity(m.rows, m.rows);
  for (std::size_t i = 0; i < m.rows; ++i) identity.at(i, i) = 1;
  return linalg::recombine(identity, m, {rank, 1});
}

class KeptTest : public testing::Test {
 protected:
  test::Folder folder_;
  std::unique_ptr<Disk> disk_ = system_disk();
  int made_ = 0;
  Kept kept_{[this] {
    ++made_;
    return disk_->create(folder_ / "kept");
  }};
};

TEST_F(KeptTest, GivesTheLeadingDirectionsAndTheErrorThatTheyLeave) {
  for (const double scale : {1.0, 1e-34, 1e35}) {
    const Matrix m = random_matrix(12, 20, scale);
    kept_.keep("m", 3, decomposed(m, 9), false);
    const Low found = kept_.find("m", 3, 4), wanted = decomposed(m, 4);
    ASSERT_EQ(found.a.rows, 4U);
    ASSERT_EQ(found.b.rows, 4U);
    for (std::size_t k = 0; k < 4; ++k) {
      for (std::size_t i = 0; i < 20; ++i) {
        EXPECT_NEAR(found.a.at(k, i), wanted.a.at(k, i), 0x1p-23);
      }
      for (std::size_t i = 0; i < 12; ++i) {
        EXPECT_NEAR(found.b.at(k, i) / scale, wanted.b.at(k, i) / scale, 0x1p-22);
      }
    }
    EXPECT_NEAR(found.error / scale, wanted.error / scale, 1e-12);
    EXPECT_EQ(found.norm, wanted.norm);
  }
  EXPECT_EQ(made_, 1);
}

TEST_F(KeptTest, HasWhatItHasOfEveryExpert) {
  const Matrix m = random_matrix(5, 7, 1);
  kept_.keep("m", 0, decomposed(m, 3), false);
  EXPECT_TRUE(kept_.has("m", 1, 3));
  EXPECT_FALSE(kept_.has("m", 1, 4));
  EXPECT_FALSE(kept_.has("m", 2, 3)) << "an expert that was not kept";
  EXPECT_FALSE(kept_.has("n", 1, 1)) << "another module";
  EXPECT_THROW((void)kept_.find("m", 0, 4), Error);
  // Where the matrix has no more, any rank is there.
  kept_.keep("m", 1, decomposed(m, 5), true);
  EXPECT_TRUE(kept_.has("m", 2, 3));
  EXPECT_EQ(kept_.find("m", 1, 8).a.rows, 5U);
  // The last one counts.
  kept_.keep("m", 0, decomposed(m, 4), false);
  EXPECT_TRUE(kept_.has("m", 2, 4));
}

}  // namespace
}  // namespace ingot::adapter
