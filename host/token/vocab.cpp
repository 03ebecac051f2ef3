#include "token/vocab.hpp"

#include <algorithm>
#include <charconv>
#include <functional>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ingot/error.hpp"
#include "store/header.hpp"
#include "store/json.hpp"

namespace ingot {
namespace {

using nlohmann::json;

// Ids beyond this are a broken file, not a vocabulary: the largest in use are near 2^18.
constexpr std::uint64_t kMostTokens = std::uint64_t{1} << 24;
constexpr std::uint64_t kGaps = std::uint64_t{1} << 16;
constexpr std::size_t kDepth = 64;

// One step down into a JSON document: the key in an object, or the index in an array.
struct Step {
  bool list = false;
  std::string key;
  std::uint64_t index = 0;
};

struct Leaf {
  const std::string* text = nullptr;    // a string
  std::optional<std::uint64_t> number;  // a whole number, not negative
};

using Path = std::vector<Step>;
using Visit = std::function<void(const Path&, const Leaf&)>;

// Calls `visit` for every scalar of a document, in order. No tree is built: a tokenizer.json has a
// million values.
class Walker : public nlohmann::json_sax<json> {
 public:
  Walker(const std::string& file, const Visit& visit) : file_(file), visit_(visit) {}

  bool null() override { return leaf({}); }
  bool boolean(bool /*value*/) override { return leaf({}); }
  bool number_integer(number_integer_t /*value*/) override { return leaf({}); }
  bool number_unsigned(number_unsigned_t value) override { return leaf({nullptr, value}); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override {
    return leaf({});
  }
  bool string(string_t& value) override { return leaf({&value, std::nullopt}); }
  bool binary(binary_t& /*value*/) override { return leaf({}); }
  bool start_object(std::size_t /*elements*/) override { return enter(false); }
  bool start_array(std::size_t /*elements*/) override { return enter(true); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(string_t& value) override {
    path_.back().key = value;
    return true;
  }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const json::exception& /*e*/) override {
    fail(Code::format, fmt::format("{} is not JSON at byte {}", file_, position));
  }

 private:
  bool enter(bool list) {
    if (path_.size() == kDepth) {
      fail(Code::format, fmt::format("{} has more than {} levels of nesting", file_, kDepth));
    }
    path_.push_back({list, {}, 0});
    return true;
  }
  bool leave() {
    path_.pop_back();
    return advance();
  }
  bool leaf(const Leaf& leaf) {
    visit_(path_, leaf);
    return advance();
  }
  bool advance() {
    if (!path_.empty() && path_.back().list) ++path_.back().index;
    return true;
  }

  const std::string& file_;
  const Visit& visit_;
  Path path_;
};

void walk(Disk& disk, const std::string& file, const Visit& visit) {
  Walker walker(file, visit);
  parse_json(read_text(disk, file), walker);
}

// Collects tokens; an added token is one with text and id of its own in a list of records.
class Collector {
 public:
  explicit Collector(std::string file) { vocab_.file = std::move(file); }

  [[nodiscard]] const std::string& file() const noexcept { return vocab_.file; }

  // A token of the model's own vocabulary.
  void own(const std::string& token, std::optional<std::uint64_t> id) {
    if (vocab_.add(token, checked(token, id), false)) return;
    if (const std::uint64_t other = *vocab_.id(token); other != *id) {
      fail(Code::format, fmt::format("{} gives the token {} two ids, {} and {}", vocab_.file,
                                     cite(token), other, *id));
    }
  }

  // A token added to it. As in the tokenizers library, a text the model knows keeps the model's id.
  void added(const std::string& token, std::optional<std::uint64_t> id) {
    vocab_.add(token, checked(token, id), true);
  }

  [[nodiscard]] Vocab take() {
    if (vocab_.used() == 0) fail(Code::format, fmt::format("{} holds no vocabulary", vocab_.file));
    // A matrix has a row for every id: what is allocated stays in proportion to what was read.
    if (vocab_.rows() > 2 * vocab_.used() + kGaps) {
      fail(Code::format, fmt::format("{} gives ids up to {} to only {} tokens", vocab_.file,
                                     vocab_.rows() - 1, vocab_.used()));
    }
    return std::move(vocab_);
  }

 private:
  std::uint64_t checked(const std::string& token, std::optional<std::uint64_t> id) const {
    if (!id || *id >= kMostTokens) {
      fail(Code::format, fmt::format("{} gives the token {} no id from 0 to {}", vocab_.file,
                                     cite(token), kMostTokens - 1));
    }
    return *id;
  }

  Vocab vocab_;
};

// {"token": id, ...}
void read_map(Disk& disk, const std::string& file,
              const std::function<void(const std::string&, const Leaf&)>& put) {
  walk(disk, file, [&](const Path& path, const Leaf& leaf) {
    if (path.size() != 1 || path[0].list) {
      fail(Code::format, fmt::format("{} is not an object of tokens and ids", file));
    }
    put(path[0].key, leaf);
  });
}

Vocab read_tokenizer(Disk& disk, const std::string& file) {
  Collector out(file);
  struct Added {
    std::optional<std::string> content;
    std::optional<std::uint64_t> id;
  };
  std::vector<Added> added;  // `added_tokens` precedes `model` in the file
  walk(disk, file, [&](const Path& path, const Leaf& leaf) {
    if (path.size() == 3 && path[0].key == "added_tokens" && path[1].list) {
      if (added.size() <= path[1].index) added.resize(path[1].index + 1);
      Added& token = added[path[1].index];
      if (path[2].key == "content" && leaf.text != nullptr) token.content = *leaf.text;
      if (path[2].key == "id") token.id = leaf.number;
    } else if (path.size() >= 3 && path[0].key == "model" && path[1].key == "vocab") {
      if (path.size() == 3 && !path[2].list) {
        out.own(path[2].key, leaf.number);
      } else if (path.size() == 4 && path[2].list &&
                 path[3].list) {  // Unigram: [token, score], ...
        if (path[3].index == 0) {
          if (leaf.text == nullptr) {
            fail(Code::format,
                 fmt::format("{}: entry {} of model.vocab has no token", file, path[2].index));
          }
          out.own(*leaf.text, path[2].index);
        }
      } else {
        fail(Code::format, fmt::format("{}: model.vocab is neither an object of ids nor a list of "
                                       "tokens and scores",
                                       file));
      }
    }
  });
  for (const Added& token : added) {
    if (!token.content)
      fail(Code::format, fmt::format("{}: an entry of added_tokens has no content", file));
    out.added(*token.content, token.id);
  }
  return out.take();
}

// SentencePiece's ModelProto, of which only `repeated SentencePiece pieces = 1 {string piece = 1}`
// matters: ids are positions.
class Protobuf {
 public:
  Protobuf(std::string_view bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  // Moves to the next field; false at the end.
  bool next() {
    if (bytes_.empty()) return false;
    const std::uint64_t tag = varint();
    field_ = tag >> 3;
    text_ = {};
    switch (tag & 7) {
      case 0:
        (void)varint();
        return true;
      case 1:
        (void)take(8);
        return true;
      case 2:
        text_ = take(varint());
        return true;
      case 5:
        (void)take(4);
        return true;
      default:
        bad();
    }
  }
  [[noreturn]] void bad() const {
    fail(Code::format,
         fmt::format("{} is not a SentencePiece model; save the tokenizer with a tokenizer.json",
                     file_));
  }
  [[nodiscard]] std::uint64_t field() const noexcept { return field_; }
  [[nodiscard]] std::string_view text() const noexcept { return text_; }

 private:
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size()) bad();
    const std::string_view out = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return out;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    bad();
  }

  std::string_view bytes_;
  const std::string& file_;
  std::uint64_t field_ = 0;
  std::string_view text_;
};

void read_pieces(Disk& disk, Collector& out) {
  const std::string bytes = read_text(disk, out.file());
  Protobuf model(bytes, out.file());
  std::uint64_t id = 0;
  while (model.next()) {
    if (model.field() != 1) continue;
    Protobuf piece(model.text(), out.file());
    std::string token;
    while (piece.next()) {
      if (piece.field() == 1) token = piece.text();
    }
    out.own(token, id++);
  }
  if (id == 0) model.bad();
}

// What slow tokenizers add to their vocabulary file: added_tokens.json {"token": id} and, newer,
// the records of tokenizer_config.json's added_tokens_decoder {"id": {"content": "token"}}.
void read_added(Disk& disk, const std::string& folder, Collector& out) {
  if (const auto plain = seek_member(disk, folder, "added_tokens.json")) {
    read_map(disk, *plain,
             [&](const std::string& token, const Leaf& leaf) { out.added(token, leaf.number); });
  }
  if (const auto config = seek_member(disk, folder, "tokenizer_config.json")) {
    walk(disk, *config, [&](const Path& path, const Leaf& leaf) {
      if (path.size() != 3 || path[0].key != "added_tokens_decoder" || path[2].key != "content" ||
          leaf.text == nullptr) {
        return;
      }
      const std::string& digits = path[1].key;
      std::uint64_t id = kMostTokens;
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), id);
      const bool whole = error == std::errc{} && end == digits.data() + digits.size();
      out.added(*leaf.text, whole ? std::optional(id) : std::nullopt);
    });
  }
}

}  // namespace

std::size_t Vocab::seek(std::string_view token) const {
  const std::size_t mask = table_.size() - 1;
  std::size_t at = std::hash<std::string_view>()(token) & mask;
  while (table_[at] != 0 && text(entries_[table_[at] - 1]) != token) at = (at + 1) & mask;
  return at;
}

void Vocab::grow() {
  std::vector<std::uint32_t>(std::max<std::size_t>(1024, 2 * table_.size())).swap(table_);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    table_[seek(text(entries_[i]))] = static_cast<std::uint32_t>(i + 1);
  }
}

bool Vocab::add(std::string_view token, std::uint64_t id, bool taken) {
  if (3 * (entries_.size() + 1) > 2 * table_.size()) grow();
  std::uint32_t& place = table_[seek(token)];
  if (place != 0) return false;
  entries_.push_back(
      {texts_.size(), static_cast<std::uint32_t>(token.size()), static_cast<std::uint32_t>(id)});
  texts_ += token;
  place = static_cast<std::uint32_t>(entries_.size());
  if (id >= by_id_.size()) by_id_.resize(id + 1);
  if (by_id_[id] == 0) {
    ++used_;
    by_id_[id] = place;
  } else if (taken) {
    by_id_[id] = place;
  }
  return true;
}

std::optional<std::uint64_t> Vocab::id(std::string_view token) const {
  const std::uint32_t found = table_.empty() ? 0 : table_[seek(token)];
  return found == 0 ? std::nullopt : std::optional<std::uint64_t>(entries_[found - 1].id);
}

std::optional<std::string_view> Vocab::token(std::uint64_t id) const {
  if (id >= by_id_.size() || by_id_[id] == 0) return std::nullopt;
  return text(entries_[by_id_[id] - 1]);
}

std::optional<Vocab> read_vocab(Disk& disk, const std::string& folder) {
  if (const auto file = seek_member(disk, folder, "tokenizer.json")) {
    return read_tokenizer(disk, *file);
  }
  if (const auto file = seek_member(disk, folder, "vocab.json")) {
    Collector out(*file);
    read_map(disk, *file,
             [&](const std::string& token, const Leaf& leaf) { out.own(token, leaf.number); });
    read_added(disk, folder, out);
    return out.take();
  }
  if (const auto file = seek_member(disk, folder, "tokenizer.model")) {
    Collector out(*file);
    read_pieces(disk, out);
    read_added(disk, folder, out);
    return out.take();
  }
  return std::nullopt;
}

}  // namespace ingot
