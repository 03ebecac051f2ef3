// The closed list of merge methods: for each its parameters, the facts it needs, its formula.
//
// A new method is one header beside this file, one entry in kMethods, one golden.
#pragma once

#include "ingot/math/rule.hpp"

namespace ingot::math {

enum class Kind : std::uint8_t { real, boolean };

// Whose value a parameter is: one per output tensor; one per source but the base; one per input, the
// base included.
enum class Scope : std::uint8_t { global, source, every };

struct Parameter {
  const char* name;
  Kind kind;
  Scope scope;
  bool required;
  double fallback;   // where not required
  double low, high;  // inclusive range; a value outside, or NaN, is an error
};

// How a method uses base_model.
enum class Base : std::uint8_t {
  ignored,  // an ordinary input (linear), or none (passthrough)
  pivot,    // required, one of exactly two inputs, at t = 0 (slerp)
  origin,   // required; the other inputs become task vectors relative to it
};

struct Method {
  const char* name;
  Base base;
  int least, most;             // number of inputs, the base not counted for Base::origin
  const Parameter* parameters; // globals and locals in the order of Rule::globals / Rule::locals
  int parameter_count;
  Formula formula;
  Mask mask;
  Vote vote;
  const char* paper;           // title and year, for the model card
};

// Magnitude selection of one source: keep key > threshold, and key == threshold up to index cut.
struct Selection {
  std::uint32_t threshold = 0;
  std::uint64_t cut = 0;
  bool all = true;  // every element is kept; threshold and cut mean nothing
};

// What must be measured before apply.
struct Needs {
  bool select = false;  // a Selection of every source whose kept() is neither 0 nor all elements
  int folds = 0;        // sums over the tensor, by terms(), after the selection is known
};

// Implemented below the list of methods:
//   int find(name)                        index into kMethods, -1 if absent
//   const Method& method(int index)
//   Needs needs(const Rule&)
//   std::uint64_t kept(const Rule&, int source)     k of a selecting mask (P3): trunc(density * n), ...
//   Facts prepare(const Rule&, const Selection*)    all that is known before the folds
//   void conclude(const Rule&, const double* folds, Facts&)   after them
//   template <class T> Outcome<T> evaluate(const Rule&, const Facts&, const float* x, float base, index)
//                                         one element, the same text in float (engine) and double (verify)

}  // namespace ingot::math
