// The plan as a whole: sources, layers, names, shapes, types, parameters, every input's fate.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "base/hash.hpp"
#include "ingot/methods.hpp"
#include "ingot/plan.hpp"
#include "model.hpp"
#include "support.hpp"

namespace ingot {
namespace {

using test::Folder;
using test::llama;
using test::llama_config;
using test::Tensors;
using test::write_model;

Plan plan_of(const std::string& text, const std::string& root, PlanOptions options = {}) {
  const auto disk = system_disk();
  options.root = root;
  return build(*disk, parse(text, "recipe.yml", {}), options);
}

std::string report(const Plan& plan) {
  std::string text;
  for (const Problem& p : plan.problems)
    text += (p.fatal ? "error: " : "warning: ") + p.text + "\n";
  return text;
}

const Job* find(const Plan& plan, const std::string& name) {
  const auto it = std::find_if(plan.jobs.begin(), plan.jobs.end(),
                               [&](const Job& job) { return job.output.name == name; });
  return it == plan.jobs.end() ? nullptr : &*it;
}

// The operands of an output tensor as "model:tensor model:tensor", or why there is none.
std::string inputs(const Plan& plan, const std::string& name) {
  const Job* job = find(plan, name);
  if (job == nullptr) return "no such output; " + report(plan);
  std::string text;
  for (const Operand& o : job->operands) {
    const Model& model = plan.models[o.model];
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", model.ref.text,
                        model.checkpoint.entries()[o.entry].info.name);
  }
  return text;
}

double weight(const Plan& plan, const std::string& name, int source) {
  const math::Rule& rule = find(plan, name)->work.rule;
  return rule.locals[source][math::local_place(math::method(rule.method), "weight")];
}

double normalized(const Plan& plan, const std::string& name) {
  const math::Rule& rule = find(plan, name)->work.rule;
  return rule.globals[math::global_place(math::method(rule.method), "normalize")];
}

std::string unused(const Plan& plan, const std::string& model, const std::string& tensor) {
  for (const Unused& u : plan.unused) {
    const Model& m = plan.models[u.model];
    if (m.ref.text == model && m.checkpoint.entries()[u.entry].info.name == tensor) return u.reason;
  }
  return "used";
}

#define EXPECT_SAYS(plan, words) \
  EXPECT_NE(report(plan).find(words), std::string::npos) << report(plan)
#define ASSERT_SOUND(plan) ASSERT_TRUE((plan).sound()) << report(plan)

// Models a, b and c of two layers in a folder of their own.
class PlanTest : public ::testing::Test {
 protected:
  PlanTest() {
    for (const char* name : {"a", "b", "c"}) model(name, llama(2), llama_config(2));
  }
  void model(const std::string& name, const Tensors& tensors, const std::string& config) {
    write_model(folder_ / name, tensors, config);
  }
  Plan plan(const std::string& text, PlanOptions options = {}) const {
    return plan_of(text, folder_.path(), std::move(options));
  }

  Folder folder_;
};

// --- models --------------------------------------------------------------------------------------

TEST_F(PlanTest, EveryTensorOfTheExamplesIsMerged) {
  const Plan p = plan_of(
      "merge_method: ties\nbase_model: base\ndtype: float16\nmodels:\n"
      "- {model: python, parameters: {weight: 1, density: 0.5}}\n"
      "- {model: c, parameters: {weight: 0.5, density: 0.3}}\n",
      test::example("models"));
  ASSERT_SOUND(p);
  EXPECT_EQ(p.jobs.size(), 21U);
  EXPECT_TRUE(p.unused.empty());
  EXPECT_EQ(report(p), "");
  EXPECT_EQ(inputs(p, "model.norm.weight"),
            "base:model.norm.weight python:model.norm.weight c:model.norm.weight");
  EXPECT_EQ(p.architecture, "LlamaForCausalLM");
}

TEST_F(PlanTest, NamesOfWrappedModulesAreReadWithoutTheWrapper) {
  const std::string name = "model.norm.weight";
  for (const char* wrapper : {"module.", "_orig_mod.", "module._orig_mod."}) {
    Tensors wrapped = llama(2);
    for (TensorInfo& info : wrapped) info.name = wrapper + info.name;
    model("w", wrapped, llama_config(2));
    for (const char* donor : {"w", "a"}) {
      const Plan p =
          plan(fmt::format("merge_method: linear\nbase_model: {}\nmodels:\n- {{model: a, "
                           "parameters: {{weight: 1}}}}\n"
                           "- {{model: w, parameters: {{weight: 1}}}}\n",
                           donor));
      ASSERT_SOUND(p);
      EXPECT_EQ(p.jobs.size(), llama(2).size());
      EXPECT_EQ(inputs(p, name), "a:" + name + " w:" + name);
      EXPECT_SAYS(p, std::string("begin with ") + wrapper + ", which");
    }
    // One name without it: the others are names like any.
    wrapped.back().name = wrapped.back().name.substr(std::string(wrapper).size());
    model("w", wrapped, llama_config(2));
    EXPECT_EQ(report(plan("merge_method: passthrough\nmodels:\n- model: w\n")).find("begin with"),
              std::string::npos);
  }
}

TEST_F(PlanTest, TaskVectorsAreCountedWithoutTheBaseWhereverItIsListed) {
  const std::string rest = "merge_method: ties\nbase_model: a\nparameters: {weight: 1}\nmodels:\n";
  const Plan appended = plan(rest + "- model: b\n- model: c\n");
  const Plan listed = plan(rest + "- model: b\n- model: a\n- model: c\n");
  for (const Plan* p : {&appended, &listed}) {
    ASSERT_SOUND(*p);
    EXPECT_EQ(inputs(*p, "lm_head.weight"), "a:lm_head.weight b:lm_head.weight c:lm_head.weight");
    EXPECT_TRUE(find(*p, "lm_head.weight")->work.rule.base);
    EXPECT_EQ(find(*p, "lm_head.weight")->work.rule.sources, 2);
  }
}

TEST_F(PlanTest, LinearTreatsTheBaseAsAnInputAndMissesItsWeight) {
  const std::string models =
      "merge_method: linear\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: 1}}\n";
  EXPECT_SAYS(plan(models), "linear needs parameter 'weight' of a");
  const Plan p = plan(models + "parameters: {weight: 0.25}\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "lm_head.weight"), "b:lm_head.weight a:lm_head.weight");
  EXPECT_FALSE(find(p, "lm_head.weight")->work.rule.base);
  EXPECT_EQ(weight(p, "lm_head.weight", 0), 1);
  EXPECT_EQ(weight(p, "lm_head.weight", 1), 0.25);
}

TEST_F(PlanTest, NumberOfModelsIsTheMethods) {
  EXPECT_SAYS(
      plan(
          "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nmodels:\n- model: a\n- model: "
          "b\n- model: c\n"),
      "slerp takes exactly 2 models, not 3");
  EXPECT_SAYS(plan("merge_method: passthrough\nbase_model: a\nmodels:\n- model: b\n"),
              "passthrough takes exactly 1 model, not 2 (base_model a counts as one)");
}

TEST_F(PlanTest, MethodsThatNeedABaseSaySo) {
  EXPECT_SAYS(
      plan("merge_method: ties\nparameters: {weight: 1}\nmodels:\n- model: b\n- model: c\n"),
      "ties needs a base_model");
  EXPECT_SAYS(plan("merge_method: slerp\nparameters: {t: 1}\nmodels:\n- model: b\n- model: c\n"),
              "slerp needs a base_model");
}

TEST_F(PlanTest, OneModelUnderTwoNamesIsListedTwice) {
  EXPECT_SAYS(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: ./a\n"),
      "is listed twice");
}

TEST_F(PlanTest, AllMissingModelsAreReported) {
  const Plan p = plan("merge_method: linear\nmodels:\n- model: ./x\n- model: ./y\n");
  EXPECT_FALSE(p.sound());
  EXPECT_SAYS(p, "./x");
  EXPECT_SAYS(p, "./y");
}

TEST_F(PlanTest, MethodsAreKnownNotYetKnownOrMisspelt) {
  EXPECT_SAYS(plan("merge_method: tise\nmodels:\n- model: a\n"), "did you mean 'ties'?");
  EXPECT_SAYS(plan("merge_method: della\nmodels:\n- model: a\n"),
              "'della' is not supported yet; the nearest one is 'dare_ties'");
}

TEST_F(PlanTest, MissingAdapterIsNamedWithItsModelAndLine) {
  const Plan missing = plan("merge_method: passthrough\nmodels:\n- model: a+nowhere\n");
  EXPECT_SAYS(missing, "the model 'nowhere' is not a folder or file in");
  EXPECT_SAYS(missing, "reading model 'a+nowhere' of recipe.yml:3");
  EXPECT_SAYS(plan("merge_method: passthrough\nmodels:\n- model: a+b\n"),
              "it is a model, not an adapter");
}

TEST_F(PlanTest, DifferentArchitecturesAreRefusedUnlessAllowed) {
  model("d", llama(2), "{\"architectures\": [\"MistralForCausalLM\"], \"num_hidden_layers\": 2}");
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: d\n";
  EXPECT_SAYS(plan(text), "a is LlamaForCausalLM, d is MistralForCausalLM");
  PlanOptions options;
  options.allow_mixed = true;
  const Plan p = plan(text, options);
  ASSERT_SOUND(p);
  EXPECT_SAYS(p, "warning: architectures differ");
}

TEST_F(PlanTest, UnknownArchitectureMergesAndSaysSo) {
  const Tensors odd = {{"net.embed_tokens.weight", Dtype::bf16, {10, 4}},
                       {"net.tiers.0.w", Dtype::bf16, {4}},
                       {"net.tiers.1.w", Dtype::bf16, {4}},
                       {"net.tiers.2.w", Dtype::bf16, {4}}};
  for (const char* name : {"x", "y"}) {
    model(name, odd, "{\"architectures\": [\"OddModel\"], \"num_layers\": 3}");
  }
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: [1, 3]}\nmodels:\n- model: x\n- model: y\n");
  ASSERT_SOUND(p);
  EXPECT_SAYS(p, "warning: OddModel is not in the table of architectures");
  EXPECT_EQ(p.jobs.size(), 4U);
  EXPECT_EQ(weight(p, "net.tiers.1.w", 0),
            2);  // layers were found by the count that the config gives
}

TEST_F(PlanTest, ModelsOfDifferentDepthNeedSlices) {
  model("deep", llama(3), llama_config(3));
  EXPECT_SAYS(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: deep\n"),
      "a has 2 layers (model.layers), deep has 3");
}

// --- slices --------------------------------------------------------------------------------------

TEST_F(PlanTest, SlicesNumberLayersAnewAndMayRepeatThem) {
  const Plan p = plan(
      "merge_method: passthrough\nslices:\n"
      "- sources: [{model: a, layer_range: [0, 2]}]\n"
      "- sources: [{model: b, layer_range: [1, 2]}]\n"
      "- sources: [{model: a, layer_range: [0, 1]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "model.layers.0.mlp.up_proj.weight"), "a:model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(inputs(p, "model.layers.2.mlp.up_proj.weight"), "b:model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(inputs(p, "model.layers.3.mlp.up_proj.weight"), "a:model.layers.0.mlp.up_proj.weight");
  EXPECT_EQ(p.jobs.size(), 4 * 2 + 3U);
  EXPECT_EQ(inputs(p, "model.embed_tokens.weight"), "a:model.embed_tokens.weight");
  EXPECT_EQ(unused(p, "b", "model.layers.0.mlp.up_proj.weight"),
            "layer 0 is outside the recipe's slices");
  EXPECT_EQ(unused(p, "b", "model.embed_tokens.weight"),
            "tensors before the layers come from the first slice");
}

TEST_F(PlanTest, TensorsAfterTheLayersHaveAllSourcesOfTheLastSlice) {
  const Plan p = plan(
      "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
      "- sources: [{model: a, layer_range: [0, 1]}]\n"
      "- sources: [{model: b, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "model.norm.weight"), "b:model.norm.weight c:model.norm.weight");
  EXPECT_EQ(inputs(p, "lm_head.weight"), "b:lm_head.weight c:lm_head.weight");
  EXPECT_EQ(inputs(p, "model.embed_tokens.weight"), "a:model.embed_tokens.weight");
}

TEST_F(PlanTest, SlicesGetTheBaseTheirTaskVectorsNeed) {
  const Plan p = plan(
      "merge_method: task_arithmetic\nbase_model: a\nparameters: {weight: 1}\nslices:\n"
      "- sources: [{model: b, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "model.layers.0.self_attn.q_proj.weight"),
            "a:model.layers.1.self_attn.q_proj.weight b:model.layers.1.self_attn.q_proj.weight "
            "c:model.layers.1.self_attn.q_proj.weight");
  EXPECT_SAYS(
      plan("merge_method: task_arithmetic\nbase_model: a\nparameters: {weight: 1}\nslices:\n"
           "- sources: [{model: b, layer_range: [0, 1]}, {model: c, layer_range: [1, 2]}]\n"),
      "it is not clear which layers of base_model a are meant");
}

TEST_F(PlanTest, SlerpFindsItsBaseAmongTheSources) {
  EXPECT_SAYS(
      plan("merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
           "- sources: [{model: b, layer_range: [0, 1]}, {model: c, layer_range: [0, 1]}]\n"),
      "slerp needs base_model a among the models");
  const Plan p = plan(
      "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
      "- sources: [{model: b, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "model.norm.weight"), "a:model.norm.weight b:model.norm.weight");
}

TEST_F(PlanTest, SourcesOfOneModelAreToldApartByPosition) {
  const Plan p = plan(
      "merge_method: linear\nslices:\n- sources:\n"
      "  - {model: a, layer_range: [0, 1], parameters: {weight: 0.3}}\n"
      "  - {model: a, layer_range: [1, 2], parameters: {weight: 0.7}}\n");
  ASSERT_SOUND(p);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_EQ(inputs(p, name),
            "a:model.layers.0.mlp.up_proj.weight a:model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(weight(p, name, 0), 0.3);
  EXPECT_EQ(weight(p, name, 1), 0.7);
  EXPECT_SAYS(plan("merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources: [{model: a, "
                   "layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]\n"),
              "a is listed twice with the same layers");
}

TEST_F(PlanTest, RangesStayInsideTheModelAndAreEquallyLong) {
  EXPECT_SAYS(
      plan("merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [1, 3]}]\n"),
      "layer_range [1, 3] goes beyond the last layer of a, which has 2 layers; [0, 2] takes all");
  EXPECT_SAYS(plan("merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources: [{model: a, "
                   "layer_range: [0, 2]}, {model: b, layer_range: [0, 1]}]\n"),
              "b gives 1 layers to slices[0] (line 4), and a gives 2");
}

// --- habits that mergekit allows ----------------------------------------------------------------

TEST_F(PlanTest, SlicesWithoutLayersGiveWhatStandsAroundTheLayers) {
  const Plan p = plan(
      "merge_method: passthrough\nslices:\n"
      "- sources: [{model: c, layer_range: [0, 0]}]\n"
      "- sources: [{model: a, layer_range: [0, 2]}]\n"
      "- sources: [{model: c, layer_range: [1, 1]}]\n"
      "- sources: [{model: b, layer_range: [9, 9]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(p.jobs.size(), 2 * 2 + 3U);
  EXPECT_EQ(inputs(p, "model.embed_tokens.weight"), "c:model.embed_tokens.weight");
  EXPECT_EQ(inputs(p, "model.layers.1.mlp.up_proj.weight"), "a:model.layers.1.mlp.up_proj.weight");
  EXPECT_EQ(inputs(p, "lm_head.weight"), "b:lm_head.weight");
  EXPECT_SAYS(p,
              "slices[0] (line 3) holds no layer: only the tensors before the layers come from c");
  EXPECT_SAYS(p, "slices[2] (line 5) holds no layer: it is left out");
  EXPECT_SAYS(p,
              "slices[3] (line 6) holds no layer: only the tensors after the layers come from b");
  EXPECT_SAYS(
      plan("merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [1, 1]}]\n"),
      "error: recipe.yml:3:3: no slice holds a layer");
}

TEST_F(PlanTest, OneModelWhereTheMethodTakesTwoIsPassedThrough) {
  const Plan p = plan(
      "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
      "- sources: [{model: b, layer_range: [0, 1]}]\n"
      "- sources: [{model: a, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]\n");
  ASSERT_SOUND(p);
  EXPECT_SAYS(p, "slices[0] (line 5): b is the only model, and slerp takes 2");
  const Job* alone = find(p, "model.layers.0.mlp.up_proj.weight");
  ASSERT_NE(alone, nullptr);
  EXPECT_EQ(alone->action, Action::copy);
  EXPECT_EQ(alone->reason, "its slice or module has one model");
  EXPECT_EQ(find(p, "model.layers.1.mlp.up_proj.weight")->action, Action::merge);
  PlanOptions narrow;
  narrow.dtype = "bfloat16";
  const Plan q = plan(
      "merge_method: slerp\nbase_model: a\nparameters: {t: 0.5}\nslices:\n"
      "- sources: [{model: b, layer_range: [0, 1]}]\n"
      "- sources: [{model: a, layer_range: [1, 2]}, {model: c, layer_range: [1, 2]}]\n",
      narrow);
  ASSERT_SOUND(q);
  const math::Rule& rule = find(q, "model.layers.0.mlp.up_proj.weight")->work.rule;
  EXPECT_EQ(rule.method, math::find("passthrough"));
  EXPECT_EQ(rule.locals[0][0], 1.0);
  // A whole recipe of one model lacks another.
  EXPECT_SAYS(
      plan("merge_method: slerp\nparameters: {t: 0.5}\nbase_model: a\nmodels: [{model: a}]\n"),
      "slerp takes exactly 2 models, not 1");
}

TEST_F(PlanTest, TheBaseAloneIsTakenAsItIs) {
  for (const char* method : {"ties", "task_arithmetic", "dare_ties", "dare_linear"}) {
    const Plan p =
        plan(fmt::format("merge_method: {}\nbase_model: a\nmodels: [{{model: a}}]\n", method));
    ASSERT_SOUND(p);
    EXPECT_SAYS(p, "models: the base is the only model: its tensors are copied unchanged");
    for (const Job& job : p.jobs) EXPECT_EQ(job.action, Action::copy) << job.output.name;
  }
}

TEST_F(PlanTest, ParametersThatNoMethodReadsAreSaid) {
  const Plan p = plan(
      "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1, dtype: float16}}]\n"
      "parameters: {label: hello, base_model: b}\n");
  ASSERT_SOUND(p);
  EXPECT_SAYS(p,
              "warning: recipe.yml:2:45: 'dtype' among the parameters of a is ignored, as mergekit "
              "ignores it; it belongs at the top level");
  EXPECT_SAYS(p, "warning: recipe.yml:3:28: 'base_model' among the parameters of the recipe");
  EXPECT_SAYS(
      p,
      "warning: recipe.yml:3:14: no method reads the parameter 'label' of the recipe; linear "
      "reads normalize, weight");
  EXPECT_EQ(p.models.size(), 1U);
}

TEST_F(PlanTest, EveryErrorOfARecipeIsToldAtOnce) {
  const auto disk = system_disk();
  PlanOptions options;
  options.root = folder_.path();
  const Plan p = build(*disk,
                       parse("merge_method: tise\n"
                             "models:\n"
                             "- model: nowhere\n"
                             "- model: a\n"
                             "  parameters: {weight: ~}\n"
                             "- model: there-neither\n"
                             "dtype: bfloat61\n"
                             "paramters: {}\n",
                             "recipe.yml", {.collect = true}),
                       options);
  EXPECT_SAYS(p, "error: recipe.yml:5:16: 'weight' has no value");
  EXPECT_SAYS(p, "error: recipe.yml:8:1: unknown key 'paramters'");
  EXPECT_SAYS(p, "there is no merge_method 'tise'; the methods are ");
  EXPECT_SAYS(p, "dtype 'bfloat61'");
  EXPECT_SAYS(p, "the model 'nowhere'");
  EXPECT_SAYS(p, "the model 'there-neither'");
  EXPECT_FALSE(p.sound());
  EXPECT_TRUE(p.jobs.empty());
}

TEST_F(PlanTest, OutputsHaveABoundedNumberOfLayers) {
  std::string text = "merge_method: passthrough\nslices:\n";
  for (int i = 0; i < 10'001; ++i) text += "- {sources: [{model: a, layer_range: [0, 2]}]}\n";
  EXPECT_SAYS(plan(text), "the output would have more than 20000 layers");
}

TEST_F(PlanTest, LayersOfOneStackAreAlike) {
  Tensors biased = llama(2);
  for (const char* layer : {"0", "1"}) {
    biased.push_back(
        {fmt::format("model.layers.{}.self_attn.q_proj.bias", layer), Dtype::bf16, {4}});
  }
  model("biased", biased, llama_config(2));
  EXPECT_SAYS(
      plan("merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n- "
           "sources: [{model: biased, layer_range: [1, 2]}]\n"),
      "layers of biased have self_attn.q_proj.bias, but layers of a do not");
}

TEST_F(PlanTest, LayersOfManyKindsLandWhereTheConfigExpectsThem) {
  const Tensors hybrid = {{"model.embed_tokens.weight", Dtype::bf16, {10, 4}},
                          {"model.layers.0.mamba.in_proj.weight", Dtype::bf16, {4, 4}},
                          {"model.layers.1.mamba.in_proj.weight", Dtype::bf16, {4, 4}},
                          {"model.layers.2.self_attn.q_proj.weight", Dtype::bf16, {4, 4}},
                          {"model.norm.weight", Dtype::bf16, {4}}};
  const char* period =
      "{\"architectures\": [\"JambaForCausalLM\"], \"num_hidden_layers\": 3, "
      "\"attn_layer_period\": 3, \"attn_layer_offset\": 2, \"tie_word_embeddings\": true}";
  const char* list =
      "{\"architectures\": [\"JambaForCausalLM\"], \"layers_block_type\": [\"mamba\", \"mamba\", "
      "\"attention\"], \"tie_word_embeddings\": true}";
  model("period", hybrid, period);
  model("list", hybrid, list);
  const auto stacked = [&](const std::string& name, int begin, int end) {
    return plan(
        fmt::format("merge_method: passthrough\nslices:\n"
                    "- sources: [{{model: {}, layer_range: [0, 3]}}]\n"
                    "- sources: [{{model: {}, layer_range: [{}, {}]}}]\n",
                    name, name, begin, end));
  };
  EXPECT_TRUE(stacked("period", 0, 3).problems.empty());
  EXPECT_TRUE(stacked("period", 0, 2).problems.empty());
  EXPECT_SAYS(
      stacked("period", 1, 3),
      "error: config.json of period: 'attn_layer_period' cannot say that layers 2, 4 of the "
      "output are attention");
  PlanOptions options;
  options.allow_layer_mismatch = true;
  const Plan waived = plan(
      "merge_method: passthrough\nslices:\n- sources: [{model: period, layer_range: [0, 3]}]\n"
      "- sources: [{model: period, layer_range: [1, 3]}]\n",
      options);
  ASSERT_SOUND(waived);
  EXPECT_TRUE(waived.waived.layers);
  // What no key tells.
  model("silent", hybrid, "{\"num_hidden_layers\": 3, \"tie_word_embeddings\": true}");
  EXPECT_SAYS(
      stacked("silent", 1, 3),
      "layer 2 of the output, which is layer 2 of silent, has no tensor mamba.in_proj.weight");
  // A list follows, also where nothing else counts the layers.
  const Plan listed = stacked("list", 0, 2);
  EXPECT_TRUE(listed.problems.empty());
}

TEST_F(PlanTest, SlicesOfAModelForImagesAreOfItsText) {
  Tensors both = {{"language_model.model.embed_tokens.weight", Dtype::bf16, {10, 4}},
                  {"language_model.model.norm.weight", Dtype::bf16, {4}}};
  for (int i = 0; i < 3; ++i) {
    both.push_back({fmt::format("language_model.model.layers.{}.w", i), Dtype::bf16, {4}});
    both.push_back({fmt::format("vision_tower.layers.{}.w", i), Dtype::bf16, {4}});
  }
  const char* config =
      "{\"text_config\": {\"num_hidden_layers\": 3, \"layer_types\": [\"x\", \"y\", \"z\"]}, "
      "\"vision_config\": {\"num_hidden_layers\": 3}}";
  for (const char* name : {"v", "w"}) model(name, both, config);
  const Plan p = plan(
      "merge_method: passthrough\nslices:\n- sources: [{model: v, layer_range: [0, 2]}]\n"
      "- sources: [{model: w, layer_range: [1, 3]}]\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "language_model.model.layers.3.w"), "w:language_model.model.layers.2.w");
  EXPECT_EQ(inputs(p, "vision_tower.layers.2.w"), "v:vision_tower.layers.2.w");
  EXPECT_EQ(find(p, "vision_tower.layers.3.w"), nullptr);
  EXPECT_SAYS(p, "the slices cut only the text_decoder of v; vision_tower comes whole");
  for (const Companion& file : p.companions) {
    if (file.name != "config.json") continue;
    EXPECT_NE(file.text.find("\"num_hidden_layers\": 4"), std::string::npos);
    EXPECT_NE(file.text.find("\"num_hidden_layers\": 3"), std::string::npos);
  }
}

TEST_F(PlanTest, SlicesDoNotLeaveBehindWhatEachLayerHasOutsideIt) {
  const char* config = "{\"num_hidden_layers\": 3, \"tie_word_embeddings\": true}";
  const auto stacked = [&](const std::string& name, const std::string& beside, Shape shape) {
    Tensors tensors = {{"model.embed_tokens.weight", Dtype::bf16, {10, 4}}};
    for (int i = 0; i < 3; ++i) {
      tensors.push_back({fmt::format("model.layers.{}.w", i), Dtype::bf16, {4}});
      tensors.push_back({fmt::format(fmt::runtime(beside), i), Dtype::bf16, shape});
      if (beside.find('{') == std::string::npos) break;
    }
    for (int i = 1; i < 3 && beside.find('{') == std::string::npos; ++i) {
      tensors.push_back({fmt::format("model.layers.{}.w", i), Dtype::bf16, {4}});
    }
    model(name, tensors, config);
    return plan(
        fmt::format("merge_method: passthrough\nslices:\n"
                    "- sources: [{{model: {}, layer_range: [1, 3]}}]\n",
                    name));
  };
  EXPECT_SAYS(stacked("queries", "model.queries.{}", {4}),
              "model.queries of queries has a part for each layer");
  EXPECT_SAYS(stacked("wide", "model.embed_tokens_per_layer.weight", {10, 12}),
              "model.embed_tokens_per_layer.weight of wide has a part for each layer");
}

// --- modules -------------------------------------------------------------------------------------

Tensors encoder_decoder() {
  Tensors tensors = {{"shared.weight", Dtype::bf16, {10, 4}}};
  for (const char* side : {"encoder", "decoder"}) {
    for (int i = 0; i < 2; ++i) {
      tensors.push_back({fmt::format("{}.block.{}.layer.0.w", side, i), Dtype::bf16, {4}});
    }
    tensors.push_back({fmt::format("{}.final_layer_norm.weight", side), Dtype::bf16, {4}});
  }
  return tensors;
}

TEST_F(PlanTest, ModulesHaveSlicesOfTheirOwn) {
  const std::string config =
      "{\"architectures\": [\"T5ForConditionalGeneration\"], \"num_layers\": 2, "
      "\"num_decoder_layers\": 2, "
      "\"vocab_size\": 10}";
  for (const char* name : {"x", "y"}) model(name, encoder_decoder(), config);
  const Plan p = plan(
      "merge_method: passthrough\nmodules:\n"
      "  encoder: {slices: [{sources: [{model: x, layer_range: [0, 2]}]}, {sources: [{model: y, "
      "layer_range: "
      "[1, 2]}]}]}\n"
      "  decoder: {models: [{model: y}]}\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "encoder.block.2.layer.0.w"), "y:encoder.block.1.layer.0.w");
  EXPECT_EQ(inputs(p, "encoder.final_layer_norm.weight"), "y:encoder.final_layer_norm.weight");
  EXPECT_EQ(inputs(p, "decoder.block.1.layer.0.w"), "y:decoder.block.1.layer.0.w");
  EXPECT_SAYS(p, "warning: recipe.yml: module 'shared' of x is not named and will not be written");
  EXPECT_EQ(unused(p, "x", "shared.weight"), "module 'shared' is not named in the recipe");
  EXPECT_SAYS(plan("merge_method: passthrough\nmodules: {text: {models: [{model: x}]}}\n"),
              "x has no module 'text'; it has decoder, encoder, shared");
  EXPECT_SAYS(
      plan("merge_method: passthrough\nslices:\n- sources: [{model: x, layer_range: [0, 1]}]\n"),
      "x has modules decoder, encoder, shared: name one under 'modules'");
}

// --- parameters ----------------------------------------------------------------------------------

TEST_F(PlanTest, GradientsRunOverTheLayersOfASliceAndStartOutsideThem) {
  for (const char* name : {"e", "f"}) model(name, llama(5), llama_config(5));
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: [1, 3]}\nmodels:\n- model: e\n- model: f\n");
  ASSERT_SOUND(p);
  for (int k = 0; k < 5; ++k) {
    EXPECT_EQ(weight(p, fmt::format("model.layers.{}.mlp.up_proj.weight", k), 1),
              1 + 2 * (k / 4.0));
  }
  EXPECT_EQ(weight(p, "model.embed_tokens.weight", 0), 1);
  EXPECT_EQ(weight(p, "lm_head.weight", 0), 1);
  const Plan sliced = plan(
      "merge_method: linear\nparameters: {weight: [1, 3]}\nslices:\n"
      "- sources: [{model: e, layer_range: [0, 3]}]\n- sources: [{model: e, layer_range: [4, "
      "5]}]\n");
  ASSERT_SOUND(sliced);
  EXPECT_EQ(weight(sliced, "model.layers.1.mlp.up_proj.weight", 0), 2);
  EXPECT_EQ(weight(sliced, "model.layers.3.mlp.up_proj.weight", 0),
            3);  // a slice of one layer: t = 1
}

TEST_F(PlanTest, NearerParametersWinAndFiltersThatMissPassOn) {
  const Plan p = plan(
      "merge_method: linear\nparameters: {weight: 4}\nslices:\n"
      "- parameters: {weight: {filter: q_proj, value: 3}}\n  sources:\n"
      "  - {model: a, layer_range: [0, 2], parameters: {weight: {filter: layers.1.mlp, value: "
      "2}}}\n"
      "  - {model: b, layer_range: [0, 2]}\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(weight(p, "model.layers.1.mlp.up_proj.weight", 0), 2);
  EXPECT_EQ(weight(p, "model.layers.1.mlp.up_proj.weight", 1), 4);
  EXPECT_EQ(weight(p, "model.layers.0.self_attn.q_proj.weight", 0), 3);
  EXPECT_EQ(weight(p, "model.layers.0.mlp.up_proj.weight", 0), 4);
}

TEST_F(PlanTest, FiltersSeeTheInputsNameForModelsAndTheOutputsForTheRest) {
  const Plan p = plan(
      "merge_method: linear\nparameters:\n"
      "  weight: [{filter: layers.1, value: 5}, {value: 1}]\n"
      "  normalize: [{filter: layers.0, value: false}, {value: true}]\n"
      "slices:\n- sources: [{model: a, layer_range: [1, 2]}, {model: b, layer_range: [0, 1]}]\n");
  ASSERT_SOUND(p);
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_EQ(weight(p, name, 0), 5);
  EXPECT_EQ(weight(p, name, 1), 1);
  EXPECT_EQ(normalized(p, name), 0);
  EXPECT_EQ(normalized(p, "model.norm.weight"), 1);
}

TEST_F(PlanTest, ParameterNamesAreKnownOrErrorsOrWaived) {
  const std::string text =
      "merge_method: ties\nbase_model: a\nparameters: {weight: 1, densty: 0.5, gamma: 1}\nmodels:\n"
      "- {model: b, parameters: {normalize: true}}\n";
  const Plan p = plan(text);
  EXPECT_SAYS(
      p,
      "error: recipe.yml:3:25: unknown parameter 'densty' of the recipe; did you mean 'density'?");
  EXPECT_SAYS(p, "warning: recipe.yml:3:38: parameter 'gamma' of the recipe is not read by ties");
  EXPECT_SAYS(p, "warning: recipe.yml:5:27: 'normalize' under b is not read");
  PlanOptions options;
  options.allow_unknown_keys = true;
  const Plan waived = plan(text, options);
  ASSERT_SOUND(waived);
  EXPECT_EQ(waived.recipe.waived, std::vector<std::string>{"densty (line 3)"});
}

TEST_F(PlanTest, WrongValuesNameFilePlaceAndModelOnce) {
  const Plan p = plan(
      "merge_method: ties\nbase_model: a\nparameters: {weight: .nan}\nmodels:\n"
      "- {model: b, parameters: {density: 1.5}}\n- {model: c, parameters: {density: many}}\n");
  EXPECT_SAYS(p, "recipe.yml:3:22: parameter 'weight' is nan; it must be a finite number");
  EXPECT_SAYS(p, "recipe.yml:5:36: parameter 'density' of b is 1.5; it must be between 0 and 1");
  EXPECT_SAYS(p, "recipe.yml:6:36: parameter 'density' takes a number, not 'many'");
  EXPECT_EQ(
      std::count_if(p.problems.begin(), p.problems.end(), [](const Problem& x) { return x.fatal; }),
      3)
      << report(p);
}

TEST_F(PlanTest, ValuesAndWeightsAreJudgedThoughModelsAreMissing) {
  const Plan p = plan(
      "merge_method: ties\nbase_model: a\nmodels:\n"
      "- {model: nowhere, parameters: {density: [0.5, 1.5]}}\n- {model: b}\n- {model: a}\n"
      "parameters: {normalize: [{filter: nothing-has-it, value: maybe}, {value: true}]}\n");
  EXPECT_SAYS(p,
              "recipe.yml:4:42: parameter 'density' of nowhere is 1.5; it must be between 0 and 1");
  EXPECT_SAYS(p, "parameter 'normalize' takes true or false, not 'maybe'");
  EXPECT_SAYS(p, "recipe.yml: ties needs parameter 'weight' of nowhere, and no level");
  EXPECT_SAYS(p, "recipe.yml: ties needs parameter 'weight' of b, and no level");
  EXPECT_SAYS(p, "'nowhere'");
  EXPECT_EQ(report(p).find("'weight' of a"), std::string::npos) << report(p);
}

TEST_F(PlanTest, WeightsThatCancelAreRefused) {
  EXPECT_SAYS(plan("merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
                   "- {model: b, parameters: {weight: -1}}\n"),
              "the weights sum to zero");
}

TEST_F(PlanTest, NumbersThatSinglePrecisionLosesAreRefusedWithTheirLine) {
  const auto refusal = [&](const std::string& more, const std::string& method = "linear") {
    return report(plan_of("merge_method: " + method +
                              "\nmodels:\n  - {model: ./a, parameters: {weight: " + more +
                              "}}\n  - {model: ./b, parameters: {weight: 1}}\n" +
                              (method == "linear" ? "" : "base_model: ./a\n"),
                          folder_.path()));
  };
  for (const char* value :
       {"1e-45", "-1e-42", "1e-39", "[1e-45, 1]", "[{filter: up, value: 1e-40}, {value: 1}]"}) {
    const std::string text = refusal(value);
    EXPECT_NE(text.find("recipe.yml:3:31: parameter 'weight'"), std::string::npos) << value << text;
    EXPECT_NE(text.find("single precision cannot hold such a small number"), std::string::npos)
        << text;
  }
  EXPECT_NE(refusal("1e39").find("a finite number"), std::string::npos);
  for (const char* value : {"0", "0.5", "-0.25", "1e-37", "1e-18", "1e18"}) {
    EXPECT_EQ(refusal(value).find("single precision"), std::string::npos)
        << value << refusal(value);
  }
  const auto whole = [&](const std::string& text) { return report(plan_of(text, folder_.path())); };
  const std::string two = "base_model: ./a\nmodels:\n  - {model: ./a}\n  - {model: ./b}\n";
  EXPECT_NE(whole("merge_method: slerp\nparameters: {t: 1e-40}\n" + two).find("parameter 't'"),
            std::string::npos);
  EXPECT_NE(whole("merge_method: task_arithmetic\nparameters: {weight: 1, lambda: 1e-41}\n" + two)
                .find("parameter 'lambda'"),
            std::string::npos);
  EXPECT_NE(whole("merge_method: dare_linear\nparameters: {weight: 1, density: 1e-20}\n" + two)
                .find("density below"),
            std::string::npos);
  EXPECT_NE(whole("merge_method: passthrough\nmodels: [{model: ./a, parameters: {scale: 1e-43}}]\n")
                .find("parameter 'scale'"),
            std::string::npos);
}

TEST_F(PlanTest, NormalizeNeedsWeightsFarFromTheEndsOfSinglePrecision) {
  const auto text = [&](const std::string& one, const std::string& other,
                        const std::string& method) {
    return report(plan_of("merge_method: " + method +
                              "\nparameters: {normalize: true}\nbase_model: ./a\n" +
                              "models:\n  - {model: ./a, parameters: {weight: " + one +
                              "}}\n  - {model: ./b, parameters: {weight: " + other + "}}\n",
                          folder_.path()));
  };
  EXPECT_NE(text("1e-30", "1e-30", "linear").find("too small for single precision"),
            std::string::npos);
  EXPECT_NE(text("3e38", "3e38", "linear").find("too large for single precision"),
            std::string::npos);
  EXPECT_EQ(text("1e-30", "1", "linear").find("single precision"), std::string::npos);
  EXPECT_NE(text("1", "1e-30", "ties").find("too small for single precision"), std::string::npos);
  EXPECT_NE(text("1", "1e30", "task_arithmetic").find("too large"), std::string::npos);
}

TEST_F(PlanTest, DropStreamsFollowTheDocumentedKey) {
  PlanOptions options;
  options.seed = 7;
  const Plan p = plan(
      "merge_method: dare_ties\nbase_model: a\nparameters: {weight: 1, density: 0.5}\nmodels:\n"
      "- model: a\n- model: b\n- model: c\n",
      options);
  ASSERT_SOUND(p);
  const math::Rule& rule = find(p, "model.norm.weight")->work.rule;
  EXPECT_EQ(rule.seed, 7U);
  EXPECT_EQ(rule.stream[0], stream_key("model.norm.weight", "drop", 0));
  EXPECT_EQ(rule.stream[1], stream_key("model.norm.weight", "drop", 1));
  EXPECT_EQ(rule.elements, 4U);
}

TEST_F(PlanTest, CopiesOfATiedTensorDrawTheSame) {
  const std::string recipe =
      "merge_method: dare_ties\nbase_model: x\nparameters: {weight: 1, density: 0.5}\nmodels:\n"
      "- model: x\n- model: y\n";
  for (const char* flag : {"true", "false"}) {
    std::string config = llama_config(2);
    config.replace(config.find("false"), 5, flag);
    for (const char* name : {"x", "y"}) write_model(folder_ / name, llama(2), config);
    const Plan p = plan(recipe);
    ASSERT_SOUND(p);
    EXPECT_EQ(
        find(p, "lm_head.weight")->work.rule.stream[0],
        stream_key(flag == std::string("true") ? "model.embed_tokens.weight" : "lm_head.weight",
                   "drop", 0));
  }
  // A class that ties where its configuration does not say.
  for (const char* name : {"x", "y"}) {
    write_model(folder_ / name,
                {{"encoder.embed_tokens.weight", Dtype::f32, {10, 4}},
                 {"lm_head.weight", Dtype::f32, {10, 4}},
                 {"shared.weight", Dtype::f32, {10, 4}}},
                R"({"architectures": ["T5ForConditionalGeneration"]})");
  }
  const Plan p = plan(recipe);
  ASSERT_SOUND(p);
  for (const char* name : {"shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"}) {
    EXPECT_EQ(find(p, name)->work.rule.stream[0], stream_key("shared.weight", "drop", 0)) << name;
  }
}

// --- names ---------------------------------------------------------------------------------------

TEST_F(PlanTest, PrefixOfTheBaseModuleMayBeMissing) {
  Tensors bare;
  for (TensorInfo tensor : llama(2)) {
    if (tensor.name.starts_with("model.")) tensor.name = tensor.name.substr(6);
    bare.push_back(tensor);
  }
  model("bare", bare, llama_config(2));
  for (const char* order : {"- model: a\n- model: bare\n", "- model: bare\n- model: a\n"}) {
    const Plan p =
        plan(std::string("merge_method: linear\nparameters: {weight: 1}\nmodels:\n") + order);
    ASSERT_SOUND(p);
    EXPECT_EQ(p.jobs.size(), 7U);
    EXPECT_NE(find(p, "model.layers.1.mlp.up_proj.weight"), nullptr);
    EXPECT_NE(find(p, "lm_head.weight"), nullptr);
  }
}

TEST_F(PlanTest, BaseModulesAloneKeepTheirNames) {
  const std::string config = "{\"architectures\": [\"BertModel\"], \"num_hidden_layers\": 1}";
  const Tensors bare = {{"embeddings.word_embeddings.weight", Dtype::f32, {10, 4}},
                        {"encoder.layer.0.attention.self.query.weight", Dtype::f32, {4, 4}},
                        {"pooler.dense.weight", Dtype::f32, {4, 4}}};
  Tensors full;
  for (TensorInfo tensor : bare) {
    tensor.name = "bert." + tensor.name;
    full.push_back(tensor);
  }
  model("x", bare, config);
  model("y", bare, config);
  model("full", full, config);
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: x\n- model: ";
  for (const char* other : {"y\n", "full\n"}) {
    const Plan p = plan(text + other);
    ASSERT_SOUND(p);
    EXPECT_EQ(p.jobs.size(), 3U);
    for (const TensorInfo& tensor : bare) EXPECT_NE(find(p, tensor.name), nullptr) << tensor.name;
  }
}

TEST_F(PlanTest, OldNamesOfGpt2MeetTheNew) {
  const std::string config = "{\"architectures\": [\"GPT2LMHeadModel\"], \"n_layer\": 1}";
  const Tensors bare = {
      {"wte.weight", Dtype::f32, {10, 4}},         {"wpe.weight", Dtype::f32, {6, 4}},
      {"h.0.attn.bias", Dtype::f32, {1, 1, 6, 6}}, {"h.0.attn.c_attn.weight", Dtype::f32, {4, 12}},
      {"h.0.attn.c_attn.bias", Dtype::f32, {12}},  {"ln_f.weight", Dtype::f32, {4}}};
  Tensors full;
  for (TensorInfo tensor : bare) {
    tensor.name = "transformer." + tensor.name;
    if (tensor.shape.rank() < 4) full.push_back(tensor);
  }
  model("old", bare, config);
  model("older", bare, config);
  model("new", full, config);
  const std::string text =
      "merge_method: linear\nparameters: {weight: [1, 3]}\nmodels:\n- model: old\n";
  const Plan p = plan(text + "- model: new\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(p.jobs.size(), 5U);
  EXPECT_EQ(inputs(p, "transformer.h.0.attn.c_attn.bias"),
            "old:h.0.attn.c_attn.bias new:transformer.h.0.attn.c_attn.bias");
  EXPECT_EQ(weight(p, "transformer.h.0.attn.c_attn.weight", 0), 3);
  const Plan old = plan(text + "- model: older\n");
  ASSERT_SOUND(old);
  EXPECT_EQ(find(old, "transformer.h.0.attn.bias")->action, Action::copy);
}

TEST_F(PlanTest, NamesOfOtherReleasesMeet) {
  const auto image = [&](const char* name, const char* text, const char* vision) {
    model(name,
          {{fmt::format("{}embed_tokens.weight", text), Dtype::bf16, {10, 4}},
           {fmt::format("{}layers.0.w", text), Dtype::bf16, {4}},
           {fmt::format("{}encoder.layers.0.w", vision), Dtype::bf16, {4}}},
          "{\"architectures\": [\"LlavaForConditionalGeneration\"], \"text_config\": "
          "{\"num_hidden_layers\": "
          "1}}");
  };
  image("old", "language_model.model.", "vision_tower.");
  image("new", "model.language_model.", "model.vision_tower.");
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: new\n- model: old\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, "model.language_model.layers.0.w"),
            "new:model.language_model.layers.0.w old:language_model.model.layers.0.w");
  EXPECT_EQ(inputs(p, "model.vision_tower.encoder.layers.0.w"),
            "new:model.vision_tower.encoder.layers.0.w old:vision_tower.encoder.layers.0.w");

  const char* molmo = R"({"architectures": ["Molmo2ForConditionalGeneration"]})";
  model("disk", {{"model.transformer.ln_f.weight", Dtype::f32, {4}}}, molmo);
  model("memory", {{"model.language_model.norm.weight", Dtype::f32, {4}}}, molmo);
  const Plan r = plan(
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: disk\n- model: memory\n");
  ASSERT_SOUND(r);
  EXPECT_EQ(inputs(r, "model.transformer.ln_f.weight"),
            "disk:model.transformer.ln_f.weight memory:model.language_model.norm.weight");

  model("gamma", {{"bert.embeddings.LayerNorm.gamma", Dtype::f32, {4}}}, "");
  model("weight", {{"bert.embeddings.LayerNorm.weight", Dtype::f32, {4}}}, "");
  const Plan q = plan(
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: gamma\n- model: weight\n");
  ASSERT_SOUND(q);
  EXPECT_EQ(inputs(q, "bert.embeddings.LayerNorm.weight"),
            "gamma:bert.embeddings.LayerNorm.gamma weight:bert.embeddings.LayerNorm.weight");
}

Tensors without(Tensors tensors, const std::string& name) {
  std::erase_if(tensors, [&](const TensorInfo& t) { return t.name == name; });
  return tensors;
}

TEST_F(PlanTest, TiedModelsContributeTheirEmbeddingToAHead) {
  const std::string tied =
      "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 2, "
      "\"tie_word_embeddings\": true}";
  model("tied", without(llama(2), "lm_head.weight"), tied);
  model("tied2", without(llama(2), "lm_head.weight"), tied);
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: tied\n";
  const Plan mixed = plan(text + "- model: a\n");
  ASSERT_SOUND(mixed);
  EXPECT_EQ(inputs(mixed, "lm_head.weight"), "tied:model.embed_tokens.weight a:lm_head.weight");
  const Plan both = plan(text + "- model: tied2\n");
  ASSERT_SOUND(both);
  EXPECT_EQ(find(both, "lm_head.weight"), nullptr);
  const Plan sliced = plan(
      "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"
      "- sources: [{model: tied, layer_range: [1, 2]}]\n");
  ASSERT_SOUND(sliced);
  EXPECT_EQ(inputs(sliced, "lm_head.weight"), "tied:model.embed_tokens.weight");
}

TEST_F(PlanTest, UntiedModelsNeedTheirHead) {
  model("broken", without(llama(2), "lm_head.weight"), llama_config(2));
  EXPECT_SAYS(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: broken\n"),
      "broken has no tensor lm_head.weight, and its config.json says that weights are not tied");
}

TEST_F(PlanTest, AHeadThatNobodyCanGiveIsAnError) {
  Tensors bare = without(without(llama(2), "lm_head.weight"), "model.embed_tokens.weight");
  model("bare", bare, llama_config(2));
  EXPECT_SAYS(
      plan("merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"
           "- sources: [{model: bare, layer_range: [1, 2]}]\n"),
      "no model of slices[1] (line 4) has tensor lm_head.weight");
}

TEST_F(PlanTest, TensorsThatSomeModelsLackAreErrorsOncePerKind) {
  Tensors thin = llama(2);
  std::erase_if(thin,
                [](const TensorInfo& t) { return t.name.find("q_proj") != std::string::npos; });
  model("thin", thin, llama_config(2));
  EXPECT_SAYS(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: thin\n"),
      "thin has no tensor model.layers.0.self_attn.q_proj.weight, which a has: all models of a "
      "merge "
      "need it (and 1 more like it)");
}

TEST_F(PlanTest, BiasesMayBeAbsentFromModelsButNotFromTheBase) {
  Tensors biased = llama(2);
  biased.push_back({"model.layers.0.self_attn.q_proj.bias", Dtype::bf16, {4}});
  model("biased", biased, llama_config(2));
  const std::string bias = "model.layers.0.self_attn.q_proj.bias";
  const std::string text =
      "merge_method: ties\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: biased\n";
  const Plan p = plan(text + "base_model: biased\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(inputs(p, bias), "biased:" + bias);
  EXPECT_EQ(find(p, bias)->action, Action::copy);
  EXPECT_SAYS(p, "warning: a has no tensor model.layers.0.self_attn.q_proj.bias");
  EXPECT_SAYS(plan(text + "base_model: a\n"),
              "error: a has no tensor model.layers.0.self_attn.q_proj.bias");
}

TEST_F(PlanTest, BuffersAreTakenFromOneModelOrLeftOut) {
  Tensors buffered = llama(2);
  buffered.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::f32, {2}});
  for (const char* name : {"r", "s"}) model(name, buffered, llama_config(2));
  const std::string buffer = "model.layers.0.self_attn.rotary_emb.inv_freq";
  const std::string text =
      "merge_method: linear\ndtype: bfloat16\nparameters: {weight: 1}\nmodels:\n- model: r\n";
  const Plan all = plan(text + "- model: s\n");
  ASSERT_SOUND(all);
  EXPECT_EQ(inputs(all, buffer), "r:" + buffer);
  EXPECT_EQ(find(all, buffer)->output.dtype, Dtype::f32);
  EXPECT_EQ(unused(all, "s", buffer), "a buffer, taken from r");
  const Plan some = plan(text + "- model: a\n");
  ASSERT_SOUND(some);
  EXPECT_EQ(find(some, buffer), nullptr);
  EXPECT_NE(unused(some, "r", buffer).find("a buffer that a lacks"), std::string::npos);
}

TEST_F(PlanTest, LayersBeyondTheConfigsAreMergedOutsideTheGradient) {
  for (const char* name : {"m", "n"}) model(name, llama(3), llama_config(2));
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: [1, 3]}\nmodels:\n- model: m\n- model: n\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(weight(p, "model.layers.1.mlp.up_proj.weight", 0), 3);
  EXPECT_EQ(weight(p, "model.layers.2.mlp.up_proj.weight", 0), 1);
}

// --- shapes --------------------------------------------------------------------------------------

TEST_F(PlanTest, ShapesThatDifferNameTensorModelsAndShapes) {
  Tensors wide = llama(2);
  for (TensorInfo& t : wide) {
    if (t.name.find("up_proj") != std::string::npos) t.shape = {9, 4};
  }
  model("wide", wide, llama_config(2));
  EXPECT_SAYS(
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: wide\n"),
      "tensor model.layers.0.mlp.up_proj.weight: a has shape [8, 4], wide has [9, 4] (and 1 more "
      "like "
      "it)");
}

TEST_F(PlanTest, VocabulariesThatDifferAreAnErrorWithBothRemedies) {
  model("tall", llama(2, Dtype::bf16, 12), llama_config(2));
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: tall\n- model: a\n";
  const Plan p = plan(text);
  EXPECT_SAYS(p, "has 10 rows in a, tall has 12; set tokenizer_source: base (or a model)");
  EXPECT_SAYS(p, "--unsafe-truncate-embeddings");
  PlanOptions options;
  options.truncate_embeddings = true;
  const Plan cut = plan(text, options);
  ASSERT_SOUND(cut);
  EXPECT_EQ(find(cut, "lm_head.weight")->output.shape, (Shape{10, 4}));
  EXPECT_EQ(find(cut, "model.embed_tokens.weight")->output.shape, (Shape{10, 4}));
  EXPECT_SAYS(cut, "rows beyond 10 are cut off (up to 12 in tall)");
}

TEST_F(PlanTest, TokenizerSettingsMapRowsByToken) {
  const auto tokens = [](int n) {
    std::string text = "{\"model\": {\"type\": \"BPE\", \"vocab\": {";
    for (int i = 0; i < n; ++i) text += fmt::format("{}\"t{}\": {}", i ? ", " : "", i, i);
    return text + "}, \"merges\": []}, \"added_tokens\": []}";
  };
  model("tall", llama(2, Dtype::bf16, 12), llama_config(2));
  test::write_file(folder_ / "tall/tokenizer.json", tokens(12));
  test::write_file(folder_ / "a/tokenizer.json", tokens(10));
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: tall\n- model: a\n";
  const Plan p = plan(text + "tokenizer_source: a\n");
  ASSERT_SOUND(p);
  const Job* job = find(p, "lm_head.weight");
  EXPECT_EQ(job->output.shape, (Shape{10, 4}));
  ASSERT_NE(job->operands[0].rows, nullptr);
  EXPECT_EQ(job->operands[0].rows->rows, 10U);
  EXPECT_EQ(job->operands[1].rows, nullptr);
  EXPECT_EQ(job->work.inputs, (std::vector<Dtype>{Dtype::f32, Dtype::bf16}));
  EXPECT_EQ(job->output.dtype, Dtype::bf16);
  const auto tokenizer =
      std::find_if(p.companions.begin(), p.companions.end(),
                   [](const Companion& c) { return c.name == "tokenizer.json"; });
  ASSERT_NE(tokenizer, p.companions.end());
  EXPECT_EQ(test::read_file(tokenizer->from), tokens(10));
  EXPECT_SAYS(plan(text + "tokenizer_source: union\n"), "'union' is not supported yet");
}

// --- types ---------------------------------------------------------------------------------------

TEST_F(PlanTest, OutputTypeIsTheOptionsThenOutDtypeThenDtypeThenThePromotion) {
  model("half", llama(2, Dtype::f16), llama_config(2));
  const auto type = [&](const std::string& more, const std::string& option = "") {
    PlanOptions options;
    options.dtype = option;
    const Plan p =
        plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: half\n" +
                 more,
             options);
    EXPECT_TRUE(p.sound()) << report(p);
    const Job* job = find(p, "lm_head.weight");
    EXPECT_EQ(job->work.inputs, (std::vector<Dtype>{Dtype::bf16, Dtype::f16}));
    return job->output.dtype;
  };
  EXPECT_EQ(type(""), Dtype::f32);
  EXPECT_EQ(type("dtype: float16\n"), Dtype::f16);
  EXPECT_EQ(type("dtype: float16\nout_dtype: bfloat16\n"), Dtype::bf16);
  EXPECT_EQ(type("dtype: float16\nout_dtype: bfloat16\n", "float32"), Dtype::f32);
  EXPECT_EQ(type("dtype: torch.float16\n"), Dtype::f16);
}

TEST_F(PlanTest, TypesWithoutCodecAreRefusedByName) {
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: a\n- model: b\n";
  EXPECT_SAYS(plan(text + "dtype: float64\n"),
              "recipe.yml:6:8: dtype float64: ingot computes in float32");
  EXPECT_SAYS(plan(text + "out_dtype: int64\n"), "recipe.yml:6:12: out_dtype int64");
  EXPECT_SAYS(plan(text + "dtype: bfloat61\n"), "did you mean 'bfloat16'?");
}

TEST_F(PlanTest, IntegersAreCopiedAndMustBeOfOneType) {
  Tensors counted = llama(2);
  counted.push_back({"model.counts", Dtype::i64, {3}});
  for (const char* name : {"i", "j"}) model(name, counted, llama_config(2));
  const std::string text =
      "merge_method: linear\ndtype: float32\nparameters: {weight: 1}\nmodels:\n- model: i\n";
  const Plan p = plan(text + "- model: j\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(find(p, "model.counts")->action, Action::copy);
  EXPECT_EQ(find(p, "model.counts")->output.dtype, Dtype::i64);
  EXPECT_EQ(find(p, "model.counts")->operands.size(), 2U);
  counted.back().dtype = Dtype::i32;
  model("k", counted, llama_config(2));
  EXPECT_SAYS(plan(text + "- model: k\n"),
              "tensor model.counts is stored in i as int64, k as int32");
}

TEST_F(PlanTest, DoublesAreCopiedOrNarrowedWhereATypeIsAsked) {
  model("d", llama(2, Dtype::f64), llama_config(2));
  model("e", llama(2, Dtype::f64), llama_config(2));
  const std::string head = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: d\n";
  // Models of doubles differ, and the plan says what the merge would end in.
  EXPECT_SAYS(plan(head + "- model: e\n"),
              "error: recipe.yml: the models are stored in float64, and ingot computes in float32; "
              "set dtype: float32");
  ASSERT_SOUND(plan(head + "- model: e\ndtype: float32\n"));
  // A few doubles may be equal.
  Tensors few = llama(2);
  const std::string name = "model.norm.weight";
  for (auto& tensor : few) {
    if (tensor.name == name) tensor.dtype = Dtype::f64;
  }
  model("f", few, llama_config(2));
  model("g", few, llama_config(2));
  const Plan copied =
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: f\n- model: g\n");
  ASSERT_SOUND(copied);
  EXPECT_SAYS(copied, "warning: " + name +
                          " and other float64 tensors are copied: the merge stops "
                          "if the models differ in them");
  EXPECT_EQ(find(copied, name)->action, Action::copy);
  EXPECT_EQ(find(copied, name)->output.dtype, Dtype::f64);
  const Plan narrowed = plan(head + "- model: a\ndtype: bfloat16\n");
  ASSERT_SOUND(narrowed);
  const Job* job = find(narrowed, "lm_head.weight");
  EXPECT_EQ(job->action, Action::merge);
  EXPECT_EQ(job->work.inputs, (std::vector<Dtype>{Dtype::f32, Dtype::bf16}));
  EXPECT_SAYS(plan(head + "- model: a\n"), "set dtype: float32 to narrow the float64 tensors");
}

TEST_F(PlanTest, TypesHaveTheirUsualNames) {
  const auto type = [&](const std::string& word) {
    const Plan p = plan(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: "
        "b}]\ndtype: " +
        word + "\n");
    EXPECT_TRUE(p.sound()) << report(p);
    return p.sound() ? find(p, "lm_head.weight")->output.dtype : Dtype::i8;
  };
  for (const char* word : {"bf16", "BF16", "BFloat16", "torch.bfloat16"}) {
    EXPECT_EQ(type(word), Dtype::bf16) << word;
  }
  for (const char* word : {"fp16", "half", "f16", "torch.half"})
    EXPECT_EQ(type(word), Dtype::f16) << word;
  for (const char* word : {"fp32", "float", "F32"}) EXPECT_EQ(type(word), Dtype::f32) << word;
  const std::string head =
      "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}]\ndtype: ";
  EXPECT_SAYS(plan(head + "double\n"), "dtype float64: ingot computes in float32");
  EXPECT_SAYS(plan(head + "auto\n"), "dtype auto: leave it out");
  EXPECT_SAYS(
      plan(head + "float8_e4m3fn\n"),
      "warning: recipe.yml:4:8: dtype float8_e4m3fn: the weights are stored without scales, "
      "which transformers does not load");
}

TEST_F(PlanTest, WideningToFloat32IsSaid) {
  model("h", llama(2, Dtype::f16), llama_config(2));
  const std::string text =
      "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: h}]\n";
  const Plan p = plan(text);
  ASSERT_SOUND(p);
  EXPECT_SAYS(p,
              "warning: recipe.yml: the models are stored in bfloat16 and float16, and no dtype is "
              "given: ");
  EXPECT_SAYS(p, "tensors become float32, twice the size; set dtype: bfloat16");
  EXPECT_EQ(report(plan(text + "dtype: float16\n")).find("twice the size"), std::string::npos);
}

TEST_F(PlanTest, SpecialTokensThatACutVocabularyLosesAreNamed) {
  Tensors tall = llama(2);
  std::uint64_t rows = 0;
  for (auto& tensor : tall) {
    if (tensor.name != "model.embed_tokens.weight" && tensor.name != "lm_head.weight") continue;
    rows = tensor.shape[0];
    tensor.shape.set(0, rows + 2);
  }
  std::string config = llama_config(2);
  config.insert(config.find('{') + 1,
                fmt::format("\"bos_token_id\": 1, \"eos_token_id\": [2, {}], ", rows + 1));
  model("tall", tall, config);
  PlanOptions options;
  options.truncate_embeddings = true;
  const Plan p =
      plan("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: tall}, {model: a}]\n",
           options);
  ASSERT_SOUND(p);
  EXPECT_SAYS(p, fmt::format("warning: config.json: eos_token_id {} is beyond the {} rows that "
                             "--unsafe-truncate-embeddings leaves",
                             rows + 1, rows));
}

TEST_F(PlanTest, FoldersOfATrainerNameTheirLastCheckpoint) {
  model("run/checkpoint-9", llama(2), llama_config(2));
  model("run/checkpoint-60", llama(2), llama_config(2));
  test::write_file(folder_ / "run/checkpoint-final/x", "");
  EXPECT_SAYS(
      plan("merge_method: passthrough\nmodels: [{model: run}]\n"),
      "holds checkpoints of a training run: name one, as in " + folder_ / "run/checkpoint-60");
}

TEST_F(PlanTest, BareFloat8IsMergedAndScaledFloat8Refused) {
  model("x", llama(2, Dtype::f8_e4m3), llama_config(2));
  model("y", llama(2, Dtype::f8_e4m3), llama_config(2));
  const std::string head = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: x\n";
  const Plan same = plan(head + "- model: y\n");
  ASSERT_SOUND(same);
  EXPECT_EQ(find(same, "lm_head.weight")->output.dtype, Dtype::f8_e4m3);
  const Plan mixed = plan(head + "- model: a\n");
  ASSERT_SOUND(mixed);
  EXPECT_EQ(find(mixed, "lm_head.weight")->output.dtype, Dtype::f32);
  Tensors scaled = llama(2, Dtype::f8_e4m3);
  scaled.push_back({"model.layers.0.mlp.up_proj.weight_scale_inv", Dtype::f32, {1, 1}});
  model("s", scaled, llama_config(2));
  EXPECT_SAYS(plan(head + "- model: s\n"),
              "s is quantised (tensor model.layers.0.mlp.up_proj.weight_scale_inv");
  scaled.back().name = "model.layers.0.mlp.up_proj.weight.scale";
  model("s", scaled, llama_config(2));
  EXPECT_SAYS(plan(head + "- model: s\n"), "s is quantised");
  Tensors scale = llama(2);  // a scale that belongs to no codes
  scale.push_back({"logit_scale", Dtype::f32, {}});
  scale.push_back({"model.position_ids", Dtype::i32, {3}});
  model("t", scale, llama_config(2));
  ASSERT_SOUND(plan("merge_method: passthrough\nmodels:\n- model: t\n"));
  model("q", llama(2), llama_config(2, ", \"quantization_config\": {\"quant_method\": \"gptq\"}"));
  EXPECT_SAYS(plan(head + "- model: q\n"), "q is quantised (its config.json says gptq)");
  Tensors four = llama(2);
  four.push_back({"model.layers.0.mlp.up_proj.weight.absmax", Dtype::f32, {2}});
  model("four", four, llama_config(2));
  EXPECT_SAYS(plan(head + "- model: four\n"), "four is quantised");
}

TEST_F(PlanTest, PassthroughCopiesBytesUnlessScaledOrRetyped) {
  const std::string text = "merge_method: passthrough\nmodels:\n- model: a\n";
  const auto action = [&](const std::string& more) {
    const Plan p = plan(text + more);
    EXPECT_TRUE(p.sound()) << report(p);
    return find(p, "model.norm.weight")->action;
  };
  EXPECT_EQ(action(""), Action::copy);
  EXPECT_EQ(action("dtype: bfloat16\n"), Action::copy);
  EXPECT_EQ(action("dtype: float16\n"), Action::merge);
  EXPECT_EQ(action("parameters: {scale: 0.5}\n"), Action::merge);
  model("d", llama(2, Dtype::f64), llama_config(2));
  const Plan p = plan("merge_method: passthrough\ndtype: float32\nmodels:\n- model: d\n");
  ASSERT_SOUND(p);
  EXPECT_EQ(find(p, "model.norm.weight")->action, Action::merge);
}

// --- the whole -----------------------------------------------------------------------------------

TEST_F(PlanTest, EveryInputTensorIsReadOrListedAsUnused) {
  const Plan p = plan(
      "merge_method: linear\nbase_model: c\nparameters: {weight: 1}\nslices:\n"
      "- sources: [{model: a, layer_range: [0, 1]}]\n- sources: [{model: b, layer_range: [1, "
      "2]}]\n");
  ASSERT_SOUND(p);
  std::set<std::pair<std::uint32_t, std::uint32_t>> seen;
  std::uint64_t bytes = 0;
  for (const Job& job : p.jobs) {
    for (const Operand& o : job.operands) {
      if (seen.emplace(o.model, o.entry).second) {
        bytes += p.models[o.model].checkpoint.entries()[o.entry].info.bytes();
      }
    }
  }
  EXPECT_EQ(p.bytes_in, bytes);
  for (const Unused& u : p.unused) {
    EXPECT_TRUE(seen.emplace(u.model, u.entry).second) << u.reason;
    EXPECT_FALSE(u.reason.empty());
  }
  std::size_t all = 0;
  for (const Model& m : p.models) all += m.checkpoint.entries().size();
  EXPECT_EQ(seen.size(), all);
  EXPECT_EQ(unused(p, "c", "model.norm.weight"),
            "its model gives configuration and tokenizer only");
}

TEST_F(PlanTest, ProblemsAreCollectedNotThrown) {
  model("tall", llama(2, Dtype::bf16, 12), llama_config(2));
  const Plan p = plan(
      "merge_method: ties\nbase_model: a\ndtype: float64\nparameters: {wight: 1, density: "
      "2}\nmodels:\n"
      "- model: tall\n");
  for (const char* words : {"float64", "'wight'", "vocabularies differ"}) EXPECT_SAYS(p, words);
  EXPECT_TRUE(p.companions.empty());
}

}  // namespace
}  // namespace ingot
