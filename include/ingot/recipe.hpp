// Recipes: mergekit's YAML as typed values, with the line of everything that can be wrong.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ingot {

// A position in the recipe file, from 1; line 0 means "not from a file".
struct Mark {
  int line = 0;
  int column = 0;
};

// "file:line:column", or the file alone for what is not from a file.
[[nodiscard]] std::string position(const std::string& file, Mark mark);

// An adapter on a model: `path[@revision]`, with a weight in the mapping form.
struct AdapterRef {
  std::string text;      // `path[@revision]`
  std::string path;      // folder or Hub name
  std::string revision;  // empty: none given
  double weight = 1;     // what its change is multiplied by

  friend bool operator==(const AdapterRef&, const AdapterRef&) = default;
};

// `path[@revision][+adapter[@revision]]...` or the mapping form.
//
// The parser splits the text; it cannot know that a folder has `+` or `@` in its name. Where the
// disk is at hand, settle() of plan.hpp puts that right: call it before looking at `adapters`.
struct ModelRef {
  std::string text;      // canonical form of what the file says; identity and display name
  std::string path;      // folder, file or Hub name
  std::string revision;  // empty: none given
  std::vector<AdapterRef> adapters;   // applied in this order
  std::string override_architecture;  // replaces config.json's `architectures`; empty: none given
  bool mapped = false;                // written as a mapping, whose `path` is never split
  Mark mark;

  friend bool operator==(const ModelRef& a, const ModelRef& b) { return a.text == b.text; }
};

using Scalar = std::variant<bool, double, std::string>;

// A constant (one point, `gradient` false) or a gradient over the layers of a slice.
struct Value {
  std::vector<Scalar> points;
  bool gradient = false;
  Mark mark;
};

// `{filter, value}`; without a filter it always matches.
struct Condition {
  std::optional<std::string> filter;
  Value value;
};

// A parameter as written: the first condition whose filter is a substring of the name counts.
struct Setting {
  std::vector<Condition> conditions;
  Mark mark;
};

using Parameters = std::map<std::string, Setting>;

struct Source {
  ModelRef model;
  std::optional<std::pair<std::int64_t, std::int64_t>> layer_range;  // half open
  Parameters parameters;
  Mark mark;
};

struct Slice {
  std::vector<Source> sources;
  std::optional<ModelRef> base_model;
  Parameters parameters;
  Mark mark;
};

struct Module {
  std::string name;
  std::vector<Slice> slices;  // exactly one of slices and models is non-empty
  std::vector<Source> models;
  Parameters parameters;
  Mark mark;
};

struct Vocabulary {
  enum class Kind { none, base, model, unite };
  Kind kind = Kind::none;
  ModelRef model;  // for Kind::model
  std::uint64_t pad_to_multiple_of = 0;
  bool tokens = false;  // per-token sources were given
  Mark mark;
};

// What a recipe of adapters, or of an extraction, says beside models and parameters.
struct Adaptation {
  std::uint64_t rank = 0;   // of the result's modules; 0: not given
  bool automatic = false;   // `rank: auto`
  double energy = 0;        // share of the sum of squares that automatic ranks keep; 0: not given
  std::uint64_t bytes = 0;  // of the weight file, at most; 0: no bound
  std::map<std::string, std::uint64_t> ranks;  // by module: what automatic ranks came to
  std::string majority_sign;                   // total or frequency; empty: not given
  std::string
      whole_tensors;  // refuse or average (adapters), save or skip (extraction); empty: not given
  bool keep_scaling = false;
  std::string reader;  // peft, vllm or llama.cpp: what is to load the result; empty: peft
  std::vector<std::string> compat;  // behaviours of older programs, by name
  Mark rank_mark, energy_mark, majority_sign_mark, whole_tensors_mark, compat_mark, reader_mark;
};

// Something to say about a recipe's text: an error, or how what is unusual in it was understood.
struct Remark {
  bool fatal = true;
  Mark mark;
  std::string text;  // "file:line:column: sentence"
};

struct Recipe {
  // Models into a model; adapters into an adapter (`adapter_method`); what a model has over its
  // base into an adapter (`extract`).
  enum class Kind : std::uint8_t { models, adapters, extraction };
  Kind kind = Kind::models;
  std::string file;  // as the caller named it
  std::string text;  // verbatim
  std::string method;
  Mark method_mark;
  std::vector<Source> models;  // exactly one of models, slices, modules is non-empty
  std::vector<Slice> slices;
  std::vector<Module> modules;
  std::optional<ModelRef> base_model;
  Parameters parameters;
  std::string dtype, out_dtype;  // as written without a `torch.` prefix; empty: not given
  Mark dtype_mark, out_dtype_mark;
  Vocabulary vocabulary;
  std::string chat_template;  // empty: not given
  Mark chat_template_mark;
  Adaptation adaptation;            // for the other kinds than models
  std::vector<std::string> waived;  // unknown keys let through, as "key (line n)"
  // By line. A recipe with a fatal one lacks what that one is about; build() makes no plan of it.
  std::vector<Remark> remarks;
};

struct ParseOptions {
  bool allow_unknown_keys = false;
  // Errors of single keys are left in Recipe::remarks, so that all of them can be told, and not
  // thrown.
  bool collect = false;
};

// Parses one YAML document. Throws Error{usage} with file, line and what to do for text that is not
// YAML, an alias bomb or several documents, and, unless they are collected, for the first unknown
// key that looks like a slip (with the nearest valid name), wrong type, or key given twice with two
// values. What mergekit reads without a word (keys it does not know, keys without a value, a key
// given twice with one value) is a remark that is not fatal. The language alone is checked here:
// names of methods, parameters and dtypes, ranges, and what is not supported yet (`union`,
// `tokens`) are the plan's to judge.
[[nodiscard]] Recipe parse(std::string_view text, const std::string& file,
                           const ParseOptions& options);

// Every model whose weights the recipe names: those of models, slices and modules in file order,
// each slice's own base after its sources, base_model last unless it is listed; each once. The
// model of `tokenizer_source` is not among them unless it is listed too.
[[nodiscard]] std::vector<ModelRef> models_of(const Recipe& recipe);

// The value of a setting for a tensor at gradient position t in [0, 1]; nothing if no filter
// matches. `kind` says how points are read and interpolated (mergekit 1.4). Throws Error{usage} for
// a point of the wrong type, with line and parameter name.
enum class Kind { real, integer, boolean };
[[nodiscard]] std::optional<double> evaluate(const Setting& setting, std::string_view parameter,
                                             std::string_view tensor, double t, Kind kind,
                                             const std::string& file);

// The points of a value as numbers of that kind. Throws Error{usage} as evaluate() does.
[[nodiscard]] std::vector<double> points_of(const Value& value, std::string_view parameter,
                                            Kind kind, const std::string& file);

// The name in `known` nearest to `word` by edit distance, or empty if none is near.
[[nodiscard]] std::string nearest(std::string_view word, const std::vector<std::string>& known);

// Advice about a word that is not known, to be added to a sentence: "; did you mean 'dare_ties' or
// 'dare_linear'?" names the nearest one, or those of which the word is a part before or after a
// '_'; empty where there is none.
[[nodiscard]] std::string suggestion(std::string_view word, const std::vector<std::string>& known);

}  // namespace ingot
