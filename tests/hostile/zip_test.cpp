// The zip reader takes the archives that torch.save and zip -0 write, and no other.
#include "store/zip.hpp"

#include <gtest/gtest.h>

#include "fuzz/memory.hpp"
#include "hostile/archive.hpp"
#include "ingot/error.hpp"

namespace ingot {
namespace {

using test::Archive;
using test::little;
using test::MemoryFile;
using test::Style;

std::vector<Member> read(std::string_view bytes) {
  MemoryFile file("model.bin", bytes);
  return read_zip(file);
}

// One sentence that names the file and holds `phrase`.
testing::AssertionResult refuses(std::string_view bytes, const std::string& phrase) {
  try {
    static_cast<void>(read(bytes));
  } catch (const Error& e) {
    const std::string& text = e.message();
    if (e.code() == Code::format && text.starts_with("model.bin: ") &&
        text.find(phrase) != std::string::npos && text.find('\n') == std::string::npos) {
      return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << "refused otherwise: " << text;
  }
  return testing::AssertionFailure() << "accepted";
}

const test::Members kMembers{{"m/data.pkl", "pickle"}, {"m/data/0", "01234567"}, {"m/data/1", ""}};

class Zip : public testing::TestWithParam<Style> {
 protected:
  const Archive archive_ = test::zip(kMembers, GetParam());
};

INSTANTIATE_TEST_SUITE_P(Styles, Zip, testing::Values(Style::torch, Style::plain),
                         [](const auto& style) {
                           return style.param == Style::torch ? "torch" : "plain";
                         });

TEST_P(Zip, MembersAreSortedAndPointAtTheirBytes) {
  const std::vector<Member> members = read(archive_.bytes);
  ASSERT_EQ(members.size(), kMembers.size());
  for (std::size_t i = 0; i < members.size(); ++i) {
    EXPECT_EQ(members[i].name, kMembers[i].first);
    EXPECT_EQ(members[i].offset, archive_.data[i]);
    EXPECT_EQ(archive_.bytes.substr(members[i].offset, members[i].size), kMembers[i].second);
  }
  EXPECT_EQ(find_member(members, "m/data/0"), &members[1]);
  EXPECT_EQ(find_member(members, "m/data/2"), nullptr);
}

TEST_P(Zip, EveryTruncationIsAnError) {
  for (std::size_t size = 0; size < archive_.bytes.size(); ++size) {
    EXPECT_TRUE(refuses(archive_.bytes.substr(0, size), "the zip archive")) << size;
  }
}

TEST_P(Zip, EveryChangedByteGivesMembersInsideTheFileOrAnError) {
  for (std::size_t at = 0; at < archive_.bytes.size(); ++at) {
    for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
      std::string bytes = archive_.bytes;
      bytes[at] = static_cast<char>(static_cast<unsigned char>(bytes[at]) ^ flip);
      try {
        for (const Member& member : read(bytes)) {
          EXPECT_LE(member.offset, bytes.size());
          EXPECT_LE(member.size, bytes.size() - member.offset);
        }
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), Code::format) << e.what();
      }
    }
  }
}

TEST_P(Zip, BytesBeforeBetweenAndAfterTheMembersAreErrors) {
  EXPECT_TRUE(refuses("x" + archive_.bytes, "the zip archive"));
  EXPECT_TRUE(refuses(archive_.bytes + "x", "comment or other bytes follow"));
  // An archive whose offsets are right, behind two bytes of something else.
  std::string shifted = "#!" + archive_.bytes;
  const auto move = [&](std::size_t at) {
    const auto low = static_cast<unsigned char>(shifted[at + 2]);
    shifted[at + 2] = static_cast<char>(low + 2);
  };
  for (const std::size_t entry : archive_.central) move(entry + 42);
  move(archive_.end + 16);
  if (archive_.end64 != 0) {
    move(archive_.end64 + 48);
    move(archive_.end64 + 56 + 8);
  }
  EXPECT_TRUE(refuses(shifted, "has 2 bytes at 0, before member 'm/data.pkl'"));
}

TEST_P(Zip, CommentsAreRefusedEvenThoseThatHoldAnEndRecord) {
  const std::string inner = test::zip({{"m/other", "x"}}, GetParam()).bytes;
  std::string bytes = archive_.bytes + inner;
  bytes.replace(archive_.end + 20, 2, little(inner.size(), 2));
  EXPECT_TRUE(refuses(bytes, "the zip archive"));
  EXPECT_TRUE(refuses(archive_.with(archive_.end + 20, 4, 2) + "note", "comment"));
  EXPECT_TRUE(refuses(archive_.with(archive_.end + 20, 4, 2), "comment that is not there"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[0] + 32, 1, 2), "carries a comment"));
}

TEST_P(Zip, CompressedMembersAreRefusedByName) {
  EXPECT_TRUE(refuses(archive_.with(archive_.central[0] + 10, 8, 2),
                      "zip member 'm/data.pkl' is compressed (method 8)"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[1] + 8, 8, 2),
                      "zip member 'm/data/0' has other flags or another method"));
}

TEST_P(Zip, EncryptedMembersAreRefusedByName) {
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1] + 8, 1, 2), "'m/data/0' is encrypted"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1] + 8, 0x40, 2), "is encrypted"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1] + 8, 0x2000, 2), "is encrypted"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[1] + 6, 1, 2), "other flags"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1] + 8, 0x10, 2), "unknown flags 0x0010"));
}

TEST_P(Zip, OverlappingMembersAreRefused) {
  // The second entry points at the first member's header, and at a header inside its data.
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1] + 42, archive_.local[0], 4), "overlaps"));
  const Archive nested =
      test::zip({{"m/a", test::zip({{"m/b", "x"}}, GetParam()).bytes}, {"m/b", "x"}}, GetParam());
  EXPECT_TRUE(refuses(nested.with(nested.central[1] + 42, nested.data[0], 4), "overlaps"));
}

TEST_P(Zip, MembersOutsideTheFileAreRefused) {
  EXPECT_TRUE(
      refuses(archive_.with(archive_.central[2] + 42, 0x7fffffff, 4), "belong to no member"));
  std::string bytes = archive_.with(archive_.central[2] + 20, 0x7fffffff, 4);
  bytes.replace(archive_.central[2] + 24, 4, little(0x7fffffff, 4));
  EXPECT_TRUE(refuses(bytes, "'m/data/1' claims 2147483647 bytes"));
  // A local header that reaches into the directory.
  EXPECT_TRUE(refuses(archive_.with(archive_.local[2] + 28, 0xffff, 2), "claims 0 bytes"));
}

TEST_P(Zip, LocalHeadersMustAgreeWithTheDirectory) {
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0], 0, 4), "no local header"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 30, 'n', 1), "another name"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 26, 5, 2), "another name"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 14, 7, 4), "another size or checksum"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 18, 7, 4), "another size or checksum"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 22, 7, 4), "another size or checksum"));
  EXPECT_TRUE(refuses(archive_.with(archive_.local[0] + 22, 0xffffffff, 4), "zip64"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[0] + 20, 5, 4), "two sizes, 5 and 6"));
}

TEST_P(Zip, TheDirectoryMustBeWholeAndNoMore) {
  EXPECT_TRUE(refuses(archive_.with(archive_.central[1], 0, 4), "without its signature"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[2] + 28, 0xffff, 2), "inside an entry"));
  EXPECT_TRUE(refuses(archive_.with(archive_.central[2] + 34, 1, 2), "split archive"));
  EXPECT_TRUE(refuses(archive_.with(archive_.end + 4, 1, 2), "split over several files"));
  EXPECT_TRUE(refuses(archive_.with(archive_.end + 12, 1, 4), "the zip archive"));
  EXPECT_TRUE(refuses(archive_.with(archive_.end + 16, 1, 4), "the zip archive"));
}

TEST_P(Zip, NamesThatAreNoPlainRelativePathAreRefused) {
  for (const std::string name : {"../m/data", "m/../data", "m/..", "/etc/passwd", "m//data",
                                 "m/./data", "m\\data", "C:/data", "m/", "", "m/a\nb", "m/\x7f"}) {
    EXPECT_TRUE(refuses(test::zip({{name, "x"}}, GetParam()).bytes, "not a plain relative path"))
        << name;
  }
  EXPECT_TRUE(refuses(test::zip({{std::string("m/a\0b", 5), "x"}}, GetParam()).bytes, "'m/a?b'"));
  EXPECT_EQ(read(test::zip({{"m\xc3\xb6/data..pkl", "x"}}, GetParam()).bytes).size(), 1U);
}

TEST_P(Zip, ANameThatOccursTwiceIsRefused) {
  const Archive twice = test::zip({{"m/data.pkl", "a"}, {"m/data.pkl", "b"}}, GetParam());
  EXPECT_TRUE(refuses(twice.bytes, "zip member 'm/data.pkl' occurs twice"));
}

TEST_P(Zip, AnArchiveOfNothingHasNoMembers) {
  EXPECT_TRUE(read(test::zip({}, GetParam()).bytes).empty());
}

TEST(ZipDescriptor, MustAgreeWithTheDirectory) {
  const Archive archive = test::zip(kMembers);
  for (const std::size_t member : {0U, 2U}) {
    const std::size_t at = archive.data[member] + kMembers[member].second.size();
    for (const std::size_t field : {0U, 4U, 8U, 12U}) {
      EXPECT_TRUE(refuses(archive.with(at + field, 99, 4), "data descriptor")) << field;
    }
  }
}

TEST(ZipDescriptor, MayHaveWideSizes) {
  // What torch writes for a member that begins or grows beyond 4 GiB.
  Archive archive = test::zip({{"m/a", "abc"}});
  archive.bytes.insert(archive.directory, std::string(8, '\0'));
  archive.bytes.replace(archive.data[0] + 3 + 8, 16, little(3, 8) + little(3, 8));
  archive.end64 += 8;
  archive.bytes.replace(archive.end64 + 48, 8, little(archive.directory + 8, 8));
  archive.bytes.replace(archive.end64 + 56 + 8, 8, little(archive.end64, 8));
  archive.bytes.replace(archive.end + 8 + 16, 4, little(archive.directory + 8, 4));
  EXPECT_EQ(read(archive.bytes).at(0).size, 3U);
}

TEST(Zip64, EndRecordMustAgreeWithTheOtherAndWithTheFile) {
  const Archive archive = test::zip(kMembers);
  const std::size_t end = archive.end64;
  EXPECT_TRUE(refuses(archive.with(end, 0, 4), "another form"));
  EXPECT_TRUE(refuses(archive.with(end + 4, 45, 8), "another form"));
  EXPECT_TRUE(refuses(archive.with(end + 16, 1, 4), "split"));
  EXPECT_TRUE(refuses(archive.with(end + 24, 9, 8), "split"));
  EXPECT_TRUE(refuses(archive.with(end + 40, 1, 8), "differ"));
  EXPECT_TRUE(refuses(archive.with(end + 48, 1, 8), "differ"));
  EXPECT_TRUE(refuses(archive.with(end + 56 + 8, 0, 8), "does not point at the record before it"));
  EXPECT_TRUE(refuses(archive.with(end + 56 + 16, 2, 4), "locator"));
  EXPECT_TRUE(refuses(archive.with(end + 56, 0, 4), "the zip archive"));

  // Counts and sizes that only the zip64 record states, and states wrongly.
  const auto wide = [&](std::size_t field, std::uint64_t value) {
    Archive out = archive;
    out.bytes = out.with(out.end + 8, 0xffffffff, 4);
    out.bytes = out.with(out.end + 12, ~0ULL, 8);
    out.bytes = out.with(end + field, value, 8);
    if (field == 32) out.bytes = out.with(end + 24, value, 8);
    return out.bytes;
  };
  EXPECT_EQ(read(wide(32, 3)).size(), 3U);
  EXPECT_TRUE(refuses(wide(32, 2), "more than the members it counts"));
  EXPECT_TRUE(refuses(wide(32, 4), "members in a directory"));
  EXPECT_TRUE(refuses(wide(32, ~0ULL), "members in a directory"));
  EXPECT_TRUE(refuses(wide(40, ~0ULL), "should end at"));
  EXPECT_TRUE(refuses(wide(48, ~0ULL), "should end at"));
}

TEST(Zip64, EndRecordThatIsAnnouncedMustBeThere) {
  const Archive archive = test::zip(kMembers, Style::plain);
  EXPECT_TRUE(refuses(archive.with(archive.end + 8, 0xffffffff, 4), "and has none"));
  EXPECT_TRUE(refuses(archive.with(archive.end + 12, 0xffffffff, 4), "and has none"));
  EXPECT_TRUE(refuses(archive.with(archive.end + 16, 0xffffffff, 4), "and has none"));
}

// A plain archive of one member "m/a" = "abc" with extra fields in its local header and its entry,
// and with sizes that point there.
std::string extended(const std::string& local, const std::string& central, bool see64 = true) {
  const std::string sizes = see64 ? std::string(8, '\xff') : little(3, 4) + little(3, 4);
  const std::string head = little(0, 2) + little(0, 8) + little(7, 4);
  std::string out = "PK\3\4" + head + (local.empty() ? little(3, 4) + little(3, 4) : sizes) +
                    little(3, 2) + little(local.size(), 2) + "m/a" + local + "abc";
  const std::size_t directory = out.size();
  out += "PK\1\2" + little(0, 2) + head + sizes + little(3, 2) + little(central.size(), 2) +
         little(0, 10) + little(0, 4) + "m/a" + central;
  const std::size_t size = out.size() - directory;
  return out + "PK\5\6" + little(0, 4) + little(1, 2) + little(1, 2) + little(size, 4) +
         little(directory, 4) + little(0, 2);
}

TEST(Zip64, FieldsOfMembersMustBeThereOnceAndFit) {
  const std::string right = little(1, 2) + little(16, 2) + little(3, 8) + little(3, 8);
  EXPECT_EQ(read(extended(right, right)).at(0).size, 3U);
  EXPECT_EQ(read(extended("", right)).at(0).size, 3U);
  EXPECT_TRUE(refuses(extended("", ""), "announces a zip64 field and has none"));
  EXPECT_TRUE(refuses(extended("", right + right), "does not fit"));
  EXPECT_TRUE(refuses(extended("", right, false), "does not fit"));
  EXPECT_TRUE(refuses(extended("", little(1, 2) + little(8, 2) + little(3, 8)), "does not fit"));
  EXPECT_TRUE(refuses(extended("", little(1, 2) + little(99, 2) + little(3, 8)), "end too early"));
  EXPECT_TRUE(refuses(extended("", right + "x"), "end too early"));
  const std::string lie = little(1, 2) + little(16, 2) + little(~0ULL, 8) + little(~0ULL, 8);
  EXPECT_TRUE(refuses(extended("", lie), "claims 18446744073709551615 bytes"));
  EXPECT_TRUE(refuses(extended(lie, right), "another size or checksum"));
}

TEST(ZipExtra, ASecondNameIsRefused) {
  const std::string path = little(0x7075, 2) + little(9, 2) + "\1" + little(0, 4) + "evil";
  EXPECT_TRUE(refuses(extended("", path, false), "second name"));
}

}  // namespace
}  // namespace ingot
