// Every formula against numbers from elsewhere: what mergekit 0.1.5 and PEFT 0.21.2 gave for the
// same small tensors, in float (what backends compute) and in double (what `verify` compares with).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "adapter/tracked.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/math/parts/exponential.hpp"
#include "plain.hpp"
#include "support.hpp"

namespace ingot::test {
namespace {

using Values = std::vector<float>;
using Numbers = std::vector<double>;

// Two rows of four; exact in bf16.
const Values kB = {0.5F, -1.0F, 2.0F, 0.25F, 1.5F, 0.75F, -0.5F, -2.0F};
const Values kX = {0.6875F, -1.125F, 2.0F, 0.9375F, 1.1875F, 0.8125F, -0.125F, -2.25F};
const Values kY = {0.375F, -1.375F, 2.3125F, 0.1875F, 1.9375F, 0.5625F, -1.0F, -1.75F};
const Values kZ = {0.875F, -0.8125F, 1.9375F, 0.25F, 1.625F, 1.3125F, -0.75F, -2.3125F};

// One tensor under a method with its defaults; weights 0.6, 0.4, 0.5 where they are required, then
// 0.1 more for each further source.
struct Case {
  math::Rule rule;
  Inputs inputs;

  // `base` and sources; the base is empty where there is none.
  Case(const std::string& method, const Values& base, const Inputs& sources) {
    rule.method = math::find(method.c_str());
    if (rule.method < 0) throw std::runtime_error("no method " + method);
    rule.base = !base.empty();
    if (rule.base) inputs.push_back(base);
    inputs.insert(inputs.end(), sources.begin(), sources.end());
    rule.sources = static_cast<std::int32_t>(sources.size());
    rule.elements = inputs.empty() ? 0 : inputs[0].size();
    rule.seed = 0x0123456789abcdefULL;
    math::set_defaults(rule);
    static constexpr double kWeights[] = {0.6, 0.4, 0.5};
    for (int s = 0; s < rule.sources; ++s) {
      rule.stream[s] = Random(static_cast<std::uint64_t>(s)).next();
      for (const math::Parameter& p : math::method(rule.method).parameters) {
        if (p.scope == math::Scope::global || !p.required) continue;
        each(p.name, s, s < 3 ? kWeights[s] : 0.5 + 0.1 * (s - 2));
      }
    }
    shape(rule.elements == 8 ? 4 : rule.elements);
  }

  // A matrix with rows of this length.
  Case& shape(std::uint64_t width) {
    rule.width = width == rule.elements ? 0 : width;
    rule.height = width == rule.elements || width == 0 ? 0 : rule.elements / width;
    return *this;
  }
  Case& set(const char* name, double value) {
    if (!math::set_global(rule, name, value)) throw std::runtime_error(name);
    return *this;
  }
  Case& each(const char* name, int source, double value) {
    if (!math::set_local(rule, source, name, value)) throw std::runtime_error(name);
    return *this;
  }
  Case& all(const char* name, double value) {
    for (int s = 0; s < rule.sources; ++s) each(name, s, value);
    return *this;
  }
  Case& all(const char* name, const Numbers& values) {
    for (std::size_t s = 0; s < values.size(); ++s) each(name, static_cast<int>(s), values[s]);
    return *this;
  }
};

Plain measured(const Case& c) {
  EXPECT_EQ(math::invalid(c.rule), nullptr) << math::method(c.rule.method).card.name;
  return measure(c.rule, c.inputs);
}

template <class T>
std::vector<T> merged(const Case& c, const Plain& plain) {
  std::vector<T> out;
  for (const math::Outcome<T>& outcome : outcomes<T>(c.rule, plain, c.inputs)) {
    out.push_back(outcome.value);
  }
  return out;
}
Values merged(const Case& c) { return merged<float>(c, measured(c)); }

template <class T>
void expect_near(const std::vector<T>& found, const Numbers& expected, double tolerance,
                 const std::string& what = "") {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(static_cast<double>(found[i]), expected[i], tolerance) << what << " element " << i;
  }
}

// The answers have six digits behind the point. `roundings`: what those of a program that computes
// norms and angles in f32 are off by, relative.
void expect_answer(const Case& c, const Numbers& expected, double roundings = 0.0) {
  const std::string name = math::method(c.rule.method).card.name;
  const Plain plain = measured(c);
  ASSERT_EQ(plain.refused, nullptr) << name;
  const Values in_float = merged<float>(c, plain);
  const Numbers in_double = merged<double>(c, plain);
  ASSERT_EQ(in_float.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double room = roundings * std::fabs(expected[i]);
    EXPECT_NEAR(static_cast<double>(in_float[i]), expected[i], 1e-6 + room) << name << " " << i;
    EXPECT_NEAR(in_double[i], expected[i], 6e-7 + room) << name << " " << i;
  }
}

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// ---- the answers of others

TEST(Methods, linear_is_the_weighted_mean_or_sum) {
  Case c("linear", {}, {kX, kY, kZ});
  expect_answer(
      c, {0.666667, -1.087500, 2.062500, 0.508333, 1.533333, 0.912500, -0.566667, -2.137500});
  expect_answer(c.set("normalize", 0),
                {1.0, -1.631250, 3.093750, 0.762500, 2.3, 1.368750, -0.850000, -3.206250});
}

TEST(Methods, slerp_turns_by_the_angle) {
  expect_answer(Case("slerp", kX, {kY}).set("t", 0.35), {0.588679, -1.236394, 2.150705, 0.686574,
                                                         1.479450, 0.738511, -0.441275, -2.114088});
}

TEST(Methods, passthrough_scales) {
  expect_answer(Case("passthrough", {}, {kX}).all("scale", 0.5),
                {0.343750, -0.562500, 1.0, 0.468750, 0.593750, 0.406250, -0.062500, -1.125000});
}

TEST(Methods, task_arithmetic_adds_task_vectors) {
  expect_answer(Case("task_arithmetic", kB, {kX, kY}), {0.562500, -1.225000, 2.125000, 0.637500,
                                                        1.487500, 0.712500, -0.475000, -2.050000});
  expect_answer(
      Case("task_arithmetic", kB, {kX, kY, kZ}).set("normalize", 1).set("lambda", 0.8),
      {0.633333, -1.070000, 2.050000, 0.456667, 1.526667, 0.880000, -0.553333, -2.110000});
}

TEST(Methods, ties_selects_elects_and_averages) {
  Case c("ties", kB, {kX, kY, kZ});
  c.all("density", 0.5);
  expect_answer(
      c, {0.875000, -1.375000, 2.312500, 0.937500, 1.187500, 1.312500, -0.861111, -2.278409});
  c.set("normalize", 0);
  expect_answer(
      c, {0.687500, -1.150000, 2.125000, 0.662500, 1.312500, 1.031250, -0.825000, -2.306250});
  c.set("normalize", 1).set("rescale", 1);
  expect_answer(
      c, {0.968750, -1.519231, 2.432692, 1.096154, 2.105769, 1.453125, -0.981303, -2.345389});
}

TEST(Methods, dare_without_a_drop_is_plain) {
  expect_answer(Case("dare_linear", kB, {kX, kY, kZ}), {0.750000, -1.131250, 2.093750, 0.637500,
                                                        1.550000, 0.993750, -0.600000, -2.206250});
  expect_answer(Case("dare_ties", kB, {kX, kY, kZ}), {0.800000, -1.225000, 2.125000, 0.662500,
                                                      1.737500, 1.068750, -0.825000, -2.306250});
}

TEST(Methods, breadcrumbs_drops_both_ends) {
  Case c("breadcrumbs", kB, {kX, kY, kZ});
  c.all("density", 0.5);
  expect_answer(
      c, {0.687500, -1.150000, 2.125000, 0.662500, 1.487500, 1.031250, -0.600000, -2.306250});
  c.all("gamma", 0.13);
  expect_answer(
      c, {0.800000, -1.056250, 2.125000, 0.250000, 1.487500, 0.750000, -0.400000, -2.206250});
  expect_answer(
      Case("breadcrumbs_ties", kB, {kX, kY, kZ}).all("density", 0.5).all("gamma", 0.13),
      {0.800000, -1.150000, 2.125000, 0.250000, 1.312500, 0.750000, -0.275000, -2.306250});
}

TEST(Methods, nuslerp_turns_tensors_rows_or_columns) {
  Case c("nuslerp", {}, {kX, kY});
  expect_answer(
      c, {0.573531, -1.250295, 2.168713, 0.649461, 1.518825, 0.726672, -0.485871, -2.091075});
  c.set("nuslerp_flatten", 0);
  expect_answer(
      c, {0.570062, -1.242339, 2.154964, 0.645701, 1.528046, 0.730842, -0.489073, -2.103161});
  c.set("nuslerp_row_wise", 1);
  expect_answer(
      c, {0.569817, -1.233430, 2.156165, 0.643399, 1.508276, 0.717224, -0.482749, -2.070253});
  expect_answer(Case("nuslerp", kB, {kX, kY}), {0.599647, -1.466052, 2.272469, 0.960499, 1.533733,
                                                0.656063, -0.518682, -2.060204});
}

TEST(Methods, multislerp_is_the_mean_direction_at_the_mean_length) {
  expect_answer(Case("multislerp", {}, {kX, kY, kZ}), {0.681695, -1.111897, 2.105562, 0.529985,
                                                       1.557925, 0.929895, -0.567958, -2.186662});
  expect_answer(Case("multislerp", kB, {kX, kY, kZ}), {0.879119, -1.174075, 2.130359, 0.794043,
                                                       1.584747, 1.134174, -0.665399, -2.311411});
  expect_answer(
      Case("multislerp", {}, {kX, kY, kZ}).set("normalize_weights", 0),
      {1.022542, -1.667846, 3.158343, 0.794977, 2.336887, 1.394843, -0.851937, -3.279993});
}

// Of angles and steps in f32.
constexpr double kSpherical = 0x1p-21;

TEST(Methods, karcher_finds_the_centre_on_the_sphere) {
  expect_answer(Case("karcher", {}, {kX, kY, kZ}),
                {0.660813, -1.129401, 2.128025, 0.478592, 1.610296, 0.913607, -0.628452, -2.153702},
                kSpherical);
  expect_answer(Case("karcher", {}, {kB, kX, kY, kZ}),
                {0.618786, -1.096951, 2.098358, 0.417756, 1.584149, 0.871430, -0.594991, -2.117232},
                kSpherical);
}

TEST(Methods, model_stock_goes_by_the_angle_of_tensors_or_rows) {
  Case c("model_stock", kB, {kX, kY, kZ});
  expect_answer(
      c, {0.323396, -0.873855, 1.899084, -0.002291, 1.399083, 0.573396, -0.348625, -1.873854},
      kSpherical);
  c.set("filter_wise", 1);
  expect_answer(c,
                {0.378536, -0.913240, 1.930592, 0.076480, 1.216365, 0.253640, -0.074548, -1.645456},
                kSpherical);
}

TEST(Methods, sce_selects_weighs_and_averages) {
  Case c("sce", kB, {kX, kY, kZ});
  expect_answer(
      c, {0.771484, -1.247596, 2.312500, 0.937500, 1.794548, 1.036458, -0.885638, -2.277995});
  c.set("select_topk", 0.5);
  expect_answer(c, {0.5, -1.0, 2.0, 0.937500, 1.796596, 0.990317, -0.887277, -2.0});
}

TEST(Methods, ram_averages_what_is_shared_alone) {
  Case c("ram", kB, {kX, kY, kZ});
  expect_answer(
      c, {0.645833, -1.104167, 2.125000, 0.562500, 1.583333, 0.895833, -0.625000, -2.104167});
  c.set("epsilon", 0.15);
  expect_answer(
      c, {0.781250, -1.093750, 2.312500, 0.937500, 1.562500, 0.937500, -0.625000, -2.104167});
  expect_answer(
      Case("ramplus_tl", kB, {kX, kY, kZ}).set("epsilon", 0.15),
      {0.781250, -1.093750, 2.318750, 0.951250, 1.562500, 0.937500, -0.625000, -2.104167});
}

TEST(Methods, nearswap_moves_by_at_most_t) {
  expect_answer(Case("nearswap", kB, {kX}).set("t", 0.05),
                {0.55, -1.05, 2.0, 0.3, 1.45, 0.8, -0.45, -2.05});
}

TEST(Methods, arcee_fusion_takes_over_what_stands_out) {
  const Case c("arcee_fusion", kB, {kX});
  expect_answer(c, {0.5, -1.0, 2.0, 0.9375, 1.5, 0.75, -0.5, -2.0});
}

TEST(Methods, consensus_keeps_what_several_have_a_part_in) {
  const Values zero(12, 0.0F);
  expect_answer(Case("consensus", zero,
                     {{3, -1, 2, 0, 1, 4, -2, 1, 0, 2, 1, -3},
                      {1, 2, 0, -1, -2, 3, 1, 0, 2, 0, -1, 4},
                      {-1, 1, 3, 2, 0, 2, -3, 1, 1, -2, 0, 2}}),
                {3, 2, 5, 1, -1, 9, -4, 2, 3, 0, 0, 3});
}

// Methods that mergekit too rounds once: bf16 in and out, bit for bit.
TEST(Methods, bf16_results_are_rounded_once) {
  const auto expect = [](const Case& c, const Values& expected) {
    const Values found = merged(c);
    ASSERT_EQ(found.size(), expected.size());
    using Codec = math::Codec<math::Format::bf16>;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const auto word = Codec::encode(found[i], math::Overflow::saturate);
      EXPECT_EQ(Codec::decode(word), expected[i]) << "element " << i;
    }
  };
  Case linear("linear", {}, {kX, kY, kZ});
  expect(linear, {0.66796875F, -1.0859375F, 2.0625F, 0.5078125F, 1.53125F, 0.9140625F, -0.56640625F,
                  -2.140625F});
  expect(linear.set("normalize", 0), {1.0F, -1.6328125F, 3.09375F, 0.76171875F, 2.296875F,
                                      1.3671875F, -0.8515625F, -3.203125F});
  expect(Case("slerp", kX, {kY}).set("t", 0.35),
         {0.58984375F, -1.234375F, 2.15625F, 0.6875F, 1.4765625F, 0.73828125F, -0.44140625F,
          -2.109375F});
}

// ---- adapters: other votes, other divisor, other rescaling, through the same combines

// Task vectors without a base, thinned by magnitude or at random.
Case adapters(const std::string& name, const Inputs& vectors, const Numbers& weights,
              double density) {
  Case c("adapter_" + name, {}, vectors);
  c.all("weight", weights);
  c.all("density", density);
  return c;
}

const Inputs kThree = {{3, -1, 0, 2}, {-3, -1, 0, 4}, {1, 5, 0, -9}};
const Numbers kThreeWeights = {1, 2, 0.5};

TEST(Methods, adapters_are_elected_by_total_or_frequency_and_divided_by_the_count) {
  const auto expect = [&](const char* name, double density, const Numbers& expected) {
    expect_answer(adapters(name, kThree, kThreeWeights, density), expected);
  };
  expect("ties_total", 1, {1.75, 2.5, 0, -4.5});
  expect("ties_frequency", 1, {1.75, -1.5, 0, 5});
  expect("magnitude_prune", 1, {-2.5, -0.5, 0, 5.5});
  expect("ties_total", 0.5, {3, 2.5, 0, -4.5});
  expect("ties_frequency", 0.5, {3, 2.5, 0, 5});
  expect("magnitude_prune", 0.5, {-3, 2.5, 0, 5.5});
  expect("magnitude_prune", 0.3, {3, 0, 0, 3.5});
}

// Factors of two LoRA adapters, scales 2 and 0.5, with the weights that PEFT gives them.
const Values kA1 = {1, -2, 3, 0.5F, 4, -1}, kA2 = {-4, 1, 2, 3, -0.5F, 1};
const Values kB1 = {1, -3, 2, 0.5F}, kB2 = {2, 1, -1, 4};
const Numbers kRoots = {std::sqrt(2.0), std::sqrt(0.5)};

TEST(Methods, adapters_are_thinned_by_magnitude) {
  for (const char* vote : {"ties_total", "ties_frequency"}) {
    expect_answer(adapters(vote, {kA1, kA2}, kRoots, 0.5),
                  {-2.8284271, -2.8284271, 2.8284271, 2.1213202, 5.6568542, 0});
    expect_answer(adapters(vote, {kB1, kB2}, kRoots, 0.5),
                  {1.4142135, -4.2426405, 2.8284271, 2.8284271});
    expect_answer(adapters(vote, {kA1, kA2}, {1, -1}, 0.5), {4, -2, 0.5, -3, 4, 0});
    expect_answer(adapters(vote, {kB1, kB2}, {1, 1}, 0.5), {2, -3, 2, 4});
  }
  expect_answer(adapters("magnitude_prune", {kA1, kA2}, kRoots, 0.5),
                {-2.8284271, -2.8284271, 5.6568542, 2.1213202, 5.6568542, 0});
  expect_answer(adapters("magnitude_prune", {kA1, kA2}, {1, -1}, 0.5), {4, -2, 1, -3, 4, 0});
}

using Kept = std::vector<bool>;

// The combine of a method on what masks as PEFT drew them leave, divided by a density of one half.
template <class M, class T>
std::vector<T> combined(const Inputs& vectors, const std::vector<Kept>& kept,
                        const Numbers& weights) {
  using Combine = typename M::Combine;
  const bool voices = Combine::kStages == 1;  // weights are in what is summed
  std::vector<T> out;
  for (std::size_t e = 0; e < vectors[0].size(); ++e) {
    typename Combine::Facts whole;
    std::vector<typename Combine::Source> source(vectors.size());
    if constexpr (requires { source[0].weight; }) {
      whole.divided = 1;
      for (std::size_t s = 0; s < weights.size(); ++s) {
        source[s].weight = static_cast<float>(weights[s]);
      }
    }
    math::Note note;
    const auto see = [&](int at, T& exact, float& voice) {
      const auto s = static_cast<std::size_t>(at);
      const auto weight = static_cast<double>(static_cast<float>(weights[s]));
      const math::Gain gain = math::gain(2.0 * (voices ? weight : 1.0));
      exact = math::survivor<true>(static_cast<T>(vectors[s][e]), kept[s][e], gain);
      voice = math::survivor<true>(vectors[s][e], kept[s][e], gain);
    };
    constexpr int kForm = Combine::kForms - 1;
    out.push_back(math::detail::combine_element<Combine, kForm, T>(
        whole, source.data(), static_cast<int>(vectors.size()), math::At<T>{}, see, note));
  }
  return out;
}
template <class M>
void expect_dropped(const Inputs& vectors, const std::vector<Kept>& kept, const Numbers& weights,
                    const Numbers& expected) {
  expect_near(combined<M, float>(vectors, kept, weights), expected, 1e-6);
  expect_near(combined<M, double>(vectors, kept, weights), expected, 1e-6);
}

TEST(Methods, adapters_are_thinned_at_random_and_divided_by_the_density) {
  using Plus = math::AdapterDareLinear;
  using Total = math::AdapterDareTiesTotal;
  using Heads = math::AdapterDareTiesFrequency;
  const std::vector<Kept> a = {{0, 1, 1, 1, 0, 0}, {1, 1, 1, 0, 0, 1}};
  const std::vector<Kept> b = {{1, 1, 1, 0}, {1, 1, 0, 0}};
  expect_dropped<Plus>({kA1, kA2}, a, kRoots,
                       {-5.6568542, -4.2426405, 11.313708, 1.4142135, 0, 1.4142135});
  expect_dropped<Plus>({kB1, kB2}, b, kRoots, {5.6568542, -7.0710673, 5.6568542, 0});
  expect_dropped<Plus>({kA1, kA2}, a, {1, -1}, {8, -6, 2, 1, 0, -2});
  expect_dropped<Total>({kA1, kA2}, a, kRoots,
                        {-5.6568542, -5.6568542, 5.6568542, 1.4142135, 0, 1.4142135});
  expect_dropped<Heads>({kA1, kA2}, a, kRoots,
                        {-5.6568542, 1.4142135, 5.6568542, 1.4142135, 0, 1.4142135});
  expect_dropped<Total>({kA1, kA2}, a, {1, -1}, {8, -4, 1, 1, 0, -2});
  expect_dropped<Heads>({kA1, kA2}, a, {1, -1}, {8, -2, 1, 1, 0, -2});
  expect_dropped<Total>({kB1, kB2}, b, kRoots, {2.8284271, -8.485281, 5.6568542, 0});
  expect_dropped<Heads>({kB1, kB2}, b, kRoots, {2.8284271, 1.4142135, 5.6568542, 0});
}

// ---- decisions

// The weighted election of one element with these changes, on a base of 0.
math::Outcome<float> elected(const Values& changes, const Numbers& weights, bool normalize) {
  Inputs sources;
  for (const float d : changes) sources.push_back({d});
  Case c("ties", {0.0F}, sources);
  c.all("weight", weights).set("normalize", normalize ? 1 : 0);
  return outcomes<float>(c.rule, measure(c.rule, c.inputs), c.inputs)[0];
}

TEST(Methods, a_vote_of_zero_goes_to_plus) {
  const auto outcome = elected({-2.0F, 2.0F}, {1, 1}, false);
  EXPECT_EQ(outcome.value, 2.0F);
  EXPECT_TRUE(outcome.conflict);
}

TEST(Methods, zeros_agree_with_nobody) {
  const auto outcome = elected({0.0F, 3.0F, -0.0F}, {0.5, 0.25, 0.25}, true);
  EXPECT_EQ(outcome.value, 3.0F);
  EXPECT_FALSE(outcome.conflict);
}

TEST(Methods, weights_that_cancel_divide_by_one) {
  EXPECT_EQ(elected({6.0F, -8.0F}, {0.5, -0.5}, true).value, 7.0F);
  EXPECT_EQ(elected({0.0F, 0.0F}, {0.5, 0.5}, true).value, 0.0F);
}

TEST(Methods, a_nan_reaches_the_result) {
  EXPECT_TRUE(std::isnan(elected({NAN, 1.0F}, {0.5, 0.5}, true).value));
  EXPECT_TRUE(std::isnan(elected({-1.0F, NAN, 5.0F}, {1, 1, 1}, false).value));
}

TEST(Methods, what_a_mask_drops_is_plus_zero) {
  for (const float d : {-1.0F, NAN, INFINITY, -0.0F}) {
    EXPECT_EQ(math::bits(math::survivor<false>(d, false, math::Gain{-2.0F, 0.0F})), 0U);
    EXPECT_EQ(math::bits(math::survivor<true>(d, false, math::gain(-0.1))), 0U);
  }
}

// ---- gains

TEST(Methods, a_gain_is_its_number_to_twice_the_bits) {
  Random random(17);
  for (int i = 0; i < 100000; ++i) {
    const double number =
        std::ldexp(random.uniform() - 0.5, static_cast<int>(random.below(60)) - 30);
    const math::Gain gain = math::gain(number);
    const double back = static_cast<double>(gain.whole) + static_cast<double>(gain.rest);
    ASSERT_LE(std::fabs(back - number), std::fabs(number) * 0x1p-48) << number;
  }
  EXPECT_TRUE(math::gain(0.1).split());
  EXPECT_FALSE(math::gain(0.5).split());
  EXPECT_FALSE(math::gain(INFINITY).split());
  EXPECT_FALSE(math::gain(1e300).split());
  EXPECT_FALSE(math::gain(NAN).split());
}

// Like trained weights; one in eight values odd where `odd`.
Values tensor(Random& random, std::uint64_t count, double size, bool odd = false) {
  static const float kOdd[] = {NAN,   -NAN,   INFINITY,       -INFINITY, 0.0F,
                               -0.0F, 1e-45F, 1.1754944e-38F, 3.4e38F,   -3.4028235e38F};
  Values values(count);
  for (float& x : values) {
    x = static_cast<float>(
        (random.uniform() + random.uniform() + random.uniform() + random.uniform() - 2.0) * size);
    if (odd && random.below(8) == 0) x = kOdd[random.below(std::size(kOdd))];
  }
  return values;
}
// A base, and fine-tunes close to it. A third of their elements they have not changed.
Inputs family(Random& random, std::uint64_t count, int models, bool odd = false) {
  Inputs out = {tensor(random, count, 0.5, odd)};
  for (int m = 1; m < models; ++m) {
    Values x = tensor(random, count, 0.02, odd);
    for (std::uint64_t i = 0; i < count; ++i) {
      x[i] = random.below(3) == 0 ? out[0][i] : out[0][i] + x[i];
    }
    out.push_back(x);
  }
  return out;
}

TEST(Methods, rescaled_survivors_are_rounded_once) {
  Random random(18);
  const Values values = tensor(random, 100000, 1.0);
  for (const float d : values) {
    const double number = random.uniform() * 4 - 2;
    const math::Gain gain = math::gain(number);
    if (!gain.split()) continue;
    const double exact = static_cast<double>(d) * number;
    const float found = math::survivor<true>(d, true, gain);
    const float next = std::nextafter(found, INFINITY);
    const double unit = static_cast<double>(next) - static_cast<double>(found);
    ASSERT_LE(std::fabs(static_cast<double>(found) - exact), 0.5001 * unit);
  }
}

TEST(Methods, only_sources_that_are_thinned_are_rescaled) {
  Case c("dare_linear", kB, {kX, kY, kZ});
  c.all("density", 0.5).each("density", 1, 1.0);
  using M = math::DareLinear;
  math::Facts facts = math::begin(c.rule);
  const math::PassInfo& norms = math::method(c.rule.method).passes[0];
  ASSERT_TRUE(norms.wanted(c.rule, facts));
  EXPECT_EQ(norms.sums(c.rule), 6);
  const double sums[] = {3.0, 1.0, 5.0, 5.0, 7.0, 1e-8};
  EXPECT_EQ(norms.take(c.rule, sums, facts), nullptr);
  const auto known = facts.known<M::Lens, M::Combine>();
  const math::Survivors& first = known.lens[0].survivors;
  EXPECT_EQ(first.factor, 3.0);
  EXPECT_NEAR(static_cast<double>(first.gain.whole) + static_cast<double>(first.gain.rest),
              3.0 * static_cast<double>(0.6F), 1e-14);
  EXPECT_EQ(known.lens[1].survivors.factor, 1.0);
  EXPECT_EQ(known.lens[1].survivors.gain.whole, 0.4F);
  EXPECT_FALSE(known.lens[1].survivors.gain.split());
  EXPECT_EQ(known.lens[2].survivors.factor, 1.0);  // nothing left to restore
}

// ---- the list

TEST(Methods, selections_keep_the_truncated_share_and_at_least_one) {
  Case c("ties", kB, {kX});
  const auto kept = [&](std::uint64_t elements, double density) {
    c.rule.elements = elements;
    c.all("density", density);
    return math::kept(c.rule, 0);
  };
  EXPECT_EQ(kept(100, 0.29), 28U);
  EXPECT_EQ(kept(100, 0.57), 56U);
  EXPECT_EQ(kept(8, 0.01), 1U);
  EXPECT_EQ(kept(8, 0.0), 0U);
  EXPECT_EQ(kept(8, 1.0), 8U);
}

TEST(Methods, are_found_by_their_names) {
  for (int i = 0; i < math::kMethodCount; ++i) {
    EXPECT_EQ(math::find(math::method(i).card.name), i);
  }
  EXPECT_EQ(math::find("ties_"), -1);
  EXPECT_EQ(math::find("tie"), -1);
  EXPECT_EQ(math::find(""), -1);
}

TEST(Methods, a_mean_by_weights_that_cancel_is_refused) {
  Case c("linear", {}, {kX, kY});
  c.all("weight", {0.5, -0.5});
  EXPECT_NE(math::invalid(c.rule), nullptr);
  EXPECT_EQ(math::invalid(c.set("normalize", 0).rule), nullptr);
  EXPECT_NE(math::invalid(Case("slerp", kX, {kY, kZ}).rule), nullptr);
  EXPECT_NE(math::invalid(c.each("weight", 0, std::nan("")).rule), nullptr);
  Case s("multislerp", {}, {kX, kY});
  s.all("weight", {0.5, -0.5});
  EXPECT_NE(math::invalid(s.rule), nullptr);
  EXPECT_EQ(math::invalid(s.set("normalize_weights", 0).rule), nullptr);
}

// ---- every method

// As many sources as a method takes, at most four, with densities and shares that select.
Case typical(int method, const Inputs& models, std::uint64_t width) {
  const math::Card& card = math::method(method).card;
  const bool pivot = card.base == math::Base::pivot;
  const bool based = pivot || card.base == math::Base::origin || card.base == math::Base::optional;
  const int most = card.most - (pivot ? 1 : 0);
  Inputs sources(models.begin() + 1, models.begin() + 1 + std::min(4, most));
  Case c(card.name, based ? models[0] : Values{}, sources);
  c.shape(width);
  static constexpr std::pair<const char*, double> kSettings[] = {
      {"t", 0.3},           {"density", 0.4},   {"rescale", 1.0}, {"gamma", 0.1},
      {"select_topk", 0.3}, {"epsilon", 0.004}, {"lambda", 0.7}};
  for (const auto& [name, value] : kSettings) {
    math::set_global(c.rule, name, value);
    for (int s = 0; s < c.rule.sources; ++s) math::set_local(c.rule, s, name, value);
  }
  return c;
}
// The same of every method, without a base where it may lack, and with every flag turned.
std::vector<Case> typical(const Inputs& models, std::uint64_t width) {
  std::vector<Case> all;
  for (int m = 0; m < math::kMethodCount; ++m) {
    all.push_back(typical(m, models, width));
    if (math::method(m).card.base == math::Base::optional) {
      Case c = typical(m, models, width);
      c.rule.base = false;
      c.inputs.erase(c.inputs.begin());
      all.push_back(c);
    }
    for (const math::Parameter& p : math::method(m).parameters) {
      if (p.kind != math::Kind::boolean) continue;
      all.push_back(typical(m, models, width));
      all.back().set(p.name, p.fallback != 0.0 ? 0.0 : 1.0);
      if (std::string(p.name) != "nuslerp_flatten") continue;
      all.push_back(all.back());
      all.back().set("nuslerp_row_wise", 1.0);
    }
  }
  return all;
}

TEST(Methods, the_bound_on_the_engines_rounding_holds) {
  Random random(21);
  const Inputs models = family(random, 60 * 70, 5);
  for (const Case& c : typical(models, 70)) {
    const char* name = math::method(c.rule.method).card.name;
    const Plain plain = measured(c);
    ASSERT_EQ(plain.refused, nullptr) << name;
    const Values found = merged<float>(c, plain);
    const Numbers exact = merged<double>(c, plain);
    const std::vector<Single> bound = merged<Single>(c, plain);
    for (std::size_t i = 0; i < found.size(); ++i) {
      ASSERT_LE(std::fabs(static_cast<double>(found[i]) - exact[i]), bound[i].slack)
          << name << " element " << i;
      ASSERT_LE(bound[i].slack, 1e-5 * (1.0 + std::fabs(exact[i]))) << name << " element " << i;
    }
  }
}

// Writes facts down, and gives them back.
class Notebook final : public math::Teller {
 public:
  bool number(const char* name, int source, int place, double& value) override {
    return keep(name, source, place, value);
  }
  bool key(const char* name, int source, std::int32_t& key) override {
    double value = static_cast<double>(math::from_bits(static_cast<std::uint32_t>(key)));
    const bool told = keep(name, source, -1, value);
    key = static_cast<std::int32_t>(math::key(static_cast<float>(value)));
    return told;
  }
  bool count(const char* name, int source, std::uint64_t& value) override {
    auto number = static_cast<double>(value);
    const bool told = keep(name, source, -1, number);
    value = static_cast<std::uint64_t>(number);
    return told;
  }
  bool reads = false;

 private:
  bool keep(const std::string& name, int source, int place, double& value) {
    const std::string page = name + " " + std::to_string(source) + " " + std::to_string(place);
    if (!reads) return pages_.emplace(page, value).second;
    const auto found = pages_.find(page);
    if (found == pages_.end()) return false;
    value = found->second;
    return true;
  }
  std::map<std::string, double> pages_;
};

TEST(Methods, facts_that_are_told_come_back_to_the_bit) {
  Random random(22);
  const Inputs models = family(random, 60 * 70, 5);
  for (const Case& c : typical(models, 70)) {
    const math::Method& method = math::method(c.rule.method);
    Plain plain = measured(c);
    Notebook notebook;
    EXPECT_TRUE(method.tell(c.rule, plain.facts, notebook)) << method.card.name;
    notebook.reads = true;
    Plain back{math::begin(c.rule), plain.lines, nullptr};
    EXPECT_TRUE(method.tell(c.rule, back.facts, notebook)) << method.card.name;
    EXPECT_TRUE(same_bits(merged<float>(c, plain), merged<float>(c, back))) << method.card.name;
  }
}

TEST(Methods, odd_numbers_are_merged_without_a_crash) {
  Random random(23);
  for (int turn = 0; turn < 3; ++turn) {
    const Inputs models = family(random, 12 * 20, 5, true);
    for (const Case& c : typical(models, 20)) {
      const Plain plain = measured(c);
      if (plain.refused != nullptr) continue;
      EXPECT_EQ(merged<float>(c, plain).size(), 240U);
    }
  }
}

TEST(Methods, an_output_that_is_finite_tells_that_the_inputs_are_where_a_method_says_so) {
  Random random(24);
  const Inputs models = family(random, 60, 5);
  for (const Case& c : typical(models, 10)) {
    const math::Method& method = math::method(c.rule.method);
    if (!method.propagates) continue;
    for (std::size_t input = 0; input < c.inputs.size(); ++input) {
      for (const float odd : {NAN, INFINITY, -INFINITY}) {
        Case spoilt = c;
        spoilt.inputs[input][7] = odd;
        const Plain plain = measured(spoilt);
        const Values out = merged<float>(spoilt, plain);
        EXPECT_FALSE(std::isfinite(out[7])) << method.card.name << " input " << input;
      }
    }
  }
}

TEST(Methods, models_that_are_the_base_give_the_base) {
  Random random(25);
  const Values b = tensor(random, 240, 0.5);
  for (const Case& c : typical({b, b, b, b, b}, 20)) {
    const math::Card& card = math::method(c.rule.method).card;
    if (!c.rule.base || card.base == math::Base::pivot) continue;
    const Plain plain = measured(c);
    ASSERT_EQ(plain.refused, nullptr) << card.name;
    EXPECT_EQ(merged<float>(c, plain), b) << card.name;
  }
}

TEST(Methods, without_models_the_base_stays) {
  Random random(26);
  const Values b = tensor(random, 60, 0.5);
  for (const math::Method& method : math::kMethods) {
    if (method.card.least > 0 || method.card.base != math::Base::origin) continue;
    const Case c(method.card.name, b, {});
    const Plain plain = measured(c);
    ASSERT_EQ(plain.refused, nullptr) << method.card.name;
    EXPECT_EQ(merged<float>(c, plain), b) << method.card.name;
  }
}

// ---- lines

TEST(Methods, a_row_is_merged_as_a_tensor_of_its_own) {
  Random random(27);
  const std::uint64_t width = 70, rows = 9;
  const Inputs models = family(random, width * rows, 5);
  const auto row = [&](const Values& x, std::uint64_t r) {
    const auto at = static_cast<std::ptrdiff_t>(r * width);
    return Values(x.begin() + at, x.begin() + at + static_cast<std::ptrdiff_t>(width));
  };
  for (const auto& [name, flag, on] :
       {std::tuple{"nuslerp", "nuslerp_flatten", 0.0}, {"model_stock", "filter_wise", 1.0}}) {
    for (const bool based : {true, false}) {
      if (!based && std::string(name) == "model_stock") continue;
      const Values base = based ? models[0] : Values{};
      Case c(name, base, {models[1], models[2]});
      const Values found = merged(c.shape(width).set(flag, on));
      for (std::uint64_t r = 0; r < rows; ++r) {
        const Case one(name, based ? row(base, r) : Values{},
                       {row(models[1], r), row(models[2], r)});
        EXPECT_TRUE(same_bits(row(found, r), merged(one))) << name << " row " << r;
      }
    }
  }
}

TEST(Methods, columns_are_the_rows_of_the_transposed_tensor) {
  Random random(28);
  const std::uint64_t width = 12, rows = 33;
  const Inputs models = family(random, width * rows, 3);
  const auto transposed = [](const Values& x, std::uint64_t from) {
    Values out(x.size());
    for (std::uint64_t i = 0; i < x.size(); ++i) {
      out[i % from * (x.size() / from) + i / from] = x[i];
    }
    return out;
  };
  Case rowwise("nuslerp", models[0], {models[1], models[2]});
  rowwise.shape(width).set("nuslerp_flatten", 0).set("nuslerp_row_wise", 1);
  Case turned("nuslerp", transposed(models[0], width),
              {transposed(models[1], width), transposed(models[2], width)});
  turned.shape(rows).set("nuslerp_flatten", 0);
  const Values expected = transposed(merged(turned), rows);
  expect_near(merged(rowwise), Numbers(expected.begin(), expected.end()), 1e-7);
}

TEST(Methods, a_tensor_of_one_dimension_is_one_line) {
  for (const double columns : {0.0, 1.0}) {
    Case flat("nuslerp", kB, {kX, kY}), line("nuslerp", kB, {kX, kY});
    flat.shape(8);
    line.shape(8).set("nuslerp_flatten", 0).set("nuslerp_row_wise", columns);
    const Values found = merged(line), expected = merged(flat);
    expect_near(found, Numbers(expected.begin(), expected.end()), 1e-7);
  }
}

// ---- edges

Values times(const Values& x, float factor) {
  Values out;
  for (const float v : x) out.push_back(v * factor);
  return out;
}

TEST(Methods, breadcrumbs_keeps_one_selection_less_another) {
  Random random(31);
  math::Rule rule;
  for (int turn = 0; turn < 2000; ++turn) {
    math::Band::Facts f;
    // Few keys and places, so that they are met.
    const auto some = [&] {
      const std::uint32_t keys[] = {0, 1, 2, 0x7f7fffffu, 0x7f800000u, math::kNanKey};
      return keys[random.below(6)];
    };
    f.outer = {some(), random.below(20)};
    f.inner = {some(), random.below(20)};
    if (random.below(4) == 0) f.inner = {math::kNoKey, math::Band::kEvery};
    if (random.below(4) == 0) f.outer = {0, math::Band::kEvery};
    for (std::uint64_t first = 0; first < 20;) {
      std::uint32_t n = 20;
      const math::Band::Piece piece = math::Band::piece(f, first, n);
      ASSERT_GT(n, 0U);
      for (std::uint64_t at = first; at < first + n; ++at) {
        for (const std::uint32_t word : {0u, 1u, 2u, 3u, 0x7f7fffffu, 0x7f800000u, 0x7f800001u,
                                         0x7fc00000u, 0x7fffffffu, 0xffc00000u, 0x80000001u}) {
          const float d = math::from_bits(word);
          const bool passes = !math::Band::empty(piece) && math::Band::passes(piece, d);
          ASSERT_EQ(passes, math::Band::keeps(f, d, at)) << word << " at " << at;
        }
      }
      first += n;
    }
  }
}

TEST(Methods, breadcrumbs_keeps_its_share_whatever_the_outliers) {
  Random random(32);
  const Inputs models = family(random, 1000, 2);
  for (const double density : {0.0, 0.0001, 0.3, 0.95, 0.999, 1.0}) {
    for (const double gamma : {0.0, 0.01, 0.2, 1.0}) {
      Case c("breadcrumbs", models[0], {models[1]});
      c.all("density", density).all("gamma", gamma);
      std::uint64_t kept = 0;
      for (const auto& o : outcomes<float>(c.rule, measured(c), c.inputs)) kept += o.kept;
      const double share = density >= 1.0 ? 1000.0 : std::floor(density * 1000.0);
      EXPECT_EQ(static_cast<double>(kept), share) << density << " " << gamma;
    }
  }
}

TEST(Methods, nuslerp_mixes_parallel_and_opposite_vectors_straight) {
  // Weights 0.6 and 0.4: t = 0.4.
  const auto expect = [](const Values& x, const Values& y, double first, double second) {
    Numbers expected;
    for (std::size_t i = 0; i < x.size(); ++i) {
      expected.push_back(first * static_cast<double>(x[i]) + second * static_cast<double>(y[i]));
    }
    expect_near(merged(Case("nuslerp", {}, {x, y})), expected, 1e-6);
  };
  expect(kX, times(kX, 2.0F), 0.6, 0.4);
  expect(kX, times(kX, -1.0F), 0.6, 0.4);
  Values nearly = times(kX, -1.0F);
  nearly[0] += 0.001F;
  expect(kX, nearly, 0.6, 0.4);
  const Values zero(8, 0.0F);
  expect(zero, zero, 0.6, 0.4);
  // A vector without length is at right angles to all.
  const double quarter = std::acos(0.0);
  expect(zero, kX, 0.0, std::sin(0.4 * quarter));
  // Small ones are vectors like others.
  const double c = [&] {
    double xy = 0, xx = 0, yy = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      xy += static_cast<double>(kX[i]) * static_cast<double>(kY[i]);
      xx += static_cast<double>(kX[i]) * static_cast<double>(kX[i]);
      yy += static_cast<double>(kY[i]) * static_cast<double>(kY[i]);
    }
    return std::acos(xy / std::sqrt(xx * yy));
  }();
  const Case tiny("nuslerp", {}, {times(kX, 0x1p-40F), times(kY, 0x1p-40F)});
  Numbers expected;
  for (std::size_t i = 0; i < 8; ++i) {
    expected.push_back((std::sin(0.6 * c) * static_cast<double>(kX[i]) +
                        std::sin(0.4 * c) * static_cast<double>(kY[i])) /
                       std::sin(c));
  }
  expect_near(times(merged(tiny), 0x1p40F), expected, 1e-6);
}

TEST(Methods, nuslerp_weights_that_cancel_act_like_equal_ones) {
  Case even("nuslerp", {}, {kX, kY}), odd("nuslerp", {}, {kX, kY});
  even.all("weight", {1, 1});
  odd.all("weight", {-0.5, 0.5});
  EXPECT_TRUE(same_bits(merged(even), merged(odd)));
}

TEST(Methods, one_model_stays_as_it_is) {
  Random random(33);
  const Inputs models = family(random, 240, 2, true);
  for (const char* method : {"multislerp", "karcher"}) {
    const Case c(method, {}, {models[1]});
    EXPECT_TRUE(same_bits(merged(c), models[1])) << method;
  }
  EXPECT_TRUE(same_bits(merged(Case("multislerp", models[0], {models[1]})), models[1]));
}

TEST(Methods, multislerp_of_directions_that_cancel_is_the_weighted_sum) {
  const Values minus = times(kX, -2.0F), zero(8, 0.0F);
  Case two("multislerp", {}, {kX, minus});
  two.all("weight", {0.5, 0.5});
  Numbers half;
  for (const float x : kX) half.push_back(-0.5 * static_cast<double>(x));
  expect_answer(two, half);
  Case three("multislerp", {}, {kX, minus, zero});
  three.all("weight", {0.25, 0.25, 0.5});
  Numbers quarter;
  for (const double x : half) quarter.push_back(x / 2);
  expect_answer(three, quarter);
}

TEST(Methods, karcher_leaves_out_tensors_without_length_but_counts_them) {
  const Values zero(8, 0.0F);
  Numbers expected;
  for (const float x : kX) expected.push_back(static_cast<double>(x) * 2.0 / 3.0);
  expect_answer(Case("karcher", {}, {kX, zero, kX}), expected);
  EXPECT_EQ(merged(Case("karcher", {}, {zero, zero})), zero);
  // Opposite ones: the first.
  Numbers first;
  for (const float x : kX) first.push_back(1.5 * static_cast<double>(x));
  expect_answer(Case("karcher", {}, {kX, times(kX, -2.0F)}), first);
  // Without steps and with many.
  for (const double steps : {0.0, 1.0, 1000.0}) {
    Case c("karcher", {}, {kX, kY, kZ});
    c.set("max_iter", steps).set("tol", 0.0);
    for (const float x : merged(c)) EXPECT_TRUE(std::isfinite(x)) << steps;
  }
}

TEST(Methods, model_stock_of_opposite_changes_is_the_base) {
  Values x, y;
  for (std::size_t i = 0; i < 8; ++i) {
    const float d = 0.25F * static_cast<float>(i % 3);
    x.push_back(kB[i] + d);
    y.push_back(kB[i] - d);
  }
  EXPECT_EQ(merged(Case("model_stock", kB, {x, y})), kB);
  // A row that one model has not changed is at right angles: half of the mean's t, 0.
  EXPECT_EQ(merged(Case("model_stock", kB, {x, kB})), kB);
  // Small changes have the same angle as large ones.
  Inputs small;
  const Values zero(8, 0.0F);
  for (const Values& v : {kX, kY, kZ}) {
    Values d;
    for (std::size_t i = 0; i < 8; ++i) d.push_back((v[i] - kB[i]) * 0x1p-30F);
    small.push_back(d);
  }
  const Values large = merged(Case("model_stock", kB, {kX, kY, kZ}));
  Numbers expected;
  for (std::size_t i = 0; i < 8; ++i) {
    expected.push_back(static_cast<double>(large[i]) - static_cast<double>(kB[i]));
  }
  expect_near(times(merged(Case("model_stock", zero, small)), 0x1p30F), expected, 1e-6);
}

TEST(Methods, sce_keeps_a_change_that_all_models_share) {
  for (const double share : {0.01, 0.5, 1.0}) {
    Case one("sce", kB, {kX}), equal("sce", kB, {kX, kX, kX});
    EXPECT_EQ(merged(one.set("select_topk", share)), kX) << share;
    const Values found = merged(equal.set("select_topk", share));
    expect_near(found, Numbers(kX.begin(), kX.end()), 1e-7);
  }
  for (const double share : {0.0, -1.0, 0.1}) {  // of eight less than one stays
    Case none("sce", kB, {kX, kY});
    EXPECT_EQ(merged(none.set("select_topk", share)), kB) << share;
  }
}

TEST(Methods, sce_weighs_small_changes_as_large_ones) {
  const Values zero(8, 0.0F);
  Inputs large, small;
  for (const Values& v : {kX, kY, kZ}) {
    Values d, s;
    for (std::size_t i = 0; i < 8; ++i) {
      d.push_back(v[i] - kB[i]);
      s.push_back((v[i] - kB[i]) * 0x1p-20F);
    }
    large.push_back(d);
    small.push_back(s);
  }
  for (const double share : {0.5, 1.0}) {
    Case c("sce", zero, large), tiny("sce", zero, small);
    const Values expected = merged(c.set("select_topk", share));
    EXPECT_EQ(times(merged(tiny.set("select_topk", share)), 0x1p20F), expected) << share;
  }
}

TEST(Methods, sce_keeps_exactly_its_share_of_equal_variances) {
  const Values zero(64, 0.0F), one(64, 1.0F);
  Case c("sce", zero, {one, zero});
  const Values found = merged(c.set("select_topk", 0.25));
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(found[i], i < 16 ? 1.0F : 0.0F) << i;
}

TEST(Methods, ramplus_enlarges_by_what_is_shared_and_at_most_by_alpha) {
  const Values zero(8, 0.0F);
  // The first model: six of its own, one shared. The second: none of its own.
  const Values a = {1, 1, 1, 1, 1, 1, 1, 0}, b = {0, 0, 0, 0, 0, 0, 3, 0};
  Case c("ramplus_tl", zero, {a, b});
  c.set("r", 0.6).set("alpha", 1.0);
  expect_answer(c, {1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 2, 0});
  c.set("alpha", 0.1);
  expect_answer(c, {1.06, 1.06, 1.06, 1.06, 1.06, 1.06, 2, 0});
  c.set("epsilon", 0.0).set("alpha", 0.0);
  expect_answer(c, {1, 1, 1, 1, 1, 1, 2, 0});
}

TEST(Methods, nearswap_is_the_other_where_it_is_near_and_the_base_for_t_0) {
  for (const double t : {-1.0, 0.0}) {
    EXPECT_EQ(merged(Case("nearswap", kB, {kX}).set("t", t)), kB);
  }
  EXPECT_TRUE(same_bits(merged(Case("nearswap", kB, {kX}).set("t", 10)), kX));
  // mergekit's floor of 1e-6 on the difference.
  const Values zero(4, 0.0F), other = {1e-7F, -1e-6F, 0.5F, 0.0F};
  const Values found = merged(Case("nearswap", zero, {other}).set("t", 1e-7));
  expect_near(found, {1e-8, -1e-7, 1e-7, 0.0}, 1e-14);
}

TEST(Methods, arcee_fusion_finds_its_threshold_of_small_tensors_too) {
  for (std::size_t n = 1; n <= 6; ++n) {
    const Values b(kB.begin(), kB.begin() + static_cast<std::ptrdiff_t>(n));
    const Values x(kX.begin(), kX.begin() + static_cast<std::ptrdiff_t>(n));
    const Values found = merged(Case("arcee_fusion", b, {x}));
    for (std::size_t i = 0; i < n; ++i) EXPECT_TRUE(found[i] == b[i] || found[i] == x[i]);
  }
  EXPECT_EQ(merged(Case("arcee_fusion", kB, {kB})), kB);
}

TEST(Methods, consensus_refuses_more_votes_than_models) {
  Case c("consensus", kB, {kX, kY});
  EXPECT_EQ(math::invalid(c.rule), nullptr);
  EXPECT_NE(math::invalid(c.set("least", 3).rule), nullptr);
  EXPECT_NE(math::invalid(c.set("least", 1.5).rule), nullptr);
  EXPECT_NE(math::invalid(c.set("least", 0).rule), nullptr);
}

// ---- e^x and log x

double ulps(double found, double expected) {
  const double next = std::nextafter(std::fabs(expected), std::numeric_limits<double>::infinity());
  return std::fabs(found - expected) / (next - std::fabs(expected));
}

TEST(Methods, the_exponential_and_the_logarithm_are_within_a_few_units) {
  Random random(41);
  for (int i = 0; i < 200000; ++i) {
    const double x = random.uniform() * 1400.0 - 700.0;
    ASSERT_LE(ulps(math::exponential(x), std::exp(x)), 4.0) << x;
    const double y =
        std::ldexp(1.0 + random.uniform(), static_cast<int>(random.below(2000)) - 1000);
    ASSERT_LE(ulps(math::logarithm(y), std::log(y)), 4.0) << y;
    const double near = 1.0 + (random.uniform() - 0.5) * 1e-3;
    ASSERT_LE(ulps(math::logarithm(near), std::log(near)), 4.0) << near;
  }
  EXPECT_EQ(math::exponential(0.0), 1.0);
  EXPECT_EQ(math::exponential(-1000.0), 0.0);
  EXPECT_EQ(math::exponential(-INFINITY), 0.0);
  EXPECT_EQ(math::exponential(1e300), INFINITY);
  EXPECT_TRUE(std::isnan(math::exponential(NAN)));
  EXPECT_EQ(math::logarithm(1.0), 0.0);
  for (const double x : {0.0, -1.0, 1e-310, static_cast<double>(INFINITY), std::nan("")}) {
    EXPECT_TRUE(std::isnan(math::logarithm(x))) << x;
  }
}

}  // namespace
}  // namespace ingot::test
