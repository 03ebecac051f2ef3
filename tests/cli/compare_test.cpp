#include "compare.hpp"

#include <cmath>
#include <cstring>

#include <gtest/gtest.h>

#include "support.hpp"

namespace ingot::tool {
namespace {

// A safetensors file with one tensor "t" of the given bytes.
std::string file_of(const test::Folder& folder, const std::string& name, const std::string& dtype,
                    std::uint64_t count, const std::string& data) {
  std::string header = "{\"t\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + std::to_string(count) +
                       "],\"data_offsets\":[0," + std::to_string(data.size()) + "]}}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string length(8, '\0');
  const std::uint64_t size = header.size();
  std::memcpy(length.data(), &size, sizeof size);
  test::write_file(folder / name, length + header + data);
  return folder / name;
}

template <class Number>
std::string bytes_of(const std::vector<Number>& numbers) {
  std::string bytes(numbers.size() * sizeof(Number), '\0');
  std::memcpy(bytes.data(), numbers.data(), bytes.size());
  return bytes;
}

Likeness likeness(const std::string& a, const std::string& b) {
  const auto disk = system_disk();
  const Checkpoint left = Checkpoint::open(*disk, a, a);
  const Checkpoint right = Checkpoint::open(*disk, b, b);
  Likeness result;
  Sweep x(left, *left.find("t"));
  Sweep y(right, *right.find("t"));
  while (x.next() && y.next()) {
    result.add(left.find("t")->info.dtype, x, right.find("t")->info.dtype, y);
  }
  return result;
}

TEST(Ulp, CountsStepsBetweenNeighbours) {
  EXPECT_EQ(ulp_distance(0x3f80, 0x3f80, 16), 0U);
  EXPECT_EQ(ulp_distance(0x3f80, 0x3f81, 16), 1U);
  EXPECT_EQ(ulp_distance(0x3f81, 0x3f80, 16), 1U);
  EXPECT_EQ(ulp_distance(0x0000, 0x8000, 16), 0U) << "zeros of both signs are one number";
  EXPECT_EQ(ulp_distance(0x0001, 0x8001, 16), 2U) << "across zero";
  EXPECT_EQ(ulp_distance(0x7f7fffff, 0xff7fffff, 32), 2U * 0x7f7fffffU);
  EXPECT_EQ(ulp_distance(0x7fefffffffffffff, 0xffefffffffffffff, 64), 2 * 0x7fefffffffffffffULL);
  EXPECT_EQ(ulp_distance(0x38, 0xb8, 8), 0x70U);
}

TEST(Likeness, OfATensorWithItselfIsPerfect) {
  const test::Folder folder;
  const std::string a = file_of(folder, "a.safetensors", "F32", 3, bytes_of<float>({1, -2, 3}));
  const Likeness same = likeness(a, a);
  EXPECT_EQ(same.elements, 3U);
  EXPECT_EQ(same.differing, 0U);
  EXPECT_EQ(same.max_ulp, 0U);
  EXPECT_EQ(same.relative(), 0);
  EXPECT_EQ(same.cosine(), 1);
}

TEST(Likeness, MeasuresStepsChangeAndAngle) {
  const test::Folder folder;
  const float next = std::nextafter(4.0F, 5.0F);
  const std::string a = file_of(folder, "a.safetensors", "F32", 2, bytes_of<float>({3, 4}));
  const std::string b = file_of(folder, "b.safetensors", "F32", 2, bytes_of<float>({3, next}));
  const std::string c = file_of(folder, "c.safetensors", "F32", 2, bytes_of<float>({-4, 3}));
  const Likeness near = likeness(a, b);
  EXPECT_EQ(near.differing, 1U);
  EXPECT_EQ(near.max_ulp, 1U);
  EXPECT_EQ(near.mean_ulp(), 0.5);
  EXPECT_DOUBLE_EQ(near.relative(), static_cast<double>(next - 4.0F) / 5);
  EXPECT_EQ(likeness(a, c).cosine(), 0);
  EXPECT_DOUBLE_EQ(likeness(a, c).relative(), std::sqrt(2));
}

TEST(Likeness, TypesThatDifferAreComparedByValue) {
  const test::Folder folder;
  const std::string a = file_of(folder, "a.safetensors", "F32", 2, bytes_of<float>({1, 0.5F}));
  const std::string b =
      file_of(folder, "b.safetensors", "BF16", 2, bytes_of<std::uint16_t>({0x3f80, 0x3f80}));
  const Likeness mixed = likeness(a, b);
  EXPECT_EQ(mixed.differing, 1U);
  EXPECT_EQ(mixed.ulps, 0U) << "steps mean nothing between types";
  EXPECT_EQ(mixed.max_difference, 0.5);
}

TEST(Likeness, WhatIsNotFiniteIsCountedAndLeftOut) {
  const test::Folder folder;
  const float inf = INFINITY;
  const std::string a = file_of(folder, "a.safetensors", "F32", 3, bytes_of<float>({1, inf, NAN}));
  const std::string b = file_of(folder, "b.safetensors", "F32", 3, bytes_of<float>({1, 2, NAN}));
  const Likeness result = likeness(a, b);
  EXPECT_EQ(result.differing, 1U);
  EXPECT_EQ(result.not_finite, 2U);
  EXPECT_EQ(result.relative(), 0);
  EXPECT_EQ(result.max_ulp, 0U);
}

TEST(Likeness, DoesNotDependOnWhereThePiecesEnd) {
  const test::Folder folder;
  std::vector<float> x(Sweep::kPiece + 3, 1.0F);
  std::vector<float> y = x;
  y.back() = -1.0F;
  y[Sweep::kPiece - 1] = 2.0F;
  const std::string a = file_of(folder, "a.safetensors", "F32", x.size(), bytes_of(x));
  const std::string b = file_of(folder, "b.safetensors", "F32", y.size(), bytes_of(y));
  const Likeness result = likeness(a, b);
  EXPECT_EQ(result.elements, x.size());
  EXPECT_EQ(result.differing, 2U);
  EXPECT_EQ(result.dd, 5);
}

TEST(Likeness, ZeroTensorsHaveDefinedMeasures) {
  const test::Folder folder;
  const std::string zero = file_of(folder, "z.safetensors", "F32", 1, bytes_of<float>({0}));
  const std::string one = file_of(folder, "o.safetensors", "F32", 1, bytes_of<float>({1}));
  EXPECT_EQ(likeness(zero, zero).cosine(), 1);
  EXPECT_EQ(likeness(zero, one).cosine(), 0);
  EXPECT_EQ(likeness(zero, one).relative(), INFINITY);
}

}  // namespace
}  // namespace ingot::tool
