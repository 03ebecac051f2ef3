#include "plan/problems.hpp"

#include <utility>

#include <fmt/format.h>

#include "ingot/text.hpp"

namespace ingot::plan {

void Problems::error(Code code, std::string text) { add(true, code, std::move(text)); }
void Problems::warn(Code code, std::string text) { add(false, code, std::move(text)); }

void Problems::error_like(const std::string& key, Code code, std::string text) {
  add_like(true, key, code, std::move(text));
}

void Problems::warn_like(const std::string& key, Code code, std::string text) {
  add_like(false, key, code, std::move(text));
}

void Problems::add(bool fatal, Code code, std::string text) {
  fatal_ = fatal_ || fatal;
  if (text.size() > kLongestMessage) text = shorten(text, kLongestMessage);
  list_.push_back({fatal, code, std::move(text)});
  more_.push_back(0);
}

void Problems::add_like(bool fatal, const std::string& key, Code code, std::string text) {
  const auto [it, fresh] = seen_.emplace(key, list_.size());
  if (fresh) {
    add(fatal, code, std::move(text));
  } else {
    ++more_[it->second];
  }
}

std::vector<Problem> Problems::finish() const {
  std::vector<Problem> all = list_;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (more_[i] > 0) all[i].text += fmt::format(" (and {} more like it)", more_[i]);
  }
  return all;
}

}  // namespace ingot::plan
