// Sign election and disjoint mean (Yadav et al., "TIES-Merging: resolving interference when merging
// models", 2023), in the two meanings people know.
//
//   terms     y_i as in linear.hpp; where voices are unweighted y_i = d_i' * w_i, rounded, d_i'
//   what
//             the mask left of the task vector, rescaled
//   vote      S = 0; in file order S += y_i (weighted), d_i' (total), sign of d_i' (frequency);
//             the majority is + if S >= 0, else -
//   agreement the voting term is not zero and not of the other sign; a NaN agrees with everybody,
//   so
//             that it reaches the result
//   mean      M = 0; M += y_i in file order over the agreeing sources
//             V = sum of their weights in f32, 1 where exactly zero (Divisor::weight),
//             or their number, at least 1 (Divisor::count);  M / V
//   result    lambda * M, rounded, + b
//
// Recipes vote weighted and divide by weights (if normalize); adapters vote total or frequency and
// divide by the count. Votes, agreement and V are f32 decisions for every T.
#pragma once

#include "ingot/math/linear.hpp"

namespace ingot::math {

// What a source that votes with `voice` puts in the ballot box.
template <Vote vote>
INGOT_HD float ballot(float voice) {
  if (vote != Vote::frequency) return voice;
  return voice > 0.0F ? 1.0F : voice < 0.0F ? -1.0F : 0.0F;
}

// The term of a survivor: where the vote is weighted, its gain holds the weight.
template <Vote vote, class T>
INGOT_HD T term(T survivor, float weight) {
  return vote == Vote::weighted ? survivor : survivor * static_cast<T>(weight);
}

// The majority as a mask for sign bits: those who agree have their sign clear after the flip.
INGOT_HD std::uint32_t majority(float votes) { return votes >= 0.0F ? 0u : 0x80000000u; }

// A voice as the majority hears it: positive agrees, negative opposes.
INGOT_HD float heard(float voice, std::uint32_t majority) {
  return from_bits(bits(voice) ^ majority);
}
INGOT_HD bool agrees(float heard) { return !(heard <= 0.0F); }
INGOT_HD bool opposes(float heard) { return heard < 0.0F; }

// What the divisor grows by when a source agrees.
template <Divisor divisor>
INGOT_HD float share(float weight) {
  return divisor == Divisor::count ? 1.0F : weight;
}

// The mean from its two sums.
template <Divisor divisor, class T>
INGOT_HD T mean(T sum, float shares) {
  if (divisor == Divisor::none) return sum;
  if (divisor == Divisor::weight) return sum / static_cast<T>(shares == 0.0F ? 1.0F : shares);
  return sum / static_cast<T>(shares >= 1.0F ? shares : 1.0F);
}

// The whole formula for one element. K sources known at compile time, or K = 0 and `sources` of
// them.
template <Vote vote, Divisor divisor, class T, int K>
struct Consensus {
  const float* weight;
  int sources;
  float lambda;

  // `survivor` in T, `voice` the same numbers as f32 arithmetic has them. Sets `conflict` if a
  // voice opposes the majority.
  INGOT_HD T operator()(const T* survivor, const float* voice, T base, bool& conflict) const {
    const int k = K > 0 ? K : sources;
    // The first voice opens the vote: adding it to zero could only change the sign of a zero.
    float votes = k > 0 ? ballot<vote>(voice[0]) : 0.0F;
    INGOT_UNROLL
    for (int i = 1; i < k; ++i) votes += ballot<vote>(voice[i]);
    const std::uint32_t side = majority(votes);
    T sum{0};
    float shares = 0.0F;
    bool opposed = false;
    INGOT_UNROLL
    for (int i = 0; i < k; ++i) {
      const float opinion = heard(voice[i], side);
      sum = agrees(opinion) ? sum + term<vote>(survivor[i], weight[i]) : sum;
      shares = agrees(opinion) ? shares + share<divisor>(weight[i]) : shares;
      opposed = opposed | opposes(opinion);
    }
    conflict = opposed;
    return land(mean<divisor>(sum, shares), lambda, base);
  }
};

}  // namespace ingot::math
