#include "plan/settings.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "ingot/text.hpp"
#include "plan/folder.hpp"
#include "plan/roles.hpp"
#include "store/json.hpp"
#include "token/template.hpp"
#include "token/vocab.hpp"

namespace ingot::plan {
namespace {

using Json = nlohmann::ordered_json;

// Larger ones hold something else than settings.
constexpr std::uint64_t kLargest = std::uint64_t{16} << 20;
// Tokenizers: the largest have 40 MB.
constexpr std::uint64_t kTokenizer = std::uint64_t{256} << 20;

// A file, and the keys of it that count; empty: all but kIdle.
struct Settings {
  std::string_view name;  // that begins with '/': of a file in any folder below
  std::string_view keys;
};

constexpr Settings kFiles[] = {
    {"preprocessor_config.json", ""},
    {"video_preprocessor_config.json", ""},
    {"processor_config.json", ""},
    {"sentence_bert_config.json", ""},
    {"config_sentence_transformers.json", ""},
    {"modules.json", "path"},
    {"/config.json", ""},
    {"generation_config.json", "eos_token_id decoder_start_token_id forced_bos_token_id"},
    {"tokenizer_config.json",
     "bos_token eos_token unk_token cls_token sep_token mask_token add_bos_token add_eos_token "
     "add_prefix_space do_lower_case"},
};

// Names and versions of programs.
constexpr std::string_view kIdle =
    "processor_class image_processor_type feature_extractor_type auto_map transformers_version "
    "_name_or_path __version__ type dtype torch_dtype";

std::string shown(const Json& value) {
  return shorten(printable(value.dump(-1, ' ', false, Json::error_handler_t::replace)), 60);
}

// What differs between two documents: the first key with both values, and how many.
class Comparison {
 public:
  explicit Comparison(std::string_view keys) : keys_(keys) {}

  void objects(const Json& a, const Json& b, const std::string& path) {
    for (const auto& [key, value] : a.items()) {
      if (path.empty() && !keys_.empty() ? !has_word(keys_, key) : has_word(kIdle, key)) continue;
      const auto other = b.find(key);
      if (other != b.end()) values(value, *other, path.empty() ? key : path + "." + key);
    }
  }

  // Lists of objects, as in modules.json.
  void lists(const Json& a, const Json& b) {
    if (a.size() != b.size()) {
      return note("", fmt::format("{} entries", a.size()), fmt::format("{} entries", b.size()));
    }
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (a[i].is_object() && b[i].is_object()) objects(a[i], b[i], "");
    }
  }

  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  // "size is 224 in a and 336 in b".
  [[nodiscard]] std::string text(const std::string& a, const std::string& b) const {
    return fmt::format("{} {} in {} and {} in {}{}", key_.empty() ? "it has" : key_ + " is", a_, a,
                       b_, b, count_ > 1 ? fmt::format(" (and {} more)", count_ - 1) : "");
  }

 private:
  void values(const Json& a, const Json& b, const std::string& path) {
    if (a.is_object() && b.is_object()) return objects(a, b, path);
    // A token is a word, or an object that has the word.
    const Json& left = a.is_object() && a.contains("content") ? a["content"] : a;
    const Json& right = b.is_object() && b.contains("content") ? b["content"] : b;
    if (left != right) note(path, shown(left), shown(right));
  }
  void note(const std::string& key, std::string a, std::string b) {
    if (count_++ > 0) return;
    key_ = key;
    a_ = std::move(a);
    b_ = std::move(b);
  }

  std::string_view keys_;
  std::string key_, a_, b_;
  std::size_t count_ = 0;
};

// Two models: the first one's files are in the output.
struct Pair {
  std::string folder, other;  // paths
  std::string a, b;           // as the recipe names them
};

std::optional<std::string> text_of(Disk& disk, const std::string& folder, const std::string& name,
                                   std::uint64_t most) {
  const auto path = seek_member(disk, folder, name);
  if (!path || disk.open(*path)->size() > most) return std::nullopt;
  return read_text(disk, *path, most);
}

void compare_file(Disk& disk, Problems& problems, const Pair& pair, const std::string& name,
                  std::string_view keys) {
  const auto a = text_of(disk, pair.folder, name, kLargest);
  const auto b = a ? text_of(disk, pair.other, name, kLargest) : std::nullopt;
  if (!b || *a == *b) return;
  const Json left = json_of(*a, name), right = json_of(*b, name);
  Comparison comparison(keys);
  if (left.is_object() && right.is_object()) comparison.objects(left, right, "");
  if (left.is_array() && right.is_array()) comparison.lists(left, right);
  if (comparison.count() == 0) return;
  problems.warn(Code::usage, fmt::format("{}: {}; the output has the file of {}", name,
                                         comparison.text(pair.a, pair.b), pair.a));
}

// Ids below `rows`, the height of the lower embedding, that are one token in a model and another
// one in the other.
void compare_tokens(Disk& disk, Problems& problems, const Pair& pair, std::uint64_t rows) {
  {
    const auto a = text_of(disk, pair.folder, "tokenizer.json", kTokenizer);
    if (a && a == text_of(disk, pair.other, "tokenizer.json", kTokenizer)) return;
  }
  const auto a = read_vocab(disk, pair.folder);
  const auto b = a ? read_vocab(disk, pair.other) : std::nullopt;
  if (!b) return;
  std::size_t count = 0;
  std::string first;
  for (std::uint64_t id = 0; id < std::min({a->rows(), b->rows(), rows}); ++id) {
    const auto left = a->token(id), right = b->token(id);
    if (!left || !right || *left == *right) continue;
    if (count++ > 0) continue;
    first = fmt::format("id {} is '{}' in {} and '{}' in {}", id, shorten(printable(*left), 60),
                        pair.a, shorten(printable(*right), 60), pair.b);
  }
  if (count == 0) return;
  problems.warn(
      Code::usage,
      fmt::format("the tokenizers of {} and {} differ: {}{}; the output has the tokenizer "
                  "of {}, and the rows of {} are not in its order: tokenizer_source: base "
                  "puts them in order",
                  pair.a, pair.b, first, count > 1 ? fmt::format(" (and {} more)", count - 1) : "",
                  pair.a, pair.b));
}

void compare_templates(Disk& disk, Problems& problems, const Pair& pair) {
  const auto a = read_template(disk, pair.folder);
  const auto b = a ? read_template(disk, pair.other) : std::nullopt;
  if (!b || *a == *b) return;
  problems.warn(Code::usage,
                fmt::format("the chat templates of {} and {} differ; the output has that of {}; "
                            "chat_template chooses another",
                            pair.a, pair.b, pair.a));
}

}  // namespace

void compare_settings(Disk& disk, const Draft& draft, const std::string& tokenizer) {
  const auto view_of = [&](const std::string& folder) {
    const auto at = std::find_if(draft.views.begin(), draft.views.end(),
                                 [&](const View& view) { return view.tokenizer == folder; });
    return at == draft.views.end() ? draft.donor
                                   : static_cast<std::uint32_t>(at - draft.views.begin());
  };
  const bool tokens =
      draft.plan.options.copy_tokenizer && draft.recipe().vocabulary.kind == Vocabulary::Kind::none;
  const bool chat = draft.plan.options.copy_tokenizer && draft.recipe().chat_template.empty();
  std::set<std::pair<std::string, std::string>> seen;  // views of one model have the same files
  for (std::uint32_t v = 0; v < draft.views.size(); ++v) {
    if (!seen.emplace(draft.folder(v), draft.views[v].tokenizer).second) continue;
    const auto attempt = [&](const std::string& folder, const std::string& other, auto compare) {
      if (folder == other) return;
      const std::uint32_t from = folder == tokenizer ? view_of(folder) : draft.donor;
      try {
        compare(Pair{folder, other, draft.shown(from), draft.shown(v)});
      } catch (const Error& error) {
        if (error.code() != Code::format) throw;  // it is said where the file is copied
      }
    };
    for (const Companion& file : draft.plan.companions) {
      const auto* const known =
          std::find_if(std::begin(kFiles), std::end(kFiles), [&](const Settings& one) {
            return one.name.front() == '/' ? file.name.ends_with(one.name) : file.name == one.name;
          });
      if (known == std::end(kFiles)) continue;
      const bool its = of_tokenizer(file.name);
      if (its && !tokens) continue;
      attempt(its ? tokenizer : draft.folder(draft.donor),
              its ? draft.views[v].tokenizer : draft.folder(v), [&](const Pair& pair) {
                compare_file(disk, draft.problems, pair, file.name, known->keys);
              });
    }
    if (tokens) {
      constexpr std::uint64_t kAll = std::numeric_limits<std::uint64_t>::max();
      const std::uint64_t rows = std::min(rows_of(draft, view_of(tokenizer)).value_or(kAll),
                                          rows_of(draft, v).value_or(kAll));
      attempt(tokenizer, draft.views[v].tokenizer,
              [&](const Pair& pair) { compare_tokens(disk, draft.problems, pair, rows); });
    }
    if (chat) {
      attempt(tokenizer, draft.views[v].tokenizer,
              [&](const Pair& pair) { compare_templates(disk, draft.problems, pair); });
    }
  }
}

}  // namespace ingot::plan
