// JSON from untrusted files: whatever it holds, it is read in bounds or refused in one sentence.
#include "store/json.hpp"

#include <chrono>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "ingot/store.hpp"

namespace ingot {
namespace {

std::string refusal(const std::string& text, const JsonBounds& bounds = {}) {
  try {
    (void)json_of(text, "f.json", bounds);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::format);
    return e.message();
  }
  return {};
}

std::string repeated(const std::string& text, std::size_t count) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i) out += text;
  return out;
}

TEST(Json, TreesAreWhatTheTextSays) {
  const std::string text =
      R"({"z":[1,-2,3.5,true,null,"x"],"a":{"b":{}},"big":18446744073709551615,"":[]})";
  EXPECT_EQ(json_of(text, "f.json").dump(), text);
  EXPECT_EQ(json_of("7", "f.json"), 7);
}

TEST(Json, OfEqualKeysTheLastCounts) {
  EXPECT_EQ(json_of(R"({"a":1,"b":2,"a":{"c":3}})", "f.json").dump(), R"({"a":{"c":3},"b":2})");
}

TEST(Json, NestingIsBoundedHoweverItIsMade) {
  for (const auto& [open, close] : std::vector<std::pair<std::string, std::string>>{
           {"[", "]"}, {"{\"a\":", "}"}, {"[{\"a\":[", "]}]"}}) {
    const std::size_t levels = open.size() > 6 ? 3 : 1;
    EXPECT_EQ(refusal(repeated(open, 126 / levels) + "0" + repeated(close, 126 / levels)), "");
    for (const std::size_t count : std::vector<std::size_t>{129, 30'000, 1'000'000}) {
      EXPECT_EQ(refusal(repeated(open, count)), "f.json is more than 128 levels deep");
    }
  }
  EXPECT_THROW(check_json(repeated("[", 1'000'000), "f.json"), Error);
}

TEST(Json, ValuesAreCounted) {
  EXPECT_EQ(refusal("[1,2,3]", {8, 4}), "");
  EXPECT_EQ(refusal("[1,2,3]", {8, 3}), "f.json has more than 3 values");
  EXPECT_EQ(refusal("{\"a\":{},\"b\":[]}", {8, 2}), "f.json has more than 2 values");
}

TEST(Json, WhatIsNotJsonIsNamedWithItsByte) {
  EXPECT_EQ(refusal("{\"a\":1} x"), "f.json is not valid JSON at byte 9");
  EXPECT_EQ(refusal(std::string("{}\0{}", 5)), "f.json is not valid JSON at byte 3");
  EXPECT_EQ(refusal("[1e999]"), "f.json is not valid JSON at byte 6");
  EXPECT_EQ(refusal("[1" + std::string(1'000'000, '0') + "]"),
            "f.json is not valid JSON at byte 1000002");
  EXPECT_NE(refusal("{\"a\":"), "");
  EXPECT_NE(refusal(""), "");
}

TEST(Json, AnObjectOfManyKeysTakesTimeInProportion) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i) text += "\"key" + std::to_string(i) + "\":0,";
  text.back() = '}';
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(json_of(text, "f.json").size(), 300'000);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));  // square: minutes
}

}  // namespace
}  // namespace ingot
