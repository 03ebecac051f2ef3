// What a merge method is: a struct with a card, parameters, a lens, a combine, and passes.
//
//   struct Ties {
//     static constexpr Card kCard = {...};               // name, base, number of models, words
//     static constexpr Parameter kParameters[] = {...};  // what a recipe may set
//     using Lens = Trim;        // what the formula sees of one source (parts/lens.hpp)
//     using Combine = Elect;    // the formula: one element of the result from all sources
//     using Passes = List<...>; // what is measured before, in this order (parts/fold.hpp)
//     static void begin(const Rule&, View<Lens, Combine>);  // facts that need no measuring
//   };
//
// Everything else is made from the list in list.hpp: the CPU's loops, the kernels, the double path
// of `verify`, the parameter tables of the documents, and the tests that run over all methods. The
// same text is compiled for float (backends), double and tracked numbers (verify). A decision, such
// as a mask, a vote or a threshold, is always taken in f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ingot/math/key.hpp"
#include "ingot/math/rule.hpp"

namespace ingot::math {

// ---- what a recipe says -------------------------------------------------------------------------

enum class Kind : std::uint8_t { real, boolean, integer };

// Whose value a parameter is: one per output tensor; one per source but the base; one per input,
// the base included.
enum class Scope : std::uint8_t { global, source, every };

struct Parameter {
  const char* name;
  const char* meaning;  // one line
  Kind kind;
  Scope scope;
  bool required;
  double fallback;   // where not required
  double low, high;  // inclusive range; a value outside, or NaN, is an error
};

// Any finite f32.
inline constexpr double kLargest = 0x1.fffffep127;

// Parameters of a whole output tensor.
constexpr Parameter flag(const char* name, bool value, const char* meaning) {
  return {name, meaning, Kind::boolean, Scope::global, false, value ? 1.0 : 0.0, 0, 1};
}
constexpr Parameter number(const char* name, double value, const char* meaning,
                           double low = -kLargest, double high = kLargest) {
  return {name, meaning, Kind::real, Scope::global, false, value, low, high};
}
constexpr Parameter needed(const char* name, const char* meaning) {
  return {name, meaning, Kind::real, Scope::global, true, 0, -kLargest, kLargest};
}
constexpr Parameter integer(const char* name, double value, const char* meaning, double low,
                            double high) {
  return {name, meaning, Kind::integer, Scope::global, false, value, low, high};
}
// Parameters of one source.
constexpr Parameter each(const char* name, const char* meaning) {
  return {name, meaning, Kind::real, Scope::source, true, 0, -kLargest, kLargest};
}
constexpr Parameter each(const char* name, double value, const char* meaning, double low,
                         double high) {
  return {name, meaning, Kind::real, Scope::source, false, value, low, high};
}

// How a method uses base_model.
enum class Base : std::uint8_t {
  ignored,   // an ordinary input (linear), or none (passthrough)
  optional,  // task vectors where there is one, the models themselves where not
  pivot,     // required, one of exactly two inputs (slerp: at t = 0)
  origin,    // required; the other inputs become task vectors relative to it
  zero,      // none, and no recipe of models has the method: inputs are task vectors as they are
};

// What a method is to its users. Lines are for 80 columns, two of them taken by an indent.
struct Card {
  const char* name;
  Base base;
  int least, most;       // number of inputs, the base not counted for Base::origin and optional
  const char* summary;   // one line
  const char* formula;   // for each element; lines
  const char* measured;  // what is measured before, for the table of methods; empty: nothing
  const char* when;      // when to use it, and when not; filled
  const char* paper;     // title and year, for the model card; may be empty
  const char* link;      // of the paper; may be empty
  const char* recipe;    // an example
};

// A parameter by its name, which the compiler looks up: Given<Ties>(rule).at<"density">(s).
template <std::size_t N>
struct Name {
  char text[N] = {};
  consteval Name(const char (&t)[N]) {  // NOLINT(google-explicit-constructor)
    for (std::size_t i = 0; i < N; ++i) text[i] = t[i];
  }
  [[nodiscard]] constexpr bool operator==(const char* other) const {
    for (std::size_t i = 0; i < N; ++i) {
      if (text[i] != other[i]) return false;
    }
    return true;
  }
};

namespace detail {

// The place of a parameter among those of its scope, -1 if there is none.
template <std::size_t N, std::size_t P>
consteval int place(const Parameter (&parameters)[P], const Name<N>& name, bool global) {
  int at = 0;
  for (const Parameter& p : parameters) {
    if ((p.scope == Scope::global) != global) continue;
    if (name == p.name) return at;
    ++at;
  }
  return -1;
}

}  // namespace detail

template <class M>
class Given {
 public:
  explicit Given(const Rule& rule) : rule_(rule) {}

  template <Name name>
  [[nodiscard]] double at() const {
    constexpr int place = detail::place(M::kParameters, name, true);
    static_assert(place >= 0, "the method has no such parameter of the whole tensor");
    return rule_.globals[place];
  }
  template <Name name>
  [[nodiscard]] double at(int source) const {
    constexpr int place = detail::place(M::kParameters, name, false);
    static_assert(place >= 0, "the method has no such parameter of a source");
    return rule_.locals[source][place];
  }
  template <Name name>
  [[nodiscard]] bool on() const {
    return at<name>() != 0.0;
  }

 private:
  const Rule& rule_;
};

// ---- what is known when the formula runs --------------------------------------------------------

// Facts in place: of the whole tensor, and, by source, what its lens and what the formula needs.
template <class Lens, class Combine>
struct View {
  typename Combine::Facts* whole = nullptr;
  typename Lens::Facts* lens = nullptr;
  typename Combine::Source* source = nullptr;
  int sources = 0;
};
// The same to read, on host and device.
template <class Lens, class Combine>
struct Known {
  const typename Combine::Facts* whole = nullptr;
  const typename Lens::Facts* lens = nullptr;
  const typename Combine::Source* source = nullptr;
  int sources = 0;
};

namespace detail {

// Where the parts of facts lie, each at a multiple of 16 bytes.
template <class Lens, class Combine>
struct Layout {
  static_assert(__is_trivially_copyable(typename Combine::Facts) &&
                __is_trivially_copyable(typename Lens::Facts) &&
                __is_trivially_copyable(typename Combine::Source));
  INGOT_HD static std::size_t aligned(std::size_t bytes) { return (bytes + 15) / 16 * 16; }
  INGOT_HD static std::size_t lens() { return aligned(sizeof(typename Combine::Facts)); }
  INGOT_HD static std::size_t source(int sources) {
    return lens() + aligned(static_cast<std::size_t>(sources) * sizeof(typename Lens::Facts));
  }
  INGOT_HD static std::size_t bytes(int sources) {
    return source(sources) +
           aligned(static_cast<std::size_t>(sources) * sizeof(typename Combine::Source));
  }
};

}  // namespace detail

// Facts as kernels find them: `data` begins at a multiple of 16 bytes.
template <class Lens, class Combine>
[[nodiscard]] INGOT_HD Known<Lens, Combine> known(const std::byte* data, int sources) {
  using Layout = detail::Layout<Lens, Combine>;
  return {reinterpret_cast<const typename Combine::Facts*>(data),
          reinterpret_cast<const typename Lens::Facts*>(data + Layout::lens()),
          reinterpret_cast<const typename Combine::Source*>(data + Layout::source(sources)),
          sources};
}

// ---- what a formula sees of an element ----------------------------------------------------------

// Most facts of one line (a row or a column).
inline constexpr int kLineFacts = 4;

// An element's surroundings, beside the sources.
template <class T>
struct At {
  T base{};                      // the base, or 0
  std::uint64_t index = 0;       // in the whole tensor
  double line[kLineFacts] = {};  // facts of the element's line
};

// What a combine reports of an element.
struct Note {
  bool conflict = false;  // kept, non-zero terms disagree in sign
};

// Base of the parts that need no facts.
struct None {};

template <class... T>
struct List {
  static constexpr int size = sizeof...(T);
};

// ---- passes: what is measured before the formula runs -------------------------------------------

enum class Pass : std::uint8_t {
  fold,   // sums over the tensor
  lines,  // sums over each line; they become facts of the line
  order,  // exact order statistics of integer keys
};

// What a line is. Row r has the elements of which the last index runs; column c those of which the
// first index runs.
enum class Lines : std::uint8_t { none, rows, columns };

// How many elements lie between the neighbours of a line, and how many lines there are.
struct LineShape {
  Lines lines = Lines::none;
  std::uint64_t width = 1;  // rows: elements of a row; columns: how many columns there are
  std::uint64_t count = 0;

  [[nodiscard]] INGOT_HD std::uint64_t line(std::uint64_t index) const {
    return lines == Lines::rows ? index / width : index % width;
  }
};

[[nodiscard]] inline LineShape line_shape(const Rule& rule, Lines lines) {
  if (lines == Lines::rows) {
    const std::uint64_t width = rule.width == 0 ? rule.elements : rule.width;
    return {lines, width == 0 ? 1 : width, width == 0 ? 0 : rule.elements / width};
  }
  if (lines == Lines::columns) {
    const std::uint64_t height = rule.height == 0 ? rule.elements : rule.height;
    const std::uint64_t width = height == 0 ? 0 : rule.elements / height;
    return {lines, width == 0 ? 1 : width, width};
  }
  return {};
}

// The k-th largest key, and the index of the last element with it that is among the k.
struct Selection {
  std::int32_t threshold = 0;
  std::uint64_t cut = 0;
};

// Most ranks of one stream of keys that one pass asks for.
inline constexpr int kRanks = 4;

// Defaults of a pass.
struct Always {
  template <class V>
  [[nodiscard]] static bool wanted(const Rule&, const V&) {
    return true;
  }
};

// Names the facts of a tensor that were measured, for the receipt, and takes them back from one. A
// number that comes back is the same to the bit.
class Teller {
 public:
  virtual ~Teller() = default;
  // `source` is -1 for a fact of the whole tensor; `place` its place in a list of that name, -1 for
  // a name that has one number. False if a number that should come back is not there.
  virtual bool number(const char* name, int source, int place, double& value) = 0;
  virtual bool key(const char* name, int source, std::int32_t& key) = 0;  // shown as |x|
  virtual bool count(const char* name, int source, std::uint64_t& value) = 0;
};

}  // namespace ingot::math
