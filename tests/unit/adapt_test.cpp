// Adapters on models: where each module's change lands, what is replaced, and what is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "adapter.hpp"
#include "ingot/plan.hpp"
#include "model.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using nlohmann::json;
using test::llama;
using test::llama_config;
using test::lora_config;
using test::lora_pair;
using test::Tensors;
using test::write_file;
using test::write_model;
using test::zeros;
using test::operator+;

class AdaptTest : public ::testing::Test {
 protected:
  void base(const Tensors& tensors, const std::string& config) {
    write_model(folder_ / "base", tensors, config);
  }
  // Tensors of zeros, of which the last ends in `last`.
  void adapter(const std::string& name, const std::string& config, const Tensors& tensors,
               char last = 0) {
    std::string bytes = zeros(tensors);
    bytes.back() = last;
    write_file(folder_ / (name + "/adapter_config.json"), config);
    write_file(folder_ / (name + "/adapter_model.safetensors"), bytes);
  }
  [[nodiscard]] Plan plan(const std::string& model, PlanOptions options = {}) {
    options.root = folder_.path();
    const std::string text = "merge_method: passthrough\nmodels:\n- model: " + model + "\n";
    const auto disk = system_disk();
    return build(*disk, parse(text, "r.yml", {}), options);
  }

  test::Folder folder_;
};

std::string problems(const Plan& plan) {
  std::string text;
  for (const Problem& p : plan.problems) {
    text += (p.fatal ? "error: " : "warning: ") + p.text + "\n";
  }
  return text;
}

void expect_says(const Plan& plan, const std::string& part) {
  EXPECT_NE(problems(plan).find(part), std::string::npos) << problems(plan);
}

void expect_refused(const Plan& plan, const std::string& part) {
  EXPECT_FALSE(plan.sound());
  expect_says(plan, part);
}

const Job* find(const Plan& plan, const std::string& name) {
  const auto it = std::find_if(plan.jobs.begin(), plan.jobs.end(),
                               [&](const Job& job) { return job.output.name == name; });
  return it == plan.jobs.end() ? nullptr : &*it;
}

std::string name_of(const Plan& plan, std::uint32_t model, std::uint32_t entry) {
  const Model& m = plan.models[model];
  return m.ref.text + ":" + m.checkpoint.entries()[entry].info.name;
}

// What becomes of an output: "base:tensor" with the adapters' effects, or "none".
std::string origin(const Plan& plan, const std::string& name) {
  const Job* job = find(plan, name);
  if (job == nullptr) return "none";
  const Operand& o = job->operands.at(0);
  std::string text = name_of(plan, o.model, o.entry);
  if (o.derived) {
    const json described = json::parse(o.derived->describe());
    for (const json& e : described.at("effects")) {
      text += fmt::format(" {} {}", e.at("adapter").get<std::string>(),
                          e.value("layout", std::string("linear")));
    }
  }
  return text;
}

json effects(const Plan& plan, const std::string& name) {
  const Job* job = find(plan, name);
  if (job == nullptr || !job->operands.at(0).derived) return json::array();
  return json::parse(job->operands[0].derived->describe()).at("effects");
}

std::string unused(const Plan& plan, const std::string& tensor) {
  for (const Unused& u : plan.unused) {
    if (name_of(plan, u.model, u.entry) == tensor) return u.reason;
  }
  return "used";
}

json config(const Plan& plan) {
  for (const Companion& c : plan.companions) {
    if (c.name == "config.json") return json::parse(c.text);
  }
  return {};
}

const std::string kQ = "model.layers.0.self_attn.q_proj";
const Tensors kPair = lora_pair(kQ, 2, 4, 4);

Tensors saved(const std::string& name, Shape shape) {
  return {{"base_model.model." + name, Dtype::f32, shape}};
}

TEST_F(AdaptTest, ChangesOneTensorAndCopiesTheRest) {
  base(llama(2), llama_config(2));
  adapter("a", lora_config(), kPair);
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, kQ + ".weight"), "base:" + kQ + ".weight a linear");
  EXPECT_EQ(find(p, kQ + ".weight")->work.inputs.at(0), Dtype::f32);
  EXPECT_EQ(find(p, kQ + ".weight")->output.dtype, Dtype::bf16);
  for (const Job& job : p.jobs) {
    EXPECT_EQ(job.action, job.output.name == kQ + ".weight" ? Action::merge : Action::copy);
  }
  EXPECT_TRUE(p.unused.empty());
  ASSERT_EQ(p.models.size(), 2U);
  EXPECT_TRUE(p.models[1].adapter);
  EXPECT_EQ(p.models[0].ref.text, "base");
}

TEST_F(AdaptTest, DtypeOfTheOutputIsTheBasesUnlessAsked) {
  base(llama(1, Dtype::f16), llama_config(1));
  adapter("a", lora_config(R"("modules_to_save": ["lm_head"])"),
          kPair + saved("lm_head.modules_to_save.weight", {10, 4}));
  const Plan p = plan("base+a");
  for (const Job& job : p.jobs) EXPECT_EQ(job.output.dtype, Dtype::f16) << job.output.name;
  PlanOptions options;
  options.dtype = "float32";
  const Plan wide = plan("base+a", options);
  for (const Job& job : wide.jobs) EXPECT_EQ(job.output.dtype, Dtype::f32);
}

TEST_F(AdaptTest, PrefixesOfTheWildAreMapped) {
  Tensors bare;
  for (TensorInfo info : llama(1)) {
    if (info.name.starts_with("model.")) info.name.erase(0, 6);
    bare.push_back(info);
  }
  adapter("a", lora_config(), kPair);
  adapter("short", lora_config(),
          {{"layers.0.self_attn.q_proj.lora_A.weight", Dtype::f32, {2, 4}},
           {"layers.0.self_attn.q_proj.lora_B.weight", Dtype::f32, {4, 2}}});
  base(bare, llama_config(1));
  EXPECT_EQ(origin(plan("base+a"), kQ + ".weight"),
            "base:layers.0.self_attn.q_proj.weight a linear");
  base(llama(1), llama_config(1));
  EXPECT_EQ(origin(plan("base+short"), kQ + ".weight"), "base:" + kQ + ".weight short linear");
}

TEST_F(AdaptTest, ModulesThatTheBaseLacksAreNamed) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(R"("base_model_name_or_path": "some/other")"),
          kPair + lora_pair("model.layers.1.self_attn.q_proj", 2, 4, 4));
  const Plan p = plan("base+a");
  expect_refused(p,
                 "1 of the 2 modules of adapter a have no tensor in base: "
                 "model.layers.1.self_attn.q_proj");
  expect_says(p, "some/other");
}

TEST_F(AdaptTest, ShapesThatDifferAreRefused) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(), lora_pair(kQ, 2, 5, 4));
  expect_refused(plan("base+a"), "[4, 4]");
}

TEST_F(AdaptTest, ModulesThatOnlyTheConfigurationHasAreReported) {
  base(llama(2), llama_config(2));
  adapter("a", lora_config(R"("target_modules": ["q_proj"])"), kPair);
  expect_says(plan("base+a"), "selects 1 modules of base for which it has no tensors");
}

TEST_F(AdaptTest, ExpertsAreModulesWhereTheAdapterHasSomeOfThem) {
  Tensors tensors = llama(1);
  const std::string experts = "model.layers.0.mlp.experts.";
  for (const char* number : {"0", "1"}) {
    tensors.push_back({experts + number + ".down_proj.weight", Dtype::f32, {4, 6}});
  }
  base(tensors, llama_config(1));
  const std::string targets = lora_config(R"("target_modules": ["q_proj", "experts.0.down_proj",
                                             "experts.1.down_proj"])");
  adapter("none", targets, kPair);
  const Plan p = plan("base+none");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(problems(p).find("selects"), std::string::npos) << problems(p);
  adapter("one", targets, kPair + lora_pair(experts + "0.down_proj", 2, 6, 4));
  expect_says(plan("base+one"), "selects 1 modules of base for which it has no tensors");
}

TEST_F(AdaptTest, WeightsAndOrderComeFromTheRecipe) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(), kPair);
  adapter("b", lora_config(), kPair);
  const Plan p = plan("{path: base, adapters: [{path: b, weight: -0.5}, a, b]}");
  ASSERT_TRUE(p.sound()) << problems(p);
  const json all = effects(p, kQ + ".weight");
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0]["adapter"], "b");
  EXPECT_EQ(all[0]["weight"], -0.5);
  EXPECT_EQ(all[1]["adapter"], "a");
  EXPECT_EQ(all[2]["weight"], 1.0);
  EXPECT_EQ(p.models.size(), 3U);
}

TEST_F(AdaptTest, OneBaseServesSeveralModelsOfARecipe) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(), kPair);
  adapter("b", lora_config(), lora_pair("model.layers.0.mlp.up_proj", 2, 4, 8));
  const std::string text =
      "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 1}\n"
      "models:\n- model: base+a\n- model: base+b\n";
  PlanOptions options;
  options.root = folder_.path();
  const auto disk = system_disk();
  const Plan p = build(*disk, parse(text, "r.yml", {}), options);
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(p.models.size(), 3U);
  const Job* job = find(p, kQ + ".weight");
  ASSERT_EQ(job->operands.size(), 3U);
  EXPECT_FALSE(job->operands[0].derived);
  EXPECT_TRUE(job->operands[1].derived);
  EXPECT_FALSE(job->operands[2].derived);
}

// --- whole tensors

TEST_F(AdaptTest, SavedModulesReplaceTheBases) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(R"("modules_to_save": ["lm_head", "norm"])"),
          kPair + saved("lm_head.modules_to_save.weight", {10, 4}) +
              saved("lm_head.original_module.weight", {10, 4}) + saved("model.norm.weight", {4}));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "lm_head.weight"), "a:base_model.model.lm_head.modules_to_save.weight");
  EXPECT_EQ(origin(p, "model.norm.weight"), "a:base_model.model.model.norm.weight");
  EXPECT_EQ(unused(p, "base:lm_head.weight"),
            "replaced by tensor base_model.model.lm_head.modules_to_save.weight of adapter a");
  EXPECT_EQ(unused(p, "a:base_model.model.lm_head.original_module.weight"),
            "the untrained copy of a saved module");
  EXPECT_EQ(p.unused.size(), 3U);
}

TEST_F(AdaptTest, OnlyOneAdapterCanReplaceATensor) {
  base(llama(1), llama_config(1));
  for (const char* name : {"", "a", "b"}) {  // the base's values, and two others
    adapter(name == std::string() ? "same" : name, lora_config(R"("modules_to_save": ["lm_head"])"),
            kPair + saved("lm_head.weight", {10, 4}), name[0]);
  }
  expect_refused(plan("base+a+b"), "adapters a and b both replace lm_head.weight");
  // Equal values, or the base's, are no second owner.
  const std::string name = "base_model.model.lm_head.weight";
  for (const char* adapters : {"base+a+same", "base+same+a", "base+a+a"}) {
    const Plan p = plan(adapters);
    ASSERT_TRUE(p.sound()) << adapters << problems(p);
    EXPECT_EQ(origin(p, "lm_head.weight"), "a:" + name) << adapters;
  }
  EXPECT_EQ(unused(plan("base+a+same"), "same:" + name), "the base's lm_head.weight");
  expect_refused(plan("base+a+same+b"), "adapters a and b both replace lm_head.weight");
  expect_refused(plan("base+same+a+b"), "adapters a and b both replace lm_head.weight");
}

TEST_F(AdaptTest, SavedMatricesAtAWeightLieBetween) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(R"("modules_to_save": ["lm_head"])"),
          kPair + saved("lm_head.weight", {10, 4}));
  adapter("tall", lora_config(R"("modules_to_save": ["lm_head"])"),
          kPair + saved("lm_head.weight", {12, 4}));
  const Plan p = plan("{path: base, adapters: [{path: a, weight: 0.5}]}");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:lm_head.weight a linear");
  expect_refused(plan("{path: base, adapters: [{path: tall, weight: 0.5}]}"), "only with weight 1");
}

TEST_F(AdaptTest, SavedTensorsOfAnotherShapeOrNameAreRefused) {
  base(llama(1), llama_config(1));
  adapter("wide", lora_config(R"("modules_to_save": ["norm"])"),
          kPair + saved("model.norm.weight", {5}));
  expect_refused(plan("base+wide"), "has shape [5], and model.norm.weight of base has [4]");
  adapter("odd", lora_config(R"("modules_to_save": ["adaptor"])"),
          kPair + saved("model.adaptor.weight", {5}));
  expect_refused(plan("base+odd"), "which base does not have");
}

TEST_F(AdaptTest, HeadsForOtherTasksAreAddedWithAWarning) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(R"("modules_to_save": ["score"], "task_type": "SEQ_CLS")"),
          kPair + saved("score.weight", {2, 4}));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "score.weight"), "a:base_model.model.score.weight");
  EXPECT_EQ(find(p, "score.weight")->output.dtype, Dtype::bf16);
  expect_says(p, "'architectures' in config.json");
}

TEST_F(AdaptTest, SavedBiasesAreTaken) {
  const Tensors biases = {{kQ + ".bias", Dtype::bf16, {4}}};
  base(llama(1) + biases, llama_config(1));
  adapter("a", lora_config(R"("bias": "lora_only")"), kPair + saved(kQ + ".base_layer.bias", {4}));
  EXPECT_EQ(origin(plan("base+a"), kQ + ".bias"), "a:base_model.model." + kQ + ".base_layer.bias");
  base(llama(1), llama_config(1));
  expect_refused(plan("base+a"), "which base does not have");
}

TEST_F(AdaptTest, BiasOfAFactorNeedsABias) {
  adapter("a", lora_config(R"("lora_bias": true)"), kPair + saved(kQ + ".lora_B.bias", {4}));
  base(llama(1), llama_config(1));
  expect_refused(plan("base+a"), "base has no " + kQ + ".bias");
  base(llama(1) + Tensors{{kQ + ".bias", Dtype::bf16, {4}}}, llama_config(1));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, kQ + ".bias"), "base:" + kQ + ".bias a linear");
}

// --- vocabularies

TEST_F(AdaptTest, ResizedVocabulariesAreFollowed) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(),
          kPair + saved("model.embed_tokens.weight", {12, 4}) + saved("lm_head.weight", {12, 4}));
  write_file(folder_ / "a/tokenizer.json",
             R"({"model": {"type": "BPE", "vocab": {}, "merges": []}})");
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(find(p, "model.embed_tokens.weight")->output.shape, (Shape{12, 4}));
  EXPECT_EQ(config(p)["vocab_size"], 12);
  const auto tokenizer =
      std::find_if(p.companions.begin(), p.companions.end(),
                   [](const Companion& c) { return c.name == "tokenizer.json"; });
  ASSERT_NE(tokenizer, p.companions.end());
  EXPECT_EQ(tokenizer->from, folder_ / "a/tokenizer.json");
}

TEST_F(AdaptTest, BothEndsOfAVocabularyGrowTogether) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(), kPair + saved("model.embed_tokens.weight", {12, 4}));
  expect_refused(plan("base+a"), "both must have the same number of rows");
}

TEST_F(AdaptTest, AdaptedRowsOfAResizedEmbeddingFollowIt) {
  base(llama(1), llama_config(1));
  adapter("a", lora_config(),
          kPair + saved("model.embed_tokens.base_layer.weight", {12, 4}) +
              saved("lm_head.weight", {12, 4}) +
              saved("model.embed_tokens.lora_embedding_A", {2, 12}) +
              saved("model.embed_tokens.lora_embedding_B", {4, 2}));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"),
            "a:base_model.model.model.embed_tokens.base_layer.weight a embedding");
}

// A Llama without a head, whose config says that it is tied.
Tensors headless() {
  Tensors all = llama(1);
  std::erase_if(all, [](const TensorInfo& info) { return info.name == "lm_head.weight"; });
  return all;
}
std::string tied_config() {
  std::string text = llama_config(1);
  text.replace(text.find("false"), 5, "true");
  return text;
}

Tensors embedding_pair() {
  return saved("model.embed_tokens.lora_embedding_A", {2, 10}) +
         saved("model.embed_tokens.lora_embedding_B", {4, 2});
}

TEST_F(AdaptTest, TiedEmbeddingAdaptedAloneIsUntied) {
  base(headless(), tied_config());
  adapter("a", lora_config(), embedding_pair());
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "base:model.embed_tokens.weight a embedding");
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:model.embed_tokens.weight");
  EXPECT_EQ(config(p)["tie_word_embeddings"], false);
  expect_says(p, "were one tied tensor");
}

TEST_F(AdaptTest, ModelsThatNeverHadAHeadGetNone) {
  base(headless(), R"({"architectures": ["LlamaModel"], "num_hidden_layers": 1})");
  adapter("a", lora_config(), embedding_pair());
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "base:model.embed_tokens.weight a embedding");
  EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
}

TEST_F(AdaptTest, TiedHeadAdaptedAloneIsUntied) {
  base(headless(), tied_config());
  adapter("a", lora_config(), lora_pair("lm_head", 2, 4, 10));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "base:model.embed_tokens.weight");
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:model.embed_tokens.weight a linear");
  EXPECT_EQ(config(p)["tie_word_embeddings"], false);
}

TEST_F(AdaptTest, MirroredFactorsOfATiedPairCountOnce) {
  base(headless(), tied_config());
  adapter("a", lora_config(R"("ensure_weight_tying": true)"),
          embedding_pair() + lora_pair("lm_head", 2, 4, 10));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "base:model.embed_tokens.weight a embedding");
  EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
  EXPECT_EQ(config(p)["tie_word_embeddings"], true);
  EXPECT_NE(unused(p, "a:base_model.model.lm_head.lora_A.weight").find("added once"),
            std::string::npos);
}

TEST_F(AdaptTest, TiedSavedEmbeddingLeavesTheHeadAsItWas) {
  base(headless(), tied_config());
  adapter("a", lora_config(R"("modules_to_save": ["embed_tokens"])"),
          kPair + saved("model.embed_tokens.weight", {10, 4}));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "a:base_model.model.model.embed_tokens.weight");
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:model.embed_tokens.weight");
  EXPECT_EQ(unused(p, "base:model.embed_tokens.weight"), "used");
}

TEST_F(AdaptTest, SavedEndsThatTheFlagTiesStayOneTensor) {
  base(headless(), tied_config());
  const Tensors ends =
      kPair + saved("model.embed_tokens.weight", {10, 4}) + saved("lm_head.weight", {10, 4});
  adapter("both",
          lora_config(R"("ensure_weight_tying": true, "modules_to_save": ["embed_tokens"])"), ends);
  adapter("one", lora_config(R"("ensure_weight_tying": true, "modules_to_save": ["embed_tokens"])"),
          kPair + saved("model.embed_tokens.weight", {10, 4}));
  for (const char* name : {"both", "one"}) {
    const Plan p = plan(std::string("base+") + name);
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, "model.embed_tokens.weight"),
              std::string(name) + ":base_model.model.model.embed_tokens.weight");
    EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
    EXPECT_EQ(config(p)["tie_word_embeddings"], true);
  }
  // Without the flag they are one where their values are equal.
  adapter("equal", lora_config(R"("modules_to_save": ["embed_tokens", "lm_head"])"), ends);
  Plan p = plan("base+equal");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
  EXPECT_EQ(config(p)["tie_word_embeddings"], true);
  adapter("apart", lora_config(R"("modules_to_save": ["embed_tokens", "lm_head"])"), ends, 1);
  p = plan("base+apart");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "lm_head.weight"), "apart:base_model.model.lm_head.weight");
  EXPECT_EQ(config(p)["tie_word_embeddings"], false);
}

TEST_F(AdaptTest, FlagThatPeftDidNotFollowIsNotBelieved) {
  // PEFT looks for the names embed_tokens and lm_head only.
  base({{"transformer.wte.weight", Dtype::f32, {10, 4}},
        {"transformer.h.0.attn.c_attn.weight", Dtype::f32, {4, 12}}},
       R"({"architectures": ["GPT2LMHeadModel"], "n_layer": 1})");
  adapter("a", lora_config(R"("ensure_weight_tying": true, "target_modules": ["wte"])"),
          saved("transformer.wte.lora_embedding_A", {2, 10}) +
              saved("transformer.wte.lora_embedding_B", {4, 2}));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "transformer.wte.weight"), "base:transformer.wte.weight a embedding");
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:transformer.wte.weight");
}

struct Ends {
  const char* architecture;
  Tensors stored;
  std::string embedding, head;
  std::vector<std::string> others;  // names that the class reads beside them
};

TEST_F(AdaptTest, UntiedEndsHaveTheNamesThatTheirClassReads) {
  const std::string words = "embeddings.word_embeddings.weight";
  const std::vector<Ends> all = {
      {"WhisperForConditionalGeneration",
       {},
       "model.decoder.embed_tokens.weight",
       "proj_out.weight",
       {}},
      {"ModernBertForMaskedLM",
       {{"decoder.bias", Dtype::f32, {10}}},
       "model.embeddings.tok_embeddings.weight",
       "decoder.weight",
       {"decoder.bias"}},
      {"BertForMaskedLM",
       {{"cls.predictions.bias", Dtype::f32, {10}},
        {"cls.predictions.transform.dense.weight", Dtype::f32, {4, 4}}},
       "bert." + words,
       "cls.predictions.decoder.weight",
       {"cls.predictions.decoder.bias"}},
      {"XLMRobertaForMaskedLM",
       {{"lm_head.bias", Dtype::f32, {10}}, {"lm_head.dense.weight", Dtype::f32, {4, 4}}},
       "roberta." + words,
       "lm_head.decoder.weight",
       {"lm_head.decoder.bias"}},
      {"DebertaV2ForMaskedLM",
       {{"cls.predictions.bias", Dtype::f32, {10}}},
       "deberta." + words,
       "cls.predictions.decoder.weight",
       {"cls.predictions.decoder.bias"}},
      {"XLMWithLMHeadModel",
       {{"pred_layer.proj.bias", Dtype::f32, {10}}},
       "transformer.embeddings.weight",
       "pred_layer.proj.weight",
       {}},
      {"XLNetLMHeadModel",
       {{"lm_loss.bias", Dtype::f32, {10}}},
       "transformer.word_embedding.weight",
       "lm_loss.weight",
       {}},
      {"OpenAIGPTLMHeadModel", {}, "transformer.tokens_embed.weight", "lm_head.weight", {}},
      {"CTRLLMHeadModel",
       {{"lm_head.bias", Dtype::f32, {10}}},
       "transformer.w.weight",
       "lm_head.weight",
       {}},
      {"ProphetNetForConditionalGeneration",
       {{"prophetnet.encoder.layers.0.feed_forward.output.weight", Dtype::f32, {4, 4}}},
       "prophetnet.word_embeddings.weight",
       "lm_head.weight",
       {"prophetnet.encoder.word_embeddings.weight", "prophetnet.decoder.word_embeddings.weight"}},
      {"LEDForConditionalGeneration",
       {{"final_logits_bias", Dtype::f32, {1, 10}},
        {"led.encoder.layers.0.self_attn.output.weight", Dtype::f32, {4, 4}}},
       "led.shared.weight",
       "lm_head.weight",
       {"led.encoder.embed_tokens.weight", "led.decoder.embed_tokens.weight"}},
      {"ElectraForMaskedLM",
       {{"generator_predictions.dense.weight", Dtype::f32, {4, 4}}},
       "electra." + words,
       "generator_lm_head.weight",
       {}},
      {"MBartForConditionalGeneration",
       {{"final_logits_bias", Dtype::f32, {1, 10}}},
       "model.shared.weight",
       "lm_head.weight",
       {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}},
      {"T5ForConditionalGeneration",
       {},
       "shared.weight",
       "lm_head.weight",
       {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}},
      {"SwitchTransformersForConditionalGeneration",
       {},
       "shared.weight",
       "lm_head.weight",
       {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}},
  };
  for (const Ends& ends : all) {
    SCOPED_TRACE(ends.architecture);
    Tensors stored = ends.stored;
    stored.push_back({ends.embedding, Dtype::f32, {10, 4}});
    base(stored, std::string(R"({"architectures": [")") + ends.architecture + "\"]}");
    const std::string module = ends.embedding.substr(0, ends.embedding.size() - 7);
    adapter(
        "a", lora_config(),
        saved(module + ".lora_embedding_A", {2, 10}) + saved(module + ".lora_embedding_B", {4, 2}));
    Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, ends.embedding), "base:" + ends.embedding + " a embedding");
    EXPECT_EQ(origin(p, ends.head), "base:" + ends.embedding);
    for (const std::string& name : ends.others) EXPECT_NE(find(p, name), nullptr) << name;
    EXPECT_EQ(p.jobs.size(), stored.size() + 1 + ends.others.size() -
                                 static_cast<std::size_t>(std::count_if(
                                     stored.begin(), stored.end(), [&](const TensorInfo& t) {
                                       return std::find(ends.others.begin(), ends.others.end(),
                                                        t.name) != ends.others.end();
                                     })));
    // T5 and its kin read from the flag whether they scale their outputs.
    const std::string_view architecture = ends.architecture;
    if (architecture.starts_with("T5") || architecture.starts_with("Switch")) {
      EXPECT_FALSE(config(p).contains("tie_word_embeddings"));
    } else {
      EXPECT_EQ(config(p)["tie_word_embeddings"], false);
    }
    // A LoRA on the head finds it although no file has it.
    adapter("h", lora_config(), lora_pair(ends.head.substr(0, ends.head.size() - 7), 2, 4, 10));
    p = plan("base+h");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, ends.head), "base:" + ends.embedding + " h linear");
  }
}

// Classes whose files have the tied tensor more than once: embedding, copies, others.
struct Copied {
  const char* architecture;
  std::string embedding;
  std::vector<std::string> copies;
  Tensors others;
};
std::vector<Copied> copied() {
  return {
      {"BertForMaskedLM",
       "bert.embeddings.word_embeddings.weight",
       {"cls.predictions.decoder.weight"},
       {{"cls.predictions.bias", Dtype::f32, {10}},
        {"cls.predictions.decoder.bias", Dtype::f32, {10}}}},
      {"T5ForConditionalGeneration",
       "shared.weight",
       {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"},
       {}},
      {"T5EncoderModel", "shared.weight", {"encoder.embed_tokens.weight"}, {}},
      {"BartForConditionalGeneration",
       "model.shared.weight",
       {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"},
       {{"final_logits_bias", Dtype::f32, {1, 10}}}},
      {"BartModel",
       "shared.weight",
       {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"},
       {}},
      {"GemmaForCausalLM", "model.embed_tokens.weight", {"lm_head.weight"}, {}}};
}

TEST_F(AdaptTest, CopiesOfATiedTensorAreOneTensor) {
  for (const Copied& each : copied()) {
    SCOPED_TRACE(each.architecture);
    Tensors all = each.others + Tensors{{each.embedding, Dtype::f32, {10, 4}}};
    for (const std::string& copy : each.copies) all.push_back({copy, Dtype::f32, {10, 4}});
    base(all, fmt::format(R"({{"architectures": ["{}"], "vocab_size": 10}})", each.architecture));
    const std::string module = each.embedding.substr(0, each.embedding.size() - 7);
    adapter("a", lora_config(fmt::format(R"("trainable_token_indices": {{"{}": [7]}})", module)),
            saved(module + ".token_adapter.trainable_tokens_delta", {1, 4}));
    Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, each.embedding), "base:" + each.embedding + " a linear");
    for (const std::string& copy : each.copies) {
      EXPECT_EQ(origin(p, copy), "base:" + copy + " a linear");
    }
    EXPECT_FALSE(config(p).contains("tie_word_embeddings"));

    adapter("g", lora_config(), saved(each.embedding, {12, 4}));
    p = plan("base+g");
    ASSERT_TRUE(p.sound()) << problems(p);
    for (const Job& job : p.jobs) {
      EXPECT_EQ(job.output.shape[job.output.shape[0] == 1 ? 1 : 0], 12U) << job.output.name;
    }
    EXPECT_EQ(origin(p, each.copies.front()), "g:base_model.model." + each.embedding);
    EXPECT_EQ(config(p)["vocab_size"], 12);
    EXPECT_FALSE(config(p).contains("tie_word_embeddings"));
  }
}

TEST_F(AdaptTest, CopiesThatDifferAreTensorsOfTheirOwn) {
  for (const Copied& each : copied()) {
    SCOPED_TRACE(each.architecture);
    Tensors all = each.others + Tensors{{each.embedding, Dtype::f32, {10, 4}}};
    for (const std::string& copy : each.copies) all.push_back({copy, Dtype::f32, {10, 4}});
    std::sort(all.begin(), all.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
    std::string bytes = zeros(all);
    std::size_t at = bytes.size();
    for (std::size_t i = all.size(); i-- > 0;) {
      if (all[i].name == each.copies.front()) bytes[at - 1] = 1;  // its last byte
      at -= all[i].bytes();
    }
    write_file(folder_ / "base/model.safetensors", bytes);
    write_file(folder_ / "base/config.json",
               fmt::format(R"({{"architectures": ["{}"]}})", each.architecture));
    const std::string module = each.embedding.substr(0, each.embedding.size() - 7);
    adapter("a", lora_config(fmt::format(R"("trainable_token_indices": {{"{}": [7]}})", module)),
            saved(module + ".token_adapter.trainable_tokens_delta", {1, 4}));
    const Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, each.embedding), "base:" + each.embedding + " a linear");
    for (const std::string& copy : each.copies) {
      EXPECT_EQ(origin(p, copy), "base:" + copy + (copy == each.copies.front() ? "" : " a linear"));
    }
    expect_says(p, "ties " + each.copies.front() + " to " + each.embedding);
  }
}

TEST_F(AdaptTest, AHeadWithoutAMatrixGetsNone) {
  base({{"deberta.embeddings.word_embeddings.weight", Dtype::f32, {10, 4}},
        {"lm_predictions.lm_head.bias", Dtype::f32, {10}},
        {"lm_predictions.lm_head.dense.weight", Dtype::f32, {4, 4}}},
       R"({"architectures": ["DebertaV2ForMaskedLM"], "legacy": false})");
  const std::string module = "deberta.embeddings.word_embeddings";
  adapter(
      "a", lora_config(),
      saved(module + ".lora_embedding_A", {2, 10}) + saved(module + ".lora_embedding_B", {4, 2}));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(p.jobs.size(), 3U);
  EXPECT_FALSE(config(p).contains("tie_word_embeddings"));
  // PEFT saves all of what the class calls its output embedding.
  adapter("g", lora_config(),
          saved(module + ".weight", {12, 4}) + saved("lm_predictions.lm_head.bias", {12}) +
              saved("lm_predictions.lm_head.dense.weight", {4, 4}));
  p = plan("base+g");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(find(p, "lm_predictions.lm_head.bias")->output.shape, (Shape{12}));
}

TEST_F(AdaptTest, AHeadOfItsOwnHasItsBias) {
  const std::string head = "cls.predictions.decoder";
  base({{"bert.embeddings.word_embeddings.weight", Dtype::f32, {10, 4}},
        {"cls.predictions.bias", Dtype::f32, {10}},
        {head + ".weight", Dtype::f32, {10, 4}}},
       R"({"architectures": ["BertForMaskedLM"], "tie_word_embeddings": false})");
  adapter("s", lora_config(R"("modules_to_save": ["decoder"])"),
          saved(head + ".weight", {10, 4}) + saved(head + ".bias", {10}));
  Plan p = plan("base+s");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, head + ".bias"), "s:base_model.model." + head + ".bias");
  EXPECT_EQ(origin(p, "cls.predictions.bias"), "base:cls.predictions.bias");
  adapter("i", R"({"peft_type": "IA3", "target_modules": ["decoder"], "feedforward_modules": []})",
          saved(head + ".ia3_l", {10, 1}));
  for (const char* tied : {"false", "true"}) {
    write_file(folder_ / "base/config.json",
               fmt::format(R"({{"architectures": ["BertForMaskedLM"], "tie_word_embeddings": {}}})",
                           tied));
    p = plan("base+i");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, head + ".bias"), "base:cls.predictions.bias i linear") << tied;
  }
}

TEST_F(AdaptTest, EverythingWithAVocabularyGrowsWithIt) {
  base({{"final_logits_bias", Dtype::bf16, {1, 10}}, {"model.shared.weight", Dtype::bf16, {10, 4}}},
       R"({"architectures": ["BartForConditionalGeneration"], "vocab_size": 10})");
  adapter("a", lora_config(),
          saved("model.shared.weight", {12, 4}) + saved("lm_head.weight", {12, 4}), 1);
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  const Job* bias = find(p, "final_logits_bias");
  ASSERT_NE(bias, nullptr);
  EXPECT_EQ(bias->output.shape, (Shape{1, 12}));
  ASSERT_NE(bias->operands[0].rows, nullptr);
  EXPECT_EQ(bias->operands[0].rows->picks.size(), 10U);
  EXPECT_EQ(find(p, "model.encoder.embed_tokens.weight")->output.shape, (Shape{12, 4}));
  EXPECT_EQ(config(p)["vocab_size"], 12);
}

TEST_F(AdaptTest, TokensOfTheInputEmbeddingAreThoseOfAllUses) {
  // The input embedding of Marian is the encoder's, and its files have the tensor as shared.
  base({{"model.shared.weight", Dtype::f32, {10, 4}}},
       R"({"architectures": ["MarianMTModel"], "vocab_size": 10})");
  const auto tokens = [](const std::string& module) {
    return saved(module + ".token_adapter.trainable_tokens_delta", {1, 4});
  };
  const auto wanted = [](const std::string& module) {
    return lora_config(fmt::format(R"("trainable_token_indices": {{"{}": [7]}})", module));
  };
  adapter("in", wanted("model.encoder.embed_tokens"), tokens("model.encoder.embed_tokens"));
  Plan p = plan("base+in");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(p.jobs.size(), 1U);
  EXPECT_EQ(origin(p, "model.shared.weight"), "base:model.shared.weight in linear");
  // Those of the head alone are the head's.
  adapter("out", wanted("lm_head"), tokens("lm_head"));
  p = plan("base+out");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.shared.weight"), "base:model.shared.weight");
  EXPECT_EQ(origin(p, "lm_head.weight"), "base:model.shared.weight out linear");
}

TEST_F(AdaptTest, AVocabularyGrowsAtAllEndsOrNotAtAll) {
  base({{"model.shared.weight", Dtype::f32, {10, 4}}},
       R"({"architectures": ["MarianMTModel"], "vocab_size": 10, "decoder_vocab_size": 10})");
  adapter("g", lora_config(), saved("model.shared.weight", {12, 4}));
  Plan p = plan("base+g");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(config(p)["vocab_size"], 12);
  EXPECT_EQ(config(p)["decoder_vocab_size"], 12);
  base({{"model.encoder.embed_tokens.weight", Dtype::f32, {10, 4}},
        {"model.decoder.embed_tokens.weight", Dtype::f32, {10, 4}},
        {"model.decoder.output_projection.weight", Dtype::f32, {10, 4}}},
       R"({"architectures": ["FSMTForConditionalGeneration"], "src_vocab_size": 10})");
  adapter("f", lora_config(),
          saved("model.encoder.embed_tokens.weight", {12, 4}) +
              saved("model.decoder.embed_tokens.weight", {12, 4}));
  p = plan("base+f");
  EXPECT_FALSE(p.sound());
  expect_says(p, "model.decoder.output_projection.weight, but the other has 10");
}

TEST_F(AdaptTest, NamesInMemoryMeetNamesOnDisk) {
  struct Names {
    const char *architecture, *disk, *memory;
  };
  for (const auto& [architecture, disk, memory] : {
           Names{"GPTNeoXForCausalLM", "embed_out", "lm_head"},
           {"NemotronHForCausalLM", "backbone.layers.2.mixer.q_proj",
            "model.layers.2.mixer.q_proj"},
           {"ViTForImageClassification", "vit.encoder.layer.1.attention.attention.query",
            "vit.layers.1.attention.q_proj"},
           {"ViTForImageClassification", "vit.encoder.layer.1.attention.output.dense",
            "vit.layers.1.attention.o_proj"},
           {"ViTForImageClassification", "vit.encoder.layer.1.output.dense",
            "vit.layers.1.mlp.fc2"},
           {"SwinForImageClassification", "swin.encoder.layers.0.blocks.0.attention.self.key",
            "swin.encoder.layers.0.blocks.0.attention.k_proj"},
           {"MllamaForConditionalGeneration", "vision_model.transformer.layers.0.mlp.fc1",
            "model.vision_model.transformer.layers.0.mlp.fc1"},
           {"HYV3ForCausalLM", "model.layers.1.mlp.router.gate", "model.layers.1.mlp.gate"},
           {"SegformerForImageClassification", "segformer.encoder.block.0.1.attention.self.query",
            "segformer.stages.0.blocks.1.attention.q_proj"},
           {"Molmo2ForConditionalGeneration", "model.transformer.blocks.3.self_attn.attn_out",
            "model.language_model.layers.3.self_attn.o_proj"},
           {"DeepseekV4ForCausalLM", "layers.2.attn.wq_a", "model.layers.2.self_attn.q_a_proj"},
           {"NomicBertForMaskedLM", "nomic_bert.encoder.layers.0.mlp.fc11",
            "nomic_bert.layers.0.mlp.up_proj"},
           {"GteForMaskedLM", "new.encoder.layer.0.attention.o_proj",
            "gte.layers.0.self_attn.o_proj"},
           {"MixtralForCausalLM", "model.layers.0.block_sparse_moe.gate",
            "model.layers.0.mlp.gate"},
           {"GraniteMoeForCausalLM", "model.layers.0.block_sparse_moe.router.layer",
            "model.layers.0.block_sparse_moe.router"},
       }) {
    SCOPED_TRACE(memory);
    const std::string name = std::string(disk) + ".weight";
    base({{name, Dtype::f32, {6, 4}}, {"other.weight", Dtype::f32, {2, 2}}},
         std::string(R"({"architectures": [")") + architecture + "\"]}");
    adapter("a", lora_config(), lora_pair(memory));
    const Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, name), "base:" + name + " a linear");
    EXPECT_EQ(p.jobs.size(), 2U);
  }
}

// PEFT adapts layers that transformers makes of a third of the rows each.
TEST_F(AdaptTest, LayersThatAreRowsOfAFusedOneChangeTheseRows) {
  const std::string fused = "nomic_bert.encoder.layers.0.attn.Wqkv.weight",
                    part = "nomic_bert.layers.0.self_attn.k_proj";
  base({{fused, Dtype::f32, {12, 4}}, {"other.weight", Dtype::f32, {2, 2}}},
       R"({"architectures": ["NomicBertForMaskedLM"]})");
  adapter("a", lora_config(), lora_pair(part, 2, 4, 4));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  const json outputs = effects(p, fused).at(0).at("outputs");
  EXPECT_EQ(outputs.at("at"), 4);
  EXPECT_EQ(outputs.at("count"), 4);
  EXPECT_EQ(outputs.at("from"), 0);
  adapter("a", lora_config(R"("use_dora": true)"),
          lora_pair(part, 2, 4, 4) + saved(part + ".lora_magnitude_vector", {4}));
  p = plan("base+a");
  EXPECT_NE(problems(p).find("is one of 3 parts of " + fused), std::string::npos) << problems(p);
  adapter("a", lora_config(), lora_pair(part, 2, 4, 6));
  p = plan("base+a");
  EXPECT_NE(problems(p).find("has 6 outputs, but as one of 3 parts"), std::string::npos)
      << problems(p);
}

// ConvBERT's biases of (out, 1), and a parameter that transformers moved.
TEST_F(AdaptTest, SavedParametersAreFoundInTheirShapeAndUnderTheirOldNames) {
  const std::string layer = "convbert.encoder.layer.0.attention.self.key_conv_attn_layer",
                    old = "model.layers.1.mlp.moe_statics.e_score_correction_bias",
                    now = "model.layers.1.mlp.gate.moe_statics.e_score_correction_bias";
  base({{layer + ".bias", Dtype::f32, {6, 1}},
        {old, Dtype::f32, {1, 4}},
        {"esm.encoder.layer.0.LayerNorm.beta", Dtype::f32, {4}},
        {"fc.weight", Dtype::f32, {4, 4}}},
       "");
  const std::string config = R"("bias": "all", "modules_to_save": [")" + now + "\"]";
  const std::string norm = "esm.encoder.layer.0.LayerNorm.bias";
  const Tensors moved = lora_pair("fc", 2, 4, 4) + saved(now, {1, 4}) + saved(norm, {4});
  adapter("a", lora_config(config), moved + saved(layer + ".bias", {6, 1}));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, norm), "a:base_model.model." + norm);
  EXPECT_EQ(origin(p, layer + ".bias"), "a:base_model.model." + layer + ".bias");
  EXPECT_EQ(origin(p, old), "a:base_model.model." + now);
  adapter("a", lora_config(config), moved + saved(layer + ".bias", {3, 2}));
  p = plan("base+a");
  EXPECT_NE(problems(p).find("a bias has one number for each output"), std::string::npos)
      << problems(p);
}

TEST_F(AdaptTest, OldNamesOfLayerNormsAreFound) {
  const std::string norm = "encoder.layer.0.attention.output.LayerNorm";
  base({{"bert." + norm + ".gamma", Dtype::f32, {4}}, {"bert." + norm + ".beta", Dtype::f32, {4}}},
       R"({"architectures": ["BertForMaskedLM"]})");
  for (const char* before : {"bert.", ""}) {  // with and without the outer module
    const Tensors both =
        saved(before + norm + ".weight", {4}) + saved(before + norm + ".bias", {4});
    adapter("a", lora_config(R"("modules_to_save": ["LayerNorm"])"), both);
    const Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(origin(p, "bert." + norm + ".weight"),  // what the output calls it
              "a:base_model.model." + (before + norm) + ".weight");
    EXPECT_EQ(origin(p, "bert." + norm + ".bias"),
              "a:base_model.model." + (before + norm) + ".bias");
  }
}

TEST_F(AdaptTest, TwoRotationsOfAnEmbeddingActInTheOrderGiven) {
  base({{"embed_tokens.weight", Dtype::f32, {10, 4}}, {"lin.weight", Dtype::f32, {4, 4}}}, "");
  const std::string oft =
      R"({"peft_type": "OFT", "oft_block_size": 4, "r": 0, "target_modules": ["embed_tokens", "lin"]})";
  for (const char* name : {"a", "b"}) {
    adapter(name, oft,
            saved("embed_tokens.oft_embedding_R", {1, 6}) + saved("lin.oft_R.weight", {1, 6}));
  }
  const Plan p = plan("base+a+b");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(effects(p, "embed_tokens.weight").at(0).at("adapter"), "a");
  EXPECT_EQ(effects(p, "lin.weight").at(0).at("adapter"), "b");
}

TEST_F(AdaptTest, TrainedTokensReplaceRowsOnBothTiedEnds) {
  base(headless(), tied_config());
  adapter("a", lora_config(R"("trainable_token_indices": [7, 2])"),
          kPair + saved("model.embed_tokens.token_adapter.trainable_tokens_delta", {2, 4}));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"), "base:model.embed_tokens.weight a linear");
  EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
  adapter("b", lora_config(R"("trainable_token_indices": [2])"),
          kPair + saved("model.embed_tokens.token_adapter.trainable_tokens_delta", {1, 4}));
  expect_refused(plan("base+a+b"), "adapters a and b both trained token 2");
  adapter("c", lora_config(R"("trainable_token_indices": [10])"),
          kPair + saved("model.embed_tokens.token_adapter.trainable_tokens_delta", {1, 4}));
  expect_refused(plan("base+c"), "tokens up to 10");
}

TEST_F(AdaptTest, TrainedTokensMayBeNewOnes) {
  const Tensors rows = saved("model.embed_tokens.token_adapter.base_layer.weight", {12, 4}) +
                       saved("model.embed_tokens.token_adapter.trainable_tokens_delta", {2, 4});
  const Tensors head = saved("lm_head.token_adapter.base_layer.weight", {12, 4}) +
                       saved("lm_head.token_adapter.trainable_tokens_delta", {2, 4});
  const std::string config_text =
      lora_config(R"("trainable_token_indices": {"embed_tokens": [11, 2]})");
  base(headless(), tied_config());
  adapter("a", config_text, kPair + rows + head);
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"),
            "a:base_model.model.model.embed_tokens.token_adapter.base_layer.weight a linear");
  EXPECT_EQ(find(p, "lm_head.weight"), nullptr);
  EXPECT_EQ(config(p)["vocab_size"], 12);
  EXPECT_EQ(config(p)["tie_word_embeddings"], true);
  // Other rows of the head make it a tensor of its own.
  adapter("b", config_text, kPair + rows + head, 1);
  p = plan("base+b");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(effects(p, "lm_head.weight").size(), 2U);
  EXPECT_EQ(config(p)["tie_word_embeddings"], false);
  base(llama(1), llama_config(1));
  adapter("c", config_text, kPair + rows + saved("lm_head.weight", {12, 4}));
  p = plan("base+c");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.embed_tokens.weight"),
            "c:base_model.model.model.embed_tokens.token_adapter.base_layer.weight c linear");
  EXPECT_EQ(find(p, "lm_head.weight")->output.shape, (Shape{12, 4}));
}

// --- layouts

TEST_F(AdaptTest, TransposedLayersAreTakenByShapeAndByArchitecture) {
  const std::string gpt2 = R"({"architectures": ["GPT2LMHeadModel"], "n_layer": 1})";
  const Tensors layers = {{"wte.weight", Dtype::f32, {10, 4}},
                          {"h.0.attn.c_attn.weight", Dtype::f32, {4, 12}},
                          {"h.0.attn.c_proj.weight", Dtype::f32, {4, 4}}};
  base(layers, gpt2);
  adapter("a", lora_config(),
          lora_pair("transformer.h.0.attn.c_attn", 2, 4, 12) +
              lora_pair("transformer.h.0.attn.c_proj", 2, 4, 4));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "transformer.h.0.attn.c_attn.weight"),
            "base:h.0.attn.c_attn.weight a transposed");
  EXPECT_EQ(origin(p, "transformer.h.0.attn.c_proj.weight"),
            "base:h.0.attn.c_proj.weight a transposed");
  // Of a square layer of an unknown class only the configuration can tell.
  const Tensors square = {{"h.0.attn.c_proj.weight", Dtype::f32, {4, 4}}};
  base(square, R"({"architectures": ["NobodysLMHeadModel"]})");
  adapter("plain", lora_config(), lora_pair("h.0.attn.c_proj", 2, 4, 4));
  adapter("turned", lora_config(R"("fan_in_fan_out": true)"),
          lora_pair("h.0.attn.c_proj", 2, 4, 4));
  EXPECT_EQ(origin(plan("base+plain"), "h.0.attn.c_proj.weight"),
            "base:h.0.attn.c_proj.weight plain linear");
  EXPECT_EQ(origin(plan("base+turned"), "h.0.attn.c_proj.weight"),
            "base:h.0.attn.c_proj.weight turned transposed");
}

TEST_F(AdaptTest, AttentionModulesChangeBothProjectionsTheSecondTwice) {
  base({{"attn.in_proj_weight", Dtype::f32, {12, 4}}, {"attn.out_proj.weight", Dtype::f32, {4, 4}}},
       "");
  adapter("a", lora_config(),
          lora_pair("attn", 2, 4, 12) + lora_pair("attn.base_layer.out_proj", 2, 4, 4));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_FALSE(effects(p, "attn.in_proj_weight").at(0).contains("times"));
  EXPECT_EQ(effects(p, "attn.out_proj.weight").at(0).at("times"), 2.0);
}

TEST_F(AdaptTest, Ia3ScalesBiasesOfOutputs) {
  base(llama(1) + Tensors{{kQ + ".bias", Dtype::bf16, {4}}}, llama_config(1));
  const std::string ia3 =
      R"({"peft_type": "IA3", "target_modules": ["q_proj"], "feedforward_modules": []})";
  adapter("out", ia3, saved(kQ + ".ia3_l", {4, 1}));
  adapter("in", ia3, saved(kQ + ".ia3_l", {1, 4}));
  EXPECT_EQ(origin(plan("base+out"), kQ + ".bias"), "base:" + kQ + ".bias out linear");
  const Plan p = plan("base+in");
  EXPECT_EQ(origin(p, kQ + ".bias"), "base:" + kQ + ".bias");
  EXPECT_EQ(effects(p, kQ + ".weight").at(0).at("feedforward"), true);
}

// --- stacked layers

TEST_F(AdaptTest, ReplicatedLayersBecomeTensorsOfTheirOwn) {
  base(llama(3), llama_config(3, ",\n  \"layer_types\": [\"x\", \"y\", \"z\"]"));
  adapter("a", lora_config(R"("layer_replication": [[0, 2], [0, 2]])"),
          lora_pair("model.layers.0.self_attn.q_proj", 2, 4, 4) +
              lora_pair("model.layers.3.self_attn.q_proj", 2, 4, 4));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, "model.layers.3.self_attn.q_proj.weight"),
            "base:model.layers.1.self_attn.q_proj.weight a linear");
  EXPECT_EQ(origin(p, "model.layers.2.self_attn.q_proj.weight"),
            "base:model.layers.0.self_attn.q_proj.weight");
  EXPECT_EQ(find(p, "model.layers.4.self_attn.q_proj.weight"), nullptr);
  EXPECT_EQ(config(p)["num_hidden_layers"], 4);
  EXPECT_EQ(config(p)["layer_types"], (json{"x", "y", "x", "y"}));
  EXPECT_NE(unused(p, "base:model.layers.2.self_attn.q_proj.weight").find("leaves out"),
            std::string::npos);
  adapter("b", lora_config(), kPair);
  expect_refused(plan("base+a+b"), "stack the layers differently");
  adapter("deep", lora_config(R"("layer_replication": [[0, 9]])"), kPair);
  expect_refused(plan("base+deep"), "names layer 3, while base has 3");
  base(Tensors{{"model.layers.99999999999.x.weight", Dtype::f32, {2, 2}}}, "");
  expect_refused(plan("base+a"), "has no layers that layer_replication could stack");
}

// --- experts

const std::string kExperts = "model.layers.0.mlp.experts";

std::string experts_config(const std::string& more = "") {
  return lora_config(R"("target_parameters": ["experts.gate_up_proj", "experts.down_proj"])" +
                     more);
}

// Two experts of width 4 and inner width 3.
Tensors fused_pair() {
  return lora_pair(kExperts + ".base_layer", 4, 4, 6) + lora_pair(kExperts, 4, 3, 4);
}

std::string moe(const std::string& name) {
  return "{\"architectures\": [\"" + name + "\"], \"num_hidden_layers\": 1}";
}

TEST_F(AdaptTest, FusedExpertsAreTakenInEitherLayout) {
  adapter("a", experts_config(), fused_pair());
  base({{kExperts + ".gate_up_proj", Dtype::f32, {2, 6, 4}},
        {kExperts + ".down_proj", Dtype::f32, {2, 4, 3}}},
       moe("Qwen3MoeForCausalLM"));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, kExperts + ".gate_up_proj"), "base:" + kExperts + ".gate_up_proj a linear");
  EXPECT_EQ(effects(p, kExperts + ".down_proj").at(0).at("experts"), 2);
  base({{kExperts + ".gate_up_proj", Dtype::f32, {2, 4, 6}},
        {kExperts + ".down_proj", Dtype::f32, {2, 3, 4}}},
       moe("GptOssForCausalLM"));
  p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(origin(p, kExperts + ".gate_up_proj"),
            "base:" + kExperts + ".gate_up_proj a transposed");
  EXPECT_EQ(origin(p, kExperts + ".down_proj"), "base:" + kExperts + ".down_proj a transposed");
}

TEST_F(AdaptTest, ExpertsWithoutGatesAndRenamedOnesAreFound) {
  const std::string mixer = "layers.1.mixer.experts";
  base({{"backbone." + mixer + ".0.up_proj.weight", Dtype::f32, {6, 4}},
        {"backbone." + mixer + ".1.up_proj.weight", Dtype::f32, {6, 4}}},
       moe("NemotronHForCausalLM"));
  adapter("a", lora_config(R"("target_parameters": ["mixer.experts.up_proj"])"),
          lora_pair("model." + mixer, 4, 4, 6));
  Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(effects(p, "backbone." + mixer + ".1.up_proj.weight").at(0).at("experts"), 2);
  const std::string sparse = "model.layers.0.block_sparse_moe.";
  base({{sparse + "input_linear.weight", Dtype::f32, {2, 6, 4}},
        {sparse + "output_linear.weight", Dtype::f32, {2, 4, 3}}},
       moe("GraniteMoeForCausalLM"));
  adapter(
      "b", experts_config(),
      lora_pair(sparse + "experts.base_layer", 4, 4, 6) + lora_pair(sparse + "experts", 4, 3, 4));
  p = plan("base+b");
  ASSERT_TRUE(p.sound()) << problems(p);
  EXPECT_EQ(effects(p, sparse + "output_linear.weight").at(0).at("experts"), 2);
}

TEST_F(AdaptTest, SquareExpertsFollowTheReleaseThatTrainedThem) {
  const auto layout = [&](const char* architecture, const std::string& version) {
    base({{kExperts + ".down_proj", Dtype::f32, {2, 4, 4}}}, moe(architecture));
    adapter("a",
            lora_config(R"("target_parameters": ["experts.down_proj"])" +
                        (version.empty() ? "" : ", \"peft_version\": \"" + version + "\"")),
            lora_pair(kExperts, 4, 4, 4));
    const Plan p = plan("base+a");
    EXPECT_TRUE(p.sound()) << problems(p);
    return effects(p, kExperts + ".down_proj").at(0).value("layout", "linear");
  };
  EXPECT_EQ(layout("Qwen3MoeForCausalLM", "0.21.2"), "linear");
  EXPECT_EQ(layout("GptOssForCausalLM", "0.21.2"), "transposed");
  EXPECT_EQ(layout("Qwen3MoeForCausalLM", "0.18.1"), "transposed");
  EXPECT_EQ(layout("GptOssForCausalLM", ""), "transposed");
  EXPECT_EQ(layout("GptOssForCausalLM", "0.19.0"), "linear");
  EXPECT_EQ(layout("Qwen3MoeForCausalLM", "0.19.0"), "transposed");
  EXPECT_EQ(layout("Qwen3MoeForCausalLM", "0.19.1"), "linear");
}

TEST_F(AdaptTest, FusedFactorsAreSplitOntoExpertsOfTheirOwn) {
  Tensors tensors;
  for (const char* e : {"0", "1"}) {
    const std::string expert = kExperts + "." + e;
    tensors.push_back({expert + ".gate_proj.weight", Dtype::f32, {3, 4}});
    tensors.push_back({expert + ".up_proj.weight", Dtype::f32, {3, 4}});
    tensors.push_back({expert + ".down_proj.weight", Dtype::f32, {4, 3}});
  }
  base(tensors, moe("Qwen3MoeForCausalLM"));
  adapter("a", experts_config(), fused_pair());
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  const json up = effects(p, kExperts + ".1.up_proj.weight").at(0);
  EXPECT_EQ(up.at("expert"), 1);
  EXPECT_EQ(up.at("outputs").at("from"), 3);
  EXPECT_EQ(effects(p, kExperts + ".1.gate_proj.weight").at(0).at("outputs").at("from"), 0);
  EXPECT_EQ(effects(p, kExperts + ".0.down_proj.weight").at(0).at("expert"), 0);
}

TEST_F(AdaptTest, FactorsOfSingleExpertsLandInFusedTensors) {
  base({{kExperts + ".gate_up_proj", Dtype::f32, {2, 6, 4}},
        {kExperts + ".down_proj", Dtype::f32, {2, 4, 3}}},
       moe("MixtralForCausalLM"));
  const std::string old = "model.layers.0.block_sparse_moe.experts.1.";
  adapter("a", lora_config(),
          lora_pair(old + "w1", 2, 4, 3) + lora_pair(old + "w3", 2, 4, 3) +
              lora_pair(old + "w2", 2, 3, 4));
  const Plan p = plan("base+a");
  ASSERT_TRUE(p.sound()) << problems(p);
  const json both = effects(p, kExperts + ".gate_up_proj");
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(both[0].at("block"), 1);
  EXPECT_EQ(both[0].at("outputs").at("at"), 0);
  EXPECT_EQ(both[1].at("outputs").at("at"), 3);
  EXPECT_EQ(effects(p, kExperts + ".down_proj").at(0).at("block"), 1);
}

TEST_F(AdaptTest, PhisRouterIsFoundUnderItsOldAndNewName) {
  const std::string gate = "model.layers.0.block_sparse_moe.gate",
                    router = "model.layers.0.mlp.router";
  for (const auto& [stored, adapted] : {std::pair{gate, router}, {router, gate}}) {
    Tensors tensors = llama(1);
    tensors.push_back({stored + ".weight", Dtype::bf16, {2, 4}});
    base(tensors, llama_config(1));
    adapter("a", lora_config(), lora_pair(adapted, 2, 2, 4));
    const Plan p = plan("base+a");
    ASSERT_TRUE(p.sound()) << problems(p);
    EXPECT_EQ(effects(p, stored + ".weight").size(), 1U);
  }
}

// --- what cannot be

TEST_F(AdaptTest, BasesAndAdaptersThatCannotMeetAreRefused) {
  adapter("a", lora_config(), kPair);
  base(llama(1), llama_config(1, ",\n  \"quantization_config\": {\"quant_method\": \"gptq\"}"));
  expect_refused(plan("base+a"), "base is quantised");
  base(llama(1, Dtype::f64), llama_config(1));
  expect_refused(plan("base+a"), "which no adapter can change; --dtype float32");
  base(llama(1), llama_config(1));
  expect_refused(plan("base+base"), "it is a model, not an adapter");
  expect_refused(plan("base+none"), "the model 'none' is not");
}

TEST_F(AdaptTest, AnAdapterTrainedOnAnAdapterNeedsIt) {
  base(llama(1), llama_config(1));
  adapter("low", lora_config(R"("base_model_name_or_path": "base")"), kPair);
  adapter("top", lora_config(R"("base_model_name_or_path": "low")"), kPair);
  expect_says(plan("base+top"), "adapter top was trained on the adapter low");
  expect_says(plan("base+top+low"), "adapter top was trained on the adapter low");
  EXPECT_EQ(problems(plan("base+low+top")).find("was trained on"), std::string::npos);
  EXPECT_EQ(problems(plan("base+low")).find("was trained on"), std::string::npos);
}

TEST_F(AdaptTest, AnAdapterThatIsListedTwiceIsReported) {
  base(llama(2), llama_config(2));
  adapter("a", lora_config(), kPair);
  const Plan twice = plan("base+a+./a");
  ASSERT_TRUE(twice.sound()) << problems(twice);
  EXPECT_NE(problems(twice).find("adapter './a' = 'a' is listed 2 times and counts each time"),
            std::string::npos)
      << problems(twice);
  EXPECT_EQ(problems(plan("base+a")).find("is listed"), std::string::npos);
}

TEST_F(AdaptTest, GroupedConvolutionsStayAdapters) {
  base(llama(2), llama_config(2));
  adapter("a", lora_config(),
          {{"base_model.model.stem.lora_A.weight", Dtype::f32, {2, 4, 3, 3}},
           {"base_model.model.stem.lora_B.weight", Dtype::f32, {6, 1, 1, 1}}});
  expect_refused(
      plan("base+a"),
      "stem is a convolution of 2 groups: its update works on all inputs, and the weight "
      "has only those of each output's own group, so it cannot be baked; keep it as an "
      "adapter");
}

TEST_F(AdaptTest, RowsCannotBeMatchedByTokenUnderAnAdapter) {
  base(headless(), tied_config());
  adapter("a", lora_config(), embedding_pair());
  write_file(folder_ / "base/tokenizer.json",
             R"({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})");
  PlanOptions options;
  options.root = folder_.path();
  const auto disk = system_disk();
  const Plan p =
      build(*disk,
            parse("merge_method: passthrough\ntokenizer_source: base\nmodels:\n- model: base+a\n",
                  "r.yml", {}),
            options);
  expect_refused(p, "bake the adapters first");
}

}  // namespace
}  // namespace ingot
