// The selection machine against a stable sort, over data that makes it take every path.
#include "measure/select.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include "ingot/math/key.hpp"
#include "ingot/methods.hpp"
#include "support.hpp"

namespace ingot::test {
namespace {

// What is kept of each source, in facts of TIES.
using Kept = std::vector<math::Trim::Facts>;

constexpr int kThresholds = 0;  // the first pass of TIES

math::Rule rule_of(std::uint64_t elements, const std::vector<double>& densities) {
  math::Rule rule;
  rule.method = math::kIndex<math::Ties>;
  rule.base = true;
  rule.sources = static_cast<std::int32_t>(densities.size());
  rule.elements = elements;
  math::set_defaults(rule);
  for (std::size_t s = 0; s < densities.size(); ++s) {
    (void)math::set_local(rule, static_cast<int>(s), "density", densities[s]);
  }
  return rule;
}

Kept kept_of(const math::Facts& facts) {
  const auto known = facts.known<math::Ties::Lens, math::Ties::Combine>();
  return {known.lens, known.lens + known.sources};
}

Kept by_machine(Backend& backend, const Work& work, const std::vector<std::vector<float>>& inputs,
                bool sparse, std::vector<Selector::Step>* steps = nullptr) {
  math::Facts facts = math::begin(work.rule);
  Selector selector(work.rule, kThresholds, facts, sparse);
  while (selector.step() != Selector::Step::done) {
    if (steps != nullptr) steps->push_back(selector.step());
    for (const std::uint32_t c : selector.chunks()) {
      std::vector<const std::byte*> at;
      for (const auto& x : inputs)
        at.push_back(reinterpret_cast<const std::byte*>(x.data() + c * kChunk));
      Chunk chunk;
      chunk.work = &work;
      chunk.first = c * kChunk;
      chunk.count = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(kChunk, work.rule.elements - chunk.first));
      chunk.inputs = at.data();
      chunk.facts = &facts;
      selector.visit(backend, chunk);
    }
    selector.advance();
  }
  selector.conclude(facts);
  return kept_of(facts);
}

// Number of elements kept that a stable sort by falling magnitude would not keep, or the other way.
std::uint64_t disagreement(const std::vector<float>& base, const std::vector<float>& x,
                           std::uint64_t k, const math::Trim::Facts& s) {
  std::vector<std::uint32_t> keys(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) keys[i] = math::key(x[i] - base[i]);
  std::vector<std::size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return keys[a] > keys[b]; });
  std::vector<bool> sorted(x.size());
  for (std::size_t i = 0; i < k; ++i) sorted[order[i]] = true;
  std::uint64_t wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const bool kept = math::Trim::keeps(s, x[i] - base[i], i);
    wrong += kept != sorted[i] ? 1U : 0U;
  }
  return wrong;
}

struct Case {
  const char* name;
  float (*value)(Random&, std::size_t index, std::size_t n);
};

float gauss(Random& random) {
  double sum = 0;
  for (int i = 0; i < 12; ++i) sum += random.uniform();
  return static_cast<float>(sum - 6);
}

const Case kCases[] = {
    {"normal", [](Random& r, std::size_t, std::size_t) { return gauss(r); }},
    {"coarse",
     [](Random& r, std::size_t, std::size_t) {  // few distinct values, as bf16 deltas have
       return static_cast<float>(static_cast<int>(gauss(r) * 4)) / 4;
     }},
    {"equal", [](Random& r, std::size_t, std::size_t) { return r.below(2) == 0 ? 0.5F : -0.5F; }},
    {"zeros", [](Random&, std::size_t, std::size_t) { return 0.0F; }},
    {"rising", [](Random&, std::size_t i, std::size_t) { return static_cast<float>(i); }},
    // All large values in a place no run of the sample touches often: the bracket misses.
    {"cluster",
     [](Random& r, std::size_t i, std::size_t n) {
       return i > n / 2 && i < n / 2 + n / 50 ? 1000.0F + gauss(r) : gauss(r) * 1e-3F;
     }},
    {"special",
     [](Random& r, std::size_t i, std::size_t) {
       if (i % 1000 == 7) return std::numeric_limits<float>::infinity();
       if (i % 1000 == 9) return std::numeric_limits<float>::quiet_NaN();
       return i % 3 == 0 ? -0.0F : gauss(r) * 1e-40F;
     }},
};

TEST(Selector, KeepsWhatAStableSortKeeps) {
  const auto backend = cpu_backend("");
  for (const Case& c : kCases) {
    for (const std::size_t n :
         {std::size_t{1}, std::size_t{7}, std::size_t{1000}, std::size_t{40000},
          std::size_t{kChunk + 3}, std::size_t{3 * kChunk - 1}}) {
      Random random(n);
      std::vector<std::vector<float>> inputs(3, std::vector<float>(n));
      for (std::size_t s = 1; s < 3; ++s) {
        for (std::size_t i = 0; i < n; ++i) inputs[s][i] = c.value(random, i, n);
      }
      Work work;
      work.rule = rule_of(n, {0.2, 0.77});
      work.inputs.assign(3, Dtype::f32);
      work.output = Dtype::f32;
      const auto result = by_machine(*backend, work, inputs, n > kChunk);
      for (int s = 0; s < 2; ++s) {
        const std::uint64_t k = math::kept(work.rule, s);
        EXPECT_EQ(disagreement(inputs[0], inputs[static_cast<std::size_t>(s) + 1], k,
                               result[static_cast<std::size_t>(s)]),
                  0)
            << c.name << ", n " << n << ", source " << s;
      }
    }
  }
}

TEST(Selector, FindsTheThresholdByCountingWhenTheSampleMisleads) {
  const auto backend = cpu_backend("");
  // Sparse sampling sees chunks 0, 8, ...: the others are another world.
  const std::size_t n = 9 * kChunk;
  std::vector<std::vector<float>> inputs(2, std::vector<float>(n));
  Random random(1);
  for (std::size_t i = 0; i < n; ++i) {
    const bool seen = (i / kChunk) % 8 == 0;
    inputs[1][i] = static_cast<float>(random.uniform()) * (seen ? 1.0F : 1e-6F);
  }
  Work work;
  work.rule = rule_of(n, {0.5});
  work.inputs.assign(2, Dtype::f32);
  std::vector<Selector::Step> steps;
  const auto result = by_machine(*backend, work, inputs, true, &steps);
  EXPECT_NE(std::find(steps.begin(), steps.end(), Selector::Step::fine), steps.end());
  EXPECT_EQ(disagreement(inputs[0], inputs[1], n / 2, result[0]), 0);
}

TEST(Selector, HasNothingToDoAtDensityZeroAndOne) {
  const math::Rule rule = rule_of(100000, {1, 0});
  math::Facts facts = math::begin(rule);
  const Selector selector(rule, kThresholds, facts, false);
  EXPECT_EQ(selector.step(), Selector::Step::done);
  selector.conclude(facts);
  const Kept kept = kept_of(facts);
  EXPECT_TRUE(math::Trim::all(kept[0]));
  EXPECT_FALSE(math::Trim::keeps(kept[1], std::numeric_limits<float>::infinity(), 0));
}

}  // namespace
}  // namespace ingot::test
