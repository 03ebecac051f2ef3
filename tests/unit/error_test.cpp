#include "ingot/error.hpp"

#include <gtest/gtest.h>

namespace ingot {
namespace {

TEST(Error, ContextFollowsTheMessageInnermostFirst) {
  Error error(Code::format, "x.safetensors: truncated");
  EXPECT_STREQ(error.what(), "x.safetensors: truncated");
  error.add("reading tensor w").add("planning");
  EXPECT_STREQ(error.what(), "x.safetensors: truncated (while reading tensor w; while planning)");
  EXPECT_EQ(error.code(), Code::format);
  EXPECT_EQ(error.message(), "x.safetensors: truncated");
  EXPECT_EQ(error.context().size(), 2U);
}

TEST(Error, EveryCodeHasTheDocumentedExitCode) {
  EXPECT_EQ(exit_code(Code::usage), 2);
  for (Code code : {Code::format, Code::shape, Code::dtype, Code::missing}) {
    EXPECT_EQ(exit_code(code), 3);
  }
  EXPECT_EQ(exit_code(Code::io), 4);
  EXPECT_EQ(exit_code(Code::memory), 4);
  EXPECT_EQ(exit_code(Code::device), 5);
  EXPECT_EQ(exit_code(Code::internal), 6);
}

TEST(Error, WhatIsSaidHasAnEndAndNoZeroBytes) {
  Error error(Code::missing, std::string("no such folder: a\0b", 19));
  EXPECT_STREQ(error.what(), "no such folder: a\\x00b");
  std::string text(10'000'000, 'x');
  text.replace(text.size() - 8, 8, " the end");
  error.add(text);
  EXPECT_LT(std::string_view(error.what()).size(), 5'000U);
  EXPECT_TRUE(std::string_view(error.what()).ends_with("the end)"));
}

TEST(Error, FailThrowsWhatItIsGiven) {
  try {
    fail(Code::missing, "no such tensor");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::missing);
    EXPECT_EQ(error.message(), "no such tensor");
  }
}

}  // namespace
}  // namespace ingot
