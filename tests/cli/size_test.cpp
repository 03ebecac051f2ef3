#include "size.hpp"
#include "ingot/text.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "ingot/error.hpp"

namespace ingot::tool {
namespace {

// The message of the error that `body` throws.
template <class Body>
std::string refusal(Body body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::usage);
    return error.what();
  }
  return "accepted";
}

TEST(Size, UnitsAreDecimalOrBinaryAsWritten) {
  EXPECT_EQ(parse_size("4096"), 4096U);
  EXPECT_EQ(parse_size("5GB"), 5'000'000'000U);
  EXPECT_EQ(parse_size("5gb"), 5'000'000'000U);
  EXPECT_EQ(parse_size("256MiB"), 256U << 20);
  EXPECT_EQ(parse_size("1.5GiB"), 3U << 29);
  EXPECT_EQ(parse_size("0.1kB"), 100U);
  EXPECT_EQ(parse_size("4TiB"), std::uint64_t{4} << 40);
}

TEST(Size, FractionsAreExact) {
  EXPECT_EQ(parse_size("0.3GB"), 300'000'000U);
  EXPECT_EQ(parse_size("1.000000001GB"), 1'000'000'001U);
}

TEST(Size, WhatCanBeReadTwoWaysIsRefusedWithBoth) {
  const std::string text = refusal([] { (void)parse_size("4G"); });
  EXPECT_NE(text.find("4GB"), std::string::npos) << text;
  EXPECT_NE(text.find("4GiB"), std::string::npos) << text;
  // mergekit's 5B means five billion bytes.
  EXPECT_NE(refusal([] { (void)parse_size("5B"); }).find("5GB"), std::string::npos);
}

TEST(Size, NonsenseIsRefused) {
  for (const char* text : {"", "GB", "-1GB", "+1", "1e9", "0x10", "1..5GB", "1.GB", "0", "0.1",
                           "5 GB", "5XB", "99999999999999999999", "9999999999TiB", "nan", "inf"}) {
    EXPECT_NE(refusal([&] { (void)parse_size(text); }), "accepted") << text;
  }
}

TEST(Size, WholeNumbersAreDecimalInFullAndInRange) {
  constexpr std::uint64_t kAll = ~std::uint64_t{0};
  for (const char* text : {"0", "7", "1024", "18446744073709551615"}) {
    EXPECT_EQ(no_whole(text, kAll), "") << text;
  }
  for (const char* text : {"", "-1", "+1", "0x10", "010", "00", "1.5", "1e3", " 1", "1 ", "1_000",
                           "18446744073709551616", "99999999999999999999999"}) {
    EXPECT_EQ(no_whole(text, kAll),
              fmt::format("'{}' is not a whole number from 0 to 18446744073709551615", text));
  }
  EXPECT_EQ(no_thread_count("1024"), "");
  EXPECT_EQ(no_thread_count("1025"), "'1025' is not a whole number from 0 to 1024");
  EXPECT_EQ(refusal([] { (void)parse_size("--memory", "1G"); }).rfind("--memory: '1G' is not", 0),
            0U);
}

TEST(Size, TheLargestSizeFitsAndMoreDoesNot) {
  EXPECT_EQ(parse_size("4194304TiB"), std::uint64_t{1} << 62);
  EXPECT_NE(refusal([] { (void)parse_size("4194305TiB"); }), "accepted");
}

TEST(Size, MergekitsShardSizesCountBytesByTheBillion) {
  EXPECT_EQ(parse_shard("5B"), 5'000'000'000U);
  EXPECT_EQ(parse_shard("5b"), 5'000'000'000U);
  EXPECT_EQ(parse_shard("200m"), 200'000'000U);
  EXPECT_EQ(parse_shard("7k"), 7'000U);
  EXPECT_EQ(parse_shard("123"), 123U);
  EXPECT_NE(refusal([] { (void)parse_shard("1.5B"); }), "accepted");
  EXPECT_NE(refusal([] { (void)parse_shard("5GB"); }), "accepted");
}

TEST(Show, BytesKeepThreeDigitsOrMore) {
  EXPECT_EQ(show_bytes(0), "0 B");
  EXPECT_EQ(show_bytes(999), "999 B");
  EXPECT_EQ(show_bytes(1000), "1.00 kB");
  EXPECT_EQ(show_bytes(317'432), "317.4 kB");
  EXPECT_EQ(show_bytes(999'999), "1.00 MB");
  EXPECT_EQ(show_bytes(13'476'831'232), "13.5 GB");
}

TEST(Show, MemoryIsBinary) {
  EXPECT_EQ(show_memory(std::uint64_t{1} << 30), "1 GiB");
  EXPECT_EQ(show_memory((std::uint64_t{1} << 20) + 1), "2 MiB");
  EXPECT_EQ(show_memory((std::uint64_t{25} << 29)), "12.5 GiB");
}

TEST(Show, TimesTurnToMinutesAndHours) {
  EXPECT_EQ(show_time(0.42), "0.42 s");
  EXPECT_EQ(show_time(12.34), "12.3 s");
  EXPECT_EQ(show_time(192), "3 min 12 s");
  EXPECT_EQ(show_time(7500), "2 h 5 min");
  EXPECT_EQ(show_time(-1), "unknown");
}

TEST(Show, CountsAreGrouped) {
  EXPECT_EQ(show_count(7), "7");
  EXPECT_EQ(show_count(1234), "1,234");
  EXPECT_EQ(show_count(6'738'415'616), "6,738,415,616");
}

TEST(Show, NamesCannotDriveTheTerminal) {
  EXPECT_EQ(printable("a\x1b[31m\nb\x7f"), "a\\x1b[31m\\x0ab\\x7f");
  EXPECT_EQ(printable("Größe"), "Größe");
  EXPECT_EQ(printable("a\u0085\u009b1m\u202e\u2066\u200b\ufeff\u2028"),
            "a\\u0085\\u009b1m\\u202e\\u2066\\u200b\\ufeff\\u2028");
  EXPECT_EQ(printable("\x9b\xff\xc0\x80\xed\xa0\x80\xf0\x9f"),
            "\\x9b\\xff\\xc0\\x80\\xed\\xa0\\x80\\xf0\\x9f");
  EXPECT_EQ(printable("\U0001f600 日本 עברית"), "\U0001f600 日本 עברית");
  EXPECT_EQ(printable("a\r\nb\tc\r", Breaks::kept), "a\nb\tc\\x0d");
}

TEST(Show, LongTextsKeepTheirBeginningAndEnd) {
  EXPECT_EQ(shorten("short", 10), "short");
  const std::string text = shorten("begin" + std::string(1'000'000, 'x') + "end", 100);
  EXPECT_LT(text.size(), 150U);
  EXPECT_TRUE(text.starts_with("beginxxx") && text.ends_with("xxxend"));
  EXPECT_NE(text.find("1000008 bytes"), std::string::npos);
  for (std::size_t most = 8; most < 30; ++most) {  // never a part of a character
    EXPECT_EQ(printable(shorten("ééééééééééééééééééééé", most)).find("\\x"), std::string::npos);
  }
}

}  // namespace
}  // namespace ingot::tool
