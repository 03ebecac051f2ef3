// Low-rank products: the loops of every instruction set give the bits of the formula, wherever a
// run begins and ends.
#include "ingot/math/product.hpp"
#include "arithmetic.hpp"
#include "store/values.hpp"

namespace ingot::test {
namespace {

struct Matrices {
  std::vector<float> a, b;
  Product product;

  Matrices(std::uint64_t height, std::uint64_t width, std::uint32_t rank, float scale,
           std::uint64_t seed)
      : a(rank * width), b(height * rank) {
    Random random(seed);
    for (float& x : a) x = static_cast<float>(random.uniform() - 0.5);
    for (float& x : b) x = static_cast<float>(random.uniform() - 0.5);
    product = {a, b, rank, width, scale};
  }

  void add_to(std::vector<float>& values) const {
    for (std::uint64_t e = 0; e < values.size(); ++e) {
      const std::uint64_t o = e / product.width, i = e % product.width;
      float sum = 0.0F;
      for (std::uint32_t k = 0; k < product.rank; ++k) {
        sum = math::extend(sum, b[o * product.rank + k], a[k * product.width + i]);
      }
      values[e] = math::amend(values[e], product.scale, sum);
    }
  }
};

class Products : public EveryIsa {};

TEST_P(Products, equal_the_formula_for_every_dtype_rank_and_run) {
  constexpr std::uint64_t kHeight = 71, kWidth = 301, kCount = kHeight * kWidth;
  for (const Dtype dtype : kFloats) {
    for (const std::uint32_t rank : {1u, 3u, 8u, 37u, 257u}) {
      SCOPED_TRACE(std::string(name(dtype)) + " rank " + std::to_string(rank));
      const Matrices first(kHeight, kWidth, rank, 2.0F, rank);
      const Matrices second(kHeight, kWidth, 5, -0.3F, rank + 100);
      std::vector<std::byte> own(kCount * bits(dtype) / 8);
      Random random(7);
      for (std::byte& x : own) x = static_cast<std::byte>(random.next() & 0x3b);  // all finite
      std::vector<float> expected(kCount);
      to_floats(dtype, own, expected);
      first.add_to(expected);
      second.add_to(expected);
      const auto one = backend_->stage(first.product), two = backend_->stage(second.product);
      const Factors* const staged[] = {one.get(), two.get()};
      for (const auto& [from, count] : {std::pair<std::uint64_t, std::uint64_t>{0, kCount},
                                        {1, 1},
                                        {299, 4},
                                        {300, 302},
                                        {301, 1806},
                                        {150, 20000},
                                        {1000, 77}}) {
        std::vector<float> found(count);
        backend_->amend(dtype, own.data() + from * bits(dtype) / 8, staged, from, found);
        ASSERT_EQ(std::memcmp(found.data(), expected.data() + from, count * sizeof(float)), 0)
            << from << " + " << count;
      }
    }
  }
}

TEST_P(Products, stand_alone_where_there_is_no_tensor_under_them) {
  const Matrices only(3, 130, 4, 0.5F, 1);
  std::vector<float> expected(390), found(390, 9.0F);
  only.add_to(expected);
  const auto staged = backend_->stage(only.product);
  const Factors* const list[] = {staged.get()};
  backend_->amend(Dtype::f32, nullptr, list, 0, found);
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), sizeof(float) * 390), 0);
}

TEST_P(Products, may_be_fast_within_the_bound_of_any_order) {
  constexpr std::uint64_t kHeight = 71, kWidth = 301, kCount = kHeight * kWidth;
  constexpr std::uint32_t kRank = 40;
  Matrices only(kHeight, kWidth, kRank, 2.0F, 3);
  only.product.fast = true;
  const auto staged = backend_->stage(only.product);
  const Factors* const list[] = {staged.get()};
  std::vector<float> own(kCount, 0.25F);
  for (const auto& [from, count] :
       {std::pair<std::uint64_t, std::uint64_t>{0, kCount}, {1, 1}, {299, 4}, {150, 20000}}) {
    std::vector<float> found(count);
    backend_->amend(Dtype::f32, std::as_bytes(std::span(own)).data() + from * sizeof(float), list,
                    from, found);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t row = (from + i) / kWidth, column = (from + i) % kWidth;
      double value = 0.25, mass = 0.25;
      for (std::uint32_t k = 0; k < kRank; ++k) {
        const double term = 2.0 * static_cast<double>(only.b[row * kRank + k]) *
                            static_cast<double>(only.a[k * kWidth + column]);
        value += term;
        mass += std::fabs(term);
      }
      ASSERT_NEAR(found[i], value, (kRank + 4) * 0x1p-24 * mass) << from << " + " << i;
    }
  }
}

INGOT_EVERY_ISA(Products);

}  // namespace
}  // namespace ingot::test
