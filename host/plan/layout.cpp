#include "plan/layout.hpp"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "store/header.hpp"

namespace ingot::plan {

std::vector<Shard> lay_out(std::vector<Job>& jobs, std::uint64_t shard_bytes) {
  // Jobs are large: they are moved once, when their order is known.
  std::vector<std::uint32_t> order(jobs.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return natural_less(jobs[a].output.name, jobs[b].output.name);
  });
  std::vector<Shard> shards(1);
  for (const std::uint32_t i : order) {
    const std::uint64_t bytes = jobs[i].output.bytes();
    const std::uint64_t held = shards.back().data_bytes;
    // Subtraction, because a sum of two lengths from files may not fit.
    if (held > 0 && (bytes > shard_bytes || held > shard_bytes - bytes)) shards.emplace_back();
    jobs[i].shard = static_cast<std::uint32_t>(shards.size() - 1);
    shards.back().data_bytes += bytes;
  }
  std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::tuple(jobs[a].shard, bits(jobs[b].output.dtype)) <
           std::tuple(jobs[b].shard, bits(jobs[a].output.dtype));
  });
  // In place, cycle by cycle: place i gets the job that is at order[i].
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (order[i] == i) continue;
    Job first = std::move(jobs[i]);
    std::size_t at = i;
    while (order[at] != i) {
      const std::size_t from = order[at];
      jobs[at] = std::move(jobs[from]);
      order[at] = static_cast<std::uint32_t>(at);
      at = from;
    }
    jobs[at] = std::move(first);
    order[at] = static_cast<std::uint32_t>(at);
  }

  std::size_t next = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    std::vector<TensorInfo> tensors;
    std::uint64_t end = 0;
    for (; next < jobs.size() && jobs[next].shard == i; ++next) {
      jobs[next].offset = end;
      end += jobs[next].output.bytes();
      tensors.push_back(jobs[next].output);
    }
    shards[i].file = shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    shards[i].header = print_header(tensors, {{"format", "pt"}});
  }
  return shards;
}

std::string print_index(std::vector<std::pair<std::string_view, std::string_view>> tensors,
                        std::uint64_t bytes) {
  // By name, as Hugging Face's own writers sort it.
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return natural_less(a.first, b.first); });
  // An ordered_json would search its keys for every insertion.
  std::string text = fmt::format(
      "{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{", bytes);
  const char* comma = "";
  for (const auto& [name, shard] : tensors) {
    text += fmt::format("{}\n    {}: \"{}\"", comma, nlohmann::json(name).dump(), shard);
    comma = ",";
  }
  return text + "\n  }\n}\n";
}

std::string index_of(const std::vector<Job>& jobs, const std::vector<Shard>& shards) {
  if (shards.size() < 2) return {};
  std::uint64_t total = 0;
  for (const Shard& shard : shards) total += shard.data_bytes;
  std::vector<std::pair<std::string_view, std::string_view>> tensors;
  for (const Job& job : jobs) tensors.emplace_back(job.output.name, shards[job.shard].file);
  return print_index(std::move(tensors), total);
}

}  // namespace ingot::plan
