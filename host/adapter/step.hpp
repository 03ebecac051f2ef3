// One effect with its factors at hand, ready to run over elements of the base.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "adapter/change.hpp"
#include "adapter/tracked.hpp"
#include "ingot/plan.hpp"

namespace ingot {

// Consecutive elements of the tensor, in row-major order: whole rows where the step asks for them.
template <class T>
struct Panel {
  std::uint64_t first = 0;
  std::span<T> values;      // as earlier steps left them
  std::span<const T> base;  // as stored; empty unless Step::looks_back()
};

class Step {
 public:
  virtual ~Step() = default;

  // Changes values. Called from several threads at once.
  virtual void run(const Panel<float>& panel) const = 0;
  virtual void run(const Panel<Single>& panel) const = 0;

  // For low-rank products over the whole tensor: the backend's form, so that several are added
  // in one sweep.
  [[nodiscard]] virtual const Factors* factors() const { return nullptr; }
  // Rows or columns kept as they were because the formula has no value there.
  [[nodiscard]] virtual std::uint64_t skipped() const { return 0; }
};

// A step whose two run() are one template, `template <class T> void apply(const Panel<T>&) const`.
template <class Self>
class Formula : public Step {
 public:
  void run(const Panel<float>& panel) const final { static_cast<const Self&>(*this).apply(panel); }
  void run(const Panel<Single>& panel) const final { static_cast<const Self&>(*this).apply(panel); }
};

// The context in which an effect becomes a step.
struct Scene {
  const Plan* plan = nullptr;
  Backend* backend = nullptr;  // null: plain loops
  const Located* base = nullptr;
  bool fresh = true;  // no step before this one
};

// A group of families.
struct Kit {
  // Throws Error{shape|usage|missing|dtype} if the effect's parts do not fit the base.
  void (*check)(const Located& base, const Effect& effect);
  // Host bytes of a step, at most.
  std::uint64_t (*memory)(const Located& base, const Effect& effect);
  std::unique_ptr<Step> (*make)(const Scene& scene, const Effect& effect);
  bool whole = false;       // runs on whole rows of the tensor as stored
  bool looks_back = false;  // reads Panel::base unless Scene::fresh
};

// The kit of an effect. Throws Error{usage} for a family without one.
[[nodiscard]] const Kit& kit_of(const Located& base, const Effect& effect);

extern const Kit kProduct;                // product.cpp: LoRA, AdaLoRA, VeRA
extern const Kit kResidual;               // residual.cpp: the base under PiSSA and OLoRA
extern const Kit kDora, kDoraColumns;     // dora.cpp
extern const Kit kScale, kBias, kTokens;  // scale.cpp: IA3, biases, trained tokens
extern const Kit kHadamard;               // hadamard.cpp: LoHa
extern const Kit kKronecker;              // kronecker.cpp: LoKr
extern const Kit kOft, kBoft, kHra;       // rotation.cpp
extern const Kit kMiss, kBat;             // miss.cpp

// A tensor as a matrix: its first dimension by all others.
struct Matrix {
  std::uint64_t height = 0, width = 0;
};
[[nodiscard]] Matrix matrix(const Shape& shape);

// A part by its piece; Error{missing} names adapter and tensor if it is not there.
[[nodiscard]] const Located& part(const Located& base, const Effect& effect, Piece piece);
// All its values, by row. Throws Error{format} at the first NaN or infinity.
[[nodiscard]] std::vector<float> load(const Plan& plan, const Effect& effect, const Located& part);
// The piece's name in PEFT's files.
[[nodiscard]] std::string_view word(Piece piece) noexcept;
// Error{shape} in one sentence: the part's name and shape, what was expected.
[[noreturn]] void misfit(const Located& base, const Effect& effect, const Located& part,
                         const std::string& expected);

}  // namespace ingot
