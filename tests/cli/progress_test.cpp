#include "progress.hpp"

#include <algorithm>
#include <thread>

#include <gtest/gtest.h>

namespace ingot::tool {
namespace {

// What a pipe sees of a run that reports every few milliseconds. stderr of a test is no terminal.
std::string seen(const Console& console, Progress progress, std::chrono::milliseconds length) {
  testing::internal::CaptureStderr();
  {
    Meter meter(console);
    const auto end = std::chrono::steady_clock::now() + length;
    while (std::chrono::steady_clock::now() < end) {
      progress.bytes_done += 1'000'000;
      meter.show(progress);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
  return testing::internal::GetCapturedStderr();
}

TEST(Meter, APipeGetsAPlainLineEveryFewSeconds) {
  const Progress progress{0, 10'000'000'000, "model.layers.7.mlp.up_proj.weight", 1e9};
  const std::string text = seen(Console(), progress, std::chrono::milliseconds(5'300));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  for (const char* part : {" %  ", "B/s", "% of storage", " left", "layers.7"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST(Meter, AShortRunAndAQuietOnePrintNothing) {
  const Progress progress{0, 100, "t"};
  EXPECT_EQ(seen(Console(), progress, std::chrono::milliseconds(50)), "");
  EXPECT_EQ(seen(Console(true), progress, std::chrono::milliseconds(50)), "");
}

}  // namespace
}  // namespace ingot::tool
