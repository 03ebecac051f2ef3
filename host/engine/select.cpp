#include "engine/select.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "ingot/math/key.hpp"

namespace ingot {
namespace {

// Below this many elements the whole tensor is the candidate list: one sweep, no sample.
constexpr std::uint64_t kSmall = 1 << 15;
// Sampled keys per source. Enough that the bracket of an even tensor holds about 1 % of it, few
// enough that sampling stays under a tenth of the verifying sweep (bench/README.md).
constexpr double kSample = 1 << 18;
constexpr double kDeviations = 5;
constexpr std::uint32_t kLargest = 0x7fffffffu;

}  // namespace

Selector::Selector(const Work& work, bool sparse)
    : work_(work),
      chunk_count_(static_cast<std::uint32_t>((work.rule.elements + kChunk - 1) / kChunk)) {
  const auto sources = static_cast<std::size_t>(work.rule.sources);
  const std::uint64_t n = work.rule.elements;
  sources_.resize(sources);
  active_.assign(sources, 0);
  result_.resize(sources);
  bool any = false;
  for (std::size_t s = 0; s < sources; ++s) {
    State& state = sources_[s];
    state.keep = math::kept(work.rule, static_cast<int>(s));
    if (state.keep >= n) continue;  // Selection{} keeps all
    if (state.keep == 0) {
      result_[s] = {kLargest + 1U, 0, false};  // no key exceeds it
      continue;
    }
    state.open = true;
    active_[s] = 1;
    any = true;
    state.bracket = {0, kLargest};
  }
  if (!any) return;
  if (n <= kSmall) {
    go(Step::verify);
    return;
  }
  std::uint64_t seen = n;
  go(Step::sample);
  if (sparse && chunk_count_ > 8) {
    chunks_.clear();
    for (std::uint32_t c = 0; c < chunk_count_; c += 8) chunks_.push_back(c);
    seen = std::min<std::uint64_t>(n, chunks_.size() * kChunk);
  }
  const double wanted = std::min(kSample, static_cast<double>(seen) / 16);
  stride_ = static_cast<std::uint32_t>(64.0 * static_cast<double>(seen) / wanted);
}

std::vector<std::uint32_t> Selector::every_chunk() const {
  std::vector<std::uint32_t> all(chunk_count_);
  for (std::uint32_t c = 0; c < chunk_count_; ++c) all[c] = c;
  return all;
}

void Selector::go(Step step) {
  step_ = step;
  chunks_ = step == Step::done ? std::vector<std::uint32_t>{} : every_chunk();
  if (step == Step::verify) {
    for (auto& state : sources_) {
      if (state.open) state.chunk.assign(chunk_count_, {});
    }
  }
}

void Selector::visit(Backend& backend, const Chunk& chunk) {
  const std::size_t sources = sources_.size();
  const auto index = static_cast<std::uint32_t>(chunk.first / kChunk);
  switch (step_) {
    case Step::sample: {
      std::vector<std::vector<std::uint32_t>> keys(sources);
      backend.sample(chunk, stride_, keys);
      const std::lock_guard lock(mutex_);
      for (std::size_t s = 0; s < sources; ++s) {
        if (active_[s] == 0) continue;
        sources_[s].sample.insert(sources_[s].sample.end(), keys[s].begin(), keys[s].end());
      }
      break;
    }
    case Step::verify: {
      std::vector<Bracket> brackets(sources);
      for (std::size_t s = 0; s < sources; ++s) brackets[s] = sources_[s].bracket;
      std::vector<Verdict> verdicts(sources);
      const std::uint32_t limit =
          work_.rule.elements <= kSmall ? chunk.count : std::max(chunk.count / 8, 4096U);
      backend.verify(chunk, brackets, active_, limit, verdicts);
      for (std::size_t s = 0; s < sources; ++s) {
        if (active_[s] == 0) continue;
        Verdict& v = verdicts[s];
        sources_[s].chunk[index] = {v.above, v.at_high, v.at_low, std::move(v.between),
                                    v.overflowed};
      }
      break;
    }
    case Step::coarse:
    case Step::fine:
      for (std::size_t s = 0; s < sources; ++s) {
        State& state = sources_[s];
        if (!state.open || !state.by_histogram) continue;
        std::vector<std::uint64_t> counts(step_ == Step::coarse ? 32768 : 65536);
        backend.histogram(chunk, static_cast<int>(s),
                          step_ == Step::coarse ? nullptr : &state.prefix, counts);
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < counts.size(); ++i) state.counts[i] += counts[i];
      }
      break;
    case Step::locate:
      for (std::size_t s = 0; s < sources; ++s) {
        const State& state = sources_[s];
        if (!state.locating || state.tie_chunk != index) continue;
        const std::uint32_t at =
            backend.locate(chunk, static_cast<int>(s), result_[s].threshold, state.tie_rank);
        result_[s].cut = chunk.first + at;
      }
      break;
    case Step::done:
      break;
  }
}

namespace {

// By how much the runs of a sample differ more than independent keys would, as a factor of the
// standard deviation, at least 1: rows of unlike magnitude make a sample of runs worth less than
// its size.
double unevenness(const std::vector<std::uint32_t>& keys, double share) {
  std::vector<std::uint32_t> few;
  for (std::size_t i = 0; i < keys.size(); i += 17) few.push_back(keys[i]);
  const auto middle =
      few.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(few.size()));
  if (middle == few.end()) return 1;
  std::nth_element(few.begin(), middle, few.end(), std::greater<>());
  const std::size_t runs = keys.size() / math::kSampled;
  double sum = 0, squares = 0;
  for (std::size_t r = 0; r < runs; ++r) {
    const auto begin = keys.begin() + static_cast<std::ptrdiff_t>(r * math::kSampled);
    const auto above = static_cast<double>(
        std::count_if(begin, begin + math::kSampled, [&](std::uint32_t k) { return k > *middle; }));
    sum += above;
    squares += above * above;
  }
  if (runs < 2) return 1;
  const double mean = sum / static_cast<double>(runs);
  const double variance = squares / static_cast<double>(runs) - mean * mean;
  const double even = mean * (1 - mean / math::kSampled);
  return even > 0 ? std::max(1.0, std::sqrt(variance / even)) : 1;
}

}  // namespace

// Order statistics of the sample at k/n, kDeviations standard deviations to either side.
void Selector::bracket_from_sample(State& state) {
  auto& keys = state.sample;
  const auto size = static_cast<double>(keys.size());
  if (keys.empty()) return;
  const double share = static_cast<double>(state.keep) / static_cast<double>(work_.rule.elements);
  const double spread =
      kDeviations * unevenness(keys, share) * std::sqrt(size * share * (1 - share)) + 2;
  const double first = std::floor(size * share - spread);
  const double last = std::ceil(size * share + spread);
  // Ranks are asked for in ascending order: what stands before one is not looked at again.
  auto behind = keys.begin();
  const auto ranked = [&](double rank) {
    const auto at = keys.begin() + static_cast<std::ptrdiff_t>(rank);
    std::nth_element(behind, at, keys.end(), std::greater<>());
    behind = at;
    return *at;
  };
  state.bracket.high = first < 0 ? kLargest : ranked(first);
  state.bracket.low = last >= size ? 0 : ranked(last);
  std::vector<std::uint32_t>().swap(keys);
}

Selector::Ranked Selector::ranked(const State& state, std::uint64_t rank) {
  // Counted into a few thousand bins first, so that only one bin's candidates are put in order:
  // ordering all of them took a fifth of a selection.
  constexpr std::uint32_t kBins = 1 << 12;
  const std::uint32_t low = state.bracket.low;
  const auto width = static_cast<std::uint32_t>(std::bit_width(state.bracket.high - low));
  const std::uint32_t shift = width > 12 ? width - 12 : 0;
  std::vector<std::uint64_t> counts(kBins);
  for (const Count& chunk : state.chunk) {
    for (const Candidate& x : chunk.between) ++counts[(x.key - low) >> shift];
  }
  std::uint32_t bin = kBins - 1;
  for (; counts[bin] < rank; --bin) rank -= counts[bin];
  std::vector<std::pair<std::uint32_t, std::uint64_t>> all;
  all.reserve(counts[bin]);
  for (std::size_t c = 0; c < state.chunk.size(); ++c) {
    for (const Candidate& x : state.chunk[c].between) {
      if ((x.key - low) >> shift == bin) all.emplace_back(x.key, c * kChunk + x.index);
    }
  }
  const auto nth = all.begin() + static_cast<std::ptrdiff_t>(rank - 1);
  std::nth_element(all.begin(), nth, all.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  const bool last =
      std::none_of(nth + 1, all.end(), [&](const auto& x) { return x.first == nth->first; });
  return {nth->first, nth->second, last};
}

void Selector::conclude_verify(std::size_t s) {
  State& state = sources_[s];
  std::uint64_t above = 0, high = 0, low = 0, between = 0;
  bool overflowed = false;
  for (const Count& c : state.chunk) {
    above += c.above;
    high += c.at_high;
    low += c.at_low;
    between += c.between.size();
    overflowed = overflowed || c.overflowed;
  }
  const std::uint64_t k = state.keep;
  const bool inside =
      k > above && (k <= above + high || (!overflowed && k <= above + high + between + low));
  if (!inside) {
    // The bracket missed: the sample was not like the tensor. Count the keys instead (2 sweeps).
    state.by_histogram = true;
    state.counts.assign(32768, 0);
    return;
  }
  math::Selection& result = result_[s];
  result.all = false;
  state.open = false;
  active_[s] = 0;
  const bool at_high = k <= above + high;
  if (!at_high && k <= above + high + between) {
    const auto [key, index, last] = ranked(state, k - above - high);
    result.threshold = key;
    // Where every tie is kept the cut is the end, on whichever way the threshold was found.
    result.cut = last ? work_.rule.elements - 1 : index;
  } else {
    // The threshold is a bound of the bracket: find the chunk in which the last kept tie lies.
    result.threshold = at_high ? state.bracket.high : state.bracket.low;
    std::uint64_t ties = k - above - (at_high ? 0 : high + between);  // of them, kept
    if (ties == (at_high ? high : low)) {
      result.cut = work_.rule.elements - 1;  // all of them
    } else {
      for (std::size_t c = 0; c < state.chunk.size(); ++c) {
        const std::uint32_t here = at_high ? state.chunk[c].at_high : state.chunk[c].at_low;
        if (ties <= here) {
          state.tie_chunk = static_cast<std::uint32_t>(c);
          state.tie_rank = static_cast<std::uint32_t>(ties - 1);
          state.locating = true;
          break;
        }
        ties -= here;
      }
    }
  }
  std::vector<Count>().swap(state.chunk);
}

void Selector::advance() {
  switch (step_) {
    case Step::sample:
      for (auto& state : sources_) {
        if (state.open) bracket_from_sample(state);
      }
      go(Step::verify);
      return;
    case Step::verify:
      for (std::size_t s = 0; s < sources_.size(); ++s) {
        if (sources_[s].open) conclude_verify(s);
      }
      if (std::any_of(sources_.begin(), sources_.end(),
                      [](const State& s) { return s.open && s.by_histogram; })) {
        go(Step::coarse);
        return;
      }
      break;
    case Step::coarse:
      for (auto& state : sources_) {
        if (!state.open) continue;
        std::uint64_t beyond = 0;
        std::uint32_t bin = 32767;
        while (beyond + state.counts[bin] < state.keep) beyond += state.counts[bin--];
        state.prefix = bin;
        state.beyond = beyond;
        state.counts.assign(65536, 0);
      }
      go(Step::fine);
      return;
    case Step::fine:
      for (auto& state : sources_) {
        if (!state.open) continue;
        std::uint64_t beyond = state.beyond;
        std::uint32_t low = 65535;
        while (beyond + state.counts[low] < state.keep) beyond += state.counts[low--];
        const std::uint32_t key = (state.prefix << 16) | low;
        state.bracket = {key, key};  // exact: the verifying sweep now only counts ties
        state.counts = {};
        state.by_histogram = false;
      }
      go(Step::verify);
      return;
    case Step::locate:
    case Step::done:
      go(Step::done);
      return;
  }
  chunks_.clear();
  for (const State& state : sources_) {
    if (state.locating) chunks_.push_back(state.tie_chunk);
  }
  std::sort(chunks_.begin(), chunks_.end());
  chunks_.erase(std::unique(chunks_.begin(), chunks_.end()), chunks_.end());
  step_ = chunks_.empty() ? Step::done : Step::locate;
}

}  // namespace ingot
