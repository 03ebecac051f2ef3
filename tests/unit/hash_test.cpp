#include "base/hash.hpp"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>
#include <xxhash.h>

#include "base/xxh.hpp"
#include "support.hpp"

namespace ingot {
namespace {

std::vector<std::byte> noise(std::size_t size, std::uint64_t seed = 7) {
  test::Random random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

Digest hash_text(std::string_view text) {
  return hash_block(std::as_bytes(std::span(text.data(), text.size())));
}

// Known answers computed with the packaged library from Python.
TEST(Hash, BlockIsXxh3Of128Bits) {
  EXPECT_EQ(hash_block({}).text(), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash_text("ingot").text(), "e04ee18e5aae88ac79b859c60e0bc1ce");
}

TEST(Hash, TensorHashIsTheHashOfItsBlocksDigests) {
  const std::vector<std::byte> bytes = noise(2 * kHashBlock + 3);
  std::vector<Digest> digests;
  for (std::size_t at = 0; at < bytes.size(); at += kHashBlock) {
    digests.push_back(
        hash_block(std::span(bytes).subspan(at, std::min(kHashBlock, bytes.size() - at))));
  }
  ASSERT_EQ(digests.size(), 3U);
  EXPECT_EQ(digests[0].text(), "67f7cf7958e6af15f9a0a3563cc0e650");
  EXPECT_EQ(digests[2].text(), "94409e8c5b0174f0fea827d97095f48c");
  EXPECT_EQ(hash_digests(digests).text(), "9794d047c31f54fcaa6f46e4488716f4");
  EXPECT_EQ(hash_digests({}), hash_block({}));
}

TEST(Hash, EveryVectorWidthGivesThePackagedLibrarysAnswer) {
  const std::vector<std::byte> bytes = noise(5000);
  for (std::size_t size = 0; size <= bytes.size(); size += size < 600 ? 1 : 97) {
    const XXH128_hash_t expected = XXH3_128bits(bytes.data(), size);
    const Digest digest{expected.high64, expected.low64};
    EXPECT_EQ(sse2::xxh3(bytes.data(), size), digest) << size;
    if (__builtin_cpu_supports("avx2")) {
      EXPECT_EQ(avx2::xxh3(bytes.data(), size), digest) << size;
    }
  }
}

TEST(Hash, DigestTextRoundTripsAndOtherTextIsNoDigest) {
  const Digest digest{0x0123456789abcdefULL, 0x00000000deadbeefULL};
  EXPECT_EQ(digest.text(), "0123456789abcdef00000000deadbeef");
  EXPECT_EQ(Digest::parse(digest.text()), digest);
  for (const char* bad : {"", "0123456789abcdef00000000deadbee",
                          "0123456789abcdef00000000deadbeef0", "0123456789ABCDEF00000000deadbeef",
                          "0x23456789abcdef00000000deadbeef", "-123456789abcdef00000000deadbeef"}) {
    EXPECT_FALSE(Digest::parse(bad)) << bad;
  }
}

TEST(Hash, StreamKeysHaveKnownAnswers) {
  const char* name = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_EQ(stream_key(name, "drop", 0), 0x5aa290b8aa1343b5ULL);
  EXPECT_EQ(stream_key(name, "drop", 12), 0xadaf7076a8630b25ULL);
}

TEST(Hash, StreamKeysSeparateNamePurposeAndPosition) {
  EXPECT_NE(stream_key("a", "bc", 1), stream_key("ab", "c", 1));
  EXPECT_NE(stream_key("a", "b1", 1), stream_key("a", "b", 11));
}

}  // namespace
}  // namespace ingot
