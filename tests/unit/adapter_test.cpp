// Reading adapters: configuration, patterns, names, and every tensor accounted for.
#include "ingot/adapter.hpp"

#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "adapter.hpp"
#include "adapter/keys.hpp"
#include "adapter/pattern.hpp"
#include "ingot/error.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using adapter::Effort;
using adapter::Fit;
using adapter::Key;
using adapter::parse_key;
using adapter::Pattern;
using test::lora_config;
using test::lora_pair;
using test::read_adapter_of;
using test::operator+;

bool fits(const std::string& pattern, const std::string& path, Fit fit = Fit::tail) {
  Effort effort;
  return Pattern(pattern, fit, "test").matches(path, effort);
}

// The message with which the adapter is refused.
std::string refusal(const std::string& config, const test::Tensors& tensors) {
  try {
    (void)read_adapter_of(config, tensors);
  } catch (const Error& e) {
    return e.what();
  }
  return "(accepted)";
}

void expect_refused(const std::string& config, const test::Tensors& tensors,
                    const std::string& part) {
  const std::string said = refusal(config, tensors);
  EXPECT_NE(said.find(part), std::string::npos) << config << '\n' << said;
}

// --- patterns

TEST(Pattern, KeyMatchesWholeNamesAtTheEndOfAPath) {
  EXPECT_TRUE(fits("q_proj", "model.layers.0.self_attn.q_proj"));
  EXPECT_TRUE(fits("q_proj", "q_proj"));
  EXPECT_FALSE(fits("q_proj", "model.layers.0.self_attn.xq_proj"));
  EXPECT_FALSE(fits("q_proj", "model.q_proj.inner"));
  EXPECT_TRUE(fits("self_attn.q_proj", "model.layers.0.self_attn.q_proj"));
}

TEST(Pattern, DotOfAPlainKeyStandsForAnyCharacter) {
  EXPECT_TRUE(fits("self_attn.q", "a.self_attnXq"));
  EXPECT_FALSE(fits("self_attn.q", "a.self_attnq"));
}

TEST(Pattern, KeysArePythonsExpressions) {
  const std::string down = "model.layers.2.mlp.down_proj";
  EXPECT_TRUE(fits(R"(layers\.[0-2]\.mlp\.down_proj)", down));
  EXPECT_FALSE(fits(R"(layers\.[0-1]\.mlp\.down_proj)", down));
  EXPECT_TRUE(fits(R"((?P<n>layers)\.\d+\.mlp\.(?!up)\w+)", down));
  EXPECT_FALSE(fits(R"(layers\.\d+\.mlp\.(?!down)\w+)", down));
  // Without an anchor inside, alternatives bind as in (.*\.)?(K)$.
  EXPECT_TRUE(fits("up_proj|down_proj", down));
}

TEST(Pattern, WholeFitsNothingLess) {
  EXPECT_TRUE(fits(R"(model\..*\.q_proj)", "model.layers.0.q_proj", Fit::whole));
  EXPECT_FALSE(fits(R"(model\..*\.q)", "model.layers.0.q_proj", Fit::whole));
  EXPECT_FALSE(fits(R"(layers.*)", "model.layers.0.q_proj", Fit::whole));
}

TEST(Pattern, CatastrophicExpressionsEndInAnError) {
  const std::string path(200, 'a');
  EXPECT_THROW((void)fits("(a+)+[bc]", path), Error);
  EXPECT_THROW((void)fits("((a|aa)+)+[^a]", path, Fit::whole), Error);
  EXPECT_THROW((void)fits(std::string(2000, '(') + std::string(2000, ')'), "a"), Error);
  EXPECT_THROW((void)fits("(", "a"), Error);
  EXPECT_THROW((void)fits(std::string(100'000, 'a'), "a"), Error);
}

TEST(Pattern, AllMatchesTogetherAreBounded) {
  Effort effort;
  effort.matches = 3;
  const Pattern pattern("[ab]", Fit::tail, "test");
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(pattern.matches("a", effort));
  EXPECT_THROW((void)pattern.matches("a", effort), Error);
}

TEST(Pattern, FirstKeyInTheFileCounts) {
  const adapter::Table table({{"l.*", 16.0}, {"lin0", 8.0}}, "test");
  Effort effort;
  const auto hit = table.find("net.lin0", effort);
  ASSERT_TRUE(hit);
  EXPECT_EQ(hit->value, 16.0);
  ASSERT_TRUE(hit->rival);
  EXPECT_EQ(table.key(*hit->rival), "lin0");
  EXPECT_FALSE(table.find("net.other", effort));
}

// --- names

TEST(Key, TailsTellPieces) {
  struct Case {
    const char* name;
    Family family;
    const char* path;
    Piece piece;
    std::uint32_t nesting = 0;
  };
  for (const Case& c : {
           Case{"base_model.model.m.q.lora_A.weight", Family::lora, "m.q", Piece::a},
           {"base_model.model.m.q.lora_B.default.weight", Family::lora, "m.q", Piece::b},
           {"m.q.lora_B.bias", Family::lora, "m.q", Piece::bias},
           {"base_model.model._orig_mod.m.q.lora_A.weight", Family::lora, "m.q", Piece::a},
           {"base_model.model.m.q.lora_magnitude_vector", Family::lora, "m.q", Piece::magnitude},
           {"base_model.model.m.q.lora_magnitude_vector.weight", Family::lora, "m.q",
            Piece::magnitude},
           {"base_model.model.m.e.lora_embedding_A", Family::lora, "m.e", Piece::a},
           {"base_model.model.m.x.base_layer.lora_A.weight", Family::lora, "m.x", Piece::a, 1},
           {"base_model.model.m.x.base_layer.base_layer.lora_B.weight", Family::lora, "m.x",
            Piece::b, 2},
           {"base_model.model.m.q.lora_E", Family::adalora, "m.q", Piece::e},
           {"base_model.model.m.q.ia3_l", Family::ia3, "m.q", Piece::l},
           {"base_model.model.m.q.hada_w2_b", Family::loha, "m.q", Piece::w2_b},
           {"base_model.model.m.q.lokr_w1", Family::lokr, "m.q", Piece::w1},
           {"base_model.model.m.q.oft_R.weight", Family::oft, "m.q", Piece::r},
           {"base_model.model.m.q.boft_s", Family::boft, "m.q", Piece::s},
           {"base_model.model.m.q.vera_lambda_d", Family::vera, "m.q", Piece::lambda_d},
           {"base_model.model.m.q.miss_block", Family::miss, "m.q", Piece::block},
           {"base_model.model.m.q.hra_u", Family::hra, "m.q", Piece::u},
       }) {
    const Key key = parse_key(c.name, c.family);
    EXPECT_EQ(key.kind, Key::Kind::factor) << c.name << ": " << key.why;
    EXPECT_EQ(key.path, c.path) << c.name;
    EXPECT_EQ(key.piece, c.piece) << c.name;
    EXPECT_EQ(key.nesting, c.nesting) << c.name;
    EXPECT_FALSE(key.inner) << c.name;
  }
}

TEST(Key, LevelsInsideAPathMarkAWrappedModule) {
  const Key key =
      parse_key("base_model.model.m.attn.base_layer.out_proj.lora_A.weight", Family::lora);
  EXPECT_EQ(key.path, "m.attn.out_proj");
  EXPECT_TRUE(key.inner);
  EXPECT_EQ(key.nesting, 0U);
}

TEST(Key, SavedModulesTokensAndPlainTensors) {
  Key key = parse_key("base_model.model.lm_head.modules_to_save.default.weight", Family::lora);
  EXPECT_EQ(key.kind, Key::Kind::saved);
  EXPECT_EQ(key.path, "lm_head");
  EXPECT_EQ(key.parameter, "weight");
  key = parse_key("base_model.model.c.modules_to_save.dense.bias", Family::lora);
  EXPECT_EQ(key.path + " " + key.parameter, "c dense.bias");
  EXPECT_EQ(parse_key("base_model.model.lm_head.original_module.weight", Family::lora).kind,
            Key::Kind::original);
  key = parse_key("base_model.model.m.e.token_adapter.trainable_tokens_delta", Family::lora);
  EXPECT_EQ(key.kind, Key::Kind::tokens);
  EXPECT_EQ(key.path, "m.e");
  key = parse_key("base_model.model.m.q.base_layer.bias", Family::lora);
  EXPECT_EQ(key.kind, Key::Kind::plain);
  EXPECT_EQ(key.path + " " + key.parameter, "m.q bias");
  EXPECT_EQ(key.nesting, 1U);
  EXPECT_EQ(parse_key("base_model.vera_A", Family::vera).kind, Key::Kind::shared);
}

TEST(Key, ForeignNamesAreToldWhoseTheyAre) {
  for (const auto& [name, whose] :
       {std::pair("lora_unet_down_blocks_0_attn.lora_down.weight", "Kohya"),
        {"lora_te1_text_model.alpha", "Kohya"},
        {"unet.down_blocks.0.to_q.lora.down.weight", "diffusers"}}) {
    expect_refused(lora_config(), (test::Tensors{{name, Dtype::f32, {2, 4}}}), whose);
  }
}

TEST(Key, NeverThrows) {
  for (const char* name : {"", ".", "a", "base_model", "base_model.model", "..lora_A.weight",
                           "lora_A.weight", "base_layer.lora_A.weight", "modules_to_save",
                           "x.modules_to_save", "token_adapter.trainable_tokens_delta"}) {
    EXPECT_EQ(parse_key(name, Family::lora).kind, Key::Kind::refused) << name;
  }
}

// --- whole adapters

TEST(Adapter, RankAlphaAndScalingComeFromTheFirstPatternThatFits) {
  const Adapter a =
      read_adapter_of(lora_config(R"("rank_pattern": {"layers\\.0\\.mlp\\.down": 4, "down": 3},
                     "alpha_pattern": {"mlp.up": 1})"),
                      lora_pair("layers.0.mlp.down", 4) + lora_pair("layers.1.mlp.down", 3) +
                          lora_pair("layers.0.mlp.up") + lora_pair("layers.0.q"));
  ASSERT_EQ(a.modules.size(), 4U);
  EXPECT_EQ(a.modules[0].path, "layers.0.mlp.down");
  EXPECT_EQ(a.modules[0].rank, 4U);
  EXPECT_EQ(a.modules[0].scaling, 1.0);
  EXPECT_EQ(a.modules[1].path, "layers.0.mlp.up");
  EXPECT_EQ(a.modules[1].scaling, 0.5);
  EXPECT_EQ(a.modules[2].scaling, 2.0);
  EXPECT_EQ(a.modules[3].scaling, 4.0 / 3);
}

TEST(Adapter, RsLoraDividesByTheRoot) {
  const Adapter a = read_adapter_of(lora_config(R"("use_rslora": true)"), lora_pair("q"));
  EXPECT_EQ(a.modules[0].scaling, 4 / std::sqrt(2.0));
}

TEST(Adapter, OverlappingPatternsWithDifferentValuesAreReported) {
  const Adapter a =
      read_adapter_of(lora_config(R"("alpha_pattern": {"l.*": 16, "lin0": 8})"), lora_pair("lin0"));
  ASSERT_EQ(a.warnings.size(), 1U);
  EXPECT_NE(a.warnings[0].find("'lin0' (8)"), std::string::npos) << a.warnings[0];
  EXPECT_EQ(a.modules[0].scaling, 8.0);
}

TEST(Adapter, PatternThatFitsNothingIsReported) {
  const Adapter a =
      read_adapter_of(lora_config(R"("rank_pattern": {"nowhere": 7})"), lora_pair("q"));
  ASSERT_EQ(a.warnings.size(), 1U);
  EXPECT_NE(a.warnings[0].find("'nowhere' fits no module"), std::string::npos);
  // A key that fits after another one fits a module, whatever their values.
  for (const char* keys : {R"({"q": 8, ".*q": 8})", R"({"q": 8, ".*q": 16, "[q]": 32})"}) {
    const Adapter more =
        read_adapter_of(lora_config(fmt::format(R"("alpha_pattern": {})", keys)), lora_pair("q"));
    for (const std::string& warning : more.warnings) {
      EXPECT_EQ(warning.find("no module"), std::string::npos) << warning;
    }
  }
}

TEST(Adapter, MarkedFormOfASavedModuleCounts) {
  const Adapter a = read_adapter_of(
      lora_config(R"("modules_to_save": ["lm_head"])"),
      lora_pair("q") +
          test::Tensors{{"base_model.model.lm_head.modules_to_save.weight", Dtype::f32, {3, 4}},
                        {"base_model.model.lm_head.original_module.weight", Dtype::f32, {3, 4}},
                        {"base_model.model.lm_head.weight", Dtype::f32, {3, 4}}});
  ASSERT_EQ(a.saved.size(), 1U);
  EXPECT_EQ(a.saved[0].name, "lm_head.weight");
  EXPECT_EQ(a.checkpoint.entries()[a.saved[0].entry].info.name,
            "base_model.model.lm_head.modules_to_save.weight");
  EXPECT_EQ(a.idle.size(), 2U);
}

TEST(Adapter, SavedModulesAreThoseWhoseNameEndsAsPeftMatchesThem) {
  const Adapter a =
      read_adapter_of(lora_config(R"("modules_to_save": ["head"])"),
                      test::Tensors{{"base_model.model.head.dense.weight", Dtype::f32, {3, 4}},
                                    {"base_model.model.head.dense.bias", Dtype::f32, {3}}});
  EXPECT_EQ(a.saved.size(), 2U);
  const Adapter norms = read_adapter_of(
      lora_config(R"("modules_to_save": ["norm"])"),
      test::Tensors{{"base_model.model.layers.0.input_layernorm.weight", Dtype::f32, {4}},
                    {"base_model.model.norm.weight", Dtype::f32, {4}}});
  EXPECT_EQ(norms.saved.size(), 2U);
  expect_refused(lora_config(R"("modules_to_save": ["head"])"),
                 (test::Tensors{{"base_model.model.head.weight", Dtype::f32, {3, 4}},
                                {"base_model.model.headless.weight", Dtype::f32, {3, 4}}}),
                 "headless.weight");
  expect_refused(lora_config(R"("modules_to_save": ["head"])"), lora_pair("q"),
                 "modules_to_save names 'head'");
}

TEST(Adapter, BiasesNeedTheirSetting) {
  const test::Tensors bias = {{"base_model.model.q.base_layer.bias", Dtype::f32, {6}}};
  const test::Tensors stray = {{"base_model.model.norm.bias", Dtype::f32, {6}}};
  EXPECT_EQ(
      read_adapter_of(lora_config(R"("bias": "lora_only")"), lora_pair("q") + bias).saved.size(),
      1U);
  EXPECT_EQ(
      read_adapter_of(lora_config(R"("bias": "all")"), lora_pair("q") + bias + stray).saved.size(),
      2U);
  expect_refused(lora_config(R"("bias": "lora_only")"), lora_pair("q") + stray,
                 "bias of a module without an adapter");
  expect_refused(lora_config(), lora_pair("q") + bias, "bias: none");
}

TEST(Adapter, StrayBaseTensorsAreRefused) {
  expect_refused(
      lora_config(),
      lora_pair("q") + (test::Tensors{{"base_model.model.norm.weight", Dtype::f32, {6}}}),
      "PEFT would overwrite the base's tensor");
}

TEST(Adapter, ResizedEmbeddingsAreTakenWhole) {
  const Adapter a = read_adapter_of(
      lora_config(),
      lora_pair("q") +
          test::Tensors{{"base_model.model.model.embed_tokens.weight", Dtype::f32, {9, 4}},
                        {"base_model.model.lm_head.base_layer.weight", Dtype::f32, {9, 4}}});
  ASSERT_EQ(a.saved.size(), 2U);
  EXPECT_EQ(a.saved[0].name, "lm_head.weight");
  EXPECT_EQ(a.saved[0].why, Saved::Why::embedding);
  EXPECT_EQ(a.saved[1].name, "model.embed_tokens.weight");
  // PEFT saves the layer as it stands, so a head's bias comes along, whatever the head is called.
  for (const char* head : {"proj_out", "cls.predictions.decoder", "lm_head", "vocab_projector"}) {
    const std::string name = std::string("base_model.model.") + head;
    const Adapter whole = read_adapter_of(
        lora_config(), lora_pair("q") + test::Tensors{{name + ".weight", Dtype::f32, {9, 4}},
                                                      {name + ".bias", Dtype::f32, {9}}});
    ASSERT_EQ(whole.saved.size(), 2U) << head;
    EXPECT_EQ(whole.saved[0].why, Saved::Why::embedding);
    EXPECT_EQ(whole.saved[1].why, Saved::Why::embedding);
    expect_refused(lora_config(), lora_pair("q") + test::Tensors{{name + ".bias", Dtype::f32, {9}}},
                   "bias: none");
  }
}

TEST(Adapter, TrainedTokensComeWithTheirRows) {
  const test::Tensors delta = {
      {"base_model.model.embed_tokens.token_adapter.trainable_tokens_delta", Dtype::f32, {2, 4}}};
  Adapter a =
      read_adapter_of(lora_config(R"("trainable_token_indices": [3, 1])"), lora_pair("q") + delta);
  ASSERT_EQ(a.tokens.size(), 1U);
  EXPECT_EQ(a.tokens[0].path, "embed_tokens");
  EXPECT_EQ(a.tokens[0].rows, (std::vector<std::uint64_t>{3, 1}));
  a = read_adapter_of(lora_config(R"("trainable_token_indices": {"embed_tokens": [3, 1]})"),
                      lora_pair("q") + delta);
  EXPECT_EQ(a.tokens[0].rows.size(), 2U);
  a = read_adapter_of(
      R"({"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 1], "target_modules": "embed_tokens"})",
      {{"base_model.model.embed_tokens.trainable_tokens_delta", Dtype::f32, {2, 4}}});
  EXPECT_EQ(a.tokens.size(), 1U);
  expect_refused(lora_config(R"("trainable_token_indices": [3])"), lora_pair("q") + delta,
                 "lists 1 tokens");
  expect_refused(lora_config(), lora_pair("q") + delta, "has no list");
  expect_refused(lora_config(R"("trainable_token_indices": [3, 3])"), lora_pair("q") + delta,
                 "token 3 twice");
  expect_refused(lora_config(R"("trainable_token_indices": [3, 1])"), lora_pair("q"),
                 "no rows for them");
}

TEST(Adapter, ExpertParametersAreToldApartByTheirRanks) {
  const std::string path = "layers.0.mlp.experts";
  const auto pair = [&](const std::string& level, std::uint64_t rows) {
    return lora_pair(path + level, rows, 4, 6);
  };
  // Two parameters of one module, three experts; gate_up_proj has the doubled rank.
  const Adapter a = read_adapter_of(
      lora_config(R"("target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
                     "rank_pattern": {".*\\.gate_up_proj": 4},
                     "alpha_pattern": {".*\\.gate_up_proj": 6})"),
      pair("", 6) + pair(".base_layer", 12));
  ASSERT_EQ(a.modules.size(), 2U);
  EXPECT_EQ(a.modules[0].parameters.front(), "down_proj");
  EXPECT_EQ(a.modules[0].experts, 3U);
  EXPECT_EQ(a.modules[0].rank, 2U);
  EXPECT_EQ(a.modules[0].scaling, 2.0);
  EXPECT_EQ(a.modules[1].nesting, 1U);
  EXPECT_EQ(a.modules[1].parameters.front(), "gate_up_proj");
  EXPECT_EQ(a.modules[1].rank, 4U);
  EXPECT_EQ(a.modules[1].scaling, 1.5);
  EXPECT_TRUE(a.warnings.empty());
  // As transformers 5 makes PEFT write it: parameters without the name of their module.
  const Adapter bare =
      read_adapter_of(lora_config(R"("target_modules": ["q_proj"], "target_parameters":
                                     ["down_proj", "gate_up_proj"],
                                     "rank_pattern": {".*\\.gate_up_proj": 4})"),
                      lora_pair("layers.0.q_proj") + pair("", 6) + pair(".base_layer", 12));
  ASSERT_EQ(bare.modules.size(), 3U);
  EXPECT_EQ(bare.modules[0].parameters.front(), "down_proj");
  EXPECT_EQ(bare.modules[1].parameters.front(), "gate_up_proj");
  EXPECT_TRUE(bare.modules[2].parameters.empty());
  // A router's weight beside experts named alone: their ranks and alphas are not its own.
  const Adapter routed =
      read_adapter_of(lora_config(R"("target_modules": ["q_proj"],
                     "target_parameters": ["down_proj", "gate.weight", "gate_up_proj"],
                     "rank_pattern": {"down_proj": 1}, "alpha_pattern": {"down_proj": 32})"),
                      lora_pair("layers.0.mlp.gate") + pair("", 3) + pair(".base_layer", 6));
  ASSERT_EQ(routed.modules.size(), 3U);
  EXPECT_EQ(routed.modules[0].parameters.front(), "down_proj");
  EXPECT_EQ(routed.modules[0].scaling, 32.0);
  EXPECT_EQ(routed.modules[2].path, "layers.0.mlp.gate");
  EXPECT_EQ(routed.modules[2].parameters, (std::vector<std::string>{"weight"}));
  EXPECT_EQ(routed.modules[2].experts, 1U);
  EXPECT_EQ(routed.modules[2].scaling, 2.0);
  expect_refused(lora_config(R"("target_parameters": ["experts.down_proj"])"),
                 pair("", 6) + pair(".base_layer", 6), "2 adapted parameters");
  expect_refused(lora_config(), pair(".base_layer", 2), "target_parameters");
}

TEST(Adapter, TensorsOutsideTheTargetsAreRefused) {
  expect_refused(lora_config(R"("target_modules": ["q"])"), lora_pair("m.q") + lora_pair("m.k"),
                 "1 of 2 modules with tensors are not among target_modules");
  expect_refused(lora_config(R"("target_modules": ".*\\.q")"), lora_pair("m.q") + lora_pair("m.k"),
                 "m.k");
  expect_refused(lora_config(R"("target_modules": ["q"], "exclude_modules": ["a.q"])"),
                 lora_pair("a.q"), "exclude_modules");
  EXPECT_EQ(read_adapter_of(lora_config(R"("target_modules": "all-linear")"), lora_pair("m.q"))
                .modules.size(),
            1U);
}

TEST(Adapter, ExamplesAreAccountedFor) {
  const std::unique_ptr<Disk> disk = system_disk();
  for (const auto& [name, modules, saved] : {std::tuple("c-ia3", 6, 0),
                                             {"c-lora", 8, 0},
                                             {"chat-lora", 14, 2},
                                             {"prose-lora-patterns", 14, 0},
                                             {"python-dora", 14, 0}}) {
    const Adapter a = open_adapter(*disk, test::example(std::string("adapters/") + name), name);
    EXPECT_EQ(a.modules.size(), static_cast<std::size_t>(modules)) << name;
    EXPECT_EQ(a.saved.size(), static_cast<std::size_t>(saved)) << name;
    EXPECT_TRUE(a.warnings.empty()) << name;
    std::size_t tensors = a.saved.size() + a.tokens.size() + a.idle.size() + a.shared.size();
    for (const Adapted& module : a.modules) tensors += module.factors.size();
    EXPECT_EQ(tensors, a.checkpoint.entries().size()) << name;
  }
}

// --- refusals

TEST(Adapter, TypesThatCannotBeHadAreRefusedWithTheWayRound) {
  for (const char* type : {"HIRA", "VBLORA", "FOURIERFT", "PSOFT", "ADAMSS", "RANDLORA", "BONE"}) {
    expect_refused(fmt::format(R"({{"peft_type": "{}"}})", type), {}, "ingot extract");
  }
  for (const char* type : {"PROMPT_TUNING", "XLORA", "LILY", "SHADOW"}) {
    expect_refused(fmt::format(R"({{"peft_type": "{}"}})", type), {}, "serve it with PEFT");
  }
  expect_refused(R"({"peft_type": "LORRA"})", {}, "did you mean LORA?");
  expect_refused(R"({"r": 8})", {}, "no 'peft_type'");
}

TEST(Adapter, VariantsAndInitialisationsThatNoFileHoldsAreRefused) {
  for (const auto& [more, part] :
       {std::pair(R"("alora_invocation_tokens": [1, 2])", "invocation tokens"),
        {R"("arrow_config": {"top_k": 3})", "Arrow"},
        {R"("use_bdlora": {"nblocks": 2})", "block-diagonal"},
        {R"("kasa_config": {"beta": 1})", "KaSA"},
        {R"("init_lora_weights": "pissa_niter_16")", "randomised"},
        {R"("init_lora_weights": "corda")", "computed from data"},
        {R"("init_lora_weights": "lora_ga")", "computed from data"},
        {R"("init_lora_weights": "loftq")", "quantised copy"},
        {R"("init_lora_weights": "hocus")", "initialisation that is known"}}) {
    expect_refused(lora_config(more), lora_pair("q"), part);
  }
  const Adapter a = read_adapter_of(lora_config(R"("init_lora_weights": "olora")"), lora_pair("q"));
  EXPECT_EQ(a.config.residual, AdapterConfig::Residual::olora);
}

TEST(Adapter, WeightsBesideAnAdapterAreNeverPassedOverInSilence) {
  const auto open = [](const std::string& name, bool allow) {
    test::MemoryDisk disk({{"/a/adapter_config.json", lora_config()},
                           {"/a/adapter_model.safetensors", test::zeros(lora_pair("q"))},
                           {"/a/" + name, "x"}});
    return open_adapter(disk, "/a", "a", {.allow_extra = allow});
  };
  for (const char* name : {"non_lora_trainables.bin", "non_lora_state_dict.bin", "vit.safetensors",
                           "new_embeddings.safetensors", "v_head.pt", "model.safetensors"}) {
    try {
      (void)open(name, false);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("--ignore-extra-weights"), std::string::npos);
    }
    const Adapter left = open(name, true);
    EXPECT_TRUE(left.extra);
    ASSERT_EQ(left.warnings.size(), 1U);
    EXPECT_NE(left.warnings[0].find(name), std::string::npos);
  }
  for (const char* name : {"optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth",
                           "scaler.pt", "adapter_model.bin", "tokenizer.json", "notes.md"}) {
    EXPECT_FALSE(open(name, false).extra) << name;
  }
}

TEST(Adapter, FactorsOfExpertsInThreeDimensionsAreToldApartFromConvolutions) {
  const std::string path = "layers.0.mlp.experts.gate_up_proj";
  expect_refused(
      lora_config(),
      (test::Tensors{{"base_model.model." + path + ".lora_A.weight", Dtype::f32, {3, 2, 4}},
                     {"base_model.model." + path + ".lora_B.weight", Dtype::f32, {3, 6, 2}}}),
      "dimension for the experts");
}

TEST(Adapter, OrderOfExpertColumnsIsPeftsOwnOrRefused) {
  const auto config = [](const char* layout) {
    return lora_config(fmt::format(R"("lora_B_layout": "{}")", layout));
  };
  EXPECT_EQ(read_adapter_of(config("rank_major"), lora_pair("q")).modules.size(), 1U);
  expect_refused(config("grouped_by_expert"), lora_pair("q"), "rank_major");
  expect_refused(config("other"), lora_pair("q"), "lora_B_layout");
}

TEST(Adapter, UnknownFieldsThatAreOnAreRefusedUnlessWaived) {
  const std::string config = lora_config(R"("lora_gain": 2.5, "later_thing": null)");
  expect_refused(config, lora_pair("q"), "field 'lora_gain' (the number 2.5)");
  AdapterOptions options;
  options.allow_unknown = true;
  EXPECT_EQ(read_adapter_of(config, lora_pair("q"), options).warnings.size(), 1U);
}

TEST(Adapter, GroupsOfConvolutionsComeFromTheShapes) {
  const auto groups = [](std::uint64_t rank, std::uint64_t columns) {
    const Adapter a = read_adapter_of(
        lora_config(), {{"base_model.model.q.lora_A.weight", Dtype::f32, {rank, 4, 3, 3}},
                        {"base_model.model.q.lora_B.weight", Dtype::f32, {6, columns, 1, 1}}});
    EXPECT_EQ(a.modules.at(0).rank, rank);
    return a.modules.at(0).groups;
  };
  EXPECT_EQ(groups(2, 2), 1U);
  EXPECT_EQ(groups(2, 1), 2U);
}

TEST(Adapter, ShapesThatLieAreRefused) {
  const auto tensor = [](const char* tail, Shape shape, Dtype dtype = Dtype::f32) {
    return test::Tensors{{std::string("base_model.model.q.") + tail, dtype, shape}};
  };
  const char* a = "lora_A.weight";
  const char* b = "lora_B.weight";
  expect_refused(lora_config(), tensor(a, {4, 8}) + tensor(b, {6, 4}), "rank 4");
  expect_refused(lora_config(), tensor(a, {4, 2}) + tensor(b, {2, 6}), "swapped");
  expect_refused(lora_config(), tensor(a, {6, 2}) + tensor(b, {2, 4}), "swapped");
  expect_refused(lora_config(), tensor(a, {6, 3}) + tensor(b, {2, 5}), "ranks differ");
  expect_refused(lora_config(), tensor(a, {2, 4, 3, 3}) + tensor(b, {7, 1, 1, 1}), "ranks differ");
  expect_refused(lora_config(), tensor(a, {2, 4, 3, 3}) + tensor(b, {6, 4, 1, 1}), "ranks differ");
  expect_refused(lora_config(), tensor(a, {0, 4}) + tensor(b, {6, 0}), "no elements");
  expect_refused(lora_config(), tensor(a, {8}) + tensor(b, {6, 2}), "as many axes");
  expect_refused(lora_config(), tensor(a, {2, 4}), "but no lora_B");
  expect_refused(lora_config(), tensor(b, {6, 2}), "but no lora_A");
  expect_refused(lora_config(), tensor(a, {2, 4}, Dtype::i8) + tensor(b, {6, 2}), "int8");
  expect_refused(lora_config(), lora_pair("q") + tensor("lora_A.default.weight", {2, 4}),
                 "two names");
  expect_refused(lora_config(), lora_pair("q") + tensor("lora_A.other.weight", {2, 4}), "'other");
  expect_refused(lora_config(), lora_pair("q") + tensor("lora_magnitude_vector", {6}),
                 "use_dora: false");
  expect_refused(lora_config(R"("use_dora": true)"), lora_pair("q"), "no lora_magnitude_vector");
  expect_refused(lora_config(R"("use_dora": true)"),
                 lora_pair("q") + tensor("lora_magnitude_vector", {5}), "6 elements");
  expect_refused(
      lora_config(),
      tensor("lora_A.weight", {4, 6}) + tensor("lora_B.weight", {2, 4}) + tensor("ia3_l", {6, 1}),
      "belongs to IA3");
}

TEST(Adapter, NumbersOfTheConfigurationAreChecked) {
  for (const char* more :
       {R"("rank_pattern": {"q": 0})", R"("rank_pattern": {"q": 2.5})", R"("rank_pattern": [1])",
        R"("alpha_pattern": {"q": "x"})", R"("bias": "some")", R"("modules_to_save": [3])",
        R"("layers_to_transform": [-1])", R"("layer_replication": [[3, 2]])",
        R"("trainable_token_indices": [1.5])", R"("use_dora": 1)", R"("r": 2)"}) {
    EXPECT_NE(refusal(lora_config(more), lora_pair("q")), "(accepted)") << more;
  }
  for (const char* config :
       {R"({"peft_type": "LORA", "r": 0})", R"({"peft_type": "LORA", "r": -3})",
        R"({"peft_type": "LORA", "r": 1e3})", R"({"peft_type": "LORA", "lora_alpha": NaN})",
        R"({"peft_type": "LORA", "r": 2, "lora_alpha": 1e300})", R"({"peft_type": 3})", "[]", "",
        "{", R"({"peft_type": "LORA"} x)"}) {
    EXPECT_NE(refusal(config, lora_pair("q")), "(accepted)") << config;
  }
}

TEST(Adapter, FolderWithoutItsFilesIsNamed) {
  test::MemoryDisk model(std::map<std::string, std::string>{{"/m/config.json", "{}"}});
  EXPECT_THROW((void)open_adapter(model, "/m", "m"), Error);
  test::MemoryDisk weightless(
      std::map<std::string, std::string>{{"/m/adapter_config.json", lora_config()}});
  EXPECT_THROW((void)open_adapter(weightless, "/m", "m"), Error);
  expect_refused(lora_config(), {}, "holds no tensor");
}

TEST(Adapter, HundredThousandModulesAreReadInABoundedTime) {
  test::Tensors tensors;
  for (int i = 0; i < 50'000; ++i) {
    for (const TensorInfo& info : lora_pair(fmt::format("layers.{}.q", i), 2, 1, 1)) {
      tensors.push_back(info);
    }
  }
  const Adapter a = read_adapter_of(
      lora_config(R"("target_modules": ".*\\.q", "rank_pattern": {"layers\\.7\\.q": 2})"), tensors);
  EXPECT_EQ(a.modules.size(), 50'000U);
}

}  // namespace
}  // namespace ingot
