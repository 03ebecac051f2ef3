#include "plan/metadata.hpp"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "ingot/text.hpp"
#include "plan/card.hpp"
#include "recipe/tree.hpp"

namespace ingot::plan {
namespace {

constexpr std::uint64_t kLongestCard = std::uint64_t{4} << 20;
constexpr std::size_t kLongestHeader = std::size_t{64} << 10;
constexpr std::size_t kLongestWord = 128;
constexpr std::size_t kMostWords = 64;

// The lines between the first `---` and the next; empty where the text does not begin with one.
std::string_view header_of(std::string_view text, const std::string& path) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  const std::size_t first = text.find('\n');
  const auto is_rule = [](std::string_view line) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    return line == "---";
  };
  if (first == text.npos || !is_rule(text.substr(0, first))) return {};
  text.remove_prefix(first + 1);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    if (is_rule(text.substr(at, end - at))) {
      if (at > kLongestHeader) {
        fail(Code::format, fmt::format("{}: its YAML header has {} bytes; at most {} are read",
                                       path, at, kLongestHeader));
      }
      return text.substr(0, at);
    }
    at = end + 1;
  }
  return {};
}

bool fit(const std::string& word) {
  return !word.empty() && word.size() <= kLongestWord && printable(word) == word;
}

void add_word(std::vector<std::string>& words, const std::string& word) {
  if (!fit(word) || words.size() == kMostWords) return;
  if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
}

std::vector<std::string> words_of(const Node& node) {
  std::vector<std::string> words;
  if (node.kind == Node::Kind::scalar) add_word(words, node.text);
  for (const Node* item : node.items) {
    if (item->kind == Node::Kind::scalar) add_word(words, item->text);
  }
  return words;
}

std::string word_of(const Node& node) {
  return node.kind == Node::Kind::scalar && fit(node.text) ? node.text : "";
}

std::string listed(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

// What one model's card says of its licence: one text, so that two can be compared.
std::string licence_of(const Metadata& card) {
  std::string text = listed(card.licences);
  if (!card.licence_name.empty()) text += fmt::format(" ({})", card.licence_name);
  return text;
}

struct Card {
  std::string model;  // as the recipe names it, for messages
  std::string name;   // for the output's card
  bool adapter = false;
  Metadata said;
};

std::vector<Card> read_cards(Disk& disk, const Plan& plan, Problems& problems) {
  std::vector<Card> cards;
  for (const Model& model : plan.models) {
    std::string folder = model.folder;
    const std::string shown = shorten(printable(model.ref.text), 200);
    const std::string known = public_name(model.ref);
    try {
      if (disk.kind(folder) == Disk::Kind::file) {
        const std::size_t slash = folder.rfind('/');
        folder = slash == std::string::npos ? "." : folder.substr(0, slash);
      }
      const auto path = seek_member(disk, folder, "README.md");
      if (!path) {
        cards.push_back({shown, known, model.adapter, {}});
        continue;
      }
      const std::string name = shown + "/README.md";
      cards.push_back(
          {shown, known, model.adapter, read_metadata(read_text(disk, *path, kLongestCard), name)});
    } catch (const Error& error) {
      if (error.code() == Code::io || error.code() == Code::memory) throw;  // not the card
      problems.warn(Code::format,
                    fmt::format("the card of {} cannot be read, so the output's licence, language "
                                "and tags do not include its own: {}",
                                shown, shorten(error.what(), 500)));
      cards.push_back({shown, known, model.adapter, {}});
    }
  }
  return cards;
}

// The first value, and a note where others differ.
std::string first_of(const std::vector<Card>& cards, std::string Metadata::*field, const char* key,
                     Descent& descent, Problems& problems) {
  const Card* first = nullptr;
  for (const Card& card : cards) {
    const std::string& value = card.said.*field;
    if (card.adapter || value.empty()) continue;
    if (first == nullptr) first = &card;
    if (value == first->said.*field) continue;
    const auto note = [&](std::string Card::*name) {
      return fmt::format("{} has {} {}, {} has {}; the card of the output has that of {}",
                         first->*name, key, first->said.*field, card.*name, value, first->*name);
    };
    problems.warn(Code::usage, note(&Card::model));
    descent.notes.push_back(note(&Card::name));
    break;
  }
  return first == nullptr ? "" : first->said.*field;
}

void settle_licence(const std::vector<Card>& cards, Descent& descent, Problems& problems) {
  const Card* first = nullptr;
  const Card* other = nullptr;
  for (const Card& card : cards) {
    if (card.said.licences.empty()) {
      descent.unlicensed.push_back(card.name);
      continue;
    }
    if (first == nullptr) first = &card;
    if (licence_of(card.said) != licence_of(first->said) && other == nullptr) other = &card;
    descent.licences.push_back({card.name, licence_of(card.said)});
  }
  if (first == nullptr) {
    descent.unlicensed.clear();
    return;
  }
  if (other != nullptr) {
    problems.warn(
        Code::usage,
        fmt::format("the licence of {} is {}, that of {} is {}; the card of the output "
                    "lists them: choose one that all of them permit",
                    first->model, licence_of(first->said), other->model, licence_of(other->said)));
    return;
  }
  descent.licences.clear();
  if (first->said.licences.size() == 1) {
    descent.licence = first->said.licences.front();
    descent.licence_name = first->said.licence_name;
    descent.licence_link = first->said.licence_link;
  } else {
    descent.licences.push_back({first->name, licence_of(first->said)});
  }
}

}  // namespace

Metadata read_metadata(const std::string& text, const std::string& path) {
  Metadata result;
  const std::string_view header = header_of(text, path);
  if (header.find_first_not_of(" \t\r\n") == header.npos) return result;
  std::vector<Remark> remarks;
  const Tree tree(header, path, remarks);
  for (const Remark& remark : remarks) {
    if (remark.fatal) fail(Code::usage, remark.text);
  }
  for (const Node::Pair& pair : tree.root().pairs) {
    const Node& value = *pair.value;
    if (pair.key == "license") result.licences = words_of(value);
    if (pair.key == "license_name") result.licence_name = word_of(value);
    if (pair.key == "license_link") result.licence_link = word_of(value);
    if (pair.key == "language") result.languages = words_of(value);
    if (pair.key == "pipeline_tag") result.pipeline_tag = word_of(value);
    if (pair.key == "library_name") result.library_name = word_of(value);
    if (pair.key == "tags") result.tags = words_of(value);
  }
  return result;
}

Descent descend(Disk& disk, const Plan& plan, Problems& problems) {
  Descent descent;
  const std::vector<Card> cards = read_cards(disk, plan, problems);
  settle_licence(cards, descent, problems);
  descent.pipeline_tag =
      first_of(cards, &Metadata::pipeline_tag, "pipeline_tag", descent, problems);
  descent.library_name =
      first_of(cards, &Metadata::library_name, "library_name", descent, problems);
  std::optional<std::vector<std::string>> tags;
  for (const Card& card : cards) {
    for (const std::string& language : card.said.languages) {
      add_word(descent.languages, language);
    }
    if (card.said.tags.empty()) continue;
    if (!tags) {
      tags = card.said.tags;
      continue;
    }
    std::erase_if(*tags, [&](const std::string& tag) {
      return std::find(card.said.tags.begin(), card.said.tags.end(), tag) == card.said.tags.end();
    });
  }
  if (tags) descent.tags = *tags;
  return descent;
}

}  // namespace ingot::plan
