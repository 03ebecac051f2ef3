// Factors that come from a decomposition: one per module, shared by the jobs of its A and its B.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "adapter/kept.hpp"
#include "adapter/site.hpp"
#include "adapter/stack.hpp"
#include "ingot/derived.hpp"
#include "ingot/dtype.hpp"
#include "ingot/linalg.hpp"
#include "ingot/math/rule.hpp"

namespace ingot::adapter {

// The matrix of a module, or of each of its experts, that is to be written as B times A.
class Target {
 public:
  virtual ~Target() = default;

  std::uint64_t height = 0, width = 0, experts = 1;

  [[nodiscard]] virtual std::span<const Ingredient> ingredients() const = 0;
  // Fields of the receipt: what the matrix is, how it is solved.
  [[nodiscard]] virtual std::string describe() const = 0;
  [[nodiscard]] virtual std::uint64_t memory(std::uint64_t rank) const = 0;
  // Of one expert, as linalg::recombine_work() counts.
  [[nodiscard]] virtual double work(std::uint64_t rank) const = 0;
  // Where the matrix is a product of thin factors, that is, its ranks are not 0: the factors, as
  // rows.
  [[nodiscard]] virtual std::uint64_t ranks() const { return 0; }
  [[nodiscard]] virtual Pair factors(const Plan&, std::uint64_t /*expert*/) const { return {}; }
  // The best factors known. Without a backend by LAPACK, as verify() does it.
  [[nodiscard]] virtual linalg::Low solve(const Plan& plan, Backend* backend, std::uint64_t expert,
                                          const linalg::Cut& cut) const = 0;
  // What given factors (rows) leave of the matrix.
  [[nodiscard]] virtual double distance(const Plan& plan, std::uint64_t expert,
                                        const linalg::Matrix& b, const linalg::Matrix& a) const = 0;
  // How much more than the best factors known others may leave (1.0001 or 1.005), by promise.
  [[nodiscard]] virtual double allowance() const = 0;
  // True if the matrix depends on PlanOptions::seed.
  [[nodiscard]] virtual bool draws() const { return false; }
};

// The sum of the updates, decomposed without being formed.
[[nodiscard]] std::unique_ptr<Target> sum_of(Site site);

// What `rule` makes of the updates as dense tensors: Rule::elements is height times width, and
// sources are the site's terms, whose own `times` belong to their updates.
[[nodiscard]] std::unique_ptr<Target> combined(Site site, const math::Rule& rule);

// What `tuned` has over `base`: one tensor each of experts * height * width elements, transposed
// where these are kept as (in, out); or expert by expert the tensors of equal size whose rows, one
// below the other, are its matrix. A single tensor may have more elements, of which those from
// `first` on are the matrix.
struct Difference {
  struct Piece {
    Ingredient base, tuned;
  };
  std::vector<Piece> pieces;
  std::uint64_t height = 0, width = 0, experts = 1;
  std::uint64_t first = 0;
  bool turned = false;
};
[[nodiscard]] std::unique_ptr<Target> difference(const Difference& difference);

// The modules of one plan. Every job's Derived shares it, as does nobody else. A solver with memory
// of its own is given many products of one shape at once, as many as fit there and as results may
// wait here.
class Campaign final : public Joint {
 public:
  Campaign();
  ~Campaign() override;

  [[nodiscard]] std::uint64_t least() const override;
  [[nodiscard]] std::uint64_t most() const override;
  [[nodiscard]] double work() const override;
  void allow(std::uint64_t bytes) override;

  // Adds a module: in the order in which their jobs will come. `a` and `b` are the names of its
  // tensors in the output, `stored` their type, `name` the module's in reports and in `kept`, which
  // may have its decomposition already.
  struct Module {
    std::unique_ptr<Target> target;
    std::uint64_t rank = 0;
    std::string a, b;
    Dtype stored = Dtype::f32;
    std::string name;
    std::shared_ptr<const Kept> kept;  // shared by the modules; null: it has to be solved
  };
  std::size_t add(Module module);

  struct Solution;

  // The module's factors; solves them, or waits for who does and solves what comes next meanwhile.
  [[nodiscard]] std::shared_ptr<const Solution> solution(const Plan& plan, Backend* backend,
                                                         std::size_t index);
  [[nodiscard]] const Module& module(std::size_t index) const;

 private:
  struct Body;
  std::unique_ptr<Body> body_;
};

// The factor of one side of a module of the campaign.
[[nodiscard]] std::shared_ptr<const Derived> factor(std::shared_ptr<Campaign> campaign,
                                                    std::size_t index, Side side);

}  // namespace ingot::adapter
