#include "ingot/dtype.hpp"

#include <set>
#include <string_view>

#include <gtest/gtest.h>

namespace ingot {
namespace {

TEST(Dtype, NamesAreThoseOfTheFormatAndLeadBack) {
  std::set<std::string_view> names;
  std::set<std::string_view> words;
  for (int i = 0; i < kDtypes; ++i) {
    const Dtype dtype = static_cast<Dtype>(i);
    EXPECT_EQ(dtype_of_name(name(dtype)), dtype);
    names.insert(name(dtype));
    words.insert(word(dtype));
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kDtypes));
  EXPECT_EQ(words.size(), static_cast<std::size_t>(kDtypes));
  EXPECT_EQ(name(Dtype::bf16), "BF16");
  EXPECT_EQ(name(Dtype::f8_e4m3), "F8_E4M3");
  EXPECT_EQ(name(Dtype::boolean), "BOOL");
  EXPECT_EQ(word(Dtype::bf16), "bfloat16");
  EXPECT_EQ(word(Dtype::f8_e4m3), "float8_e4m3fn");
}

TEST(Dtype, UnknownNamesAreNoDtype) {
  for (const char* bad : {"", "bf16", "BF16 ", "F128", "F8_E4M3FN", "bfloat16"}) {
    EXPECT_FALSE(dtype_of_name(bad)) << bad;
  }
}

TEST(Dtype, WidthsAreInBits) {
  EXPECT_EQ(bits(Dtype::f64), 64U);
  EXPECT_EQ(bits(Dtype::c64), 64U);
  EXPECT_EQ(bits(Dtype::f32), 32U);
  EXPECT_EQ(bits(Dtype::bf16), 16U);
  EXPECT_EQ(bits(Dtype::f8_e8m0), 8U);
  EXPECT_EQ(bits(Dtype::boolean), 8U);
  EXPECT_EQ(bits(Dtype::f6_e2m3), 6U);
  EXPECT_EQ(bits(Dtype::f4), 4U);
}

}  // namespace
}  // namespace ingot
