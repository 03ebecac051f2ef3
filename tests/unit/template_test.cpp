#include "token/template.hpp"

#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using Templates = std::vector<std::optional<std::string>>;

std::optional<std::string> choose(const std::string& wish, const Templates& models = {}) {
  Recipe recipe;
  recipe.file = "r.yml";
  recipe.chat_template = wish;
  recipe.chat_template_mark = {7, 1};
  return chat_template(recipe, models);
}

std::string refusal(const std::string& wish) {
  try {
    (void)choose(wish);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::usage);
    return e.what();
  }
  return "accepted";
}

TEST(ChatTemplate, SilentRecipeLeavesTheDonors) { EXPECT_FALSE(choose("")); }

TEST(ChatTemplate, BuiltinNamesGiveTemplatesWithTheirMarks) {
  const std::pair<const char*, const char*> marks[] = {{"alpaca", "### Instruction:\\n"},
                                                       {"chatml", "<|im_start|>assistant"},
                                                       {"exaone", "[|endofturn|]"},
                                                       {"llama3", "<|start_header_id|>"},
                                                       {"mistral", "[INST] "}};
  for (const auto& [name, mark] : marks) {
    EXPECT_NE(choose(name)->find(mark), std::string::npos) << name;
    EXPECT_NE(choose(name)->find("for message in messages"), std::string::npos) << name;
  }
}

TEST(ChatTemplate, LiteralIsTakenVerbatim) {
  const std::string text = "{% for m in messages %}{{ m.content }}{% endfor %}\n";
  EXPECT_EQ(choose(text), text);
}

TEST(ChatTemplate, WordThatIsNeitherNameNorTemplateIsRefused) {
  EXPECT_EQ(refusal("chatlm"),
            "r.yml:7:1: chat_template 'chatlm' is neither a name (auto, alpaca, chatml, exaone, "
            "llama3, mistral) "
            "nor a template, which has at least 20 bytes and a '{'; did you mean 'chatml'?");
  EXPECT_NE(refusal("{{ short }}"), "accepted");
  EXPECT_NE(refusal("a long text without any brace"), "accepted");
}

TEST(ChatTemplate, AutoTakesTheMostFrequentThenTheFirst) {
  EXPECT_EQ(choose("auto", {"a", std::nullopt, " b\n", "b"}), "b");
  EXPECT_EQ(choose("auto", {"a", "b", "b ", "a"}), "a");
  EXPECT_FALSE(choose("auto", {std::nullopt}));
  EXPECT_FALSE(choose("auto"));
}

class TemplateFiles : public ::testing::Test {
 protected:
  void put(const std::string& name, const std::string& text) {
    test::write_file(folder_ / name, text);
  }
  std::optional<std::string> read() { return read_template(*disk_, folder_.path()); }
  test::Folder folder_;
  std::unique_ptr<Disk> disk_ = system_disk();
};

TEST_F(TemplateFiles, JinjaFileComesBeforeTheConfiguration) {
  EXPECT_FALSE(read());
  put("tokenizer_config.json", R"({"chat_template": "from config"})");
  EXPECT_EQ(read(), "from config");
  put("chat_template.jinja", "from file\n");
  EXPECT_EQ(read(), "from file\n");
}

TEST_F(TemplateFiles, OfNamedTemplatesTheDefaultCounts) {
  put("tokenizer_config.json",
      R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})");
  EXPECT_EQ(read(), "d");
  put("tokenizer_config.json",
      R"({"chat_template": [{"name": "rag", "template": "r"}, 3, {"name": "default"}]})");
  EXPECT_FALSE(read());
  put("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_FALSE(read());
}

TEST_F(TemplateFiles, MalformedConfigurationIsAnError) {
  for (const std::string& text :
       {std::string("{"), std::string("[]"), std::string(), std::string(100'000, '['),
        "{\"a\": " + std::string(100'000, '[')}) {
    put("tokenizer_config.json", text);
    EXPECT_THROW((void)read(), Error);
    EXPECT_THROW((void)with_template(text, "f.json", "t"), Error);
  }
}

TEST(WithTemplate, ReplacesTheValueAndNothingElse) {
  const std::string before =
      "{\n  \"model_max_length\": 1000000000000000019884624838656,\n  \"a\": {\"chat_template\": "
      "\"x\"},\n"
      "  \"chat_template\" : \"old {\\\"}\",\n  \"z\": [1.50, \"}\"]\n}\n";
  const std::string after =
      "{\n  \"model_max_length\": 1000000000000000019884624838656,\n  \"a\": {\"chat_template\": "
      "\"x\"},\n"
      "  \"chat_template\" : \"new \\\"line\\\"\\n\",\n  \"z\": [1.50, \"}\"]\n}\n";
  EXPECT_EQ(with_template(before, "f.json", "new \"line\"\n"), after);
}

TEST(WithTemplate, AnyKindOfValueIsReplaced) {
  EXPECT_EQ(with_template(R"({"chat_template":null})", "f", "t"), R"({"chat_template":"t"})");
  EXPECT_EQ(with_template(R"({"chat_template": null })", "f", "t"), R"({"chat_template": "t" })");
  EXPECT_EQ(with_template(R"({"chat_template":[{"name":"]"},{}],"b":1})", "f", "t"),
            R"({"chat_template":"t","b":1})");
  EXPECT_EQ(with_template(R"({"b":{},"chat_template":{"a":{}}})", "f", "t"),
            R"({"b":{},"chat_template":"t"})");
}

TEST(WithTemplate, ConfigurationWithoutOneStaysAsItIs) {
  EXPECT_EQ(with_template("{\"a\" : 1}\n", "f", "t"), "{\"a\" : 1}\n");
  EXPECT_EQ(with_template("{}", "f", "t"), "{}");
}

TEST(WithTemplate, TemplateMustBeUtf8) {
  EXPECT_THROW((void)with_template(R"({"chat_template":""})", "f", "\xff"), Error);
}

}  // namespace
}  // namespace ingot
