#include "store/window.hpp"

#include <csignal>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

std::string noise(std::size_t size, std::uint64_t seed) {
  test::Random random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.next());
  return bytes;
}

bool same(std::span<const std::byte> bytes, std::string_view text) {
  return bytes.size() == text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

std::uint64_t sum(std::span<const std::byte> bytes) {
  std::uint64_t total = 0;
  for (std::byte byte : bytes) total += std::to_integer<std::uint64_t>(byte);
  return total;
}

class WindowTest : public ::testing::Test {
 protected:
  const test::Folder folder_;
  const std::unique_ptr<Disk> disk_ = system_disk();
  const std::string bytes_ = noise(1'000'003, 1);
  std::unique_ptr<File> file_ = make();

  std::unique_ptr<File> make() {
    test::write_file(folder_ / "a", bytes_);
    return disk_->open(folder_ / "a");
  }
  void truncate(std::size_t size) {
    ASSERT_EQ(::truncate((folder_ / "a").c_str(), static_cast<off_t>(size)), 0);
  }
};

TEST_F(WindowTest, ShowsTheBytesOfItsRangeWhereverItStarts) {
  const Guard guard;
  for (std::size_t offset : {0U, 1U, 4095U, 4096U, 500'001U, 1'000'002U}) {
    for (std::size_t size : {1U, 4096U, 123'457U}) {
      const std::size_t length = std::min(size, bytes_.size() - offset);
      const Window window(*file_, offset, length);
      EXPECT_TRUE(same(window.bytes(), std::string_view(bytes_).substr(offset, length)));
      EXPECT_FALSE(window.torn());
    }
  }
  EXPECT_TRUE(Window(*file_, 7, 0).bytes().empty());
  EXPECT_TRUE(Window(*file_, bytes_.size(), 0).bytes().empty());
}

// Pages of this process that are mapped from files.
std::uint64_t mapped_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoull(line.substr(8)) * 1024;
  }
  return 0;
}

TEST_F(WindowTest, WhatWasLeftIsNotResidentAndCanBeReadAgain) {
  constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
  const std::string bytes = noise(32 * kMiB + 12'345, 2);
  test::write_file(folder_ / "b", bytes);
  const auto file = disk_->open(folder_ / "b");
  const Guard guard;
  const Window window(*file, 777, bytes.size() - 777);
  const std::uint64_t before = mapped_bytes();
  const std::uint64_t all = sum(window.bytes());
  EXPECT_GT(mapped_bytes(), before + 16 * kMiB);
  for (std::uint64_t at = 0; at < window.bytes().size(); at += kMiB) {
    window.leave(at, std::min<std::uint64_t>(kMiB, window.bytes().size() - at));
  }
  EXPECT_LT(mapped_bytes(), before + kMiB);
  std::uint64_t again = 0;
  for (std::uint64_t at = 0; at < window.bytes().size(); at += kMiB) {
    const std::uint64_t count = std::min<std::uint64_t>(kMiB, window.bytes().size() - at);
    again += sum(window.bytes().subspan(at, count));
    window.leave(at, count);
    EXPECT_LT(mapped_bytes(), before + 8 * kMiB);
  }
  EXPECT_EQ(again, all);
  EXPECT_FALSE(window.torn());
  Window(*file_, 0, 0).leave(0, 0);
}

TEST_F(WindowTest, IsRefusedWithoutAGuard) {
  EXPECT_FALSE(Window::possible(*file_));
  EXPECT_THROW(Window(*file_, 0, 1), Error);
  {
    const Guard guard;
    EXPECT_TRUE(Window::possible(*file_));
    EXPECT_THROW(Guard(), Error);
    EXPECT_TRUE(Window::possible(*file_)) << "the refused one changes nothing";
  }
  EXPECT_FALSE(Window::possible(*file_));
}

TEST_F(WindowTest, RangesPastTheEndAreErrors) {
  const Guard guard;
  EXPECT_THROW(Window(*file_, 0, bytes_.size() + 1), Error);
  EXPECT_THROW(Window(*file_, bytes_.size() + 1, 0), Error);
  EXPECT_THROW(Window(*file_, 1, UINT64_MAX), Error);
}

TEST_F(WindowTest, AFileThatShrinksTearsTheWindowAndNothingElse) {
  const Guard guard;
  const Window window(*file_, 3, 900'000);
  const Window head(*file_, 0, 4096);
  test::write_file(folder_ / "b", bytes_);
  const auto other = disk_->open(folder_ / "b");
  const Window whole(*other, 0, bytes_.size());
  truncate(8192);
  EXPECT_GT(sum(window.bytes()), 0U);  // touches every page and lives
  EXPECT_TRUE(window.torn());
  EXPECT_FALSE(head.torn());
  EXPECT_TRUE(same(head.bytes(), std::string_view(bytes_).substr(0, 4096)));
  EXPECT_FALSE(whole.torn());
  EXPECT_TRUE(same(whole.bytes(), bytes_));
}

TEST_F(WindowTest, ShrinkingWithinTheLastPageIsNoticedWithoutAFault) {
  const Guard guard;
  const Window window(*file_, 0, bytes_.size());
  truncate(bytes_.size() - 1);
  EXPECT_EQ(window.bytes().back(), std::byte{0});
  EXPECT_TRUE(window.torn());
}

TEST_F(WindowTest, AWindowTornOnceStaysTornWhenTheFileGrowsBack) {
  const Guard guard;
  const Window window(*file_, 0, bytes_.size());
  truncate(0);
  EXPECT_EQ(sum(window.bytes()), 0U);
  truncate(bytes_.size());
  EXPECT_TRUE(window.torn());
  const Window fresh(*file_, 0, bytes_.size());
  EXPECT_FALSE(fresh.torn());
}

TEST_F(WindowTest, SeveralThreadsMayMeetTheEndAtOnce) {
  const Guard guard;
  for (int round = 0; round < 20; ++round) {
    file_ = make();
    const Window window(*file_, 0, bytes_.size());
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int pass = 0; pass < 5; ++pass) (void)sum(window.bytes());
        for (int pass = 0; pass < 20; ++pass) {
          const Window passing(*file_, 0, 4096);  // slots come and go meanwhile
        }
      });
    }
    truncate(4096);
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(window.torn());
  }
}

TEST_F(WindowTest, MovesKeepTheMapping) {
  const Guard guard;
  Window window(*file_, 10, 100);
  Window moved = std::move(window);
  EXPECT_TRUE(same(moved.bytes(), std::string_view(bytes_).substr(10, 100)));
  moved = Window(*file_, 20, 50);
  EXPECT_TRUE(same(moved.bytes(), std::string_view(bytes_).substr(20, 50)));
  truncate(0);
  EXPECT_TRUE(moved.torn());
}

TEST_F(WindowTest, TheNumberOfWindowsIsBoundedAndTheirPlacesAreReused) {
  const Guard guard;
  std::vector<Window> windows;
  for (int i = 0; i < 4096; ++i) windows.emplace_back(*file_, 0, 1);
  EXPECT_THROW(Window(*file_, 0, 1), Error);
  windows.pop_back();
  EXPECT_NO_THROW(Window(*file_, 0, 1));
}

// Touches a mapping that is no window after its file has shrunk.
void fault_elsewhere(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR);
  auto* bytes =
      static_cast<volatile char*>(::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, descriptor, 0));
  if (::ftruncate(descriptor, 0) != 0) std::_Exit(1);
  (void)bytes[4096];
}

TEST_F(WindowTest, OtherBusErrorsStillKillTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, SIG_DFL);  // a sanitizer has its own
        const Guard guard;
        const Window window(*file_, 0, 4096);
        fault_elsewhere(folder_ / "a");
      },
      ::testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(
      {
        ::signal(SIGBUS, SIG_DFL);
        const Guard guard;
        (void)::raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST_F(WindowTest, OtherBusErrorsGoToThePreviousHandler) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        struct sigaction action {};
        action.sa_handler = [](int) { std::_Exit(7); };
        ::sigaction(SIGBUS, &action, nullptr);
        const Guard guard;
        fault_elsewhere(folder_ / "a");
      },
      ::testing::ExitedWithCode(7), "");
  EXPECT_EXIT(
      {
        struct sigaction action {};
        action.sa_handler = [](int) { std::_Exit(8); };
        ::sigaction(SIGBUS, &action, nullptr);
        { const Guard guard; }
        fault_elsewhere(folder_ / "a");
      },
      ::testing::ExitedWithCode(8), "");
}

}  // namespace
}  // namespace ingot
