#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "ingot/recipe.hpp"

namespace ingot {
namespace {

// Case and the two dashes do not count: `Merge-Method` is `merge_method`.
char fold(char c) {
  if (c >= 'A' && c <= 'Z') return static_cast<char>(c - 'A' + 'a');
  return c == '-' ? '_' : c;
}

// Edits between two words, a swap of neighbours counting as one; `limit` + 1 if there are more.
std::size_t distance(std::string_view a, std::string_view b, std::size_t limit) {
  const std::size_t difference = a.size() > b.size() ? a.size() - b.size() : b.size() - a.size();
  if (difference > limit) return limit + 1;
  std::vector<std::size_t> before, last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = fold(a[i - 1]) == fold(b[j - 1]);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0U : 1U)});
      if (i > 1 && j > 1 && fold(a[i - 1]) == fold(b[j - 2]) && fold(a[i - 2]) == fold(b[j - 1])) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before = last;
    last = row;
  }
  return last[b.size()];
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t least = std::numeric_limits<std::size_t>::max();
  for (const std::string& name : known) {
    const std::size_t shorter = std::min(word.size(), name.size());
    const std::size_t limit =
        (shorter + 1) / 4 + (shorter > 5 ? 1 : 0);  // none for one or two letters
    const std::size_t edits = distance(word, name, limit);
    if (edits <= limit && edits < least) {
      least = edits;
      best = name;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& known) {
  constexpr std::size_t kMost = 4;
  std::vector<std::string> meant;
  if (std::string near = nearest(word, known); !near.empty()) {
    meant.push_back(std::move(near));
  } else if (!word.empty()) {
    std::string part = "_";
    for (const char c : word) part += fold(c);
    part += '_';
    for (const std::string& name : known) {
      const bool fresh = std::find(meant.begin(), meant.end(), name) == meant.end();
      if (fresh && meant.size() < kMost && ('_' + name + '_').find(part) != std::string::npos) {
        meant.push_back(name);
      }
    }
  }
  if (meant.empty()) return "";
  return fmt::format("; did you mean '{}'?", fmt::join(meant, "' or '"));
}

}  // namespace ingot
