#include "adapter/pattern.hpp"

#include <algorithm>
#include <new>

#include <fmt/format.h>

#include "base/clip.hpp"
#include "ingot/error.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace ingot::adapter {
namespace {

// Bytes of an expression; PEFT writes some hundred.
constexpr std::size_t kLongest = 1 << 16;
// Steps of a match: patterns of real adapters need a few hundred on a path of 60 bytes.
constexpr std::uint32_t kSteps = 2'000;
constexpr std::uint32_t kMost = 1'000'000;  // and where that is not enough, this many
constexpr std::uint32_t kDepth = 10'000;
constexpr std::uint32_t kHeap = 16 << 10;  // KiB

bool plain_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '.';
}

}  // namespace

struct Pattern::Compiled {
  pcre2_code* code = nullptr;

  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() { pcre2_code_free(code); }

  // What a match works in is made for it: kept with every expression of a long table it would take
  // six times the memory of the expressions.
  [[nodiscard]] int match(std::string_view text, std::uint32_t steps) const {
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> room(
        pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
    const std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> limits(
        pcre2_match_context_create(nullptr), pcre2_match_context_free);
    if (room == nullptr || limits == nullptr) throw std::bad_alloc();
    pcre2_set_depth_limit(limits.get(), kDepth);
    pcre2_set_heap_limit(limits.get(), kHeap);
    pcre2_set_match_limit(limits.get(), steps);
    // The library does not accept a null pointer as an empty text.
    const char* bytes = text.data() == nullptr ? "" : text.data();
    return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(bytes), text.size(), 0, 0, room.get(),
                       limits.get());
  }
};

Pattern::Pattern(std::string_view text, Fit fit, std::string where)
    : text_(text), where_(std::move(where)) {
  if (text.size() > kLongest) {
    fail(Code::format, fmt::format("{} has an expression of {} bytes; at most {} are read", where_,
                                   text.size(), kLongest));
  }
  plain_ = fit == Fit::tail && !text.empty() && std::all_of(text.begin(), text.end(), plain_char);
  if (plain_) return;
  std::uint32_t options =
      PCRE2_ANCHORED | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C;
  std::string whole(text);
  if (fit == Fit::tail) {
    whole = "(.*\\.)?(" + whole + ")$";
  } else {
    options |= PCRE2_ENDANCHORED;
  }
  compiled_ = std::make_unique<Compiled>();
  int error = 0;
  std::size_t offset = 0;
  compiled_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(whole.data()), whole.size(), options,
                                  &error, &offset, nullptr);
  if (compiled_->code == nullptr) {
    char message[160] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
    fail(Code::format, fmt::format("{}: '{}' is not a valid regular expression: {}", where_,
                                   clip(text_), message));
  }
}

Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

bool Pattern::matches(std::string_view path, Effort& effort) const {
  std::uint64_t& left = plain_ ? effort.plain : effort.matches;
  if (left == 0) {
    fail(Code::format,
         fmt::format("{}: there are too many expressions for too many modules", where_));
  }
  --left;
  if (plain_) {
    if (path.size() < text_.size()) return false;
    const std::string_view tail = path.substr(path.size() - text_.size());
    const bool starts = tail.size() == path.size() || path[path.size() - tail.size() - 1] == '.';
    return starts && std::equal(tail.begin(), tail.end(), text_.begin(),
                                [](char c, char k) { return k == '.' || k == c; });
  }
  int result = compiled_->match(path, kSteps);
  if (result == PCRE2_ERROR_MATCHLIMIT && effort.costly > 0) {
    --effort.costly;
    result = compiled_->match(path, kMost);
  }
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  fail(Code::format,
       fmt::format("{}: matching '{}' against module '{}' takes too long; write the expression "
                   "without nested repetitions",
                   where_, clip(text_), clip(path, 120)));
}

Table::Table(const std::vector<std::pair<std::string, double>>& entries, const std::string& where) {
  patterns_.reserve(entries.size());
  for (const auto& [key, value] : entries) {
    patterns_.emplace_back(key, Fit::tail, where);
    values_.push_back(value);
  }
}

std::optional<Table::Hit> Table::find(std::string_view path, Effort& effort) const {
  std::optional<Hit> hit;
  for (std::size_t i = 0; i < patterns_.size(); ++i) {
    if (!patterns_[i].matches(path, effort)) continue;
    if (!hit) {
      hit = Hit{values_[i], i, {}, std::nullopt};
      continue;
    }
    hit->later.push_back(i);
    if (!hit->rival && values_[i] != hit->value) hit->rival = i;
  }
  return hit;
}

Choice::Choice(const std::vector<std::string>& names, const std::string& pattern,
               const std::string& where)
    : names_(names.begin(), names.end()) {
  if (!pattern.empty()) pattern_.emplace(pattern, Fit::whole, where);
}

bool Choice::exact(std::string_view path) const { return names_.contains(std::string(path)); }

bool Choice::fits(std::string_view path, Effort& effort) const {
  if (pattern_ && pattern_->matches(path, effort)) return true;
  if (names_.empty()) return false;
  for (std::string_view rest = path;;) {
    if (names_.contains(std::string(rest))) return true;
    const std::size_t dot = rest.find('.');
    if (dot == std::string_view::npos) return false;
    rest.remove_prefix(dot + 1);
  }
}

}  // namespace ingot::adapter
