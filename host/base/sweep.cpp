// Built once per instruction set with INGOT_VECTORS naming the namespace.
#include "base/sweep.hpp"

#include <cstring>
#include <limits>

namespace ingot::INGOT_VECTORS {
namespace {

// Bytes that are looked at side by side: four vectors, so that none waits for the one before it.
constexpr std::size_t kSide = 128;

// The distance from `least` to the sign's bit is added to a code without its sign: the sum reaches
// that bit from `least` on. Three operations an element, and no comparison.
template <class Word>
bool reaches(const std::byte* data, std::size_t count, std::uint64_t least) noexcept {
  constexpr Word kRest = std::numeric_limits<Word>::max() >> 1;
  const Word distance = static_cast<Word>(static_cast<Word>(kRest + 1) - static_cast<Word>(least));
  constexpr std::size_t kLanes = kSide / sizeof(Word);
  const auto sum = [&](std::size_t i) {
    Word word;
    std::memcpy(&word, data + i * sizeof word, sizeof word);
    return static_cast<Word>(static_cast<Word>(word & kRest) + distance);
  };
  Word lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (std::size_t l = 0; l < kLanes; ++l) lanes[l] = static_cast<Word>(lanes[l] | sum(i + l));
  }
  Word all = 0;
  for (; i < count; ++i) all = static_cast<Word>(all | sum(i));
  for (const Word lane : lanes) all = static_cast<Word>(all | lane);
  return all > kRest;
}

}  // namespace

bool sweep(const std::byte* data, std::size_t count, unsigned size, std::uint64_t least) noexcept {
  switch (size) {
    case 1:
      return reaches<std::uint8_t>(data, count, least);
    case 2:
      return reaches<std::uint16_t>(data, count, least);
    case 4:
      return reaches<std::uint32_t>(data, count, least);
    default:
      return reaches<std::uint64_t>(data, count, least);
  }
}

}  // namespace ingot::INGOT_VECTORS
