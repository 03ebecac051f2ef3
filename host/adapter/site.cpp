#include "adapter/site.hpp"

#include <cmath>

#include <fmt/format.h>

#include "ingot/error.hpp"
#include "ingot/plan.hpp"
#include "store/values.hpp"

namespace ingot::adapter {
namespace {

std::vector<float> values_of(const Plan& plan, const std::string& adapter,
                             const Ingredient& tensor) {
  const Checkpoint& checkpoint = plan.models[tensor.model].checkpoint;
  const Entry& entry = checkpoint.entries()[tensor.entry];
  std::vector<float> values(entry.info.count());
  read_values(checkpoint, entry, 0, values);
  check_finite(plan, adapter, tensor, values);
  return values;
}

}  // namespace

std::string name_of(const Plan& plan, const Ingredient& tensor) {
  return plan.models[tensor.model].checkpoint.entries()[tensor.entry].info.name;
}

void check_finite(const Plan& plan, const std::string& adapter, const Ingredient& tensor,
                  std::span<const float> values) {
  for (const float value : values) {
    if (std::isfinite(value)) continue;
    fail(Code::format, fmt::format("{}: {} holds {}, so the adapter cannot be used: its training "
                                   "diverged or its file is damaged",
                                   adapter, name_of(plan, tensor), value));
  }
}

Pair load(const Plan& plan, const Site& site, std::size_t term, std::uint64_t expert) {
  const Term& part = site.terms[term];
  Pair pair{linalg::Matrix(part.rank, site.height), linalg::Matrix(part.rank, site.width)};
  {
    const std::vector<float> a = values_of(plan, part.adapter, part.a);
    const float* from = a.data() + expert * part.rank * site.width;
    for (std::size_t i = 0; i < pair.a.data.size(); ++i) {
      pair.a.data[i] = static_cast<double>(from[i]);
    }
  }
  const std::vector<float> b = values_of(plan, part.adapter, part.b);
  for (std::uint64_t o = 0; o < site.height; ++o) {
    const float* row = b.data() + o * part.rank * site.experts + expert;
    for (std::uint64_t k = 0; k < part.rank; ++k) {
      pair.b.at(k, o) = static_cast<double>(row[k * site.experts]);
    }
  }
  return pair;
}

}  // namespace ingot::adapter
