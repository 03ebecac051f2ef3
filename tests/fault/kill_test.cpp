// kill -9 at random moments: what is left resumes to the same bytes, and the target is whole or
// absent.
#include <chrono>
#include <csignal>
#include <thread>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "merging.hpp"

namespace ingot::test {
namespace {

// Starts the program on a recipe file and kills it after `life`, if it still lives. Returns its
// status.
int run_program(const std::vector<std::string>& arguments, std::chrono::microseconds life) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<char*> argv;
    for (const auto& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    if (std::freopen("/dev/null", "w", stdout) == nullptr) ::_exit(126);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  const auto end = std::chrono::steady_clock::now() + life;
  int status = 0;
  while (::waitpid(child, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() >= end) {
      ::kill(child, SIGKILL);
      ::waitpid(child, &status, 0);
      break;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return status;
}

TEST(Kill, AtFiftyMomentsThenResumeGivesTheSameBytes) {
  Folder folder;
  write_file(folder / "recipe.yml", recipes().at("ties"));
  const auto command = [&](const std::string& out, bool resume) {
    std::vector<std::string> words = {INGOT_PROGRAM, "merge",        folder / "recipe.yml",
                                      out,           "--root",       example(""),
                                      "--quiet",     "--shard-size", "60KB"};
    if (resume) words.emplace_back("--resume");
    return words;
  };
  // The card of both runs has the folder's name for a title.
  std::filesystem::create_directory(folder / "first");
  constexpr std::chrono::microseconds kForever = std::chrono::minutes(1);
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program(command(folder / "first/out", false), kForever), 0);
  auto length = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - begin);
  const auto expected = fingerprint(folder / "first/out");

  Random random(20260101);
  int killed = 0;
  for (int run = 0; run < 300 && killed < 50; ++run) {
    const std::string out = folder / "out";
    const auto life =
        std::chrono::microseconds(random.below(static_cast<std::uint64_t>(length.count())));
    if (WIFSIGNALED(run_program(command(out, false), life))) {
      ++killed;
    } else {
      length = length * 9 / 10;  // this machine is faster than it was in the first run
    }
    if (std::filesystem::exists(out)) {
      EXPECT_EQ(fingerprint(out), expected) << "complete, or not there at all";
    } else {
      ASSERT_EQ(run_program(command(out, true), kForever), 0)
          << "killed after " << life.count() << " us";
      ASSERT_EQ(fingerprint(out), expected) << "killed after " << life.count() << " us";
    }
    EXPECT_FALSE(std::filesystem::exists(folder / ".out.partial"));
    std::filesystem::remove_all(out);
  }
  EXPECT_EQ(killed, 50);
  RecordProperty("killed", killed);
}

}  // namespace
}  // namespace ingot::test
