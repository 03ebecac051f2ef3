// The folder is a function of inputs, recipe and byte-changing options: of nothing else.
#include <cstring>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

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

// The receipt's hash of every output tensor, by name.
std::map<std::string, std::string> tensor_hashes(const std::string& out) {
  std::map<std::string, std::string> hashes;
  const auto receipt = nlohmann::json::parse(read_file(out + "/ingot.json"));
  for (const auto& tensor : receipt.at("tensors")) {
    hashes[tensor.at("name").get<std::string>()] = tensor.at("hash").get<std::string>();
  }
  return hashes;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (auto at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

TEST(InputFormat, ShardsAndPicklesMoveNoTensor) {
  Folder folder;
  for (const char* method : {"linear", "ties", "task_arithmetic"}) {
    const std::string& recipe = recipes().at(method);
    run_merge(recipe, folder / "whole", {});
    const auto expected = tensor_hashes(folder / "whole");
    EXPECT_EQ(expected.size(), 21U);
    for (const std::string format : {"python-sharded", "python-bin"}) {
      run_merge(replaced(recipe, "./models/python", "./models/" + format), folder / format, {});
      EXPECT_EQ(tensor_hashes(folder / format), expected) << method << " from " << format;
      std::filesystem::remove_all(folder / format);
    }
    std::filesystem::remove_all(folder / "whole");
  }
}

TEST(ShardSize, MovesNoTensor) {
  Folder folder;
  Settings settings;
  run_merge(recipes().at("dare_ties"), folder / "one", settings);
  settings.plan.shard_bytes = 50'000;
  run_merge(recipes().at("dare_ties"), folder / "many", settings);
  EXPECT_TRUE(std::filesystem::exists(folder / "many/model.safetensors.index.json"));
  EXPECT_EQ(tensor_hashes(folder / "one"), tensor_hashes(folder / "many"));
}

TEST(Seed, MovesWhatIsDrawnAndNothingElse) {
  Folder folder;
  Settings settings;
  settings.plan.seed = 1;
  run_merge(recipes().at("dare_ties"), folder / "drawn0", {});
  run_merge(recipes().at("dare_ties"), folder / "drawn1", settings);
  EXPECT_NE(tensor_hashes(folder / "drawn0"), tensor_hashes(folder / "drawn1"));
  run_merge(recipes().at("ties"), folder / "ties0", {});
  run_merge(recipes().at("ties"), folder / "ties1", settings);
  EXPECT_EQ(tensor_hashes(folder / "ties0"), tensor_hashes(folder / "ties1"));
}

// A header may have any length, so that elements begin at odd addresses: the undefined-behaviour
// sanitizer sees every load.
TEST(Headers, OfAnyLengthGiveTheSameTensors) {
  const Guard guard;
  Folder folder;
  for (const char* name : {"models", "adapters"}) {
    std::filesystem::copy(example(name), folder / name, std::filesystem::copy_options::recursive);
  }
  for (const int pad : {1, 2}) {
    for (const auto& file : std::filesystem::recursive_directory_iterator(folder.path())) {
      if (file.path().extension() != ".safetensors") continue;
      std::string bytes = read_file(file.path().string());
      std::uint64_t length = 0;
      std::memcpy(&length, bytes.data(), sizeof length);
      bytes.insert(8 + length, 1, ' ');  // one more than in the round before
      ++length;
      std::memcpy(bytes.data(), &length, sizeof length);
      std::ofstream(file.path(), std::ios::binary) << bytes;
    }
    for (const std::string method : {"ties", "slerp", "adapters"}) {
      for (const auto storage : {MergeOptions::Storage::automatic, MergeOptions::Storage::direct}) {
        run_merge(recipes().at(method), folder / "whole");
        Settings settings;
        settings.plan.root = folder.path();
        settings.merge.storage = storage;
        run_merge(recipes().at(method), folder / "out", settings);
        EXPECT_EQ(tensor_hashes(folder / "out"), tensor_hashes(folder / "whole"))
            << method << ", " << pad;
        std::filesystem::remove_all(folder / "out");
        std::filesystem::remove_all(folder / "whole");
      }
    }
  }
}

}  // namespace
}  // namespace ingot::test
