// The machine that reads a pickle as data: opcodes of a closed list go in, plain values come out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/shape.hpp"
#include "store/zip.hpp"

namespace ingot::pickle {

// The kind of a value, and the meaning of its fields.
enum class Kind : std::uint8_t {
  none,
  boolean,
  integer,  // number
  opaque,   // a scalar that no tensor needs: a float, bytes, a huge integer, a numpy scalar
  text,     // index: offset in the pickle; number: bytes
  tuple,    // index into Tree::groups
  list,     // the same
  dict,     // the same; keys and values alternate
  ordered,  // the same, made by OrderedDict
  global,   // index into kGlobals
  storage,  // internal to the machine
  tensor,   // index into Tree::tensors
};

struct Value {
  Kind kind = Kind::none;
  std::uint32_t index = 0;
  std::int64_t number = 0;
};

// "a list", for messages.
[[nodiscard]] std::string_view word(Kind kind) noexcept;

[[nodiscard]] inline bool is_dict(Kind kind) noexcept {
  return kind == Kind::dict || kind == Kind::ordered;
}

struct Tensor {
  Dtype dtype = Dtype::u8;
  Shape shape;
  std::vector<std::uint64_t> strides;  // empty if dense
  std::uint64_t offset = 0;            // in the file
};

// What a pickle describes. Values are flat and refer to each other by index, so that nothing that
// walks or destroys them recurses, whatever a pickle nests or ties into a knot.
struct Tree {
  std::string_view bytes;  // the pickle; strings are parts of it
  Value top;
  std::vector<std::vector<Value>> groups;
  std::vector<Tensor> tensors;

  [[nodiscard]] std::string_view text(const Value& value) const noexcept {
    return bytes.substr(value.index, static_cast<std::size_t>(value.number));
  }
  [[nodiscard]] const std::vector<Value>& group(const Value& value) const noexcept {
    return groups[value.index];
  }
};

// Carries out the pickle `bytes` of the file `path`, with the storages that lie in `members` under
// `folder`. The tree points into `bytes`. Throws Error{format} through refuse().
[[nodiscard]] Tree execute(const std::string& path, std::string_view bytes,
                           const std::vector<Member>& members, const std::string& folder);

// Error{format}: "PATH: the pickle WHAT", that nothing was executed, and the remedy.
[[noreturn]] void refuse(const std::string& path, std::string_view what);

}  // namespace ingot::pickle
