// The plan: every output tensor, its bytes' place, its rule and inputs, and every input's fate.
// Built from headers alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ingot/backend.hpp"
#include "ingot/derived.hpp"
#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "ingot/store.hpp"

namespace ingot {

// What a plan is built with. Options that may change bytes stand in the receipt.
struct PlanOptions {
  std::uint64_t seed = 0;
  std::uint64_t shard_bytes = 5'000'000'000;
  std::string dtype;  // overrides the recipe's out_dtype; empty: as the recipe says
  math::Overflow overflow = math::Overflow::saturate;
  bool truncate_embeddings = false;  // --unsafe-truncate-embeddings
  // --fast-product: low-rank products by BLAS or cuBLAS, whose sums depend on library and machine.
  bool fast_product = false;
  bool allow_unknown_keys = false;
  bool ignore_extra_weights = false;  // weights in an adapter's folder beside the adapter
  bool allow_mixed = false;           // --allow-crimes: architectures that differ
  // --allow-layer-mismatch: config.json cannot say which kind each layer is
  bool allow_layer_mismatch = false;
  bool allow_unchanged = false;  // an output equal to an input is not a failure
  bool allow_nonfinite = false;  // results that are not finite though the inputs are
  bool copy_tokenizer = true;
  bool model_card = true;
  // The model card's title; empty: a general one. The program gives the output folder's name.
  std::string title;
  Prefer prefer = Prefer::neither;  // --prefer: of an index and the single file of its name
  // --strict-modules: a module that some models lack is an error. Not in the receipt: it refuses,
  // and changes nothing.
  bool strict_modules = false;
  // Not in the receipt: where relative model paths start, and the run's threads (0: as many as the
  // machine has) and ceiling (0: none), by which a plan tells whether its ranks can be measured.
  std::string root;
  int threads = 0;
  std::uint64_t memory = 0;
};

// Rows of an input matrix rearranged to the output's vocabulary. Row r of the input is the mean (in
// double, summed in the order listed, rounded once to f32) of the listed rows; none means zeros;
// one is a copy. The rows of `averaged` list none and are all one row: the mean of all other rows
// of this matrix (their f32 values, summed in double by rising row, divided by their number,
// rounded once to f32; zeros if there are none). They are the padding, and ids without a token.
struct RowMap {
  struct Pick {
    std::uint32_t model = 0;  // index into Plan::models
    std::uint32_t entry = 0;  // index into that checkpoint's entries()
    std::uint64_t row = 0;
  };
  std::uint64_t rows = 0;
  std::uint64_t width = 0;           // elements of a row
  std::vector<std::uint64_t> first;  // rows + 1 offsets into picks
  std::vector<Pick> picks;
  std::vector<std::uint64_t> averaged;  // rising
};

// One input of a job: the first Job::output.count() elements of a tensor, which has the output's
// shape or, where embeddings are truncated, more rows. What enters a formula is f32 (so says
// Work::inputs) where `rows` rearranges it, and where it is stored as f64: then each value is
// rounded once, to nearest. The same goes for what is `derived`: computed from the tensor
// (rearranged first, if it has rows) and others. If derived->own() is false, `model` and `entry`
// are those of its first ingredient.
struct Operand {
  std::uint32_t model = 0;
  std::uint32_t entry = 0;
  std::shared_ptr<const RowMap> rows;  // shared by the operands of one vocabulary layout
  std::shared_ptr<const Derived> derived;
};

// How an output tensor comes to be.
enum class Action : std::uint8_t {
  merge,  // a formula over the operands
  copy,   // the bytes of operand 0 (of all operands: they must agree, else the run stops), in their
          // stored type, never rearranged
};

struct Job {
  TensorInfo output;
  std::uint32_t shard = 0;
  std::uint64_t offset = 0;  // in the shard's data section
  Action action = Action::merge;
  Work work;                      // for Action::merge
  std::vector<Operand> operands;  // the base first if work.rule.base
  std::string reason;             // for copies and exceptions: why this and not the method
};

// An input tensor that no output reads.
struct Unused {
  std::uint32_t model = 0;
  std::uint32_t entry = 0;
  std::string reason;
};

// Tensors of one kind that an extraction leaves out.
struct Omission {
  std::string what;           // "norms"
  std::uint64_t tensors = 0;  // that changed
  double norm = 0;            // of the change
};

struct Shard {
  std::string file;    // "model-00001-of-00003.safetensors"
  std::string header;  // length, JSON and padding: everything before the data
  std::uint64_t data_bytes = 0;
};

// A file of the output beside the weights: copied from a model, or written from text.
struct Companion {
  std::string name;
  std::string from;  // path to copy; empty: `text`
  std::string text;
  // The model (ModelRef::text) whose file of this name it is, as it stands there or edited; empty:
  // it is ingot's own.
  std::string model;
};

// Waivers without which there would be no plan, or another one.
struct Waived {
  bool unknown_keys = false, extra_weights = false, mixed = false, truncated = false,
       layers = false;
  bool tokenizer = false;  // one was left behind by PlanOptions::copy_tokenizer
};

struct Problem {
  bool fatal = true;  // false: a warning for the report
  Code code = Code::usage;
  std::string text;
};

struct Model {
  ModelRef ref;
  std::string folder;  // resolved path
  Checkpoint checkpoint;
  bool adapter = false;  // its tensors are those of a PEFT adapter
};

struct Plan {
  Recipe recipe;
  PlanOptions options;
  std::vector<Model> models;  // in file order, the base included; then their adapters
  std::vector<Job> jobs;      // in order of work: by shard and offset
  std::vector<Shard> shards;
  std::vector<Companion> companions;  // config.json, tokenizer, index, card, recipe, ...
  std::vector<Unused> unused;
  std::vector<Omission> omissions;
  std::vector<std::string> notes;  // of an adapter's folder: its ranks, what loads it
  double whole_change = 0;         // norm of what an extraction brings in full
  std::vector<Problem> problems;   // all of them, in the order found
  // What only the models' numbers decide, a clause each ("the ranks of 14 modules, ..."): sizes are
  // guesses then, and the run decides before it writes.
  std::vector<std::string> open;
  std::vector<std::string> read;  // paths of all files that planning opened, sorted
  Waived waived;
  // Companions that hold code of a model or name some (`auto_map`): programs run it where they are
  // told to trust it.
  std::vector<std::string> code;
  std::string architecture;    // "LlamaForCausalLM", or why it is not known
  std::uint64_t bytes_in = 0;  // read by a merge, each input byte once
  std::uint64_t bytes_out = 0;

  [[nodiscard]] bool sound() const noexcept;  // no fatal problem
  // Every Joint of its jobs, once. A plan that has one decomposes.
  [[nodiscard]] std::vector<Joint*> joints() const;
};

// Resolves models, matches tensors, evaluates parameters, lays out the output. Everything that is
// wrong is collected in Plan::problems instead of stopping at the first, a missing folder or an
// unreadable header included: where nothing can go on after it, the plan has no jobs. Only a plan
// that is sound() has shards and companions. Reads headers of extractions and of merges of
// adapters, no tensor: what depends on numbers is left open.
[[nodiscard]] Plan build(Disk& disk, Recipe recipe, PlanOptions options);

// The reference as the disk shows it: where a file or folder has the whole text for its name, that
// is the path, and there is no revision and no adapter; else unchanged. Idempotent.
[[nodiscard]] ModelRef settle(Disk& disk, ModelRef ref, const std::string& root);

// A model reference as a folder on this machine: an existing folder or file, or a Hub name in the
// local cache (HF_HUB_CACHE, HF_HOME). Throws Error{missing} with the command that downloads it.
[[nodiscard]] std::string resolve(Disk& disk, const ModelRef& ref, const std::string& root);

// Suggestions for a path that does not exist, as the end of a sentence ("; did you mean 'x'?"):
// a near name in the same folder, or the home folder for '~'. Empty where nothing is near.
[[nodiscard]] std::string path_advice(Disk& disk, const std::string& root, const std::string& path);

// The checkpoints in a training run's folder that has no weights, as the end of a sentence; empty
// for every other folder.
[[nodiscard]] std::string checkpoint_advice(Disk& disk, const std::string& folder);

// Returns what `open` returns; an Error{missing} it throws ends with checkpoint_advice(folder).
template <class Open>
auto with_advice(Disk& disk, const std::string& folder, Open open) {
  try {
    return open();
  } catch (const Error& e) {
    const std::string advice = e.code() == Code::missing ? checkpoint_advice(disk, folder) : "";
    if (advice.empty()) throw;
    fail(e.code(), e.message() + advice);
  }
}

// Where huggingface_hub keeps its downloads; the folder need not exist.
[[nodiscard]] std::string hub_cache();

}  // namespace ingot
