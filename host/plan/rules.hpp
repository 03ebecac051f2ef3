// From a recipe's parameters to the arithmetic of one output tensor.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ingot/methods.hpp"
#include "ingot/plan.hpp"
#include "plan/problems.hpp"

namespace ingot::plan {

// The settings that may give a parameter its value for one section of the output, nearest first.
struct Binding {
  // By the method's parameters, then, for those of single models, by input.
  std::vector<std::vector<std::vector<const Setting*>>> settings;
};

// One input of an output tensor as parameters see it.
struct Seat {
  std::uint32_t input = 0;  // index into the section's inputs
  std::string model;        // for messages
  std::string tensor;       // the name filters see
};

class Rules {
 public:
  // Checks the method and the names and values of all parameters of the recipe.
  Rules(const Recipe& recipe, const PlanOptions& options, Problems& problems);

  // False if the recipe's method does not exist: nothing else may be called then.
  [[nodiscard]] bool usable() const noexcept { return index_ >= 0; }
  // For a plan that comes to no tensors: reports the parameters that the method needs and no level
  // of the recipe has, as far as resolve() has not.
  void require();
  [[nodiscard]] const math::Method& method() const { return math::method(index_); }
  // Parameter names that are let through though nothing knows them, as "name (line n)".
  [[nodiscard]] const std::vector<std::string>& waived() const noexcept { return waived_; }

  // Looks settings up once per section. `own` are the parameters of each input (null: none),
  // `shared` those of slice, module and recipe, nearest first.
  [[nodiscard]] Binding bind(std::span<const Parameters* const> own,
                             std::span<const Parameters* const> shared) const;

  // The rule of an output tensor at gradient position t, whose masks are drawn for the name
  // `drawn`. `base` tells that a base tensor precedes the sources. Nothing, and a problem, if a
  // value is missing or wrong.
  [[nodiscard]] std::optional<math::Rule> resolve(const Binding& binding, const std::string& output,
                                                  const std::string& drawn,
                                                  std::span<const Seat> sources, bool base,
                                                  double t, const Shape& shape);

  // The rule that passes one tensor through.
  [[nodiscard]] static math::Rule pass(std::uint64_t elements);

 private:
  // Whose parameters they are: those of a base are not read where only the others have some.
  enum class Owner : std::uint8_t { all, model, base };
  void check(const Parameters& parameters, const std::string& where, Owner owner);
  void check_value(const math::Parameter& parameter, const Setting& setting,
                   const std::string& whose);
  void require(const std::vector<Source>& sources, const std::optional<ModelRef>& base,
               std::span<const Parameters* const> shared);
  // Calls body(sources, base, parameters of slice, module and recipe) for each section.
  template <class Body>
  void each_section(Body body) const;
  void miss(const math::Parameter& parameter, const std::string& whose, const std::string& output);
  [[nodiscard]] std::optional<double> value(const math::Parameter& parameter,
                                            const std::vector<const Setting*>& settings,
                                            std::string_view filtered, double t,
                                            const std::string& whose, const std::string& output);

  const Recipe& recipe_;
  const PlanOptions& options_;
  Problems& problems_;
  int index_ = -1;
  std::vector<std::string> waived_;
  std::set<const Setting*> faulty_;  // with a value that was reported
  std::set<std::string> missing_;    // reported, by parameter and model
};

// True if values of the output depend on PlanOptions::seed.
[[nodiscard]] bool draws(const Plan& plan);

}  // namespace ingot::plan
