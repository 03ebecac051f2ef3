// Operands that are not simply a run of bytes in a file: rows rearranged to a vocabulary, strided
// views of `.bin` files, f64 narrowed on load. And the hashes of input tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <span>
#include <utility>

#include "base/hash.hpp"
#include "base/scan.hpp"
#include "ingot/plan.hpp"

namespace ingot {

[[nodiscard]] const Entry& entry_of(const Plan& plan, std::uint32_t model, std::uint32_t entry);
[[nodiscard]] const Entry& entry_of(const Plan& plan, const Operand& operand);
[[nodiscard]] File& file_of(const Plan& plan, const Operand& operand);

// True if a job's tensor is measured before it is merged: all its inputs are read twice or kept.
[[nodiscard]] bool measured_first(const Job& job);

// True if an operand has a tensor of its own whose elements are brought to it.
[[nodiscard]] inline bool lands(const Operand& operand) {
  return !operand.derived || operand.derived->own();
}

// The element type in which an operand's own tensor lands: what the backend sees, unless the
// operand is derived.
[[nodiscard]] Dtype staged_dtype(const Plan& plan, const Operand& operand);

// Bytes that all inputs of a job take as they land, and what is derived of them.
[[nodiscard]] std::uint64_t input_bytes(const Plan& plan, const Job& job);

// True if the operand's bytes can be taken from its file as they lie. `merging`: they enter a
// formula.
[[nodiscard]] bool dense(const Plan& plan, const Operand& operand, bool merging);

// Writes elements [first, first + out.size() / width) of an operand in staged_dtype; for a copy
// (not `merging`) bytes [first, first + out.size()) of it as stored, in row-major order.
void supply(const Plan& plan, const Operand& operand, bool merging, std::uint64_t first,
            std::span<std::byte> out);

// The receipt hash of a part of a file. `each`, if there is one, gets every block after it was
// hashed, with its place in the part.
[[nodiscard]] Digest hash_part(
    File& file, std::uint64_t offset, std::uint64_t bytes,
    const std::function<void(std::uint64_t, std::span<const std::byte>)>& each = {});

// Receipt hashes of whole input tensors as stored, in row-major order, and their values that are
// not finite: each tensor is read once, however many outputs depend on it. Thread-safe.
class Digests {
 public:
  struct Known {
    Digest digest;
    Count nonfinite;
  };
  using Map = std::map<Ingredient, Known>;
  // Reads a tensor.
  [[nodiscard]] static Known read(const Plan& plan, const Ingredient& tensor);

  // `known`: of tensors that were read already.
  explicit Digests(const Plan& plan, Map known = {}) : plan_(plan), known_(std::move(known)) {}

  [[nodiscard]] Digest of(const Ingredient& tensor) { return know(tensor).digest; }
  [[nodiscard]] Count nonfinite(const Ingredient& tensor) { return know(tensor).nonfinite; }
  // Bytes hashed so far.
  [[nodiscard]] std::uint64_t bytes() const;
  [[nodiscard]] bool knows(const Ingredient& tensor) const;

 private:
  Known know(const Ingredient& tensor);

  const Plan& plan_;
  mutable std::mutex mutex_;
  Map known_;
  std::uint64_t bytes_ = 0;
};

}  // namespace ingot
