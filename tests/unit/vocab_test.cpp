#include "token/vocab.hpp"

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

class VocabFiles : public ::testing::Test {
 protected:
  void put(const std::string& name, const std::string& text) {
    test::write_file(folder_ / name, text);
  }
  Vocab read() { return *read_vocab(*disk_, folder_.path()); }
  std::string refusal() {
    try {
      (void)read_vocab(*disk_, folder_.path());
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::format);
      std::string text = e.what();
      EXPECT_EQ(text.rfind(folder_.path() + "/", 0), 0U) << text;
      return text.substr(folder_.path().size() + 1);
    }
    return "accepted";
  }

  test::Folder folder_;
  std::unique_ptr<Disk> disk_ = system_disk();
};

TEST_F(VocabFiles, ExampleModelsHaveTheirTokens) {
  const Vocab base = *read_vocab(*disk_, test::example("models/base"));
  EXPECT_EQ(base.rows(), 509U);
  EXPECT_EQ(base.size(), 509U);
  EXPECT_EQ(base.id("</s>"), 1U);
  EXPECT_EQ(base.token(2), "!");
  const Vocab chat = *read_vocab(*disk_, test::example("models/chat"));
  EXPECT_EQ(chat.rows(), 512U);
  EXPECT_EQ(chat.id("<|assistant|>"), 510U);
}

TEST_F(VocabFiles, BpeAndAddedTokens) {
  put("tokenizer.json",
      R"({"added_tokens": [{"id": 0, "content": "<s>", "special": true}, {"id": 5, "content": "new"}],
          "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b\u00e9": 3}, "merges": [["a", "b"]]}})");
  const Vocab vocab = read();
  EXPECT_EQ(vocab.rows(), 6U);
  EXPECT_EQ(vocab.size(), 4U);
  EXPECT_EQ(vocab.id("b\xc3\xa9"), 3U);
  EXPECT_EQ(vocab.token(5), "new");
  EXPECT_FALSE(vocab.token(2));
  EXPECT_EQ(vocab.file, folder_ / "tokenizer.json");
}

TEST_F(VocabFiles, UnigramIdsArePositions) {
  put("tokenizer.json",
      R"({"model": {"vocab": [["<unk>", 0], ["a", -1.5], ["b", -2]]}, "added_tokens": []})");
  EXPECT_EQ(read().id("b"), 2U);
}

TEST_F(VocabFiles, AddedTokenTakesTheIdOfAPlaceholder) {
  put("tokenizer.json",
      R"({"added_tokens": [{"id": 1, "content": "<|im_end|>"}], "model": {"vocab": {"a": 0, "<x1>": 1}}})");
  const Vocab vocab = read();
  EXPECT_EQ(vocab.token(1), "<|im_end|>");
  EXPECT_EQ(vocab.id("<|im_end|>"), 1U);
  EXPECT_EQ(vocab.id("<x1>"), 1U);
}

TEST_F(VocabFiles, AddedTokenTheModelKnowsKeepsItsId) {
  put("tokenizer.json",
      R"({"added_tokens": [{"id": 7, "content": "a"}], "model": {"vocab": {"a": 0, "b": 1}}})");
  EXPECT_EQ(read().id("a"), 0U);
  EXPECT_EQ(read().rows(), 2U);
}

TEST_F(VocabFiles, VocabJsonTakesBothKindsOfAddedTokens) {
  put("vocab.json", R"({"a": 0, "b": 1})");
  put("added_tokens.json", R"({"c": 2})");
  put("tokenizer_config.json",
      R"({"added_tokens_decoder": {"3": {"content": "d", "lstrip": false}}, "model_max_length": 1e30})");
  const Vocab vocab = read();
  EXPECT_EQ(vocab.rows(), 4U);
  EXPECT_EQ(vocab.id("c"), 2U);
  EXPECT_EQ(vocab.id("d"), 3U);
}

// One SentencePiece piece: text, score, type.
std::string piece(const std::string& text) {
  const std::string body = "\x0a" + std::string(1, static_cast<char>(text.size())) + text + "\x15" +
                           std::string(4, '\0') + "\x18\x02";
  return "\x0a" + std::string(1, static_cast<char>(body.size())) + body;
}

TEST_F(VocabFiles, SentencePieceIdsArePositions) {
  put("tokenizer.model", piece("<unk>") + piece("<s>") +
                             piece("\xe2\x96\x81"
                                   "a") +
                             "\x12\x02\x08\x01");
  put("added_tokens.json", R"({"<pad>": 3})");
  const Vocab vocab = read();
  EXPECT_EQ(vocab.id("\xe2\x96\x81"
                     "a"),
            2U);
  EXPECT_EQ(vocab.id("<pad>"), 3U);
  EXPECT_EQ(vocab.rows(), 4U);
}

TEST_F(VocabFiles, SentencePieceOfAnyLengthIsReadOrRefused) {
  const std::string whole = piece("<unk>") + piece("<s>") + "\x12\x02\x08\x01";
  for (std::size_t n = 0; n < whole.size(); ++n) {
    put("tokenizer.model", whole.substr(0, n));
    (void)refusal();
  }
  put("tokenizer.model", "IQ== 0\nIg== 1\n");  // a tiktoken file by the same name
  EXPECT_EQ(
      refusal(),
      "tokenizer.model is not a SentencePiece model; save the tokenizer with a tokenizer.json");
  put("tokenizer.model", "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
  EXPECT_NE(refusal(), "accepted");
  put("tokenizer.model", std::string(100, '\xff'));
  EXPECT_NE(refusal(), "accepted");
}

TEST_F(VocabFiles, FolderWithoutTokenizerHasNothing) {
  EXPECT_FALSE(read_vocab(*disk_, folder_.path()));
}

TEST_F(VocabFiles, MalformedFilesNameFileAndToken) {
  const auto json = [&](const std::string& text) {
    put("tokenizer.json", text);
    return refusal();
  };
  EXPECT_EQ(json("{\"model\": {\"vocab\": {\"a\": 0"), "tokenizer.json is not JSON at byte 28");
  EXPECT_EQ(json("{}"), "tokenizer.json holds no vocabulary");
  EXPECT_EQ(json(R"({"model": {"vocab": {"a": 0, "a": 1}}})"),
            "tokenizer.json gives the token 'a' two ids, 0 and 1");
  for (const char* id : {"-1", "1.0", "1e3", "\"1\"", "null", "16777216", "99999999999999999999"}) {
    EXPECT_EQ(json(std::string(R"({"model": {"vocab": {"a": )") + id + "}}}"),
              "tokenizer.json gives the token 'a' no id from 0 to 16777215")
        << id;
  }
  EXPECT_EQ(json(R"({"model": {"vocab": [[1, 2]]}})"),
            "tokenizer.json: entry 0 of model.vocab has no token");
  EXPECT_EQ(
      json(R"({"model": {"vocab": {"a": [1]}}})"),
      "tokenizer.json: model.vocab is neither an object of ids nor a list of tokens and scores");
  EXPECT_EQ(json(R"({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]})"),
            "tokenizer.json: an entry of added_tokens has no content");
  EXPECT_EQ(json(R"({"model": {"vocab": {"a": 0, "b": 16777215}}})"),
            "tokenizer.json gives ids up to 16777215 to only 2 tokens");
  EXPECT_EQ(json(std::string(1'000'000, '[')), "tokenizer.json has more than 64 levels of nesting");
  EXPECT_EQ(
      json(R"({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "b"}, {"id": 2,
                     "content": "c"}], "added_tokens": [{"id": 3}]})"),
      "accepted");
}

TEST_F(VocabFiles, VocabJsonMustBeFlat) {
  put("vocab.json", R"(["a"])");
  EXPECT_EQ(refusal(), "vocab.json is not an object of tokens and ids");
  put("vocab.json", R"({"a": {"b": 1}})");
  EXPECT_EQ(refusal(), "vocab.json is not an object of tokens and ids");
  put("vocab.json", "3");
  EXPECT_EQ(refusal(), "vocab.json is not an object of tokens and ids");
}

TEST_F(VocabFiles, EveryPrefixOfATokenizerIsReadOrRefused) {
  const std::string whole =
      R"({"added_tokens": [{"id": 2, "content": "\ud83e\udd99"}], "model": {"vocab": {"a": 0, "b": 1}}})";
  for (std::size_t n = 0; n <= whole.size(); ++n) {
    put("tokenizer.json", whole.substr(0, n));
    EXPECT_EQ(refusal() == "accepted", n == whole.size());
  }
}

}  // namespace
}  // namespace ingot
