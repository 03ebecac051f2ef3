#include "adapter/solve.hpp"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

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

// How many modules ahead somebody who waits may solve: their results are kept until they are asked
// for.
constexpr std::size_t kAhead = 4;

Solution solve(const Plan& plan, Backend* backend, const Campaign::Module& module) {
  const Target& target = *module.target;
  const std::uint64_t rank = module.rank, experts = target.experts;
  Solution solution;
  solution.a.resize(experts * rank * target.width);
  solution.b.resize(target.height * rank * experts);
  double norm = 0, error = 0;
  for (std::uint64_t e = 0; e < experts; ++e) {
    const linalg::Low low = target.solve(plan, backend, e, {rank, 1});
    for (std::uint64_t k = 0; k < std::min<std::uint64_t>(rank, low.a.rows); ++k) {
      float* row = solution.a.data() + (e * rank + k) * target.width;
      for (std::uint64_t i = 0; i < target.width; ++i) row[i] = static_cast<float>(low.a.at(k, i));
      for (std::uint64_t o = 0; o < target.height; ++o) {
        solution.b[o * rank * experts + k * experts + e] = static_cast<float>(low.b.at(k, o));
      }
    }
    norm += low.norm * low.norm;
    error += low.error * low.error;
  }
  norm = std::sqrt(norm);
  error = std::sqrt(error);
  solution.found = nlohmann::ordered_json{{"module", module.name},
                                          {"norm", norm},
                                          {"error", error},
                                          {"relative_error", norm > 0 ? error / norm : 0.0}}
                       .dump();
  return solution;
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
    const Target& target = *module().target;
    return target.memory(module().rank) +
           4 * target.experts * module().rank * (target.height + target.width);
  }
  [[nodiscard]] std::string describe() const override {
    auto json = nlohmann::ordered_json::parse(module().target->describe());
    json["factor"] = side_ == Side::a ? "A" : "B";
    json["rank"] = module().rank;
    return json.dump();
  }

  [[nodiscard]] std::unique_ptr<Working> begin(const Plan& plan, Backend* backend) const override {
    return std::make_unique<Work>(campaign_->solution(plan, backend, index_), side_);
  }

  [[nodiscard]] std::vector<Truth> recompute(const Plan&, std::uint64_t, std::uint64_t,
                                             std::span<const float>) const override {
    fail(Code::internal, "a decomposition is judged as a whole");
  }

  // The judge of A looks at both.
  [[nodiscard]] std::optional<std::string> judge(const Plan& plan, const Checkpoint& output,
                                                 const std::string&) const override {
    if (side_ == Side::b) return std::string();
    const Campaign::Module& m = module();
    const Target& target = *m.target;
    const auto values = [&](const std::string& name) {
      const Entry* entry = output.find(name);
      if (entry == nullptr) fail(Code::missing, fmt::format("{} is not there", name));
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
    if (found <= target.allowance() * best + slack) return std::string();
    return fmt::format(
        "{} and {} leave {:.6g} of the update, whose norm is {:.6g}; the best factors of "
        "rank {} leave {:.6g}",
        m.a, m.b, found, norm, m.rank, best);
  }

  [[nodiscard]] std::string found(const Working& working) const override {
    return static_cast<const Work&>(working).solution().found;
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
  std::mutex mutex;  // guards the slots' states
  std::condition_variable changed;
  std::deque<Slot> slots;  // stays in place as modules are added
};

Campaign::Campaign() : body_(std::make_unique<Body>()) {}
Campaign::~Campaign() = default;

std::size_t Campaign::add(Module module) {
  body_->slots.emplace_back().module = std::move(module);
  return body_->slots.size() - 1;
}

const Campaign::Module& Campaign::module(std::size_t index) const {
  return body_->slots[index].module;
}

std::shared_ptr<const Campaign::Solution> Campaign::solution(const Plan& plan, Backend* backend,
                                                             std::size_t index) {
  using State = Body::State;
  std::unique_lock lock(body_->mutex);
  std::deque<Body::Slot>& slots = body_->slots;
  Body::Slot& wanted = slots[index];
  while (wanted.state != State::ready) {
    if (wanted.state == State::spent) wanted.state = State::open;
    std::size_t next = index;
    const std::size_t end = std::min(slots.size(), index + 1 + kAhead);
    while (next < end && slots[next].state != State::open) ++next;
    if (next == end) {
      body_->changed.wait(lock);
      continue;
    }
    Body::Slot& slot = slots[next];
    slot.state = State::busy;
    lock.unlock();
    std::shared_ptr<const Solution> solved;
    try {
      solved = std::make_shared<const Solution>(solve(plan, backend, slot.module));
    } catch (Error& error) {
      lock.lock();
      slot.state = State::open;
      body_->changed.notify_all();
      throw error.add(fmt::format("solving {}", slot.module.a));
    } catch (...) {
      lock.lock();
      slot.state = State::open;
      body_->changed.notify_all();
      throw;
    }
    lock.lock();
    slot.solution = std::move(solved);
    slot.state = State::ready;
    body_->changed.notify_all();
  }
  std::shared_ptr<const Solution> solution = wanted.solution;
  if (++wanted.taken == 2) {
    wanted.solution.reset();
    wanted.state = State::spent;
    wanted.taken = 0;
  }
  return solution;
}

std::shared_ptr<const Derived> factor(std::shared_ptr<Campaign> campaign, std::size_t index,
                                      Side side) {
  return std::make_shared<const Factor>(std::move(campaign), index, side);
}

}  // namespace ingot::adapter
