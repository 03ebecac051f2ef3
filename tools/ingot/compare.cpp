#include "compare.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

namespace ingot::tool {
namespace {

template <class Word>
Word load(std::span<const std::byte> bytes, std::size_t index) {
  Word word;
  std::memcpy(&word, bytes.data() + index * sizeof word, sizeof word);
  return word;
}

}  // namespace

std::uint64_t ulp_distance(std::uint64_t a, std::uint64_t b, std::uint32_t width) noexcept {
  const std::uint64_t sign = std::uint64_t{1} << (width - 1);
  const std::uint64_t x = a & (sign - 1);  // steps from zero
  const std::uint64_t y = b & (sign - 1);
  if ((a & sign) != (b & sign)) return x + y;
  return x > y ? x - y : y - x;
}

void Likeness::add(Dtype left, Sweep& a, Dtype right, Sweep& b) {
  const auto count = static_cast<std::size_t>(a.count());
  elements += count;
  const bool one_type = left == right;
  if (!has_values(left) || !has_values(right)) {
    // Parts of block formats: elements narrower than a byte count by bytes.
    const bool equal =
        one_type && std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) == 0;
    if (!equal) differing += count;
    return;
  }
  const std::span<const double> x = a.values();
  const std::span<const double> y = b.values();
  if (one_type && std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) != 0) {
    const std::uint32_t width = bits(left);
    const auto compare = [&]<class Word>(Word) {
      for (std::size_t i = 0; i < count; ++i) {
        const Word p = load<Word>(a.bytes(), i);
        const Word q = load<Word>(b.bytes(), i);
        if (p == q) continue;
        ++differing;
        if (!is_float(left) || !std::isfinite(x[i]) || !std::isfinite(y[i])) continue;
        const std::uint64_t steps = ulp_distance(p, q, width);
        max_ulp = std::max(max_ulp, steps);
        sum_ulp += static_cast<double>(steps);
      }
    };
    if (width == 8) compare(std::uint8_t{});
    if (width == 16) compare(std::uint16_t{});
    if (width == 32) compare(std::uint32_t{});
    if (width == 64) compare(std::uint64_t{});
  }
  double aa_here = 0, bb_here = 0, ab_here = 0, dd_here = 0;
  std::uint64_t finite = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i]) || !std::isfinite(y[i])) continue;
    const double d = x[i] - y[i];
    ++finite;
    aa_here += x[i] * x[i];
    bb_here += y[i] * y[i];
    ab_here += x[i] * y[i];
    dd_here += d * d;
    max_difference = std::max(max_difference, std::fabs(d));
  }
  if (!one_type) {
    for (std::size_t i = 0; i < count; ++i) {
      differing += x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i])) ? 0U : 1U;
    }
  }
  not_finite += count - finite;
  if (one_type && is_float(left)) ulps += finite;
  aa += aa_here;
  bb += bb_here;
  ab += ab_here;
  dd += dd_here;
}

void Likeness::add(const Likeness& other) {
  elements += other.elements;
  differing += other.differing;
  not_finite += other.not_finite;
  ulps += other.ulps;
  max_ulp = std::max(max_ulp, other.max_ulp);
  sum_ulp += other.sum_ulp;
  max_difference = std::max(max_difference, other.max_difference);
  aa += other.aa;
  bb += other.bb;
  ab += other.ab;
  dd += other.dd;
}

double Likeness::mean_ulp() const { return ulps > 0 ? sum_ulp / static_cast<double>(ulps) : 0; }

double Likeness::relative() const {
  if (dd == 0) return 0;
  return aa > 0 ? std::sqrt(dd / aa) : std::numeric_limits<double>::infinity();
}

double Likeness::cosine() const {
  if (dd == 0) return 1;
  if (aa == 0 || bb == 0) return 0;
  return std::clamp(ab / (std::sqrt(aa) * std::sqrt(bb)), -1.0, 1.0);
}

}  // namespace ingot::tool
