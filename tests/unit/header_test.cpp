#include "store/header.hpp"

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

std::uint64_t length_of(const std::string& header) {
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(header[i]);
  return length;
}

Header read_bytes(const std::string& bytes) {
  const test::Folder folder;
  test::write_file(folder / "t.safetensors", bytes);
  return read_header(*system_disk()->open(folder / "t.safetensors"));
}

std::string with_length(const std::string& json, std::size_t data) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  return bytes + json + std::string(data, 'd');
}

TEST(Header, PrintedHeaderReadsBackAsTheSameTensorsWithoutGaps) {
  const std::vector<TensorInfo> tensors{
      {"a.weight", Dtype::bf16, {3, 5}}, {"b \"quoted\" \\ \xc3\xa9", Dtype::f32, {}},
      {"c.empty", Dtype::f16, {0, 7}},   {"d", Dtype::f8_e4m3, {1, 2, 3, 1, 1, 1, 1, 2}},
      {"e", Dtype::f4, {2, 3}},
  };
  const std::string printed = print_header(tensors, {{"format", "pt"}, {"a", "\n"}});
  const Header header = read_bytes(printed + std::string(30 + 4 + 12 + 3, 'x'));
  EXPECT_EQ(header.data_start, printed.size());
  EXPECT_EQ(header.metadata, (std::map<std::string, std::string>{{"format", "pt"}, {"a", "\n"}}));
  ASSERT_EQ(header.entries.size(), tensors.size());
  std::uint64_t offset = header.data_start;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(header.entries[i].info.name, tensors[i].name);
    EXPECT_EQ(header.entries[i].info.dtype, tensors[i].dtype);
    EXPECT_EQ(header.entries[i].info.shape, tensors[i].shape);
    EXPECT_EQ(header.entries[i].offset, offset);
    EXPECT_TRUE(header.entries[i].strides.empty());
    offset += tensors[i].bytes();
  }
}

TEST(Header, PrintedBytesAreFixed) {
  const std::string printed =
      print_header(std::vector<TensorInfo>{{"w", Dtype::bf16, {2, 3}}, {"x", Dtype::u8, {1}}},
                   {{"format", "pt"}});
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
      R"("x":{"dtype":"U8","shape":[1],"data_offsets":[12,13]}})";
  std::string expected("\xf8\x0f\0\0\0\0\0\0", 8);
  expected += json;
  expected.resize(4096, ' ');
  EXPECT_EQ(printed, expected);
}

TEST(Header, DataStartsOnAPageForEveryLengthOfJson) {
  for (std::size_t size = 3900; size < 4100; ++size) {
    const std::string printed =
        print_header(std::vector<TensorInfo>{{std::string(size, 'n'), Dtype::u8, {0}}}, {});
    EXPECT_EQ(printed.size() % 4096, 0U) << size;
    EXPECT_EQ(length_of(printed) + 8, printed.size()) << size;
    EXPECT_LT(printed.size() - printed.find_last_not_of(' '), 4097U) << size;
  }
}

TEST(Header, NoTensorsAndNoMetadataIsAValidFile) {
  const std::string printed = print_header({}, {});
  EXPECT_EQ(printed.substr(8, 3), "{} ");
  const Header header = read_bytes(printed);
  EXPECT_TRUE(header.entries.empty());
  EXPECT_TRUE(header.metadata.empty());
}

TEST(Header, EntriesComeSortedByNameWhateverTheirOrderInTheFile) {
  const Header header =
      read_bytes(with_length(R"({"z":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                             R"("b":{"shape":[],"data_offsets":[3,4],"dtype":"BOOL"},)"
                             R"("a":{"data_offsets":[2,3],"dtype":"I8","shape":[1]}})"
                             "\n\t \r",
                             4));
  ASSERT_EQ(header.entries.size(), 3U);
  EXPECT_EQ(header.entries[0].info.name, "a");
  EXPECT_EQ(header.entries[0].offset, header.data_start + 2);
  EXPECT_EQ(header.entries[1].info.name, "b");
  EXPECT_EQ(header.entries[1].info.dtype, Dtype::boolean);
  EXPECT_EQ(header.entries[2].info.name, "z");
  EXPECT_EQ(header.entries[2].offset, header.data_start);
}

TEST(Header, TensorsWithoutElementsMayStandAnywhereBetweenOthers) {
  const Header header =
      read_bytes(with_length(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"
                             R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("c":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]}})",
                             4));
  EXPECT_EQ(header.entries.size(), 3U);
}

TEST(Header, EveryElementTypeIsReadWithItsWidth) {
  for (int i = 0; i < kDtypes; ++i) {
    const TensorInfo tensor{"t", static_cast<Dtype>(i), {8}};
    const Header header =
        read_bytes(print_header(std::vector{tensor}, {}) + std::string(bits(tensor.dtype), 'x'));
    EXPECT_EQ(header.entries.at(0).info.dtype, tensor.dtype);
  }
}

TEST(Header, TheExampleModelReads) {
  const auto file = system_disk()->open(test::example("models/base/model.safetensors"));
  const Header header = read_header(*file, 3);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  ASSERT_FALSE(header.entries.empty());
  EXPECT_EQ(header.entries.front().info.name, "lm_head.weight");
  EXPECT_EQ(header.entries.front().info.shape, (Shape{509, 64}));
  EXPECT_EQ(header.entries.front().file, 3U);
  EXPECT_EQ(header.entries.front().offset, header.data_start);
}

TEST(Header, WhatCannotBeWrittenIsRefused) {
  EXPECT_THROW((void)print_header(std::vector<TensorInfo>{{"\xff\xfe", Dtype::u8, {1}}}, {}),
               Error);
  EXPECT_THROW((void)print_header(std::vector<TensorInfo>{{"__metadata__", Dtype::u8, {1}}}, {}),
               Error);
  EXPECT_THROW((void)print_header(std::vector<TensorInfo>{{"odd", Dtype::f4, {3}}}, {}), Error);
}

TEST(Header, NamesInMessagesAreShortAndPrintable) {
  EXPECT_EQ(cite("a.b"), "'a.b'");
  EXPECT_EQ(cite("a\x1b[2J\n"), "'a?[2J?'");
  EXPECT_EQ(cite(std::string(1'000'000, 'x')).size(), 205U);
  const std::string most(199, 'x');
  EXPECT_EQ(cite(most + "\xc3\xa9zzz"), "'" + most + "…'");
}

}  // namespace
}  // namespace ingot
