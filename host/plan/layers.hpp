// The kinds of a model's layers as config.json tells them, and how it tells them of layers in
// another order.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "plan/problems.hpp"

namespace ingot::plan {

// A layer of a model, by the model's index.
struct Origin {
  std::uint32_t model = 0;
  std::uint64_t layer = 0;
};

// What one config.json says of one stack of layers.
struct Account {
  const nlohmann::ordered_json* object = nullptr;  // that counts the layers; null: there is none
  std::string type;                                // model_type: its own, else the document's
  std::uint64_t count = 0;                         // layers, by the key that counts them
  std::string shown;                               // the model, for messages
};

// Layers in a new order, and the tensors that each has.
struct Order {
  std::vector<Origin> layers;  // one per output layer
  // By output layer: the others of a merge of layers, whose kinds ought to be the same.
  std::vector<std::vector<Origin>> partners;
  // Names and shapes of a layer's tensors, by a number for each set that occurs: of the output's
  // layers and of the donor's. Empty: nothing is known of them.
  std::vector<std::uint32_t> sets;
  std::vector<std::uint32_t> donor_sets;
  std::vector<std::vector<std::string>> members;  // of each set, sorted
  // Layers of the donor behind those counted (multi-token prediction) that the output leaves out.
  std::uint64_t left = 0;
  std::vector<std::string> joined;  // tensors outside the layers that have a part for each
  std::string counter;  // the key that counts these layers, as "encoder_layers"; empty: none
};

// True for an object of config.json that says more of the same layers: not another model's, not a
// table of its own.
[[nodiscard]] bool holds_layers(const std::string& key, const nlohmann::ordered_json& value);

// Rewrites `object`, a copy of the donor's (`accounts[donor].object`), so that what it says of
// layers holds for the new order: lists, texts and maps by layer, lists of layer numbers, counts
// and periods. What cannot be said is an error, or under `allow` a warning;
// then true is returned. `rearranged` is set where a list, a text or a map was.
[[nodiscard]] bool rearrange(nlohmann::ordered_json& object, std::span<const Account> accounts,
                             std::uint32_t donor, const Order& order, bool allow,
                             Problems& problems, bool& rearranged);

// Makes what `object`, a copy of the donor's, says of layers for multi-token prediction hold for
// the `layers` that the output has: `giver` is what the config of another model, `from`, says of
// them; null: they are the donor's. Warns of every key that it changes.
void count_ahead(nlohmann::ordered_json& object, const nlohmann::ordered_json* giver,
                 std::uint64_t layers, const std::string& shown, const std::string& from,
                 Problems& problems);

// Warns where two models say different kinds of the same layer, which a plain merge mixes.
void compare_layers(const Account& donor, const Account& other, std::uint64_t layers,
                    Problems& problems);

}  // namespace ingot::plan
