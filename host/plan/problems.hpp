// Problems found while planning: all of them, but each kind once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ingot/plan.hpp"

namespace ingot::plan {

class Problems {
 public:
  void error(Code code, std::string text);
  void warn(Code code, std::string text);
  // For what may concern many tensors: the first text under a key is kept, the others are counted.
  void error_like(const std::string& key, Code code, std::string text);
  void warn_like(const std::string& key, Code code, std::string text);

  [[nodiscard]] bool fatal() const noexcept { return fatal_; }
  // The problems in the order found, with the counts.
  [[nodiscard]] std::vector<Problem> finish() const;

 private:
  void add(bool fatal, Code code, std::string text);
  void add_like(bool fatal, const std::string& key, Code code, std::string text);

  std::vector<Problem> list_;
  std::vector<std::uint64_t> more_;  // by problem: how many like it
  std::unordered_map<std::string, std::size_t> seen_;
  bool fatal_ = false;
};

}  // namespace ingot::plan
