// Recipes from people who mean harm, or from a broken editor: an Error with a line, in no time.
#include <chrono>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "ingot/recipe.hpp"
#include "support.hpp"

namespace ingot {
namespace {

constexpr const char* kHead = "merge_method: linear\nmodels:\n  - model: a\n";

// The error of a text, "accepted" if there is none. Anything but Error{usage} fails the test, and
// so does a parse that is slow beyond any doubt.
std::string refusal(const std::string& text) {
  const auto start = std::chrono::steady_clock::now();
  std::string result = "accepted";
  try {
    (void)parse(text, "r.yml", {});
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::usage) << e.what();
    result = e.what();
    EXPECT_EQ(result.rfind("r.yml:", 0), 0U) << result;
    EXPECT_LT(result.size(), 1000U);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  return result;
}

std::string repeat(const std::string& unit, std::size_t n) {
  std::string out;
  for (std::size_t i = 0; i < n; ++i) out += unit;
  return out;
}

TEST(HostileRecipe, DepthIsBoundedBeforeTheStackIs) {
  // On a small stack: the parser must stop by count, not by luck.
  for (const char* unit : {"[", "{", "- ", "? ", "[{", "{? ", "- - ? ", "a: [", "!!map {", "&a [",
                           "{[", "[:", "{a: "}) {
    for (const std::size_t n : {std::size_t{40}, std::size_t{1000}, std::size_t{100'000}}) {
      EXPECT_NE(refusal(repeat(unit, n)), "accepted") << unit << n;
      EXPECT_NE(refusal(kHead + std::string("parameters: ") + repeat(unit, n)), "accepted")
          << unit << n;
    }
  }
  std::string indented;
  for (std::size_t i = 0; i < 1000; ++i) indented += std::string(i, ' ') + "a:\n";
  EXPECT_EQ(refusal(indented), "r.yml:33:33: more than 32 levels of nesting");
}

// `depth` lists, each of ten aliases of the one before.
std::string laughs(int depth) {
  std::string text = fmt::format("{}a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n", kHead);
  for (int i = 1; i < depth; ++i) {
    text += fmt::format("a{}: &a{} [{}]\n", i, i,
                        fmt::join(std::vector<std::string>(10, fmt::format("*a{}", i - 1)), ", "));
  }
  return text;
}

TEST(HostileRecipe, BillionLaughsStopAtTheNodeBound) {
  EXPECT_EQ(refusal(laughs(30)),
            "r.yml:9:15: the recipe has more than 262144 values once its aliases are written out");
}

TEST(HostileRecipe, MergeKeysCannotBombEither) {
  std::string text = fmt::format("{}a0: &a0 {{k0: x, k1: x, k2: x, k3: x}}\n", kHead);
  for (int i = 1; i < 30; ++i) {
    text +=
        fmt::format("a{0}: &a{0} {{<<: [*a{1}, *a{1}, *a{1}, *a{1}], n{0}: *a{1}}}\n", i, i - 1);
  }
  EXPECT_NE(refusal(text).find("more than 262144 values"), std::string::npos);
}

TEST(HostileRecipe, WaivedBombsAreStillBombs) {
  EXPECT_THROW((void)parse(laughs(10), "r.yml", {.allow_unknown_keys = true}), Error);
}

TEST(HostileRecipe, AliasesMustPointBackAndOut) {
  EXPECT_EQ(refusal("merge_method: linear\nmodels: &a [*a]\n"),
            "r.yml:2:13: this alias refers to a value that contains it");
  EXPECT_EQ(refusal("merge_method: linear\nmodels: [*nobody]\n"),
            "r.yml:2:10: not YAML: the referenced anchor is not defined");
  EXPECT_NE(refusal("&a {<<: *a}"), "accepted");
  EXPECT_NE(
      refusal(
          "merge_method: linear\nmodels: [{model: a}]\nparameters: {t: {filter: *, value: 1}}\n"),
      "accepted");
}

TEST(HostileRecipe, MergeKeyTakesMappingsOnly) {
  EXPECT_EQ(refusal(std::string(kHead) + "parameters: {<<: 3}\n"),
            "r.yml:4:14: '<<' takes a mapping or a list of them");
  EXPECT_EQ(refusal(std::string(kHead) + "parameters: {<<: [3]}\n"),
            "r.yml:4:14: '<<' takes a mapping or a list of them");
}

TEST(HostileRecipe, GiganticTextIsRefusedBySize) {
  EXPECT_EQ(refusal(std::string((1 << 20) + 1, 'a')),
            "r.yml: the recipe has 1048577 bytes; the most that is read is 1048576");
  const std::string big(1'000'000, 'a');
  EXPECT_EQ(refusal("? " + big + "\n: 1\n"),
            "r.yml:1:3: a key of 1000000 bytes; the most that is read is 256");
  EXPECT_EQ(refusal("merge_method: " + big + "\nmodels: [{model: a}]\n"),
            "r.yml:1:15: 'merge_method' has 1000000 bytes; at most 4096 are expected");
  EXPECT_EQ(refusal("merge_method: linear\nmodels: [{model: " + big + "}]\n"),
            "r.yml:2:18: 'model' has 1000000 bytes; at most 4096 are expected");
  EXPECT_NE(refusal("a: !" + big + " 1\n"), "accepted");
  EXPECT_NE(refusal(kHead + std::string("parameters: {t: [") + repeat("1,", 400'000) + "]}"),
            "accepted");
  EXPECT_NE(refusal(repeat("k: 1\n", 200'000)), "accepted");
  EXPECT_NE(refusal("chat_template: \"" + big), "accepted");  // never closed
  EXPECT_NE(refusal("chat_template: '" + big), "accepted");
  EXPECT_NE(refusal("a: |" + repeat("\n", 1'000'000)), "accepted");
  EXPECT_NE(refusal(repeat("\n", 1'000'000)), "accepted");
  EXPECT_NE(refusal(repeat("# c\n", 250'000)), "accepted");
  EXPECT_NE(refusal(repeat("? a\n", 250'000)), "accepted");
  EXPECT_NE(refusal(repeat("a\n", 500'000)), "accepted");
  EXPECT_NE(refusal(repeat("&a ", 300'000)), "accepted");
  EXPECT_NE(refusal(repeat("!a ", 300'000)), "accepted");
  EXPECT_NE(refusal(repeat("%YAML 1.1\n", 90'000)), "accepted");
  EXPECT_NE(refusal(repeat("--- a\n", 150'000)), "accepted");
  EXPECT_NE(refusal("[" + repeat("a: ", 300'000)), "accepted");
  EXPECT_NE(refusal("{" + repeat("a, ", 300'000)), "accepted");
}

TEST(HostileRecipe, MessagesStayShortAndUtf8) {
  std::string llamas;
  for (int i = 0; i < 100; ++i) llamas += "\xf0\x9f\xa6\x99";
  const Recipe recipe =
      parse(fmt::format("{}parameters: {{t: a{}}}\n", kHead, llamas), "r.yml", {});
  try {
    (void)evaluate(recipe.parameters.at("t"), "t", "x", 0, Kind::real, "r.yml");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.what(), fmt::format("r.yml:4:17: parameter 't' takes a number, not 'a{}…'",
                                    llamas.substr(0, 56)));
  }
  EXPECT_EQ(refusal(fmt::format("{}a{}: 1\n", kHead, llamas.substr(0, 200))), "accepted");
  const Recipe unread = parse(fmt::format("{}a{}: 1\n", kHead, llamas.substr(0, 200)), "r.yml", {});
  ASSERT_EQ(unread.remarks.size(), 1U);
  const std::string start =
      fmt::format("r.yml:4:1: unknown key 'a{}…' at the top", llamas.substr(0, 56));
  EXPECT_EQ(unread.remarks[0].text.substr(0, start.size()), start);
}

TEST(HostileRecipe, ManyDistinctKeysStayQuick) {
  std::string text = kHead;
  text += "parameters:\n";
  for (int i = 0; i < 60'000; ++i) text += "  p" + std::to_string(i) + ": 1\n";
  EXPECT_EQ(refusal(text), "accepted");
}

TEST(HostileRecipe, OnlyUtf8WithoutControlCharactersIsText) {
  EXPECT_EQ(refusal("merge_method: linear\nmodels: \xff\n"),
            "r.yml:2:9: byte 0xff is not UTF-8; save the recipe as UTF-8");
  const std::string bad[] = {"\x80",
                             "\xc0\x80",
                             "\xc3",
                             "\xe0\x80\x80",
                             "\xed\xa0\x80",
                             "\xf4\x90\x80\x80",
                             "\xf8\x88\x80\x80\x80",
                             "\xfe\xff",
                             "\xc3("};
  for (const std::string& bytes : bad) {
    EXPECT_NE(refusal("a: " + bytes).find("not UTF-8"), std::string::npos);
  }
  EXPECT_EQ(refusal("a: 1\nb: \x04\nc: 2"),
            "r.yml:2:4: control character 0x04 is not allowed in YAML");
  EXPECT_EQ(refusal(std::string("a: 1\0", 5)),
            "r.yml:1:5: control character 0x00 is not allowed in YAML");
  EXPECT_EQ(refusal("\xef\xbb\xbfmerge_method: linear\r\nmodels: [{model: gr\xc3\xb6\xc3\x9f"
                    "e/\xf0\x9f\xa6\x99}]\r\n"),
            "accepted");  // a byte-order mark, CRLF and any letter are fine
}

TEST(HostileRecipe, TabsDoNotIndent) {
  EXPECT_NE(refusal("merge_method: linear\nmodels:\n\t- model: a\n"), "accepted");
  EXPECT_NE(refusal("merge_method: linear\nmodels:\n  - model: a\n\tparameters: {}\n"), "accepted");
}

TEST(HostileRecipe, OneDocumentOnly) {
  EXPECT_EQ(refusal(std::string("---\n") + kHead), "accepted");
  EXPECT_EQ(refusal(kHead + std::string("...\n")), "accepted");
  EXPECT_EQ(refusal(kHead + std::string("---\n") + kHead),
            "r.yml:4:1: a second YAML document starts here; files of several are for "
            "mergekit-multi, and a "
            "recipe is one document: give each its own file, and run them one after the other");
  EXPECT_NE(refusal(kHead + std::string("---\n")).find("second YAML document"), std::string::npos);
  EXPECT_EQ(refusal(""), "r.yml: the recipe is empty");
  EXPECT_EQ(refusal("# nothing\n"), "r.yml: the recipe is empty");
  EXPECT_EQ(refusal("~"), "r.yml: the recipe is empty");
}

TEST(HostileRecipe, KeysAreWordsAndTagsAreNone) {
  EXPECT_EQ(refusal("[a]: 1\n"), "r.yml:1:1: a key must be a word");
  EXPECT_EQ(refusal("? {a: 1}\n: 2\n"), "r.yml:1:3: a key must be a word");
  EXPECT_EQ(refusal("~: 2\n"), "r.yml:1:1: a key must be a word");
  EXPECT_EQ(
      refusal(std::string(kHead) + "dtype: !!python/object/apply:os.system [ls]\n"),
      "r.yml:4:8: the tag 'tag:yaml.org,2002:python/object/apply:os.system' has no meaning in a "
      "recipe; remove it");
  EXPECT_NE(refusal(std::string(kHead) + "dtype: !x 1\n"), "accepted");
  EXPECT_NE(refusal(std::string(kHead) + "dtype: !!binary aGk=\n"), "accepted");
}

// Every prefix, every single-byte edit and many random splices of a real recipe.
const std::string kReal = R"(# a recipe
slices:
  - sources: &s
      - model: ./python
        layer_range: [0, 6]
      - {model: {model: {path: ./c, revision: "x"}, lora: l@1}, layer_range: [0, 6]}
    parameters: &p {t: [{filter: 'mlp', value: [1, 1e-4]}, {value: yes}]}
  - sources: *s
    parameters:
      <<: *p
merge_method: slerp
base_model: ./python
tokenizer: {source: base, pad_to_multiple_of: 64}
chat_template: |
  {% for m in messages %}{{ m.content }}{% endfor %}
dtype: bfloat16
)";

TEST(HostileRecipe, EveryPrefixIsReadOrRefused) {
  EXPECT_EQ(refusal(kReal), "accepted");
  for (std::size_t n = 0; n < kReal.size(); ++n) (void)refusal(kReal.substr(0, n));
}

TEST(HostileRecipe, EveryEditIsReadOrRefused) {
  const std::string bytes = "[]{}:,-?&*!|>'\"%@`# \t\n\r~<a0.\\\x7f\xff\xc3";
  for (std::size_t i = 0; i < kReal.size(); ++i) {
    for (const char c : bytes) {
      std::string text = kReal;
      text[i] = c;
      (void)refusal(text);
      text = kReal;
      text.insert(i, 1, c);
      (void)refusal(text);
    }
  }
}

TEST(HostileRecipe, RandomSplicesAreReadOrRefused) {
  test::Random random(20240607);
  for (int round = 0; round < 4000; ++round) {
    std::string text = kReal;
    for (std::uint64_t edits = 1 + random.below(6); edits > 0; --edits) {
      const std::size_t at = random.below(text.size() + 1);
      const std::size_t from = random.below(kReal.size());
      text.insert(at, kReal.substr(from, random.below(40)));
      text.erase(random.below(text.size()), random.below(30));
    }
    (void)refusal(text);
  }
}

}  // namespace
}  // namespace ingot
