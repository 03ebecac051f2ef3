#include "adapter/stack.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ingot/plan.hpp"
#include "store/values.hpp"

namespace ingot::adapter {
namespace {

// One rounding; exact where `times` is 1.
float scaled(float value, double times) {
  return static_cast<float>(static_cast<double>(value) * times);
}

class Stacked final : public Derived {
 public:
  Stacked(Site site, Side side) : site_(std::move(site)), side_(side) {
    for (const Term& term : site_.terms) parts_.push_back(side == Side::a ? term.a : term.b);
  }

  [[nodiscard]] bool own() const override { return false; }
  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return parts_; }
  [[nodiscard]] std::uint64_t memory() const override { return 0; }  // a run of a row at a time

  [[nodiscard]] std::string describe() const override {
    nlohmann::ordered_json json;
    json["kind"] = side_ == Side::a ? "rows" : "columns";
    for (const Term& term : site_.terms) {
      nlohmann::ordered_json part{{"rank", term.rank}};
      if (side_ == Side::a) part["times"] = fmt::format("{:a}", term.times);
      json["parts"].push_back(std::move(part));
    }
    if (site_.experts > 1) json["experts"] = site_.experts;
    if (site_.groups > 1) json["groups"] = site_.groups;
    if (site_.padding > 0) json["padding"] = site_.padding;
    return json.dump();
  }

  [[nodiscard]] std::unique_ptr<Working> begin(const Plan& plan, Backend*) const override;

  [[nodiscard]] std::vector<Truth> recompute(const Plan& plan, std::uint64_t first,
                                             std::uint64_t count,
                                             std::span<const float>) const override {
    std::vector<Truth> truth(count);
    each(
        first, count, [&](const Term& term, std::uint64_t from, std::uint64_t to, std::uint64_t n) {
          std::vector<float> values(n);
          read(plan, term, from, values);
          for (std::uint64_t i = 0; i < n; ++i) {
            const double value =
                static_cast<double>(values[i]) * (side_ == Side::a ? term.times : 1.0);
            truth[to + i] = {value, side_ == Side::a ? std::fabs(value) * 0x1p-24 + 0x1p-149 : 0.0};
          }
        });
    return truth;
  }

  // Calls use(term, from, to, n) for runs of one term's elements, which lie at `to` of the range.
  // Elements in no term are zero.
  template <class Use>
  void each(std::uint64_t first, std::uint64_t count, const Use& use) const {
    const std::uint64_t ranks = site_.ranks() + site_.padding, experts = site_.experts;
    std::uint64_t done = 0;
    while (done < count) {
      const std::uint64_t at = first + done;
      std::uint64_t from = 0, left = 0;  // in the term's tensor; elements until it changes
      const Term* owner = nullptr;
      if (side_ == Side::a) {
        // Rows by expert or group, then by term.
        const std::uint64_t row = at / site_.width, column = at % site_.width;
        std::uint64_t within = row % ranks;
        for (const Term& term : site_.terms) {
          if (within < term.rank) {
            from = ((row / ranks) * term.rank + within) * site_.width + column;
            left = (term.rank - within) * site_.width - column;
            owner = &term;
            break;
          }
          within -= term.rank;
        }
        if (owner == nullptr) left = (site_.padding - within) * site_.width - column;
      } else {
        // Columns by rank, then by expert, so that a term's are consecutive.
        std::uint64_t column = at % (ranks * experts);
        for (const Term& term : site_.terms) {
          const std::uint64_t columns = term.rank * experts;
          if (column < columns) {
            from = at / (ranks * experts) * columns + column;
            left = columns - column;
            owner = &term;
            break;
          }
          column -= columns;
        }
        if (owner == nullptr) left = site_.padding * experts - column;
      }
      const std::uint64_t n = std::min(left, count - done);
      if (owner != nullptr) use(*owner, from, done, n);
      done += n;
    }
  }

  void read(const Plan& plan, const Term& term, std::uint64_t from, std::span<float> values) const {
    const Ingredient& tensor = side_ == Side::a ? term.a : term.b;
    const Checkpoint& checkpoint = plan.models[tensor.model].checkpoint;
    read_values(checkpoint, checkpoint.entries()[tensor.entry], from, values);
    check_finite(plan, term.adapter, tensor, values);
  }

  [[nodiscard]] Side side() const { return side_; }
  [[nodiscard]] const Site& site() const { return site_; }

 private:
  Site site_;
  Side side_;
  std::vector<Ingredient> parts_;
};

class StackedWork final : public Working {
 public:
  StackedWork(const Stacked& stacked, const Plan& plan) : stacked_(stacked), plan_(plan) {}

  void fill(std::uint64_t first, std::span<const std::byte>, std::span<float> values) override {
    if (stacked_.site().padding > 0) std::fill(values.begin(), values.end(), 0.0F);
    if (stacked_.side() == Side::a) {
      stacked_.each(first, values.size(),
                    [&](const Term& term, std::uint64_t from, std::uint64_t to, std::uint64_t n) {
                      const std::span<float> part = values.subspan(to, n);
                      stacked_.read(plan_, term, from, part);
                      for (float& value : part) value = scaled(value, term.times);
                    });
      return;
    }
    // Runs of columns are short: each term's rows of the range are read at once.
    const Site& site = stacked_.site();
    const std::uint64_t width = (site.ranks() + site.padding) * site.experts;
    const std::uint64_t top = first / width, end = (first + values.size() + width - 1) / width;
    std::uint64_t column = 0;
    for (const Term& term : site.terms) {
      const std::uint64_t columns = term.rank * site.experts;
      std::vector<float> rows((end - top) * columns);
      stacked_.read(plan_, term, top * columns, rows);
      for (std::uint64_t y = top; y < end; ++y) {
        for (std::uint64_t c = 0; c < columns; ++c) {
          const std::uint64_t at = y * width + column + c;
          if (at < first || at >= first + values.size()) continue;
          values[at - first] = rows[(y - top) * columns + c];
        }
      }
      column += columns;
    }
  }

 private:
  const Stacked& stacked_;
  const Plan& plan_;
};

std::unique_ptr<Working> Stacked::begin(const Plan& plan, Backend*) const {
  return std::make_unique<StackedWork>(*this, plan);
}

class Constant final : public Derived {
 public:
  explicit Constant(double value) : value_(value) {}

  [[nodiscard]] bool own() const override { return false; }
  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return {}; }
  [[nodiscard]] std::uint64_t memory() const override { return 0; }
  [[nodiscard]] std::string describe() const override {
    return nlohmann::ordered_json{{"kind", "constant"}, {"value", value_}}.dump();
  }
  [[nodiscard]] std::unique_ptr<Working> begin(const Plan&, Backend*) const override {
    class Work final : public Working {
     public:
      explicit Work(float value) : value_(value) {}
      void fill(std::uint64_t, std::span<const std::byte>, std::span<float> values) override {
        std::fill(values.begin(), values.end(), value_);
      }

     private:
      float value_;
    };
    return std::make_unique<Work>(static_cast<float>(value_));
  }
  [[nodiscard]] std::vector<Truth> recompute(const Plan&, std::uint64_t, std::uint64_t count,
                                             std::span<const float>) const override {
    return std::vector<Truth>(count, Truth{value_, 0});
  }

 private:
  double value_;
};

class Finite final : public Derived {
 public:
  Finite(std::string adapter, Ingredient tensor) : adapter_(std::move(adapter)), tensor_(tensor) {}

  [[nodiscard]] bool own() const override { return true; }
  [[nodiscard]] std::span<const Ingredient> ingredients() const override { return {}; }
  [[nodiscard]] std::uint64_t memory() const override { return 0; }
  [[nodiscard]] std::string describe() const override { return R"({"kind":"finite"})"; }
  [[nodiscard]] std::unique_ptr<Working> begin(const Plan& plan, Backend*) const override {
    class Work final : public Working {
     public:
      Work(const Finite& finite, const Plan& plan) : finite_(finite), plan_(plan) {}
      void fill(std::uint64_t, std::span<const std::byte> own, std::span<float> values) override {
        const Checkpoint& checkpoint = plan_.models[finite_.tensor_.model].checkpoint;
        to_floats(checkpoint.entries()[finite_.tensor_.entry].info.dtype, own, values);
        check_finite(plan_, finite_.adapter_, finite_.tensor_, values);
      }

     private:
      const Finite& finite_;
      const Plan& plan_;
    };
    return std::make_unique<Work>(*this, plan);
  }
  [[nodiscard]] std::vector<Truth> recompute(const Plan&, std::uint64_t, std::uint64_t,
                                             std::span<const float> own) const override {
    std::vector<Truth> truth;
    for (const float value : own) truth.push_back({static_cast<double>(value), 0});
    return truth;
  }

 private:
  std::string adapter_;
  Ingredient tensor_;
};

}  // namespace

std::shared_ptr<const Derived> stacked(Site site, Side side) {
  return std::make_shared<const Stacked>(std::move(site), side);
}

std::shared_ptr<const Derived> constant(double value) {
  return std::make_shared<const Constant>(value);
}

std::shared_ptr<const Derived> finite(std::string adapter, Ingredient tensor) {
  return std::make_shared<const Finite>(std::move(adapter), tensor);
}

}  // namespace ingot::adapter
