#include "adapter/solve.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/clip.hpp"
#include "ingot/backend.hpp"
#include "ingot/error.hpp"
#include "ingot/plan.hpp"
#include "store/values.hpp"

namespace ingot::adapter {

struct Campaign::Solution {
  std::vector<float> a, b;  // as stored in PEFT's layout
  std::string found;        // for the receipt
};

namespace {

using Solution = Campaign::Solution;

// How many modules ahead somebody who waits may look for work.
constexpr std::size_t kAhead = 4;

using Modules = std::vector<const Campaign::Module*>;

// Bytes of a module's factors.
std::uint64_t bytes_of(const Campaign::Module& module) {
  const Target& target = *module.target;
  return sizeof(float) * target.experts * module.rank * (target.height + target.width);
}

// Bytes that a module takes while it is solved, or fetched where its decomposition was kept.
std::uint64_t memory_of(const Campaign::Module& module) {
  const Target& target = *module.target;
  return module.kept ? 2 * sizeof(double) * module.rank * (target.height + target.width)
                     : target.memory(module.rank);
}

// To six digits: libraries agree on no more than some ten.
double rounded(double x) { return std::strtod(fmt::format("{:.5e}", x).c_str(), nullptr); }

// The result of a decomposition.
std::string account(const Campaign::Module& module, double norm, double error) {
  norm = rounded(norm);
  error = rounded(error);
  return nlohmann::ordered_json{{"module", module.name},
                                {"norm", norm},
                                {"error", error},
                                {"relative_error", norm > 0 ? rounded(error / norm) : 0.0}}
      .dump();
}

double largest(std::span<const double> values) {
  double size = 0;
  for (const double x : values) size = std::max(size, std::fabs(x));
  return size;
}

// The exponent of a type's smallest normal number.
int least_exponent(Dtype d) {
  switch (d) {
    case Dtype::f16:
    case Dtype::f8_e5m2:
      return -14;
    case Dtype::f8_e4m3:
      return -6;
    default:
      return -126;
  }
}

// The exponent from which on a row's largest number leaves room for the others above the subnormal
// ones.
int low_exponent(Dtype d) {
  const int least = least_exponent(d);
  return least + (least < -100 ? 36 : 4);
}

// Half of the smallest distance of two numbers of a type: what rounding costs where the relative
// bound does not hold.
double least_half(Dtype stored) {
  switch (stored) {
    case Dtype::f8_e4m3:
      return 0x1p-10;
    case Dtype::f8_e5m2:
      return 0x1p-17;
    case Dtype::f16:
      return 0x1p-25;
    case Dtype::bf16:
      return 0x1p-134;
    default:
      return 0x1p-150;
  }
}

// The length of a direction is in B. Where its type has no such numbers, A takes a power of two of
// it: as much as leaves both as large, but never so much that A's own numbers get lost, and nothing
// where B is nothing all the same. From the largest numbers of both.
int balance(Dtype stored, double of_a, double of_b) {
  if (!(of_a > 0 && of_b > 0) || !std::isfinite(of_a * of_b)) return 0;
  const int low = low_exponent(stored), in_a = std::ilogb(of_a), in_b = std::ilogb(of_b);
  if (of_b > largest_of(stored)) return (in_b - in_a) / 2;
  if (in_b >= low) return 0;
  const int shift = std::min(0, std::max((in_b - in_a) / 2, low - in_a));
  return std::ldexp(of_b, -shift) > least_half(stored) ? shift : 0;
}

// The form of factors: rows of A are orthonormal, times a power of two where B's type asks for it;
// the largest entry of each is positive; columns of B are orthogonal, with lengths that do not grow
// from one to the next. docs/adapters.md states the tolerances.
class Form {
 public:
  // `best`: the same matrix solved again, `allowance` times which another solution may have.
  // Factors by rows, as the folder has them.
  Form(Dtype stored, const linalg::Low& best, double allowance, linalg::Matrix b, linalg::Matrix a)
      : stored_(stored), best_(best), allowance_(allowance), b_(std::move(b)), a_(std::move(a)) {}

  // The problem in words, or an empty text.
  [[nodiscard]] std::string fault() {
    for (std::size_t k = 0; k < a_.rows; ++k) {
      if (std::string wrong = direction(k); !wrong.empty()) return wrong;
    }
    for (std::size_t k = 0; k < a_.rows; ++k) {
      for (std::size_t j = 0; j < k; ++j) {
        if (!(std::fabs(dot(a_, j, k)) <= room(j, k) + nothing(a_))) {
          return fmt::format("rows {} and {} of A are not orthogonal", j + 1, k + 1);
        }
        const double lengths = length_[j] * length_[k];
        if (!(std::fabs(dot(b_, j, k)) <=
              (kSolved + 4 * roundoff(stored_)) * lengths + kDouble * top() * top() +
                  (length_[j] + length_[k]) * nothing(b_) + nothing(b_) * nothing(b_))) {
          return fmt::format("columns {} and {} of B are not orthogonal", j + 1, k + 1);
        }
      }
    }
    return {};
  }

 private:
  // Solvers that go by Gram matrices know directions to this, and what they square to this.
  static constexpr double kSolved = 0x1p-16, kDouble = 0x1p-44;

  // One row of A and column of B; brings them to the length that they have without a power of two.
  [[nodiscard]] std::string direction(std::size_t k) {
    const std::span<double> a(a_.row(k), a_.cols), b(b_.row(k), b_.cols);
    const double of_a = largest(a), of_b = largest(b);
    const bool none = value(k) == 0;
    length_.push_back(0);
    if (!std::isfinite(of_a) || !std::isfinite(of_b)) {
      return fmt::format("row {} of A or column {} of B is not finite", k + 1, k + 1);
    }
    if (of_a == 0 && of_b == 0) return {};
    if (of_a == 0 || best_.norm == 0 || k >= best_.a.rows) {
      return fmt::format("row {} of A and column {} of B are to be zero", k + 1, k + 1);
    }
    if (*std::max_element(a.begin(), a.end()) < of_a) {
      return fmt::format("the largest entry of row {} of A is negative", k + 1);
    }
    const double norm = std::sqrt(dot(a_, k, k));
    const int shift = std::ilogb(norm * std::sqrt(2.0));
    for (double& x : a) x = std::ldexp(x, -shift);
    for (double& x : b) x = std::ldexp(x, shift);
    const double unit = std::ldexp(norm, -shift), room_of = room(k, k) + nothing(a_);
    if (!(std::fabs(unit - 1) <= room_of) || !shifts(shift, largest(a), largest(b))) {
      return fmt::format("row {} of A has the length {:.6g}", k + 1, norm);
    }
    length_[k] = std::sqrt(dot(b_, k, k));
    const double most = none ? 0 : k == 0 ? allowance_ * top() : length_[k - 1];
    const double rounding = 4 * roundoff(stored_) * std::max(most, none ? top() : 0);
    if (!(length_[k] <= most + rounding + kSolved * top() + nothing(b_))) {
      return fmt::format("column {} of B has the length {:.6g}, more than the one before", k + 1,
                         length_[k]);
    }
    return {};
  }

  // True if A may have taken this power of two: near a limit rounding decides whether it does.
  [[nodiscard]] bool shifts(int shift, double of_a, double of_b) const {
    for (const double one : {-1.0, 0.0, 1.0}) {
      for (const double by : {-1.0, 0.0, 1.0}) {
        const int due = balance(stored_, of_a * (1 + one * 4 * roundoff(stored_)),
                                of_b * (1 + by * 4 * roundoff(stored_)));
        if (due == shift || (due != 0 && std::abs(due - shift) <= 1)) return true;
      }
    }
    return false;
  }

  // How far the product of two rows of A may be from that of unit vectors.
  [[nodiscard]] double room(std::size_t j, std::size_t k) const {
    const double scale = value(j) * value(k);
    const double solved = scale > 0 ? kDouble * top() * top() / scale : 1;
    return kSolved + 4 * roundoff(stored_) + std::min(solved, j == k ? 0.5 : 1.0);
  }

  [[nodiscard]] double value(std::size_t k) const {
    return k < best_.a.rows && largest({best_.a.row(k), best_.a.cols}) > 0 ? best_.values[k] : 0;
  }
  [[nodiscard]] double top() const { return best_.values.empty() ? 0 : best_.values[0]; }
  // The length of a vector of numbers that rounding makes nothing of.
  [[nodiscard]] double nothing(const linalg::Matrix& rows) const {
    return 2 * least_half(stored_) * std::sqrt(static_cast<double>(rows.cols));
  }
  [[nodiscard]] static double dot(const linalg::Matrix& rows, std::size_t j, std::size_t k) {
    double sum = 0;
    for (std::size_t i = 0; i < rows.cols; ++i) sum += rows.at(j, i) * rows.at(k, i);
    return sum;
  }

  const Dtype stored_;
  const linalg::Low& best_;
  const double allowance_;
  linalg::Matrix b_, a_;
  std::vector<double> length_;  // of B's columns
};

// The sum of the squares of what rounding to `stored` takes from the values times 2^shift, in units
// of the values themselves. Overflow is none of its business.
double lost(std::span<const double> values, int shift, Dtype stored) {
  const int least = least_exponent(stored), digits = std::ilogb(roundoff(stored)) + 1;
  double sum = 0;
  for (const double x : values) {
    if (x == 0) continue;
    // Steps of the type between numbers of this size, as an exponent.
    const int step = std::max(std::ilogb(x) + shift, least) + digits - shift;
    const double rest = x - std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
    sum += rest * rest;
  }
  return sum;
}

// A module's solution as its experts are solved.
class Making {
 public:
  explicit Making(const Campaign::Module& module) : module_(module) {
    solution_.a.resize(module.target->experts * module.rank * module.target->width);
    solution_.b.resize(module.target->height * module.rank * module.target->experts);
  }

  [[nodiscard]] const Campaign::Module& module() const { return module_; }

  void take(std::uint64_t expert, const linalg::Low& low) {
    const Target& target = *module_.target;
    const std::uint64_t rank = module_.rank, experts = target.experts;
    for (std::uint64_t k = 0; k < std::min<std::uint64_t>(rank, low.a.rows); ++k) {
      const std::span<const double> a(low.a.row(k), target.width), b(low.b.row(k), target.height);
      const int shift = balance(module_.stored, largest(a), largest(b));
      note_lost(a, b, shift);
      const double up = std::ldexp(1.0, shift), down = std::ldexp(1.0, -shift);
      float* row = solution_.a.data() + (expert * rank + k) * target.width;
      for (std::uint64_t i = 0; i < target.width; ++i) row[i] = static_cast<float>(a[i] * up);
      for (std::uint64_t o = 0; o < target.height; ++o) {
        solution_.b[o * rank * experts + k * experts + expert] = static_cast<float>(b[o] * down);
      }
    }
    norm_ += low.norm * low.norm;
    error_ += low.error * low.error;
  }

  [[nodiscard]] std::shared_ptr<const Solution> finish() {
    const double norm = std::sqrt(norm_), error = std::sqrt(error_);
    if (!std::isfinite(norm) || !std::isfinite(error)) {
      fail(Code::range, fmt::format("{}: the update is too large to decompose in single precision; "
                                    "choose smaller weights",
                                    module_.name));
    }
    // As verify() allows for: B's rounding turns the product by as much of its norm, A's by up to
    // the root of the rank more.
    const double lost = std::sqrt(lost_a_) + std::sqrt(lost_b_);
    if (lost >
        roundoff(module_.stored) * (2 + std::sqrt(static_cast<double>(module_.rank))) * norm) {
      fail(Code::range,
           fmt::format("{}: {} cannot hold the factors of an update whose norm is {:.3g}: they "
                       "would lose {:.3g} of it, because many of their numbers are smaller than "
                       "the smallest of the type; choose float32 or bfloat16 (--dtype)",
                       module_.name, word(module_.stored), norm, lost));
    }
    solution_.found = account(module_, norm, error);
    return std::make_shared<const Solution>(std::move(solution_));
  }

 private:
  // What a direction loses where its numbers may lie below the smallest of the type. Rows of A are
  // orthogonal, and so are columns of B: squares add up.
  void note_lost(std::span<const double> a, std::span<const double> b, int shift) {
    const double of_a = largest(a), of_b = largest(b);
    if (!(of_a > 0 && of_b > 0) || !std::isfinite(of_a * of_b)) return;
    const int low = low_exponent(module_.stored);
    if (low < -50 && std::ilogb(of_a) + shift >= low && std::ilogb(of_b) - shift >= low) return;
    const auto squares = [](std::span<const double> values) {
      double sum = 0;
      for (const double x : values) sum += x * x;
      return sum;
    };
    lost_b_ += lost(b, -shift, module_.stored) * squares(a);
    lost_a_ += lost(a, shift, module_.stored) * squares(b);
  }

  const Campaign::Module& module_;
  Solution solution_;
  double norm_ = 0, error_ = 0;
  double lost_a_ = 0, lost_b_ = 0;  // squares of what rounding takes from the update
};

// Solves modules: `together` matrices at a time, which are products of one shape, or 0: one by one.
std::vector<std::shared_ptr<const Solution>> solve(const Plan& plan, Backend* backend,
                                                   const Modules& modules, std::size_t together) {
  std::vector<Making> makings;
  for (const Campaign::Module* module : modules) makings.emplace_back(*module);
  struct Matrix {
    Making* making;
    std::uint64_t expert;
  };
  std::vector<Matrix> all;
  for (Making& making : makings) {
    for (std::uint64_t e = 0; e < making.module().target->experts; ++e) all.push_back({&making, e});
  }
  const auto alone = [&](const Matrix& m) {
    const Campaign::Module& module = m.making->module();
    try {
      m.making->take(m.expert,
                     module.kept ? module.kept->find(module.name, m.expert, module.rank)
                                 : module.target->solve(plan, backend, m.expert, {module.rank, 1}));
    } catch (Error& error) {
      throw error.add(fmt::format("solving {}", module.a));
    }
  };
  for (std::size_t first = 0; together > 0 && first < all.size(); first += together) {
    const std::span some = std::span(all).subspan(first, std::min(together, all.size() - first));
    const Target& shape = *modules.front()->target;
    const Campaign::Module* current = modules.front();  // for errors: the last that was read
    const linalg::Products products{shape.height, shape.width, shape.ranks(), some.size(),
                                    [&](std::size_t i, linalg::Matrix& b, linalg::Matrix& a) {
                                      current = &some[i].making->module();
                                      Pair pair = current->target->factors(plan, some[i].expert);
                                      b = std::move(pair.b);
                                      a = std::move(pair.a);
                                    }};
    const auto take = [&](std::size_t i, const linalg::Low& low) {
      some[i].making->take(some[i].expert, low);
    };
    std::vector<std::size_t> rest;
    try {
      rest = linalg::recombine(backend->solver(), products, modules.front()->rank, take);
    } catch (Error& error) {
      throw error.add(fmt::format("solving {}", current->a));
    }
    for (const std::size_t i : rest) alone(some[i]);
  }
  if (together == 0) {
    for (const Matrix& matrix : all) alone(matrix);
    const Target& target = *modules.front()->target;
    const bool solved = modules.front()->kept == nullptr && target.ranks() > 0;
    if (solved && backend != nullptr && backend->solver().capacity() > 0) {
      linalg::Solver& solver = backend->solver();
      (target.ranks() > std::min(target.height, target.width) ? solver.ill : solver.large) +=
          all.size();
    }
  }
  std::vector<std::shared_ptr<const Solution>> solutions;
  for (Making& making : makings) solutions.push_back(making.finish());
  return solutions;
}

class Factor final : public Derived {
 public:
  Factor(std::shared_ptr<Campaign> campaign, std::size_t index, Side side)
      : campaign_(std::move(campaign)), index_(index), side_(side) {}

  [[nodiscard]] bool own() const override { return false; }
  [[nodiscard]] std::span<const Ingredient> ingredients() const override {
    return module().target->ingredients();
  }
  [[nodiscard]] std::uint64_t memory() const override {
    return memory_of(module()) + bytes_of(module());
  }
  [[nodiscard]] std::string describe() const override {
    auto json = nlohmann::ordered_json::parse(module().target->describe());
    json["factor"] = side_ == Side::a ? "A" : "B";
    json["rank"] = module().rank;
    return json.dump();
  }

  [[nodiscard]] Joint* joint() const override { return campaign_.get(); }
  [[nodiscard]] bool exact() const override { return false; }
  [[nodiscard]] bool draws() const override { return module().target->draws(); }

  [[nodiscard]] std::unique_ptr<Working> begin(const Plan& plan, Backend* backend) const override {
    return std::make_unique<Work>(campaign_->solution(plan, backend, index_), side_);
  }

  [[nodiscard]] std::vector<Truth> recompute(const Plan&, std::uint64_t, std::uint64_t,
                                             std::span<const float>) const override {
    fail(Code::internal, "a decomposition is judged as a whole");
  }

  // The judge of A looks at both.
  [[nodiscard]] std::optional<std::string> judge(const Plan& plan, const Checkpoint& output,
                                                 const std::string& name,
                                                 const std::string& told) const override {
    if (side_ == Side::b) {
      return told.empty()
                 ? std::string()
                 : fmt::format("{}: the receipt describes this decomposition twice, here and at A",
                               name);
    }
    const Campaign::Module& m = module();
    const Target& target = *m.target;
    const auto values = [&](const std::string& factor) {
      const Entry* entry = output.find(factor);
      if (entry == nullptr) fail(Code::missing, fmt::format("{} is not there", factor));
      std::vector<float> all(entry->info.count());
      read_values(output, *entry, 0, all);
      return all;
    };
    const std::vector<float> a = values(m.a), b = values(m.b);
    if (a.size() != target.experts * m.rank * target.width ||
        b.size() != target.height * m.rank * target.experts) {
      return fmt::format("{} and {} do not have the shapes of the plan", m.a, m.b);
    }
    double best = 0, found = 0, norm = 0;
    std::string form;
    for (std::uint64_t e = 0; e < target.experts; ++e) {
      linalg::Matrix left(m.rank, target.height), right(m.rank, target.width);
      for (std::uint64_t k = 0; k < m.rank; ++k) {
        for (std::uint64_t i = 0; i < target.width; ++i) {
          right.at(k, i) = static_cast<double>(a[(e * m.rank + k) * target.width + i]);
        }
        for (std::uint64_t o = 0; o < target.height; ++o) {
          left.at(k, o) =
              static_cast<double>(b[o * m.rank * target.experts + k * target.experts + e]);
        }
      }
      const linalg::Low low = target.solve(plan, nullptr, e, {m.rank, 1});
      const double rest = target.distance(plan, e, left, right);
      if (form.empty())
        form = Form(m.stored, low, target.allowance(), std::move(left), std::move(right)).fault();
      best += low.error * low.error;
      norm += low.norm * low.norm;
      found += rest * rest;
    }
    best = std::sqrt(best);
    found = std::sqrt(found);
    norm = std::sqrt(norm);
    // B's rounding turns the product by as much of its norm, A's by up to the root of the rank
    // more.
    const double slack = roundoff(m.stored) * (2 + std::sqrt(static_cast<double>(m.rank))) * norm;
    if (!(found <= target.allowance() * best + slack)) {
      return fmt::format(
          "{} and {} miss {:.6g} of the update, whose norm is {:.6g}; the best factors of rank {} "
          "miss {:.6g}",
          m.a, m.b, found, norm, m.rank, best);
    }
    if (!form.empty()) return fmt::format("{} and {}: {}", m.a, m.b, form);
    return accountable(told, norm, best, found, slack)
               ? std::string()
               : fmt::format("{}: the receipt says {} of its decomposition, but {} was found", name,
                             clip(told, 200), account(m, norm, found));
  }

  // One account of a module is enough.
  [[nodiscard]] std::string found(const Working& working) const override {
    return side_ == Side::a ? static_cast<const Work&>(working).solution().found : std::string();
  }

 private:
  class Work final : public Working {
   public:
    // Shared with the campaign until the other side has it too.
    Work(std::shared_ptr<const Solution> solution, Side side)
        : solution_(std::move(solution)), side_(side) {}
    void fill(std::uint64_t first, std::span<const std::byte>, std::span<float> values) override {
      const std::vector<float>& from = side_ == Side::a ? solution_->a : solution_->b;
      std::copy_n(from.data() + first, values.size(), values.data());
    }
    [[nodiscard]] const Solution& solution() const { return *solution_; }

   private:
    std::shared_ptr<const Solution> solution_;
    Side side_;
  };

  [[nodiscard]] const Campaign::Module& module() const { return campaign_->module(index_); }

  // True if the run may have told this of its factors, which leave `found` as they are stored: the
  // norm as another library rounds it, an error that stored factors and promise leave room for.
  [[nodiscard]] bool accountable(const std::string& told, double norm, double best, double found,
                                 double slack) const {
    const auto json = nlohmann::ordered_json::parse(told, nullptr, false);
    if (!json.is_object() || !json.contains("norm") || !json.contains("error") ||
        !json["norm"].is_number() || !json["error"].is_number()) {
      return false;
    }
    const double n = json["norm"].get<double>(), error = json["error"].get<double>();
    const double place =
        0.5000001 * std::pow(10.0, std::floor(std::log10(std::max(n, 1e-300))) - 5);
    const double digit =
        0.5000001 * std::pow(10.0, std::floor(std::log10(std::max(error, 1e-300))) - 5);
    constexpr double kLibraries = 1e-7;  // of the norm: double sums of f32 numbers
    return account(module(), n, error) == told &&
           std::fabs(n - norm) <= place + kLibraries * norm &&
           std::fabs(error - found) <= digit + slack + kLibraries * norm &&
           error >= best / module().target->allowance() - digit - kLibraries * norm &&
           error <= module().target->allowance() * best + digit + kLibraries * norm;
  }

  std::shared_ptr<Campaign> campaign_;  // shared by all factors of the plan
  std::size_t index_;
  Side side_;
};

}  // namespace

struct Campaign::Body {
  enum class State : std::uint8_t { open, busy, ready, spent };
  struct Slot {
    Module module;
    State state = State::open;
    int taken = 0;                             // sides that have the solution
    std::shared_ptr<const Solution> solution;  // shared with the sides; kept here for the other one
  };
  // Modules that are solved in one go; the first of them decides about the shape.
  struct Batch {
    std::vector<std::size_t> slots;
    std::size_t together = 0;  // matrices in a call; 0: one by one
    std::uint64_t extra = 0;   // bytes of work that no job's own memory covers
  };

  std::mutex mutex;  // guards the slots' states, `held` and `counts`
  std::condition_variable changed;
  std::deque<Slot> slots;  // stays in place as modules are added
  std::uint64_t allowed = 0, held = 0;
  std::map<std::array<std::uint64_t, 4>, std::size_t> counts;  // by shape and rank

  // What to solve for somebody who wants a module: it, or while others do that what comes next, if
  // its result may wait. Nothing: everything near is under way.
  [[nodiscard]] Batch choose(Backend* backend, std::size_t wanted) {
    Batch batch;
    const std::size_t end = std::min(slots.size(), wanted + 1 + kAhead);
    std::size_t lead = wanted;
    while (lead < end && slots[lead].state != State::open) ++lead;
    if (lead == end) return batch;
    const Module& first = slots[lead].module;
    if (lead != wanted) {
      // A waiting thread may use the memory reserved for its own job.
      const std::uint64_t needs = memory_of(first);
      batch.extra = needs - std::min(needs, memory_of(slots[wanted].module));
      if (held + batch.extra + bytes_of(first) > allowed) return {};
    }
    batch.together = count_of(backend, first);
    std::uint64_t matrices = 0, bytes = batch.extra;
    for (std::size_t i = lead; i < slots.size(); ++i) {
      const Module& module = slots[i].module;
      if (slots[i].state != State::open || (i != lead && !alike(first, module))) continue;
      matrices += module.target->experts;
      if (i != lead && (matrices > batch.together || held + bytes + bytes_of(module) > allowed))
        break;
      bytes += bytes_of(module);
      batch.slots.push_back(i);
      slots[i].state = State::busy;
      if (batch.together == 0) break;
    }
    held += bytes;
    return batch;
  }

  // The results of a batch, or none: it failed.
  void settle(const Batch& batch, std::vector<std::shared_ptr<const Solution>> solved) {
    held -= batch.extra;
    for (std::size_t i = 0; i < batch.slots.size(); ++i) {
      Slot& slot = slots[batch.slots[i]];
      if (solved.empty()) {
        held -= bytes_of(slot.module);
        slot.state = State::open;
      } else {
        slot.solution = std::move(solved[i]);
        slot.state = State::ready;
      }
    }
    changed.notify_all();
  }

  std::shared_ptr<const Solution> take(Slot& slot) {
    std::shared_ptr<const Solution> solution = slot.solution;
    if (++slot.taken == 2) {
      held -= bytes_of(slot.module);
      slot.solution.reset();
      slot.state = State::spent;
      slot.taken = 0;
    }
    return solution;
  }

 private:
  static bool alike(const Module& x, const Module& y) {
    return !x.kept && !y.kept && x.rank == y.rank && x.target->ranks() == y.target->ranks() &&
           x.target->height == y.target->height && x.target->width == y.target->width;
  }

  // How many matrices like this module's the solver takes at once.
  [[nodiscard]] std::size_t count_of(Backend* backend, const Module& module) {
    const Target& target = *module.target;
    if (backend == nullptr || target.ranks() == 0 || module.kept) return 0;
    linalg::Solver& solver = backend->solver();
    if (solver.capacity() == 0) return 0;
    const auto [at, fresh] =
        counts.try_emplace({target.height, target.width, target.ranks(), module.rank}, 0);
    if (!fresh) return at->second;
    std::uint64_t all = 0;
    for (const Slot& slot : slots) {
      if (alike(module, slot.module)) all += slot.module.target->experts;
    }
    const linalg::Products shape{target.height, target.width, target.ranks(), 0, {}};
    return at->second = linalg::recombine_count(solver, shape, module.rank, all);
  }
};

Campaign::Campaign() : body_(std::make_unique<Body>()) {}
Campaign::~Campaign() = default;

std::size_t Campaign::add(Module module) {
  if (module.kept && !module.kept->has(module.name, module.target->experts, module.rank)) {
    module.kept.reset();
  }
  body_->slots.emplace_back().module = std::move(module);
  return body_->slots.size() - 1;
}

const Campaign::Module& Campaign::module(std::size_t index) const {
  return body_->slots[index].module;
}

std::uint64_t Campaign::least() const {
  std::uint64_t bytes = 0;
  for (const Body::Slot& slot : body_->slots) bytes = std::max(bytes, bytes_of(slot.module));
  return bytes;
}

std::uint64_t Campaign::most() const {
  std::uint64_t bytes = 0;
  for (const Body::Slot& slot : body_->slots) bytes += bytes_of(slot.module);
  return bytes;
}

double Campaign::work() const {
  double sum = 0;
  for (const Body::Slot& slot : body_->slots) {
    if (slot.module.kept) continue;
    const Target& target = *slot.module.target;
    sum += static_cast<double>(target.experts) * target.work(slot.module.rank);
  }
  return sum;
}

void Campaign::allow(std::uint64_t bytes) { body_->allowed = bytes; }

std::shared_ptr<const Campaign::Solution> Campaign::solution(const Plan& plan, Backend* backend,
                                                             std::size_t index) {
  using State = Body::State;
  std::unique_lock lock(body_->mutex);
  Body::Slot& wanted = body_->slots[index];
  while (wanted.state != State::ready) {
    if (wanted.state == State::spent) wanted.state = State::open;
    const Body::Batch batch = body_->choose(backend, index);
    if (batch.slots.empty()) {
      body_->changed.wait(lock);
      continue;
    }
    Modules modules;
    for (const std::size_t slot : batch.slots) modules.push_back(&body_->slots[slot].module);
    lock.unlock();
    std::vector<std::shared_ptr<const Solution>> solved;
    try {
      solved = solve(plan, backend, modules, batch.together);
    } catch (...) {
      lock.lock();
      body_->settle(batch, {});
      throw;
    }
    lock.lock();
    body_->settle(batch, std::move(solved));
  }
  return body_->take(wanted);
}

std::shared_ptr<const Derived> factor(std::shared_ptr<Campaign> campaign, std::size_t index,
                                      Side side) {
  return std::make_shared<const Factor>(std::move(campaign), index, side);
}

}  // namespace ingot::adapter
