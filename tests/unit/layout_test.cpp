// Shards, offsets, headers and the index.
#include <gtest/gtest.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "plan/layout.hpp"
#include "store/header.hpp"
#include "support.hpp"

namespace ingot::plan {
namespace {

std::vector<Job> jobs_of(const std::vector<TensorInfo>& tensors) {
  std::vector<Job> jobs;
  for (const TensorInfo& tensor : tensors) {
    jobs.emplace_back();
    jobs.back().output = tensor;
  }
  return jobs;
}

std::vector<std::string> names(const std::vector<Job>& jobs) {
  std::vector<std::string> list;
  for (const Job& job : jobs) list.push_back(fmt::format("{} {}", job.shard, job.output.name));
  return list;
}

TEST(Layout, NamesCountAsPeopleDo) {
  std::vector<Job> jobs = jobs_of(
      {{"l.10.w", Dtype::bf16, {4}}, {"l.2.w", Dtype::bf16, {4}}, {"l.1.w", Dtype::bf16, {4}}});
  EXPECT_EQ(lay_out(jobs, 1'000'000).size(), 1U);
  EXPECT_EQ(names(jobs), (std::vector<std::string>{"0 l.1.w", "0 l.2.w", "0 l.10.w"}));
}

TEST(Layout, ShardsHoldWhatFitsAndALargeTensorHasItsOwn) {
  std::vector<Job> jobs = jobs_of({{"a", Dtype::f32, {10}},
                                   {"b", Dtype::f32, {10}},
                                   {"c", Dtype::f32, {100}},
                                   {"d", Dtype::f32, {10}},
                                   {"e", Dtype::f32, {0}}});
  const std::vector<Shard> shards = lay_out(jobs, 80);
  EXPECT_EQ(names(jobs), (std::vector<std::string>{"0 a", "0 b", "1 c", "2 d", "2 e"}));
  ASSERT_EQ(shards.size(), 3U);
  EXPECT_EQ(shards[0].data_bytes, 80U);
  EXPECT_EQ(shards[1].data_bytes, 400U);
  EXPECT_EQ(shards[2].file, "model-00003-of-00003.safetensors");
}

TEST(Layout, EveryTensorIsAlignedToItsElement) {
  std::vector<Job> jobs = jobs_of({{"a", Dtype::u8, {3}},
                                   {"b", Dtype::f64, {1}},
                                   {"c", Dtype::bf16, {3}},
                                   {"d", Dtype::f32, {1}},
                                   {"e", Dtype::f64, {2}}});
  const std::vector<Shard> shards = lay_out(jobs, 1'000'000);
  EXPECT_EQ(names(jobs), (std::vector<std::string>{"0 b", "0 e", "0 d", "0 c", "0 a"}));
  EXPECT_EQ(shards[0].header.size() % 4096, 0U);
  for (const Job& job : jobs)
    EXPECT_EQ(job.offset % (bits(job.output.dtype) / 8), 0U) << job.output.name;
}

TEST(Layout, HeadersAreThoseOfTheJobs) {
  std::vector<TensorInfo> tensors;
  for (std::uint64_t i = 0; i < 40; ++i) {
    tensors.push_back({fmt::format("t.{}", i), i % 3 == 0 ? Dtype::f32 : Dtype::bf16, {i, 2}});
  }
  std::vector<Job> jobs = jobs_of(tensors);
  const std::vector<Shard> shards = lay_out(jobs, 500);
  EXPECT_GT(shards.size(), 3U);
  const test::Folder folder;
  const auto disk = system_disk();
  std::size_t seen = 0;
  for (std::uint32_t s = 0; s < shards.size(); ++s) {
    test::write_file(folder / shards[s].file,
                     shards[s].header + std::string(shards[s].data_bytes, '\0'));
    const Header header = read_header(*disk->open(folder / shards[s].file));
    EXPECT_EQ(header.data_start, shards[s].header.size());
    EXPECT_EQ(header.metadata.at("format"), "pt");
    for (const Job& job : jobs) {
      if (job.shard != s) continue;
      const auto it = std::find_if(header.entries.begin(), header.entries.end(),
                                   [&](const Entry& e) { return e.info.name == job.output.name; });
      ASSERT_NE(it, header.entries.end());
      EXPECT_EQ(it->offset, header.data_start + job.offset);
      EXPECT_EQ(it->info.shape, job.output.shape);
      ++seen;
    }
  }
  EXPECT_EQ(seen, jobs.size());
}

TEST(Layout, IndexNamesEveryTensorsShardAndIsAbsentForOne) {
  std::vector<Job> jobs = jobs_of({{"a\"q", Dtype::f32, {10}}, {"b", Dtype::f32, {10}}});
  std::vector<Shard> shards = lay_out(jobs, 40);
  const nlohmann::json index = nlohmann::json::parse(index_of(jobs, shards));
  EXPECT_EQ(index["metadata"]["total_size"], 80);
  EXPECT_EQ(index["weight_map"]["a\"q"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["b"], "model-00002-of-00002.safetensors");
  shards = lay_out(jobs, 80);
  EXPECT_EQ(index_of(jobs, shards), "");
}

}  // namespace
}  // namespace ingot::plan
