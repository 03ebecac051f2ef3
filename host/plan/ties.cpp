#include "plan/ties.hpp"

#include <algorithm>
#include <cstring>
#include <span>

#include "ingot/math/codec.hpp"
#include "plan/aliases.hpp"
#include "plan/loaded.hpp"
#include "plan/roles.hpp"

namespace ingot::plan {
namespace {

// Lists are words with blanks between them. Biases are "copy=stored".
struct Row {
  std::string_view classes, embedding, head, uses, biases, vectors;
  Tying tying;
  std::string_view input = {};
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

// Bytes of some elements; a number of elements of less than a byte is even.
std::size_t size(Dtype type, std::uint64_t elements) {
  return static_cast<std::size_t>((elements * bits(type) + 7) / 8);
}

bool decoded(Dtype type) { return type == Dtype::f32 || type == Dtype::bf16 || type == Dtype::f16; }

template <math::Format F>
float value_of(const std::byte* at) {
  typename math::Codec<F>::Word word;
  std::memcpy(&word, at, sizeof word);
  return math::Codec<F>::decode(word);
}

float value(Dtype type, const std::byte* at) {
  return type == Dtype::f32    ? value_of<math::Format::f32>(at)
         : type == Dtype::bf16 ? value_of<math::Format::bf16>(at)
                               : value_of<math::Format::f16>(at);
}

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
    return has_word(each.classes, architecture);
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
  if (!row->input.empty()) out.input = name(row->input);
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
    case Tying::scaling:
      return said.value_or(true);
    case Tying::if_said:
      return said.value_or(!headed);
    case Tying::unknown:
      break;
  }
  return speaks(architecture) ? said.value_or(!headed)
                              : architecture.empty() && said.value_or(false);
}

bool means_more(Tying tying) { return tying == Tying::always || tying == Tying::scaling; }

std::optional<bool> told_same(const Checkpoint& a, const Entry& x, const Checkpoint& b,
                              const Entry& y) {
  if (x.info.shape != y.info.shape || !x.patches.empty() || !y.patches.empty()) return false;
  if (&a == &b && x.file == y.file && x.offset == y.offset && x.strides == y.strides) return true;
  const Dtype left = x.info.dtype, right = y.info.dtype;
  if (!x.dense() || !y.dense() || (left != right && !(decoded(left) && decoded(right)))) {
    return false;
  }
  return std::nullopt;
}

bool same_values(const Checkpoint& a, const Entry& x, const Checkpoint& b, const Entry& y) {
  if (const std::optional<bool> told = told_same(a, x, b, y)) return *told;
  const Dtype left = x.info.dtype, right = y.info.dtype;
  constexpr std::uint64_t kStep = std::uint64_t{1} << 18;  // elements
  const std::uint64_t elements = x.info.count();
  std::vector<std::byte> first(size(left, kStep)), second(size(right, kStep));
  for (std::uint64_t at = 0; at < elements; at += kStep) {
    const auto count = static_cast<std::size_t>(std::min(kStep, elements - at));
    const auto own = std::span(first).first(size(left, count));
    const auto other = std::span(second).first(size(right, count));
    read_exact(a.file(x.file), x.offset + size(left, at), own);
    read_exact(b.file(y.file), y.offset + size(right, at), other);
    if (left == right) {
      if (std::memcmp(own.data(), other.data(), own.size()) != 0) return false;
      continue;
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (value(left, &own[size(left, i)]) != value(right, &other[size(right, i)])) {
        return false;
      }
    }
  }
  return true;
}

bool speaks(std::string_view architecture) {
  return std::any_of(std::begin(kSpeaking), std::end(kSpeaking), [&](std::string_view part) {
    return architecture.find(part) != std::string_view::npos;
  });
}

}  // namespace ingot::plan
