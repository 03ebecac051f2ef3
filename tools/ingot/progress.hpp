// How far a run is: a bar that redraws itself on a terminal, a plain line now and then in a pipe,
// or JSON lines for programs. All on standard error.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include <CLI/CLI.hpp>

#include "console.hpp"
#include "ingot/progress.hpp"

namespace ingot::tool {

// How much of `total` is done, of 100, never more: what is read twice is counted twice.
[[nodiscard]] double percent(std::uint64_t done, std::uint64_t total);

// Rate and time left of one phase: the rate that was expected first, then more and more the one of
// the last seconds.
class Pace {
 public:
  // `done` bytes at second 0: only what comes after them counts. `expected` in bytes per second; 0:
  // nothing is known before.
  explicit Pace(std::uint64_t done = 0, double expected = 0);

  // Seconds and bytes never fall.
  void note(double seconds, std::uint64_t done);
  // Bytes per second of what was seen; 0: not seen for long enough.
  [[nodiscard]] double rate() const;
  // Seconds until `total`; nothing where that is not known yet.
  [[nodiscard]] std::optional<double> left(std::uint64_t total) const;

 private:
  // Bytes per second, with what was expected; 0: not known yet.
  [[nodiscard]] double speed() const;

  std::uint64_t done_;
  double last_ = 0;
  double bytes_, seconds_;  // of late: older ones fade away
};

class Meter {
 public:
  enum class Style { none, bar, lines, json };

  // Begins with Phase `first`, and shows by itself that it goes on.
  Meter(const Console& console, Style style, Phase first);
  ~Meter();
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

  // Thread-safe.
  void show(const Progress& progress);
  // What the phase that merges or decomposes will take, in seconds; 0: not known.
  void expect(double seconds);
  // Clears the line and shows nothing more. `complete`: all went well, which JSON tells.
  void finish(bool complete = true);

 private:
  using Clock = std::chrono::steady_clock;

  void enter(const Progress& progress, Clock::time_point now);
  void draw(Clock::time_point now);
  void print_event(const char* event, Clock::time_point now) const;
  [[nodiscard]] std::string bar(double seconds) const;
  [[nodiscard]] std::string line(double seconds) const;
  [[nodiscard]] double since(Clock::time_point begin, Clock::time_point now) const;

  const Console& console_;
  const Style style_;
  std::mutex mutex_;  // guards all that follows but the thread
  std::condition_variable ended_;
  bool over_ = false;
  Progress now_;
  Pace pace_;
  double expected_ = 0;
  const Clock::time_point start_;
  Clock::time_point phase_start_, last_;
  bool told_ = false, phase_told_ = false;  // anything, and of this phase
  bool alone_ = false;                      // no thread could be had
  std::thread thread_;
};

// The option --progress of a command.
class ProgressOption {
 public:
  explicit ProgressOption(CLI::App& command);
  // Where nothing was chosen, by what stderr is; a quiet console shows nothing.
  [[nodiscard]] Meter::Style style(const Console& console) const;

 private:
  std::string word_ = "auto";
};

}  // namespace ingot::tool
