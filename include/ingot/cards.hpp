// What people are told of the types of `ingot adapter merge`, beside the cards of the merge methods
// in math/methods/.
#pragma once

#include <string_view>

#include "ingot/methods.hpp"

namespace ingot::math {

// Lines are for 80 columns, two of them taken by an indent.
struct AdapterCard {
  std::string_view name;
  std::string_view summary;  // one line
  std::string_view formula;  // lines
  std::string_view when;     // when to use it, and when not; filled
  std::string_view link;     // of the paper; may be empty
  std::string_view recipe;   // an example: a command line
};

// The types of `ingot adapter merge --type`. A, B: the factors of an adapter; s: its scaling
// alpha / r; w: its weight; D = s B A: its update.
inline constexpr AdapterCard kAdapterCards[] = {
    {"cat", "the sum of the updates, exactly; ranks add up",
     "A = [w1 s1 A1; w2 s2 A2; ...]  one below the other\n"
     "B = [B1, B2, ...]              side by side",
     "The default: nothing is lost. The rank of the result is the sum of the ranks; servers limit "
     "it.",
     "", "ingot adapter merge a:0.7 b:0.3 -o out"},
    {"svd", "the sum of the updates at a smaller rank, with the least error",
     "B A = the best approximation of rank --rank to w1 D1 + w2 D2 + ...",
     "To get the sum at the rank of one adapter. The report says what the factors miss.", "",
     "ingot adapter merge a:0.7 b:0.3 --type svd --rank 16 -o out"},
    {"linear", "weighted sum of the factors",
     "A = sum of sign(w s) sqrt|w s| A    B = sum of sqrt|w s| B",
     "As PEFT's default. Products of one adapter's A with another's B are in the result too, so "
     "that it is not the sum of the updates: cat and svd are. Ranks must be equal.",
     "", "ingot adapter merge a:0.7 b:0.3 --type linear -o out"},
    {"ties", "as ties of models, on the factors",
     "1. of each factor the share --density of the largest entries is kept\n"
     "2. the sign of the sum (--majority-sign total) or count (frequency) is elected\n"
     "3. mean of the entries with that sign, weighted",
     "Adapters whose changes contradict each other. Ranks must be equal; ties_svd needs no equal "
     "ranks.",
     "https://arxiv.org/abs/2306.01708",
     "ingot adapter merge a b --type ties --density 0.2 -o out"},
    {"ties_svd", "as ties, on the updates; then the best factors of a rank",
     "As ties on D1, D2, ..., then the best approximation of rank --rank",
     "As ties, with the true updates: slower, and ranks may differ.",
     "https://arxiv.org/abs/2306.01708",
     "ingot adapter merge a b --type ties_svd --density 0.2 --rank 16 -o out"},
    {"dare_linear", "factors with entries dropped at random, then as linear",
     "Each entry is kept with probability --density and divided by it;\n"
     "then as linear",
     "Many adapters with small changes. --seed decides what is dropped.", kDareLink,
     "ingot adapter merge a b --type dare_linear --density 0.5 -o out"},
    {"dare_linear_svd", "as dare_linear, on the updates; then the best factors of a rank",
     "As dare_linear on D1, D2, ..., then the best approximation of rank --rank",
     "As dare_linear, with the true updates.", kDareLink,
     "ingot adapter merge a b --type dare_linear_svd --density 0.5 -o out"},
    {"dare_ties", "factors with entries dropped at random, then as ties",
     "Each entry is kept with probability --density and divided by it; then the\n"
     "election and the mean of ties",
     "As ties, with entries chosen at random and not by size.", kDareLink,
     "ingot adapter merge a b --type dare_ties --density 0.5 -o out"},
    {"dare_ties_svd", "as dare_ties, on the updates; then the best factors of a rank",
     "As dare_ties on D1, D2, ..., then the best approximation of rank --rank",
     "As dare_ties, with the true updates.", kDareLink,
     "ingot adapter merge a b --type dare_ties_svd --density 0.5 -o out"},
    {"magnitude_prune", "the largest entries of the factors, then as linear",
     "Of each factor the share --density of the largest entries is kept;\n"
     "then as linear",
     "To thin adapters before they are added.", "",
     "ingot adapter merge a b --type magnitude_prune --density 0.5 -o out"},
    {"magnitude_prune_svd", "as magnitude_prune, on the updates; then the best factors of a rank",
     "As magnitude_prune on D1, D2, ..., then the best approximation of rank --rank",
     "As magnitude_prune, with the true updates.", "",
     "ingot adapter merge a b --type magnitude_prune_svd --density 0.5 -o out"},
};

// Merge methods of mergekit 0.1.5 that ingot does not have, and the one of ingot's that is nearest.
struct AbsentMethod {
  std::string_view name, near;
};

inline constexpr AbsentMethod kAbsentMethods[] = {
    {"breadcrumbs", "task_arithmetic"},
    {"breadcrumbs_ties", "ties"},
    {"della", "dare_ties"},
    {"della_linear", "dare_linear"},
    {"nuslerp", "slerp"},
    {"multislerp", "slerp"},
    {"karcher", "slerp"},
    {"sce", "ties"},
    {"ram", "ties"},
    {"ramplus_tl", "ties"},
    {"model_stock", "linear"},
    {"nearswap", "slerp"},
    {"arcee_fusion", "ties"},
};

// The entry of a name among the absent methods, null if ingot has the method or nobody does.
[[nodiscard]] inline const AbsentMethod* absent_method(std::string_view name) {
  for (const AbsentMethod& absent : kAbsentMethods) {
    if (absent.name == name && find(absent.name.data()) < 0) return &absent;
  }
  return nullptr;
}

}  // namespace ingot::math
