// Every formula against numbers from elsewhere: what mergekit 0.1.5 and PEFT 0.21.2 gave for the
// same small tensors, in float (what backends compute) and in double (what `verify` compares with).
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

using math::Divisor;
using math::Vote;

// Exact in bf16.
const std::vector<float> kB = {0.5F, -1.0F, 2.0F, 0.25F, 1.5F, 0.75F, -0.5F, -2.0F};
const std::vector<float> kX = {0.6875F, -1.125F, 2.0F, 0.9375F, 1.1875F, 0.8125F, -0.125F, -2.25F};
const std::vector<float> kY = {0.375F, -1.375F, 2.3125F, 0.1875F, 1.9375F, 0.5625F, -1.0F, -1.75F};
const std::vector<float> kZ = {0.875F, -0.8125F, 1.9375F, 0.25F, 1.625F, 1.3125F, -0.75F, -2.3125F};

using Numbers = std::vector<double>;

Merge merge(const std::string& method, const std::vector<std::vector<float>>& inputs,
            Dtype dtype = Dtype::f32) {
  std::vector<Column> columns;
  for (const std::vector<float>& values : inputs) columns.emplace_back(dtype, values);
  return merge_of(method, std::move(columns));
}

template <class T>
Numbers evaluated(const Merge& merge, const math::Facts& facts) {
  Numbers out;
  for (std::uint64_t i = 0; i < merge.count(); ++i) {
    float x[math::kSources];
    for (int s = 0; s < merge.work.rule.sources; ++s) x[s] = merge.source(s, i);
    const T value = math::evaluate<T>(merge.work.rule, facts, x, merge.base(i), i).value;
    out.push_back(static_cast<double>(value));
  }
  return out;
}

void expect_near(const Numbers& found, const Numbers& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], tolerance) << "element " << i;
  }
}

// The answers have six digits behind the point.
void expect_answer(const Merge& merge, const math::Facts& facts, const Numbers& expected) {
  expect_near(evaluated<float>(merge, facts), expected, 1e-6);
  expect_near(evaluated<double>(merge, facts), expected, 6e-7);
}

void expect_answer(const Merge& merge, const Numbers& expected) {
  expect_answer(merge, settle(*cpu_backend(""), merge), expected);
}

void set_global(Merge& merge, int global, double value) { merge.work.rule.globals[global] = value; }

TEST(Methods, linear_is_the_weighted_mean_or_sum) {
  Merge m = merge("linear", {kX, kY, kZ});
  expect_answer(
      m, {0.666667, -1.087500, 2.062500, 0.508333, 1.533333, 0.912500, -0.566667, -2.137500});
  set_global(m, math::kNormalizeGlobal, 0);
  expect_answer(m, {1.0, -1.631250, 3.093750, 0.762500, 2.3, 1.368750, -0.850000, -3.206250});
}

TEST(Methods, slerp_turns_by_the_angle) {
  Merge m = merge("slerp", {kX, kY});
  set_global(m, math::kTGlobal, 0.35);
  expect_answer(
      m, {0.588679, -1.236394, 2.150705, 0.686574, 1.479450, 0.738511, -0.441275, -2.114088});
}

TEST(Methods, passthrough_scales) {
  Merge m = merge("passthrough", {kX});
  m.work.rule.locals[0][0] = 0.5;
  expect_answer(m, {0.343750, -0.562500, 1.0, 0.468750, 0.593750, 0.406250, -0.062500, -1.125000});
}

TEST(Methods, task_arithmetic_adds_task_vectors) {
  expect_answer(merge("task_arithmetic", {kB, kX, kY}), {0.562500, -1.225000, 2.125000, 0.637500,
                                                         1.487500, 0.712500, -0.475000, -2.050000});
  Merge m = merge("task_arithmetic", {kB, kX, kY, kZ});
  set_global(m, math::kNormalizeGlobal, 1);
  set_global(m, math::kLambdaGlobal, 0.8);
  expect_answer(
      m, {0.633333, -1.070000, 2.050000, 0.456667, 1.526667, 0.880000, -0.553333, -2.110000});
}

TEST(Methods, ties_selects_elects_and_averages) {
  Merge m = merge("ties", {kB, kX, kY, kZ});
  set_density(m, 0.5);
  expect_answer(
      m, {0.875000, -1.375000, 2.312500, 0.937500, 1.187500, 1.312500, -0.861111, -2.278409});
  set_global(m, math::kNormalizeGlobal, 0);
  expect_answer(
      m, {0.687500, -1.150000, 2.125000, 0.662500, 1.312500, 1.031250, -0.825000, -2.306250});
  set_global(m, math::kNormalizeGlobal, 1);
  set_global(m, math::kRescaleGlobal, 1);
  expect_answer(
      m, {0.968750, -1.519231, 2.432692, 1.096154, 2.105769, 1.453125, -0.981303, -2.345389});
}

TEST(Methods, dare_without_a_drop_is_plain) {
  expect_answer(merge("dare_linear", {kB, kX, kY, kZ}), {0.750000, -1.131250, 2.093750, 0.637500,
                                                         1.550000, 0.993750, -0.600000, -2.206250});
  expect_answer(merge("dare_ties", {kB, kX, kY, kZ}), {0.800000, -1.225000, 2.125000, 0.662500,
                                                       1.737500, 1.068750, -0.825000, -2.306250});
}

// Methods that mergekit too rounds once: bf16 in and out, bit for bit.
TEST(Methods, bf16_results_are_rounded_once) {
  const auto expect = [](const Merge& m, const std::vector<float>& expected) {
    const auto backend = cpu_backend("");
    const Merged merged = apply(*backend, m, settle(*backend, m));
    EXPECT_TRUE(same(merged.output, Column(Dtype::bf16, expected)));
  };
  Merge linear = merge("linear", {kX, kY, kZ}, Dtype::bf16);
  expect(linear, {0.66796875F, -1.0859375F, 2.0625F, 0.5078125F, 1.53125F, 0.9140625F, -0.56640625F,
                  -2.140625F});
  set_global(linear, math::kNormalizeGlobal, 0);
  expect(linear, {1.0F, -1.6328125F, 3.09375F, 0.76171875F, 2.296875F, 1.3671875F, -0.8515625F,
                  -3.203125F});
  Merge slerp = merge("slerp", {kX, kY}, Dtype::bf16);
  set_global(slerp, math::kTGlobal, 0.35);
  expect(slerp, {0.58984375F, -1.234375F, 2.15625F, 0.6875F, 1.4765625F, 0.73828125F, -0.44140625F,
                 -2.109375F});
}

// ---- adapters: other votes, other divisor, other rescaling, through the same functors

// Task vectors without a base, thinned by magnitude, in the formulas of adapters.
struct Adapters {
  std::vector<std::vector<float>> vectors;
  std::vector<float> weights;
  double density = 1.0;
};

void expect_adapters(const Adapters& adapters, Vote vote, const Numbers& expected) {
  Merge m = merge("ties", adapters.vectors);
  m.work.rule.base = false;  // the first column becomes a source
  m.work.rule.sources = static_cast<std::int32_t>(adapters.vectors.size());
  set_density(m, adapters.density);
  math::Facts facts = settle(*cpu_backend(""), m);
  facts.formula = vote == Vote::none ? math::Formula::sum : math::Formula::consensus;
  facts.vote = vote;
  facts.divisor = vote == Vote::none ? Divisor::none : Divisor::count;
  facts.scalar[math::kLambda] = 1.0F;
  for (std::size_t s = 0; s < adapters.weights.size(); ++s) {
    facts.source[s].weight = adapters.weights[s];
    facts.source[s].gain = {vote == Vote::none ? adapters.weights[s] : 1.0F};
  }
  expect_answer(m, facts, expected);
}

const Adapters kThree = {{{3, -1, 0, 2}, {-3, -1, 0, 4}, {1, 5, 0, -9}}, {1.0F, 2.0F, 0.5F}};

TEST(Methods, adapters_are_elected_by_total_or_frequency_and_divided_by_the_count) {
  Adapters three = kThree;
  expect_adapters(three, Vote::total, {1.75, 2.5, 0, -4.5});
  expect_adapters(three, Vote::frequency, {1.75, -1.5, 0, 5});
  expect_adapters(three, Vote::none, {-2.5, -0.5, 0, 5.5});
  three.density = 0.5;
  expect_adapters(three, Vote::total, {3, 2.5, 0, -4.5});
  expect_adapters(three, Vote::frequency, {3, 2.5, 0, 5});
  expect_adapters(three, Vote::none, {-3, 2.5, 0, 5.5});
  three.density = 0.3;
  expect_adapters(three, Vote::none, {3, 0, 0, 3.5});
}

// Factors of two LoRA adapters, scales 2 and 0.5, with the weights that PEFT gives them.
const std::vector<float> kA1 = {1, -2, 3, 0.5F, 4, -1}, kA2 = {-4, 1, 2, 3, -0.5F, 1};
const std::vector<float> kB1 = {1, -3, 2, 0.5F}, kB2 = {2, 1, -1, 4};
const float kRoot2 = static_cast<float>(std::sqrt(2.0)),
            kRootHalf = static_cast<float>(std::sqrt(0.5));

TEST(Methods, adapters_are_thinned_by_magnitude) {
  for (const Vote vote : {Vote::total, Vote::frequency}) {
    expect_adapters({{kA1, kA2}, {kRoot2, kRootHalf}, 0.5}, vote,
                    {-2.8284271, -2.8284271, 2.8284271, 2.1213202, 5.6568542, 0});
    expect_adapters({{kB1, kB2}, {kRoot2, kRootHalf}, 0.5}, vote,
                    {1.4142135, -4.2426405, 2.8284271, 2.8284271});
    expect_adapters({{kA1, kA2}, {1, -1}, 0.5}, vote, {4, -2, 0.5, -3, 4, 0});
    expect_adapters({{kB1, kB2}, {1, 1}, 0.5}, vote, {2, -3, 2, 4});
  }
  expect_adapters({{kA1, kA2}, {kRoot2, kRootHalf}, 0.5}, Vote::none,
                  {-2.8284271, -2.8284271, 5.6568542, 2.1213202, 5.6568542, 0});
  expect_adapters({{kA1, kA2}, {1, -1}, 0.5}, Vote::none, {4, -2, 1, -3, 4, 0});
}

using Kept = std::vector<bool>;

// Masks as PEFT drew them, survivors divided by a density of one half.
template <class T, Vote vote>
Numbers dare(const std::vector<std::vector<float>>& vectors, const std::vector<Kept>& kept,
             const std::vector<float>& weights) {
  Numbers out;
  for (std::size_t e = 0; e < vectors[0].size(); ++e) {
    T alive[2], sum{0};
    float voice[2];
    for (std::size_t s = 0; s < 2; ++s) {
      const double factor = 1.0 / 0.5;
      const math::Gain gain =
          math::gain(vote == Vote::none ? factor * static_cast<double>(weights[s]) : factor);
      const bool keeps = kept[s][e];
      alive[s] = math::survivor<false>(static_cast<T>(vectors[s][e]), keeps, gain);
      voice[s] = math::survivor<false>(vectors[s][e], keeps, gain);
      sum += alive[s];
    }
    bool conflict = false;
    if constexpr (vote == Vote::none) {
      out.push_back(static_cast<double>(sum));
    } else {
      const math::Consensus<vote, Divisor::count, T, 0> formula{weights.data(), 2, 1.0F};
      out.push_back(static_cast<double>(formula(alive, voice, T{0}, conflict)));
    }
  }
  return out;
}

template <Vote vote>
void expect_dare(const std::vector<std::vector<float>>& vectors, const std::vector<Kept>& kept,
                 const std::vector<float>& weights, const Numbers& expected) {
  expect_near(dare<float, vote>(vectors, kept, weights), expected, 1e-6);
  expect_near(dare<double, vote>(vectors, kept, weights), expected, 1e-6);
}

TEST(Methods, adapters_are_thinned_at_random_and_divided_by_the_density) {
  const std::vector<Kept> a = {{0, 1, 1, 1, 0, 0}, {1, 1, 1, 0, 0, 1}};
  const std::vector<Kept> b = {{1, 1, 1, 0}, {1, 1, 0, 0}};
  const std::vector<float> equal = {kRoot2, kRootHalf};
  expect_dare<Vote::none>({kA1, kA2}, a, equal,
                          {-5.6568542, -4.2426405, 11.313708, 1.4142135, 0, 1.4142135});
  expect_dare<Vote::none>({kB1, kB2}, b, equal, {5.6568542, -7.0710673, 5.6568542, 0});
  expect_dare<Vote::none>({kA1, kA2}, a, {1, -1}, {8, -6, 2, 1, 0, -2});
  expect_dare<Vote::total>({kA1, kA2}, a, equal,
                           {-5.6568542, -5.6568542, 5.6568542, 1.4142135, 0, 1.4142135});
  expect_dare<Vote::frequency>({kA1, kA2}, a, equal,
                               {-5.6568542, 1.4142135, 5.6568542, 1.4142135, 0, 1.4142135});
  expect_dare<Vote::total>({kA1, kA2}, a, {1, -1}, {8, -4, 1, 1, 0, -2});
  expect_dare<Vote::frequency>({kA1, kA2}, a, {1, -1}, {8, -2, 1, 1, 0, -2});
  expect_dare<Vote::total>({kB1, kB2}, b, equal, {2.8284271, -8.485281, 5.6568542, 0});
  expect_dare<Vote::frequency>({kB1, kB2}, b, equal, {2.8284271, 1.4142135, 5.6568542, 0});
}

// ---- decisions

// The weighted consensus of one element whose survivors are these, on a base of 0.
template <Divisor divisor>
float consensus(const std::vector<float>& survivors, const std::vector<float>& weights,
                bool* conflict = nullptr) {
  bool found = false;
  const math::Consensus<Vote::weighted, divisor, float, 0> formula{
      weights.data(), static_cast<int>(weights.size()), 1.0F};
  const float value = formula(survivors.data(), survivors.data(), 0.0F, found);
  if (conflict != nullptr) *conflict = found;
  return value;
}

TEST(Methods, a_vote_of_zero_goes_to_plus) {
  bool conflict = false;
  EXPECT_EQ(consensus<Divisor::none>({-2.0F, 2.0F}, {1, 1}, &conflict), 2.0F);
  EXPECT_TRUE(conflict);
}

TEST(Methods, zeros_agree_with_nobody) {
  bool conflict = true;
  EXPECT_EQ(consensus<Divisor::weight>({0.0F, 3.0F, -0.0F}, {0.5F, 0.25F, 0.25F}, &conflict),
            12.0F);
  EXPECT_FALSE(conflict);
}

TEST(Methods, weights_that_cancel_divide_by_one) {
  EXPECT_EQ(consensus<Divisor::weight>({3.0F, 4.0F}, {0.5F, -0.5F}), 7.0F);
  EXPECT_EQ(consensus<Divisor::weight>({0.0F, 0.0F}, {0.5F, 0.5F}), 0.0F);
}

TEST(Methods, a_nan_reaches_the_result) {
  EXPECT_TRUE(std::isnan(consensus<Divisor::weight>({NAN, 1.0F}, {0.5F, 0.5F})));
  EXPECT_TRUE(std::isnan(consensus<Divisor::none>({-1.0F, NAN, 5.0F}, {1, 1, 1})));
}

TEST(Methods, what_a_mask_drops_is_plus_zero) {
  for (const float d : {-1.0F, NAN, INFINITY, -0.0F}) {
    EXPECT_EQ(math::bits(math::survivor<false>(d, false, {-2.0F})), 0U);
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

TEST(Methods, rescaled_survivors_are_rounded_once) {
  Random random(18);
  for (int i = 0; i < 100000; ++i) {
    const float d = normal(random);
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
  Merge m = merge("dare_linear", {kB, kX, kY, kZ});
  set_density(m, 0.5);
  m.work.rule.locals[1][math::kDensityLocal] = 1.0;
  math::Facts facts = math::prepare(m.work.rule, nullptr);
  EXPECT_EQ(math::needs(m.work.rule).folds, 6);
  const double folds[] = {3.0, 1.0, 5.0, 5.0, 7.0, 1e-8};
  math::conclude(m.work.rule, folds, facts);
  EXPECT_TRUE(facts.rescaled);
  EXPECT_EQ(facts.source[0].factor, 3.0F);
  EXPECT_NEAR(static_cast<double>(facts.source[0].gain.whole) +
                  static_cast<double>(facts.source[0].gain.rest),
              3.0 * static_cast<double>(0.6F), 1e-14);
  EXPECT_EQ(facts.source[1].factor, 1.0F);
  EXPECT_EQ(facts.source[1].gain.whole, 0.4F);
  EXPECT_FALSE(facts.source[1].gain.split());
  EXPECT_EQ(facts.source[2].factor, 1.0F);  // nothing left to restore
}

// ---- the list

TEST(Methods, selections_keep_the_truncated_share_and_at_least_one) {
  math::Rule rule = merge("ties", {kB, kX}).work.rule;
  const auto kept = [&](std::uint64_t elements, double density) {
    rule.elements = elements;
    rule.locals[0][math::kDensityLocal] = density;
    return math::kept(rule, 0);
  };
  EXPECT_EQ(kept(100, 0.29), 28U);
  EXPECT_EQ(kept(100, 0.57), 56U);
  EXPECT_EQ(kept(8, 0.01), 1U);
  EXPECT_EQ(kept(8, 0.0), 0U);
  EXPECT_EQ(kept(8, 1.0), 8U);
}

TEST(Methods, parameters_stand_where_the_indices_say) {
  const auto global = [](const math::Method& m, int index) {
    for (int p = 0; p < m.parameter_count; ++p) {
      if (m.parameters[p].scope == math::Scope::global && index-- == 0) {
        return std::string(m.parameters[p].name);
      }
    }
    return std::string();
  };
  for (int i = 0; i < math::kMethodCount; ++i) {
    const math::Method& m = math::method(i);
    EXPECT_EQ(math::find(m.name), i);
    if (m.base == math::Base::origin) {
      EXPECT_EQ(global(m, math::kNormalizeGlobal), "normalize") << m.name;
      EXPECT_EQ(global(m, math::kLambdaGlobal), "lambda") << m.name;
      if (m.rescale != math::Rescale::none) {
        EXPECT_EQ(global(m, math::kRescaleGlobal), "rescale") << m.name;
      }
    }
  }
  EXPECT_EQ(math::find("ties_"), -1);
  EXPECT_EQ(math::find("tie"), -1);
  EXPECT_EQ(math::find(""), -1);
}

TEST(Methods, a_mean_by_weights_that_cancel_is_refused) {
  Merge m = merge("linear", {kX, kY});
  m.work.rule.locals[0][0] = 0.5;
  m.work.rule.locals[1][0] = -0.5;
  EXPECT_NE(math::invalid(m.work.rule), nullptr);
  set_global(m, math::kNormalizeGlobal, 0);
  EXPECT_EQ(math::invalid(m.work.rule), nullptr);
  EXPECT_NE(math::invalid(merge("slerp", {kX, kY, kZ}).work.rule), nullptr);
  m.work.rule.locals[0][0] = std::nan("");
  EXPECT_NE(math::invalid(m.work.rule), nullptr);
}

}  // namespace
}  // namespace ingot::test
