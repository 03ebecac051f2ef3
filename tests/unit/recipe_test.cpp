#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "ingot/error.hpp"
#include "ingot/plan.hpp"
#include "ingot/recipe.hpp"
#include "support.hpp"

namespace ingot {
namespace {

Recipe read(std::string_view text) { return parse(text, "r.yml", {}); }

std::string refusal(std::string_view text) {
  try {
    (void)parse(text, "r.yml", {});
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::usage);
    return e.what();
  }
  return "accepted";
}

// A recipe of one linear merge with these top-level parameters.
Recipe with_parameters(const std::string& parameters) {
  return read("merge_method: linear\nmodels:\n  - model: a\nparameters:\n" + parameters);
}

std::optional<double> value(const std::string& setting, std::string_view tensor = "w", double t = 0,
                            Kind kind = Kind::real) {
  const Recipe recipe = with_parameters("  p: " + setting + "\n");
  return evaluate(recipe.parameters.at("p"), "p", tensor, t, kind, recipe.file);
}

std::string value_refusal(const std::string& setting, Kind kind = Kind::real, double t = 0) {
  try {
    (void)value(setting, "model.norm.weight", t, kind);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::usage);
    return e.what();
  }
  return "accepted";
}

// The five recipes of the well-known tutorial on merging with mergekit, in shape and models.
constexpr const char* kSlerp = R"(
slices:
  - sources:
      - model: OpenPipe/mistral-ft-optimized-1218
        layer_range: [0, 32]
      - model: mlabonne/NeuralHermes-2.5-Mistral-7B
        layer_range: [0, 32]
merge_method: slerp
base_model: OpenPipe/mistral-ft-optimized-1218
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
)";
constexpr const char* kTies = R"(
models:
  - model: mistralai/Mistral-7B-v0.1
    # no parameters necessary for base model
  - model: OpenPipe/mistral-ft-optimized-1218
    parameters:
      density: 0.5
      weight: 0.5
  - model: mlabonne/NeuralHermes-2.5-Mistral-7B
    parameters:
      density: 0.5
      weight: 0.3
merge_method: ties
base_model: mistralai/Mistral-7B-v0.1
parameters:
  normalize: true
dtype: float16
)";
constexpr const char* kPassthrough = R"(
slices:
  - sources:
    - model: OpenPipe/mistral-ft-optimized-1218
      layer_range: [0, 32]
  - sources:
    - model: mlabonne/NeuralHermes-2.5-Mistral-7B
      layer_range: [24, 32]
merge_method: passthrough
dtype: bfloat16
)";
constexpr const char* kDareTies = R"(
models:
  - model: mistralai/Mistral-7B-v0.1
  - model: samir-fama/SamirGPT-v1
    parameters:
      density: 0.53
      weight: 0.4
  - model: abacusai/Slerp-CM-mist-dpo
    parameters:
      density: 0.53
      weight: 0.3
  - model: EmbeddedLLM/Mistral-7B-Merge-14-v0.2
    parameters:
      density: 0.53
      weight: 0.3
merge_method: dare_ties
base_model: mistralai/Mistral-7B-v0.1
parameters:
  int8_mask: true
dtype: bfloat16
)";
constexpr const char* kLinear = R"(
models:
  - model: OpenPipe/mistral-ft-optimized-1218
    parameters:
      weight: 1.0
  - model: mlabonne/NeuralHermes-2.5-Mistral-7B
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
)";

TEST(Recipe, TutorialSlerpBySlicesIsReadInFull) {
  const Recipe r = read(kSlerp);
  EXPECT_EQ(r.method, "slerp");
  EXPECT_EQ(r.method_mark.line, 8);
  EXPECT_EQ(r.dtype, "bfloat16");
  EXPECT_EQ(r.text, kSlerp);
  ASSERT_EQ(r.slices.size(), 1U);
  ASSERT_EQ(r.slices[0].sources.size(), 2U);
  EXPECT_EQ(r.slices[0].sources[1].model.path, "mlabonne/NeuralHermes-2.5-Mistral-7B");
  EXPECT_EQ(r.slices[0].sources[1].layer_range, (std::pair<std::int64_t, std::int64_t>{0, 32}));
  EXPECT_EQ(r.slices[0].sources[1].mark.line, 6);
  EXPECT_EQ(r.base_model->text, "OpenPipe/mistral-ft-optimized-1218");
  const Setting& t = r.parameters.at("t");
  ASSERT_EQ(t.conditions.size(), 3U);
  EXPECT_EQ(t.conditions[0].filter, "self_attn");
  EXPECT_TRUE(t.conditions[0].value.gradient);
  EXPECT_EQ(t.conditions[0].value.points.size(), 5U);
  EXPECT_FALSE(t.conditions[2].filter);
  EXPECT_FALSE(t.conditions[2].value.gradient);
}

TEST(Recipe, TutorialTiesIsReadInFull) {
  const Recipe r = read(kTies);
  EXPECT_EQ(r.method, "ties");
  ASSERT_EQ(r.models.size(), 3U);
  EXPECT_TRUE(r.models[0].parameters.empty());
  EXPECT_EQ(evaluate(r.models[2].parameters.at("weight"), "weight", "x", 0, Kind::real, r.file),
            0.3);
  EXPECT_EQ(evaluate(r.parameters.at("normalize"), "normalize", "x", 0, Kind::boolean, r.file),
            1.0);
  EXPECT_EQ(models_of(r).size(), 3U);
}

TEST(Recipe, TutorialPassthroughKeepsBothRanges) {
  const Recipe r = read(kPassthrough);
  ASSERT_EQ(r.slices.size(), 2U);
  EXPECT_EQ(r.slices[0].sources[0].layer_range->second, 32);
  EXPECT_EQ(r.slices[1].sources[0].layer_range->first, 24);
  EXPECT_FALSE(r.base_model);
}

TEST(Recipe, TutorialDareTiesAndLinearAreRead) {
  EXPECT_EQ(read(kDareTies).parameters.count("int8_mask"), 1U);
  EXPECT_EQ(read(kDareTies).models.size(), 4U);
  EXPECT_EQ(read(kLinear).dtype, "float16");
}

TEST(Recipe, ModulesHoldModelsOrSlices) {
  const Recipe r = read(R"(
merge_method: linear
modules:
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
        base_model: b
        parameters: {weight: 2}
    parameters: {normalize: false}
  vision_tower:
    models: [{model: c, parameters: {weight: 1}}]
base_model: d
)");
  ASSERT_EQ(r.modules.size(), 2U);
  EXPECT_EQ(r.modules[0].name, "text_decoder");
  EXPECT_EQ(r.modules[0].slices[0].base_model->text, "b");
  EXPECT_EQ(r.modules[0].slices[0].parameters.count("weight"), 1U);
  EXPECT_EQ(r.modules[0].parameters.count("normalize"), 1U);
  EXPECT_EQ(r.modules[1].models[0].model.text, "c");
  EXPECT_EQ(r.modules[1].mark.line, 10);
}

TEST(Recipe, ModelsAreListedInFileOrderOnceTheBaseLast) {
  const Recipe r = read(R"(
base_model: z
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
    base_model: y
  - sources: [{model: b, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]
)");
  std::string names;
  for (const ModelRef& ref : models_of(r)) names += ref.text;
  EXPECT_EQ(names, "abycz");
}

TEST(Recipe, TorchPrefixOfADtypeIsDropped) {
  const Recipe r = read(
      "merge_method: linear\nmodels: [{model: a}]\ndtype: torch.bfloat16\n"
      "out_dtype: float16\n");
  EXPECT_EQ(r.dtype, "bfloat16");
  EXPECT_EQ(r.out_dtype, "float16");
  EXPECT_EQ(r.dtype_mark.line, 3);
  EXPECT_EQ(r.out_dtype_mark.line, 4);
}

TEST(Recipe, NameOfAMultiMergeIsAccepted) {
  EXPECT_EQ(refusal("name: x\nmerge_method: linear\nmodels: [{model: a}]\n"), "accepted");
}

TEST(Recipe, TokenizerSettingsAreReadInBothForms) {
  const std::string head = "merge_method: linear\nmodels: [{model: a}]\n";
  EXPECT_EQ(read(head).vocabulary.kind, Vocabulary::Kind::none);
  EXPECT_EQ(read(head + "tokenizer_source: base").vocabulary.kind, Vocabulary::Kind::base);
  EXPECT_EQ(read(head + "tokenizer_source: union").vocabulary.kind, Vocabulary::Kind::unite);
  const Vocabulary model = read(head + "tokenizer_source: org/m@main").vocabulary;
  EXPECT_EQ(model.kind, Vocabulary::Kind::model);
  EXPECT_EQ(model.model.revision, "main");
  EXPECT_EQ(model.mark.line, 3);
  const Vocabulary full =
      read(head + "tokenizer: {source: base, pad_to_multiple_of: 64}").vocabulary;
  EXPECT_EQ(full.kind, Vocabulary::Kind::base);
  EXPECT_EQ(full.pad_to_multiple_of, 64U);
  EXPECT_FALSE(full.tokens);
  const Vocabulary tokens = read(head + "tokenizer: {tokens: {\"<s>\": {source: a}}}").vocabulary;
  EXPECT_EQ(tokens.kind, Vocabulary::Kind::unite);  // mergekit's default
  EXPECT_TRUE(tokens.tokens);
  EXPECT_FALSE(read(head + "tokenizer: {source: base, tokens: {}}").vocabulary.tokens);
}

TEST(Recipe, ChatTemplateMayBeABlock) {
  const Recipe r = read(
      "merge_method: linear\nmodels: [{model: a}]\nchat_template: |\n"
      "  {% for m in messages %}\n  \t{{ m.content + '@' }}\n  {% endfor %}\n");
  EXPECT_EQ(r.chat_template, "{% for m in messages %}\n\t{{ m.content + '@' }}\n{% endfor %}\n");
  EXPECT_EQ(r.chat_template_mark.line, 3);
}

TEST(Recipe, AnchorsAndMergeKeysExpand) {
  const Recipe r = read(R"(
merge_method: ties
models:
  - model: a
    parameters: &p {density: 0.5, weight: 0.1}
  - model: b
    parameters: *p
  - model: c
    parameters: {<<: *p, weight: 0.9}
  - model: d
    parameters: {<<: [{weight: 0.7}, *p]}
)");
  const auto get = [&](std::size_t model, const char* name) {
    return *evaluate(r.models[model].parameters.at(name), name, "x", 0, Kind::real, r.file);
  };
  EXPECT_EQ(get(1, "weight"), 0.1);
  EXPECT_EQ(get(2, "weight"), 0.9);
  EXPECT_EQ(get(2, "density"), 0.5);
  EXPECT_EQ(get(3, "weight"), 0.7);
  EXPECT_EQ(get(3, "density"), 0.5);
}

TEST(Recipe, ExamplesAreReadAndTheirModelsExist) {
  const std::unique_ptr<Disk> disk = system_disk();
  const std::vector<std::string> names = disk->list(test::example("recipes"));
  EXPECT_GE(names.size(), 8U);
  for (const std::string& name : names) {
    const Recipe recipe = parse(read_text(*disk, test::example("recipes/" + name)), name, {});
    EXPECT_TRUE(name == recipe.method + ".yml" || name == "pickled.yml") << name;
    for (const ModelRef& model : models_of(recipe)) {
      EXPECT_EQ(disk->kind(resolve(*disk, model, test::example(""))), Disk::Kind::folder)
          << model.text;
    }
  }
}

// -- model references ---------------------------------------------------------------------------

ModelRef reference(const std::string& yaml) {
  return read("merge_method: linear\nmodels:\n  - model: " + yaml + "\n").models[0].model;
}

TEST(Reference, TextIsSplitIntoPathRevisionAndAdapters) {
  const ModelRef r = reference("org/name@v1+some/lora@dev+other");
  EXPECT_EQ(r.text, "org/name@v1+some/lora@dev+other");
  EXPECT_EQ(r.path, "org/name");
  EXPECT_EQ(r.revision, "v1");
  ASSERT_EQ(r.adapters.size(), 2U);
  EXPECT_EQ(r.adapters[0], (AdapterRef{"some/lora@dev", "some/lora", "dev", 1}));
  EXPECT_EQ(r.adapters[1], (AdapterRef{"other", "other", "", 1}));
  EXPECT_EQ(r.mark.line, 3);
  EXPECT_FALSE(r.mapped);
}

TEST(Reference, LastAtSignDivides) {
  const ModelRef r = reference("./a@b@main");
  EXPECT_EQ(r.path, "./a@b");
  EXPECT_EQ(r.revision, "main");
}

TEST(Reference, MappingFormsEqualTheirText) {
  EXPECT_EQ(reference("{model: org/name@v1}"), reference("org/name@v1"));
  EXPECT_EQ(reference("{model: {path: org/name, revision: v1}}"), reference("org/name@v1"));
  EXPECT_EQ(reference("{model: a, lora: {path: b, revision: c}}"), reference("a+b@c"));
  EXPECT_EQ(reference("{model: a, lora: b}").adapters,
            (std::vector<AdapterRef>{{"b", "b", "", 1}}));
  EXPECT_EQ(reference("{path: a, revision: v1, adapters: [b, {path: c, revision: d}]}"),
            reference("a@v1+b+c@d"));
}

TEST(Reference, AdaptersTakeWeightsInTheMappingForm) {
  const ModelRef r = reference("{path: a, adapters: [{path: b, weight: -0.5}, c]}");
  EXPECT_EQ(r.adapters, (std::vector<AdapterRef>{{"b", "b", "", -0.5}, {"c", "c", "", 1}}));
  EXPECT_EQ(r.text, "a+b:-0.5+c");
  EXPECT_TRUE(r.mapped);
  const auto refused = [](const std::string& yaml, const char* part) {
    try {
      (void)reference(yaml);
      ADD_FAILURE() << yaml;
    } catch (const Error& e) {
      EXPECT_NE(e.message().find(part), std::string::npos) << e.message();
    }
  };
  refused("{path: a, adapters: [{path: b, weight: x}]}", "'weight' takes a number");
  refused("{path: a, adapters: [{path: b, weight: 1e300}]}", "'weight' takes a number");
  refused("{path: a, adapters: [{weight: 1}]}", "needs 'path'");
  refused("{path: a, adapters: []}", "empty list");
  refused("{path: a, adapters: [{path: b, scale: 1}]}", "unknown key 'scale'");
  refused("{path: a, model: b}", "cannot stand beside 'model'");
  refused("{model: a, revision: b}", "'revision' goes with 'path'");
}

TEST(Reference, MappingDoesNotSplitItsPath) {
  const ModelRef plus = reference("{model: ./c++}");
  EXPECT_TRUE(plus.mapped);
  EXPECT_EQ(plus.path, "./c++");
  EXPECT_TRUE(plus.adapters.empty());
  const ModelRef both = reference("{model: {path: ./me@home+x}}");
  EXPECT_EQ(both.path, "./me@home+x");
  EXPECT_EQ(both.revision, "");
}

TEST(Reference, OverriddenArchitectureIsPartOfTheIdentity) {
  const ModelRef r = reference("{model: a, override_architecture: LlamaForCausalLM}");
  EXPECT_EQ(r.path, "a");
  EXPECT_EQ(r.override_architecture, "LlamaForCausalLM");
  EXPECT_FALSE(r == reference("a"));
}

// -- parameters ---------------------------------------------------------------------------------

TEST(Evaluate, ScalarsKeepTheirExactDouble) {
  EXPECT_EQ(value("0.3"), 0.3);
  EXPECT_EQ(value("1e-4"), 1e-4);
  EXPECT_EQ(value("'1e-4'"), 1e-4);
  EXPECT_EQ(value("-.5"), -0.5);
  EXPECT_EQ(value("+2"), 2.0);
  EXPECT_EQ(value("5."), 5.0);
  EXPECT_EQ(value("' 0.25 '"), 0.25);
  EXPECT_EQ(value(".inf"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(value("-.Inf"), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(*value(".nan")));
  EXPECT_EQ(value("true"), 1.0);
  EXPECT_EQ(value("off"), 0.0);
  EXPECT_EQ(value("!!float 3"), 3.0);
}

TEST(Evaluate, BooleansTakeYamlsWordsAndNothingElse) {
  for (const char* yes : {"true", "yes", "on", "y", "t", "'True'", "1", "1.0", "'1'"}) {
    EXPECT_EQ(value(yes, "w", 0, Kind::boolean), 1.0) << yes;
  }
  for (const char* no : {"false", "no", "off", "n", "f", "'FALSE'", "0", "-0.0"}) {
    EXPECT_EQ(value(no, "w", 0, Kind::boolean), 0.0) << no;
  }
  EXPECT_EQ(value_refusal("0.5", Kind::boolean),
            "r.yml:5:6: parameter 'p' takes true or false, not 0.5");
  EXPECT_EQ(value_refusal("maybe", Kind::boolean),
            "r.yml:5:6: parameter 'p' takes true or false, not 'maybe'");
}

TEST(Evaluate, IntegersMustBeWhole) {
  EXPECT_EQ(value("5.0", "w", 0, Kind::integer), 5.0);
  EXPECT_EQ(value("'7'", "w", 0, Kind::integer), 7.0);
  EXPECT_EQ(value_refusal("5.5", Kind::integer),
            "r.yml:5:6: parameter 'p' takes a whole number, not 5.5");
  EXPECT_NE(value_refusal(".inf", Kind::integer), "accepted");
}

TEST(Evaluate, WhatIsNoNumberNamesLineParameterAndText) {
  EXPECT_EQ(value_refusal("fast"), "r.yml:5:6: parameter 'p' takes a number, not 'fast'");
  EXPECT_EQ(value_refusal("'true'"), "r.yml:5:6: parameter 'p' takes a number, not 'true'");
  for (const char* text : {"010", "1_000", "0x10", "1:30", "1e999", "''", "'.'", "1e", "--1", "+-1",
                           "0.5.1", "2024-01-01", "1,5"}) {
    EXPECT_NE(value_refusal(text), "accepted") << text;
  }
}

TEST(Evaluate, GradientInterpolatesInDouble) {
  const std::string g = "[0, 0.3, 1]";
  EXPECT_EQ(value(g, "w", 0.0), 0.0);
  EXPECT_EQ(value(g, "w", 0.5), 0.3);
  EXPECT_EQ(value(g, "w", 1.0), 1.0);
  const double s = (7.0 / 31.0) * 2.0;
  EXPECT_EQ(value(g, "w", 7.0 / 31.0), (1 - s) * 0.0 + s * 0.3);
  const double u = (20.0 / 31.0) * 2.0, f = u - 1.0;
  EXPECT_EQ(value(g, "w", 20.0 / 31.0), (1 - f) * 0.3 + f * 1.0);
  EXPECT_EQ(value("[0.7]", "w", 0.4), 0.7);
  EXPECT_EQ(value("['1e-2', true]", "w", 0.5), 0.5 * 0.01 + 0.5 * 1.0);
}

TEST(Evaluate, BooleanGradientSteps) {
  EXPECT_EQ(value("[true, false]", "w", 0.0, Kind::boolean), 1.0);
  EXPECT_EQ(value("[true, false]", "w", 0.99, Kind::boolean), 1.0);
  EXPECT_EQ(value("[true, false]", "w", 1.0, Kind::boolean), 0.0);
}

TEST(Evaluate, IntegerGradientMustGiveWholeNumbers) {
  EXPECT_EQ(value("[0, 4]", "w", 0.25, Kind::integer), 1.0);
  EXPECT_NE(value_refusal("[0, 4]", Kind::integer, 0.3), "accepted");
}

TEST(Evaluate, EveryPointIsCheckedBeforeOneIsUsed) {
  EXPECT_NE(value_refusal("[1, 2, x]", Kind::real, 0.0), "accepted");
}

TEST(Evaluate, FirstMatchingFilterCounts) {
  const std::string list = "[{filter: mlp, value: 1}, {filter: layers.1, value: 2}, {value: 3}]";
  EXPECT_EQ(value(list, "model.layers.1.mlp.up_proj.weight"), 1.0);
  EXPECT_EQ(value(list, "model.layers.11.self_attn.q_proj.weight"), 2.0);  // a plain substring
  EXPECT_EQ(value(list, "model.norm.weight"), 3.0);
  EXPECT_EQ(value("[{filter: MLP, value: 1}]", "mlp"), std::nullopt);
  EXPECT_EQ(value("{filter: '*', value: 4}", "anything"), 4.0);
  EXPECT_EQ(value("{filter: mlp, value: [1, 3]}", "mlp", 0.5), 2.0);
  EXPECT_EQ(value("{filter: mlp, value: 1}", "norm"), std::nullopt);
}

TEST(Evaluate, ErrorNamesTheLineOfTheValue) {
  const Recipe r = with_parameters("  p:\n    - filter: mlp\n      value: 1\n    - value: x\n");
  try {
    (void)evaluate(r.parameters.at("p"), "p", "norm", 0, Kind::real, r.file);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "r.yml:8:14: parameter 'p' takes a number, not 'x'");
  }
}

// -- refusals -----------------------------------------------------------------------------------

TEST(Refusal, UnknownKeyNamesFileLineAndNearestName) {
  EXPECT_EQ(refusal("merge_method: linear\nmodels:\n  - model: a\nparamters: {weight: 1}\n"),
            "r.yml:4:1: unknown key 'paramters' at the top level; did you mean 'parameters'?");
  EXPECT_EQ(
      refusal("merge_method: linear\nmodels:\n  - model: a\n    Parameters: {weight: 1}\n"),
      "r.yml:4:5: unknown key 'Parameters' in an entry of 'models'; did you mean 'parameters'?");
  EXPECT_EQ(
      refusal("merge_method: linear\nmodels: [{model: a}]\nparameters:\n  t:\n    - fliter: x\n"
              "      value: 1\n"),
      "r.yml:5:7: unknown key 'fliter' in a condition; did you mean 'filter'?");
}

TEST(Refusal, KeysOfAdaptersAndExtractionsAreAllKnown) {
  EXPECT_EQ(
      refusal("adapter_method: cat\nadapters: [{adapter: a}]\nauthor: me\n"),
      "r.yml:3:1: unknown key 'author' at the top level of a recipe of adapters; known there: "
      "adapter_method, adapters, parameters, rank, energy, ranks, majority_sign, "
      "whole_tensors, keep_scaling, compat, for, dtype, name (a method's parameters go under "
      "'parameters')");
}

TEST(Refusal, KeysThatSayWhichWeightsAreMeantAreNotPassedOver) {
  EXPECT_EQ(refusal("merge_method: linear\nmodels:\n  - model: a\n    revision: v1\n"),
            "r.yml:4:5: unknown key 'revision' in an entry of 'models'; it belongs in a model "
            "reference");
  EXPECT_NE(refusal("merge_method: linear\nmodels:\n  - model: a\n    lora: b\n"), "accepted");
}

TEST(Refusal, WaivedKeysAreRecorded) {
  const Recipe r = parse("merge_method: linear\nfoo: 1\nmodels:\n  - model: a\n    bar: {x: [~]}\n",
                         "r.yml", {.allow_unknown_keys = true});
  EXPECT_EQ(r.waived, (std::vector<std::string>{"foo (line 2)", "bar (line 5)"}));
}

TEST(Refusal, DuplicateKeysAreFoundAtEveryLevel) {
  EXPECT_EQ(refusal("merge_method: linear\nmodels: [{model: a}]\nmerge_method: ties\n"),
            "r.yml:3:1: the key 'merge_method' is already given in line 1, with another value; "
            "remove one of them");
  EXPECT_EQ(
      refusal("merge_method: linear\nmodels: [{model: a}]\nparameters:\n  t: 1\n  \"t\": 2\n"),
      "r.yml:5:3: the key 't' is already given in line 4, with another value; remove one of them");
}

TEST(Refusal, ExactlyOneOfModelsSlicesModules) {
  EXPECT_EQ(
      refusal("merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: [{model: "
              "a, layer_range: [0, 1]}]}]\n"),
      "r.yml:3:1: 'slices' cannot stand beside 'models' of line 2; give exactly one of models, "
      "slices, modules");
  EXPECT_EQ(refusal("merge_method: linear\n"),
            "r.yml:1:1: nothing to merge: give exactly one of models, slices, modules");
  EXPECT_EQ(refusal("merge_method: linear\nmodules:\n  x: {parameters: {}}\n"),
            "r.yml:3:6: nothing to merge: give exactly one of models, slices");
  EXPECT_EQ(refusal("models: [{model: a}]\n"),
            "r.yml:1:1: 'merge_method' is missing, for example 'merge_method: linear'");
  EXPECT_EQ(refusal("merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: base\n"
                    "tokenizer: {source: base}\n"),
            "r.yml:4:1: 'tokenizer' cannot stand beside 'tokenizer_source' of line 3");
}

TEST(Refusal, WrongTypesNameKeyAndLine) {
  const std::string head = "merge_method: linear\n";
  EXPECT_EQ(
      refusal("- a\n"),
      "r.yml:1:1: a recipe is a mapping with 'merge_method' and one of 'models', 'slices' and "
      "'modules', not a list");
  EXPECT_EQ(refusal(head + "models: a\n"), "r.yml:2:9: 'models' takes a list, not a single value");
  EXPECT_EQ(
      refusal(head + "models:\n  - a\n"),
      "r.yml:3:5: an entry of 'models' is a mapping, as in '- model: ...', not a single value");
  EXPECT_EQ(
      refusal(head + "models:\n"),
      "r.yml:2:1: 'models' is empty, so there is nothing to merge; give exactly one of models, "
      "slices, modules");
  EXPECT_EQ(refusal(head + "models: []\n"), refusal(head + "models:\n"));
  EXPECT_EQ(refusal(head + "models: [{parameters: {}}]\n"),
            "r.yml:2:10: an entry of 'models' needs 'model'");
  EXPECT_EQ(refusal(head + "models: [{model: [a]}]\n"),
            "r.yml:2:18: 'model' takes text, not a list");
  EXPECT_EQ(refusal(head + "models: [{model: ''}]\n"), "r.yml:2:18: 'model' is empty");
  EXPECT_EQ(refusal(head + "modules: {}\n").substr(0, 29), "r.yml:2:1: 'modules' is empty");
  EXPECT_EQ(refusal(head + "models: [{model: {lora: x}}]\n"),
            "r.yml:2:18: a model reference needs 'model'");
  EXPECT_EQ(refusal(head + "models: [{model: {model: {revision: x}}}]\n"),
            "r.yml:2:26: a model path needs 'path'");
  EXPECT_EQ(refusal("merge_method: [linear]\nmodels: [{model: a}]\n"),
            "r.yml:1:15: 'merge_method' takes text, not a list");
}

TEST(Refusal, ParameterSettingsMustHaveAValue) {
  const std::string head = "merge_method: linear\nmodels: [{model: a}]\nparameters:\n  ";
  EXPECT_EQ(refusal(head + "t:\n"), "r.yml:4:3: 't' has no value; give it one or remove the key");
  EXPECT_EQ(refusal(head + "t: ~\n"), "r.yml:4:3: 't' has no value; give it one or remove the key");
  EXPECT_EQ(refusal(head + "t: [1, [2]]\n"),
            "r.yml:4:10: 't' takes a list of single values; this is a list");
  EXPECT_EQ(refusal(head + "t: [1, ~]\n"),
            "r.yml:4:10: 't' takes a list of single values; this is nothing");
  EXPECT_EQ(refusal(head + "t: [{value: 1}, 2]\n"),
            "r.yml:4:19: 't' mixes conditions and plain values in one list");
  EXPECT_EQ(refusal(head + "t: [1, {value: 2}]\n"),
            "r.yml:4:10: 't' takes a list of single values; this is a mapping");
  EXPECT_EQ(refusal(head + "t: {filter: x}\n"), "r.yml:4:6: a condition of 't' needs 'value'");
}

TEST(Refusal, LayerRangesMustBeSound) {
  const auto range = [](const std::string& text) {
    return refusal("merge_method: linear\nslices:\n  - sources: [{model: a, layer_range: " + text +
                   "}]\n");
  };
  EXPECT_EQ(range("[0, 1]"), "accepted");
  EXPECT_EQ(range("['0', 1.0]"), "accepted");
  const std::string pair = "r.yml:3:39: 'layer_range' takes a pair of whole numbers, as in [0, 16]";
  for (const char* text : {"[0]", "[0, 1, 2]", "[-1, 2]", "[0, 1.5]", "[a, b]", "[0, .inf]",
                           "[0, .nan]", "[0, 99999999999999999999]", "[[0], 1]"}) {
    EXPECT_EQ(range(text), pair) << text;
  }
  EXPECT_EQ(range("8"),
            "r.yml:3:39: 'layer_range' takes a pair of whole numbers, as in [0, 16], not a single "
            "value");
  EXPECT_EQ(range("[4, 4]"), "accepted");
  EXPECT_EQ(
      range("[4, 2]"),
      "r.yml:3:39: 'layer_range' [4, 2] ends before it begins; [2, 4] are the layers from 2 to "
      "before 4");
  EXPECT_EQ(refusal("merge_method: linear\nslices:\n  - sources: [{model: a}]\n"),
            "r.yml:3:15: an entry of 'sources' needs 'layer_range'");
}

TEST(Refusal, PaddingMustBeAPositiveWholeNumber) {
  for (const char* text : {"0", "-8", "1.5", "x", "1e300", ".nan", "[1]"}) {
    EXPECT_NE(refusal(std::string("merge_method: linear\nmodels: [{model: a}]\ntokenizer: "
                                  "{source: base, pad_to_multiple_of: ") +
                      text + "}\n"),
              "accepted")
        << text;
  }
}

// -- habits: what mergekit reads without a word is read with one --------------------------------

// The remarks of a recipe that is read, without "r.yml:" and the column.
std::vector<std::string> remarks(const std::string& text) {
  std::vector<std::string> all;
  for (const Remark& remark : read(text).remarks) {
    EXPECT_FALSE(remark.fatal) << remark.text;
    const std::string start = fmt::format("r.yml:{}:{}: ", remark.mark.line, remark.mark.column);
    EXPECT_TRUE(remark.text.starts_with(start)) << remark.text;
    all.push_back(fmt::format("{}: {}", remark.mark.line, remark.text.substr(start.size())));
  }
  return all;
}
using Remarks = std::vector<std::string>;

TEST(Habit, OrdinaryRecipesAreReadWithoutRemark) {
  for (const char* text : {kSlerp, kTies, kPassthrough, kDareTies, kLinear}) {
    EXPECT_EQ(remarks(text), Remarks{});
  }
}

TEST(Habit, KeysWithoutValueAreAbsent) {
  const std::string plain = "merge_method: linear\nmodels:\n  - model: a\n";
  for (const char* key : {"parameters", "dtype", "out_dtype", "base_model", "tokenizer_source",
                          "tokenizer", "chat_template", "slices", "modules"}) {
    EXPECT_EQ(remarks(fmt::format("{}{}:\n", plain, key)),
              Remarks{fmt::format("4: '{}' has no value: read as if the key were not there", key)});
  }
  const Recipe r = read(plain + "    parameters:\nslices: []\nchat_template: ''\nbase_model: ~\n");
  EXPECT_EQ(r.remarks.size(), 4U);
  EXPECT_TRUE(r.models[0].parameters.empty());
  EXPECT_TRUE(r.slices.empty());
  EXPECT_EQ(r.chat_template, "");
  EXPECT_FALSE(r.base_model);
  EXPECT_EQ(remarks(plain + "name:\n"), Remarks{});  // read by nothing
  EXPECT_EQ(remarks(plain + "name: [a]\n"), Remarks{});
}

TEST(Habit, EmptySettingsAndFiltersAreAbsent) {
  EXPECT_TRUE(with_parameters("  p: []\n").parameters.empty());
  EXPECT_EQ(value("{filter: ~, value: 1}", "any"), 1.0);
  EXPECT_EQ(value("[{filter: mlp, value: 2, note: x}, {filter: , value: 1}]", "any"), 1.0);
}

TEST(Habit, UnknownKeysAreUnreadAndSaid) {
  EXPECT_EQ(
      remarks("merge_method: linear\ndensity: 0.5\nmodels:\n  - model: a\n    weight: 1\n"),
      (Remarks{"2: unknown key 'density' at the top level is ignored, as mergekit ignores it; "
               "known there: merge_method, models, slices, modules, base_model, parameters, "
               "dtype, out_dtype, tokenizer_source, tokenizer, chat_template, name (a "
               "method's parameters go under 'parameters')",
               "5: unknown key 'weight' in an entry of 'models' is ignored, as mergekit ignores "
               "it; known there: model, parameters (a method's parameters go under "
               "'parameters')"}));
  EXPECT_EQ(remarks("merge_method: linear\nmodels:\n  - model: a\n    layer_range: [0, 1]\n"),
            Remarks{"4: unknown key 'layer_range' in an entry of 'models' is ignored, as mergekit "
                    "ignores it; it belongs in an entry of 'sources'"});
  EXPECT_EQ(remarks("merge_method: linear\nslices:\n  - sources: [{model: a, layer_range: [0, "
                    "1]}]\n    residual_weight: 1\n"),
            Remarks{"4: 'residual_weight' changes nothing, as in mergekit; remove it"});
  EXPECT_EQ(
      remarks("merge_method: linear\nauthor: {a: [1]}\nlicense: x\nmodels: [{model: a}]\n").size(),
      2U);
}

TEST(Habit, KeyWithoutValueGivenAgainWithOneHasThat) {
  const Recipe r = read("merge_method: linear\ndtype:\nmodels: [{model: a}]\ndtype: float16\n");
  EXPECT_EQ(r.dtype, "float16");
  EXPECT_TRUE(r.remarks.empty());
}

TEST(Habit, KeyGivenTwiceWithOneValueCountsOnce) {
  EXPECT_EQ(remarks("merge_method: linear\nmodels: [{model: a}]\nmerge_method: linear\n"),
            Remarks{"3: the key 'merge_method' is already given in line 1, with the same value: it "
                    "counts once"});
  EXPECT_EQ(
      read("merge_method: linear\nmodels: [{model: a}]\nmodels: [{model: a}]\n").models.size(), 1U);
  for (const char* second :
       {"{t: 2}", "{t: '1'}", "{t: [1]}", "{u: 1}", "{t: 1, u: 1}", "1", "~"}) {
    EXPECT_NE(refusal(fmt::format("merge_method: linear\nmodels: [{{model: a}}]\nparameters: {{t: "
                                  "1}}\nparameters: {}\n",
                                  second)),
              "accepted")
        << second;
  }
}

// -- all errors of a recipe ---------------------------------------------------------------------

TEST(Collected, EveryErrorIsToldWithItsPlace) {
  const Recipe r = parse(
      "merge_method: [linear]\n"
      "models:\n"
      "  - model: ''\n"
      "  - model: b\n"
      "    parameters: {weight: ~, density: [{value: 1}, 2], scale: 1}\n"
      "  - c\n"
      "paramters: {}\n"
      "dtype: [x]\n"
      "tokenizer: base\n"
      "chat_template: {}\n"
      "dtype: y\n",
      "r.yml", {.collect = true});
  std::vector<int> lines;
  for (const Remark& remark : r.remarks) {
    EXPECT_TRUE(remark.fatal) << remark.text;
    EXPECT_TRUE(
        remark.text.starts_with(fmt::format("r.yml:{}:{}: ", remark.mark.line, remark.mark.column)))
        << remark.text;
    lines.push_back(remark.mark.line);
  }
  EXPECT_EQ(lines, (std::vector<int>{1, 3, 5, 5, 6, 7, 8, 9, 10, 11}));
  ASSERT_EQ(r.models.size(), 1U);  // what is sound is there
  EXPECT_EQ(r.models[0].model.text, "b");
  EXPECT_EQ(r.models[0].parameters.size(), 1U);
}

TEST(Collected, ErrorsAreBounded) {
  std::string text = "merge_method: linear\nmodels:\n";
  for (int i = 0; i < 20'000; ++i) text += "  - 1\n";
  text += "paramters: {}\n";
  EXPECT_LE(parse(text, "r.yml", {.collect = true}).remarks.size(), 1000U);
}

TEST(Collected, FilesOfOtherProgramsAreNamed) {
  EXPECT_EQ(
      refusal("base_model: a\ngate_mode: hidden\nexperts: [{source_model: a}]\n"),
      "r.yml:3:1: 'experts': this file is for mergekit-moe, which builds a mixture of experts "
      "out of dense models; ingot merges models and does not build one");
  EXPECT_NE(refusal("genome: {models: [a]}\ntasks: [x]\n").find("mergekit-evolve"),
            std::string::npos);
  EXPECT_NE(
      refusal("merge_method: linear\nmodels: [{model: a}]\n---\na: 1\n").find("mergekit-multi"),
      std::string::npos);
}

TEST(Suggestion, NamesTheNearestOrThoseOfWhichItIsAPart) {
  const std::vector<std::string> known{"dare_linear", "dare_ties", "ties", "dare_ties"};
  EXPECT_EQ(suggestion("tise", known), "; did you mean 'ties'?");
  EXPECT_EQ(suggestion("Dare", known), "; did you mean 'dare_linear' or 'dare_ties'?");
  EXPECT_EQ(suggestion("linear", known), "; did you mean 'dare_linear'?");
  EXPECT_EQ(suggestion("dar", known), "");
  EXPECT_EQ(suggestion("", known), "");
}

// -- nearest ------------------------------------------------------------------------------------

TEST(Nearest, FindsSlipsAndOnlySlips) {
  const std::vector<std::string> known{"weight", "density", "t", "normalize", "lambda"};
  EXPECT_EQ(nearest("weigth", known), "weight");  // a swap is one edit
  EXPECT_EQ(nearest("Density", known), "density");
  EXPECT_EQ(nearest("normalise", known), "normalize");
  EXPECT_EQ(nearest("lamda", known), "lambda");
  EXPECT_EQ(nearest("epsilon", known), "");
  EXPECT_EQ(nearest("", known), "");
  EXPECT_EQ(nearest("s", known), "");
  EXPECT_EQ(nearest("T", known), "t");
  EXPECT_EQ(nearest(std::string(1 << 20, 'w'), known), "");
}

}  // namespace
}  // namespace ingot
