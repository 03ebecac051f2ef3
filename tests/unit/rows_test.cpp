#include "token/rows.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "support.hpp"

namespace ingot {
namespace {

Vocab vocab(const std::vector<std::pair<const char*, std::uint64_t>>& tokens) {
  Vocab out;
  for (const auto& [token, id] : tokens) {
    out.add(token, id, true);
  }
  return out;
}

// A row as "m.r+m.r", "zero" or "mean".
std::string row(const RowMap& map, std::uint64_t r) {
  for (const std::uint64_t averaged : map.averaged) {
    if (averaged == r) return map.first[r] == map.first[r + 1] ? "mean" : "both";
  }
  std::string out;
  for (std::uint64_t i = map.first[r]; i < map.first[r + 1]; ++i) {
    const RowMap::Pick& pick = map.picks[i];
    EXPECT_EQ(pick.entry, pick.model + 100);
    out += fmt::format("{}{}.{}", out.empty() ? "" : "+", pick.model, pick.row);
  }
  return out.empty() ? "zero" : out;
}

std::string text(const RowMap& map) {
  EXPECT_EQ(map.first.size(), map.rows + 1);
  std::string out;
  for (std::uint64_t r = 0; r < map.rows; ++r)
    out += fmt::format("{}{}", r == 0 ? "" : " ", row(map, r));
  return out;
}

ModelRows rows_of(const Vocab& v, std::uint32_t model, std::uint64_t height) {
  return {&v, model, model + 100, height};
}

TEST(Rows, OwnRowThenOnlyOwnerThenBaseThenMean) {
  const Vocab output =
      vocab({{"own", 0}, {"only", 1}, {"based", 2}, {"several", 3}, {"nobody", 4}});
  const Vocab a = vocab({{"own", 1}, {"based", 0}});  // the base
  const Vocab b = vocab({{"own", 0}, {"based", 1}, {"several", 2}, {"only", 3}});
  const Vocab c = vocab({{"several", 0}, {"own", 1}});
  const Vocab d = vocab({{"own", 0}});
  const ModelRows models[] = {rows_of(a, 5, 2), rows_of(b, 1, 4), rows_of(c, 2, 2),
                              rows_of(d, 3, 1)};
  const auto maps = map_rows(output, models, 0, 0, 8);
  EXPECT_EQ(text(*maps[0]), "5.1 1.3 5.0 1.2+2.0 zero");
  EXPECT_EQ(text(*maps[1]), "1.0 1.3 1.1 1.2 zero");
  EXPECT_EQ(text(*maps[2]), "2.1 1.3 5.0 2.0 zero");
  EXPECT_EQ(text(*maps[3]), "3.0 1.3 5.0 1.2+2.0 zero");
  EXPECT_EQ(maps[0]->width, 8U);
}

TEST(Rows, WithoutABaseSeveralOwnersAreAveragedInFileOrder) {
  const Vocab output = vocab({{"x", 0}});
  const Vocab a = vocab({{"x", 3}});
  const Vocab none = vocab({{"y", 0}});
  const ModelRows models[] = {rows_of(a, 4, 4), rows_of(none, 0, 1), rows_of(a, 2, 4)};
  EXPECT_EQ(text(*map_rows(output, models, std::nullopt, 0, 1)[1]), "4.3+2.3");
  EXPECT_EQ(text(*map_rows(output, models, 2, 0, 1)[1]), "2.3");
  EXPECT_EQ(text(*map_rows(output, models, 1, 0, 1)[1]), "4.3+2.3");  // the base lacks it
}

TEST(Rows, TokenBeyondTheMatrixIsNotOwned) {
  const Vocab output = vocab({{"x", 0}, {"new", 1}});
  const Vocab a = vocab({{"x", 0}, {"new", 1}});
  const ModelRows models[] = {rows_of(a, 0, 1), rows_of(a, 1, 2)};
  const auto maps = map_rows(output, models, 0, 0, 1);
  EXPECT_EQ(text(*maps[0]), "0.0 1.1");
  EXPECT_FALSE(maps[1]);
}

TEST(Rows, PaddingAndGapsAreTheMeanOfTheOthers) {
  const Vocab output = vocab({{"x", 0}, {"y", 2}});
  const ModelRows models[] = {rows_of(output, 0, 3)};
  const auto maps = map_rows(output, models, 0, 4, 1);
  EXPECT_EQ(text(*maps[0]), "0.0 mean 0.2 mean");
  EXPECT_EQ(padded_rows(output, 4), 4U);
  EXPECT_EQ(padded_rows(output, 3), 3U);
  EXPECT_EQ(padded_rows(output, 1), 3U);
  EXPECT_EQ(padded_rows(output, 0), 3U);
}

TEST(Rows, MatrixAlreadyInPlaceNeedsNoMap) {
  const Vocab output = vocab({{"x", 0}, {"y", 1}});
  const Vocab swapped = vocab({{"x", 1}, {"y", 0}});
  const ModelRows models[] = {rows_of(output, 0, 2), rows_of(swapped, 1, 2), rows_of(output, 2, 3)};
  const auto maps = map_rows(output, models, 0, 0, 1);
  EXPECT_FALSE(maps[0]);
  EXPECT_EQ(text(*maps[1]), "1.1 1.0");
  EXPECT_EQ(text(*maps[2]), "2.0 2.1");  // one row too many: the tokenizer never used it
  EXPECT_TRUE(map_rows(output, models, 0, 8, 1)[0]);
}

TEST(Rows, ChatModelMeetsTheBase) {
  const auto disk = system_disk();
  const Vocab base = *read_vocab(*disk, test::example("models/base"));
  const Vocab chat = *read_vocab(*disk, test::example("models/chat"));
  const ModelRows models[] = {rows_of(base, 0, 509), rows_of(chat, 1, 512)};
  const auto to_chat = map_rows(chat, models, 0, 0, 64);
  EXPECT_FALSE(to_chat[1]);
  ASSERT_TRUE(to_chat[0]);
  EXPECT_EQ(to_chat[0]->rows, 512U);
  EXPECT_EQ(row(*to_chat[0], 508), "0.508");
  EXPECT_EQ(row(*to_chat[0], 511), "1.511");
  const auto to_base = map_rows(base, models, 0, 64, 64);
  EXPECT_EQ(row(*to_base[1], 508), "1.508");
  EXPECT_EQ(row(*to_base[1], 509), "mean");
  EXPECT_EQ(to_base[1]->rows, 512U);
}

}  // namespace
}  // namespace ingot
