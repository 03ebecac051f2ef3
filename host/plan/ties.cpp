#include "plan/ties.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "plan/aliases.hpp"
#include "plan/loaded.hpp"

namespace ingot::plan {
namespace {

// Lists are words with blanks between them. Biases are "copy=stored".
struct Row {
  std::string_view classes, embedding, head, uses, biases, vectors;
  Tying tying;
};
constexpr Row kRows[] = {
#include "plan/ends.inc"
};

// What may follow the stem of a class with a head.
constexpr std::string_view kSpeaking[] = {
    "ForCausalLM",       "LMHeadModel",      "ForMaskedLM", "ForConditionalGeneration",
    "ForPreTraining",    "DoubleHeadsModel", "MTModel",     "GenerationDecoder",
    "ForImageTextToText"};

std::vector<std::string_view> words(std::string_view list) {
  std::vector<std::string_view> out;
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(' '), list.size());
    if (end > 0) out.push_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return out;
}

bool listed(std::string_view list, std::string_view word) {
  const auto all = words(list);
  return std::find(all.begin(), all.end(), word) != all.end();
}

// What stands before the names of a row in a checkpoint, or is missing from them.
struct Outer {
  std::string added, dropped;

  [[nodiscard]] std::string operator()(std::string_view name) const {
    if (!dropped.empty() && name.starts_with(dropped)) name.remove_prefix(dropped.size());
    return added + std::string(name);
  }
};

// The names of a class in one checkpoint.
class Speller {
 public:
  Speller(std::string_view architecture, const Has& has) : architecture_(architecture), has_(has) {}

  // The checkpoint's name for a tensor, nullopt where it lacks the tensor.
  [[nodiscard]] std::optional<std::string> stored(const std::string& name) const {
    if (has_(name)) return name;
    for (std::string& other : aliases(name)) {
      if (has_(other)) return std::move(other);
    }
    std::string loaded = loaded_name(architecture_, name, Renaming::outer);
    if (loaded != name && has_(loaded)) return loaded;
    return std::nullopt;
  }

  // How the checkpoint has the embedding of a row: as the row says, without the outer module, or
  // within a model of text and images.
  [[nodiscard]] std::optional<Outer> place(const Row& row) const {
    const std::string outer(row.embedding.substr(0, row.embedding.find('.') + 1));
    for (const Outer& each : {Outer{}, Outer{{}, outer}, Outer{"language_model.", {}}}) {
      if (row.embedding.size() == each.dropped.size() + 6) continue;  // "weight" would be left
      if (stored(each(row.embedding))) return each;
    }
    return std::nullopt;
  }

 private:
  std::string_view architecture_;
  const Has& has_;
};

}  // namespace

bool Ties::copies(std::string_view name) const {
  return !embedding.empty() &&
         (name == head || std::find(uses.begin(), uses.end(), name) != uses.end());
}

bool Ties::bias(std::string_view name) const {
  return std::find(vectors.begin(), vectors.end(), name) != vectors.end() ||
         std::any_of(biases.begin(), biases.end(),
                     [&](const auto& both) { return both.first == name || both.second == name; });
}

Ties ties(std::string_view architecture, const Has& has, const Family* family) {
  const Speller speller(architecture, has);
  Ties out;
  const bool related = family != nullptr && !family->head.empty();
  out.head = related ? family->head : "lm_head.weight";
  std::optional<Outer> outer;
  const Row* row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& each) {
    return listed(each.classes, architecture);
  });
  if (row != std::end(kRows)) outer = speller.place(*row);
  if (outer) out.tying = row->tying;
  for (const Outer& each : {Outer{}, Outer{"language_model.", {}}}) {
    if (outer || related) break;
    row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& other) {
      return !other.head.empty() && has(each(other.embedding));
    });
    if (row != std::end(kRows)) outer = each;
  }
  if (!outer) {
    if (related && has(std::string(family->embedding))) out.embedding = family->embedding;
    return out;
  }
  const auto name = [&](std::string_view word) {
    std::string wanted = (*outer)(word);
    return speller.stored(wanted).value_or(std::move(wanted));
  };
  out.embedding = name(row->embedding);
  out.head = row->head.empty() ? std::string() : name(row->head);
  for (const std::string_view use : words(row->uses)) out.uses.push_back(name(use));
  for (const std::string_view vector : words(row->vectors)) out.vectors.push_back(name(vector));
  bool biased = row->biases.empty();
  for (const std::string_view pair : words(row->biases)) {
    const std::size_t equals = pair.find('=');
    std::string copy = name(pair.substr(0, equals)), stored = name(pair.substr(equals + 1));
    biased = biased || has(copy) || has(stored);
    out.biases.emplace_back(std::move(copy), std::move(stored));
  }
  if (!biased) {  // a form of the class with another head, which has no matrix (DeBERTa)
    out.head.clear();
    out.biases.clear();
  }
  return out;
}

bool tied(const Ties& ties, std::string_view architecture, std::optional<bool> said, bool headed) {
  switch (ties.tying) {
    case Tying::always:
      return true;
    case Tying::unless_denied:
      return said.value_or(true);
    case Tying::if_said:
      return said.value_or(!headed);
    case Tying::unknown:
      break;
  }
  return speaks(architecture) ? said.value_or(!headed)
                              : architecture.empty() && said.value_or(false);
}

bool same_values(const Checkpoint& checkpoint, const Entry& a, const Entry& b) {
  if (a.info.dtype != b.info.dtype || a.info.shape != b.info.shape || a.strides != b.strides) {
    return false;
  }
  if (!a.patches.empty() || !b.patches.empty()) return false;
  if (a.file == b.file && a.offset == b.offset) return true;
  if (!a.dense()) return false;
  constexpr std::uint64_t kStep = std::uint64_t{1} << 20;
  std::vector<std::byte> left(kStep), right(kStep);
  const std::uint64_t bytes = a.info.bytes();
  for (std::uint64_t at = 0; at < bytes; at += kStep) {
    const auto count = static_cast<std::size_t>(std::min(kStep, bytes - at));
    read_exact(checkpoint.file(a.file), a.offset + at, std::span(left).first(count));
    read_exact(checkpoint.file(b.file), b.offset + at, std::span(right).first(count));
    if (std::memcmp(left.data(), right.data(), count) != 0) return false;
  }
  return true;
}

bool speaks(std::string_view architecture) {
  return std::any_of(std::begin(kSpeaking), std::end(kSpeaking), [&](std::string_view part) {
    return architecture.find(part) != std::string_view::npos;
  });
}

}  // namespace ingot::plan
