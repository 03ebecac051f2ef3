#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "ingot/store.hpp"
#include "support.hpp"

namespace ingot {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::string read_at(File& file, std::uint64_t offset, std::size_t size) {
  std::string text(size, '?');
  read_exact(file, offset, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

// The code and text of the error that the call ends in.
template <class Call>
Error error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return {Code::internal, ""};
}

bool has(const Error& error, const std::string& text) {
  return error.message().find(text) != std::string::npos;
}

TEST(File, WhatIsWrittenIsReadBackAtAnyOffset) {
  const test::Folder folder;
  const auto disk = system_disk();
  {
    const auto file = disk->create(folder / "a");
    file->reserve(10);
    EXPECT_EQ(file->size(), 10U);
    write_exact(*file, 6, bytes_of("wxyz"));
    write_exact(*file, 0, bytes_of("abcdef"));
    file->sync();
    EXPECT_EQ(read_at(*file, 2, 6), "cdefwx");
  }
  const auto file = disk->open(folder / "a");
  EXPECT_EQ(file->size(), 10U);
  EXPECT_EQ(file->path(), folder / "a");
  EXPECT_EQ(read_at(*file, 0, 10), "abcdefwxyz");
  std::byte none{};
  EXPECT_EQ(file->read(10, {&none, 1}), 0U);
}

TEST(File, ReadingPastTheEndNamesFilePlaceAndWhatIsMissing) {
  const test::Folder folder;
  test::write_file(folder / "a", "12345");
  const auto file = system_disk()->open(folder / "a");
  const Error error = error_of([&] { (void)read_at(*file, 3, 9); });
  EXPECT_EQ(error.code(), Code::io);
  EXPECT_TRUE(has(error, folder / "a")) << error.what();
  EXPECT_TRUE(has(error, "no bytes at offset 5, where 7 more are needed")) << error.what();
}

TEST(File, AFileOpenedToReadKeepsItsSizeWhenItShrinks) {
  const test::Folder folder;
  test::write_file(folder / "a", std::string(100, 'x'));
  const auto file = system_disk()->open(folder / "a");
  ASSERT_EQ(::truncate((folder / "a").c_str(), 10), 0);
  EXPECT_EQ(file->size(), 100U);
  EXPECT_EQ(error_of([&] { (void)read_at(*file, 0, 100); }).code(), Code::io);
}

TEST(File, OnlyRegularFilesAreOpened) {
  const test::Folder folder;
  const auto disk = system_disk();
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  const Error fifo = error_of([&] { (void)disk->open(folder / "fifo"); });  // must not wait
  EXPECT_EQ(fifo.code(), Code::format);
  EXPECT_TRUE(has(fifo, "not a regular file"));
  EXPECT_EQ(error_of([&] { (void)disk->open("/dev/zero"); }).code(), Code::format);
  EXPECT_TRUE(has(error_of([&] { (void)disk->open(folder.path()); }), "is a folder"));
}

TEST(File, AbsentFilesAreMissingAndNamed) {
  const test::Folder folder;
  const auto disk = system_disk();
  for (const std::string name : {"nope", "nope/deeper"}) {
    const Error error = error_of([&] { (void)disk->open(folder / name); });
    EXPECT_EQ(error.code(), Code::missing);
    EXPECT_TRUE(has(error, folder / name));
    EXPECT_TRUE(has(error, "No such file"));
  }
  EXPECT_EQ(error_of([&] { (void)disk->update(folder / "nope"); }).code(), Code::missing);
}

TEST(File, CreateTruncatesAndUpdateKeeps) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "a", "12345");
  {
    const auto file = disk->update(folder / "a");
    write_exact(*file, 1, bytes_of("xy"));
    EXPECT_EQ(read_at(*file, 0, 5), "1xy45");
  }
  EXPECT_EQ(disk->create(folder / "a")->size(), 0U);
}

TEST(File, NothingIsWrittenThroughALink) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "precious", "data");
  ASSERT_EQ(::symlink("precious", (folder / "link").c_str()), 0);
  EXPECT_THROW((void)disk->create(folder / "link"), Error);
  EXPECT_THROW((void)disk->update(folder / "link"), Error);
  EXPECT_EQ(test::read_file(folder / "precious"), "data");
}

TEST(File, ReserveSetsTheSizeAndOwnsTheBlocks) {
  const test::Folder folder;
  const auto file = system_disk()->create(folder / "a");
  file->reserve(1 << 20);
  struct stat info {};
  ASSERT_EQ(::stat((folder / "a").c_str(), &info), 0);
  EXPECT_EQ(info.st_size, 1 << 20);
  EXPECT_GE(info.st_blocks * 512, 1 << 20);
  file->reserve(4096 + 7);
  EXPECT_EQ(file->size(), 4096U + 7U);
  file->reserve(0);
  EXPECT_EQ(file->size(), 0U);
}

TEST(File, AReservationTheDiskCannotHoldSaysWhatIsNeededAndFree) {
  const test::Folder folder;
  const auto disk = system_disk();
  const auto file = disk->create(folder / "a");
  const std::uint64_t wanted = disk->free_bytes(folder.path()) * 2;
  const Error error = error_of([&] { file->reserve(wanted); });
  EXPECT_EQ(error.code(), Code::io);
  EXPECT_TRUE(has(error, std::to_string(wanted) + " more bytes are needed")) << error.what();
  EXPECT_TRUE(has(error, "are free")) << error.what();
  EXPECT_EQ(file->size(), 0U);
  EXPECT_EQ(error_of([&] { file->reserve(UINT64_MAX); }).code(), Code::io);
}

TEST(File, TheDirectDescriptorSeesTheSameFile) {
  const test::Folder folder;
  const auto disk = system_disk();
  const auto file = disk->create(folder / "a");
  file->reserve(8192);
  ASSERT_EQ(::rename((folder / "a").c_str(), (folder / "b").c_str()), 0);
  test::write_file(folder / "a", "another file under the old name");
  const int direct = file->direct();
  if (direct < 0) GTEST_SKIP() << "no direct I/O on this file system";
  EXPECT_EQ(file->direct(), direct);
  struct stat one {};
  struct stat two {};
  ASSERT_EQ(::fstat(direct, &one), 0);
  ASSERT_EQ(::fstat(file->descriptor(), &two), 0);
  EXPECT_EQ(one.st_ino, two.st_ino);
  EXPECT_TRUE(::fcntl(direct, F_GETFL) & O_DIRECT);
}

TEST(File, SeveralThreadsMayReadOneFile) {
  const test::Folder folder;
  std::string text(1 << 20, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 >> 7);
  test::write_file(folder / "a", text);
  const auto file = system_disk()->open(folder / "a");
  std::vector<std::thread> threads;
  std::array<bool, 4> same{};
  for (std::size_t t = 0; t < same.size(); ++t) {
    threads.emplace_back([&, t] {
      const std::size_t offset = t * 1000;
      (void)file->direct();
      same[t] = read_at(*file, offset, 500'000) == text.substr(offset, 500'000);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count(same.begin(), same.end(), true), 4);
}

TEST(Disk, KindTellsFilesFoldersAndDanglingLinks) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "file", "x");
  ASSERT_EQ(::symlink("file", (folder / "good").c_str()), 0);
  ASSERT_EQ(::symlink("nowhere", (folder / "bad").c_str()), 0);
  EXPECT_EQ(disk->kind(folder / "file"), Disk::Kind::file);
  EXPECT_EQ(disk->kind(folder / "good"), Disk::Kind::file);
  EXPECT_EQ(disk->kind(folder / "bad"), Disk::Kind::other);
  EXPECT_EQ(disk->kind(folder.path()), Disk::Kind::folder);
  EXPECT_EQ(disk->kind(folder / "none"), Disk::Kind::absent);
  EXPECT_EQ(disk->kind(folder / "file/below"), Disk::Kind::absent);
  EXPECT_EQ(disk->kind("/dev/null"), Disk::Kind::other);
}

TEST(Disk, ListIsSortedNamesAndResolveFollowsLinks) {
  const test::Folder folder;
  const auto disk = system_disk();
  for (const char* name : {"b", "a", "sub/c"}) test::write_file(folder / name, "x");
  ASSERT_EQ(::symlink("sub/c", (folder / "link").c_str()), 0);
  EXPECT_EQ(disk->list(folder.path()), (std::vector<std::string>{"a", "b", "link", "sub"}));
  EXPECT_EQ(disk->resolve(folder / "link"), disk->resolve(folder.path()) + "/sub/c");
  EXPECT_EQ(error_of([&] { (void)disk->list(folder / "none"); }).code(), Code::missing);
  EXPECT_EQ(error_of([&] { (void)disk->resolve(folder / "none"); }).code(), Code::missing);
}

TEST(Disk, ExchangeSwapsFoldersAndNeedsBoth) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "new/x", "new");
  test::write_file(folder / "old/x", "old");
  EXPECT_TRUE(disk->exchange(folder / "new", folder / "old"));
  EXPECT_EQ(test::read_file(folder / "old/x"), "new");
  EXPECT_EQ(test::read_file(folder / "new/x"), "old");
  EXPECT_THROW((void)disk->exchange(folder / "new", folder / "absent"), Error);
  EXPECT_EQ(test::read_file(folder / "new/x"), "old");
}

TEST(Disk, ARenameReplacesAnEmptyFolderAtMostAndANewNameNothing) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "new/x", "new");
  test::write_file(folder / "old/x", "old");
  test::write_file(folder / "file", "file");
  disk->make_folder(folder / "empty");
  EXPECT_FALSE(disk->rename_new(folder / "new", folder / "old"));
  EXPECT_FALSE(disk->rename_new(folder / "new", folder / "empty"));
  EXPECT_FALSE(disk->rename_new(folder / "new", folder / "file"));
  EXPECT_THROW((void)disk->rename(folder / "new", folder / "old"), Error);
  EXPECT_THROW((void)disk->rename(folder / "new", folder / "file"), Error);
  EXPECT_EQ(test::read_file(folder / "old/x"), "old");
  EXPECT_EQ(test::read_file(folder / "file"), "file");
  EXPECT_TRUE(disk->rename(folder / "new", folder / "empty"));
  EXPECT_TRUE(disk->rename_new(folder / "empty", folder / "fresh"));
  EXPECT_EQ(test::read_file(folder / "fresh/x"), "new");
}

TEST(Disk, IdentityTellsFilesAndTheirStatesApart) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "a", "x");
  test::write_file(folder / "b", "x");
  const auto first = disk->identity(folder / "a");
  ASSERT_TRUE(first);
  EXPECT_EQ(first, disk->identity(folder / "a"));
  EXPECT_NE(first, disk->identity(folder / "b"));
  test::write_file(folder / "a", "xy");
  EXPECT_NE(first, disk->identity(folder / "a"));
  EXPECT_EQ(disk->identity(folder / "c"), std::nullopt);
  ASSERT_EQ(::symlink("b", (folder / "link").c_str()), 0);
  EXPECT_EQ(disk->identity(folder / "link"), disk->identity(folder / "b"));
}

constexpr const char* kLock = "{\"ingot\":\"lock\",\"pid\":1}\n";

TEST(Lock, HasOneHolderAndIsGoneWithIt) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string path = folder / ".out.lock";
  std::string holder;
  auto lock = disk->lock(path, kLock, holder);
  ASSERT_NE(lock, nullptr);
  EXPECT_EQ(disk->lock(path, kLock, holder), nullptr);
  EXPECT_EQ(holder, kLock);
  lock.reset();
  EXPECT_EQ(disk->kind(path), Disk::Kind::absent);
}

TEST(Lock, IsTakenOverFromAProcessThatIsGone) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string path = folder / ".out.lock";
  std::string holder;
  for (const char* left : {kLock, ""}) {
    test::write_file(path, left);
    EXPECT_NE(disk->lock(path, kLock, holder), nullptr);
  }
}

TEST(Lock, LeavesOtherPeoplesFiles) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string path = folder / ".out.lock";
  std::string holder;
  test::write_file(path, "thesis");
  EXPECT_EQ(error_of([&] { (void)disk->lock(path, kLock, holder); }).code(), Code::usage);
  EXPECT_EQ(test::read_file(path), "thesis");
  test::write_file(folder / "real", "thesis");
  ASSERT_EQ(::symlink("real", (folder / ".b.lock").c_str()), 0);
  EXPECT_THROW((void)disk->lock(folder / ".b.lock", kLock, holder), Error);
  EXPECT_EQ(test::read_file(folder / "real"), "thesis");
}

// A lock that is released and removed while others wait for it never has two holders.
TEST(Lock, HasOneHolderWhileManyTry) {
  const test::Folder folder;
  const auto disk = system_disk();
  const std::string path = folder / ".out.lock";
  std::atomic<int> inside = 0, most = 0, held = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      std::string holder;
      for (int i = 0; i < 500; ++i) {
        const auto lock = disk->lock(path, kLock, holder);
        if (lock == nullptr) continue;
        const int now = ++inside;
        int before = most;
        while (before < now && !most.compare_exchange_weak(before, now)) {
        }
        ++held;
        --inside;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
  EXPECT_GT(held, 100);
}

TEST(Disk, RemoveTakesAFileALinkOrAnEmptyFolderAndNothingElse) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "keep/x", "x");
  ASSERT_EQ(::symlink((folder / "keep").c_str(), (folder / "link").c_str()), 0);
  disk->remove(folder / "link");
  disk->remove(folder / "link");
  EXPECT_EQ(disk->kind(folder / "link"), Disk::Kind::absent);
  EXPECT_THROW(disk->remove(folder / "keep"), Error);
  EXPECT_EQ(test::read_file(folder / "keep/x"), "x");
  disk->remove(folder / "keep/x");
  disk->remove(folder / "keep");
  EXPECT_EQ(disk->kind(folder / "keep"), Disk::Kind::absent);
}

TEST(Disk, FoldersAreMadeWithParentsRenamedAndSynced) {
  const test::Folder folder;
  const auto disk = system_disk();
  disk->make_folder(folder / "a/b");
  disk->make_folder(folder / "a/b");
  disk->sync_folder(folder / "a");
  EXPECT_TRUE(disk->rename(folder / "a", folder / "c"));
  EXPECT_EQ(disk->kind(folder / "c/b"), Disk::Kind::folder);
  EXPECT_EQ(error_of([&] { (void)disk->rename(folder / "a", folder / "d"); }).code(),
            Code::missing);
  EXPECT_EQ(error_of([&] { disk->sync_folder(folder / "a"); }).code(), Code::missing);
  test::write_file(folder / "file", "x");
  EXPECT_THROW(disk->make_folder(folder / "file"), Error);
}

TEST(Disk, FreeSpaceIsToldForPathsThatDoNotExistYet) {
  const test::Folder folder;
  const auto disk = system_disk();
  EXPECT_GT(disk->free_bytes(folder / "not/yet/there"), 0U);
  EXPECT_GT(disk->free_bytes("not-here-either"), 0U);
}

TEST(Text, ReadTextGivesTheWholeFileUpToItsLimit) {
  const test::Folder folder;
  const auto disk = system_disk();
  test::write_file(folder / "a", "0123456789");
  EXPECT_EQ(read_text(*disk, folder / "a"), "0123456789");
  EXPECT_EQ(read_text(*disk, folder / "a", 10), "0123456789");
  const Error error = error_of([&] { (void)read_text(*disk, folder / "a", 9); });
  EXPECT_EQ(error.code(), Code::format);
  EXPECT_TRUE(has(error, "10 bytes"));
}

}  // namespace
}  // namespace ingot
