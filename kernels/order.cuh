// The steps of order() under any execution policy of Thrust.
#pragma once

#include <thrust/binary_search.h>
#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <thrust/scan.h>

#include "ingot/error.hpp"
#include "ingot/math/target.hpp"
#include "order.hpp"

namespace ingot::gpu {

// How many places a part, a bracket's span, takes in the ordered list.
struct Places {
  Candidates all;

  INGOT_HD std::uint32_t operator()(std::uint64_t part) const {
    const bool overflowed = all.census[part / all.spans].between > all.limit;
    return overflowed ? 0 : all.segments[part].count;
  }
};

// Fills a place of the ordered list, if it has a candidate.
struct Fetch {
  Candidates all;
  const std::uint32_t* starts;  // by part: its first place
  Candidate* ordered;

  INGOT_HD void operator()(std::uint64_t place) const {
    const std::uint32_t* end = starts + all.brackets * all.spans;
    const auto part = static_cast<std::uint64_t>(
        thrust::upper_bound(thrust::seq, starts, end, place) - starts - 1);
    const std::uint64_t within = place - starts[part];
    if (within >= Places{all}(part)) return;
    ordered[place] = all.found[part / all.spans * all.limit + all.segments[part].offset + within];
  }
};

// `starts` has brackets * spans elements, wherever the policy's memory is.
template <class Policy>
void order(const Policy& policy, const Candidates& all, std::uint32_t* starts, Candidate* ordered) {
  if (all.brackets * all.limit > 0x7fffffffU)
    fail(Code::internal, "a chunk of too many candidates");
  const thrust::counting_iterator<std::uint64_t> numbers(0);
  const auto counts = thrust::make_transform_iterator(numbers, Places{all});
  thrust::exclusive_scan(policy, counts,
                         counts + static_cast<std::ptrdiff_t>(all.brackets * all.spans), starts);
  thrust::for_each_n(policy, numbers, all.brackets * all.limit, Fetch{all, starts, ordered});
}

}  // namespace ingot::gpu
