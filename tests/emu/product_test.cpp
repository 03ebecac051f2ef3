// Low-rank products on simulated devices: the CPU's bits, with factors on the device or without, in
// any legal order.
#include <cstring>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "stand.hpp"
#include "support.hpp"

#include "ingot/backend.hpp"

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

TEST(CudaProducts, HaveTheBitsOfTheCpu) {
  INGOT_NEEDS_DEVICE();
  constexpr std::uint64_t kHeight = 9, kWidth = 131, kCount = kHeight * kWidth;
  const Matrices one(kHeight, kWidth, 8, 2.0F), two(kHeight, kWidth, 3, -0.5F);
  std::vector<std::byte> own(kCount * 4);
  test::Random random(5);
  for (std::byte& x : own) x = static_cast<std::byte>(random.next() & 0x3b);
  const auto cpu = cpu_backend("");
  for (const std::uint64_t seed : {0U, 1U, 2U}) {
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

}  // namespace
}  // namespace ingot
