#include "plan/repeat.hpp"

#include <filesystem>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace ingot::plan {
namespace {

// The canonical spelling of a folder, with symbolic links followed.
std::string same(const std::string& folder) {
  std::error_code ignored;
  const std::filesystem::path path = std::filesystem::weakly_canonical(folder, ignored);
  return (ignored ? std::filesystem::path(folder).lexically_normal() : path).string();
}

}  // namespace

void warn_repeated(const std::vector<Listed>& list, const std::string& place, Problems& problems) {
  std::map<std::string, std::vector<std::string>> names;  // by folder
  for (const Listed& entry : list) names[same(entry.folder)].push_back(entry.text);
  for (const auto& [folder, all] : names) {
    if (all.size() == 1) continue;
    const std::set<std::string> distinct(all.begin(), all.end());
    problems.warn(Code::usage,
                  fmt::format("{}: adapter '{}' is listed {} times and counts each time", place,
                              fmt::join(distinct, "' = '"), all.size()));
  }
}

}  // namespace ingot::plan
