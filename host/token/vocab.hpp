// A tokenizer's vocabulary as it lies on disk: token to id. Nothing is ever tokenised.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "ingot/store.hpp"

namespace ingot {

// Tokens by their exact text. Where a file gives an id to an added token and to an ordinary one,
// the added token has it.
struct Vocab {
  std::string file;                                    // it was read from
  std::unordered_map<std::string, std::uint64_t> ids;  // every token
  std::map<std::uint64_t, std::string> tokens;         // the token of each id in use

  // Rows a matrix needs: the largest id, plus one.
  [[nodiscard]] std::uint64_t rows() const noexcept {
    return tokens.empty() ? 0 : tokens.rbegin()->first + 1;
  }
};

// The vocabulary of the model in `folder`: tokenizer.json (BPE, WordPiece, Unigram, WordLevel; with
// its added tokens), else vocab.json, else a SentencePiece tokenizer.model; the last two with the
// added tokens of added_tokens.json and tokenizer_config.json. Nothing if the folder has none of
// the three. Throws Error{format} naming file and token for one that is malformed.
[[nodiscard]] std::optional<Vocab> read_vocab(Disk& disk, const std::string& folder);

}  // namespace ingot
