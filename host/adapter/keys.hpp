// Names of an adapter's tensors taken apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ingot/adapter.hpp"

namespace ingot::adapter {

// The meaning of a tensor's name.
struct Key {
  enum class Kind : std::uint8_t {
    factor,    // `piece` of the module `path`
    shared,    // `piece` of all modules
    tokens,    // rows of the embedding `path`
    saved,     // `parameter` of the module `path`, marked as modules_to_save
    original,  // the base's copy of such a module
    idle,      // of training only
    refused,   // `why` says what it is
    plain,     // `parameter` of the module `path`, as a base has it; `why` may say whose name it is
  };
  Kind kind = Kind::plain;
  std::string path;
  std::string parameter;  // "weight"; may have dots where a saved module has modules of its own
  Piece piece = Piece::a;
  bool embedding = false;     // lora_embedding_A
  bool inner = false;         // `.base_layer` inside the path
  std::uint32_t nesting = 0;  // `.base_layer` levels at its end
  std::string why;
};

// Takes a name apart by the grammar of `family`. Never throws: an impossible name is Kind::refused.
[[nodiscard]] Key parse_key(std::string_view name, Family family);

// Parameters that hold a matrix of every expert, in the order in which modules define them: PEFT
// wraps the first one innermost. The place of a name there; kExperts for any other.
inline constexpr std::ptrdiff_t kExperts = 7;
[[nodiscard]] std::ptrdiff_t place_of(std::string_view parameter);

// The word that stands for a piece in tensor names: "lora_A".
[[nodiscard]] std::string word(Piece piece, Family family);

}  // namespace ingot::adapter
