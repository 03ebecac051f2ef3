// PEFT adapters: what an adapter folder holds, tensor by tensor, in terms of the base model.
//
// Only the configuration and headers are read. Nothing here knows the base: which of its tensors a
// path means is the plan's to find out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// How the tensors of a module change its weight. DoRA is `lora` with a magnitude.
enum class Family : std::uint8_t {
  lora,
  adalora,
  loha,
  lokr,
  ia3,
  oft,
  boft,
  vera,
  miss,
  hra,
  none,  // nothing but whole tensors and rows (LN tuning, trainable tokens alone)
};

// The word of configurations: "LORA", "IA3", ...
[[nodiscard]] std::string_view name(Family family) noexcept;

// The part that one tensor of a module plays.
enum class Piece : std::uint8_t {
  a,
  b,          // LoRA and AdaLoRA factors; of an embedding too (A is rank x vocabulary there)
  bias,       // of lora_B
  magnitude,  // DoRA
  e,          // AdaLoRA's singular values
  w1,
  w1_a,
  w1_b,
  w2,
  w2_a,
  w2_b,
  t1,
  t2,  // LoHa (hada_*) and LoKr (lokr_*)
  l,   // IA3
  r,   // OFT: oft_R; BOFT: boft_R
  s,   // boft_s
  lambda_b,
  lambda_d,
  shared_a,
  shared_b,  // VeRA; the shared ones belong to all modules
  block,     // MiSS
  u,         // HRA
};

struct Factor {
  Piece piece = Piece::a;
  std::uint32_t entry = 0;  // index into the checkpoint's entries()

  friend bool operator==(const Factor&, const Factor&) = default;
};

// One adapted module or parameter of the base model.
struct Adapted {
  std::string path;           // of the module inside the base model, without any prefix of PEFT
  std::uint32_t nesting = 0;  // `.base_layer` levels before the tail: which of several parameters
  bool embedding = false;     // lora_embedding_*, oft_embedding_*
  bool inner = false;         // inside a wrapped module: out_proj of a MultiheadAttention
  // For `target_parameters`: the possible names, the likeliest first (only the base's shapes
  // decide), and the number of matrices in the factors (the experts; 1 for two-dimensional
  // parameters).
  std::vector<std::string> parameters;
  std::uint64_t experts = 1;
  std::vector<Factor> factors;  // by piece, each once
  // Groups of a convolution under LoRA. A works on all inputs; the outputs of group g use rank /
  // groups of A's rows, from g * rank / groups on, and B has columns for these rows only.
  std::uint64_t groups = 1;
  std::uint64_t rank = 0;  // as the shapes say, of one expert; 0 for families without one
  double alpha = 0;
  double scaling = 1;  // what the product is multiplied by, the user's weight aside

  [[nodiscard]] std::optional<std::uint32_t> find(Piece piece) const noexcept;  // its entry
};

// A tensor of the base that the adapter brings in full.
struct Saved {
  enum class Why : std::uint8_t { module, bias, embedding };
  std::string name;  // "model.embed_tokens.weight"
  std::uint32_t entry = 0;
  Why why = Why::module;
};

// Rows of an embedding that the adapter replaces.
struct Tokens {
  std::string path;  // of the embedding's module
  std::vector<std::uint64_t> rows;
  std::uint32_t entry = 0;  // [rows.size(), width]
};

// A tensor that means nothing for the weights, and why.
struct Idle {
  std::uint32_t entry = 0;
  std::string reason;
};

// What adapter_config.json says, as far as weights depend on it.
struct AdapterConfig {
  std::string type;  // peft_type: "LORA"
  Family family = Family::lora;
  std::string version;         // peft_version; empty: 0.17 or older
  std::string base, revision;  // base_model_name_or_path; may be empty
  std::string task;            // task_type; may be empty
  double rank = 8;             // `r`; init_r of AdaLoRA
  double alpha = 8;
  bool rslora = false;
  bool dora = false;
  bool fan_in_fan_out = false;
  bool tying = false;         // ensure_weight_tying
  bool waived = false;        // fields that are not known were passed over
  std::string bias = "none";  // none, all, lora_only and the like
  std::vector<std::pair<std::string, double>> rank_pattern, alpha_pattern;  // in the file's order
  // A list, or one regular expression or word ("all-linear"); both empty: null.
  std::vector<std::string> targets;
  std::string target_pattern;
  std::vector<std::string> excluded;
  std::string excluded_pattern;
  std::vector<std::int64_t> layers;         // layers_to_transform
  std::vector<std::string> layer_patterns;  // layers_pattern
  std::vector<std::string> modules_to_save;
  std::vector<std::string> parameters;   // target_parameters
  std::vector<std::string> feedforward;  // IA3; a list, or one expression
  std::string feedforward_pattern;
  std::vector<std::pair<std::int64_t, std::int64_t>> replication;  // layer_replication
  // trainable_token_indices: module name to rows; an empty name is the input embedding.
  std::vector<std::pair<std::string, std::vector<std::uint64_t>>> tokens;

  // What the initialisation takes away from the base when PEFT loads the adapter.
  enum class Residual : std::uint8_t { none, pissa, olora };
  Residual residual = Residual::none;

  // OFT and BOFT.
  bool cayley_neumann = true;  // use_cayley_neumann
  std::uint32_t terms = 5;     // num_cayley_neumann_terms
  bool constrained = false;    // coft, with
  double eps = 6e-5;
  bool block_share = false;
  // HRA.
  bool orthonormal = false;  // apply_GS
  // MiSS: init_weights.
  enum class Tiling : std::uint8_t { rows, mini, bat };
  Tiling tiling = Tiling::rows;

  std::string text;  // the file, verbatim
};

// An adapter's tensors, every one accounted for: a factor, saved, tokens or idle.
struct Adapter {
  Checkpoint checkpoint;  // of the weight file
  std::string folder;
  AdapterConfig config;
  std::vector<Adapted> modules;  // sorted by path (natural_less), then nesting
  std::vector<Factor> shared;    // tensors of all modules (VeRA's projections)
  std::vector<Saved> saved;
  std::vector<Tokens> tokens;
  std::vector<Idle> idle;
  bool extra = false;  // weights beside its own were left out (AdapterOptions::allow_extra)
  std::vector<std::string> warnings;
};

struct AdapterOptions {
  bool allow_unknown = false;  // config fields that are not known: a warning instead of an error
  bool allow_extra = false;    // weight files beside the adapter's: the same
};

// Reads a folder of PEFT: adapter_config.json and adapter_model.safetensors or, without it,
// adapter_model.bin. `shown` is the adapter's name in messages and receipts.
//
// Throws Error{format|shape|missing|usage} naming file, tensor or field, what was expected and
// found, and for what cannot be taken from files alone the way round it.
[[nodiscard]] Adapter open_adapter(Disk& disk, const std::string& folder, std::string shown,
                                   const AdapterOptions& options = {});

// The same from parts that are at hand. Only headers of `checkpoint` are looked at.
[[nodiscard]] Adapter read_adapter(Checkpoint checkpoint, std::string folder,
                                   std::string_view config, std::string shown,
                                   const AdapterOptions& options = {});

// The configuration alone. Throws Error{format|usage}.
[[nodiscard]] AdapterConfig parse_adapter_config(std::string_view text, const std::string& shown,
                                                 const AdapterOptions& options,
                                                 std::vector<std::string>& warnings);

}  // namespace ingot
