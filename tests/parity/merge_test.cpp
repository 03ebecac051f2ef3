// The folder is a function of inputs, recipe and byte-changing options: of nothing else.
#include <gtest/gtest.h>

#include "merging.hpp"

namespace ingot::test {
namespace {

class Invariance : public testing::TestWithParam<std::string> {
 protected:
  std::map<std::string, std::string> hash(const Settings& settings) {
    const std::string out = folder_ / ("out" + std::to_string(count_++));
    run_merge(recipes().at(GetParam()), out, settings);
    return fingerprint(out);
  }
  Guard guard_;  // so that pages in the cache are mapped
  Folder folder_;
  int count_ = 0;
};

TEST_P(Invariance, ThreadsMemoryStorageAndIsaMoveNoByte) {
  const auto expected = hash({});
  ASSERT_FALSE(expected.empty());
  for (const int threads : {1, 2, 5}) {
    Settings settings;
    settings.merge.threads = threads;
    EXPECT_EQ(hash(settings), expected) << threads << " threads";
  }
  Settings little;
  little.merge.memory = std::uint64_t{96} << 20;
  EXPECT_EQ(hash(little), expected) << "96 MiB";
  for (const auto storage : {MergeOptions::Storage::mapped, MergeOptions::Storage::direct,
                             MergeOptions::Storage::buffered}) {
    Settings settings;
    settings.merge.storage = storage;
    EXPECT_EQ(hash(settings), expected) << "storage " << static_cast<int>(storage);
  }
  for (const std::string isa : {"v2", "v3", "v4"}) {
    Settings settings;
    settings.isa = isa;
    try {
      EXPECT_EQ(hash(settings), expected) << isa;
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), Code::device) << error.what();
      RecordProperty(isa, "not run: " + error.message());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Invariance, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& [name, text] : recipes()) names.push_back(name);
                           return names;
                         }()),
                         [](const auto& one) { return one.param; });

}  // namespace
}  // namespace ingot::test
