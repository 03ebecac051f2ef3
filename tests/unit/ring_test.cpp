#include "store/ring.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

constexpr std::size_t kPage = 4096;

// Memory at a page boundary, as direct transfers want it.
class Buffer {
 public:
  explicit Buffer(std::size_t size)
      : size_(size),
        data_(static_cast<std::byte*>(std::aligned_alloc(kPage, (size + kPage) / kPage * kPage))) {
    std::memset(data_, 0xee, size);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  [[nodiscard]] std::span<std::byte> span() const { return {data_, size_}; }

 private:
  std::size_t size_;
  std::byte* data_;
};

std::string noise(std::size_t size, std::uint64_t seed) {
  test::Random random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.next());
  return bytes;
}

bool same(std::span<const std::byte> bytes, std::string_view text) {
  return bytes.size() == text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

// What a completion's error says; empty if there is none.
std::string words(const Completion& completion) {
  if (!completion.error) return "";
  try {
    std::rethrow_exception(completion.error);
  } catch (const Error& error) {
    return error.what();
  }
}

// Without a descriptor; moves at most 1,000 bytes a call and fails on demand.
class Slow final : public File {
 public:
  explicit Slow(std::string bytes) : bytes_(std::move(bytes)) {}
  [[nodiscard]] const std::string& path() const noexcept override { return path_; }
  [[nodiscard]] std::uint64_t size() override { return bytes_.size(); }
  [[nodiscard]] std::size_t read(std::uint64_t offset, std::span<std::byte> data) override {
    if (broken) fail(Code::io, "slow: broken");
    if (offset >= bytes_.size()) return 0;
    const std::size_t count = std::min({data.size(), bytes_.size() - offset, std::size_t{1000}});
    std::memcpy(data.data(), bytes_.data() + offset, count);
    return count;
  }
  [[nodiscard]] std::size_t write(std::uint64_t offset, std::span<const std::byte> data) override {
    if (broken) fail(Code::io, "slow: broken");
    const std::lock_guard lock(mutex_);
    const std::size_t count = std::min(data.size(), std::size_t{1000});
    std::memcpy(bytes_.data() + offset, data.data(), count);
    return count;
  }
  void reserve(std::uint64_t) override {}
  void sync() override {}

  bool broken = false;

 private:
  std::string path_ = "slow";
  std::string bytes_;
  std::mutex mutex_;
};

// Every test runs on both kinds of ring.
class RingTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && make_ring(1, true)->describe().find("io_uring") != 0) {
      GTEST_SKIP() << make_ring(1, true)->describe();
    }
  }
  [[nodiscard]] static std::unique_ptr<Ring> ring(unsigned depth) {
    return make_ring(depth, GetParam());
  }

  const test::Folder folder_;
  const std::unique_ptr<Disk> disk_ = system_disk();
};

INSTANTIATE_TEST_SUITE_P(Kinds, RingTest, ::testing::Bool(),
                         [](const auto& kind) { return kind.param ? "uring" : "threads"; });

TEST_P(RingTest, ReadsGiveTheBytesOfTheirRangeHoweverManyAreInFlight) {
  const std::string bytes = noise(9'000'123, 1);
  test::write_file(folder_ / "a", bytes);
  const auto file = disk_->open(folder_ / "a");
  for (unsigned depth : {1U, 3U, 8U}) {
    const auto ring = RingTest::ring(depth);
    test::Random random(depth);
    std::map<std::uint64_t, std::pair<std::size_t, std::unique_ptr<Buffer>>> open;
    for (std::uint64_t token = 0; token < 40; ++token) {
      const std::size_t offset = random.below(bytes.size());
      const std::size_t size =
          random.below(std::min<std::size_t>(bytes.size() - offset, 5'000'000));
      auto buffer = std::make_unique<Buffer>(size);
      ring->submit({file.get(), offset, buffer->span(), false, token % 2 == 0, token});
      open[token] = {offset, std::move(buffer)};
      EXPECT_EQ(ring->pending(), open.size());
      if (open.size() < 12) continue;
      const Completion done = ring->wait();
      EXPECT_EQ(words(done), "");
      const auto& [at, read] = open.at(done.token);
      EXPECT_TRUE(same(read->span(), std::string_view(bytes).substr(at, read->span().size())));
      open.erase(done.token);
    }
    while (ring->pending() > 0) {
      const Completion done = ring->wait();
      EXPECT_EQ(words(done), "");
      const auto& [at, read] = open.at(done.token);
      EXPECT_TRUE(same(read->span(), std::string_view(bytes).substr(at, read->span().size())));
      open.erase(done.token);
    }
    EXPECT_TRUE(open.empty());
  }
}

TEST_P(RingTest, WritesOfEitherKindLandWhereTheyBelong) {
  const std::string bytes = noise(8 * kPage * 100 + 77, 2);
  const std::size_t part = 8 * kPage * 25;
  const Buffer buffer(bytes.size());
  std::memcpy(buffer.span().data(), bytes.data(), bytes.size());
  {
    const auto file = disk_->create(folder_ / "a");
    file->reserve(bytes.size());
    const auto ring = RingTest::ring(4);
    for (std::size_t at = bytes.size() / part * part + part; at > 0;) {
      at -= part;
      if (at >= bytes.size()) continue;
      const std::size_t size = std::min(part, bytes.size() - at);
      ring->submit({file.get(), at, buffer.span().subspan(at, size), true, true, at});
    }
    while (ring->pending() > 0) EXPECT_EQ(words(ring->wait()), "");
    file->sync();
  }
  EXPECT_TRUE(test::read_file(folder_ / "a") == bytes);
}

TEST_P(RingTest, ATransferLargerThanTheRingCompletesOnce) {
  const std::string bytes = noise(33 << 20, 3);
  test::write_file(folder_ / "a", bytes);
  const auto file = disk_->open(folder_ / "a");
  for (bool direct : {false, true}) {
    const auto ring = RingTest::ring(2);
    const Buffer buffer(bytes.size());
    ring->submit({file.get(), 0, buffer.span(), false, direct, 42});
    EXPECT_EQ(ring->pending(), 1U);
    const Completion done = ring->wait();
    EXPECT_EQ(done.token, 42U);
    EXPECT_EQ(words(done), "");
    EXPECT_EQ(ring->pending(), 0U);
    EXPECT_TRUE(same(buffer.span(), bytes));
  }
}

TEST_P(RingTest, AnEmptyTransferCompletes) {
  test::write_file(folder_ / "a", "x");
  const auto file = disk_->open(folder_ / "a");
  const auto ring = RingTest::ring(2);
  ring->submit({file.get(), 99, {}, false, true, 5});
  EXPECT_EQ(ring->pending(), 1U);
  const Completion done = ring->wait();
  EXPECT_EQ(done.token, 5U);
  EXPECT_EQ(words(done), "");
}

TEST_P(RingTest, AnAlignedReadMayReachPastTheEndByItsTail) {
  const std::string bytes = noise(3 * kPage + 100, 4);
  test::write_file(folder_ / "a", bytes);
  const auto file = disk_->open(folder_ / "a");
  const auto ring = RingTest::ring(2);
  const Buffer buffer(8 * kPage);
  ring->submit({file.get(), kPage, buffer.span().first(3 * kPage), false, true, 0});
  EXPECT_EQ(words(ring->wait()), "");
  EXPECT_TRUE(same(buffer.span().first(2 * kPage + 100), std::string_view(bytes).substr(kPage)));
  // A page more than the tail is past the end, and without `direct` every byte is.
  ring->submit({file.get(), kPage, buffer.span().first(4 * kPage), false, true, 0});
  EXPECT_NE(words(ring->wait()).find("no bytes at offset"), std::string::npos);
  ring->submit({file.get(), 4 * kPage, buffer.span().first(kPage), false, true, 0});
  EXPECT_NE(words(ring->wait()).find("no bytes at offset"), std::string::npos);
  ring->submit({file.get(), 0, buffer.span().first(bytes.size() + 1), false, false, 0});
  EXPECT_NE(words(ring->wait()).find(folder_ / "a"), std::string::npos);
}

TEST_P(RingTest, AFileThatShrankIsAnErrorEvenWithinItsLastPage) {
  test::write_file(folder_ / "a", std::string(2 * kPage + 1000, 'x'));
  const auto file = disk_->open(folder_ / "a");
  ASSERT_EQ(::truncate((folder_ / "a").c_str(), 2 * kPage + 999), 0);
  const auto ring = RingTest::ring(2);
  const Buffer buffer(3 * kPage);
  for (bool direct : {false, true}) {
    ring->submit({file.get(), 0, buffer.span(), false, direct, 0});
    EXPECT_NE(words(ring->wait()).find("truncated"), std::string::npos) << direct;
  }
}

TEST_P(RingTest, OneFailureLeavesTheOtherTransfersAlone) {
  const std::string bytes = noise(6 << 20, 5);
  test::write_file(folder_ / "a", bytes);
  const auto file = disk_->open(folder_ / "a");
  const auto ring = RingTest::ring(4);
  const Buffer one(bytes.size());
  const Buffer two(bytes.size());
  ring->submit({file.get(), 0, one.span(), true, true, 1});  // opened to read
  ring->submit({file.get(), 0, two.span(), false, true, 2});
  for (int i = 0; i < 2; ++i) {
    const Completion done = ring->wait();
    if (done.token == 1) {
      const std::string text = words(done);
      EXPECT_NE(text.find("cannot write"), std::string::npos) << text;
      EXPECT_NE(text.find(folder_ / "a"), std::string::npos) << text;
      EXPECT_NE(text.find("at byte"), std::string::npos) << text;
    } else {
      EXPECT_EQ(words(done), "");
    }
  }
  EXPECT_TRUE(same(two.span(), bytes));
  EXPECT_TRUE(test::read_file(folder_ / "a") == bytes);
}

TEST_P(RingTest, AFileWithoutADescriptorIsServedByItsOwnReadAndWrite) {
  const std::string bytes = noise(70'000, 6);
  Slow file(bytes);
  const auto ring = RingTest::ring(3);
  const Buffer buffer(bytes.size());
  ring->submit({&file, 0, buffer.span(), false, true, 1});
  EXPECT_EQ(words(ring->wait()), "");
  EXPECT_TRUE(same(buffer.span(), bytes));
  std::reverse(buffer.span().begin(), buffer.span().end());
  ring->submit({&file, 0, buffer.span(), true, false, 2});
  EXPECT_EQ(words(ring->wait()), "");
  const Buffer back(bytes.size());
  ring->submit({&file, 0, back.span(), false, false, 3});
  EXPECT_EQ(words(ring->wait()), "");
  EXPECT_TRUE(std::equal(back.span().begin(), back.span().end(), buffer.span().begin()));
  ring->submit({&file, 1, back.span(), false, false, 4});
  EXPECT_NE(words(ring->wait()).find("slow has no bytes at offset 70000"), std::string::npos);
  file.broken = true;
  ring->submit({&file, 0, back.span(), false, false, 5});
  EXPECT_EQ(words(ring->wait()), "slow: broken");
}

TEST_P(RingTest, DestructionWaitsForWhatIsInFlight) {
  const std::string bytes = noise(24 << 20, 7);
  test::write_file(folder_ / "a", bytes);
  const auto file = disk_->open(folder_ / "a");
  for (int round = 0; round < 3; ++round) {
    const Buffer buffer(bytes.size());
    const auto ring = RingTest::ring(16);
    ring->submit({file.get(), 0, buffer.span(), false, true, 1});
    // The ring goes before the buffer; a late write into freed memory is for the sanitizers to see.
  }
}

TEST_P(RingTest, WaitingForNothingIsAnErrorAndNotForEver) {
  EXPECT_THROW((void)RingTest::ring(2)->wait(), Error);
}

TEST(Ring, DescribesItself) {
  EXPECT_EQ(make_ring(6, false)->describe(), "6 threads");
  EXPECT_EQ(make_ring(0, false)->describe(), "1 threads");
}

TEST(Resident, TellsCachedFromUncachedAndBothWaysAgree) {
  const test::Folder folder;
  test::write_file(folder / "a", noise(4 << 20, 8));
  const auto file = system_disk()->open(folder / "a");
  const std::uint64_t size = file->size();
  EXPECT_GT(resident(*file, 0, size), 0.99);
  EXPECT_GT(resident_sampled(*file, 0, size), 0.99);
  const auto writer = system_disk()->update(folder / "a");
  writer->sync();
  double sampled = 1;
  // Looking makes newer kernels read ahead, at times faster than this thread looks.
  for (int round = 0; round < 10 && sampled >= 0.5; ++round) {
    ASSERT_EQ(::posix_fadvise(file->descriptor(), 0, 0, POSIX_FADV_DONTNEED), 0);
    const double after = resident(*file, 0, size);
    if (after > 0.99) GTEST_SKIP() << "this file system keeps its pages";
    EXPECT_LT(after, 0.1);
    sampled = resident_sampled(*file, 0, size);
  }
  EXPECT_LT(sampled, 0.5);
}

TEST(Resident, IsZeroWhereThereIsNothingToAsk) {
  Slow file("abc");
  EXPECT_EQ(resident(file, 0, 3), 0.0);
  EXPECT_EQ(resident_sampled(file, 0, 3), 0.0);
  const auto real = system_disk()->open(test::example("models/base/config.json"));
  EXPECT_EQ(resident(*real, 0, 0), 0.0);
}

}  // namespace
}  // namespace ingot
