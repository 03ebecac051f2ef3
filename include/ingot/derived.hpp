// Operands that are computed instead of read as they lie: a base tensor under its adapters, factors
// of a decomposition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ingot {

struct Plan;
class Backend;
class Checkpoint;

// A tensor that computed values depend on beside the operand's own: index into Plan::models and
// into that checkpoint's entries().
struct Ingredient {
  std::uint32_t model = 0;
  std::uint32_t entry = 0;

  friend auto operator<=>(const Ingredient&, const Ingredient&) = default;
};

// A value in double, and how far f32 arithmetic in the order of the contract may be from it.
struct Truth {
  double value = 0;
  double slack = 0;
  // fill() gives the same bits on every machine and with every library, also where the operand as a
  // whole is of the bounded class.
  bool exact = true;
};

// Work on one operand of one job, made when its tensor's turn comes and dropped after it.
class Working {
 public:
  virtual ~Working() = default;

  // Elements [first, first + values.size()) of the operand in f32. `own` holds the same elements of
  // the operand's own tensor as stored; it is empty where Derived::own() is false. Called from
  // several threads at once; a pure function of its arguments, the same bits on every backend for
  // what is of the exact class.
  virtual void fill(std::uint64_t first, std::span<const std::byte> own,
                    std::span<float> values) = 0;
};

// Work that operands of several jobs share and that is done before their turns come: a
// decomposition gives both factors of a module, and a library may decompose many modules at once.
class Joint {
 public:
  virtual ~Joint() = default;

  // Host bytes of the largest of its results, and of all of them.
  [[nodiscard]] virtual std::uint64_t least() const = 0;
  [[nodiscard]] virtual std::uint64_t most() const = 0;
  // About how much all of it is to compute, as linalg::recombine_work() counts.
  [[nodiscard]] virtual double work() const = 0;
  // It may hold so many bytes of results whose jobs are not under way. Before the first begin().
  virtual void allow(std::uint64_t bytes) = 0;
};

// How an operand is computed. Made by the plan from headers; holds no tensor data.
class Derived {
 public:
  virtual ~Derived() = default;

  // True if the operand's own tensor is an input of every element, so that the engine reads, hashes
  // and hands it over in stored form. False: everything is made of the ingredients.
  [[nodiscard]] virtual bool own() const = 0;

  // All other input tensors. Each is read completely, hashed, and listed in the receipt.
  [[nodiscard]] virtual std::span<const Ingredient> ingredients() const = 0;

  // One JSON object for the receipt: what is computed and its parameters. verify() compares it.
  [[nodiscard]] virtual std::string describe() const = 0;

  // Host bytes that a Working holds while it lives. Counts against the memory ceiling.
  [[nodiscard]] virtual std::uint64_t memory() const = 0;

  // What it shares with others of its plan, or null.
  [[nodiscard]] virtual Joint* joint() const { return nullptr; }

  // Reads the ingredients. Without a backend the plain loops of the second path are used (verify).
  // May throw Error, also for values that no header shows (NaN in a factor).
  [[nodiscard]] virtual std::unique_ptr<Working> begin(const Plan& plan,
                                                       Backend* backend) const = 0;

  // Elements [first, first + count) in double, element by element; `own` are the own tensor's
  // values, or empty. Not called where judge() answers.
  [[nodiscard]] virtual std::vector<Truth> recompute(const Plan& plan, std::uint64_t first,
                                                     std::uint64_t count,
                                                     std::span<const float> own) const = 0;

  // True if fill() gives the same bits on every machine and with every library (the exact class of
  // docs/numbers.md), without a backend as well. False: recompute() has the bounds.
  [[nodiscard]] virtual bool exact() const { return true; }

  // True if some of it is a low-rank product, which PlanOptions::fast_product makes bounded.
  [[nodiscard]] virtual bool products() const { return false; }

  // True if values depend on PlanOptions::seed.
  [[nodiscard]] virtual bool draws() const { return false; }

  // For results that are judged as a whole, not element by element (decompositions): nothing wrong
  // (an empty sentence) or what is wrong with tensor `name` of the folder, or with what found() is
  // told to have been. nullopt: recompute() decides.
  [[nodiscard]] virtual std::optional<std::string> judge(const Plan&, const Checkpoint& /*output*/,
                                                         const std::string& /*name*/,
                                                         const std::string& /*found*/) const {
    return std::nullopt;
  }

  // What the run learnt, as one JSON object for the receipt's entry (errors of a decomposition,
  // share of a delta that survived), or empty. Called after the last fill.
  [[nodiscard]] virtual std::string found(const Working&) const { return {}; }
};

}  // namespace ingot
