// config.json: what a plan reads from it, and the edited copy that the output gets.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "plan/layers.hpp"
#include "plan/problems.hpp"
#include "plan/roles.hpp"

namespace ingot::plan {

// Where a key stands: in the document itself or in one of its sub-configs.
struct Place {
  std::string object;  // "text_config", "thinker_config.text_config"; empty: the document
  std::string key;     // "num_hidden_layers"
};

struct LayerCount {
  Place place;
  std::uint64_t value = 0;
};

struct Edits;
struct Restacked;

// One model's config.json. Key order, and numbers that JSON lacks but Python writes (NaN,
// Infinity), are kept by reading and writing.
class Config {
 public:
  Config() = default;
  // `shown` is the model's name in messages. Empty text gives an empty config. Throws
  // Error{format}.
  Config(std::string_view text, const std::string& shown);

  [[nodiscard]] bool present() const noexcept { return document_.is_object(); }

  [[nodiscard]] const nlohmann::ordered_json& document() const noexcept { return document_; }

  // The first class of `architectures`, or empty.
  [[nodiscard]] std::string architecture() const;
  // The method of a quantised checkpoint ("fp8", "gptq", "bitsandbytes"), or empty.
  [[nodiscard]] std::string quantised() const;
  // The layer count of a module whose weights hold `stored` layers: the key that says `stored`,
  // else the first that says anything.
  [[nodiscard]] std::optional<LayerCount> layers(std::string_view module, const Family* family,
                                                 std::uint64_t stored) const;
  // tie_word_embeddings, if the config or one of its text configs says; true if any does.
  [[nodiscard]] std::optional<bool> tied() const;
  // What the config says of the layers of a model with `layers` of them, by the object of the
  // place, or where the document has no such object by the one that counts layers.
  [[nodiscard]] Account account(const Place& count, std::uint64_t layers,
                                const std::string& shown) const;
  // The value at a place, or null.
  [[nodiscard]] const nlohmann::ordered_json* find(const Place& place) const;
  // The document with edits, ready to be written. Adds warnings for what may need a hand.
  [[nodiscard]] std::string edited(const Edits& edits, Problems& problems) const;

 private:
  void restack(nlohmann::ordered_json& out, const Edits& edits, const Restacked& stack,
               Problems& problems) const;
  void count_ahead(nlohmann::ordered_json& out, const Edits& edits, Problems& problems) const;

  nlohmann::ordered_json document_;
  bool ascii_ = true;  // non-ASCII text was escaped in the file
};

// A module whose layers were rearranged.
struct Restacked {
  Place count;                        // of the donor; an empty key: not known
  std::uint64_t old_count = 0;        // the donor's
  Order order;                        // the output's layers
  std::vector<std::uint64_t> depths;  // layers of every model; empty: as many as the donor has
};

// Layers for multi-token prediction.
struct Ahead {
  bool known = false;                 // some model of the recipe has such layers
  std::uint64_t layers = 0;           // that the output has
  std::optional<std::uint32_t> from;  // the view whose config describes them: the donor if it can
};

// What differs between the donor's config and the output's.
struct Edits {
  std::string dtype;     // word of the output's dtype; empty: as it is
  bool uniform = false;  // the whole output was asked to have it: sub-configs follow
  std::vector<Restacked> stacks;
  Ahead ahead;
  Place text;  // object that holds the text model's keys (its key is unused)
  std::optional<std::uint64_t> vocabulary;  // rows, where they differ from the donor's
  std::uint64_t old_vocabulary = 0;         // the donor's
  std::optional<bool> tied;                 // where the output must say so
  std::span<const Config> models;           // by index of Origin::model
  std::string shown;                        // of the donor, for messages
  std::uint32_t donor = 0;                  // its index among `models`
  std::vector<std::string> names;           // of the models, for messages; may be short
  bool allow_mismatch = false;              // --allow-layer-mismatch
  bool* mismatched = nullptr;               // set where that was needed
};

}  // namespace ingot::plan
