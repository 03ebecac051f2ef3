// What people are told of each merge method: `ingot methods` and `ingot explain NAME`.
//
// A method's ranges and defaults are in methods.hpp; here are its words. The list is complete by a
// check of the compiler: a method without a card does not build.
#pragma once

#include <iterator>
#include <string_view>

#include "ingot/math/methods.hpp"

namespace ingot::math {

// Lines are for 80 columns, two of them taken by an indent.
struct Card {
  std::string_view name;
  std::string_view summary;  // one line
  std::string_view formula;  // for each element; lines
  std::string_view when;     // when to use it, and when not; filled
  std::string_view link;     // of Method::paper; may be empty
  std::string_view recipe;   // an example; of adapter types a command line
};

// What a parameter does. One meaning for all methods that have it.
struct ParameterCard {
  std::string_view name, meaning;
};

inline constexpr std::string_view kDareLink = "https://arxiv.org/abs/2311.03099";

inline constexpr Card kCards[] = {
    {"linear", "weighted mean of the models",
     "out = (w1 x1 + w2 x2 + ...) / (w1 + w2 + ...)\n"
     "With normalize: false the sum is not divided.",
     "Fine-tunes of one base on the same task with other seeds or settings (a model soup), or any "
     "models of one shape as a first try. No base model is needed.",
     "https://arxiv.org/abs/2203.05482",
     "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.7}\n"
     "  - model: b\n    parameters: {weight: 0.3}"},
    {"slerp", "interpolation of two models along an arc",
     "out = sin((1-t) p) / sin(p) * x0 + sin(t p) / sin(p) * x1\n"
     "x0 is the base, p the angle between the two tensors, taken as vectors.\n"
     "Tensors that are nearly parallel are mixed as (1-t) x0 + t x1.",
     "Exactly two models. It keeps the length of the weights where a plain mean would shrink them. "
     "t may differ by layer and by module.",
     "",
     "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n"
     "parameters: {t: 0.5}"},
    {"task_arithmetic", "weighted sum of the changes against a base",
     "out = b + lambda (w1 d1 + w2 d2 + ...)     with d = x - b",
     "To add what fine-tunes of one base have learnt, or to take it away with a negative weight. "
     "The changes of three or more models often contradict each other: try ties.",
     "https://arxiv.org/abs/2212.04089",
     "merge_method: task_arithmetic\nbase_model: base\nmodels:\n  - model: a\n"
     "    parameters: {weight: 0.6}\n  - model: b\n    parameters: {weight: 0.4}"},
    {"ties", "largest changes only, one sign for each element, mean of those that agree",
     "1. d = x - b; of each model the share `density` of the elements with the\n"
     "   largest |d| is kept, the others become 0\n"
     "2. the sign of w1 d1 + w2 d2 + ... is elected\n"
     "3. out = b + lambda (sum of w d) / (sum of w), over the models whose d has\n"
     "   that sign. With normalize: false the sum is not divided.",
     "Three or more fine-tunes of one base whose changes contradict each other. Start with density "
     "0.5 and equal weights.",
     "https://arxiv.org/abs/2306.01708",
     "merge_method: ties\nbase_model: base\nmodels:\n  - model: a\n"
     "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
     "    parameters: {weight: 0.3, density: 0.5}"},
    {"dare_linear", "changes dropped at random, the rest enlarged, then added",
     "1. d = x - b; each element of d is kept with probability `density`\n"
     "2. with rescale, what is kept is enlarged so that the sum of |d| is as before\n"
     "3. out = b + lambda (w1 d1 + w2 d2 + ...)",
     "Many fine-tunes whose changes are small. The same --seed gives the same bytes. Start with "
     "density 0.5; the smaller it is, the more is dropped.",
     kDareLink,
     "merge_method: dare_linear\nbase_model: base\nmodels:\n  - model: a\n"
     "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
     "    parameters: {weight: 0.5, density: 0.5}"},
    {"dare_ties", "changes dropped at random, the rest enlarged, then as ties",
     "1. d = x - b; each element of d is kept with probability `density`\n"
     "2. with rescale, what is kept is enlarged so that the sum of |d| is as before\n"
     "3. the sign of w1 d1 + w2 d2 + ... is elected\n"
     "4. out = b + lambda (sum of w d), over the models whose d has that sign. With\n"
     "   normalize: true the sum is divided by the sum of their w.",
     "As dare_linear, where the changes contradict each other.", kDareLink,
     "merge_method: dare_ties\nbase_model: base\nmodels:\n  - model: a\n"
     "    parameters: {weight: 0.5, density: 0.5}\n  - model: b\n"
     "    parameters: {weight: 0.5, density: 0.5}"},
    {"passthrough", "tensors as they are: layers taken from models and stacked", "out = scale * x",
     "To build a deeper or shallower model from the layers of others (a frankenmerge), or to put "
     "adapters into a model. The result usually needs training.",
     "",
     "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 16]}]\n"
     "  - sources: [{model: b, layer_range: [8, 24]}]"},
};

inline constexpr ParameterCard kParameterCards[] = {
    {"weight", "factor of the model"},
    {"density", "share of the elements of the change that are kept"},
    {"t", "0 is the base, 1 the other model"},
    {"lambda", "factor of the merged change"},
    {"normalize", "divide by the sum of the weights"},
    {"rescale", "enlarge what is kept so that the sum of magnitudes stays"},
    {"int8_mask", "accepted, as mergekit has it; changes nothing here"},
    {"scale", "factor of the tensor"},
};

// The types of `ingot adapter merge --type`. A, B: the factors of an adapter; s: its scaling
// alpha / r; w: its weight; D = s B A: its update.
inline constexpr Card kAdapterCards[] = {
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

// Whether recipes of models have the method.
[[nodiscard]] constexpr bool of_models(const Method& method) { return method.base != Base::zero; }

namespace detail {

// The index of the card of this name; n if there is none. No pointer: under -fsanitize=undefined
// g++ 12 takes no address in a constant expression for null.
template <std::size_t n, class T>
constexpr std::size_t index_of(const T (&cards)[n], std::string_view name) {
  std::size_t i = 0;
  while (i < n && cards[i].name != name) ++i;
  return i;
}

constexpr bool cards_are_complete() {
  for (const Method& method : kMethods) {
    if (!of_models(method)) continue;
    if (index_of(kCards, method.name) == std::size(kCards)) return false;
    for (int i = 0; i < method.parameter_count; ++i) {
      if (index_of(kParameterCards, method.parameters[i].name) == std::size(kParameterCards)) {
        return false;
      }
    }
  }
  return true;
}
static_assert(cards_are_complete());

}  // namespace detail

[[nodiscard]] constexpr const Card* card(std::string_view name) {
  const std::size_t i = detail::index_of(kCards, name);
  return i == std::size(kCards) ? nullptr : &kCards[i];
}

[[nodiscard]] constexpr const AbsentMethod* absent_method(std::string_view name) {
  const std::size_t i = detail::index_of(kAbsentMethods, name);
  return i == std::size(kAbsentMethods) ? nullptr : &kAbsentMethods[i];
}

[[nodiscard]] constexpr const ParameterCard* parameter_card(std::string_view name) {
  const std::size_t i = detail::index_of(kParameterCards, name);
  return i == std::size(kParameterCards) ? nullptr : &kParameterCards[i];
}

}  // namespace ingot::math
