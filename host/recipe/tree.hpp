// YAML text as a tree of plain nodes with the line of each. Knows the syntax, not the recipe.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/recipe.hpp"

namespace ingot {

// Bounds on a recipe file. Real ones stay below a tenth of each.
inline constexpr std::size_t kRecipeBytes = std::size_t{1} << 20;
inline constexpr std::uint64_t kRecipeNodes = std::uint64_t{1} << 18;  // with aliases written out
inline constexpr std::size_t kRecipeDepth = 32;
inline constexpr std::size_t kRecipeKey = 256;  // bytes; an added token may be a key

struct Node {
  enum class Kind { null, scalar, list, map };
  struct Pair {
    std::string key;
    Mark mark;  // of the key
    const Node* value = nullptr;
  };

  Kind kind = Kind::null;
  bool plain = false;  // a scalar without quotes, whose type follows from its text
  std::string text;    // of a scalar
  std::vector<const Node*> items;
  std::vector<Pair> pairs;  // in file order, each key once; merge keys (`<<`) are applied
  Mark mark;
};

// One parsed document. An alias points at the node of its anchor, so nodes may be shared.
class Tree {
 public:
  // Throws Error{usage} with file and line for anything that is not one well-formed document within
  // the bounds above: bytes that are not UTF-8, control characters, non-scalar keys, unknown or
  // recursive aliases, several documents, too much depth or too many nodes. Keys given twice (the
  // first counts) and custom tags are remarked, and reading goes on.
  Tree(std::string_view text, const std::string& file, std::vector<Remark>& remarks);

  [[nodiscard]] const Node& root() const noexcept { return *root_; }

 private:
  std::deque<Node> nodes_;  // stable addresses
  const Node* root_ = nullptr;
};

// Throws Error{usage} with "position: message".
[[noreturn]] void fault(const std::string& file, Mark mark, const std::string& message);

}  // namespace ingot
