// Regular expressions of adapter configurations, with Python's meaning and a bound on their cost.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace ingot::adapter {

// What all matches of one adapter may cost together: comparisons of plain names, runs of the
// engine, and runs that need more than the usual number of steps.
struct Effort {
  std::uint64_t plain = 100'000'000;
  std::uint64_t matches = 2'000'000;
  std::uint32_t costly = 1'000;
};

// How a pattern and a module's path must meet.
enum class Fit : std::uint8_t {
  whole,  // re.fullmatch(K, path)
  tail,   // re.match("(.*\.)?(K)$", path)
};

// One expression. `where` names it in messages: "rank_pattern of python-lora". Throws Error{format}
// for a text that is not an expression, and from matches() for one that costs too much.
class Pattern {
 public:
  Pattern(std::string_view text, Fit fit, std::string where);
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  [[nodiscard]] bool matches(std::string_view path, Effort& effort) const;
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  struct Compiled;
  std::string text_, where_;
  bool plain_ = false;  // Fit::tail of letters, digits, underscores and dots: no engine needed
  std::unique_ptr<Compiled> compiled_;
};

// rank_pattern or alpha_pattern: the first key that fits gives the value.
class Table {
 public:
  Table(const std::vector<std::pair<std::string, double>>& entries, const std::string& where);

  struct Hit {
    double value = 0;
    std::size_t index = 0;
    std::vector<std::size_t> later;    // other keys that fit as well
    std::optional<std::size_t> rival;  // the first of them with another value
  };
  [[nodiscard]] std::optional<Hit> find(std::string_view path, Effort& effort) const;
  [[nodiscard]] std::size_t size() const noexcept { return patterns_.size(); }
  [[nodiscard]] const std::string& key(std::size_t index) const { return patterns_[index].text(); }
  [[nodiscard]] double value(std::size_t index) const { return values_[index]; }

 private:
  std::vector<Pattern> patterns_;
  std::vector<double> values_;
};

// A set of names, or one expression: target_modules and its like.
class Choice {
 public:
  Choice(const std::vector<std::string>& names, const std::string& pattern,
         const std::string& where);

  [[nodiscard]] bool empty() const noexcept { return names_.empty() && !pattern_; }
  [[nodiscard]] bool exact(std::string_view path) const;  // a name is the whole path
  // A name is the path or its end after a dot; or the expression fits the whole path.
  [[nodiscard]] bool fits(std::string_view path, Effort& effort) const;

 private:
  std::unordered_set<std::string> names_;
  std::optional<Pattern> pattern_;
};

}  // namespace ingot::adapter
