// Hashes that stand in receipts (XXH3-128) and the keys of random streams (XXH64).
//
// A tensor's hash is hash_digests over the hash_block of each of its 1 MiB blocks in order, the
// last one shorter; so blocks can be hashed in any order by any thread. A tensor of no bytes has no
// blocks. These definitions are part of the receipt's format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ingot {

inline constexpr std::size_t kHashBlock = std::size_t{1} << 20;

struct Digest {
  std::uint64_t high = 0;
  std::uint64_t low = 0;

  // 32 lower-case hexadecimal digits, high half first (as xxhsum -H2 prints it), and back; nothing
  // for any other text.
  [[nodiscard]] std::string text() const;
  [[nodiscard]] static std::optional<Digest> parse(std::string_view text) noexcept;

  friend bool operator==(const Digest&, const Digest&) = default;
};

// XXH3-128, seed 0, of the bytes; callers split a tensor at multiples of kHashBlock.
[[nodiscard]] Digest hash_block(std::span<const std::byte> bytes) noexcept;

// hash_block() of a text that comes in pieces.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void add(std::string_view text) noexcept;
  [[nodiscard]] Digest digest() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// XXH3-128, seed 0, of the digests written one after another as 16 big-endian bytes, high half
// first.
[[nodiscard]] Digest hash_digests(std::span<const Digest> digests);

// XXH64, seed 0, of name, zero byte, purpose, zero byte, position in decimal digits.
[[nodiscard]] std::uint64_t stream_key(std::string_view name, std::string_view purpose,
                                       std::uint64_t position);

}  // namespace ingot
