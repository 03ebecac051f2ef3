#include "measure/select.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "ingot/math/key.hpp"

namespace ingot {
namespace {

// Below this many elements the whole tensor is the candidate list: one sweep, no sample.
constexpr std::uint64_t kSmall = 1 << 15;
// Sampled keys per source. Enough that the bracket of an even tensor holds about 1 % of it, few
// enough that sampling stays under a tenth of the verifying sweep (bench/README.md).
constexpr double kSample = 1 << 18;
constexpr double kDeviations = 5;
constexpr std::int32_t kLowest = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kHighest = std::numeric_limits<std::int32_t>::max();
// Counts of a histogram: of the upper, or of the lower half of a key.
constexpr std::size_t kBins = 65536;
constexpr std::int32_t kPrefixes = 32768;  // of either sign

std::uint32_t height(std::int32_t key, std::int32_t low) {
  return static_cast<std::uint32_t>(key) - static_cast<std::uint32_t>(low);
}

}  // namespace

Selector::Selector(const math::Rule& rule, int pass, const math::Facts& facts, bool sparse)
    : rule_(rule),
      pass_(pass),
      chunk_count_(static_cast<std::uint32_t>((rule.elements + kChunk - 1) / kChunk)) {
  const math::PassInfo& info = math::method(rule.method).passes[static_cast<std::size_t>(pass)];
  for (int stream = 0; stream < info.streams(rule); ++stream) {
    std::uint64_t ranks[math::kRanks];
    const int count = info.ranks(rule, facts, stream, ranks);
    for (int i = 0; i < count; ++i) {
      Search& search = searches_.emplace_back();
      search.stream = stream;
      search.rank = ranks[i];
      search.bracket = {stream, kLowest, kHighest};
    }
    if (count > 0) streams_.push_back(stream);
  }
  if (searches_.empty()) return;
  const std::uint64_t n = rule.elements;
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
    for (Search& search : searches_) {
      if (search.open) search.chunk.assign(chunk_count_, {});
    }
  }
}

void Selector::visit(Backend& backend, const Chunk& chunk) {
  const auto index = static_cast<std::uint32_t>(chunk.first / kChunk);
  switch (step_) {
    case Step::sample: {
      std::vector<std::vector<std::int32_t>> keys(streams_.size());
      backend.sample(chunk, pass_, streams_, stride_, keys);
      const std::lock_guard lock(mutex_);
      for (std::size_t s = 0; s < streams_.size(); ++s) {
        auto& sample = sample_[streams_[s]];
        sample.insert(sample.end(), keys[s].begin(), keys[s].end());
      }
      break;
    }
    case Step::verify: {
      std::vector<Bracket> brackets;
      std::vector<Search*> open;
      for (Search& search : searches_) {
        if (!search.open) continue;
        brackets.push_back(search.bracket);
        open.push_back(&search);
      }
      std::vector<Verdict> verdicts(brackets.size());
      const std::uint32_t limit =
          rule_.elements <= kSmall ? chunk.count : std::max(chunk.count / 8, 4096U);
      backend.verify(chunk, pass_, brackets, limit, verdicts);
      for (std::size_t i = 0; i < open.size(); ++i) {
        Verdict& v = verdicts[i];
        open[i]->chunk[index] = {v.above, v.at_high, v.at_low, std::move(v.between), v.overflowed};
      }
      break;
    }
    case Step::coarse:
    case Step::fine:
      for (Search& search : searches_) {
        if (!search.open || !search.by_histogram) continue;
        std::vector<std::uint64_t> counts(kBins);
        backend.histogram(chunk, pass_, search.stream,
                          step_ == Step::coarse ? nullptr : &search.prefix, counts);
        const std::lock_guard lock(mutex_);
        for (std::size_t i = 0; i < counts.size(); ++i) search.counts[i] += counts[i];
      }
      break;
    case Step::locate:
      for (Search& search : searches_) {
        if (!search.locating || search.tie_chunk != index) continue;
        const std::uint32_t at =
            backend.locate(chunk, pass_, search.stream, search.found.threshold, search.tie_rank);
        search.found.cut = chunk.first + at;
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
double unevenness(const std::vector<std::int32_t>& keys, double share) {
  std::vector<std::int32_t> few;
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
        std::count_if(begin, begin + math::kSampled, [&](std::int32_t k) { return k > *middle; }));
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
void Selector::bracket_from_sample(Search& search, std::vector<std::int32_t>& keys,
                                   double unevenness) const {
  const auto size = static_cast<double>(keys.size());
  if (keys.empty()) return;
  const double share = static_cast<double>(search.rank) / static_cast<double>(rule_.elements);
  const double spread = kDeviations * unevenness * std::sqrt(size * share * (1 - share)) + 2;
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
  search.bracket.high = first < 0 ? kHighest : ranked(first);
  search.bracket.low = last >= size ? kLowest : ranked(last);
}

Selector::Ranked Selector::ranked(const Search& search, std::uint64_t rank) {
  // Counted into a few thousand bins first, so that only one bin's candidates are put in order:
  // ordering all of them took a fifth of a selection.
  constexpr std::uint32_t kPlaces = 1 << 12;
  const std::int32_t low = search.bracket.low;
  const auto width = static_cast<std::uint32_t>(std::bit_width(height(search.bracket.high, low)));
  const std::uint32_t shift = width > 12 ? width - 12 : 0;
  std::vector<std::uint64_t> counts(kPlaces);
  for (const Count& chunk : search.chunk) {
    for (const Candidate& x : chunk.between) ++counts[height(x.key, low) >> shift];
  }
  std::uint32_t bin = kPlaces - 1;
  for (; counts[bin] < rank; --bin) rank -= counts[bin];
  std::vector<std::pair<std::int32_t, std::uint64_t>> all;
  all.reserve(counts[bin]);
  for (std::size_t c = 0; c < search.chunk.size(); ++c) {
    for (const Candidate& x : search.chunk[c].between) {
      if (height(x.key, low) >> shift == bin) all.emplace_back(x.key, c * kChunk + x.index);
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

void Selector::conclude_verify(Search& search) {
  std::uint64_t above = 0, high = 0, low = 0, between = 0;
  bool overflowed = false;
  for (const Count& c : search.chunk) {
    above += c.above;
    high += c.at_high;
    low += c.at_low;
    between += c.between.size();
    overflowed = overflowed || c.overflowed;
  }
  const std::uint64_t k = search.rank;
  const bool inside =
      k > above && (k <= above + high || (!overflowed && k <= above + high + between + low));
  if (!inside) {
    // The bracket missed: the sample was not like the tensor. Count the keys instead (2 sweeps).
    search.by_histogram = true;
    search.counts.assign(kBins, 0);
    return;
  }
  search.open = false;
  const bool at_high = k <= above + high;
  if (!at_high && k <= above + high + between) {
    const auto [key, index, last] = ranked(search, k - above - high);
    // Where every tie is kept the cut is the end, on whichever way the threshold was found.
    search.found = {key, last ? rule_.elements - 1 : index};
  } else {
    // The threshold is a bound of the bracket: find the chunk in which the last kept tie lies.
    search.found.threshold = at_high ? search.bracket.high : search.bracket.low;
    std::uint64_t ties = k - above - (at_high ? 0 : high + between);  // of them, kept
    if (ties == (at_high ? high : low)) {
      search.found.cut = rule_.elements - 1;  // all of them
    } else {
      for (std::size_t c = 0; c < search.chunk.size(); ++c) {
        const std::uint32_t here = at_high ? search.chunk[c].at_high : search.chunk[c].at_low;
        if (ties <= here) {
          search.tie_chunk = static_cast<std::uint32_t>(c);
          search.tie_rank = static_cast<std::uint32_t>(ties - 1);
          search.locating = true;
          break;
        }
        ties -= here;
      }
    }
  }
  std::vector<Count>().swap(search.chunk);
}

void Selector::advance() {
  // The bin in which a rank lies, counted from the largest keys; `beyond` gets what is above it.
  const auto bin_of = [](const Search& search, std::uint64_t& beyond) {
    std::size_t bin = kBins - 1;
    while (beyond + search.counts[bin] < search.rank) beyond += search.counts[bin--];
    return static_cast<std::int32_t>(bin);
  };
  switch (step_) {
    case Step::sample: {
      // Unevenness is that of runs, which ordering takes apart.
      std::vector<double> uneven;
      for (const Search& search : searches_) {
        const double share = static_cast<double>(search.rank) / static_cast<double>(rule_.elements);
        uneven.push_back(unevenness(sample_[search.stream], share));
      }
      for (std::size_t i = 0; i < searches_.size(); ++i) {
        bracket_from_sample(searches_[i], sample_[searches_[i].stream], uneven[i]);
      }
      sample_.clear();
      go(Step::verify);
      return;
    }
    case Step::verify:
      for (Search& search : searches_) {
        if (search.open) conclude_verify(search);
      }
      if (std::any_of(searches_.begin(), searches_.end(),
                      [](const Search& s) { return s.open && s.by_histogram; })) {
        go(Step::coarse);
        return;
      }
      break;
    case Step::coarse:
      for (Search& search : searches_) {
        if (!search.open) continue;
        search.beyond = 0;
        search.prefix = bin_of(search, search.beyond) - kPrefixes;
        search.counts.assign(kBins, 0);
      }
      go(Step::fine);
      return;
    case Step::fine:
      for (Search& search : searches_) {
        if (!search.open) continue;
        std::uint64_t beyond = search.beyond;
        const auto key =
            static_cast<std::int32_t>(static_cast<std::uint32_t>(search.prefix) << 16 |
                                      static_cast<std::uint32_t>(bin_of(search, beyond)));
        // Exact: the verifying sweep now only counts ties.
        search.bracket = {search.stream, key, key};
        search.counts = {};
        search.by_histogram = false;
      }
      go(Step::verify);
      return;
    case Step::locate:
    case Step::done:
      go(Step::done);
      return;
  }
  chunks_.clear();
  for (const Search& search : searches_) {
    if (search.locating) chunks_.push_back(search.tie_chunk);
  }
  std::sort(chunks_.begin(), chunks_.end());
  chunks_.erase(std::unique(chunks_.begin(), chunks_.end()), chunks_.end());
  step_ = chunks_.empty() ? Step::done : Step::locate;
}

void Selector::conclude(math::Facts& facts) const {
  const math::PassInfo& info = math::method(rule_.method).passes[static_cast<std::size_t>(pass_)];
  for (std::size_t i = 0; i < searches_.size();) {
    math::Selection found[math::kRanks];
    const int stream = searches_[i].stream;
    for (int n = 0; i < searches_.size() && searches_[i].stream == stream; ++i) {
      found[n++] = searches_[i].found;
    }
    info.take_order(rule_, stream, found, facts);
  }
}

}  // namespace ingot
