// The corpora as ordinary tests, in every build and with every compiler: each fuzz target gets
// every file of every corpus, and the beginnings of its own.
#include <errno.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "support.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace ingot {
namespace {

namespace fs = std::filesystem;

const fs::path kCorpus = std::string(INGOT_SOURCE) + "/tests/fuzz/corpus";

// The target that this program was linked with: hostile_replay_TARGET.
std::string target() {
  const std::string program = program_invocation_short_name;
  return program.substr(program.rfind('_') + 1);
}

void feed(const std::string& bytes) {
  EXPECT_EQ(
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()), 0);
}

TEST(Replay, EveryFileOfEveryCorpusHasAnAnswer) {
  std::size_t files = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(kCorpus)) {
    if (!entry.is_regular_file()) continue;
    SCOPED_TRACE(entry.path());
    feed(test::read_file(entry.path()));
    ++files;
  }
  EXPECT_GT(files, 30U);
}

TEST(Replay, EveryBeginningOfItsOwnFilesHasAnAnswer) {
  std::size_t files = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(kCorpus / target())) {
    SCOPED_TRACE(entry.path());
    const std::string bytes = test::read_file(entry.path());
    const std::size_t step = 1 + bytes.size() / 256;
    for (std::size_t size = 0; size < bytes.size(); size += step) feed(bytes.substr(0, size));
    ++files;
  }
  EXPECT_GT(files, 0U);
}

}  // namespace
}  // namespace ingot
