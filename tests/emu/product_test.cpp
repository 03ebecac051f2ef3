// Low-rank products on simulated devices: the CPU's bits, with factors on the device or without, in
// any legal order.
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "stand.hpp"
#include "support.hpp"

#include "ingot/backend.hpp"
#include "ingot/error.hpp"

namespace ingot {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

struct Matrices {
  std::vector<float> a, b;
  Product product;

  Matrices(std::uint64_t height, std::uint64_t width, std::uint32_t rank, float scale)
      : a(rank * width), b(height * rank) {
    test::Random random(rank);
    for (float& x : a) x = static_cast<float>(random.uniform() - 0.5);
    for (float& x : b) x = static_cast<float>(random.uniform() - 0.5);
    product = {a, b, rank, width, scale};
  }
};

std::vector<float> amended(Backend& backend, Dtype dtype, const std::byte* own,
                           const std::vector<const Matrices*>& products, std::uint64_t first,
                           std::uint64_t count) {
  std::vector<std::unique_ptr<Factors>> staged;
  std::vector<const Factors*> list;
  for (const Matrices* m : products) {
    staged.push_back(backend.stage(m->product));
    list.push_back(staged.back().get());
  }
  std::vector<float> values(count, 7.0F);
  backend.amend(dtype, own == nullptr ? nullptr : own + first * bits(dtype) / 8, list, first,
                values);
  return values;
}

// An element and the sum of the magnitudes of its terms.
std::pair<double, double> truth(float own, const std::vector<const Matrices*>& products,
                                std::uint64_t element) {
  double value = own, mass = std::fabs(value);
  for (const Matrices* m : products) {
    const std::uint64_t row = element / m->product.width, column = element % m->product.width;
    for (std::uint32_t k = 0; k < m->product.rank; ++k) {
      const double term = static_cast<double>(m->product.scale) *
                          static_cast<double>(m->b[row * m->product.rank + k]) *
                          static_cast<double>(m->a[k * m->product.width + column]);
      value += term;
      mass += std::fabs(term);
    }
  }
  return {value, mass};
}

TEST(CudaProducts, HaveTheBitsOfTheCpu) {
  INGOT_NEEDS_DEVICE();
  constexpr std::uint64_t kHeight = 9, kWidth = 131, kCount = kHeight * kWidth;
  const Matrices one(kHeight, kWidth, 8, 2.0F), two(kHeight, kWidth, 3, -0.5F);
  std::vector<std::byte> own(kCount * 4);
  test::Random random(5);
  for (std::byte& x : own) x = static_cast<std::byte>(random.next() & 0x3b);
  const auto cpu = cpu_backend("");
  for (const std::uint64_t seed : test::orders({0, 1, 2})) {
    for (const bool lazy : {true, false}) {
      test::fresh(seed, lazy, 2);
      // With and without room where factors stay.
      for (const std::uint64_t memory : {kMiB, 512 * kMiB}) {
        const auto cuda = cuda_backend({seed == 2 ? test::kTwoDevices : "cuda", memory});
        for (const Dtype dtype :
             {Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::f8_e4m3, Dtype::f8_e5m2}) {
          for (const auto& [first, count] : {std::pair<std::uint64_t, std::uint64_t>{0, kCount},
                                             {0, 1},
                                             {130, 2},
                                             {131, 131},
                                             {200, 700},
                                             {kCount - 1, 1}}) {
            for (const bool zeros : {false, true}) {
              const std::byte* data = zeros ? nullptr : own.data();
              for (const auto& products :
                   {std::vector{&one}, std::vector{&one, &two}, std::vector<const Matrices*>{}}) {
                const auto expected = amended(*cpu, dtype, data, products, first, count);
                const auto found = amended(*cuda, dtype, data, products, first, count);
                ASSERT_EQ(0, std::memcmp(expected.data(), found.data(), count * sizeof(float)))
                    << name(dtype) << " " << first << " + " << count << " memory " << memory;
              }
            }
          }
        }
      }
    }
  }
}

// cuBLAS, the machine's own on hardware: within the bound of any order of additions.
TEST(CudaProducts, MayBeFastWithinTheirBound) {
  INGOT_NEEDS_DEVICE();
#if defined(INGOT_EMULATED)
  const std::string folder = INGOT_LIBRARIES;
#else
  const std::string folder;
  try {
    (void)device_libraries(folder);
  } catch (const Error& e) {
    GTEST_SKIP() << e.what();
  }
#endif
  constexpr std::uint64_t kHeight = 9, kWidth = 131, kCount = kHeight * kWidth;
  Matrices one(kHeight, kWidth, 40, 2.0F), two(kHeight, kWidth, 3, -0.5F);
  one.product.fast = two.product.fast = true;
  std::vector<float> own(kCount);
  test::Random random(5);
  for (float& x : own) x = static_cast<float>(random.uniform());
  for (const std::uint64_t seed : test::orders({0, 1, 2})) {
    for (const bool lazy : {true, false}) {
      test::fresh(seed, lazy, 2);
      for (const std::uint64_t memory : {5 * kMiB, 512 * kMiB}) {
        const auto cuda =
            cuda_backend({seed == 2 ? test::kTwoDevices : "cuda", memory, true, folder});
        for (const auto& [first, count] : {std::pair<std::uint64_t, std::uint64_t>{0, kCount},
                                           {130, 2},
                                           {131, 131},
                                           {200, 700},
                                           {kCount - 1, 1}}) {
          const auto found = amended(*cuda, Dtype::f32, std::as_bytes(std::span(own)).data(),
                                     {&one, &two}, first, count);
          for (std::uint64_t i = 0; i < count; ++i) {
            const auto [value, mass] = truth(own[first + i], {&one, &two}, first + i);
            ASSERT_NEAR(found[i], value, 50 * 0x1p-24 * mass) << first << " + " << i;
          }
        }
      }
    }
  }
}

#if defined(INGOT_EMULATED)
TEST(CudaProducts, SayWhichLibraryIsMissing) {
  test::fresh(0);
  try {
    (void)cuda_backend({"cuda", 512 * kMiB, true, "/nowhere"});
    FAIL() << "fast products without a library";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::device);
    EXPECT_NE(e.message().find("--cuda-libraries"), std::string::npos) << e.message();
  }
}
#endif

}  // namespace
}  // namespace ingot
