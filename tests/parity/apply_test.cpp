// The hot loops give the bytes of evaluate(), the definition, and measure what the definitions say,
// for every method on every instruction set.
#include "arithmetic.hpp"

namespace ingot::test {
namespace {

constexpr std::uint64_t kEdges[] = {1, 7, 33, 255, 257, 1023, 1025, 16383, 16385};

// Inputs for a method: about `sources`, and the base where it has one.
int models_of(const math::Method& m, int sources, bool base = true) {
  const bool apart =
      m.card.base == math::Base::origin || (m.card.base == math::Base::optional && base);
  return std::clamp(sources, std::max(m.card.least, apart ? 0 : 1), m.card.most) + (apart ? 1 : 0);
}

// Parameters away from their defaults, one after the other, as far as the rule stays sound: masks
// that drop most or nothing, weights of both signs, switches the other way.
void vary(Merge& merge, int variant) {
  math::Rule& rule = merge.work.rule;
  static constexpr double kShares[] = {0.35, 1.0, 0.01};
  for (const math::Parameter& p : math::method(rule.method).parameters) {
    const auto clamped = [&](double x) { return std::clamp(x, p.low, p.high); };
    const math::Rule before = rule;
    if (p.scope == math::Scope::global) {
      if (variant == 0) continue;
      const double now = rule.globals[math::global_place(math::method(rule.method), p.name)];
      const double next = p.kind == math::Kind::boolean   ? 1.0 - now
                          : p.kind == math::Kind::integer ? now + 1.0
                                                          : 0.8 * now;
      (void)math::set_global(rule, p.name, clamped(next));
    } else {
      for (int s = 0; s < rule.sources; ++s) {
        const bool share = p.low == 0.0 && p.high == 1.0;
        if (share) {
          (void)math::set_local(rule, s, p.name, kShares[s % 3]);
        } else if (variant == 1 && (s == 1 || rule.sources == 1)) {
          (void)math::set_local(rule, s, p.name, clamped(-0.7));
        }
      }
    }
    if (math::invalid(rule) != nullptr) rule = before;
  }
}

// Calls body(method) for each method of the list.
template <class Body>
void each_method(Body body) {
  for (const math::Method& m : math::kMethods) {
    SCOPED_TRACE(m.card.name);
    body(m);
    if (testing::Test::HasFailure()) return;
  }
}

// All that a method says was measured, and the facts of lines, to the bit; every NaN is the same.
std::vector<std::uint64_t> told(const math::Rule& rule, const Measurements& known) {
  struct Listener : math::Teller {
    std::vector<std::uint64_t> heard;
    void hear(double x) {
      std::uint64_t word;
      std::memcpy(&word, &x, sizeof word);
      heard.push_back(std::isnan(x) ? ~std::uint64_t{0} : word);
    }
    bool number(const char*, int, int, double& x) override {
      hear(x);
      return true;
    }
    bool key(const char*, int, std::int32_t& key) override {
      heard.push_back(static_cast<std::uint32_t>(key));
      return true;
    }
    bool count(const char*, int, std::uint64_t& count) override {
      heard.push_back(count);
      return true;
    }
  } listener;
  math::Facts facts = known.facts;
  EXPECT_TRUE(math::method(rule.method).tell(rule, facts, listener));
  for (const double fact : known.lines) listener.hear(fact);
  return listener.heard;
}

class Apply : public EveryIsa {
 protected:
  void check(const Merge& merge, std::size_t skew) {
    ASSERT_EQ(math::invalid(merge.work.rule), nullptr);
    const std::optional<Measurements> known = by_definition(merge);
    if (!known) return;
    const Merged expected = evaluate_all(merge, *known);
    const Merged found = apply(*backend_, merge, *known, skew);
    EXPECT_TRUE(same(found.output, expected.output));
    EXPECT_TRUE(same(found.tally, expected.tally));
  }
};

TEST_P(Apply, equals_evaluate_for_every_edge_size) {
  each_method([&](const math::Method& m) {
    std::size_t turn = 0;
    for (const std::uint64_t count : kEdges) {
      const Dtype dtype = kFloats[(turn++ + static_cast<std::size_t>(&m - math::kMethods.data())) %
                                  std::size(kFloats)];
      SCOPED_TRACE(std::string(name(dtype)) + " " + std::to_string(count));
      Merge merge =
          merge_of(m.card.name, family(dtype, count, models_of(m, 3), count, Flavour::plain));
      vary(merge, static_cast<int>(turn % 2));
      check(merge, 0);
    }
  });
}

TEST_P(Apply, equals_evaluate_for_every_dtype_and_variant) {
  each_method([&](const math::Method& m) {
    for (const Dtype dtype : kFloats) {
      for (const int variant : {0, 1}) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + std::to_string(variant));
        Merge merge =
            merge_of(m.card.name, family(dtype, 1025, models_of(m, 4), 31, Flavour::plain));
        vary(merge, variant);
        check(merge, 0);
      }
    }
  });
}

TEST_P(Apply, equals_evaluate_over_rows_and_columns) {
  each_method([&](const math::Method& m) {
    for (const std::uint64_t width : {1u, 5u, 64u, 700u, 3000u}) {
      for (const bool base : {true, false}) {
        for (const int variant : {0, 1}) {
          SCOPED_TRACE(std::to_string(width) + " wide, variant " + std::to_string(variant));
          const std::uint64_t count = width * (width < 64 ? 300 : 7);
          Merge merge = merge_of(
              m.card.name, family(Dtype::bf16, count, models_of(m, 3, base), width, Flavour::plain),
              width, base);
          vary(merge, variant);
          check(merge, 1);
        }
      }
    }
  });
}

TEST_P(Apply, equals_evaluate_over_two_chunks) {
  each_method([&](const math::Method& m) {
    Merge merge = merge_of(m.card.name,
                           family(Dtype::bf16, kChunk + 515, models_of(m, 2), 77, Flavour::plain));
    vary(merge, 0);
    // By the engine: the definitions take long for so many elements.
    const Measurements known = settle(*backend_, merge);
    const Merged expected = evaluate_all(merge, known);
    const Merged found = apply(*backend_, merge, known);
    EXPECT_TRUE(same(found.output, expected.output));
    EXPECT_TRUE(same(found.tally, expected.tally));
  });
}

TEST_P(Apply, equals_evaluate_for_special_values) {
  each_method([&](const math::Method& m) {
    for (const Dtype dtype : kFloats) {
      for (const int variant : {0, 1}) {
        SCOPED_TRACE(std::string(name(dtype)) + " " + std::to_string(variant));
        Merge merge =
            merge_of(m.card.name, family(dtype, 3000, models_of(m, 3), 5, Flavour::special));
        merge.work.overflow = variant == 0 ? math::Overflow::saturate : math::Overflow::propagate;
        vary(merge, variant);
        check(merge, 0);
      }
    }
  });
}

TEST_P(Apply, equals_evaluate_for_every_number_of_sources) {
  each_method([&](const math::Method& m) {
    int tried = 0;
    for (const int sources : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64}) {
      const int models = models_of(m, sources);
      const bool apart = m.card.base == math::Base::origin || m.card.base == math::Base::optional;
      if (models - (apart ? 1 : 0) != sources) continue;  // not a number that it takes
      SCOPED_TRACE(std::to_string(sources) + " sources");
      Merge merge = merge_of(m.card.name, family(Dtype::f16, 1500, models, 9, Flavour::special));
      if (math::invalid(merge.work.rule) != nullptr) continue;
      vary(merge, 0);
      check(merge, 0);
      ++tried;
    }
    EXPECT_GT(tried, 0);
  });
}

TEST_P(Apply, equals_evaluate_for_mixed_dtypes_at_element_alignment) {
  each_method([&](const math::Method& m) {
    for (const std::size_t skew : {std::size_t{1}, std::size_t{3}, std::size_t{5}}) {
      SCOPED_TRACE("skew " + std::to_string(skew));
      std::vector<Column> inputs;
      const int models = models_of(m, 3);
      for (int i = 0; i < models; ++i) {
        const Dtype dtype = kFloats[(static_cast<std::size_t>(i) + skew) % std::size(kFloats)];
        inputs.push_back(
            family(dtype, 3333, models, 21, Flavour::plain)[static_cast<std::size_t>(i)]);
      }
      Merge merge = merge_of(m.card.name, std::move(inputs));
      merge.work.output = kFloats[skew % std::size(kFloats)];
      vary(merge, 0);
      check(merge, skew);
    }
  });
}

// What passes find through the loops, the engine and its fixed shapes.
TEST_P(Apply, measures_what_the_definitions_say) {
  each_method([&](const math::Method& m) {
    for (const std::uint64_t width : {0u, 1u, 7u, 300u, 2600u, 20000u}) {
      for (const int variant : {0, 1}) {
        for (const Flavour flavour : {Flavour::plain, Flavour::special}) {
          SCOPED_TRACE(std::to_string(width) + " wide, variant " + std::to_string(variant) +
                       (flavour == Flavour::plain ? ", plain" : ", special"));
          const std::uint64_t count = width == 0 ? 33001
                                                 : width * (width < 100    ? 501
                                                            : width < 5000 ? 13
                                                                           : 3);
          const int models = models_of(m, variant == 0 ? 3 : 5, variant == 0);
          Merge merge = merge_of(m.card.name, family(Dtype::f16, count, models, width, flavour),
                                 width, variant == 0);
          vary(merge, variant);
          const std::optional<Measurements> expected = by_definition(merge);
          if (!expected) {
            EXPECT_THROW(settle(*backend_, merge), Error);
            continue;
          }
          const Measurements found = settle(*backend_, merge, 1);
          EXPECT_EQ(told(merge.work.rule, found), told(merge.work.rule, *expected));
          const Merged after = evaluate_all(merge, found);
          const Merged wanted = evaluate_all(merge, *expected);
          EXPECT_TRUE(same(after.output, wanted.output));
          EXPECT_TRUE(same(after.tally, wanted.tally));
        }
      }
    }
  });
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
