// A tokenizer's vocabulary as it lies on disk: token to id. Nothing is ever tokenised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/store.hpp"

namespace ingot {

// Tokens by their exact text. Where a file gives an id to an added token and to an ordinary one,
// the added token has it. A vocabulary may have millions of tokens: each takes its text and 28 to
// 36 bytes.
class Vocab {
 public:
  std::string file;  // it was read from

  // A token's id; the token that has an id. Nothing for what is not there.
  [[nodiscard]] std::optional<std::uint64_t> id(std::string_view token) const;
  [[nodiscard]] std::optional<std::string_view> token(std::uint64_t id) const;
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }  // tokens
  [[nodiscard]] std::size_t used() const noexcept { return used_; }            // ids
  // Rows a matrix needs: the largest id, plus one.
  [[nodiscard]] std::uint64_t rows() const noexcept { return by_id_.size(); }

  // Adds a token whose id is below 2^32; false, and nothing changes, if it is there. The id is then
  // this token's if no other had it, or if it is `taken` from that one.
  bool add(std::string_view token, std::uint64_t id, bool taken);

 private:
  struct Entry {
    std::uint64_t begin = 0;  // in texts_
    std::uint32_t bytes = 0, id = 0;
  };
  [[nodiscard]] std::string_view text(const Entry& entry) const {
    return std::string_view(texts_).substr(entry.begin, entry.bytes);
  }
  // The place in table_ of a token, or the free one it would have.
  [[nodiscard]] std::size_t seek(std::string_view token) const;
  void grow();

  std::string texts_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> table_;  // open addressing; 0: free, else an entry's number plus 1
  std::vector<std::uint32_t> by_id_;  // 0: not in use, else an entry's number plus 1
  std::size_t used_ = 0;
};

// The vocabulary of the model in `folder`: tokenizer.json (BPE, WordPiece, Unigram, WordLevel; with
// its added tokens), else vocab.json, else a SentencePiece tokenizer.model; the last two with the
// added tokens of added_tokens.json and tokenizer_config.json. Nothing if the folder has none of
// the three. Throws Error{format} naming file and token for one that is malformed.
[[nodiscard]] std::optional<Vocab> read_vocab(Disk& disk, const std::string& folder);

}  // namespace ingot
