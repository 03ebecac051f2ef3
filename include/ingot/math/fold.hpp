// Sums over a tensor, or over each of its lines, whose bits do not depend on who adds: fixed
// shapes.
//
// Tensor: within a tile of 16,384 elements lane l of 256 adds elements l, l + 256, ... in index
// order, in double; the lanes fold by halves (128, 64, ..., 1); tile sums combine pairwise by
// index, level by level, an odd last one moving up unchanged. Absent elements of the last tile
// count as the start (+0.0 for sums), which changes no lane. Row: the tensor's tiles cut each row
// in segments; a segment is summed as a tile is, its first element in lane 0, and the segments of a
// row combine as the tiles of a tensor do. Column: within each 2^20 elements of the tensor the
// elements of a column are added in index order; these sums are added in index order.
#pragma once

#include "ingot/math/method.hpp"

namespace ingot::math {

inline constexpr std::uint32_t kTile = 16384;
inline constexpr std::uint32_t kLanes = 256;
// Elements between whose multiples the sums of columns begin anew.
inline constexpr std::uint64_t kColumnRun = std::uint64_t{1} << 20;

// A column of numbers that a term reads, one for each element.
enum class Stream : std::uint8_t {
  none,
  value,     // an input as decoded; index counts the inputs, a base being number 0
  delta,     // a source minus the base
  survivor,  // the same after the method's mask, before any gain: zero where it was dropped
};

struct Column {
  Stream stream = Stream::none;
  std::uint8_t index = 0;
};

// What surrounds an element where a term adds it.
struct Here {
  std::uint64_t index = 0;       // place of the element in the whole tensor
  float common = 0.0F;           // what Pass::Common makes of all sources
  double line[kLineFacts] = {};  // facts of the element's line so far
};

// Some sums of a pass that one loop makes together: `term` is an index into Pass::Terms, whose
// add() reads columns a and b and adds to the sums [first, first + kSums).
struct Group {
  std::uint8_t term = 0;
  Column a, b;
  std::uint16_t first = 0;
};

// How lanes are joined; joined with the start a lane stays as it is. Adding is what sums do.
struct Adding {
  static constexpr double kStart = 0.0;
  INGOT_HD static double join(double a, double b) { return a + b; }
};
struct Largest {
  static constexpr double kStart = -0x1.fffffffffffffp1023;
  // A NaN stays.
  INGOT_HD static double join(double a, double b) { return a > b || a != a ? a : b; }
};

// What a pass makes of all sources of an element for its terms to read as Here::common. It walks
// them as a combine does (parts/combine.hpp), with kUsed = true, kStream (value or delta), kStages
// and a State: meet<stage>(state, facts of the tensor, x, here) for each source in file order, then
// finish(state, facts of the tensor, here). A key of all sources does the same with At<float> in
// the place of Here, and finish() gives the key. States may hold doubles.
//
// A pass that needs nothing of all sources at once:
struct NoCommon {
  static constexpr bool kUsed = false;
};

// Adds one element. A product of two f32 is exact in double, so that fused or not is the same.
INGOT_HD double add_product(double lane, float a, float b) {
#if defined(__FMA__) || defined(__CUDACC__)
  return fuse(static_cast<double>(a), static_cast<double>(b), lane);
#else
  return lane + static_cast<double>(a) * static_cast<double>(b);
#endif
}
INGOT_HD double add_absolute(double lane, float a) {
  return lane + static_cast<double>(magnitude(a));
}

// Folds lanes to one, in place: 256 of them, or any smaller power of two behind which no element
// was added.
template <class Join>
INGOT_HD double fold_lanes(double* lane, std::uint32_t lanes = kLanes) {
  for (std::uint32_t half = lanes / 2; half > 0; half /= 2) {
    for (std::uint32_t l = 0; l < half; ++l) lane[l] = Join::join(lane[l], lane[l + half]);
  }
  return lane[0];
}

// The sum of a tensor from the sums of its tiles, all of them, by index. Overwrites them.
inline double combine(double* tiles, std::uint64_t count, double (*join)(double, double) = nullptr,
                      double start = 0.0) {
  const auto joined = [&](double a, double b) { return join == nullptr ? a + b : join(a, b); };
  if (count == 0) return start;
  while (count > 1) {
    const std::uint64_t pairs = count / 2;
    for (std::uint64_t i = 0; i < pairs; ++i) tiles[i] = joined(tiles[2 * i], tiles[2 * i + 1]);
    if (count % 2 == 1) tiles[pairs] = tiles[count - 1];
    count = pairs + count % 2;
  }
  return tiles[0];
}

// The segments of rows of `width` elements in elements [first, first + count), `first` a multiple
// of kTile: the parts of rows within one tile. Calls body(row, begin, length) for each in order.
template <class Body>
INGOT_HD void each_segment(std::uint64_t first, std::uint64_t count, std::uint64_t width,
                           Body body) {
  for (std::uint64_t at = first; at < first + count;) {
    const std::uint64_t row = at / width;
    std::uint64_t end = (row + 1) * width;
    const std::uint64_t tile = (at / kTile + 1) * kTile;
    if (tile < end) end = tile;
    if (first + count < end) end = first + count;
    body(row, at, static_cast<std::uint32_t>(end - at));
    at = end;
  }
}
// How many there are: one for each row, and one more for each tile that begins within a row.
[[nodiscard]] inline std::uint64_t segments(std::uint64_t first, std::uint64_t count,
                                            std::uint64_t width) {
  if (count == 0) return 0;
  const std::uint64_t last = first + count - 1;
  std::uint64_t all = last / width - first / width + 1;
  for (std::uint64_t tile = first + kTile; tile <= last; tile += kTile) {
    all += tile % width != 0 ? 1u : 0u;
  }
  return all;
}

// The smallest number of lanes, a power of two and at most kLanes, that `length` elements fill.
[[nodiscard]] INGOT_HD std::uint32_t lanes_of(std::uint32_t length) {
  std::uint32_t lanes = 1;
  while (lanes < length && lanes < kLanes) lanes *= 2;
  return lanes;
}

// ---- terms that several passes share

// The three products of two columns: aa, bb, ab.
struct Products {
  static constexpr int kSums = 3;
  template <class F>
  INGOT_HD static void add(double* lane, float a, float b, const F&, const Here&) {
    lane[0] = add_product(lane[0], a, a);
    lane[1] = add_product(lane[1], b, b);
    lane[2] = add_product(lane[2], a, b);
  }
};
// a a.
struct Square {
  static constexpr int kSums = 1;
  template <class F>
  INGOT_HD static void add(double* lane, float a, float, const F&, const Here&) {
    lane[0] = add_product(lane[0], a, a);
  }
};
// a b.
struct Product {
  static constexpr int kSums = 1;
  template <class F>
  INGOT_HD static void add(double* lane, float a, float b, const F&, const Here&) {
    lane[0] = add_product(lane[0], a, b);
  }
};
// |a| and |b|.
struct Magnitudes {
  static constexpr int kSums = 2;
  template <class F>
  INGOT_HD static void add(double* lane, float a, float b, const F&, const Here&) {
    lane[0] = add_absolute(lane[0], a);
    lane[1] = add_absolute(lane[1], b);
  }
};

// All products of the sources' columns: the squares 0, 1, ..., N - 1, then the pairs 01, 02, 12,
// 03,
// ... Every method whose result lies in the span of its inputs follows from them. `stream` is value
// (whose index counts the base) or delta.
template <Stream stream>
struct Gram : Adding {
  using Terms = List<Products, Square, Product>;
  using Common = NoCommon;

  static int sums(const Rule& rule) { return rule.sources * (rule.sources + 1) / 2; }
  // The place of a product among the sums.
  static int at(int sources, int i, int j) {
    if (i == j) return i;
    const int low = i < j ? i : j, high = i < j ? j : i;
    return sources + high * (high - 1) / 2 + low;
  }
  static int groups(const Rule& rule) { return rule.sources == 2 ? 1 : sums(rule); }
  static Group group(const Rule& rule, int n) {
    const auto column = [&](int s) {
      const int skip = stream == Stream::value && rule.base ? 1 : 0;
      return Column{stream, static_cast<std::uint8_t>(s + skip)};
    };
    const auto first = static_cast<std::uint16_t>(n);
    if (rule.sources == 2) return {0, column(0), column(1), 0};
    if (n < rule.sources) return {1, column(n), {}, first};
    int high = 1;
    while (rule.sources + high * (high + 1) / 2 <= n) ++high;
    return {2, column(n - rule.sources - high * (high - 1) / 2), column(high), first};
  }
};

}  // namespace ingot::math
