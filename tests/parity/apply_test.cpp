// The hot loops give the bytes of evaluate(), the definition, on every instruction set.
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

constexpr const char* kMethodNames[] = {"linear",      "slerp",     "task_arithmetic", "ties",
                                        "dare_linear", "dare_ties", "passthrough"};

constexpr std::uint64_t kEdges[] = {1,   7,    8,    31,   32,    33,    255,  256,
                                    257, 1023, 1024, 1025, 16383, 16384, 16385};

int models_of(const std::string& method) {
  return method == "slerp" ? 2 : method == "passthrough" ? 1 : 4;
}

// Values that reach every path: a mask, weights of both signs, a scale.
void vary(Merge& merge, int variant) {
  math::Rule& rule = merge.work.rule;
  const math::Method& m = math::method(rule.method);
  if (m.formula == math::Formula::slerp) rule.globals[math::kTGlobal] = 0.35;
  if (m.formula == math::Formula::scale) rule.locals[0][0] = variant == 0 ? 1.0 : -0.75;
  if (m.formula == math::Formula::linear) rule.globals[0] = variant == 0 ? 1.0 : 0.0;
  if (m.base != math::Base::origin) return;
  static constexpr double kDensities[] = {0.35, 1.0, 0.01};
  for (int s = 0; s < rule.sources; ++s) rule.locals[s][math::kDensityLocal] = kDensities[s % 3];
  if (variant == 1) {
    rule.globals[math::kNormalizeGlobal] = 1.0 - rule.globals[math::kNormalizeGlobal];
    rule.globals[math::kLambdaGlobal] = 0.8;
    if (m.mask != math::Mask::none) {
      rule.globals[math::kRescaleGlobal] = 1.0 - rule.globals[math::kRescaleGlobal];
    }
    if (rule.sources > 1) rule.locals[1][math::kWeightLocal] = -0.7;
  }
}

class Apply : public EveryIsa {
 protected:
  void check(const Merge& merge, std::size_t skew) {
    const math::Facts facts = settle(*backend_, merge, skew);
    const Merged expected = evaluate_all(merge, facts);
    const Merged found = apply(*backend_, merge, facts, skew);
    EXPECT_TRUE(same(found.output, expected.output));
    if (math::method(merge.work.rule.method).base == math::Base::origin) {
      EXPECT_TRUE(same(found.tally, expected.tally));
    } else {
      EXPECT_EQ(found.tally.change, expected.tally.change);
    }
  }
};

TEST_P(Apply, equals_evaluate_for_every_method_dtype_and_edge_size) {
  for (const char* method : kMethodNames) {
    for (const Dtype dtype : kFloats) {
      for (const std::uint64_t count : kEdges) {
        SCOPED_TRACE(std::string(method) + " " + std::string(name(dtype)) + " " +
                     std::to_string(count));
        const int variant = static_cast<int>(count % 2);
        Merge merge =
            merge_of(method, family(dtype, count, models_of(method), count, Flavour::plain));
        vary(merge, variant);
        check(merge, 0);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(Apply, equals_evaluate_over_two_chunks) {
  for (const char* method : kMethodNames) {
    SCOPED_TRACE(method);
    Merge merge =
        merge_of(method, family(Dtype::bf16, kChunk + 3, models_of(method), 5, Flavour::plain));
    vary(merge, 0);
    check(merge, 0);
  }
}

TEST_P(Apply, equals_evaluate_for_nan_infinity_subnormals_and_signed_zeros) {
  for (const char* method : kMethodNames) {
    for (const Dtype dtype : kFloats) {
      for (const math::Overflow overflow : {math::Overflow::saturate, math::Overflow::propagate}) {
        for (int variant = 0; variant < 2; ++variant) {
          SCOPED_TRACE(std::string(method) + " " + std::string(name(dtype)));
          Merge merge =
              merge_of(method, family(dtype, 5000, models_of(method), 77, Flavour::special));
          merge.work.overflow = overflow;
          vary(merge, variant);
          // Folds over infinities make every scalar NaN; finite ones show more.
          math::Facts facts = settle(*backend_, merge);
          for (int s = 0; s < facts.sources; ++s) {
            if (std::isnan(facts.source[s].gain.whole)) facts.source[s].gain = math::gain(1.3);
          }
          if (facts.formula == math::Formula::slerp) facts.scalar[math::kNear] = 0.75F;
          if (facts.formula == math::Formula::slerp) facts.scalar[math::kFar] = 0.375F;
          const Merged expected = evaluate_all(merge, facts);
          const Merged found = apply(*backend_, merge, facts);
          EXPECT_TRUE(same(found.output, expected.output));
          EXPECT_EQ(found.tally.change, expected.tally.change);
          EXPECT_EQ(found.tally.conflicts, expected.tally.conflicts);
        }
      }
    }
  }
}

TEST_P(Apply, equals_evaluate_for_any_number_of_sources) {
  for (const char* method : {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"}) {
    for (const int sources : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64}) {
      SCOPED_TRACE(std::string(method) + " " + std::to_string(sources));
      const int models = sources + (std::string(method) == "linear" ? 0 : 1);
      Merge merge = merge_of(method, family(Dtype::f16, 1500, models, 9, Flavour::special));
      vary(merge, 0);
      check(merge, 0);
    }
  }
  for (const char* method : {"task_arithmetic", "ties", "dare_ties"}) {  // the base alone
    check(merge_of(method, family(Dtype::bf16, 1500, 1, 9, Flavour::plain)), 0);
  }
}

TEST_P(Apply, equals_evaluate_for_mixed_dtypes_at_element_alignment) {
  for (const char* method : kMethodNames) {
    for (const std::size_t skew : {std::size_t{1}, std::size_t{3}, std::size_t{5}}) {
      SCOPED_TRACE(std::string(method) + " " + std::to_string(skew));
      std::vector<Column> inputs;
      for (int m = 0; m < models_of(method); ++m) {
        const Dtype dtype = kFloats[(static_cast<std::size_t>(m) + skew) % std::size(kFloats)];
        inputs.push_back(family(dtype, 3333, models_of(method), 21,
                                Flavour::plain)[static_cast<std::size_t>(m)]);
      }
      Merge merge = merge_of(method, std::move(inputs));
      merge.work.output = kFloats[skew % std::size(kFloats)];
      vary(merge, 0);
      check(merge, skew);
    }
  }
}

TEST_P(Apply, equals_evaluate_for_adapter_votes) {
  for (const math::Vote vote : {math::Vote::total, math::Vote::frequency}) {
    for (const int sources : {1, 3, 8, 11}) {
      for (const Flavour flavour : {Flavour::plain, Flavour::special}) {
        Merge merge = merge_of("dare_ties", family(Dtype::f32, 2100, sources + 1, 4, flavour));
        merge.work.rule.base = false;  // adapters have none: the first column becomes a source
        merge.work.rule.sources = sources + 1;
        set_density(merge, 0.5);
        merge.work.rule.locals[sources][math::kWeightLocal] = -2.0;
        math::Facts facts = math::prepare(merge.work.rule, nullptr);
        facts.vote = vote;
        facts.divisor = math::Divisor::count;
        for (int s = 0; s < facts.sources; ++s) facts.source[s].gain = math::gain(1 / 0.3);
        const Merged expected = evaluate_all(merge, facts);
        const Merged found = apply(*backend_, merge, facts);
        EXPECT_TRUE(same(found.output, expected.output));
        EXPECT_TRUE(same(found.tally, expected.tally));
      }
    }
  }
}

TEST_P(Apply, keeps_at_most_the_cut_among_ties) {
  // All differences equal: the selection is decided by the cut alone, wherever it falls in a step.
  Column base(Dtype::bf16, std::vector<float>(5000, 1.0F));
  Column tuned(Dtype::bf16, std::vector<float>(5000, 1.5F));
  for (const double density : {0.0002, 0.2, 0.2048, 0.20479, 0.5, 0.9998}) {
    Merge merge = merge_of("ties", {base, tuned});
    set_density(merge, density);
    const std::uint64_t k = math::kept(merge.work.rule, 0);
    const Merged found = apply(*backend_, merge, settle(*backend_, merge));
    EXPECT_EQ(found.tally.kept[0], k);
    for (std::uint64_t i = 0; i < 5000; ++i) {
      ASSERT_EQ(found.output.at(i), i < k ? 1.5F : 1.0F) << i << " at density " << density;
    }
  }
}

INGOT_EVERY_ISA(Apply);

}  // namespace
}  // namespace ingot::test
