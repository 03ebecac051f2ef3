// The matrices that are decomposed: sums of updates, updates under masks and elections, differences
// of models.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "adapter/solve.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/methods.hpp"
#include "ingot/plan.hpp"
#include "measure/measure.hpp"
#include "store/values.hpp"

namespace ingot::adapter {
namespace {

using linalg::As;
using linalg::Low;
using linalg::Matrix;

// Matrices up to this size are kept while they are decomposed; larger ones are made again for each
// of the some ten times that they are swept.
constexpr std::uint64_t kKept = std::uint64_t{256} << 20;
// The start of every sketch. Fixed: the user cannot choose it.
constexpr std::uint64_t kSketch = 0x696e676f74;

linalg::Sketch sketch() { return {.seed = kSketch, .memory = kKept}; }

linalg::Solver* solver_of(Backend* backend) {
  return backend != nullptr ? &backend->solver() : nullptr;
}

std::vector<Ingredient> factors_of(const Site& site) {
  std::vector<Ingredient> all;
  for (const Term& term : site.terms) {
    all.push_back(term.a);
    all.push_back(term.b);
  }
  return all;
}

nlohmann::ordered_json described(const Site& site) {
  nlohmann::ordered_json parts;
  for (const Term& term : site.terms) {
    parts.push_back({{"rank", term.rank}, {"times", fmt::format("{:a}", term.times)}});
  }
  return parts;
}

class Sum final : public Target {
 public:
  explicit Sum(Site site) : site_(std::move(site)), factors_(factors_of(site_)) {
    height = site_.height;
    width = site_.width;
    experts = site_.experts;
  }

  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return factors_; }
  [[nodiscard]] std::string describe() const override {
    return nlohmann::ordered_json{
        {"kind", "low-rank sum"}, {"solver", "Gram or QR"}, {"parts", described(site_)}}
        .dump();
  }
  [[nodiscard]] std::uint64_t ranks() const override { return site_.ranks(); }
  // Rows of all terms, those of B times their weights.
  [[nodiscard]] Pair factors(const Plan& plan, std::uint64_t expert) const override {
    Pair all{Matrix(0, height), Matrix(0, width)};
    all.b.data.reserve(site_.ranks() * height);
    all.a.data.reserve(site_.ranks() * width);
    for (std::size_t t = 0; t < site_.terms.size(); ++t) {
      const Pair one = load(plan, site_, t, expert);
      append(all.b, one.b, site_.terms[t].times);
      append(all.a, one.a, 1);
    }
    return all;
  }
  [[nodiscard]] std::uint64_t memory(std::uint64_t rank) const override {
    const std::uint64_t ranks = site_.ranks();
    return sizeof(double) * (ranks + rank) * (height + width) +
           linalg::recombine_memory(height, width, ranks);
  }
  [[nodiscard]] double work(std::uint64_t) const override {
    return linalg::recombine_work(height, width, site_.ranks());
  }
  [[nodiscard]] Low solve(const Plan& plan, Backend*, std::uint64_t expert,
                          const linalg::Cut& cut) const override {
    const Pair all = factors(plan, expert);
    return linalg::recombine(all.b, all.a, cut);
  }
  [[nodiscard]] double distance(const Plan& plan, std::uint64_t expert, const Matrix& b,
                                const Matrix& a) const override {
    Pair all = factors(plan, expert);
    append(all.b, b, -1);
    append(all.a, a, 1);
    double sum = 0;
    for (const double value : linalg::spectrum(all.b, all.a)) sum += value * value;
    return std::sqrt(sum);
  }
  [[nodiscard]] double allowance() const override { return 1.0001; }

 private:
  static void append(Matrix& all, const Matrix& rows, double times) {
    all.cols = rows.cols;
    all.rows += rows.rows;
    for (const double x : rows.data) all.data.push_back(times * x);
  }

  Site site_;
  std::vector<Ingredient> factors_;
};

// The updates of one expert as dense tensors, a chunk at a time, and what the rule makes of them.
// Chunks are always the same, so that every look at an element shows the same number.
class Updates {
 public:
  Updates(const Plan& plan, const Site& site, const math::Rule& rule, std::uint64_t expert,
          Backend* backend)
      : site_(site), rule_(rule) {
    if (backend == nullptr) own_ = cpu_backend("");
    backend_ = backend != nullptr ? backend : own_.get();
    for (std::size_t t = 0; t < site.terms.size(); ++t) {
      factors_.push_back(load(plan, site, t, expert));
    }
    work_.rule = rule;
    work_.inputs.assign(site.terms.size(), Dtype::f32);
    measure();
  }

  [[nodiscard]] linalg::Rows rows() {
    return {site_.height, site_.width, [this](std::size_t first, std::span<float> values) {
              std::uint64_t at = first * site_.width, done = 0;
              while (done < values.size()) {
                const std::uint64_t chunk = at / kChunk, offset = at % kChunk;
                merge(chunk);
                const std::uint64_t n =
                    std::min<std::uint64_t>(merged_.size() - offset, values.size() - done);
                std::copy_n(merged_.data() + offset, n, values.data() + done);
                at += n;
                done += n;
              }
            }};
  }

 private:
  [[nodiscard]] std::uint64_t count(std::uint64_t chunk) const {
    return std::min(kChunk, rule_.elements - chunk * kChunk);
  }
  [[nodiscard]] std::uint64_t chunks() const { return (rule_.elements + kChunk - 1) / kChunk; }

  // A chunk of one term's update: times * B * A, rounded once.
  void update(std::size_t term, std::uint64_t chunk, std::vector<float>& values) const {
    const std::uint64_t first = chunk * kChunk, n = count(chunk);
    const std::uint64_t top = first / site_.width;
    const std::uint64_t height = (first + n + site_.width - 1) / site_.width - top;
    const Pair& pair = factors_[term];
    Matrix part(pair.b.rows, height);
    for (std::size_t k = 0; k < part.rows; ++k) {
      std::copy_n(pair.b.row(k) + top, height, part.row(k));
    }
    const Matrix dense = linalg::multiply(part, As::turned, pair.a, As::is);
    const double* from = dense.data.data() + (first - top * site_.width);
    values.resize(n);
    for (std::uint64_t i = 0; i < n; ++i) {
      values[i] = static_cast<float>(site_.terms[term].times * from[i]);
    }
  }

  // All terms of a chunk.
  [[nodiscard]] std::vector<std::vector<float>> updates(std::uint64_t chunk) const {
    std::vector<std::vector<float>> values(factors_.size());
    for (std::size_t t = 0; t < factors_.size(); ++t) update(t, chunk, values[t]);
    return values;
  }
  [[nodiscard]] static std::vector<const std::byte*> places(
      const std::vector<std::vector<float>>& values) {
    std::vector<const std::byte*> inputs;
    for (const auto& one : values) inputs.push_back(reinterpret_cast<const std::byte*>(one.data()));
    return inputs;
  }
  [[nodiscard]] Chunk view(std::uint64_t chunk, const std::vector<const std::byte*>& inputs) const {
    Chunk view;
    view.work = &work_;
    view.first = chunk * kChunk;
    view.count = static_cast<std::uint32_t>(count(chunk));
    view.inputs = inputs.data();
    return view;
  }

  // Updates are made anew for every look at a chunk, so a sample looks at few of them.
  void measure() {
    const std::string name = "the update";
    Measuring measuring(work_.rule, name, true);
    while (!measuring.done()) {
      for (const std::uint32_t chunk : measuring.chunks()) {
        const auto values = updates(chunk);
        const auto inputs = places(values);
        measuring.visit(*backend_, view(chunk, inputs));
      }
      measuring.advance();
    }
    known_ = measuring.known();
  }

  void merge(std::uint64_t chunk) {
    if (chunk == at_) return;
    const auto values = updates(chunk);
    const auto inputs = places(values);
    merged_.resize(count(chunk));
    Tally tally;
    Backend::Item item{view(chunk, inputs), reinterpret_cast<std::byte*>(merged_.data()), &tally};
    item.chunk.facts = &known_.facts;
    backend_->apply({&item, 1});
    at_ = chunk;
  }

  const Site& site_;
  math::Rule rule_;
  std::unique_ptr<Backend> own_;
  Backend* backend_ = nullptr;
  std::vector<Pair> factors_;
  Work work_;
  Measurements known_;
  std::vector<float> merged_;
  std::uint64_t at_ = ~std::uint64_t{0};  // the chunk in merged_
};

class Combined final : public Target {
 public:
  Combined(Site site, const math::Rule& rule)
      : site_(std::move(site)), rule_(rule), factors_(factors_of(site_)) {
    height = site_.height;
    width = site_.width;
    experts = site_.experts;
  }

  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return factors_; }
  [[nodiscard]] std::string describe() const override {
    nlohmann::ordered_json json{{"kind", "combined updates"},
                                {"solver", "block Lanczos"},
                                {"method", math::method(rule_.method).card.name},
                                {"parts", described(site_)}};
    for (int s = 0; s < rule_.sources; ++s) {
      auto& part = json["parts"][static_cast<std::size_t>(s)];
      int at = 0;
      for (const math::Parameter& parameter : math::method(rule_.method).parameters) {
        if (parameter.scope == math::Scope::global) continue;
        part[parameter.name] = fmt::format("{:a}", rule_.locals[s][at++]);
      }
    }
    return json.dump();
  }
  [[nodiscard]] std::uint64_t memory(std::uint64_t rank) const override {
    const std::uint64_t chunk = std::min(kChunk, height * width);
    return sizeof(double) * (site_.ranks() + rank) * (height + width) +
           (sizeof(double) + sizeof(float) * (site_.terms.size() + 2)) * (chunk + 2 * width) +
           linalg::approximate_memory(height, width, rank, sketch());
  }
  [[nodiscard]] double work(std::uint64_t rank) const override {
    return linalg::approximate_work(height, width, rank, sketch());
  }
  [[nodiscard]] Low solve(const Plan& plan, Backend* backend, std::uint64_t expert,
                          const linalg::Cut& cut) const override {
    Updates updates(plan, site_, rule_of(expert), expert, backend);
    return linalg::approximate(updates.rows(), cut, sketch(), solver_of(backend));
  }
  [[nodiscard]] double distance(const Plan& plan, std::uint64_t expert, const Matrix& b,
                                const Matrix& a) const override {
    Updates updates(plan, site_, rule_of(expert), expert, nullptr);
    return linalg::residual(updates.rows(), b, a);
  }
  [[nodiscard]] double allowance() const override { return 1.005; }
  [[nodiscard]] bool draws() const override { return math::draws(rule_); }

 private:
  // Every expert draws from a stretch of the streams of its own.
  [[nodiscard]] math::Rule rule_of(std::uint64_t expert) const {
    math::Rule rule = rule_;
    for (int s = 0; s < rule.sources; ++s) rule.stream[s] += expert;
    return rule;
  }

  Site site_;
  math::Rule rule_;
  std::vector<Ingredient> factors_;
};

class Between final : public Target {
 public:
  explicit Between(const Difference& difference) : difference_(difference) {
    for (const Difference::Piece& piece : difference.pieces) {
      tensors_.push_back(piece.tuned);
      tensors_.push_back(piece.base);
    }
    height = difference.height;
    width = difference.width;
    experts = difference.experts;
  }

  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return tensors_; }
  [[nodiscard]] std::string describe() const override {
    nlohmann::ordered_json json{{"kind", "difference"}, {"solver", "block Lanczos"}};
    if (difference_.turned) json["transposed"] = true;
    if (experts > 1) json["experts"] = experts;
    if (difference_.pieces.size() > 1) json["pieces"] = difference_.pieces.size();
    if (difference_.first > 0) json["first"] = difference_.first;
    return json.dump();
  }
  [[nodiscard]] std::uint64_t memory(std::uint64_t rank) const override {
    return 4 * kChunk * sizeof(float) + sizeof(double) * rank * (height + width) +
           linalg::approximate_memory(height, width, rank, sketch());
  }
  [[nodiscard]] double work(std::uint64_t rank) const override {
    return linalg::approximate_work(height, width, rank, sketch());
  }
  [[nodiscard]] Low solve(const Plan& plan, Backend* backend, std::uint64_t expert,
                          const linalg::Cut& cut) const override {
    Low low = linalg::approximate(rows(plan, expert), cut, sketch(), solver_of(backend));
    return difference_.turned ? turned(std::move(low)) : low;
  }
  [[nodiscard]] double distance(const Plan& plan, std::uint64_t expert, const Matrix& b,
                                const Matrix& a) const override {
    return difference_.turned ? linalg::residual(rows(plan, expert), a, b)
                              : linalg::residual(rows(plan, expert), b, a);
  }
  [[nodiscard]] double allowance() const override { return 1.005; }

 private:
  // Says why a part of the difference from element `first` of a piece on is not finite.
  [[noreturn]] static void refuse(const Plan& plan, const Difference::Piece& piece,
                                  std::uint64_t first, std::span<float> difference,
                                  std::span<const float> base) {
    const auto i =
        static_cast<std::size_t>(std::find_if(difference.begin(), difference.end(),
                                              [](float x) { return !std::isfinite(x); }) -
                                 difference.begin());
    const auto value = [&](const Ingredient& tensor) {
      const Checkpoint& checkpoint = plan.models[tensor.model].checkpoint;
      float x = 0;
      read_values(checkpoint, checkpoint.entries()[tensor.entry], first + i, {&x, 1});
      return x;
    };
    const auto model = [&](const Ingredient& tensor) {
      return plan.models[tensor.model].checkpoint.shown();
    };
    const std::string& name =
        plan.models[piece.tuned.model].checkpoint.entries()[piece.tuned.entry].info.name;
    const float tuned = value(piece.tuned);
    for (const auto& [x, tensor] : {std::pair(tuned, piece.tuned), {base[i], piece.base}}) {
      if (std::isfinite(x)) continue;
      fail(Code::format, fmt::format("{} of {} holds {} (element {}), so nothing can be extracted "
                                     "from it",
                                     name, model(tensor), x, first + i));
    }
    fail(Code::range,
         fmt::format("{}: element {} is {:g} in {} and {:g} in {}: float32 does not hold "
                     "the difference",
                     name, first + i, tuned, model(piece.tuned), base[i], model(piece.base)));
  }

  // As stored: (in, out) where it is transposed.
  [[nodiscard]] linalg::Rows rows(const Plan& plan, std::uint64_t expert) const {
    const std::uint64_t stored_width = difference_.turned ? height : width;
    return {difference_.turned ? width : height, stored_width,
            [&plan, this, stored_width, expert](std::size_t first, std::span<float> values) {
              read(plan, expert, first * stored_width, values);
            }};
  }

  // Elements of an expert's matrix from `first` on.
  void read(const Plan& plan, std::uint64_t expert, std::uint64_t first,
            std::span<float> values) const {
    const auto load = [&](const Ingredient& tensor, std::uint64_t at, std::span<float> into) {
      const Checkpoint& checkpoint = plan.models[tensor.model].checkpoint;
      read_values(checkpoint, checkpoint.entries()[tensor.entry], at, into);
    };
    const std::uint64_t size = height * width, pieces = difference_.pieces.size();
    const bool apart = pieces > 1;  // every expert has pieces of its own
    const std::uint64_t part = apart ? size / (pieces / experts) : size;
    std::vector<float> base(std::min<std::uint64_t>(values.size(), kChunk));
    for (std::uint64_t done = 0; done < values.size();) {
      const std::uint64_t at = first + done, within = at % part;
      const Difference::Piece& piece =
          difference_.pieces[apart ? expert * (pieces / experts) + at / part : 0];
      const std::uint64_t from = apart ? within : difference_.first + expert * size + at;
      const std::uint64_t n =
          std::min({values.size() - done, static_cast<std::uint64_t>(base.size()), part - within});
      load(piece.tuned, from, values.subspan(done, n));
      load(piece.base, from, std::span(base).first(n));
      bool finite = true;
      for (std::uint64_t i = 0; i < n; ++i) {
        values[done + i] -= base[i];
        finite &= std::fabs(values[done + i]) <= std::numeric_limits<float>::max();
      }
      if (!finite) refuse(plan, piece, from, values.subspan(done, n), base);
      done += n;
    }
  }

  // The factors of the transposed matrix: what was B is A, so lengths and signs change places.
  static Low turned(Low low) {
    std::swap(low.a, low.b);
    for (std::size_t k = 0; k < low.a.rows; ++k) {
      const std::span a(low.a.row(k), low.a.cols), b(low.b.row(k), low.b.cols);
      const double value = low.values[k];
      if (!(value > 0)) continue;
      const double largest = *std::max_element(
          a.begin(), a.end(), [](double x, double y) { return std::fabs(x) < std::fabs(y); });
      const double scale = largest < 0 ? -value : value;
      for (double& x : a) x /= scale;
      for (double& x : b) x *= scale;
    }
    return low;
  }

  Difference difference_;
  std::vector<Ingredient> tensors_;
};

}  // namespace

std::unique_ptr<Target> sum_of(Site site) { return std::make_unique<Sum>(std::move(site)); }

std::unique_ptr<Target> combined(Site site, const math::Rule& rule) {
  return std::make_unique<Combined>(std::move(site), rule);
}

std::unique_ptr<Target> difference(const Difference& difference) {
  return std::make_unique<Between>(difference);
}

}  // namespace ingot::adapter
