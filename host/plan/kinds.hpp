// What keys of config.json say of layers: a closed table of keys, one of the rules by which classes
// tell kinds from layer numbers, and the reading of both.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <nlohmann/json.hpp>

#include "plan/layers.hpp"

namespace ingot::plan::kinds {

using Json = nlohmann::ordered_json;
using Layers = std::vector<std::uint64_t>;
using Kinds = std::vector<Json>;  // one for each layer asked for; empty: nothing is said

// Meanings that keys have wherever they stand beside the layer count or one object deeper.
enum class Meaning : std::uint8_t {
  by_layer,  // a list, a text or a map with something for every layer; one value: all have it
  numbers,   // a list (or a text with commas) of layer numbers, from 0
  from_one,  // the same, from 1
  sources,   // by layer, and what it says is the number of a layer
  cycle,     // a list of kinds that is repeated
  extra,     // a count of layers behind the others
  extras,    // what is said of those
  nothing,   // nothing of layers
};

// The meaning of a key that the table has.
[[nodiscard]] std::optional<Meaning> meaning_of(std::string_view key);

// Rules: the kind of layer i of n by numbers a, b and c.
enum class Form : std::uint8_t {
  all,             // one kind
  every,           // 1 where (i + 1) % a == 0
  every_or_last,   // the same, and the last
  every_or_sole,   // as `every`; the last where else there would be none
  every_from_0,    // 1 where i % a == 0
  offset,          // 1 where i % a == b
  after,           // 1 where i >= a
  after_every,     // 1 where i >= a and i % b == 0
  before,          // 1 where i < a
  last,            // 1 where i >= n - a
  span,            // 1 where (i + 1) % a == 0 and b <= i <= c; c < 0: no end
  even_before,     // 1 where i is even and i < a
  backward,        // 1 where (n - 1 - i) % a == 0
  skipping,        // 1 where max(i - b + 1, 0) % a == 0
  prefixed,        // i < a: 1 where (i + 1) % b == 0; then 1 where (i - a + 1) % c == 0
  not_first,       // 1 where i > 0 and i % a == 0
  first_or_every,  // 1 where i == 0 or (i + 1) % a == 0
  second_every,    // 1 where i == 0 or (i - 1) % a == 0
  odd_after,       // 1 where i >= a and i is odd
  fourths,         // 1 but where i < 2, i % 4 == 1 or, with a, i is the last
  thirds,          // 2 where i % 4 == 2; 1 where i % 4 == 0 and i > 0
  trio,            // 1 where i is 2, or i > 2 and (i - 3) % a == b
  ten,             // 1 where n > 10 and i < 10
};

// Numbers and gates: "key=7" where the class takes 7 in the key's absence, "key" where it needs
// it, "=7" where no key sets it.
struct Rule {
  std::string_view types;  // model types; empty: of any model that has the first key
  std::string_view list;   // the key whose list decides instead, and can be written; empty: none
  std::string_view words;  // of that list, kind 0 first; "#": it lists the layers of kind 1
  std::string_view names;  // of kind 1, for messages
  Form form;
  std::array<std::string_view, 3> numbers = {};
  std::string_view gates = {};    // all true, or every layer is of kind 0
  std::string_view instead = {};  // keys whose presence puts the rule out of force
};

// All rules, those of no type last.
[[nodiscard]] std::span<const Rule> rules();
// True if `any`, a rule of no type, would say again what `own`, a rule of a class, says.
[[nodiscard]] bool same_matter(const Rule& own, const Rule& any);

// Types whose classes take the last layer for one of full attention whatever the list says.
[[nodiscard]] bool full_last(std::string_view type);
// Types whose classes read decoder_sparse_step and mlp_only_layers.
[[nodiscard]] bool sparse_steps(std::string_view type);
// True if `word` is one of the words of `list`; "*_x", "x_*" and "*x*" are all that end, begin or
// have a part like that.
[[nodiscard]] bool among(std::string_view list, std::string_view word);

// A number or gate of a rule: its key, and what holds without it.
struct Number {
  std::string_view key;
  std::optional<std::int64_t> standard;
};

[[nodiscard]] Number number_of(std::string_view text);
// The value of a key in an object; nullptr if it is missing or null.
[[nodiscard]] const Json* held(const Json& object, std::string_view key);
// The value of a number: as set, else its default; nullopt if there is neither, or if it is not a
// number.
[[nodiscard]] std::optional<std::int64_t> value_of(const Json& object, const Number& number);

using Numbers = std::array<std::int64_t, 3>;

[[nodiscard]] std::optional<Numbers> numbers_of(const Rule& rule, const Json& object);
[[nodiscard]] bool divides(std::int64_t period, std::int64_t i);
// The kind of layer i of n.
[[nodiscard]] int kind(Form form, std::int64_t i, std::int64_t n, const Numbers& k);
// The word of a kind as JSON: text, or a number where it looks like one.
[[nodiscard]] Json word_of(std::string_view words, int kind);

// Whether the gates of a rule are open.
[[nodiscard]] bool gated(const Json& object, std::string_view gates);
// Whether a key is there that puts the rule out of force.
[[nodiscard]] bool replaced(const Rule& rule, const Json& object);
// The list that decides in a rule's place, or null.
[[nodiscard]] const Json* deciding(const Rule& rule, const Json& object);

// The layer numbers that a list, or a text with commas, holds; nothing if it holds anything else.
[[nodiscard]] std::optional<std::unordered_set<std::int64_t>> numbers_in(const Json& value);
// True for a map whose keys are layer numbers.
[[nodiscard]] bool numbered(const Json& value);

// The values for layers in a value, a rule or a config.
[[nodiscard]] Kinds read_numbers(const Json& value, std::int64_t first, const Layers& layers);
[[nodiscard]] Kinds read_by_layer(const Json& value, const Layers& layers, bool spread);
[[nodiscard]] Kinds read_cycle(const Json& value, const Layers& layers);
[[nodiscard]] Kinds read_groups(const Json& value, const Layers& layers);
[[nodiscard]] Kinds read_rule(const Rule& rule, const Json& object, std::uint64_t count,
                              const Layers& layers);
[[nodiscard]] Kinds read(const Rule& rule, const Account& account, const Layers& layers);
[[nodiscard]] Kinds read_sparse(const Account& account, const Layers& layers);

}  // namespace ingot::plan::kinds
