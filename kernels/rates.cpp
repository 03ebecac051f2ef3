// Measures a device: its links, its copy rate, and every kind of kernel.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>

#include "apply.hpp"
#include "check.hpp"
#include "ingot/backend.hpp"
#include "ingot/math/codec.hpp"
#include "ingot/methods.hpp"
#include "measure.hpp"
#include "memory.hpp"
#include "probe.hpp"
#include "select.hpp"
#include "stream.hpp"

namespace ingot {
namespace gpu {
namespace {

constexpr int kRounds = 7;
constexpr unsigned kModels = 4;  // a base and three fine-tunes

// SplitMix64.
class Numbers {
 public:
  double uniform() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }
  double normal() {  // near enough: the sum of twelve
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }

 private:
  std::uint64_t state_ = 1;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// One device with a base and three fine-tunes in bf16, repeated pages of weights like a model's.
class Bench {
 public:
  Bench(const Card& card, std::uint64_t memory)
      : card_(card),
        elements_(std::min<std::uint64_t>(memory / 12 / 2, 100'000'000) / kPage * kPage),
        block_(12 * 2 * std::max(elements_, kPage)),
        pinned_(2 * kHost) {
    elements_ = std::max(elements_, kPage);
    Numbers numbers;
    std::vector<std::uint16_t> page(kPage);
    std::vector<double> base(kPage);
    for (unsigned m = 0; m < kModels; ++m) {
      for (std::uint64_t i = 0; i < kPage; ++i) {
        const double x =
            m == 0 ? base[i] = 0.02 * numbers.normal() : base[i] + 2e-3 * numbers.normal();
        page[i] = math::Codec<math::Format::bf16>::encode(static_cast<float>(x),
                                                          math::Overflow::saturate);
      }
      for (std::uint64_t at = 0; at < elements_; at += kPage)
        check(cudaMemcpyAsync(model(m) + 2 * at, page.data(), 2 * kPage, cudaMemcpyHostToDevice,
                              stream_.get()),
              "copying to it");
      wait();
    }
  }

  std::vector<Rate> run() {
    links();
    copies();
    kernels();
    return std::move(rates_);
  }

 private:
  static constexpr std::uint64_t kPage = std::uint64_t{1} << 16;
  static constexpr std::uint64_t kHost = std::uint64_t{64} << 20;  // bytes of a copy over the link

  void wait() { check(cudaStreamSynchronize(stream_.get()), "waiting for the device"); }
  [[nodiscard]] std::byte* model(unsigned m) const { return block_.data() + m * 2 * elements_; }
  [[nodiscard]] std::byte* output() const { return model(kModels); }
  // Half of the block: room for descriptions, lists, and the target of the device's own copy.
  [[nodiscard]] std::byte* rest() const { return block_.data() + 6 * 2 * elements_; }

  // Seconds of work on one stream by the device's clock; the first run warms up.
  void time(const char* what, std::uint64_t bytes, bool kernel, const std::function<void()>& work) {
    std::vector<double> seconds;
    for (int round = 0; round <= kRounds; ++round) {
      start_.record(stream_);
      work();
      stop_.record(stream_);
      stop_.wait();
      if (round > 0) seconds.push_back(stop_.seconds_since(start_));
    }
    rates_.push_back({what, bytes, median(seconds), kernel});
  }

  void links() {
    std::byte* device = rest();
    const std::uint64_t bytes = std::min<std::uint64_t>(kHost, 2 * 2 * elements_);
    const auto copy_in = [&](const Stream& s) {
      check(cudaMemcpyAsync(device, pinned_.data(), bytes, cudaMemcpyHostToDevice, s.get()),
            "copying to it");
    };
    const auto copy_out = [&](const Stream& s) {
      check(cudaMemcpyAsync(pinned_.data() + kHost, device + bytes, bytes, cudaMemcpyDeviceToHost,
                            s.get()),
            "copying from it");
    };
    time("copy in over the link", bytes, false, [&] { copy_in(stream_); });
    time("copy out over the link", bytes, false, [&] { copy_out(stream_); });
    time("copy in and out at once", 2 * bytes, false, [&] {
      begun_.record(stream_);
      begun_.hold(other_);
      copy_in(stream_);
      copy_out(other_);
      joined_.record(other_);
      joined_.hold(stream_);
    });
  }

  void copies() {
    const std::uint64_t bytes = 5 * 2 * elements_;
    time("copy on the device", 2 * bytes, true, [&] {
      check(cudaMemcpyAsync(rest(), block_.data(), bytes, cudaMemcpyDeviceToDevice, stream_.get()),
            "copying on it");
    });
  }

  // The rule of a method over `models` of the models: its defaults, half of the task vectors kept.
  [[nodiscard]] math::Rule rule(const char* method, unsigned models) const {
    math::Rule rule;
    rule.method = math::find(method);
    const math::Base base = math::method(rule.method).card.base;
    rule.base = base == math::Base::origin || base == math::Base::pivot;
    rule.sources = static_cast<int>(models) - (rule.base ? 1 : 0);
    rule.elements = elements_;
    math::set_defaults(rule);
    (void)math::set_global(rule, "t", 0.3);
    for (int s = 0; s < rule.sources; ++s) {
      (void)math::set_local(rule, s, "weight", 0.3 + 0.1 * s);
      (void)math::set_local(rule, s, "density", 0.5);
      rule.stream[s] = 77 + static_cast<unsigned>(s);
    }
    return rule;
  }

  // Writes a tensor's operands and facts to `at`, which goes on behind them.
  [[nodiscard]] Tensor tensor(const math::Rule& rule, const math::Facts& facts, std::byte*& at) {
    Tensor tensor;
    std::vector<Operand> operands;
    for (unsigned m = 0; m < kModels; ++m) operands.push_back({model(m), math::Format::bf16});
    tensor.input = put(at, operands.data(), operands.size());
    tensor.facts = put(at, facts.data(), facts.bytes());
    tensor.sources = rule.sources;
    tensor.base = rule.base;
    tensor.count = elements_;
    return tensor;
  }

  template <class T>
  T* put(std::byte*& at, const T* values, std::size_t count) {
    T* there = reinterpret_cast<T*>(at);
    check(cudaMemcpyAsync(there, values, count * sizeof(T), cudaMemcpyHostToDevice, stream_.get()),
          "copying to it");
    wait();
    at += aligned(count * sizeof(T));
    return there;
  }

  // What passes would measure: thresholds as given, any sums.
  static math::Facts facts_of(const math::Rule& rule, const math::Selection* selections) {
    math::Facts facts = math::begin(rule);
    for (const math::PassInfo& pass : math::method(rule.method).passes) {
      if (!pass.wanted(rule, facts)) continue;
      if (pass.kind == math::Pass::order) {
        for (int s = 0; s < pass.streams(rule); ++s)
          pass.take_order(rule, s, selections + s, facts);
      } else {
        const std::vector<double> sums(static_cast<std::size_t>(pass.sums(rule)), 0.5);
        (void)pass.take(rule, sums.data(), facts);
      }
    }
    return facts;
  }

  void merge(const char* what, const char* method, unsigned models,
             const math::Selection* selections) {
    const math::Rule rule = this->rule(method, models);
    std::byte* at = rest();
    Job job;
    job.tensor = tensor(rule, facts_of(rule, selections), at);
    job.output = output();
    job.format = math::Format::bf16;
    Batch batch;
    batch.jobs = put(at, &job, 1);
    batch.count = 1;
    batch.packs = span_packs(elements_, static_cast<unsigned>(card_.processors));
    batch.spans = spans(elements_, batch.packs);
    batch.counts = reinterpret_cast<Counts*>(at);
    time(what, (models + 1) * 2 * elements_, true,
         [&] { apply(kind(rule.method, rule.sources), batch, Shape{}, stream_); });
  }

  void kernels() {
    merge("linear of 4", "linear", 4, nullptr);
    merge("slerp", "slerp", 2, nullptr);
    merge("task arithmetic, base and 3", "task_arithmetic", 4, nullptr);

    // Thresholds from a sample, as a merge finds them.
    const math::Rule ties = rule("ties", kModels);
    const auto sources = static_cast<unsigned>(ties.sources);
    std::byte* at = rest();
    const Tensor described = tensor(ties, math::begin(ties), at);
    const Ordering ordering = {ties.method, pass_of(ties, math::Pass::order),
                               put(at, &described, 1), elements_};
    std::vector<int> numbers(sources);
    std::iota(numbers.begin(), numbers.end(), 0);
    const int* streams = put(at, numbers.data(), numbers.size());
    const std::uint32_t stride =
        static_cast<std::uint32_t>(std::max<std::uint64_t>(elements_ / 2048, math::kSampled));
    const std::uint64_t each = (elements_ + stride - 1) / stride * math::kSampled;
    auto* keys = reinterpret_cast<std::int32_t*>(at);
    at += aligned(sources * each * sizeof(std::int32_t));
    time("sample of 3", sources * each * 4, false,
         [&] { sample(ordering, streams, sources, stride, keys, Shape{}, stream_); });
    std::vector<math::Selection> selections(sources);
    std::vector<Bracket> brackets(sources);
    for (unsigned s = 0; s < sources; ++s) {
      std::vector<std::int32_t> found((elements_ - (each / math::kSampled - 1) * stride) <
                                              math::kSampled
                                          ? each - math::kSampled
                                          : each);
      check(cudaMemcpyAsync(found.data(), keys + s * each, found.size() * 4, cudaMemcpyDeviceToHost,
                            stream_.get()),
            "copying from it");
      wait();
      std::sort(found.begin(), found.end());
      const auto middle = static_cast<double>(found.size()) / 2;
      const double spread = 4 * std::sqrt(middle);
      brackets[s] = {static_cast<int>(s),
                     found[static_cast<std::size_t>(std::max(middle - spread, 0.0))],
                     found[static_cast<std::size_t>(
                         std::min(middle + spread, static_cast<double>(found.size() - 1)))]};
      selections[s] = {found[found.size() / 2], elements_ / 2};
    }

    const std::uint32_t limit = static_cast<std::uint32_t>(elements_ / 16);
    const std::uint64_t parts = (elements_ + kSpan - 1) / kSpan;
    const auto take = [&](std::uint64_t bytes) {
      std::byte* part = at;
      at += aligned(bytes);
      return part;
    };
    const Bracket* on_device = put(at, brackets.data(), brackets.size());
    auto* census = reinterpret_cast<Census*>(take(sources * sizeof(Census)));
    auto* segments = reinterpret_cast<Segment*>(take(sources * parts * sizeof(Segment)));
    auto* found =
        reinterpret_cast<Candidate*>(take(sources * std::uint64_t{limit} * sizeof(Candidate)));
    time("count against brackets of 3", kModels * 2 * elements_, true, [&] {
      check(cudaMemsetAsync(census, 0, sources * sizeof(Census), stream_.get()), "clearing");
      verify(ordering, on_device, sources, limit, census, found, segments, Shape{}, stream_);
    });

    merge("ties, base and 3", "ties", 4, selections.data());
    merge("dare_linear, base and 3", "dare_linear", 4, nullptr);
    merge("dare_ties, base and 3", "dare_ties", 4, nullptr);

    const math::Rule slerp = rule("slerp", 2);
    at = rest();
    const Tensor pair = tensor(slerp, math::begin(slerp), at);
    const int pass = pass_of(slerp, math::Pass::fold);
    const Folding folding = {slerp.method, pass, put(at, &pair, 1), 0, elements_, {}};
    const std::vector<math::Group> all = groups(slerp.method, pass, slerp);
    const math::Group* on_card = put(at, all.data(), all.size());
    time("sum of products", 2 * 2 * elements_, true, [&] {
      fold(folding, on_card, static_cast<unsigned>(all.size()), reinterpret_cast<double*>(at),
           Shape{}, stream_);
    });
  }

  // The number of a method's first pass of a kind.
  static int pass_of(const math::Rule& rule, math::Pass kind) {
    const auto& passes = math::method(rule.method).passes;
    const auto first = std::find_if(passes.begin(), passes.end(),
                                    [&](const math::PassInfo& p) { return p.kind == kind; });
    return static_cast<int>(first - passes.begin());
  }

  Card card_;
  std::uint64_t elements_;
  Device block_;
  Pinned pinned_;
  Stream stream_, other_;
  Event start_, stop_, begun_, joined_;
  std::vector<Rate> rates_;
};

}  // namespace
}  // namespace gpu

std::vector<Rate> device_rates(const DeviceOptions& options) {
  const gpu::Card card = gpu::probe(options.device).front();
  gpu::check(cudaSetDevice(card.index), "choosing a device");
  gpu::Bench bench(card, options.memory);
  return bench.run();
}

}  // namespace ingot
