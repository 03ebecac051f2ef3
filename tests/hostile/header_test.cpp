// Malformed safetensors files: each rule broken once, in literal bytes. The only outcome is an
// Error that says what is wrong with which file.
#include "store/header.hpp"

#include <algorithm>
#include <cstring>

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

// A file of the given bytes whose memory is watched by the tests; no disk involved.
class Bytes final : public File {
 public:
  explicit Bytes(std::string bytes, std::uint64_t claimed = 0)
      : bytes_(std::move(bytes)), size_(claimed == 0 ? bytes_.size() : claimed) {}
  [[nodiscard]] const std::string& path() const noexcept override { return path_; }
  [[nodiscard]] std::uint64_t size() override { return size_; }
  [[nodiscard]] std::size_t read(std::uint64_t offset, std::span<std::byte> data) override {
    largest = std::max(largest, data.size());
    if (offset >= bytes_.size()) return 0;
    const std::size_t count = std::min(data.size(), bytes_.size() - offset);
    std::memcpy(data.data(), bytes_.data() + offset, count);
    return count;
  }
  [[nodiscard]] std::size_t write(std::uint64_t, std::span<const std::byte>) override { return 0; }
  void reserve(std::uint64_t) override {}
  void sync() override {}

  std::size_t largest = 0;  // the largest read that was asked for

 private:
  std::string path_ = "bad.safetensors";
  std::string bytes_;
  std::uint64_t size_;
};

std::string length_bytes(std::uint64_t length) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i) & 0xff);
  return bytes;
}

std::string packed(const std::string& json, std::size_t data = 0) {
  return length_bytes(json.size()) + json + std::string(data, 'd');
}

// The message of the error that reading ends in; fails the test if there is none, or another kind.
std::string refusal(const std::string& bytes) {
  Bytes file(bytes);
  try {
    (void)read_header(file);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::format) << error.what();
    EXPECT_EQ(error.message().find("bad.safetensors"), 0U) << error.what();
    return error.message();
  }
  ADD_FAILURE() << "accepted: " << bytes.substr(0, 200);
  return "";
}

#define EXPECT_REFUSAL(bytes, words) EXPECT_PRED2(contains, refusal(bytes), words)

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// One tensor with the given fields after 4 bytes of data.
std::string tensor(const std::string& fields, std::size_t data = 4) {
  return packed("{\"t\":{" + fields + "}}", data);
}

constexpr const char* kGood = R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";

TEST(HostileHeader, TheFileTheOthersAreMadeFromIsGood) {
  Bytes file(packed(kGood, 4));
  EXPECT_EQ(read_header(file).entries.size(), 1U);
}

TEST(HostileHeader, EveryTruncationIsRefused) {
  const std::string good = packed(
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
      R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]}}   )",
      14);
  Bytes whole(good);
  EXPECT_EQ(read_header(whole).entries.size(), 2U);
  for (std::size_t size = 0; size < good.size(); ++size) (void)refusal(good.substr(0, size));
}

TEST(HostileHeader, EveryTruncationOfTheJsonAloneIsRefused) {
  const std::string json = kGood;
  for (std::size_t size = 0; size < json.size(); ++size)
    (void)refusal(packed(json.substr(0, size), 4));
}

TEST(HostileHeader, EveryByteChangedToEveryOtherNeverDoesMoreThanFail) {
  const std::string good = packed(kGood, 4);
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      std::string bytes = good;
      bytes[at] = static_cast<char>(value);
      Bytes file(bytes);
      try {
        const Header header = read_header(file);
        ASSERT_EQ(header.entries.size(), 1U);  // another name, or another type of the same width
        EXPECT_EQ(header.entries[0].info.bytes(), 4U);
        EXPECT_EQ(header.entries[0].offset, header.data_start);
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Code::format);
      }
    }
  }
}

TEST(HostileHeader, AnEmptyOrTinyFileIsRefused) {
  EXPECT_REFUSAL("", "the file has 0 bytes, but a safetensors file begins with 8");
  EXPECT_REFUSAL("{}", "the file has 2 bytes, but a safetensors file begins with 8");
  EXPECT_REFUSAL(length_bytes(0), "does not begin with '{'");
}

TEST(HostileHeader, AHugeLengthIsRefusedBeforeAnythingIsAllocated) {
  for (std::uint64_t length : {std::uint64_t{100'000'001}, std::uint64_t{1} << 40, UINT64_MAX}) {
    Bytes file(length_bytes(length) + "{}", UINT64_MAX);
    EXPECT_THROW((void)read_header(file), Error);
    EXPECT_LE(file.largest, 8U) << length;
  }
  Bytes file(length_bytes(100'000'000) + "{}");
  EXPECT_THROW((void)read_header(file), Error);
  EXPECT_LE(file.largest, 8U);
  EXPECT_REFUSAL(length_bytes(100'000'001) + "{}", "announces a header of 100000001 bytes");
  EXPECT_REFUSAL(length_bytes(3) + "{}", "truncated");
}

TEST(HostileHeader, AGitLfsPointerIsCalledByItsName) {
  EXPECT_REFUSAL("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
                 "git lfs pull");
}

TEST(HostileHeader, BlanksInFrontAreTakenAsWritersPadWithThem) {
  for (const std::string blanks : {" ", "\n\t\r      "}) {
    Bytes padded(packed(blanks + kGood, 4)), file(packed(kGood, 4));
    const Header header = read_header(padded), plain = read_header(file);
    ASSERT_EQ(header.entries.size(), plain.entries.size());
    EXPECT_EQ(header.data_start, plain.data_start + blanks.size());
    EXPECT_EQ(header.entries[0].offset, plain.entries[0].offset + blanks.size());
  }
  EXPECT_REFUSAL(packed("      ", 4), "does not begin with '{'");
}

TEST(HostileHeader, TheFirstCharacterMustOpenTheObject) {
  EXPECT_REFUSAL(packed(std::string("\xef\xbb\xbf") + kGood, 4), "does not begin with '{'");
  EXPECT_REFUSAL(packed("[]"), "does not begin with '{'");
}

TEST(HostileHeader, OnlyWhiteSpaceMayFollowTheObject) {
  EXPECT_REFUSAL(packed(std::string(kGood) + "x", 4), "not valid JSON");
  EXPECT_REFUSAL(packed(std::string(kGood) + "{}", 4), "not valid JSON");
  EXPECT_REFUSAL(packed(std::string(kGood) + std::string(1, '\0'), 4),
                 "not valid JSON at its byte 55");
  EXPECT_REFUSAL(packed(std::string(kGood) + std::string("\0{\"u\"", 5), 4),
                 "not valid JSON at its byte 55");
}

TEST(HostileHeader, CommentsTrailingCommasAndBareWordsAreNotJson) {
  EXPECT_REFUSAL(packed(R"({/**/})"), "not valid JSON");
  EXPECT_REFUSAL(packed(R"({"t":{"dtype":"F32","shape":[1,],"data_offsets":[0,4]}})", 4),
                 "not valid");
  EXPECT_REFUSAL(packed(R"({"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}})", 4),
                 "not valid");
  EXPECT_REFUSAL(packed(R"({"t":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}})", 4),
                 "not valid");
}

TEST(HostileHeader, TensorsMustNotOverlap) {
  EXPECT_REFUSAL(packed(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                        R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                        4),
                 "'a' and 'b' overlap");
  EXPECT_REFUSAL(packed(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                        R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                        4),
                 "overlap");
  EXPECT_REFUSAL(packed(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                        R"("b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
                        4),
                 "overlap");
}

TEST(HostileHeader, NoByteMayBelongToNoTensor) {
  EXPECT_REFUSAL(packed(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})", 4),
                 "a gap before tensor 'a': data bytes 0 to 1");
  EXPECT_REFUSAL(packed(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                        4),
                 "a gap before tensor 'b': data bytes 1 to 2");
  EXPECT_REFUSAL(packed(kGood, 5), "1 bytes follow the last tensor");
  EXPECT_REFUSAL(packed("{}", 7), "7 bytes follow the last tensor");
}

TEST(HostileHeader, DataMustReachAsFarAsTheOffsets) {
  EXPECT_REFUSAL(packed(kGood, 3),
                 "the tensors need 4 bytes of data, but the file has 3; it is truncated");
}

TEST(HostileHeader, OffsetsMustFitShapeAndType) {
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"),
                 "tensor 't': F32 of shape [2] needs 8 bytes, but its data_offsets are [0, 4]");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[],"data_offsets":[0,0])", 0), "needs 4 bytes");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), "[4, 0]");
  EXPECT_REFUSAL(tensor(R"("dtype":"F4","shape":[1],"data_offsets":[0,0])", 0),
                 "not have a whole number");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,0])"),
                 "data_offsets are [18446744073709551612, 0]");
}

TEST(HostileHeader, ShapesWhoseProductOverflowsAreRefused) {
  EXPECT_REFUSAL(tensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0),
                 "not have a whole number of bytes");
  EXPECT_REFUSAL(tensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0])", 0),
                 "not have a whole number of bytes");
  EXPECT_REFUSAL(tensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
                 "not have a whole number of bytes");
  EXPECT_REFUSAL(
      tensor(R"("dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0])", 0),
      "not have a whole number of bytes");
}

TEST(HostileHeader, OnlyUnsignedWholeNumbersAreNumbers) {
  for (const char* number : {"-1", "-0", "1.0", "1e0", "1E0", "1e3", "0.5", "18446744073709551616",
                             "1e400", "true", "null", "\"1\"", "[1]", "{}", "\"\""}) {
    const std::string text = number;
    EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[)" + text + R"(],"data_offsets":[0,4])"), "t");
    EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,)" + text + "]"), "t");
  }
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"),
                 "tensor 't': shape must be a list of at most 8 whole numbers");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1.0],"data_offsets":[0,4])"), "found '1.0'");
}

TEST(HostileHeader, OffsetsAreExactlyTwo) {
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[4])"), "data_offsets must be");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[])"), "data_offsets must be");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4,4])"),
                 "data_offsets must be");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":4)"), "data_offsets must be");
}

TEST(HostileHeader, MoreThanEightAxesAreRefused) {
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4])"),
                 "at most 8");
}

TEST(HostileHeader, UnknownTypesAndFieldsAreNamed) {
  EXPECT_REFUSAL(tensor(R"("dtype":"F128","shape":[1],"data_offsets":[0,4])"),
                 "tensor 't': unknown element type 'F128'");
  EXPECT_REFUSAL(tensor(R"("dtype":"f32","shape":[1],"data_offsets":[0,4])"),
                 "unknown element type");
  EXPECT_REFUSAL(tensor(R"("dtype":4,"shape":[1],"data_offsets":[0,4])"), "dtype must be a text");
  EXPECT_REFUSAL(tensor(R"("dtype":["F32"],"shape":[1],"data_offsets":[0,4])"),
                 "dtype must be a text");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1])"),
                 "unknown field 'strides'");
}

TEST(HostileHeader, EveryFieldIsGivenOnce) {
  EXPECT_REFUSAL(tensor(R"("shape":[1],"data_offsets":[0,4])"), "dtype is missing");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","data_offsets":[0,4])"), "shape is missing");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[1])"), "data_offsets is missing");
  EXPECT_REFUSAL(tensor(""), "dtype is missing");
  EXPECT_REFUSAL(tensor(R"("dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4])"), "twice");
  EXPECT_REFUSAL(tensor(R"("dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4])"), "twice");
}

TEST(HostileHeader, ATensorIsDescribedOnce) {
  EXPECT_REFUSAL(packed(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                        R"("t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                        4),
                 "tensor 't' is described twice");
  EXPECT_REFUSAL(packed(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                        R"("\u0074":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                        8),
                 "tensor 't' is described twice");
}

TEST(HostileHeader, ATensorIsAnObject) {
  for (const char* value : {"1", "null", "true", "\"x\"", "[]", "-1", "0.5"}) {
    EXPECT_REFUSAL(packed(std::string("{\"t\":") + value + "}"), "'t' must be an object");
  }
}

TEST(HostileHeader, MetadataMapsTextsToTextsOnce) {
  for (const char* value : {"1", "null", "true", "[]", "{}", "1.5", "-1"}) {
    EXPECT_REFUSAL(packed(std::string(R"({"__metadata__":{"k":)") + value + "}}"),
                   "'k' must be a text");
  }
  EXPECT_REFUSAL(packed(R"({"__metadata__":null})"), "must be an object");
  EXPECT_REFUSAL(packed(R"({"__metadata__":[]})"), "must be an object");
  EXPECT_REFUSAL(packed(R"({"__metadata__":{"k":"a","k":"b"}})"), "'k' is given twice");
  EXPECT_REFUSAL(packed(R"({"__metadata__":{},"__metadata__":{}})"), "given twice");
}

TEST(HostileHeader, DeepNestingIsRefusedAtItsFirstLevel) {
  const std::string deep(1'000'000, '[');
  EXPECT_REFUSAL(packed("{\"t\":" + deep), "must be an object");
  EXPECT_REFUSAL(packed("{\"t\":{\"shape\":[" + deep), "shape must be");
  std::string objects = "{\"t\":";
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  EXPECT_REFUSAL(packed(objects), "unknown field");
}

TEST(HostileHeader, NamesAreUtf8WithoutControlCharacters) {
  const std::string rest = R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  for (const char* name : {"\xff", "\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf5\x80\x80\x80"}) {
    EXPECT_REFUSAL(packed(std::string("{\"") + name + rest, 4), "not valid JSON");
  }
  for (const char* name : {"a\\u0000b", "\\u001b[2J", "a\\nb", "\\u007f"}) {
    EXPECT_REFUSAL(packed(std::string("{\"") + name + rest, 4), "control characters");
  }
  EXPECT_REFUSAL(packed(std::string("{\"") + "a\nb" + rest, 4), "not valid JSON");
  EXPECT_REFUSAL(packed(std::string("{\"\\ud800") + rest, 4), "not valid JSON");
}

TEST(HostileHeader, ManyTensorsOverTheSameBytesAreRefused) {
  std::string json = "{";
  for (int i = 0; i < 100'000; ++i) {
    json.append("\"").append(std::to_string(i));
    json.append(R"(":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)");
  }
  json.back() = '}';
  EXPECT_REFUSAL(packed(json, 4), "overlap");
}

TEST(HostileHeader, AFileThatEndsWhileItIsReadIsAnError) {
  Bytes file(packed(kGood), 1'000);  // claims more than it gives
  EXPECT_THROW((void)read_header(file), Error);
  Bytes cut(length_bytes(500) + "{", 1'000);
  try {
    (void)read_header(cut);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Code::io);
  }
}

}  // namespace
}  // namespace ingot
